//! What proxies refuse of the configuration in Envoy's own types: a document that is stored and in force nowhere has to be seen.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use headgate_xds::{Change, ResourceType};

/// Refusals that are kept; more are in the log only.
pub const MAX_REFUSALS: usize = 256;

/// What each proxy refuses.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<BTreeMap<(String, ResourceType, String), String>>);

/// One resource that one proxy refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `node.id` of the proxy.
    pub node_id: String,
    /// Type of the resource.
    pub kind: ResourceType,
    /// Its name.
    pub name: String,
    /// Why, in the proxy's words.
    pub error: String,
}

// === impl Refusals ===

impl Refusals {
    /// The proxy refuses a response with these changes. It does not say which of them is at fault, unless in its words.
    pub fn refuse(&self, node_id: &str, kind: ResourceType, changes: &[Change], error: &str) {
        let mut refusals = self.lock();
        for change in changes {
            let key = (node_id.to_owned(), kind, change.name.to_string());
            if refusals.len() < MAX_REFUSALS || refusals.contains_key(&key) {
                refusals.insert(key, error.to_owned());
            }
        }
    }

    /// The proxy has taken these changes.
    pub fn accept(&self, node_id: &str, kind: ResourceType, changes: &[Change]) {
        let mut refusals = self.lock();
        if refusals.is_empty() {
            return;
        }
        for change in changes {
            refusals.remove(&(node_id.to_owned(), kind, change.name.to_string()));
        }
    }

    /// Forgets what is refused of resources that are no longer told.
    pub fn retain(&self, is_told: impl Fn(ResourceType, &str) -> bool) {
        self.lock().retain(|(_, kind, name), _| is_told(*kind, name));
    }

    /// All of them, by proxy, type and name.
    pub fn list(&self) -> Vec<Refusal> {
        let refusal = |((node_id, kind, name), error): (&(String, ResourceType, String), &String)| Refusal {
            node_id: node_id.clone(),
            kind: *kind,
            name: name.clone(),
            error: error.clone(),
        };
        self.lock().iter().map(refusal).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, ResourceType, String), String>> {
        // Every change is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use headgate_xds::ResourceName;

    use super::*;

    fn change(name: &str) -> Change {
        Change { name: ResourceName::new(name).unwrap(), version: None }
    }

    #[test]
    fn a_refusal_stands_until_the_proxy_takes_the_resource() {
        let refusals = Refusals::default();
        refusals.refuse("edge-1", ResourceType::Listener, &[change("public"), change("other")], "no such file");
        refusals.accept("edge-1", ResourceType::Cluster, &[change("public")]);
        refusals.accept("edge-2", ResourceType::Listener, &[change("public")]);
        assert_eq!(refusals.list().len(), 2, "another type, another proxy");
        refusals.accept("edge-1", ResourceType::Listener, &[change("public")]);
        let left: Vec<(String, String)> = refusals.list().into_iter().map(|refusal| (refusal.name, refusal.error)).collect();
        assert_eq!(left, [("other".to_owned(), "no such file".to_owned())]);
        refusals.retain(|kind, name| (kind, name) != (ResourceType::Listener, "other"));
        assert_eq!(refusals.list(), [], "what is no longer told cannot be refused");
    }

    #[test]
    fn no_more_are_kept_than_the_bound() {
        let refusals = Refusals::default();
        let changes: Vec<Change> = (0..MAX_REFUSALS + 10).map(|index| change(&index.to_string())).collect();
        refusals.refuse("edge-1", ResourceType::Cluster, &changes, "full");
        assert_eq!(refusals.list().len(), MAX_REFUSALS);
    }
}
