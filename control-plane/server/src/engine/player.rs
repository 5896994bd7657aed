//! Engines on a tape: their readings come to the board as they came when they were recorded.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use headgate_core::time::Timestamp;
use tokio::time::sleep_until;

use super::board::{LoadSource, STALE_AFTER, Scrape};
use super::page::Reading;
use super::scrape::ScrapeError;
use super::scraper::Reader;
use crate::device::tape::{Moment, Playback};

// === impl Reader ===

impl Reader {
    /// Plays the engines behind `url` over and over, each reading when it was there on the tape, until it is aborted. A machine that stood
    /// still goes on where the tape is by then.
    pub(super) async fn play_page(&self, url: &str, playback: &Playback) {
        let addresses: Vec<SocketAddr> = playback.tape().engines(url).map(|(address, _)| address).collect();
        self.board.set_endpoints(url, &addresses);
        let mut moments: Vec<(SocketAddr, &Moment<Reading, ScrapeError>)> =
            playback.tape().engines(url).flat_map(|(address, moments)| moments.iter().map(move |moment| (address, moment))).collect();
        moments.sort_by_key(|(_, moment)| moment.ready_at);
        let place = || {
            let (round, at) = playback.position(Instant::now());
            (round, moments.partition_point(|(_, moment)| moment.ready_at <= at))
        };
        let (mut round, mut next) = place();
        loop {
            let Some((address, moment)) = moments.get(next) else {
                (round, next) = (round.saturating_add(1), 0);
                continue;
            };
            let Some(due) = playback.time_of(round, moment.ready_at) else { return };
            sleep_until(due.into()).await;
            if due.elapsed() > STALE_AFTER {
                (round, next) = place();
                continue;
            }
            let took = moment.ready_at.saturating_sub(moment.asked_at);
            let asked_at = earlier(self.clock.now(), took);
            self.tell(url, *address, LoadSource::Tape, Scrape { asked_at, took, result: moment.answer.clone() });
            next += 1;
        }
    }
}

/// `now` less `by`; the clock's zero where that would be before it.
fn earlier(now: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_nanos(now.as_nanos().saturating_sub(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc::Receiver;

    use super::super::{EngineKind, Engines, LoadSource};
    use crate::clock::Clock;
    use crate::device::tape::{Answer, Call, EngineAnswer, EngineOutcome, Header, Playback, Recorder, Tape, TapeWriter, Written};
    use crate::device::{NoDevices, SampleError};

    /// An engine whose queue grows by one with every reading, and which fails every fourth time.
    async fn engine(listener: TcpListener) {
        for waiting in 0_u64.. {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let _ = stream.read(&mut [0; 4096]).await;
            let body = format!("vllm:num_requests_waiting {waiting}\nvllm:kv_cache_usage_perc 0.{waiting}\n");
            let status = if waiting % 4 == 3 { "500 No" } else { "200 OK" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    }

    /// Engines whose readings go to a tape, and the tape's calls.
    fn recorded() -> (Engines, Receiver<Call>) {
        let clock = Clock::start();
        let (recorder, calls, _) = Recorder::new(Box::new(NoDevices::new(SampleError::Off)), clock);
        let mut engines = Engines::new(clock);
        engines.record(recorder.tap());
        (engines, calls)
    }

    async fn take(calls: &mut Receiver<Call>, count: usize) -> Vec<Call> {
        let mut taken = Vec::new();
        while taken.len() < count {
            taken.push(calls.recv().await.unwrap());
        }
        taken
    }

    fn said(call: &Call) -> EngineAnswer {
        let Answer::Engine(answer) = &call.answer else { panic!("{call:?} is of no engine") };
        answer.clone()
    }

    #[tokio::test]
    async fn what_is_played_is_what_was_recorded_and_never_sooner() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/metrics", listener.local_addr().unwrap());
        let server = tokio::spawn(engine(listener));
        let (mut engines, mut calls) = recorded();
        engines.set([url.as_str()].into_iter());
        let recorded_calls = take(&mut calls, 10).await;
        drop(engines);
        server.abort();
        assert!(
            recorded_calls
                .iter()
                .any(|call| matches!(&said(call).outcome, EngineOutcome::Failed(problem) if problem.starts_with("answered 500")))
        );

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tape.jsonl");
        let header = Header::of(&mut NoDevices::new(SampleError::Off), super::super::PERIOD, vec![url.clone()]).unwrap();
        let mut tape = TapeWriter::begin(std::fs::File::create(&path).unwrap(), &header).unwrap();
        for call in &recorded_calls {
            assert_eq!(tape.write(call).unwrap(), Written::Whole);
        }
        tape.end().unwrap();

        let (mut engines, mut calls) = played(&path);
        engines.set([url.as_str()].into_iter());
        let played_calls = take(&mut calls, 15).await;
        for (n, played) in played_calls.iter().enumerate() {
            let recorded = &recorded_calls[n % recorded_calls.len()];
            assert_eq!(said(played), said(recorded), "{n}");
            let ready = |call: &Call| call.at_us + call.took_us;
            assert!(ready(played) >= ready(recorded), "{n}: {played:?} is before {recorded:?}");
        }
        let state = engines.board().get(&url).unwrap().engines.into_values().next().unwrap();
        assert_eq!((state.source, state.reading.unwrap().engine), (LoadSource::Tape, Some(EngineKind::Vllm)));
    }

    fn played(path: &Path) -> (Engines, Receiver<Call>) {
        let (mut engines, calls) = recorded();
        engines.play(Some(Playback::new(Tape::open(path).unwrap())));
        (engines, calls)
    }
}
