//! What the inference engines say of themselves: their metrics pages, read ten times a second.
//!
//! An engine's own queue and KV cache are the only figures that tell saturation before latency does. A page says what was; the
//! reading carries its age and an epoch, and leaves the decision after three periods without a new one, or when it is always the same
//! although the pool works.

mod board;
mod dialect;
pub(crate) mod line;
pub mod page;
mod player;
mod pool;
mod resolve;
mod scrape;
mod scraper;
#[cfg(test)]
mod taped;
#[cfg(test)]
mod tests;
mod timings;

pub(crate) use self::board::Scrape;
pub use self::board::{EngineBoard, EngineState, Health, IN_BAND_STALE_AFTER, LoadSource, MAX_ENGINES, PERIOD, PageEndpoints, STALE_AFTER};
pub use self::dialect::EngineKind;
pub use self::line::SampleError;
pub use self::pool::{EnginePaces, EngineView, FreezeWatch, PoolEngines};
pub use self::scrape::ScrapeError;
pub use self::scraper::Engines;
pub use self::timings::EngineTimings;
