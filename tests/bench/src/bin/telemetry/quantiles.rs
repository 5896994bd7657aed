//! How exact a P99 of merged histograms is: streams of four shapes, split over many reporters, against the sorted values.

use headgate_core::histogram::Histogram;
use headgate_core::rng::Rng;

/// Values of one stream, in microseconds.
const VALUES: usize = 200_000;
/// Reporters among which a stream is split.
const PARTS: usize = 64;

/// Draws one value.
type Draw = fn(&mut Rng) -> f64;

/// Name and relative error of each stream.
pub(super) fn errors() -> Vec<(&'static str, f64)> {
    let streams: [(&'static str, Draw); 4] =
        [("uniform", uniform), ("log_normal", log_normal), ("bimodal", bimodal), ("heavy_tailed", pareto)];
    streams.into_iter().zip(1..).map(|((name, draw), seed)| (name, error(draw, seed))).collect()
}

fn error(draw: Draw, seed: u64) -> f64 {
    let mut rng = Rng::new(seed);
    let mut values: Vec<u64> = (0..VALUES).map(|_| draw(&mut rng).round().clamp(1.0, 1e12) as u64).collect();
    let mut parts: Vec<Histogram> = (0..PARTS).map(|_| Histogram::new()).collect();
    for (n, value) in values.iter().enumerate() {
        parts[n % PARTS].record(*value);
    }
    let mut merged = Histogram::new();
    parts.iter().for_each(|part| merged.merge(part));
    values.sort_unstable();
    let exact = values[(VALUES * 99).div_ceil(100) - 1] as f64;
    let estimate = merged.quantile(0.99).unwrap_or(0) as f64;
    (estimate - exact).abs() / exact
}

fn uniform(rng: &mut Rng) -> f64 {
    1000.0 + 999_000.0 * rng.next_f64()
}

/// Median 200 ms, sigma 1.
fn log_normal(rng: &mut Rng) -> f64 {
    200_000.0 * normal(rng).exp()
}

/// 97 of 100 near 150 ms, the rest near 8 s.
fn bimodal(rng: &mut Rng) -> f64 {
    let middle = if rng.next_f64() < 0.97 { 150_000.0 } else { 8_000_000.0 };
    middle * (1.0 + 0.05 * normal(rng))
}

/// Pareto with exponent 1.2, from 10 ms.
fn pareto(rng: &mut Rng) -> f64 {
    10_000.0 / (1.0 - rng.next_f64()).powf(1.0 / 1.2)
}

fn normal(rng: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.next_f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.next_f64()).cos()
}
