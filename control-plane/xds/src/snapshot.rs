//! Snapshots: everything that one client may be told at one moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::resource::{Resource, ResourceName, ResourceType, Version};

/// Everything that one client may be told at one moment, consistent by construction: names are unique within a type and every
/// resource that another one refers to is there. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    sets: Arc<BTreeMap<ResourceType, ResourceSet>>,
}

/// The resources of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceSet {
    resources: BTreeMap<ResourceName, Resource>,
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
        let mut sets: BTreeMap<ResourceType, ResourceSet> = BTreeMap::new();
        for resource in resources {
            let (kind, name) = (resource.kind(), resource.name().clone());
            if sets.entry(kind).or_default().resources.insert(name.clone(), resource).is_some() {
                return Err(Inconsistent::Duplicate { kind, name });
            }
        }
        for resource in sets.values().flat_map(ResourceSet::iter) {
            for (needs_kind, needs_name) in resource.needs() {
                if !sets.get(needs_kind).is_some_and(|set| set.resources.contains_key(needs_name)) {
                    return Err(Inconsistent::Dangling {
                        kind: resource.kind(),
                        name: resource.name().clone(),
                        needs_kind: *needs_kind,
                        needs_name: needs_name.clone(),
                    });
                }
            }
        }
        Ok(Self { sets: Arc::new(sets) })
    }

    /// The resources of a type; an empty set when there are none.
    pub fn set(&self, kind: ResourceType) -> &ResourceSet {
        static EMPTY: ResourceSet = ResourceSet { resources: BTreeMap::new() };
        self.sets.get(&kind).unwrap_or(&EMPTY)
    }
}

// === impl ResourceSet ===

impl ResourceSet {
    /// The resource with this name.
    pub fn get(&self, name: &ResourceName) -> Option<&Resource> {
        self.resources.get(name)
    }

    /// All resources, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Resource> {
        self.resources.values()
    }

    /// Version of the whole set.
    pub fn version(&self) -> Version {
        Version::of_set(self.resources.iter().map(|(name, resource)| (name, resource.version())))
    }
}
