//! The load against a server of this test.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const ADMIT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n";
const REFUSE: &str = "HTTP/1.1 429 Too Many Requests\r\nx-headgate-reason: qps; value=2\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";

/// Answers every request on every connection with `answer`, `delay` after it has come.
async fn server(answer: &'static str, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                // The requests of these tests are small and come one by one, so each is one read.
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    tokio::time::sleep(delay).await;
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

fn plan(target: SocketAddr, arrivals: Arrivals) -> Plan {
    let traffic = vec![Traffic { class: "only".to_owned(), request: Template::get("/"), arrivals }];
    Plan {
        target,
        seed: 1,
        traffic,
        max_in_flight: 100,
        request_timeout: Duration::from_secs(10),
        first_byte_timeout: None,
        worker_header: None,
    }
}

#[test]
fn arrivals_follow_the_rate_of_each_segment() {
    let second = Duration::from_secs(1);
    let arrivals = Arrivals::segments(Pace::Constant, &[(second, 10.0), (second, 0.0), (second, 20.0)]);
    let times: Vec<Duration> = arrivals.times(7).collect();
    let within = |from: f64, to: f64| times.iter().filter(|time| (from..to).contains(&time.as_secs_f64())).count();
    assert_eq!([within(0.0, 1.001), within(1.001, 2.0), within(2.0, 3.001)], [10, 0, 20]);
}

#[test]
fn poisson_arrivals_repeat_with_the_seed_and_have_the_rate() {
    let arrivals = Arrivals::poisson(1000.0, Duration::from_secs(20));
    let times: Vec<Duration> = arrivals.times(3).collect();
    assert_eq!(times, arrivals.times(3).collect::<Vec<_>>());
    assert_ne!(times, arrivals.times(4).collect::<Vec<_>>());
    // 20 000 expected; the standard deviation is 141.
    assert!((19_000..21_000).contains(&times.len()), "{}", times.len());
    assert!(times.is_sorted());
}

#[tokio::test]
async fn answered_requests_count_as_admitted() {
    let target = server(ADMIT, Duration::ZERO).await;
    let report = Load::start(plan(target, Arrivals::constant(200.0, Duration::from_millis(250)))).unwrap().finish().await.unwrap();
    let class = class(&report.classes, "only").unwrap();
    assert_eq!((class.offered, class.admitted, class.failed_total()), (50, 50, 0));
    assert_eq!(class.ttft_us.len(), 50);
}

#[tokio::test]
async fn refusals_count_by_their_reason_and_per_worker() {
    let target = server(REFUSE, Duration::ZERO).await;
    let report = Load::start(plan(target, Arrivals::constant(100.0, Duration::from_millis(100)))).unwrap().finish().await.unwrap();
    let class = class(&report.classes, "only").unwrap();
    assert_eq!(class.refused.get("qps"), Some(&10));
    assert_eq!(class.refused_without_retry_after, 0);
    assert!(!class.first_refused_at.is_empty() && class.last_refused_at.is_some());
}

#[tokio::test]
async fn slow_server_does_not_slow_the_arrivals_down() {
    let delay = Duration::from_millis(300);
    let target = server(ADMIT, delay).await;
    let report = Load::start(plan(target, Arrivals::constant(100.0, Duration::from_millis(300)))).unwrap().finish().await.unwrap();
    let class = class(&report.classes, "only").unwrap();
    // A client that waits for each answer would have sent one.
    assert_eq!((class.offered, class.admitted), (30, 30));
    assert!(class.ttft_ms(0.0).unwrap() >= 299.0);
}

#[tokio::test]
async fn refused_connection_is_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    drop(listener);
    let report = Load::start(plan(target, Arrivals::constant(50.0, Duration::from_millis(100)))).unwrap().finish().await.unwrap();
    assert_eq!(class(&report.classes, "only").unwrap().failed_total(), 5);
}

#[tokio::test]
async fn requests_beyond_the_bound_in_flight_are_overrun_and_not_offered() {
    let target = server(ADMIT, Duration::from_millis(400)).await;
    let mut plan = plan(target, Arrivals::constant(100.0, Duration::from_millis(200)));
    plan.max_in_flight = 5;
    let report = Load::start(plan).unwrap().finish().await.unwrap();
    let class = class(&report.classes, "only").unwrap();
    assert_eq!((class.offered, class.overrun), (5, 15));
}

#[tokio::test]
async fn stopped_load_sends_nothing_more() {
    let target = server(ADMIT, Duration::ZERO).await;
    let load = Load::start(plan(target, Arrivals::constant(100.0, Duration::from_secs(3600)))).unwrap();
    crate::wait_until("first answer", Duration::from_secs(10), || std::future::ready(Ok((!load.outcomes(0).is_empty()).then_some(()))))
        .await
        .unwrap();
    let report = load.stop().await.unwrap();
    let class = class(&report.classes, "only").unwrap();
    assert_eq!(class.in_flight(), 0);
    assert!(class.offered < 10_000);
}
