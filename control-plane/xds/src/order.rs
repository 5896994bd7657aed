//! Make before break: in which order types may be sent, and when something may be taken away.
//!
//! Envoy applies the messages of one stream in the order in which it gets them. So that traffic never meets a reference to
//! something that is not there, what is referred to is sent before what refers to it, and removed after it.
//! Source: xDS protocol, "Eventual consistency considerations".

use crate::resource::ResourceType::{self, Cluster, Endpoint, ExtensionConfig, HeadgateLimits, HeadgatePolicy, Listener, Route, Runtime};
use crate::resource::{Resource, ResourceName};

/// Types whose unsent additions hold back those of `kind`.
pub(crate) const fn sent_before(kind: ResourceType) -> &'static [ResourceType] {
    match kind {
        // A filter drops limits of a pool that no policy of its names.
        HeadgateLimits => &[HeadgatePolicy],
        Endpoint => &[Cluster],
        Listener => &[Cluster, Endpoint],
        Route => &[Cluster, Endpoint, Listener],
        Cluster | Runtime | ExtensionConfig | HeadgatePolicy => &[],
    }
}

/// Types that may refer to resources of `kind`: while the client has not settled on the newest of these, nothing that it has of
/// `kind` is removed.
pub(crate) const fn referring_to(kind: ResourceType) -> &'static [ResourceType] {
    match kind {
        Cluster => &[Listener, Route],
        Endpoint => &[Cluster, Listener, Route],
        // A listener whose filter configuration is removed answers every request with 500.
        Route | ExtensionConfig => &[Listener],
        Listener | Runtime | HeadgatePolicy | HeadgateLimits => &[],
    }
}

/// What a client must be told again after it was told of `resource`.
///
/// Envoy puts a changed cluster into use only when it has been told its endpoints after it, although it has had them before.
/// Source: xDS protocol, "Resource warming".
pub(crate) fn told_again_after(resource: &Resource) -> impl Iterator<Item = &(ResourceType, ResourceName)> {
    resource.needs().iter().filter(|(kind, _)| (resource.kind(), *kind) == (Cluster, Endpoint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_declared_after_all_that_is_sent_before_it() {
        for kind in ResourceType::ALL {
            assert!(sent_before(kind).iter().all(|earlier| *earlier < kind), "{kind}");
        }
    }

    #[test]
    fn no_two_types_wait_for_each_other_with_removals() {
        for kind in ResourceType::ALL {
            let mut reached = referring_to(kind).to_vec();
            let mut next = 0;
            while let Some(by) = reached.get(next).copied() {
                assert_ne!(by, kind);
                reached.extend(referring_to(by).iter().filter(|kind| !reached.contains(kind)).copied().collect::<Vec<_>>());
                next += 1;
            }
        }
    }
}
