//! The controller as a whole: against a model of engines, against arbitrary signals, and its parts by their properties.

mod closed_loop;
mod learning;
mod parts;
mod signals;
