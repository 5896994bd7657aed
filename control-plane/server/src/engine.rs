//! What the inference engines say of themselves: their metrics pages, read ten times a second.
//!
//! An engine's own queue and KV cache are the only figures that tell saturation before latency does. A page says what was; the
//! reading carries its age and an epoch, and leaves the decision after three periods without a new one.

mod line;
pub mod page;
mod pool;
mod scrape;
mod scraper;
#[cfg(test)]
mod tests;

pub use self::line::SampleError;
pub use self::pool::{EngineView, PoolEngines};
pub use self::scrape::ScrapeError;
pub use self::scraper::{EngineBoard, EngineState, Engines, Health, MAX_ENGINES, PERIOD, STALE_AFTER};
