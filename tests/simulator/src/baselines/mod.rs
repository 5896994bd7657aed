//! The algorithms that others have published, each in a file of its own, in the same world and with its own defaults.
//!
//! Each is written from its description (named in its file) and stands where its authors put it: in every proxy, in every worker, or in
//! one central place. What a description leaves open is said in the file.

pub mod cinnamon;
pub mod dagor;
pub mod envoy_admission;
pub mod envoy_gradient;
pub mod gradient2;
pub mod llm_d;
pub mod no_control;
pub(crate) mod per_request;
pub mod three_level;
pub mod token_bucket;

pub use cinnamon::Cinnamon;
pub use dagor::DagorFleet;
pub use envoy_admission::EnvoyAdmission;
pub use envoy_gradient::EnvoyGradient;
pub use gradient2::NetflixGradient2;
pub use llm_d::LlmD;
pub use no_control::NoControl;
pub use three_level::ThreeLevelFleet;
pub use token_bucket::StaticBucket;
