//! Carries out the conversation with the control plane, in the one VM of a proxy that leads.

use crate::host::{self, BufferKind};
use headgate_core::discovery::{NodeIdentity, PolicySnapshot};
use headgate_core::leader::{self, LeaderLease, LeaderStep};
use headgate_core::lease::SLOTS;
use headgate_core::session::{Effect, Link, Session};
use headgate_core::shared::{Keys, Revisions};
use headgate_core::time::Timestamp;
use headgate_core::worker::Worker;
use headgate_protos::plugin::ControlPlane;
use prost::Message;
use std::time::Duration;

/// Between two looks at the lease; a leader is given up after four missed ones.
const LOOK_EVERY: Duration = Duration::from_millis(80);

/// What this VM has of the control plane.
pub(crate) struct Control {
    /// The target, an encoded `GrpcService`.
    service: Vec<u8>,
    owner: u64,
    generation: u64,
    /// While this VM leads.
    leading: Option<Leading>,
    /// Last look at the lease.
    looked_at: Timestamp,
}

#[derive(Debug)]
struct Leading {
    session: Session,
    /// Tokens of the open streams.
    streams: Vec<(Link, u32)>,
}

impl Control {
    /// For a VM `owner` that runs configuration `generation`.
    pub(crate) fn new(control_plane: &ControlPlane, owner: u64, generation: u64) -> Self {
        Self { service: control_plane.to_grpc_service().encode_to_vec(), owner, generation, leading: None, looked_at: Timestamp::ZERO }
    }

    /// Every tick: leads or follows.
    pub(crate) fn on_tick(&mut self, now: Timestamp, keys: &Keys, worker: &Worker) {
        if now.since(self.looked_at) >= LOOK_EVERY {
            self.looked_at = now;
            if self.holds_lead(now, &keys.lead) {
                self.leading.get_or_insert_with(|| Leading::begin(keys, self.owner));
            } else if let Some(leading) = self.leading.take() {
                for (_, token) in leading.streams {
                    let _ = host::cancel_stream(token);
                }
            }
        }
        let Some(leading) = &mut self.leading else { return };
        if let Some(effect) = leading.session.on_tick(now) {
            leading.carry_out(now, vec![effect], keys, &self.service);
        }
        if leading.session.is_report_due(now) {
            let workers = (0..SLOTS).map_while(|slot| Some(host::shared(&keys.report(slot)).ok()?.0.to_vec()));
            let report = leading.session.report(now, workers, worker.applied());
            leading.carry_out(now, vec![report], keys, &self.service);
        }
    }

    /// A message on one of the streams.
    pub(crate) fn on_message(&mut self, now: Timestamp, token: u32, size: usize, keys: &Keys) {
        let Some(leading) = &mut self.leading else { return };
        let Some((link, _)) = leading.streams.iter().find(|(_, open)| *open == token).copied() else { return };
        if let Ok(message) = host::buffer(BufferKind::GrpcMessage, 0, size) {
            let effects = leading.session.on_message(now, link, &message);
            leading.carry_out(now, effects, keys, &self.service);
        }
    }

    /// A stream has ended.
    pub(crate) fn on_close(&mut self, now: Timestamp, token: u32) {
        let Some(leading) = &mut self.leading else { return };
        if let Some(at) = leading.streams.iter().position(|(_, open)| *open == token) {
            let (link, _) = leading.streams.swap_remove(at);
            leading.session.on_close(now, link);
        }
    }

    /// The root that opened the streams is gone, and the streams with it.
    pub(crate) fn forget_streams(&mut self) {
        self.leading = None;
    }

    /// The conversation, while this VM leads.
    pub(crate) fn session(&self) -> Option<&Session> {
        self.leading.as_ref().map(|leading| &leading.session)
    }

    fn holds_lead(&self, now: Timestamp, key: &str) -> bool {
        let Ok((bytes, cas)) = host::shared_or_empty(key) else { return false };
        match leader::step(now, self.owner, self.generation, LeaderLease::decode(&bytes).as_ref()) {
            LeaderStep::Hold(lease) | LeaderStep::TakeOver(lease) => host::set_shared(key, &lease.encode(), cas).is_ok(),
            LeaderStep::Follow => false,
        }
    }
}

impl Leading {
    fn begin(keys: &Keys, seed: u64) -> Self {
        let text = |path| String::from_utf8_lossy(&host::property(path).unwrap_or_default()).into_owned();
        let blob = |key| host::shared(key).map(|(bytes, _)| bytes).unwrap_or_default();
        let node =
            NodeIdentity { id: text("xds\0node\0id"), cluster: text("xds\0node\0cluster"), version: env!("CARGO_PKG_VERSION").into() };
        Self { session: Session::begin(node, seed, &blob(&keys.policies), &blob(&keys.limits)), streams: Vec::new() }
    }

    /// What fails here fails the stream, whose end then comes as a callback.
    fn carry_out(&mut self, now: Timestamp, effects: Vec<Effect>, keys: &Keys, service: &[u8]) {
        for effect in effects {
            match effect {
                Effect::Open(link) => {
                    let token = host::open_stream(service, link.method());
                    self.streams.extend(token.ok().map(|token| (link, token)));
                    let effects = self.session.on_open(now, link, token.is_ok());
                    self.carry_out(now, effects, keys, service);
                }
                Effect::Send(link, message) => {
                    let _ = self.token(link).map(|token| host::send(token, &message));
                }
                Effect::Reset(link) => {
                    let _ = self.token(link).map(host::cancel_stream);
                    self.streams.retain(|(open, _)| *open != link);
                }
                Effect::Share { policies, limits } => {
                    // Created here by one VM: two that created a record at once could each hold what the other holds.
                    for policy in policies.as_deref().and_then(PolicySnapshot::decode).unwrap_or_default().policies {
                        keys.leases_of(&policy).iter().for_each(|key| drop(host::shared_or_empty(key)));
                    }
                    for (key, blob) in [(&keys.policies, &policies), (&keys.limits, &limits)] {
                        let _ = blob.as_ref().map(|blob| host::set_shared(key, blob, 0));
                    }
                    let raise = |bytes: &[u8]| Some((Revisions::raise(bytes, policies.is_some(), limits.is_some()), ()));
                    host::update_shared(&keys.revisions, raise);
                }
            }
        }
    }

    fn token(&self, link: Link) -> Option<u32> {
        self.streams.iter().find(|(open, _)| *open == link).map(|(_, token)| *token)
    }
}
