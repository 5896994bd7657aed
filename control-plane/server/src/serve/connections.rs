//! Connections of the gRPC listener, each replaced at an age of its own.
//!
//! A proxy keeps its connection for months, so replicas that come later would stay idle, and a rolling restart leaves everybody with the
//! one that came back first. At its age a connection is told to go away (GOAWAY): what is in flight goes on, what is new takes another
//! connection. The streams of proxies never end by themselves, so they are ended a moment later and open again on the new one, each at
//! another time: a fleet that connected at once does not do so again.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::time::{Duration, Instant};

use futures::future::{try_join, try_join_all};
use futures::{Stream, StreamExt};
use headgate_core::rng::Rng;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::identity::listener::Connection;

/// Ages that connections may have. A server has one age for all of its connections, so there are as many servers.
const LANES: u32 = 32;
/// The youngest age in parts of the one that is set, and what the oldest is more.
const YOUNGEST: f64 = 0.75;
const SPREAD: f64 = 0.5;
/// Time for the client to hear that it is to open nothing more here, before its streams end.
const NOTICE: Duration = Duration::from_millis(500);
/// Connections of a lane that are accepted and not yet served.
const BACKLOG: usize = 16;

/// Connections that one server serves, all told to go away at the same age.
pub(super) type Lane = futures::stream::Map<ReceiverStream<Connection>, fn(Connection) -> io::Result<Connection>>;

/// Serves `incoming` until it ends and all of its connections are closed. `serve` starts a server whose connections are told to go away at
/// an age, if one is given.
pub(super) async fn serve<S, F, E>(
    mut incoming: impl Stream<Item = io::Result<Connection>> + Unpin,
    age: Option<Duration>,
    serve: S,
) -> Result<(), E>
where
    S: Fn(Lane, Option<Duration>) -> F,
    F: Future<Output = Result<(), E>>,
{
    let (mut lanes, mut servers) = (Vec::new(), Vec::new());
    for age in ages(age) {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        lanes.push((age, sender));
        servers.push(serve(ReceiverStream::new(receiver).map(Ok), age));
    }
    let mut rng = Rng::new(RandomState::new().hash_one(0));
    let deal = async move {
        while let Some(Ok(mut connection)) = incoming.next().await {
            let Some((age, lane)) = lanes.get((rng.next_u64() % lanes.len() as u64) as usize) else { continue };
            if let Some(age) = age {
                let told_at = Instant::now() + *age;
                connection.move_streams(told_at, told_at + NOTICE + gap(*age).mul_f64(rng.next_f64()));
            }
            // Fails when the lane's server has ended, as all do with the program.
            let _ = lane.send(connection).await;
        }
        Ok(())
    };
    try_join(deal, try_join_all(servers)).await.map(drop)
}

/// One age for each lane.
fn ages(age: Option<Duration>) -> Vec<Option<Duration>> {
    let Some(age) = age else { return vec![None] };
    (0..LANES).map(|lane| Some(age.mul_f64(YOUNGEST + SPREAD * f64::from(lane) / f64::from(LANES - 1)))).collect()
}

/// About the distance of two lanes, over which the streams of one of them end.
fn gap(age: Duration) -> Duration {
    age.mul_f64(SPREAD / f64::from(LANES - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_spread_evenly_around_the_one_that_is_set_and_streams_end_in_between() {
        let age = Duration::from_secs(1800);
        let ages: Vec<Duration> = ages(Some(age)).into_iter().flatten().collect();
        assert_eq!((ages.first(), ages.last()), (Some(&age.mul_f64(0.75)), Some(&age.mul_f64(1.25))));
        for pair in ages.windows(2) {
            let distance = pair[1] - pair[0];
            assert!(distance.abs_diff(gap(age)) < Duration::from_millis(1), "{pair:?}");
        }
    }

    #[test]
    fn without_an_age_there_is_one_server_that_tells_nobody_to_go() {
        assert_eq!(ages(None), [None]);
    }
}
