//! Two engines on tape, from idle to collapse: which memory `auto` watches, and that it trips where the time to first token breaks.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use headgate_core::histogram::Histogram;
use headgate_core::level::{GpuMemoryLevel, LevelState, MemoryFacts, MemorySource, SignalSource};
use headgate_core::policy::{GpuMemoryConfig, GpuMemorySource, HysteresisConfig};
use headgate_core::time::Timestamp;

use super::board::{EngineBoard, LoadSource, Scrape};
use super::page::{Durations, Reading};
use super::pool::{FreezeWatch, PoolEngines};
use crate::device::tape::{Moment, Tape};
use crate::device::{DeviceReading, DeviceState, DeviceView, NodeView};
use crate::engine::ScrapeError;

const URL: &str = "http://127.0.0.1:8000/metrics";
/// Time to first token at which it counts as broken: on both tapes it is below 80 ms before, and above 1 s in the end.
const BROKEN: Duration = Duration::from_millis(150);
/// What is waited for after a trip.
const SOON: Duration = Duration::from_secs(1);

/// One moment of a tape.
#[derive(Clone, Copy, Debug)]
struct Seen {
    at: Duration,
    state: LevelState,
    source: SignalSource,
    /// 90th percentile of the last second; `None` while no first token comes.
    ttft: Option<Duration>,
}

/// What happens on the tape, by the time at which it is there.
enum Happening<'a> {
    Sampled(&'a Moment<Vec<DeviceReading>>),
    Read(&'a Moment<Reading, ScrapeError>),
}

/// What a level over `source` sees of the tape, step by step.
fn watch(name: &str, source: GpuMemorySource) -> Vec<Seen> {
    let tape = Tape::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/tapes").join(name)).unwrap();
    let (address, readings) = tape.engines(URL).next().unwrap();
    let mut happenings: Vec<(Duration, Happening<'_>)> = tape.samples().iter().map(|it| (it.ready_at, Happening::Sampled(it))).collect();
    happenings.extend(readings.iter().map(|moment| (moment.ready_at, Happening::Read(moment))));
    happenings.sort_by_key(|(at, _)| *at);

    let board = EngineBoard::default();
    board.keep([URL].into_iter());
    board.set_endpoints(URL, &[address]);
    let config = GpuMemoryConfig { source, trip_percent: 75.0, ..GpuMemoryConfig::default() };
    let mut level = GpuMemoryLevel::new(&config, &HysteresisConfig { recover_percent: 90.0, recovery: Duration::from_secs(1) });
    let (mut devices, mut chooser, mut ttfts) = (DeviceState::starting("tape"), MemorySource::default(), Ttfts::default());
    let step = |(at, happening): (Duration, Happening<'_>)| {
        let now = instant(at);
        match happening {
            Happening::Sampled(moment) => devices.take(instant(moment.asked_at), moment.answer.clone().unwrap()),
            Happening::Read(moment) => {
                let (asked_at, took) = (instant(moment.asked_at), moment.ready_at - moment.asked_at);
                ttfts.take(at, moment.answer.as_ref().unwrap());
                board.record(URL, address, LoadSource::Tape, Scrape { asked_at, took, result: moment.answer.clone() });
            }
        }
        let pool = PoolEngines::read(&board, now, ("llm", &[URL.to_owned()]), 0, &mut FreezeWatch::default());
        let nvml = DeviceView::new(now, vec![Arc::new(NodeView::of(devices.clone()))]).fullest("llm", &config);
        let choice = chooser.choose(source, &MemoryFacts { nvml, engines: pool.memory(), process: None });
        if let Some(sample) = choice.sample {
            level.observe(now, &sample);
        }
        let status = level.tick(now);
        Seen { at, state: status.state, source: status.source, ttft: ttfts.p90(at) }
    };
    happenings.into_iter().map(step).collect()
}

fn instant(at: Duration) -> Timestamp {
    Timestamp::from_nanos(u64::try_from(at.as_nanos()).unwrap())
}

/// First tokens of the last second.
#[derive(Default)]
struct Ttfts {
    last: Option<Durations>,
    came: VecDeque<(Duration, Durations)>,
}

impl Ttfts {
    fn take(&mut self, at: Duration, reading: &Reading) {
        let now = reading.ttft.clone().expect("the page tells times to first token");
        if let Some(before) = self.last.replace(now.clone()) {
            self.came.push_back((at, now.since(&before)));
        }
    }

    fn p90(&mut self, at: Duration) -> Option<Duration> {
        self.came.retain(|(came, _)| *came + Duration::from_secs(1) > at);
        let mut second = Histogram::new();
        for (micros, count) in self.came.iter().flat_map(|(_, durations)| durations.places()) {
            second.record_many(micros, count);
        }
        second.quantile(0.9).map(Duration::from_micros)
    }
}

fn is_broken(seen: &Seen) -> bool {
    seen.ttft.is_some_and(|ttft| ttft > BROKEN)
}

/// Whether the level is calm before the load, trips when the time to first token is about to break and stays tripped while it is broken.
fn trips_where_it_breaks(seen: &[Seen]) -> Result<(), String> {
    let trip = seen.iter().find(|seen| seen.state == LevelState::Tripped).ok_or("it never trips")?;
    let broke = seen.iter().find(|seen| is_broken(seen)).ok_or("nothing breaks")?;
    let calm = seen.iter().filter(|seen| seen.at < trip.at && seen.state == LevelState::Ok).count();
    let collapse = seen.iter().filter(|seen| seen.ttft > Some(Duration::from_secs(1)));
    let missed = collapse.clone().filter(|seen| seen.state != LevelState::Tripped && seen.at < trip.at + Duration::from_secs(5)).count();
    match () {
        () if calm < 10 => Err(format!("it trips {:?} after the beginning, before any load", trip.at)),
        () if trip.at > broke.at => Err(format!("it trips at {:?}, after the break at {:?}", trip.at, broke.at)),
        () if broke.at > trip.at + SOON => Err(format!("it trips at {:?}, long before the break at {:?}", trip.at, broke.at)),
        () if collapse.count() < 20 || missed > 0 => Err(format!("it is not tripped at {missed} moments of collapse")),
        () => Ok(()),
    }
}

#[test]
fn behind_an_engine_that_allocates_at_start_auto_trips_on_the_cache_where_the_time_to_first_token_breaks_and_nvml_does_not() {
    let tape = "kv-fill-preallocating.jsonl";
    let auto = watch(tape, GpuMemorySource::Auto);
    assert_eq!(trips_where_it_breaks(&auto), Ok(()));
    assert!(auto.iter().filter(|seen| seen.state == LevelState::Tripped).all(|seen| seen.source == SignalSource::KvCache), "{auto:?}");
    assert_eq!(trips_where_it_breaks(&watch(tape, GpuMemorySource::KvCache)), Ok(()));
    // 90 % from idle to collapse.
    let wrong = trips_where_it_breaks(&watch(tape, GpuMemorySource::Nvml)).unwrap_err();
    assert!(wrong.ends_with("before any load"), "{wrong}");
}

#[test]
fn behind_an_engine_that_allocates_as_it_goes_auto_trips_on_nvml_where_the_time_to_first_token_breaks_and_the_cache_does_not() {
    let tape = "kv-fill-on-demand.jsonl";
    let auto = watch(tape, GpuMemorySource::Auto);
    assert_eq!(trips_where_it_breaks(&auto), Ok(()));
    assert!(auto.iter().filter(|seen| seen.state == LevelState::Tripped).all(|seen| seen.source == SignalSource::Nvml), "{auto:?}");
    assert_eq!(trips_where_it_breaks(&watch(tape, GpuMemorySource::Nvml)), Ok(()));
    // Its page says nothing of a cache.
    assert_eq!(trips_where_it_breaks(&watch(tape, GpuMemorySource::KvCache)), Err("it never trips".to_owned()));
}
