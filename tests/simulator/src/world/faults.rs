//! What goes wrong, as the plan says.

use super::{Cast, Event, Fate, Place, World};
use crate::controller::Ending;
use crate::setup::Fault;

impl World<'_> {
    pub(super) fn on_fault(&mut self, cast: &mut Cast<'_>, index: u32) {
        let fault = self.setup.faults[index as usize].fault;
        match fault {
            Fault::ControlCut { lasts, .. } => self.events.push(self.now + lasts, Event::FaultEnds(index)),
            Fault::EngineLost { engine, lasts } => {
                self.events.push(self.now + lasts, Event::FaultEnds(index));
                self.lose_engine(cast, engine);
            }
            Fault::Derate { engine, factor } => {
                if let Some(engine) = self.engines.get_mut(usize::from(engine)) {
                    engine.derate(factor);
                }
            }
            Fault::WorkerRestart { site } => {
                let lost = self.requests.find(|request| request.place == Place::Waiting && request.arrival.site == site);
                for id in lost {
                    self.waiting -= 1;
                    self.finish(cast, id, Fate::Lost, 0, None);
                }
            }
        }
        cast.controller.on_fault(&mut self.ctx(), &fault);
    }

    pub(super) fn on_fault_ends(&mut self, cast: &mut Cast<'_>, index: u32) {
        let fault = self.setup.faults[index as usize].fault;
        if let Fault::EngineLost { engine, .. } = fault
            && let Some(engine) = self.engines.get_mut(usize::from(engine))
        {
            engine.restore();
        }
        cast.controller.on_fault(&mut self.ctx(), &fault);
    }

    fn lose_engine(&mut self, cast: &mut Cast<'_>, lost: u16) {
        let Some(engine) = self.engines.get_mut(usize::from(lost)) else { return };
        engine.lose();
        self.engine_due[usize::from(lost)] = None;
        let with_it = self.requests.find(|request| matches!(request.place, Place::Engine { engine, .. } if engine == lost));
        for id in with_it {
            self.in_flight -= 1;
            // It is with no engine while the controller hears of its end.
            self.requests.get_mut(id).place = Place::Deciding;
            self.end(cast, id, Ending::Failed, 0);
        }
    }
}
