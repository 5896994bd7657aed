//! What an admitted request holds, and how it goes back.

use crate::aperture::Pick;
use crate::budget::Reservation;
use crate::policy::ClassId;
use crate::pool::overload::PoolOverload;
use crate::pool::quotas::Charges;

/// What an admitted request holds under overload control, and for whom.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) reservation: Reservation,
    pub(crate) class: ClassId,
    pub(crate) tenant: u16,
    /// What it has been charged of quotas.
    pub(crate) charges: Charges,
    /// [`PoolOverload::number`] of whom it was taken from: nobody else may have it back.
    pub(crate) number: u64,
    /// Whether the pieces of its response are looked at, for `usage`.
    pub(crate) looks_at_pieces: bool,
    /// The engine that it goes to, where the filter says so; whoever computes its prompt.
    pub(crate) pick: Option<Pick>,
}

impl Held {
    /// The prompt is computed.
    pub(crate) fn on_first_token(&mut self, load: &mut PoolOverload) {
        if let Some(prompt) = self.reservation.on_first_token(&mut load.flow)
            && let Some(pick) = &self.pick
        {
            load.aperture.give_back(pick, prompt);
        }
    }

    /// The request is over: everything that is left goes back.
    pub(crate) fn end(mut self, load: &mut PoolOverload) {
        self.on_first_token(load);
        self.reservation.end(&mut load.flow);
    }

    /// The request was not admitted after all: everything goes back as if it had never been taken.
    pub(crate) fn undo(self, load: &mut PoolOverload) {
        if let Some(pick) = &self.pick {
            load.aperture.give_back(pick, u64::from(self.reservation.size.prompt));
        }
        self.reservation.undo(&mut load.flow);
    }
}
