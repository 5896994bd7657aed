//! What a class's requests are like: tokens of their prompts, where the length is known, and of their outputs.

use crate::budget::Size;
use crate::permits::MAX_CLASSES;

/// Samples of a class before its own mean counts.
const MIN_SAMPLES: u32 = 16;
/// A plain mean of this many samples, then one that forgets as fast.
const MAX_SAMPLES: u32 = 256;

/// A mean that forgets: `v += (x − v) / min(n, 256)`.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    value: f64,
    samples: u32,
}

impl Mean {
    fn observe(&mut self, sample: f64) {
        self.samples = (self.samples + 1).min(MAX_SAMPLES);
        self.value += (sample - self.value) / f64::from(self.samples);
    }

    fn known(&self) -> Option<f64> {
        (self.samples >= MIN_SAMPLES).then_some(self.value)
    }
}

/// Learned sizes of one pool's requests in one worker, by class.
#[derive(Debug, Clone, Default)]
pub(crate) struct Estimates {
    prompts: [Mean; MAX_CLASSES],
    outputs: [Mean; MAX_CLASSES],
}

/// What holds for every class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Presumed {
    /// Tokens of the prompt for one byte of the request's body.
    pub(crate) tokens_per_byte: f64,
    /// Tokens of output, where the class has none of its own.
    pub(crate) output_tokens: f64,
}

impl Estimates {
    /// Size of a request of a class. A body of unknown length is taken for the class's mean, or before that is known for as many tokens
    /// as the output.
    pub(crate) fn size(&self, class: usize, content_length: Option<u64>, presumed: Presumed) -> Size {
        let output = self.outputs.get(class).and_then(Mean::known).unwrap_or(presumed.output_tokens);
        let prompt = match content_length {
            Some(bytes) => bytes as f64 * presumed.tokens_per_byte,
            None => self.prompts.get(class).and_then(Mean::known).unwrap_or(output),
        };
        // The casts saturate.
        Size { prompt: libm::ceil(prompt) as u32, output: libm::ceil(output).max(1.0) as u32 }
    }

    /// Mean prompt of a class, in tokens; `None` until it is known.
    pub(crate) fn usual_prompt(&self, class: usize) -> Option<f64> {
        self.prompts.get(class).and_then(Mean::known)
    }

    /// Learns the length of a prompt.
    pub(crate) fn note_prompt(&mut self, class: usize, tokens: u32) {
        if let Some(mean) = self.prompts.get_mut(class) {
            mean.observe(f64::from(tokens));
        }
    }

    /// Learns the length of an output.
    pub(crate) fn note_output(&mut self, class: usize, tokens: u32) {
        if let Some(mean) = self.outputs.get_mut(class) {
            mean.observe(f64::from(tokens));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRESUMED: Presumed = Presumed { tokens_per_byte: 0.25, output_tokens: 256.0 };

    #[test]
    fn the_length_of_the_body_says_what_the_prompt_is_and_the_class_what_the_output_is() {
        let mut estimates = Estimates::default();
        assert_eq!(estimates.size(1, Some(4001), PRESUMED), Size { prompt: 1001, output: 256 });
        (0..16).for_each(|_| estimates.note_output(1, 100));
        assert_eq!(estimates.size(1, Some(4001), PRESUMED), Size { prompt: 1001, output: 100 });
        assert_eq!(estimates.size(2, Some(4001), PRESUMED).output, 256, "another class has learned nothing");
    }

    #[test]
    fn a_body_of_unknown_length_is_taken_for_an_average_one() {
        let mut estimates = Estimates::default();
        assert_eq!(estimates.size(0, None, PRESUMED).prompt, 256);
        (0..16).for_each(|_| estimates.note_prompt(0, 4000));
        assert_eq!(estimates.size(0, None, PRESUMED).prompt, 4000);
    }

    #[test]
    fn a_change_of_the_traffic_is_learned() {
        let mut estimates = Estimates::default();
        (0..1000).for_each(|_| estimates.note_output(0, 10));
        (0..1000).for_each(|_| estimates.note_output(0, 500));
        assert!((490..=500).contains(&estimates.size(0, None, PRESUMED).output));
    }
}
