//! Configuration in Envoy's own types that a part of the control plane renders for proxies.

use std::collections::BTreeMap;

use headgate_xds::{Inconsistent, Resource, ResourceName, ResourceType, Snapshot};

/// Clusters, endpoints, listeners, routes, runtime layers and extension configurations for proxies, consistent by construction.
///
/// A proxy is told only what it subscribes to, so one that asks for the filter alone is not touched by what is here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RenderedResources {
    common: Snapshot,
    by_cluster: BTreeMap<String, Snapshot>,
}

/// Resources that cannot be published as rendered configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderedError {
    /// A resource of a type that the store and the control loop alone make.
    #[error("{kind} `{name}`: this type is not rendered")]
    Foreign {
        /// Type.
        kind: ResourceType,
        /// Name.
        name: ResourceName,
    },
    /// Resources that do not fit together.
    #[error(transparent)]
    Inconsistent(#[from] Inconsistent),
}

// === impl RenderedResources ===

impl RenderedResources {
    /// `common` for every proxy, and for the proxies of a service cluster (`node.cluster`) what `by_cluster` adds to it.
    ///
    /// # Errors
    /// [`RenderedError`] for a policy or limits among them, a name that is there twice, a reference to what is not there.
    pub fn try_new(
        common: impl IntoIterator<Item = Resource>,
        by_cluster: impl IntoIterator<Item = (String, Vec<Resource>)>,
    ) -> Result<Self, RenderedError> {
        let common = Snapshot::default().with(common.into_iter().map(own).collect::<Result<Vec<_>, _>>()?)?;
        let mut clusters = BTreeMap::new();
        for (cluster, resources) in by_cluster {
            let resources = resources.into_iter().map(own).collect::<Result<Vec<_>, _>>()?;
            clusters.insert(cluster, common.with(resources)?);
        }
        Ok(Self { common, by_cluster: clusters })
    }

    /// What the proxies of a service cluster are told, and by which name others may be told the same: that of the cluster when it
    /// has resources of its own.
    pub fn for_cluster(&self, cluster: &str) -> (Option<&str>, &Snapshot) {
        match self.by_cluster.get_key_value(cluster) {
            Some((cluster, snapshot)) => (Some(cluster), snapshot),
            None => (None, &self.common),
        }
    }
}

/// A resource that may be rendered.
fn own(resource: Resource) -> Result<Resource, RenderedError> {
    match resource.kind() {
        kind @ (ResourceType::HeadgatePolicy | ResourceType::HeadgateLimits) => {
            Err(RenderedError::Foreign { kind, name: resource.name().clone() })
        }
        _ => Ok(resource),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn resource(kind: ResourceType, name: &str) -> Resource {
        Resource::new(kind, ResourceName::new(name).unwrap(), Bytes::from_static(b"content"))
    }

    fn names(snapshot: &Snapshot, kind: ResourceType) -> Vec<&str> {
        snapshot.set(kind).iter().map(|resource| resource.name().as_str()).collect()
    }

    #[test]
    fn a_cluster_of_proxies_gets_what_all_get_and_its_own() {
        let own =
            vec![resource(ResourceType::Listener, "edge-listener").needing(ResourceType::Cluster, ResourceName::new("pool").unwrap())];
        let rendered = RenderedResources::try_new([resource(ResourceType::Cluster, "pool")], [("edge".to_owned(), own)]).unwrap();
        let (audience, edge) = rendered.for_cluster("edge");
        assert_eq!((audience, names(edge, ResourceType::Listener)), (Some("edge"), vec!["edge-listener"]));
        assert_eq!(names(edge, ResourceType::Cluster), ["pool"]);
        let (audience, others) = rendered.for_cluster("another");
        assert_eq!((audience, names(others, ResourceType::Listener)), (None, vec![]));
    }

    #[test]
    fn policies_and_limits_are_not_rendered() {
        for kind in [ResourceType::HeadgatePolicy, ResourceType::HeadgateLimits] {
            let error = RenderedResources::try_new([resource(kind, "a")], []).unwrap_err();
            assert!(matches!(error, RenderedError::Foreign { .. }), "{error}");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_not_published() {
        let dangling = resource(ResourceType::Route, "routes").needing(ResourceType::Cluster, ResourceName::new("pool").unwrap());
        let error = RenderedResources::try_new([dangling], []).unwrap_err();
        assert!(error.to_string().contains("needs envoy.config.cluster.v3.Cluster `pool`, which is not there"), "{error}");
    }
}
