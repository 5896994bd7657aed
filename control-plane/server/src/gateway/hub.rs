//! The gateway's resources as they are stored: durable before they are acknowledged, a set that renders at every moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use headgate_protos::document::gateway::kind_of;
use headgate_protos::v1::GatewayResource;
use prost::Message;
use tokio::sync::watch;

use super::config::Checked;
use super::set::GatewaySet;
use crate::document::Violations;
use crate::records::{Change, Kind, Record, Records, StoreError, Update, View};

/// The kinds that make a gateway, in the order in which they are listed.
const KINDS: [Kind; 3] = [Kind::Pool, Kind::Route, Kind::Gateway];

/// The stored resources. Cheap to clone; all clones are one. Its changes write to disk or network and block.
#[derive(Clone)]
pub struct GatewayHub {
    records: Records,
    current: watch::Receiver<Arc<Stored>>,
}

/// What is in force.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// By kind and name.
    pub resources: Vec<GatewayResource>,
    /// All together.
    pub set: GatewaySet,
}

/// A change that was not made.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// There is no such resource.
    #[error("{kind} {name:?} does not exist")]
    NotFound {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// Resources that are wrong, or do not fit together.
    #[error("{0}")]
    Refused(Violations),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

type ByName = BTreeMap<(Kind, String), Checked>;

// === impl GatewayHub ===

impl GatewayHub {
    /// The resources among `records`, and from then on every change, whoever makes it.
    ///
    /// # Errors
    /// When one of them cannot be read, or they do not fit together.
    pub fn open(records: Records) -> Result<Self, GatewayError> {
        let (sender, current) = watch::channel(Arc::new(Stored::of(&read(&records.view())?)?));
        records.follow(move |update| follow(update, &sender));
        Ok(Self { records, current })
    }

    /// What is in force; the receiver wakes on every change.
    pub fn current(&self) -> watch::Receiver<Arc<Stored>> {
        self.current.clone()
    }

    /// Creates or replaces resources in the name of `author`, all or none, and returns how many of them changed anything.
    ///
    /// # Errors
    /// [`GatewayError`]; then nothing has changed.
    pub fn apply(&self, given: &[Checked], author: &str) -> Result<usize, GatewayError> {
        let added = self.records.commit(author, |view| changes(view, given))?;
        Ok(added.len())
    }

    /// Says whether [`Self::apply`] would accept resources, and how many would change anything, without storing them.
    ///
    /// # Errors
    /// Those of [`Self::apply`].
    pub fn check(&self, given: &[Checked]) -> Result<usize, GatewayError> {
        changes(&self.records.view(), given).map(|changes| changes.len())
    }

    /// Deletes a resource in the name of `author`.
    ///
    /// # Errors
    /// [`GatewayError`]; then nothing has changed. Another resource that needs it keeps it there.
    pub fn delete(&self, kind: &str, name: &str, author: &str) -> Result<(), GatewayError> {
        let not_found = || GatewayError::NotFound { kind: kind.to_owned(), name: name.to_owned() };
        let stored_as = KINDS.into_iter().find(|known| title(*known) == kind).ok_or_else(not_found)?;
        let deletion = |view: &View| {
            let mut all = read(view)?;
            all.remove(&(stored_as, name.to_owned())).ok_or_else(not_found)?;
            Stored::of(&all)?;
            Ok::<_, GatewayError>(vec![Change { kind: stored_as, name: name.to_owned(), body: None }])
        };
        self.records.commit(author, deletion).map(drop)
    }
}

// === impl Stored ===

impl Stored {
    fn of(all: &ByName) -> Result<Self, GatewayError> {
        let set = GatewaySet::try_new(all.values()).map_err(GatewayError::Refused)?;
        Ok(Self { resources: all.values().map(|checked| checked.wire().clone()).collect(), set })
    }
}

/// What has to be stored so that `given` is in force too; errs when everything together would not render.
fn changes(view: &View, given: &[Checked]) -> Result<Vec<Change>, GatewayError> {
    let mut all = read(view)?;
    let mut changes = Vec::new();
    for checked in given {
        let wire = checked.wire();
        // What was checked is of one of the kinds.
        let Some(kind) = KINDS.into_iter().find(|kind| title(*kind) == kind_of(wire)) else { continue };
        let replaced = all.insert((kind, wire.name.clone()), checked.clone());
        if replaced.is_none_or(|replaced| replaced != *checked) {
            changes.push(Change { kind, name: wire.name.clone(), body: Some(Bytes::from(wire.encode_to_vec())) });
        }
    }
    Stored::of(&all)?;
    Ok(changes)
}

fn follow(update: &Update<'_>, current: &watch::Sender<Arc<Stored>>) {
    if !update.changed.iter().any(|record| KINDS.contains(&record.kind)) {
        return;
    }
    match read(update.view).and_then(|all| Stored::of(&all)) {
        Ok(stored) => drop(current.send_replace(Arc::new(stored))),
        // Written by a newer version of Headgate on another replica.
        Err(error) => tracing::error!(%error, "the stored gateway cannot be used; the one before it stays in force"),
    }
}

fn read(view: &View) -> Result<ByName, GatewayError> {
    let mut all = ByName::new();
    for kind in KINDS {
        for record in view.live(kind) {
            all.insert((kind, record.name.clone()), decode(record)?);
        }
    }
    Ok(all)
}

fn decode(record: &Record) -> Result<Checked, StoreError> {
    let unreadable = |problem: String| StoreError::Unreadable { kind: record.kind, name: record.name.clone(), problem };
    let wire = GatewayResource::decode(record.body.clone().unwrap_or_default()).map_err(|error| unreadable(error.to_string()))?;
    Checked::try_from_wire(wire).map_err(|violations| unreadable(violations.to_string().replace('\n', "; ")))
}

/// How documents call a kind.
fn title(kind: Kind) -> &'static str {
    match kind {
        Kind::Pool => "Pool",
        Kind::Route => "Route",
        Kind::Gateway => "Gateway",
        Kind::Policy | Kind::Rollout => "",
    }
}
