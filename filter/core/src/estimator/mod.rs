//! Estimators: what the samples of a signal say, in bounded memory.

mod ewma;
mod moving;
mod sliding;

pub use ewma::Ewma;
pub use moving::MovingStats;
pub use sliding::SlidingHistogram;
