//! The board and the tasks, against servers of every kind.

use std::time::Duration;

use headgate_core::time::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::page::Reading;
use super::scrape::EngineClient;
use super::scraper::Scrape;
use super::*;
use crate::clock::Clock;

/// Longest wait for a condition; it comes within milliseconds.
const LIMIT: Duration = Duration::from_secs(20);

/// A server that answers every connection's first request with these bytes and then, when `endless`, with the last byte for ever.
async fn server(answer: Vec<u8>, ending: Ending) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/metrics", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(&answer).await;
                while ending == Ending::Never && stream.write_all(&[b'#'; 4096]).await.is_ok() {}
                if ending == Ending::Silence {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    (url, task)
}

#[derive(Clone, Copy, PartialEq)]
enum Ending {
    Close,
    Never,
    Silence,
}

fn page(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

async fn scrape(answer: &[u8], ending: Ending) -> Result<Reading, ScrapeError> {
    let (url, task) = server(answer.to_vec(), ending).await;
    let result = EngineClient::new().read(&url.parse().unwrap()).await;
    task.abort();
    result
}

#[tokio::test]
async fn a_page_is_fetched_and_read() {
    assert_eq!(scrape(&page("vllm:num_requests_running 3\n"), Ending::Close).await.unwrap().running, Some(3));
}

#[tokio::test]
async fn a_server_that_misbehaves_costs_a_bounded_time_and_size() {
    let endless = b"HTTP/1.1 200 OK\r\n\r\n";
    assert!(matches!(scrape(endless, Ending::Never).await, Err(ScrapeError::TooLong | ScrapeError::Timeout)));
    let long = [b"HTTP/1.1 200 OK\r\ncontent-length: 1048577\r\n\r\n".as_slice(), &vec![b'#'; 1_048_577]].concat();
    assert_eq!(scrape(&long, Ending::Close).await, Err(ScrapeError::TooLong));
    assert_eq!(scrape(b"", Ending::Silence).await, Err(ScrapeError::Timeout));
    assert_eq!(scrape(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", Ending::Silence).await, Err(ScrapeError::Timeout));
    let redirect = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(scrape(redirect, Ending::Close).await, Err(ScrapeError::Status(hyper::StatusCode::FOUND)));
    assert!(matches!(scrape(b"SSH-2.0-OpenSSH\r\n", Ending::Close).await, Err(ScrapeError::Unreachable(_))));
    assert!(matches!(scrape(&page("hello"), Ending::Close).await, Err(ScrapeError::Page(_))));
}

async fn until(board: &EngineBoard, url: &str, wanted: impl Fn(&EngineState) -> bool) -> EngineState {
    let look = async {
        loop {
            if let Some(state) = board.get(url).filter(&wanted) {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, look).await.expect("the board shows it in time")
}

#[tokio::test]
async fn an_engine_is_read_again_and_again_until_it_is_no_longer_wanted() {
    let (url, server) = server(page("vllm:num_requests_waiting 2\n"), Ending::Close).await;
    let mut engines = Engines::new(Clock::start());
    engines.set([url.as_str()].into_iter());
    let board = engines.board();
    let first = until(&board, &url, |state| state.health == Health::Reading).await;
    until(&board, &url, |state| state.epoch > first.epoch + 1).await;
    server.abort();
    let failing = until(&board, &url, |state| matches!(state.health, Health::Failing(_))).await;
    assert!(failing.reading.is_some(), "the last good reading stays, with its age");
    engines.set(std::iter::empty());
    assert!(board.get(&url).is_none());
}

fn reading(waiting: u64, kv_use: f64, preemptions: u64) -> Reading {
    Reading {
        running: Some(4),
        waiting: Some(waiting),
        kv_use: Some(kv_use),
        kv_fullest: Some(kv_use),
        kv_total_tokens: Some(1000),
        preemptions: Some(preemptions),
    }
}

fn board(urls: &[String]) -> EngineBoard {
    let board = EngineBoard::default();
    urls.iter().for_each(|url| board.insert(url));
    board
}

fn record(board: &EngineBoard, url: &str, at_ms: u64, result: Result<Reading, ScrapeError>) {
    let (asked_at, took) = (Timestamp::from_millis(at_ms), Duration::from_millis(5));
    board.record(url, &Scrape { asked_at, took, result });
}

#[test]
fn a_pool_is_the_sum_of_its_engines_and_the_fullest_of_them() {
    let urls = ["http://a".to_owned(), "http://b".to_owned()];
    let board = board(&urls);
    record(&board, &urls[0], 100, Ok(reading(1, 0.5, 0)));
    record(&board, &urls[1], 150, Ok(reading(2, 0.9, 0)));
    let sample = PoolEngines::read(&board, Timestamp::from_millis(200), &urls).sample.unwrap();
    assert_eq!((sample.waiting, sample.running, sample.engines), (3, 8, 2));
    assert_eq!((sample.kv_used_tokens, sample.kv_total_tokens, sample.kv_fullest), (1400, 2000, 0.9));
    assert_eq!((sample.at, sample.epoch), (Timestamp::from_millis(100), 2), "as old as the oldest, as new as the newest");
}

#[test]
fn an_engine_leaves_the_decision_after_three_periods_and_comes_back() {
    let urls = ["http://a".to_owned(), "http://b".to_owned()];
    let board = board(&urls);
    record(&board, &urls[0], 100, Ok(reading(1, 0.5, 0)));
    record(&board, &urls[1], 100, Ok(reading(9, 0.5, 0)));
    record(&board, &urls[0], 400, Ok(reading(1, 0.5, 0)));
    record(&board, &urls[1], 400, Err(ScrapeError::Timeout));
    let at = |ms| PoolEngines::read(&board, Timestamp::from_millis(ms), &urls);
    assert_eq!(at(405).sample.unwrap().engines, 2, "300 ms old: still in");
    let one = at(406);
    assert_eq!((one.sample.unwrap().engines, one.sample.unwrap().waiting), (1, 1));
    assert_eq!(one.engines[1].word(), "failing");
    assert!(at(706).sample.is_none(), "nothing is known any more");
    record(&board, &urls[1], 800, Ok(reading(3, 0.5, 0)));
    assert_eq!(at(810).sample.unwrap().waiting, 3);
}

#[test]
fn preemptions_never_fall_when_an_engine_restarts_or_goes_stale() {
    let urls = ["http://a".to_owned(), "http://b".to_owned()];
    let board = board(&urls);
    let count = |ms| PoolEngines::read(&board, Timestamp::from_millis(ms), &urls).sample.unwrap().preemptions;
    record(&board, &urls[0], 100, Ok(reading(0, 0.1, 50)));
    record(&board, &urls[1], 100, Ok(reading(0, 0.1, 0)));
    assert_eq!(count(110), 0, "what came before is not counted");
    record(&board, &urls[0], 200, Ok(reading(0, 0.1, 53)));
    assert_eq!(count(210), 3);
    record(&board, &urls[0], 300, Ok(reading(0, 0.1, 2)));
    assert_eq!(count(310), 5, "restarted, then two");
    record(&board, &urls[1], 900, Ok(reading(0, 0.1, 1)));
    assert_eq!(count(910), 6, "the first is stale and takes nothing back");
}

#[test]
fn a_size_that_one_engine_does_not_tell_is_unknown_for_the_pool() {
    let urls = ["http://a".to_owned(), "http://b".to_owned()];
    let board = board(&urls);
    record(&board, &urls[0], 100, Ok(reading(1, 0.5, 0)));
    record(&board, &urls[1], 100, Ok(Reading { kv_total_tokens: None, ..reading(1, 0.7, 0) }));
    let sample = PoolEngines::read(&board, Timestamp::from_millis(110), &urls).sample.unwrap();
    assert_eq!((sample.kv_total_tokens, sample.kv_used_tokens, sample.kv_fullest), (0, 0, 0.7));
}
