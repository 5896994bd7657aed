//! How strongly counts speak for one proportion being greater than another one by more than a margin.

/// Requests that were counted, and the bad ones among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// The bad ones; at most `of`.
    pub bad: u64,
    /// All of them.
    pub of: u64,
}

// === impl Counted ===

impl Counted {
    /// The part that is bad, 0 to 1; 0 of none.
    #[must_use]
    pub fn part(self) -> f64 {
        if self.of == 0 { 0.0 } else { self.bad.min(self.of) as f64 / self.of as f64 }
    }
}

/// How far the counts are from what is usual if `candidate` is bad by at most `margin` (0 to 1) more than `base`, in nats; not negative.
///
/// The one-sided likelihood ratio of two proportions: `min over q of n_b · D(p_b ‖ q) + n_c · D(p_c ‖ q + margin)`, `D` the divergence of
/// two coins, 0 where `p_c ≤ p_b + margin`. Unlike a normal approximation it holds for any counts: each term is at least `t` with a
/// probability of at most `e^-t` (Chernoff), so the sum is at least `t` with one of at most `(1 + t) · e^-t`, whatever the true proportions
/// are, as long as requests are independent and the candidate is not worse by more than the margin.
#[must_use]
pub fn evidence(base: Counted, candidate: Counted, margin: f64) -> f64 {
    let (p_base, p_candidate) = (base.part(), candidate.part());
    if p_candidate <= p_base + margin {
        return 0.0;
    }
    let cost = |q: f64| base.of as f64 * divergence(p_base, q) + candidate.of as f64 * divergence(p_candidate, q + margin);
    // The sum is convex and its least lies between the two.
    let (mut low, mut high) = (p_base, p_candidate - margin);
    for _ in 0..HALVINGS {
        let (left, right) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
        if cost(left) < cost(right) {
            high = right;
        } else {
            low = left;
        }
    }
    cost(f64::midpoint(low, high))
}

/// The evidence that is there with a probability of at most `alpha` though the candidate is no worse: `(1 + t) · e^-t = alpha`.
#[must_use]
pub fn needed(alpha: f64) -> f64 {
    let bare = -alpha.ln();
    // The iteration rises to its fixed point; what is left below it is added.
    (0..HALVINGS).fold(bare, |t, _| bare + t.ln_1p()) + 1e-9
}

/// The part of the chance of an error that the look number `look`, from 1, may spend: `1 / (k · (k + 1))`, which sums to 1 over any number
/// of looks.
#[must_use]
pub fn spent(look: u32) -> f64 {
    let look = f64::from(look.max(1));
    1.0 / (look * (look + 1.0))
}

/// Steps of the search for the least: each leaves two thirds.
const HALVINGS: usize = 80;

/// `p · ln(p / q) + (1 - p) · ln((1 - p) / (1 - q))`, with `0 · ln 0 = 0`.
fn divergence(p: f64, q: f64) -> f64 {
    let term = |p: f64, q: f64| if p > 0.0 { p * (p / q.max(f64::MIN_POSITIVE)).ln() } else { 0.0 };
    term(p, q) + term(1.0 - p, 1.0 - q)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_nothing_within_the_margin_and_grows_with_the_difference_and_the_counts() {
        let base = Counted { bad: 10, of: 1000 };
        let with = |bad: u64, of: u64, margin: f64| evidence(base, Counted { bad, of }, margin);
        assert_eq!((with(2, 100, 0.01), with(0, 100, 0.0), with(0, 0, 0.0)), (0.0, 0.0, 0.0));
        assert!(with(10, 100, 0.01) > with(5, 100, 0.01) && with(50, 1000, 0.01) > with(5, 100, 0.01));
        assert!(with(5, 100, 0.0) > with(5, 100, 0.01));
        // Nothing bad of a thousand against everything bad of a hundred: q is about 100 / 1100.
        let all = evidence(Counted { bad: 0, of: 1000 }, Counted { bad: 100, of: 100 }, 0.0);
        assert!((all - (1000.0 * (1100.0_f64 / 1000.0).ln() + 100.0 * 11.0_f64.ln())).abs() < 1e-6, "{all}");
    }

    #[test]
    fn what_is_needed_is_what_the_bound_allows() {
        for alpha in [0.1, 0.01, 1e-4, 1e-9] {
            let t = needed(alpha);
            let bound = (1.0 + t) * (-t).exp();
            assert!(bound <= alpha && bound > 0.999 * alpha, "{alpha} {bound}");
        }
    }

    #[test]
    fn no_number_of_looks_spends_more_than_all() {
        let all: f64 = (1..=100_000).map(spent).sum();
        assert!(all < 1.0 && all > 0.9999, "{all}");
    }
}
