//! Seeded randomness: one generator for each purpose, so that a draw more in one place moves nothing elsewhere.
//!
//! xoshiro256++ seeded by splitmix64 (Blackman and Vigna 2019, <https://prng.di.unimi.it>). Transcendental functions come from `libm`,
//! so the same seed gives the same bits on every platform.

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The stream of `seed` for the purpose `stream`.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut mix = SplitMix(seed ^ stream.wrapping_mul(0xD1B5_4A32_D192_ED03));
        Self { state: [mix.next(), mix.next(), mix.next(), mix.next()] }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in `0.0..1.0`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Uniform in `0..bound`; 0 for a bound of 0. The bias of at most `bound / 2^64` is not corrected.
    pub fn below(&mut self, bound: u32) -> u32 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u32
    }

    /// Uniform in `low..high`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -libm::log(1.0 - self.unit())
    }

    /// Normal with mean 0 and standard deviation 1 (polar method of Marsaglia).
    pub fn normal(&mut self) -> f64 {
        loop {
            let (u, v) = (self.between(-1.0, 1.0), self.between(-1.0, 1.0));
            let s = u * u + v * v;
            if s > 0.0 && s < 1.0 {
                return u * libm::sqrt(-2.0 * libm::log(s) / s);
            }
        }
    }

    /// Log-normal: `median · e^(sigma · N)`.
    pub fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        median * libm::exp(sigma * self.normal())
    }

    /// Gamma of the given shape with mean 1 (Marsaglia and Tsang 2000). The coefficient of variation is `1/√shape`.
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            // Boost: Gamma(a) = Gamma(a + 1) · U^(1/a); mean stays 1 after dividing by the shape.
            let boosted = self.gamma(shape + 1.0) * (shape + 1.0);
            return boosted * libm::pow(1.0 - self.unit(), 1.0 / shape) / shape;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / libm::sqrt(9.0 * d);
        loop {
            let x = self.normal();
            let v = (1.0 + c * x) * (1.0 + c * x) * (1.0 + c * x);
            if v > 0.0 && libm::log(1.0 - self.unit()) < 0.5 * x * x + d - d * v + d * libm::log(v) {
                return d * v / shape;
            }
        }
    }
}

/// Zipf over `0..n`: index `k` has weight `1 / (k + 1)^s`. Drawn in O(1) from an alias table (Vose 1991).
#[derive(Clone, Debug)]
pub struct Zipf {
    cells: Vec<(f64, u32)>,
}

impl Zipf {
    /// Weights of `n` indices (at least one) with exponent `s`; 0 is uniform.
    pub fn new(n: u32, s: f64) -> Self {
        let n = n.max(1);
        let weights: Vec<f64> = (0..n).map(|k| libm::pow(f64::from(k) + 1.0, -s)).collect();
        let sum: f64 = weights.iter().sum();
        let mut scaled: Vec<f64> = weights.iter().map(|weight| weight / sum * f64::from(n)).collect();
        let mut cells: Vec<(f64, u32)> = (0..n).map(|k| (1.0, k)).collect();
        let (mut small, mut large): (Vec<u32>, Vec<u32>) = (0..n).partition(|&k| scaled[k as usize] < 1.0);
        while let (Some(&less), Some(&more)) = (small.last(), large.last()) {
            small.pop();
            cells[less as usize] = (scaled[less as usize], more);
            scaled[more as usize] -= 1.0 - scaled[less as usize];
            if scaled[more as usize] < 1.0 {
                large.pop();
                small.push(more);
            }
        }
        Self { cells }
    }

    /// An index.
    pub fn draw(&self, rng: &mut Rng) -> u32 {
        let at = rng.below(self.cells.len() as u32);
        let (keep, other) = self.cells[at as usize];
        if rng.unit() < keep { at } else { other }
    }
}

struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u32 = 200_000;

    fn moments(mut draw: impl FnMut(&mut Rng) -> f64) -> (f64, f64) {
        let mut rng = Rng::new(7, 0);
        let samples: Vec<f64> = (0..DRAWS).map(|_| draw(&mut rng)).collect();
        let mean = samples.iter().sum::<f64>() / f64::from(DRAWS);
        let variance = samples.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / f64::from(DRAWS);
        (mean, variance)
    }

    #[test]
    fn distributions_have_their_moments() {
        let (mean, variance) = moments(Rng::exponential);
        assert!((mean - 1.0).abs() < 0.02 && (variance - 1.0).abs() < 0.05, "exponential {mean} {variance}");
        let (mean, variance) = moments(Rng::normal);
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "normal {mean} {variance}");
        for shape in [0.25, 1.0, 4.0] {
            let (mean, variance) = moments(|rng| rng.gamma(shape));
            assert!((mean - 1.0).abs() < 0.03 && (variance * shape - 1.0).abs() < 0.06, "gamma {shape}: {mean} {variance}");
        }
        let (mean, _) = moments(|rng| rng.log_normal(100.0, 0.5));
        let expected = 100.0 * libm::exp(0.125);
        assert!((mean / expected - 1.0).abs() < 0.02, "log-normal {mean}, expected {expected}");
    }

    #[test]
    fn zipf_follows_its_exponent() {
        let zipf = Zipf::new(100, 1.0);
        let mut rng = Rng::new(1, 2);
        let mut counts = [0_u32; 100];
        for _ in 0..DRAWS {
            counts[zipf.draw(&mut rng) as usize] += 1;
        }
        let ratio = f64::from(counts[0]) / f64::from(counts[9]);
        assert!((8.5..11.5).contains(&ratio), "{ratio}, expected 10");
        assert!(counts.iter().all(|count| *count > 0));
    }

    #[test]
    fn purposes_of_one_seed_are_independent() {
        let (mut a, mut b) = (Rng::new(5, 1), Rng::new(5, 2));
        assert!((0..100).all(|_| a.bits() != b.bits()));
    }
}
