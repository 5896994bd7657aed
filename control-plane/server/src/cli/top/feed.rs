//! Looks at the status, one after the other, from a task of its own: a control plane that is slow or away never holds the screen up.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::super::CliError;
use super::super::connect::HttpArgs;
use crate::status::StatusDocument;

/// Longest time between two attempts to reach a control plane that is away.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// What a look brought.
#[derive(Debug)]
pub(super) enum News {
    /// The status.
    Seen(Box<StatusDocument>),
    /// Nothing.
    Lost {
        /// Why.
        problem: String,
        /// Time until the next attempt.
        retry_in: Duration,
    },
}

/// One look.
///
/// # Errors
/// When the control plane does not answer, or not with a status that this version reads.
pub(super) async fn look(http: &HttpArgs) -> Result<StatusDocument, CliError> {
    let body = http.get("/throttle/status").await?;
    serde_json::from_slice(&body).map_err(|error| CliError::Refused(format!("/throttle/status is not what this version expects: {error}")))
}

/// Looks again and again; the time between two looks is that of `interval`. Ends when nobody listens any more.
pub(super) fn start(http: HttpArgs, mut interval: watch::Receiver<Duration>) -> mpsc::Receiver<News> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut failures = 0;
        loop {
            let (news, wait) = match look(&http).await {
                Ok(document) => {
                    failures = 0;
                    (News::Seen(Box::new(document)), *interval.borrow())
                }
                Err(error) => {
                    failures += 1;
                    let wait = backoff(*interval.borrow(), failures);
                    (News::Lost { problem: one_line(&error), retry_in: wait }, wait)
                }
            };
            if sender.send(news).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = interval.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
        }
    });
    receiver
}

/// Time after the failure with number `failures`: doubled each time, at most five seconds, never less than the interval.
fn backoff(interval: Duration, failures: u32) -> Duration {
    let doubled = Duration::from_millis(250).saturating_mul(1 << failures.min(10));
    doubled.min(MAX_BACKOFF).max(interval)
}

/// The problem without the advice that a command that has ended gives.
fn one_line(error: &CliError) -> String {
    match error {
        CliError::Unreachable { problem, .. } => problem.clone(),
        other => other.to_string().lines().next().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_grow_apart_to_five_seconds_and_are_never_closer_than_looks() {
        let seconds = |interval, failures| backoff(Duration::from_secs(interval), failures).as_secs_f64();
        assert_eq!((seconds(0, 1), seconds(0, 2), seconds(0, 40)), (0.5, 1.0, 5.0));
        assert_eq!(seconds(30, 40), 30.0);
    }
}
