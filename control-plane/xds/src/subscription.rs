//! What a client wants of one type.

use std::collections::BTreeSet;

use crate::resource::ResourceName;

/// What a client wants of one type: single names, or every resource, or both. Bounded by [`Subscription::MAX_NAMES`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    interest: Interest,
    names: BTreeSet<ResourceName>,
}

/// Which resources are wanted besides those that are named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interest {
    /// None.
    #[default]
    Named,
    /// Every one, because the client has never named any ("legacy" wildcard).
    LegacyWildcard,
    /// Every one, because the client named `*`.
    Wildcard,
}

/// A client asked for more names than a subscription may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {} names", Subscription::MAX_NAMES)]
pub struct TooManyNames;

impl Subscription {
    /// Most names that a subscription may hold.
    pub const MAX_NAMES: usize = 4096;

    /// A subscription to every resource, as a client has that never named one.
    pub fn legacy_wildcard() -> Self {
        Self { interest: Interest::LegacyWildcard, names: BTreeSet::new() }
    }

    /// A subscription to these names and, with [`Interest::Wildcard`], to every resource.
    pub fn to(interest: Interest, names: BTreeSet<ResourceName>) -> Result<Self, TooManyNames> {
        if names.len() > Self::MAX_NAMES { Err(TooManyNames) } else { Ok(Self { interest, names }) }
    }

    /// Whether every resource is wanted.
    pub fn is_wildcard(&self) -> bool {
        self.interest != Interest::Named
    }

    /// Why every resource is wanted, if so.
    pub fn interest(&self) -> Interest {
        self.interest
    }

    /// Whether this resource is wanted.
    pub fn wants(&self, name: &ResourceName) -> bool {
        self.is_wildcard() || self.names.contains(name)
    }

    /// Whether this resource is wanted by its name.
    pub fn is_named(&self, name: &ResourceName) -> bool {
        self.names.contains(name)
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &ResourceName> {
        self.names.iter()
    }

    /// Wants every resource from now on.
    pub(crate) fn widen(&mut self) {
        self.interest = Interest::Wildcard;
    }

    /// Wants only named resources from now on.
    pub(crate) fn narrow(&mut self) {
        self.interest = Interest::Named;
    }

    /// Adds a name. Says whether it was wanted by name before.
    pub(crate) fn add(&mut self, name: ResourceName) -> Result<AlreadyNamed, TooManyNames> {
        if self.names.contains(&name) {
            return Ok(AlreadyNamed::Yes);
        }
        if self.names.len() >= Self::MAX_NAMES {
            return Err(TooManyNames);
        }
        self.names.insert(name);
        Ok(AlreadyNamed::No)
    }

    /// Takes a name out.
    pub(crate) fn remove(&mut self, name: &ResourceName) {
        self.names.remove(name);
    }
}

/// Whether a name was subscribed to before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AlreadyNamed {
    /// It was.
    Yes,
    /// It was not.
    No,
}
