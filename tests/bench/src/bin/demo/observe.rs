//! Looks at everything that runs and keeps what the frames and the summary need.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use headgate_test_support::load::{Kind, Load, Outcome};
use serde_json::Value;

use crate::frame::{ClassRow, Frame, LevelRow};
use crate::scene::{Phases, Scene};

/// Span of the percentiles in a frame.
const RECENT: Duration = Duration::from_secs(3);
pub(crate) const CLASSES: [&str; 3] = ["high", "medium", "low"];

/// The first trip of a level that the control plane showed.
#[derive(Debug, Clone)]
pub(crate) struct Trip {
    pub signal: String,
    pub value: f64,
    pub threshold: f64,
    /// Since the load began.
    pub at: Duration,
}

/// What has been seen.
pub(crate) struct Observer {
    started: Instant,
    /// The same moment on the wall clock, by which the control plane dates its trips.
    started_unix: Duration,
    status: Value,
    engine: String,
    gpu_memory: Option<(u64, u64)>,
    recent: Vec<Outcome>,
    n_outcomes: usize,
    pub trip: Option<Trip>,
}

impl Observer {
    pub(crate) fn new(started: Instant) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            started,
            started_unix: now.saturating_sub(started.elapsed()),
            status: Value::Null,
            engine: String::new(),
            gpu_memory: None,
            recent: Vec::new(),
            n_outcomes: 0,
            trip: None,
        }
    }

    /// Asks the control plane and the engine, and takes up what the load has seen since the last look.
    pub(crate) async fn look(&mut self, scene: &Scene, load: &Load) -> Result<()> {
        self.status = scene.control.status().await?;
        self.engine = scene.engine.get("/metrics").await?.text();
        let gpu = &self.status["gpus"][0];
        self.gpu_memory = gpu["memory_used_bytes"].as_u64().zip(gpu["memory_total_bytes"].as_u64());
        let new = load.outcomes(self.n_outcomes);
        self.n_outcomes += new.len();
        let horizon = self.started.elapsed().saturating_sub(RECENT);
        self.recent.extend(new);
        self.recent.retain(|outcome| outcome.ended_at >= horizon);
        if self.trip.is_none() {
            self.trip = self.first_trip();
        }
        Ok(())
    }

    fn levels(&self) -> &[Value] {
        self.status["pools"][0]["levels"].as_array().map_or(&[], Vec::as_slice)
    }

    fn first_trip(&self) -> Option<Trip> {
        let trips = self.levels().iter().filter_map(|level| {
            let trip = &level["last_trip"];
            let at = Duration::from_millis(trip["at_unix_ms"].as_u64()?).checked_sub(self.started_unix)?;
            let signal = level["kind"].as_str()?.to_owned();
            Some(Trip { signal, value: trip["value"].as_f64()?, threshold: trip["threshold"].as_f64()?, at })
        });
        trips.min_by_key(|trip| trip.at)
    }

    /// The frame of this moment.
    pub(crate) fn frame(&self, load: &Load, phases: &Phases, total: Duration) -> Frame {
        let elapsed = self.started.elapsed();
        let report = load.report();
        let classes = CLASSES.iter().enumerate().map(|(index, name)| {
            let mut row = ClassRow { name: (*name).to_owned(), ..ClassRow::default() };
            if let Some(class) = report.classes.get(*name) {
                (row.offered, row.admitted, row.failed) = (class.offered, class.admitted, class.failed_total());
                row.refused = class.refused.clone();
            }
            row.queued = self.waiting(name);
            row.ttft = self.recent_ttft(index);
            row
        });
        let offered = self.recent.iter().filter(|outcome| outcome.scheduled_at + RECENT >= elapsed).count();
        Frame {
            elapsed,
            total,
            phase: phases.name(elapsed),
            offered_rps: offered as f64 / RECENT.min(elapsed).as_secs_f64().max(0.1),
            classes: classes.collect(),
            levels: self.levels().iter().map(level_row).collect(),
            gpu_memory: self.gpu_memory,
            kv_cache: self.engine_metric("vllm:kv_cache_usage_perc"),
            waiting: self.engine_metric("vllm:num_requests_waiting").map(|waiting| waiting as u64),
        }
    }

    /// Admitted requests of a class whose first token has not come, as the filters report.
    fn waiting(&self, class: &str) -> u64 {
        let classes = self.status["pools"][0]["classes"].as_array();
        let found = classes.and_then(|classes| classes.iter().find(|entry| entry["class"] == class));
        found.and_then(|entry| entry["waiting"].as_u64()).unwrap_or(0)
    }

    fn recent_ttft(&self, class: usize) -> Option<(Duration, Duration)> {
        let of_class = self.recent.iter().filter(|outcome| outcome.class == class && outcome.kind == Kind::Admitted);
        let mut ttfts: Vec<Duration> =
            of_class.filter_map(|outcome| Some(outcome.first_byte_at?.saturating_sub(outcome.scheduled_at))).collect();
        ttfts.sort();
        let last = ttfts.len().checked_sub(1)?;
        Some((ttfts[last / 2], ttfts[last * 99 / 100]))
    }

    fn engine_metric(&self, name: &str) -> Option<f64> {
        let line = self.engine.lines().find(|line| line.starts_with(name) && line.as_bytes().get(name.len()) == Some(&b'{'))?;
        line.rsplit(' ').next()?.parse().ok()
    }
}

fn level_row(level: &Value) -> LevelRow {
    let text = |key: &str| level[key].as_str().unwrap_or("-").to_owned();
    LevelRow {
        kind: text("kind"),
        state: text("state"),
        value: level["value"].as_f64().unwrap_or(0.0),
        threshold: level["threshold"].as_f64().unwrap_or(0.0),
        recovery_remaining_ms: level["recovery_remaining_ms"].as_u64(),
    }
}
