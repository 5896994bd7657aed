//! What the control plane's `/metrics` says.

use anyhow::{Context, Result};
use headgate_test_support::ControlPlaneProcess;

use super::Age;

/// Counters at one moment, or the difference of two.
pub(super) struct Counters {
    pub(super) gpus_ok: u64,
    pub(super) bytes: u64,
    /// Upper bound in seconds, and how many samples were not older.
    ages: Vec<(f64, u64)>,
}

// === impl Counters ===

impl Counters {
    pub(super) async fn read(control: &ControlPlaneProcess) -> Result<Self> {
        let text = control.get("/metrics").await?.text();
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0);
        let bound = |line: &str| -> Option<f64> {
            let bound = line.split("le=\"").nth(1)?.split('"').next()?;
            if bound == "+Inf" { Some(f64::INFINITY) } else { bound.parse().ok() }
        };
        let named = |name: &'static str| text.lines().filter(move |line| line.starts_with(name));
        let ages = named("headgate_gpu_sample_age_seconds_bucket")
            .map(|line| Some((bound(line)?, value(line) as u64)))
            .collect::<Option<Vec<_>>>()
            .context("the ages have no bounds")?;
        let is_ok = |line: &&str| line.contains("state=\"ok\"") && value(line) == 1.0;
        Ok(Self {
            gpus_ok: named("headgate_gpu_state{").filter(is_ok).count() as u64,
            bytes: named("headgate_gpu_report_bytes_total").map(value).sum::<f64>() as u64,
            ages,
        })
    }

    /// What has come since `before`.
    pub(super) fn since(self, before: &Self) -> Self {
        let ages = self.ages.iter().zip(&before.ages).map(|((bound, now), (_, then))| (*bound, now - then)).collect();
        Self { bytes: self.bytes - before.bytes, ages, ..self }
    }

    /// Quantiles of the ages; within a bucket they count as evenly spread.
    pub(super) fn age(&self) -> Age {
        Age { p50: self.quantile(0.5) * 1000.0, p99: self.quantile(0.99) * 1000.0, samples: self.ages.last().map_or(0, |last| last.1) }
    }

    fn quantile(&self, q: f64) -> f64 {
        let rank = q * self.ages.last().map_or(0, |last| last.1) as f64;
        let (mut lower, mut below) = (0.0, 0_u64);
        for (bound, count) in &self.ages {
            if *count as f64 >= rank && *count > below {
                return lower + (bound - lower) * (rank - below as f64) / (count - below) as f64;
            }
            (lower, below) = (*bound, *count);
        }
        f64::INFINITY
    }
}
