//! Snapshots: everything that one client may be told at one moment.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::resource::{Resource, ResourceName, ResourceType, Version};

/// Everything that one client may be told at one moment, consistent by construction: names are unique within a type and every
/// resource that another one refers to is there. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// By the type's place in [`ResourceType::ALL`].
    sets: [Option<Arc<ResourceSet>>; ResourceType::ALL.len()],
}

/// The resources of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceSet {
    resources: BTreeMap<ResourceName, Resource>,
    version: Version,
    least_ttl: Option<Duration>,
}

/// Resources that make no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Inconsistent {
    /// Two resources of a type have one name.
    #[error("{kind} `{name}` is there twice")]
    Duplicate {
        /// Type.
        kind: ResourceType,
        /// Name.
        name: ResourceName,
    },
    /// A resource refers to one that is not there.
    #[error("{kind} `{name}` needs {needs_kind} `{needs_name}`, which is not there")]
    Dangling {
        /// Type of the referring resource.
        kind: ResourceType,
        /// Its name.
        name: ResourceName,
        /// Type of the missing resource.
        needs_kind: ResourceType,
        /// Its name.
        needs_name: ResourceName,
    },
}

// === impl Snapshot ===

impl Snapshot {
    /// Makes a snapshot. Errs on the first duplicate name, else on the first reference to something that is not there.
    pub fn try_new(resources: impl IntoIterator<Item = Resource>) -> Result<Self, Inconsistent> {
        Self::default().with(resources)
    }

    /// This snapshot and more resources. Types of which none is added are shared with this one, so a fleet whose clients differ in a few
    /// resources has what they have in common once. Errs as [`Self::try_new`] does.
    pub fn with(&self, resources: impl IntoIterator<Item = Resource>) -> Result<Self, Inconsistent> {
        let mut added: BTreeMap<ResourceType, BTreeMap<ResourceName, Resource>> = BTreeMap::new();
        for resource in resources {
            let (kind, name) = (resource.kind(), resource.name().clone());
            let set = added.entry(kind).or_insert_with(|| self.set(kind).resources.clone());
            if set.insert(name.clone(), resource).is_some() {
                return Err(Inconsistent::Duplicate { kind, name });
            }
        }
        let mut sets = self.sets.clone();
        let kinds: Vec<ResourceType> = added.keys().copied().collect();
        for (kind, resources) in added {
            sets[kind as usize] = Some(Arc::new(ResourceSet::of(resources)));
        }
        let snapshot = Self { sets };
        // What was there before found all that it needs, and nothing has gone.
        kinds.into_iter().flat_map(|kind| snapshot.set(kind).iter()).try_for_each(|resource| snapshot.holds_needs_of(resource))?;
        Ok(snapshot)
    }

    /// This snapshot with other content of a resource that it has; it stays as it is when it has none of that type and name, or when the
    /// other content needs what is not there.
    #[must_use]
    pub fn with_other(&self, resource: Resource) -> Self {
        let (kind, name) = (resource.kind(), resource.name().clone());
        if self.set(kind).get(&name).is_none() || self.holds_needs_of(&resource).is_err() {
            return self.clone();
        }
        let mut resources = self.set(kind).resources.clone();
        resources.insert(name, resource);
        let mut sets = self.sets.clone();
        sets[kind as usize] = Some(Arc::new(ResourceSet::of(resources)));
        Self { sets }
    }

    fn holds_needs_of(&self, resource: &Resource) -> Result<(), Inconsistent> {
        match resource.needs().iter().find(|(kind, name)| self.set(*kind).get(name).is_none()) {
            None => Ok(()),
            Some((needs_kind, needs_name)) => Err(Inconsistent::Dangling {
                kind: resource.kind(),
                name: resource.name().clone(),
                needs_kind: *needs_kind,
                needs_name: needs_name.clone(),
            }),
        }
    }

    /// The resources of a type; an empty set when there are none.
    pub fn set(&self, kind: ResourceType) -> &ResourceSet {
        static EMPTY: LazyLock<ResourceSet> = LazyLock::new(|| ResourceSet::of(BTreeMap::new()));
        self.sets[kind as usize].as_ref().map_or_else(|| &*EMPTY, |set| &**set)
    }
}

// === impl ResourceSet ===

impl ResourceSet {
    fn of(resources: BTreeMap<ResourceName, Resource>) -> Self {
        let version = Version::of_set(resources.iter().map(|(name, resource)| (name, resource.version())));
        let least_ttl = resources.values().filter_map(Resource::ttl).min();
        Self { resources, version, least_ttl }
    }

    /// The resource with this name.
    pub fn get(&self, name: &ResourceName) -> Option<&Resource> {
        self.resources.get(name)
    }

    /// All resources, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Resource> {
        self.resources.values()
    }

    /// Shortest time to live of a resource in the set.
    pub fn least_ttl(&self) -> Option<Duration> {
        self.least_ttl
    }

    /// Version of the whole set.
    pub fn version(&self) -> Version {
        self.version
    }
}
