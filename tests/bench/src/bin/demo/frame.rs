//! One frame of the demo's live view: what is known at a moment, and how it is drawn.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// What one class has seen since the start.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClassRow {
    pub name: String,
    pub offered: u64,
    pub admitted: u64,
    /// Admitted, first token not there yet.
    pub queued: u64,
    pub refused: BTreeMap<String, u64>,
    pub failed: u64,
    /// Percentiles of the time to first token over the last seconds.
    pub ttft: Option<(Duration, Duration)>,
}

/// A level as the control plane's status shows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct LevelRow {
    pub kind: String,
    pub state: String,
    pub value: f64,
    pub threshold: f64,
    pub recovery_remaining_ms: Option<u64>,
}

/// Everything on the screen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Frame {
    pub elapsed: Duration,
    pub total: Duration,
    pub phase: &'static str,
    pub offered_rps: f64,
    pub classes: Vec<ClassRow>,
    pub levels: Vec<LevelRow>,
    /// Used and total bytes, as NVML says.
    pub gpu_memory: Option<(u64, u64)>,
    /// Share of KV-cache blocks in use, 0..=1, as the engine says.
    pub kv_cache: Option<f64>,
    pub waiting: Option<u64>,
}

impl Frame {
    /// The frame as lines of text, coloured when `colour`.
    pub(crate) fn render(&self, colour: Colour) -> String {
        let mut out = String::new();
        let bar = progress(self.elapsed.as_secs_f64() / self.total.as_secs_f64().max(0.001), 30);
        let _ = writeln!(
            out,
            "{bar} {:4.1} s of {} s   {:<22} offered {:5.0}/s\n",
            self.elapsed.as_secs_f64(),
            self.total.as_secs(),
            self.phase,
            self.offered_rps
        );
        let _ = writeln!(out, "class     offered admitted queued failed  TTFT p50    p99   refused");
        for class in &self.classes {
            let _ = writeln!(out, "{}", class.line());
        }
        let _ = writeln!(out, "\nlevel        state            value  threshold");
        for level in &self.levels {
            let _ = writeln!(out, "{}", level.line(colour));
        }
        let _ = writeln!(out);
        if let Some((used, total)) = self.gpu_memory {
            let share = used as f64 / total.max(1) as f64;
            let _ = writeln!(out, "GPU memory {} {:5.1} %  {:.1} of {:.1} GiB", progress(share, 30), share * 100.0, gib(used), gib(total));
        }
        if let Some(share) = self.kv_cache {
            let waiting = self.waiting.unwrap_or(0);
            let _ = writeln!(out, "KV cache   {} {:5.1} %  {waiting} waiting in the engine", progress(share, 30), share * 100.0);
        }
        out
    }
}

impl ClassRow {
    fn line(&self) -> String {
        let (p50, p99) = self.ttft.map_or(("-".to_owned(), "-".to_owned()), |(p50, p99)| (millis(p50), millis(p99)));
        let refused: u64 = self.refused.values().sum();
        let reasons: Vec<String> = self.refused.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        let refused = if refused == 0 { "0".to_owned() } else { format!("{refused} ({})", reasons.join(", ")) };
        format!(
            "{:<9} {:>7} {:>8} {:>6} {:>6}  {p50:>8} {p99:>6}   {refused}",
            self.name, self.offered, self.admitted, self.queued, self.failed
        )
    }
}

impl LevelRow {
    fn line(&self, colour: Colour) -> String {
        let unit = match self.kind.as_str() {
            "qps" => "req/s",
            "gpu_memory" => "%",
            _ => "ms",
        };
        let countdown = self.recovery_remaining_ms.map_or(String::new(), |left| format!("  recovers in {:.1} s", left as f64 / 1000.0));
        let state = colour.paint(&self.state);
        // The padding is computed on the bare text: colour codes have no width.
        let pad = " ".repeat(12_usize.saturating_sub(self.state.len()));
        let threshold = if self.threshold > 0.0 { format!("{:.1}", self.threshold) } else { "-".to_owned() };
        format!("{:<12} {state}{pad} {:>9.1} {threshold:>10} {unit}{countdown}", self.kind, self.value)
    }
}

/// Whether the terminal shows colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    On,
    Off,
}

impl Colour {
    fn paint(self, state: &str) -> String {
        let code = match state {
            "tripped" => "31;1",
            "recovering" => "33",
            "ok" => "32",
            _ => "2",
        };
        match self {
            Colour::On => format!("\x1b[{code}m{state}\x1b[0m"),
            Colour::Off => state.to_owned(),
        }
    }
}

/// A bar of `width` cells.
fn progress(share: f64, width: usize) -> String {
    let full = ((share.clamp(0.0, 1.0) * width as f64).round() as usize).min(width);
    format!("{}{}", "█".repeat(full), "░".repeat(width - full))
}

fn millis(duration: Duration) -> String {
    format!("{:.0} ms", duration.as_secs_f64() * 1000.0)
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}
