//! Reports for people: one self-contained HTML page, light or dark as the reader's system is, drawn with inline SVG and no script.

mod chart;
mod page;
mod quota;
mod run;
mod suite;

pub use quota::quota_page;
pub use run::run_page;
pub use suite::suite_page;
