//! One proxy: its worker VMs, their shared data, and the conversation with the control plane that one of them leads. After
//! `filter/wasm/src/control.rs`.

use std::time::Duration;

use headgate_core::discovery::NodeIdentity;
use headgate_core::leader::{self, LeaderLease, LeaderStep};
use headgate_core::session::{Effect, Link, Session};
use headgate_core::shared::{Keys, Revisions};
use headgate_core::time::Timestamp;

use super::reports::Reports;
use super::transit::{Direction, Message};
use super::vm::{SharedData, Vm};
use crate::controller::Link as NetworkLink;

/// Between two looks at the leader's lease.
const LOOK_EVERY: Duration = Duration::from_millis(80);

/// One proxy.
pub(super) struct Proxy {
    number: u16,
    vms: Vec<Vm>,
    /// VMs that have been, for their identities.
    vms_made: u64,
    keys: Keys,
    shared: SharedData,
    leading: Option<Leading>,
    streams_opened: u32,
}

struct Leading {
    session: Session,
    worker: u16,
    /// Numbers of the open streams.
    streams: Vec<(Link, u32)>,
}

/// What a restart took with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restarted {
    Leader,
    Follower,
}

// === impl Proxy ===

impl Proxy {
    pub(super) fn new(number: u16, workers: u16) -> Self {
        let mut proxy = Self {
            number,
            vms: Vec::new(),
            vms_made: 0,
            keys: Keys::new("headgate"),
            shared: SharedData::default(),
            leading: None,
            streams_opened: 0,
        };
        for _ in 0..workers {
            let vm = proxy.new_vm();
            proxy.vms.push(vm);
        }
        proxy
    }

    /// `node.id` of a proxy.
    pub(super) fn node_id(number: u16) -> String {
        format!("proxy-{number:03}")
    }

    pub(super) fn vm_mut(&mut self, worker: u16) -> &mut Vm {
        &mut self.vms[usize::from(worker)]
    }

    /// What its workers have reported.
    pub(super) fn reports_mut(&mut self) -> &mut Reports {
        &mut self.shared.reports
    }

    /// The VM that decides next, with its permits.
    pub(super) fn before_request(&mut self, now: Timestamp, worker: u16) -> &mut Vm {
        let vm = &mut self.vms[usize::from(worker)];
        vm.ensure_permits(now, &mut self.shared);
        vm
    }

    /// Sub-leases never sum above the grant (`design.md`, invariant 6).
    pub(super) fn check(&self) -> Result<(), String> {
        let held: f64 = self.vms.iter().map(|vm| vm.share).sum();
        // A VM that restarted has left its share behind, which its successor holds anew only after it has lapsed.
        if held <= 1.0 + 1e-6 { Ok(()) } else { Err(format!("the workers of proxy {} hold {held} of its grant", self.number)) }
    }

    /// A tick of one VM. `link` tells whether a stream can be opened.
    pub(super) fn on_tick(&mut self, now: Timestamp, worker: u16, link: impl FnMut(Link) -> NetworkLink) -> Vec<Message> {
        let vm = &mut self.vms[usize::from(worker)];
        vm.on_tick(now, &self.keys, &mut self.shared);
        if now.since(vm.looked_at) >= LOOK_EVERY {
            vm.looked_at = now;
            self.look_at_lead(now, worker);
        }
        let Some(leading) = self.leading.as_mut().filter(|leading| leading.worker == worker) else { return Vec::new() };
        let mut effects: Vec<Effect> = leading.session.on_tick(now).into_iter().collect();
        if leading.session.is_report_due(now) {
            let applied = self.vms[usize::from(worker)].worker.applied();
            effects.push(leading.session.report(now, self.shared.reports.newest(), applied));
        }
        self.carry_out(now, effects, link)
    }

    pub(super) fn on_message(&mut self, now: Timestamp, message: &Message, link: impl FnMut(Link) -> NetworkLink) -> Vec<Message> {
        let Some(leading) = &mut self.leading else { return Vec::new() };
        if !leading.streams.contains(&(message.link, message.stream)) {
            return Vec::new();
        }
        let effects = leading.session.on_message(now, message.link, &message.bytes);
        self.carry_out(now, effects, link)
    }

    /// Every stream has ended.
    pub(super) fn break_streams(&mut self, now: Timestamp) {
        let Some(leading) = &mut self.leading else { return };
        for (link, _) in std::mem::take(&mut leading.streams) {
            leading.session.on_close(now, link);
        }
    }

    /// A VM starts anew: what it knew is gone, and the streams that it held.
    pub(super) fn restart(&mut self, worker: u16) -> Restarted {
        self.vms[usize::from(worker)] = self.new_vm();
        match self.leading.take_if(|leading| leading.worker == worker) {
            Some(_) => Restarted::Leader,
            None => Restarted::Follower,
        }
    }

    fn new_vm(&mut self) -> Vm {
        self.vms_made += 1;
        // Any identity but 0 will do, as long as no two VMs share one.
        Vm::new((u64::from(self.number) + 1) << 32 | self.vms_made)
    }

    fn look_at_lead(&mut self, now: Timestamp, worker: u16) {
        let owner = self.vms[usize::from(worker)].owner;
        let lease = LeaderLease::decode(self.shared.get(&self.keys.lead));
        match leader::step(now, owner, 1, lease.as_ref()) {
            LeaderStep::Hold(lease) | LeaderStep::TakeOver(lease) => {
                self.shared.set(&self.keys.lead, lease.encode());
                if self.leading.as_ref().is_none_or(|leading| leading.worker != worker) {
                    self.leading = Some(self.begin(owner, worker));
                }
            }
            LeaderStep::Follow => {}
        }
    }

    fn begin(&self, owner: u64, worker: u16) -> Leading {
        let node = NodeIdentity { id: Self::node_id(self.number), cluster: "sim".to_owned(), version: "0".to_owned() };
        let (policies, limits) = (self.shared.get(&self.keys.policies), self.shared.get(&self.keys.limits));
        Leading { session: Session::begin(node, owner, policies, limits), worker, streams: Vec::new() }
    }

    fn carry_out(&mut self, now: Timestamp, effects: Vec<Effect>, mut link: impl FnMut(Link) -> NetworkLink) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut left = std::collections::VecDeque::from(effects);
        while let Some(effect) = left.pop_front() {
            let Some(leading) = &mut self.leading else { return messages };
            match effect {
                Effect::Open(to) => {
                    let is_open = matches!(link(to), NetworkLink::Up(_));
                    if is_open {
                        self.streams_opened += 1;
                        leading.streams.push((to, self.streams_opened));
                    }
                    left.extend(leading.session.on_open(now, to, is_open));
                }
                Effect::Send(to, bytes) => {
                    let stream = leading.streams.iter().find(|(open, _)| *open == to).map(|(_, stream)| *stream);
                    messages.extend(stream.map(|stream| Message { direction: Direction::ToPlane, link: to, stream, bytes }));
                }
                Effect::Reset(to) => leading.streams.retain(|(open, _)| *open != to),
                Effect::Share { policies, limits } => self.share(policies, limits),
            }
        }
        messages
    }

    fn share(&mut self, policies: Option<Vec<u8>>, limits: Option<Vec<u8>>) {
        let raised = Revisions::raise(self.shared.get(&self.keys.revisions), policies.is_some(), limits.is_some());
        if let Some(policies) = policies {
            self.shared.set(&self.keys.policies, policies);
        }
        if let Some(limits) = limits {
            self.shared.set(&self.keys.limits, limits);
        }
        self.shared.set(&self.keys.revisions, raised);
    }
}
