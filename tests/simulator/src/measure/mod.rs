//! What a run is worth: goodput, objectives met, fairness, settling, recovery; and how sure that is over several seeds.

mod estimate;
mod figures;
mod recorder;
mod series;

pub use estimate::{Estimate, Paired, Standing};
pub(crate) use figures::percentile;
pub use figures::{ClassFigures, Figures};
pub use recorder::{ClassTally, Recorder, Run, Second};
pub use series::{SETTLED_WITHIN, SMOOTHING, Series, Settling, jain, least_while_waiting, max_min_shares};

/// Weight of a token of the output against one of the prompt in a work token; the policy's default.
pub const OUTPUT_WEIGHT: f64 = 2.0;

/// Work of a request in work tokens: `prompt + 2 × output`.
pub fn work(prompt_tokens: u32, output_tokens: u32) -> f64 {
    f64::from(prompt_tokens) + OUTPUT_WEIGHT * f64::from(output_tokens)
}
