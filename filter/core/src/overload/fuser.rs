//! Saturation: the terms, and how they become one number.

use alloc::collections::VecDeque;
use core::time::Duration;

use super::state::{Saturation, Term};
use crate::policy::Fusion;
use crate::time::Timestamp;

/// Largest value of a term: what is beyond says no more.
const MAX_TERM: f64 = 1000.0;
/// Sharpness of the softmax: a term twice as large as another at saturation weighs e⁴ times as much.
const SHARPNESS: f64 = 4.0;
/// Weight of a new sample in a term's contribution. Source: the background documents' EWMA.
const CONTRIBUTION_ALPHA: f64 = 0.2;
/// Samples of the blend, one a second: the distribution behind the threshold.
const SAMPLES: usize = 300;
const SAMPLE_PERIOD: Duration = Duration::from_secs(1);
/// Confidences that are looked at for drift.
const CONFIDENCES: usize = 30;
/// Drift, by requirement B3: standard deviation of the confidence, or so many samples of low confidence.
const DRIFT_SIGMA: f64 = 0.18;
const DRIFT_LOW: usize = 7;
const LOW_CONFIDENCE: f64 = 0.5;
/// Quantile of the distribution that becomes the threshold. Source: requirement B3.
const THRESHOLD_QUANTILE: f64 = 0.95;
/// Bounds on the threshold: a blend of 1 is full whatever was learned, and half full is not overload.
const THRESHOLD: (f64, f64) = (0.5, 1.0);
/// Distance from the threshold, as a part of it, at which the verdict is sure.
const SURE: f64 = 0.25;

/// Makes one number of the terms.
#[derive(Debug, Clone)]
pub(super) struct Fuser {
    contributions: [f64; Term::COUNT],
    blends: VecDeque<f64>,
    confidences: VecDeque<f64>,
    sampled_at: Option<Timestamp>,
    threshold: f64,
}

impl Fuser {
    pub(super) fn new() -> Self {
        Self {
            contributions: [0.0; Term::COUNT],
            blends: VecDeque::new(),
            confidences: VecDeque::new(),
            sampled_at: None,
            threshold: THRESHOLD.1,
        }
    }

    /// The saturation of terms in the order of [`Term::ALL`]; one that is not finite or negative counts as 0.
    pub(super) fn fuse(&mut self, now: Timestamp, values: [f64; Term::COUNT], fusion: Fusion) -> Saturation {
        let mut saturation = Saturation::NONE;
        for ((_, term), value) in saturation.terms.iter_mut().zip(values) {
            *term = if value > 0.0 { value.min(MAX_TERM) } else { 0.0 };
        }
        let largest = saturation.terms.iter().copied().reduce(|a, b| if b.1 > a.1 { b } else { a });
        saturation.binding = largest.filter(|term| term.1 > 0.0).map(|term| term.0);
        let max = largest.map_or(0.0, |term| term.1);
        let blend = self.blend(&saturation);
        let confidence = ((blend / self.threshold - 1.0).abs() / SURE).min(1.0);
        self.recalibrate(now, blend, confidence);
        saturation.confidence = confidence;
        saturation.value = match fusion {
            Fusion::Max => max,
            Fusion::Weighted => blend / self.threshold,
        };
        saturation
    }

    /// `Σ wᵢ·termᵢ` over the terms with a signal, `w = softmax(sharpness · contribution)`, contributions averaged over time.
    fn blend(&mut self, saturation: &Saturation) -> f64 {
        let (mut sum, mut weights) = (0.0, 0.0);
        let most = self.contributions.iter().copied().fold(0.0, f64::max);
        for (contribution, (_, term)) in self.contributions.iter_mut().zip(saturation.terms) {
            // A term far above 1 must not weigh so much that it never lets go.
            *contribution += CONTRIBUTION_ALPHA * (term.min(2.0) - *contribution);
            if term > 0.0 {
                let weight = libm::exp(SHARPNESS * (*contribution - most));
                sum += weight * term;
                weights += weight;
            }
        }
        if weights > 0.0 { sum / weights } else { 0.0 }
    }

    /// Once a second; an idle pool teaches nothing.
    fn recalibrate(&mut self, now: Timestamp, blend: f64, confidence: f64) {
        let due = self.sampled_at.is_none_or(|at| now.since(at) >= SAMPLE_PERIOD);
        if !due || blend <= 0.0 {
            return;
        }
        self.sampled_at = Some(now);
        push(&mut self.blends, blend, SAMPLES);
        push(&mut self.confidences, confidence, CONFIDENCES);
        if !has_drifted(&self.confidences) {
            return;
        }
        let mut sorted: alloc::vec::Vec<f64> = self.blends.iter().copied().collect();
        crate::shellsort::ascending(&mut sorted);
        let rank = libm::ceil(THRESHOLD_QUANTILE * sorted.len() as f64) as usize;
        if let Some(quantile) = sorted.get(rank.saturating_sub(1)) {
            self.threshold = quantile.clamp(THRESHOLD.0, THRESHOLD.1);
        }
        self.confidences.clear();
    }
}

fn push(ring: &mut VecDeque<f64>, value: f64, capacity: usize) {
    if ring.len() >= capacity {
        ring.pop_front();
    }
    ring.push_back(value);
}

fn has_drifted(confidences: &VecDeque<f64>) -> bool {
    let n = confidences.len();
    if n < DRIFT_LOW {
        return false;
    }
    let low = confidences.iter().filter(|confidence| **confidence < LOW_CONFIDENCE).count();
    let mean = confidences.iter().sum::<f64>() / n as f64;
    let variance = confidences.iter().map(|c| (c - mean) * (c - mean)).sum::<f64>() / n as f64;
    low >= DRIFT_LOW || (n == CONFIDENCES && variance > DRIFT_SIGMA * DRIFT_SIGMA)
}
