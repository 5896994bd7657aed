use std::time::{Duration, Instant};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::{Color, Modifier};

use super::app::{App, Link, MIN_INTERVAL, Mode, Request, View};
use super::feed::News;
use super::paint::{Colours, Glyphs, Theme};
use super::screen;
use crate::device::{DeviceActivity, DeviceDetail, ThrottleReasons};
use crate::status::{
    ClassShed, ClassStatus, CutOffStatus, EngineStatus, GpuStatus, LatencyFigures, LatencyStatus, LatencyStream, LevelView, OverloadStatus,
    PoolStatus, ProxyStatus, QueueStatus, RejectedStatus, StatusDocument, TermStatus, TripView,
};

const PLAIN: Theme = Theme { colours: Colours::None, glyphs: Glyphs::Unicode };
const COLOURED: Theme = Theme { colours: Colours::Sixteen, glyphs: Glyphs::Unicode };

fn class(name: &str, action: &str, offered: u64) -> ClassStatus {
    ClassStatus {
        class: name.to_owned(),
        action: action.to_owned(),
        because: if action == "admit" { String::new() } else { "gpu_memory".to_owned() },
        offered,
        admitted: offered / 2,
        refused: [("gpu_memory".to_owned(), offered - offered / 2)].into(),
        in_flight: 12,
        ttft_p50_ms: Some(43.0),
        ttft_p99_ms: Some(1430.0),
        ..ClassStatus::default()
    }
}

fn levels() -> Vec<LevelView> {
    let of = |kind: &str, state: &str, value: f64, threshold: f64| LevelView {
        kind: kind.to_owned(),
        state: state.to_owned(),
        value,
        threshold,
        source: "nvml".to_owned(),
        age_ms: 40,
        ..LevelView::default()
    };
    let tripped = LevelView {
        recovery_remaining_ms: Some(4200),
        last_trip: Some(TripView { at_unix_ms: 1, ago_ms: 12_000, value: 81.25, threshold: 75.0 }),
        ..of("gpu_memory", "tripped", 81.25, 75.0)
    };
    vec![of("qps", "learning", 113.7, 0.0), tripped, of("p99", "ok", 87.0, 1000.0)]
}

fn gpu(index: u32, used: u64) -> GpuStatus {
    GpuStatus {
        index,
        state: "ok".to_owned(),
        name: "NVIDIA H200".to_owned(),
        memory_used_bytes: used << 30,
        memory_total_bytes: 140 << 30,
        memory_used_percent: used as f64 / 1.4,
        activity: DeviceActivity {
            kernel_active_percent: Some(97),
            temperature_celsius: Some(71),
            power_milliwatts: Some(512_000),
            sm_clock_mhz: Some(1830),
            throttle_reasons: Some(ThrottleReasons::SW_POWER_CAP),
            ..DeviceActivity::default()
        },
        detail: DeviceDetail { uuid: format!("GPU-{index}"), power_limit_milliwatts: Some(700_000), ..DeviceDetail::default() },
        ..GpuStatus::default()
    }
}

fn term(value: f64, threshold: f64, unit: &str, source: &str) -> TermStatus {
    TermStatus { value: Some(value), threshold: Some(threshold), unit: unit.to_owned(), source: source.to_owned(), age_ms: None }
}

/// A fleet with one of everything; `offered` requests have come so far.
fn document(offered: u64) -> StatusDocument {
    let overload = OverloadStatus {
        saturation: 0.93,
        binding: "kv".to_owned(),
        terms: [("kv".to_owned(), 0.93), ("tpot".to_owned(), 0.4)].into(),
        measured: [
            ("kv".to_owned(), TermStatus { age_ms: Some(60), ..term(83.7, 90.0, "%", "engines") }),
            ("tpot".to_owned(), term(32.0, 80.0, "ms", "filters")),
        ]
        .into(),
        cut_off: CutOffStatus { shed: vec![ClassShed { class: "batch".to_owned(), part: 0.37 }], ..CutOffStatus::default() },
        queue: Some(QueueStatus { requests: 17, ..QueueStatus::default() }),
        ..OverloadStatus::default()
    };
    let engine = EngineStatus {
        url: "http://10.0.0.7:8000/metrics".to_owned(),
        state: "failing".to_owned(),
        problem: "no whole answer within 250 ms".to_owned(),
        running: Some(42),
        waiting: Some(7),
        kv_used_percent: Some(91.0),
        ..EngineStatus::default()
    };
    let metric =
        |p50: f64, p99: f64| LatencyFigures { recent_count: 1234, p50_ms: Some(p50), p99_ms: Some(p99), ..LatencyFigures::default() };
    let stream = |class: &str, model: &str, ttft: f64| LatencyStream {
        class: class.to_owned(),
        model: model.to_owned(),
        source: "filters".to_owned(),
        metrics: [("ttft", metric(ttft, 3.0 * ttft)), ("tpot", metric(12.5, 41.0)), ("total", metric(2100.0, 9800.0))]
            .map(|(name, figures)| (name.to_owned(), figures))
            .into(),
    };
    let by_engines = LatencyStream { source: "engines".to_owned(), ..stream("", "", 200.0) };
    let chat = PoolStatus {
        latencies: LatencyStatus {
            streams: vec![stream("high", "llama-70b", 90.0), stream("low", "", 300.0), by_engines],
            complete: true,
            ..LatencyStatus::default()
        },
        pool: "chat".to_owned(),
        policy: "demo".to_owned(),
        version: "205f99b1".to_owned(),
        levels: levels(),
        classes: vec![class("high", "admit", offered), class("low", "refuse", 10 * offered)],
        drain_rps: 61.5,
        proxies: 2,
        engines: vec![engine],
        ..PoolStatus::default()
    };
    let batch = PoolStatus {
        pool: "batch".to_owned(),
        classes: vec![class("batch", "admit", offered)],
        overload: Some(overload),
        ..PoolStatus::default()
    };
    let proxy = ProxyStatus { node_id: "proxy-1".to_owned(), last_report_age_ms: 90, workers: 4, ..ProxyStatus::default() };
    let refusing = ProxyStatus {
        node_id: "proxy-2".to_owned(),
        rejected: vec![RejectedStatus { name: "demo".to_owned(), version: "2".to_owned(), error: "pool: is missing".to_owned() }],
        ..ProxyStatus::default()
    };
    StatusDocument {
        pools: vec![chat, batch],
        gpus: vec![gpu(0, 63), gpu(1, 133)],
        gpu_source: "nvml: 2 devices".to_owned(),
        proxies: vec![proxy, refusing],
        alarms: Vec::new(),
        rollouts: Vec::new(),
        replica: crate::status::ReplicaStatus::default(),
    }
}

/// A screen that has looked twice, one second apart, and the time of the second look.
fn watching(theme: Theme) -> (App, Instant) {
    let began = Instant::now();
    let mut app = App::new("http://127.0.0.1:18080".to_owned(), Duration::from_secs(1), theme);
    app.take(began, News::Seen(Box::new(document(1000))));
    let now = began + Duration::from_secs(1);
    app.take(now, News::Seen(Box::new(document(1100))));
    (app, now)
}

fn screen_of(app: &App, now: Instant, width: u16, height: u16) -> ratatui::buffer::Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen::draw(frame, app, now)).unwrap();
    terminal.backend().buffer().clone()
}

fn lines(app: &App, now: Instant, width: u16, height: u16) -> Vec<String> {
    let buffer = screen_of(app, now, width, height);
    (0..height).map(|y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned()).collect()
}

fn press(app: &mut App, keys: &str) -> Request {
    let press = |key: char| KeyEvent::new(KeyCode::Char(key), KeyModifiers::NONE);
    keys.chars().map(|key| app.press(press(key))).last().unwrap()
}

/// The line that has `text`.
fn line<'a>(lines: &'a [String], text: &str) -> &'a str {
    lines.iter().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{text} in\n{}", lines.join("\n")))
}

#[test]
fn the_overview_shows_everything_at_a_glance() {
    let (app, now) = watching(PLAIN);
    let lines = lines(&app, now, 170, 40);
    assert!(lines[0].starts_with("headgate top  http://127.0.0.1:18080  ● live"), "{}", lines[0]);
    assert!(lines[0].ends_with("2 GPUs · 1 engine · 2 proxies · every 1.0 s"), "{}", lines[0]);
    assert!(lines[1].contains("1 Overview") && lines[1].contains("8 Latencies"), "{}", lines[1]);
    // 100 of `high` and 1,000 of `low` came in that second.
    assert!(line(&lines, "demo@205f99b1").starts_with("chat   tripped   -                        1100         550        550"));
    assert!(line(&lines, "0.93 kv").starts_with("batch  shedding  ━━━━━━━━━╸ 0.93 kv"));
    assert!(line(&lines, "shed 37 %").contains("batch"));
    assert!(line(&lines, "12.0 s ago, 81.2 % > 75.0 %").contains("tripped"));
    assert!(line(&lines, "GPU-1").contains("━━━━━━━━━╸ 95.0 %  133.0/140.0 GiB"));
    assert!(line(&lines, "sw_power_cap").contains("71 C"));
    assert!(line(&lines, "10.0.0.7").contains("failing       42        7  ━━━━━━━━━─ 91 %"));
    assert!(line(&lines, "proxy-2").contains("refusing") && line(&lines, "proxy-2").contains("demo: pool: is missing"));
    assert!(lines[39].starts_with(" 1-8  view  s S  sort by next, previous column"), "{}", lines[39]);
}

#[test]
fn colours_say_the_state_and_no_color_leaves_them_out() {
    let of = |theme| {
        let (app, now) = watching(theme);
        let buffer = screen_of(&app, now, 170, 40);
        let row = (0..40).find(|y| (0..170).map(|x| buffer[(x, *y)].symbol()).collect::<String>().contains("gpu_memory  tripped")).unwrap();
        let colours: std::collections::BTreeSet<_> = buffer.content().iter().map(|cell| format!("{:?}", cell.fg)).collect();
        let tripped = (0..170).map(|x| &buffer[(x, row)]).find(|cell| cell.modifier.contains(Modifier::BOLD)).unwrap().clone();
        (tripped.fg, colours)
    };
    assert_eq!(of(COLOURED).0, Color::Red);
    let (tripped, colours) = of(PLAIN);
    assert_eq!((tripped, colours.len()), (Color::Reset, 1), "{colours:?}");
}

#[test]
fn countdowns_go_on_and_values_grow_older_between_two_looks() {
    let (mut app, now) = watching(PLAIN);
    press(&mut app, "4");
    assert!(line(&lines(&app, now, 140, 20), "gpu_memory").contains("4.2 s  40 ms"));
    let later = now + Duration::from_millis(1500);
    assert!(line(&lines(&app, later, 140, 20), "gpu_memory").contains("2.7 s  1.5 s"));
    assert!(line(&lines(&app, now + Duration::from_secs(9), 140, 20), "gpu_memory").contains("0.0 s"), "it ends at zero");
}

#[test]
fn latencies_are_shown_by_pool_class_and_model() {
    let (mut app, now) = watching(PLAIN);
    press(&mut app, "8");
    let shown = lines(&app, now, 180, 12);
    let high = line(&shown, "llama-70b");
    for part in ["chat", "high", "1 234", "90 ms", "270 ms", "12 ms", "41 ms", "2.1 s", "9.8 s", "exact", "filters"] {
        assert!(high.contains(part), "{part} in {high}");
    }
    assert!(line(&shown, "other").contains("900 ms"), "a model without a place of its own");
    assert!(line(&shown, "engines").contains("all") && line(&shown, "engines").contains("600 ms"), "of all classes and models");
    press(&mut app, "ssssss");
    assert!(lines(&app, now, 170, 12)[3].contains("TTFT P99▼"));
    assert!(lines(&app, now, 170, 12)[4].contains("other"), "the slowest first");
    let narrow = lines(&app, now, 60, 12);
    assert!(narrow[3].contains("TTFT P99") && !narrow[3].contains("UPSTREAM"), "{}", narrow[3]);
}

#[test]
fn terms_of_overload_stand_among_the_levels_with_their_thresholds() {
    let (mut app, now) = watching(PLAIN);
    press(&mut app, "4");
    let shown = lines(&app, now + Duration::from_millis(500), 150, 20);
    let kv = line(&shown, "term kv");
    for part in ["batch", "binding", "93 %", "83.7 %", "90.0 %", "560 ms", "engines"] {
        assert!(kv.contains(part), "{part} in {kv}");
    }
    let tpot = line(&shown, "term tpot");
    assert!(tpot.contains("ok") && tpot.contains("40 %") && tpot.contains("32 ms") && tpot.contains("80 ms"), "{tpot}");
    press(&mut app, "G");
    assert!(line(&lines(&app, now, 150, 6), "term tpot").contains("batch"), "the last row can be marked");
}

#[test]
fn a_lost_control_plane_is_said_with_the_next_attempt_and_the_age_of_what_is_seen() {
    let (mut app, now) = watching(PLAIN);
    let lost = |retry_ms| News::Lost { problem: "Connection refused".to_owned(), retry_in: Duration::from_millis(retry_ms) };
    app.take(now + Duration::from_secs(1), lost(1000));
    app.take(now + Duration::from_secs(4), lost(2000));
    let at = now + Duration::from_secs(5);
    let shown = lines(&app, at, 150, 40);
    assert!(shown[0].contains("○ lost for 4.0 s: Connection refused · next try in 1.0 s"), "{}", shown[0]);
    assert!(shown[0].ends_with("what you see is 5.0 s old"), "{}", shown[0]);
    let dimmed = screen_of(&app, at, 150, 40);
    assert!(dimmed[(0, 5)].modifier.contains(Modifier::DIM), "what is shown is of the past");
    app.take(at, News::Seen(Box::new(document(1200))));
    assert_eq!(app.link, Link::Live);
    assert!(lines(&app, at, 150, 40)[0].contains("● live"));
}

#[test]
fn before_the_first_status_it_says_that_it_connects() {
    let app = App::new("http://127.0.0.1:1".to_owned(), Duration::from_secs(1), PLAIN);
    let shown = lines(&app, Instant::now(), 100, 10);
    assert!(shown[0].contains("○ connecting"), "{}", shown[0]);
    assert!(shown[4].contains("Is `headgate serve` running there?"), "{}", shown[4]);
}

#[test]
fn keys_sort_by_any_column_in_both_directions() {
    let (mut app, now) = watching(PLAIN);
    press(&mut app, "3");
    let classes = |app: &App| -> Vec<String> {
        let names = ["high", "low", "batch "];
        let shown = lines(app, now, 170, 20);
        let rows = shown[4..7].iter();
        rows.map(|row| names.iter().find(|name| row[5..].contains(**name)).unwrap().trim().to_owned()).collect()
    };
    assert_eq!(classes(&app), ["high", "low", "batch"], "as the control plane gives them");
    press(&mut app, "ss");
    assert!(lines(&app, now, 170, 20)[3].contains("CLASS▼"));
    assert_eq!(classes(&app), ["low", "high", "batch"]);
    press(&mut app, "r");
    assert_eq!(classes(&app), ["batch", "high", "low"]);
    press(&mut app, "rsss");
    assert!(lines(&app, now, 170, 20)[3].contains("OFFERED/S▼"));
    assert_eq!(classes(&app)[0], "low", "1,000 a second");
    press(&mut app, "SSSSS");
    assert_eq!(classes(&app), ["high", "low", "batch"], "and back to no order");
}

#[test]
fn the_marked_row_stays_in_sight() {
    let (mut app, now) = watching(PLAIN);
    let mut many = document(1000);
    many.gpus = (0..100).map(|index| gpu(index, 1)).collect();
    app.take(now, News::Seen(Box::new(many)));
    press(&mut app, "5G");
    let shown = lines(&app, now, 170, 14);
    assert!(line(&shown, "GPU-99").starts_with(" 99"), "{}", shown.join("\n"));
    press(&mut app, "g");
    assert!(lines(&app, now, 120, 14)[4].starts_with("  0"));
    press(&mut app, "1");
    let shown = lines(&app, now, 120, 46);
    assert!(line(&shown, "GPUs 100").contains("more with key 5"), "{}", shown.join("\n"));
    assert!(line(&shown, "proxy-2").contains("refusing"), "short lists stay whole");
}

#[test]
fn any_size_of_terminal_is_drawn() {
    let (mut app, now) = watching(COLOURED);
    for key in "12345678?".chars() {
        press(&mut app, &key.to_string());
        for (width, height) in [(1, 1), (20, 4), (40, 10), (80, 24), (300, 100)] {
            screen_of(&app, now, width, height);
        }
    }
    press(&mut app, "q3");
    let narrow = lines(&app, now, 60, 12);
    assert!(narrow[3].contains("ACTION") && !narrow[3].contains("TTFT P50"), "what matters less gives way: {}", narrow[3]);
}

#[test]
fn a_pause_holds_the_screen_and_the_interval_stays_within_its_bounds() {
    let (mut app, now) = watching(PLAIN);
    press(&mut app, "p");
    let before = lines(&app, now, 150, 40)[5].clone();
    app.take(now + Duration::from_secs(1), News::Seen(Box::new(document(9000))));
    assert_eq!(lines(&app, now + Duration::from_secs(1), 150, 40)[5], before);
    assert!(lines(&app, now, 150, 40)[0].contains("paused"));
    press(&mut app, "p");
    assert_eq!(app.mode, Mode::Running);
    assert_eq!(press(&mut app, "+"), Request::SetInterval(Duration::from_millis(500)));
    assert_eq!(press(&mut app, "++++"), Request::SetInterval(MIN_INTERVAL));
    assert_eq!(press(&mut app, "q"), Request::Quit);
    assert_eq!(app.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Request::Quit);
    assert_eq!(app.view, View::Overview);
}

#[test]
fn rates_leave_a_restart_of_the_control_plane_out() {
    let (mut app, now) = watching(PLAIN);
    app.take(now + Duration::from_secs(1), News::Seen(Box::new(document(3))));
    assert!(app.trends.rates("chat", "high").is_none(), "the counters went down");
    app.take(now + Duration::from_secs(2), News::Seen(Box::new(document(13))));
    assert_eq!(app.trends.rates("chat", "high").unwrap().offered_rps, 10.0);
}

#[test]
fn ascii_is_seven_bits_and_text_for_scripts_has_every_row() {
    let (app, now) = watching(Theme { colours: Colours::None, glyphs: Glyphs::Ascii });
    let text = screen::text(&app, now, 160);
    assert!(text.is_ascii(), "{text}");
    assert!(text.contains("#########. 91 %"), "{text}");
    assert!(text.lines().all(|line| line.len() <= 160));
    assert!(text.contains("proxy-1") && text.contains("NVIDIA H200") && text.contains("RECOVERS IN"), "{text}");
}

#[test]
fn control_characters_in_a_name_do_not_reach_the_terminal() {
    let (mut app, now) = watching(PLAIN);
    let mut hostile = document(1);
    hostile.proxies[0].node_id = "evil\x1b[2J\x07".to_owned();
    app.take(now, News::Seen(Box::new(hostile)));
    let text = screen::text(&app, now, 160);
    assert!(!text.contains(['\x1b', '\x07']), "{text:?}");
}
