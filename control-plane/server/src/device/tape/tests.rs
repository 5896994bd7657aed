//! Tapes written, read and played.

use std::io::Cursor;
use std::sync::{Arc, mpsc as channel};

use headgate_core::level::{GpuMemoryLevel, GpuMemorySample, LevelState};
use headgate_core::policy::{GpuMemoryConfig, HysteresisConfig};
use headgate_core::time::Timestamp;

use proptest::prelude::*;

use super::*;
use crate::clock::Clock;
use crate::device::{DeviceActivity, DeviceSample, DeviceSource, DeviceState, DeviceView, NodeView, ThrottleReasons};
use crate::engine::page::Durations;
use crate::engine::{EngineKind, Scrape};

const HEADER: &str = r#"{"headgate_device_tape":1,"recorded_at_unix_ms":0,"source":"nvml","driver":{},"period_ms":100,"devices":[]}"#;

fn read(text: &str) -> Result<Tape, TapeError> {
    Tape::read(Cursor::new(text), Path::new("x.jsonl"))
}

fn tape(lines: &[&str]) -> Tape {
    read(&format!("{HEADER}\n{}\n", lines.join("\n"))).unwrap()
}

fn problem(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

fn sample(used: u64) -> DeviceReading {
    let activity = DeviceActivity { throttle_reasons: Some(ThrottleReasons::SW_POWER_CAP), ..DeviceActivity::default() };
    DeviceReading::Sample(DeviceSample {
        uuid: "GPU-1".into(),
        name: "test".into(),
        memory_used_bytes: used,
        memory_total_bytes: 100,
        activity,
        index: 0,
        memory_reserved_bytes: 1,
    })
}

/// Says what a test hands it.
struct Scripted {
    answers: channel::Receiver<Result<u64, SampleError>>,
}

impl DeviceSource for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn driver(&mut self) -> Result<DriverInfo, SampleError> {
        Ok(DriverInfo { driver_version: Some("1.2".to_owned()), ..DriverInfo::default() })
    }

    fn sample(&mut self) -> Result<Vec<DeviceReading>, SampleError> {
        self.answers.try_recv().unwrap().map(|used| vec![sample(used)])
    }

    fn inspect(&mut self) -> Result<Vec<DeviceDetail>, SampleError> {
        Ok(vec![DeviceDetail { uuid: "GPU-1".to_owned(), ecc_uncorrected: Some(3), ..DeviceDetail::default() }])
    }
}

#[test]
fn what_was_recorded_is_what_is_read() {
    let (script, answers) = channel::channel();
    let lost = SampleError::Lost { index: 0, problem: "fell off the bus".to_owned() };
    for answer in [Ok(1), Ok(40), Err(lost.clone()), Ok(50)] {
        script.send(answer).unwrap();
    }
    let mut source = Scripted { answers };
    let header = Header::of(&mut source, Duration::from_millis(20), Vec::new()).unwrap();
    let (mut recorder, mut calls, dropped) = Recorder::new(Box::new(source), Clock::start());
    assert_eq!(recorder.sample().unwrap(), [sample(40)], "the recorder passes on what the source says");
    let details = recorder.inspect().unwrap();
    assert_eq!(recorder.sample(), Err(lost.clone()));
    assert_eq!(recorder.sample().unwrap(), [sample(50)]);

    let mut file = Vec::new();
    let mut writer = TapeWriter::begin(&mut file, &header).unwrap();
    while let Ok(call) = calls.try_recv() {
        assert_eq!(writer.write(&call).unwrap(), Written::Whole);
    }
    let bytes = writer.end().unwrap();
    assert_eq!((bytes, dropped.count()), (file.len() as u64, 0));

    let tape = read(std::str::from_utf8(&file).unwrap()).unwrap();
    assert_eq!(tape.header(), &header);
    assert_eq!(tape.header().driver.driver_version.as_deref(), Some("1.2"));
    assert_eq!(tape.header().devices[0].uuid, "GPU-1");
    let answers: Vec<_> = tape.samples().iter().map(|moment| moment.answer.clone()).collect();
    assert_eq!(answers, [Ok(vec![sample(40)]), Err(lost), Ok(vec![sample(50)])]);
    assert_eq!(tape.details()[0].answer, Ok(details));
}

#[test]
fn a_recorder_that_nobody_empties_drops_calls_and_still_answers() {
    let (script, answers) = channel::channel();
    let (mut recorder, calls, dropped) = Recorder::new(Box::new(Scripted { answers }), Clock::start());
    for used in 0..300 {
        script.send(Ok(used)).unwrap();
        assert_eq!(recorder.sample().unwrap(), [sample(used)]);
    }
    assert_eq!((calls.len(), dropped.count()), (256, 44));
}

#[test]
fn each_moment_has_the_answer_of_the_call_that_had_begun() {
    let tape = tape(&[
        r#"{"at_us":100000,"took_us":2000,"samples":[]}"#,
        r#"{"at_us":200000,"took_us":1500000,"sample_failed":"no_device"}"#,
        r#"{"at_us":1700000,"took_us":0,"samples":[]}"#,
    ]);
    let at = |ms: u64| {
        let moment = tape.samples.at(Duration::from_millis(ms)).unwrap();
        (moment.ready_at.as_millis(), moment.answer.is_ok())
    };
    assert_eq!(at(0), (102, true), "before the first call there is only the first");
    assert_eq!(at(199), (102, true));
    assert_eq!(at(200), (1700, false), "the driver hung for 1.5 s");
    assert_eq!(at(1699), (1700, false));
    assert_eq!(at(1700), (1700, true));
    assert_eq!(tape.length(), Duration::from_millis(1800));
    let (playback, began) = (Playback::new(tape), std::time::Instant::now());
    assert_eq!(playback.position(began), (0, Duration::ZERO), "it begins with the first question");
    let later = began + Duration::from_millis(3900);
    assert_eq!(playback.position(later), (2, Duration::from_millis(300)), "it begins anew");
    assert_eq!(playback.time_of(2, Duration::from_millis(300)), Some(later));
}

/// Any reading that an adapter can yield.
fn readings() -> impl Strategy<Value = crate::engine::page::Reading> {
    use proptest::option::of;
    let kinds = [EngineKind::Vllm, EngineKind::Sglang, EngineKind::TensorRtLlm, EngineKind::Triton, EngineKind::Tgi, EngineKind::LlamaCpp];
    let load = (of(any::<u64>()), of(any::<u64>()), of(0.0..1.01), of(0.0..1.01), of(any::<u64>()));
    let counters = (of(any::<u64>()), of(any::<u64>()), 0.0..9e15);
    (of(proptest::sample::select(kinds.to_vec())), load, counters).prop_map(|(engine, load, (preemptions, output_tokens, progress))| {
        let (running, waiting, kv_use, kv_fullest, kv_total_tokens) = load;
        let tpot = preemptions.map(|samples| Durations { buckets: vec![(0, 10, samples), (10, u64::MAX, 1)] });
        let load = Reading { engine, running, waiting, kv_use, kv_fullest, kv_total_tokens, tpot, ..Reading::default() };
        Reading { preemptions, output_tokens, progress, ..load }
    })
}

proptest! {
    #[test]
    fn whatever_an_engine_says_is_on_the_tape_to_the_last_bit(said in prop::collection::vec((readings(), prop::bool::ANY), 1..20)) {
        let (recorder, mut calls, dropped) = Recorder::new(Box::new(Scripted { answers: channel::channel().1 }), Clock::start());
        let address = |odd: bool| SocketAddr::from(([10, 0, 0, u8::from(odd)], 8000));
        for (n, (reading, odd)) in said.iter().enumerate() {
            let at = Timestamp::from_millis(10_000 + n as u64);
            let scrape = Scrape { asked_at: at, took: Duration::from_millis(3), result: Ok(reading.clone()) };
            recorder.tap().engine("http://llm/metrics", address(*odd), &scrape);
        }
        let mut file = format!("{HEADER}\n").into_bytes();
        while let Ok(call) = calls.try_recv() {
            file.extend(serde_json::to_vec(&call).unwrap());
            file.push(b'\n');
        }
        prop_assert_eq!(dropped.count(), 0);
        let tape = read(std::str::from_utf8(&file).unwrap()).unwrap();
        for odd in [false, true] {
            let played = tape.engines("http://llm/metrics").filter(|(at, _)| *at == address(odd));
            let played: Vec<Reading> = played.flat_map(|(_, moments)| moments.iter().map(|moment| moment.answer.clone().unwrap())).collect();
            let wanted: Vec<Reading> = said.iter().filter(|(_, of)| *of == odd).map(|(reading, _)| reading.clone()).collect();
            prop_assert_eq!(played, wanted);
        }
        prop_assert!(tape.engines("http://llm:80/metrics").next().is_none(), "another page");
    }
}

#[test]
fn engines_may_be_recorded_where_there_is_no_gpu_and_say_why_they_could_not_be_read() {
    let mut source = crate::device::NoDevices::new(SampleError::Off);
    assert!(Header::of(&mut source, Duration::from_millis(100), Vec::new()).is_err(), "there is nothing to record");
    let header = Header::of(&mut source, Duration::from_millis(100), vec!["http://llm/metrics".to_owned()]).unwrap();
    assert_eq!((header.devices.len(), header.engines.len()), (0, 1));
    let line = r#"{"at_us":7,"took_us":3,"engine":{"url":"u","address":"10.0.0.1:80","failed":"no answer: refused"}}"#;
    let tape = read(&format!("{}\n{line}\n", serde_json::to_string(&header).unwrap())).unwrap();
    let (_, moments) = tape.engines("u").next().unwrap();
    assert_eq!(moments[0].answer.as_ref().unwrap_err().to_string(), "no answer: refused");
    assert_eq!(moments[0].ready_at, Duration::from_micros(10));
}

#[test]
fn a_tape_plays_as_a_source_and_says_that_it_is_one() {
    let mut source = TapeSource::new(Playback::new(tape(&[r#"{"at_us":0,"took_us":0,"sample_failed":"no_device"}"#])));
    assert_eq!(source.name(), "tape");
    assert_eq!(source.sample(), Err(SampleError::NoDevice));
    assert_eq!(source.inspect(), Ok(Vec::new()), "a tape without details knows none");
}

#[test]
fn a_last_line_without_its_end_is_left_out() {
    let whole = format!("{HEADER}\n{}\n", r#"{"at_us":0,"took_us":0,"samples":[]}"#);
    let cut = format!("{whole}{}", r#"{"at_us":100,"took_us":0,"samp"#);
    assert_eq!(read(&cut).unwrap(), read(&whole).unwrap());
}

#[test]
fn what_is_wrong_with_a_tape_is_said_with_its_line() {
    assert!(problem("").starts_with("x.jsonl: no tape of version 1 to 2: "), "{}", problem(""));
    assert_eq!(problem(&format!("{}\n", HEADER.replace("tape\":1", "tape\":3"))), "x.jsonl: no tape of version 1 to 2: version 3");
    assert_eq!(problem(&format!("{HEADER}\n")), "x.jsonl: holds no sample and no reading");
    let garbage = problem(&format!("{HEADER}\n{{}}\n"));
    assert!(garbage.starts_with("x.jsonl:2: "), "{garbage}");
    let backwards = format!("{HEADER}\n{}\n{}\n", r#"{"at_us":5,"took_us":0,"samples":[]}"#, r#"{"at_us":4,"took_us":0,"samples":[]}"#);
    assert_eq!(problem(&backwards), "x.jsonl:3: at_us 4 is before that of the call before");
    let endless = format!("{HEADER}\n{}", "x".repeat(2 << 20));
    assert!(problem(&endless).contains("a line is longer than 1 MiB"), "{}", problem(&endless));
}

/// A recording of an H200; `tests/tapes/README.md` says what happens in it.
fn recorded(name: &str) -> Tape {
    Tape::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/tapes").join(name)).unwrap()
}

fn instant(at: Duration) -> Timestamp {
    Timestamp::from_nanos(u64::try_from(at.as_nanos()).unwrap())
}

/// What the level sees of `moment` at `now`.
fn seen(config: &GpuMemoryConfig, now: Timestamp, moment: &Moment<Vec<DeviceReading>>) -> GpuMemorySample {
    let mut state = DeviceState::starting("tape");
    state.take(instant(moment.asked_at), moment.answer.clone().unwrap());
    DeviceView::new(now, vec![Arc::new(NodeView::of(state))]).fullest("pool", config).unwrap()
}

#[test]
fn the_memory_of_an_h200_trips_the_level_once_and_lets_it_recover_once() {
    let config = GpuMemoryConfig { trip_percent: 30.0, ..GpuMemoryConfig::default() };
    let mut level = GpuMemoryLevel::new(&config, &HysteresisConfig { recover_percent: 90.0, recovery: Duration::from_secs(1) });
    let mut changes: Vec<(u128, LevelState)> = Vec::new();
    let mut note = |at: Duration, state: LevelState| {
        if changes.last().is_none_or(|(_, last)| *last != state) {
            changes.push((at.as_millis() / 100, state));
        }
    };
    for moment in recorded("h200.jsonl").samples() {
        let now = instant(moment.ready_at);
        // The step just before the sample is there: a late one must not look stale.
        note(moment.ready_at, level.tick(now).state);
        level.observe(now, &seen(&config, now, moment));
        note(moment.ready_at, level.tick(now).state);
    }
    let wanted = [
        (0, LevelState::Learning),
        (0, LevelState::Ok),
        // 42.6 GiB of 140.4 GiB.
        (88, LevelState::Tripped),
        (453, LevelState::Recovering),
        (463, LevelState::Ok),
    ];
    assert_eq!(changes, wanted, "in tenths of a second");
}

#[test]
fn a_process_that_makes_its_context_does_not_make_the_memory_of_an_h200_stale() {
    let tape = recorded("h200-context.jsonl");
    let longest = tape.samples().iter().map(|moment| moment.ready_at - moment.asked_at).max().unwrap();
    assert!(longest > Duration::from_millis(100), "{longest:?}: the driver was busy");
    let config = GpuMemoryConfig { sample: Duration::from_millis(20), ..GpuMemoryConfig::default() };
    let mut level = GpuMemoryLevel::new(&config, &HysteresisConfig { recover_percent: 90.0, recovery: Duration::from_secs(1) });
    for moment in tape.samples() {
        let now = instant(moment.ready_at);
        assert_ne!(level.tick(now).state, LevelState::Stale, "{now:?}");
        level.observe(now, &seen(&config, now, moment));
    }
}

#[test]
fn a_busy_h200_is_held_by_its_power_limit_and_not_by_heat() {
    let tape = recorded("h200.jsonl");
    let activities = || tape.samples().iter().filter_map(|moment| Some(&moment.answer.as_ref().ok()?.first()?.sample()?.activity));
    let busy: Vec<_> = activities().filter(|activity| activity.power_milliwatts > Some(680_000)).collect();
    assert!(busy.len() > 150, "{}", busy.len());
    assert!(busy.iter().all(|activity| activity.throttle_reasons == Some(ThrottleReasons::SW_POWER_CAP)));
    let detail = tape.details()[0].answer.as_ref().unwrap()[0].clone();
    let slowest = busy.iter().filter_map(|activity| activity.sm_clock_mhz).min().unwrap();
    assert!(slowest * 10 < detail.sm_clock_max_mhz.unwrap() * 8, "{slowest} MHz: full load runs at three quarters of the highest clock");
    assert!(busy.iter().all(|activity| activity.temperature_celsius < detail.temperature_max_celsius));
}
