//! No admission control: everything goes to the engines at once. What Envoy does when nobody has configured anything.

use crate::controller::{Arrival, Controller, Ctx, Verdict};

/// Admits everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoControl;

impl Controller for NoControl {
    fn name(&self) -> &'static str {
        "no_control"
    }

    fn on_arrival(&mut self, _ctx: &mut Ctx<'_>, _arrival: &Arrival) -> Verdict {
        Verdict::Admit
    }
}
