//! The board and the tasks, against servers of every kind.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use headgate_core::level::{EngineFacts, EngineMemory};
use headgate_core::time::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::board::Scrape;
use super::page::{PageError, Reading};
use super::scrape::EngineClient;
use super::*;
use crate::clock::Clock;

/// Longest wait for a condition; it comes within milliseconds.
const LIMIT: Duration = Duration::from_secs(20);

/// A server that answers every connection's first request with these bytes and then, when `endless`, with the last byte for ever.
async fn server(answer: Vec<u8>, ending: Ending) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
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
    (address, task)
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

fn url(address: SocketAddr) -> String {
    format!("http://{address}/metrics")
}

async fn scrape(answer: &[u8], ending: Ending) -> Result<Reading, ScrapeError> {
    let (address, task) = server(answer.to_vec(), ending).await;
    let result = EngineClient::new().read(&url(address).parse().unwrap(), address).await;
    task.abort();
    result
}

#[tokio::test]
async fn a_page_is_fetched_and_read() {
    assert_eq!(scrape(&page("vllm:num_requests_running 3\n"), Ending::Close).await.unwrap().running, Some(3));
}

#[tokio::test]
async fn a_server_that_misbehaves_costs_a_bounded_time_and_size() {
    let too_long = Err(ScrapeError::Page(PageError::TooLong));
    let endless = b"HTTP/1.1 200 OK\r\n\r\n";
    let outcome = scrape(endless, Ending::Never).await;
    assert!(outcome == too_long || outcome == Err(ScrapeError::Timeout), "{outcome:?}");
    let long = [b"HTTP/1.1 200 OK\r\ncontent-length: 4194305\r\n\r\n".as_slice(), &vec![b'#'; 4_194_305]].concat();
    let outcome = scrape(&long, Ending::Close).await;
    assert!(outcome == too_long || outcome == Err(ScrapeError::Timeout), "{outcome:?}");
    assert_eq!(scrape(b"", Ending::Silence).await, Err(ScrapeError::Timeout));
    assert_eq!(scrape(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", Ending::Silence).await, Err(ScrapeError::Timeout));
    let redirect = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(scrape(redirect, Ending::Close).await, Err(ScrapeError::Status(hyper::StatusCode::FOUND)));
    let compressed = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b";
    assert_eq!(scrape(compressed, Ending::Close).await, Err(ScrapeError::Compressed));
    let headers = [b"HTTP/1.1 200 OK\r\n".as_slice(), &b"x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(10_000)].concat();
    assert!(matches!(scrape(&headers, Ending::Silence).await, Err(ScrapeError::Unreachable(_))));
    assert!(matches!(scrape(b"SSH-2.0-OpenSSH\r\n", Ending::Close).await, Err(ScrapeError::Unreachable(_))));
    assert!(matches!(scrape(&page("hello"), Ending::Close).await, Err(ScrapeError::Page(_))));
}

async fn until(board: &EngineBoard, url: &str, wanted: impl Fn(&EngineState) -> bool) -> EngineState {
    let look = async {
        loop {
            let page = board.get(url).unwrap_or_default();
            if let Some(state) = page.engines.into_values().find(&wanted) {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, look).await.expect("the board shows it in time")
}

#[tokio::test]
async fn an_engine_is_read_again_and_again_until_it_is_no_longer_wanted() {
    let (address, server) = server(page("vllm:num_requests_waiting 2\n"), Ending::Close).await;
    let url = url(address);
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

#[tokio::test]
async fn an_engine_that_turns_to_a_hundred_mebibytes_of_garbage_leaves_the_decision_in_three_periods() {
    let (good, _good) = server(page("vllm:num_requests_waiting 2\n"), Ending::Close).await;
    let (bad, _bad) =
        server(b"HTTP/1.1 200 OK\r\ncontent-length: 104857600\r\n\r\nvllm:num_requests_waiting 9\n".to_vec(), Ending::Never).await;
    let urls = [url(good), url(bad)];
    let clock = Clock::start();
    let mut engines = Engines::new(clock);
    engines.set(urls.iter().map(String::as_str));
    let board = engines.board();
    let failing = until(&board, &urls[1], |state| matches!(state.health, Health::Failing(_)) && state.readings > 3).await;
    assert_eq!(failing.failures, failing.readings, "no piece of it was believed");
    let healthy = until(&board, &urls[0], |state| state.readings > 10).await;
    assert!(healthy.failures == 0, "{healthy:?}");
    let pool = PoolEngines::read(&board, clock.now(), ("llm", &urls), 0, &mut FreezeWatch::default());
    assert_eq!((pool.sample.unwrap().waiting, pool.engines[1].word()), (2, "failing"));
}

/// A name whose addresses a test changes.
fn names(addresses: &Arc<Mutex<std::io::Result<Vec<SocketAddr>>>>) -> resolve::Resolver {
    let addresses = addresses.clone();
    Arc::new(move |_, _| {
        let answer = match &*addresses.lock().unwrap() {
            Ok(addresses) => Ok(addresses.clone()),
            Err(error) => Err(std::io::Error::new(error.kind(), error.to_string())),
        };
        Box::pin(std::future::ready(answer))
    })
}

#[tokio::test]
async fn a_name_stands_for_all_its_addresses_and_is_resolved_again() {
    let (a, _a) = server(page("vllm:num_requests_waiting 1\n"), Ending::Close).await;
    let (b, _b) = server(page("vllm:num_requests_waiting 2\n"), Ending::Close).await;
    let (c, _c) = server(page("vllm:num_requests_waiting 4\n"), Ending::Close).await;
    let same_as_a: SocketAddr = "[::1]:9".parse().unwrap();
    let answer = Arc::new(Mutex::new(Ok(vec![b, a, same_as_a, a])));
    let mut engines = Engines::with_resolver(Clock::start(), names(&answer), Duration::from_millis(30));
    let url = "http://engines.test:8000/metrics".to_owned();
    engines.set([url.as_str()].into_iter());
    let board = engines.board();
    let waiting = |value| move |state: &EngineState| state.reading.as_ref().is_some_and(|reading| reading.waiting == Some(value));
    until(&board, &url, waiting(1)).await;
    until(&board, &url, waiting(2)).await;
    assert_eq!(board.get(&url).unwrap().engines.len(), 2, "each address once, and of one family");
    let kept = board.get(&url).unwrap().engines[&b].readings;
    *answer.lock().unwrap() = Ok(vec![b, c]);
    until(&board, &url, waiting(4)).await;
    let now = board.get(&url).unwrap();
    assert!(!now.engines.contains_key(&a), "who is gone is no longer read");
    assert!(now.engines[&b].readings >= kept, "who stays keeps what is known of it");
    *answer.lock().unwrap() = Err(std::io::Error::other("no such name"));
    let unresolved = async {
        while board.get(&url).unwrap().unresolved.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, unresolved).await.expect("it is tried again");
    assert_eq!(board.get(&url).unwrap().engines.len(), 2, "a name server that fails takes no engine away");
}

#[tokio::test]
async fn a_name_that_stands_for_nothing_is_shown_with_the_reason() {
    let answer = Arc::new(Mutex::new(Ok(Vec::new())));
    let mut engines = Engines::with_resolver(Clock::start(), names(&answer), Duration::from_millis(30));
    let urls = ["http://engines.test:8000/metrics".to_owned()];
    engines.set(urls.iter().map(String::as_str));
    let board = engines.board();
    let shown = async {
        while board.get(&urls[0]).is_none_or(|page| page.unresolved.is_none()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, shown).await.expect("it is tried");
    let pool = PoolEngines::read(&board, Timestamp::ZERO, ("llm", &urls), 0, &mut FreezeWatch::default());
    assert_eq!(pool.engines[0].word(), "unresolved");
    assert_eq!(pool.engines[0].unresolved.as_deref(), Some("engines.test: stands for no address"));
}

fn reading(waiting: u64, kv_use: f64, preemptions: u64) -> Reading {
    Reading {
        running: Some(4),
        waiting: Some(waiting),
        kv_use: Some(kv_use),
        kv_fullest: Some(kv_use),
        kv_total_tokens: Some(1000),
        preemptions: Some(preemptions),
        ..Reading::default()
    }
}

/// A board with engines on which a test writes by hand.
struct Hand {
    board: EngineBoard,
    urls: Vec<String>,
    watch: FreezeWatch,
}

fn scrape_at(ms: u64, reading: Reading) -> Scrape {
    Scrape { asked_at: Timestamp::from_millis(ms), took: Duration::from_millis(5), result: Ok(reading) }
}

impl Hand {
    fn new(engines: u16) -> Self {
        let (board, urls): (_, Vec<String>) = (EngineBoard::default(), (0..engines).map(|n| format!("http://e{n}/metrics")).collect());
        board.keep(urls.iter().map(String::as_str));
        for (index, url) in urls.iter().enumerate() {
            board.set_endpoints(url, &[Self::address(index)]);
        }
        Self { board, urls, watch: FreezeWatch::default() }
    }

    fn address(index: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, u8::try_from(index).unwrap()], 8000))
    }

    fn record(&self, index: usize, at_ms: u64, result: Result<Reading, ScrapeError>) {
        let scrape = Scrape { result, ..scrape_at(at_ms, Reading::default()) };
        self.board.record(&self.urls[index], Self::address(index), LoadSource::Page, scrape);
    }

    fn state(&self, index: usize) -> EngineState {
        self.board.get(&self.urls[index]).unwrap().engines[&Self::address(index)].clone()
    }

    fn at(&mut self, ms: u64, completed: u64) -> PoolEngines {
        PoolEngines::read(&self.board, Timestamp::from_millis(ms), ("llm", &self.urls), completed, &mut self.watch)
    }
}

#[test]
fn a_pool_is_the_sum_of_its_engines_and_the_fullest_of_them() {
    let mut hand = Hand::new(2);
    hand.record(0, 100, Ok(reading(1, 0.5, 0)));
    hand.record(1, 150, Ok(reading(2, 0.9, 0)));
    let pool = hand.at(200, 0);
    let sample = pool.sample.unwrap();
    assert_eq!((sample.waiting, sample.running, sample.engines), (3, 8, 2));
    assert_eq!((sample.kv_used_tokens, sample.kv_total_tokens, sample.kv_fullest), (1400, 2000, 0.9));
    assert_eq!((sample.at, sample.epoch), (Timestamp::from_millis(100), 2), "as old as the oldest, as new as the newest");
    assert_eq!(pool.worst, Some(1));
}

#[test]
fn of_unlike_engines_the_one_with_the_longest_queue_for_its_size_is_worst() {
    let mut hand = Hand::new(2);
    hand.record(0, 100, Ok(Reading { running: Some(200), kv_total_tokens: Some(1_000_000), ..reading(20, 0.6, 0) }));
    hand.record(1, 100, Ok(Reading { running: Some(4), ..reading(12, 0.5, 0) }));
    let pool = hand.at(200, 0);
    assert_eq!(pool.worst, Some(1), "the sum says 32 waiting to 204 running");
    assert_eq!(pool.worst().unwrap().url, hand.urls[1]);
}

#[test]
fn an_engine_leaves_the_decision_after_three_periods_and_comes_back() {
    let mut hand = Hand::new(2);
    hand.record(0, 100, Ok(reading(1, 0.5, 0)));
    hand.record(1, 100, Ok(reading(9, 0.5, 0)));
    hand.record(0, 400, Ok(reading(1, 0.5, 0)));
    hand.record(1, 400, Err(ScrapeError::Timeout));
    assert_eq!(hand.at(405, 0).sample.unwrap().engines, 2, "300 ms old: still in");
    let one = hand.at(406, 0);
    assert_eq!((one.sample.unwrap().engines, one.sample.unwrap().waiting), (1, 1));
    assert_eq!(one.engines[1].word(), "failing");
    assert!(hand.at(706, 0).sample.is_none(), "nothing is known any more");
    hand.record(1, 800, Ok(reading(3, 0.5, 0)));
    assert_eq!(hand.at(810, 0).sample.unwrap().waiting, 3);
}

#[test]
fn counters_never_fall_when_an_engine_restarts_or_goes_stale() {
    let mut hand = Hand::new(2);
    let tokens = |preemptions, tokens| Ok(Reading { output_tokens: Some(tokens), ..reading(0, 0.1, preemptions) });
    hand.record(0, 100, tokens(50, 9000));
    hand.record(1, 100, tokens(0, 100));
    let counts = |hand: &mut Hand, ms| hand.at(ms, 0).sample.map(|sample| (sample.preemptions, sample.output_tokens)).unwrap();
    assert_eq!(counts(&mut hand, 110), (0, 0), "what came before is not counted");
    hand.record(0, 200, tokens(53, 9400));
    assert_eq!(counts(&mut hand, 210), (3, 400));
    hand.record(0, 300, tokens(2, 30));
    assert_eq!(counts(&mut hand, 310), (5, 430), "restarted, then two and thirty");
    assert_eq!((hand.state(0).restarts, hand.state(1).restarts), (1, 0));
    hand.record(1, 900, tokens(1, 5000));
    assert_eq!(counts(&mut hand, 910), (6, 430), "the first is stale and takes nothing back; tokens that nobody saw are no rate");
    hand.record(1, 1000, tokens(1, 5050));
    assert_eq!(counts(&mut hand, 1010), (6, 480));
}

#[test]
fn a_size_that_one_engine_does_not_tell_is_unknown_for_the_pool() {
    let mut hand = Hand::new(2);
    hand.record(0, 100, Ok(reading(1, 0.5, 0)));
    hand.record(1, 100, Ok(Reading { kv_total_tokens: None, ..reading(1, 0.7, 0) }));
    let sample = hand.at(110, 0).sample.unwrap();
    assert_eq!((sample.kv_total_tokens, sample.kv_used_tokens, sample.kv_fullest), (0, 0, 0.7));
}

fn steps(tokens: u64) -> Result<Reading, ScrapeError> {
    Ok(Reading { output_tokens: Some(tokens), ..reading(2, 0.95, 0) })
}

#[test]
fn a_page_that_stays_the_same_while_requests_end_is_frozen_after_three_periods() {
    let mut hand = Hand::new(1);
    hand.record(0, 0, steps(100));
    hand.record(0, 100, steps(200));
    for ms in [200, 300, 400] {
        hand.record(0, ms, steps(200));
        assert_eq!(hand.at(ms + 5, ms / 10).engines[0].word(), "ok", "{ms} ms: less than three periods");
    }
    hand.record(0, 500, steps(200));
    assert_eq!(hand.at(505, 40).engines[0].word(), "ok", "what had ended after two periods may be from before");
    let frozen = hand.at(510, 41);
    assert_eq!((frozen.engines[0].word(), frozen.sample), ("frozen", None), "a request ended, and no counter moved");
    hand.record(0, 600, steps(210));
    let thawed = hand.at(610, 60);
    assert_eq!((thawed.engines[0].word(), thawed.sample.unwrap().waiting), ("ok", 2));
}

#[test]
fn an_engine_that_stands_still_while_nothing_ends_is_not_frozen() {
    let mut hand = Hand::new(1);
    (0..50).for_each(|n| hand.record(0, 100 * n, steps(200)));
    assert_eq!(hand.at(4905, 7).engines[0].word(), "ok", "a long step, or no work at all");
    assert_eq!(hand.at(4910, 7).engines[0].word(), "ok");
}

#[test]
fn an_engine_that_publishes_once_a_second_is_given_three_seconds() {
    let mut hand = Hand::new(1);
    // Every tenth reading is new; requests end all the time.
    (0..50).for_each(|n| hand.record(0, 100 * n, steps(n / 10)));
    let word = |hand: &mut Hand, ms| {
        hand.record(0, ms, steps(4));
        hand.at(ms + 5, ms).engines[0].word()
    };
    // It last changed at 4.0 s.
    assert_eq!([5000, 6000, 6900].map(|ms| word(&mut hand, ms)), ["ok"; 3]);
    assert_eq!(word(&mut hand, 7100), "frozen");
}

#[test]
fn of_several_engines_one_without_work_is_not_frozen_before_ten_requests_for_each_have_ended() {
    let mut hand = Hand::new(2);
    for n in 0..10 {
        hand.record(0, 100 * n, steps(n));
        hand.record(1, 100 * n, Ok(Reading { running: Some(0), ..reading(0, 0.0, 0) }));
    }
    let words = |pool: PoolEngines| pool.engines.iter().map(EngineView::word).collect::<Vec<_>>();
    assert_eq!(words(hand.at(905, 100)), ["ok", "ok"]);
    assert_eq!(words(hand.at(910, 119)), ["ok", "ok"]);
    assert_eq!(words(hand.at(915, 120)), ["ok", "frozen"]);
}

#[test]
fn what_the_engines_say_of_memory_is_that_of_the_kind_that_allocates_up_front() {
    let of = |engine, kv_fullest| Ok(Reading { engine: Some(engine), kv_fullest, ..reading(0, 0.5, 0) });
    let mut hand = Hand::new(2);
    assert_eq!(hand.at(0, 0).memory(), EngineFacts::Unread);
    hand.record(0, 100, of(EngineKind::Triton, None));
    let expected = |engine, preallocates, kv_fullest| EngineFacts::Read(EngineMemory { engine, preallocates, kv_fullest });
    assert_eq!(hand.at(150, 0).memory(), expected("triton", None, None));
    hand.record(1, 110, of(EngineKind::Vllm, Some(0.75)));
    assert_eq!(hand.at(150, 0).memory(), expected("vllm", Some(true), Some((Timestamp::from_millis(100), 0.75))));
    assert_eq!(hand.at(900, 0).memory(), EngineFacts::Unread, "both are stale");
}

#[test]
fn the_engine_of_an_endpoint_is_found_by_its_address_or_as_the_only_one_there() {
    let hand = Hand::new(1);
    hand.record(0, 100, Ok(reading(7, 0.5, 0)));
    let waiting = |ms: u64, text: &str| hand.board.reading_at(Timestamp::from_millis(ms), text.parse().unwrap())?.waiting;
    assert_eq!(waiting(200, "10.0.0.0:8000"), Some(7));
    assert_eq!(waiting(200, "10.0.0.0:9000"), Some(7), "its page is on another port");
    assert_eq!((waiting(200, "10.0.0.1:8000"), waiting(500, "10.0.0.0:8000")), (None, None), "another machine, and too old");
    hand.board.set_endpoints(&hand.urls[0], &[Hand::address(0), "10.0.0.0:8001".parse().unwrap()]);
    hand.board.record(&hand.urls[0], "10.0.0.0:8001".parse().unwrap(), LoadSource::Page, scrape_at(100, reading(9, 0.5, 0)));
    assert_eq!(waiting(200, "10.0.0.0:9000"), None, "two engines on one machine: nobody knows whose it is");
    assert_eq!(waiting(200, "10.0.0.0:8001"), Some(9));
    hand.record(0, 600, Ok(reading(7, 0.5, 0)));
    assert_eq!(waiting(700, "10.0.0.0:8001"), None, "too old, and its neighbour's is not its own");
}
