//! How attempts come into the world: sources, trace, retries.

use headgate_core::time::Timestamp;

use super::clients::Wanted;
use super::{Cast, Event, Place, Request, RequestId, World};
use crate::controller::Arrival;

impl World<'_> {
    pub(super) fn on_arrival(&mut self, cast: &mut Cast<'_>, source: u32) {
        self.send(cast, source);
        let clients = &mut self.clients[source as usize];
        if let Some(at) = clients.next_arrival(self.now).filter(|at| *at < Timestamp::ZERO + self.setup.duration) {
            self.events.push(at, Event::Arrival(source));
        }
    }

    pub(super) fn on_thought(&mut self, cast: &mut Cast<'_>, source: u32) {
        self.send(cast, source);
    }

    pub(super) fn on_population(&mut self, source: u32) {
        let (joining, changes_at) = self.clients[source as usize].joining(self.now);
        for _ in 0..joining {
            self.client_is_free(source);
        }
        if let Some(at) = changes_at {
            self.events.push(at, Event::Population(source));
        }
    }

    /// The client of a closed source thinks, then sends again.
    pub(super) fn client_is_free(&mut self, source: u32) {
        let Some(clients) = self.clients.get_mut(source as usize).filter(|clients| clients.is_closed()) else { return };
        if let Some(at) = clients.think(self.now).filter(|at| *at < Timestamp::ZERO + self.setup.duration) {
            self.events.push(at, Event::Thought(source));
        }
    }

    pub(super) fn on_trace(&mut self, cast: &mut Cast<'_>) {
        let row = self.setup.trace[self.trace_sent];
        self.trace_sent += 1;
        if let Some(next) = self.setup.trace.get(self.trace_sent) {
            self.events.push(Timestamp::ZERO + next.at, Event::Trace);
        }
        let wanted = Wanted {
            class: row.class,
            tenant: row.tenant,
            prompt: row.prompt_tokens,
            output: row.output_tokens,
            timeout: self.setup.trace_patience.timeout,
        };
        let arrival = self.frame.arrival(self.now, &mut self.trace_rng, wanted);
        self.enter(cast, self.clients.len() as u32, arrival);
    }

    pub(super) fn on_retry(&mut self, cast: &mut Cast<'_>, id: RequestId) {
        self.backing_off -= 1;
        let request = *self.requests.get(id);
        let site = self.frame.site(&mut self.retries);
        let timeout = self.patience(request.source).timeout;
        let arrival = Arrival { site, attempt: request.arrival.attempt + 1, deadline: self.now + timeout, ..request.arrival };
        *self.requests.get_mut(id) =
            Request { arrival, place: Place::Deciding, source: request.source, sent_at: self.now, admitted_at: None, first_token_at: None };
        self.offer(cast, id);
    }

    fn send(&mut self, cast: &mut Cast<'_>, source: u32) {
        let arrival = self.clients[source as usize].request(self.now, &self.frame);
        self.enter(cast, source, arrival);
    }

    fn enter(&mut self, cast: &mut Cast<'_>, source: u32, arrival: Arrival) {
        let request = Request { arrival, place: Place::Deciding, source, sent_at: self.now, admitted_at: None, first_token_at: None };
        let id = self.requests.insert(request);
        self.offer(cast, id);
    }
}
