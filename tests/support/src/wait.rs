//! Waiting for a condition: the only waiting there is in the tests.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(5);

/// Looks at `condition` every 5 ms until it gives a value, and returns that.
///
/// `what` names the condition in the error, as in "no Envoy ready after 10 s".
///
/// # Errors
/// When `within` has passed, or when the condition itself gives an error: then it can no longer come true.
pub async fn wait_until<T, F, C>(what: &str, within: Duration, mut condition: F) -> Result<T>
where
    F: FnMut() -> C,
    C: Future<Output = Result<Option<T>>>,
{
    let began = Instant::now();
    loop {
        if let Some(value) = condition().await? {
            return Ok(value);
        }
        if began.elapsed() >= within {
            bail!("no {what} after {:.1} s", within.as_secs_f64());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiting_ends_when_the_condition_gives_a_value() {
        let mut looks = 0;
        let found = wait_until("third look", Duration::from_secs(5), || {
            looks += 1;
            let look = looks;
            async move { Ok((look == 3).then_some(look)) }
        });
        assert_eq!(found.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn waiting_past_the_deadline_names_the_condition() {
        let error = wait_until("miracle", Duration::from_millis(20), || async { Ok(None::<()>) }).await.unwrap_err();
        assert_eq!(error.to_string(), "no miracle after 0.0 s");
    }
}
