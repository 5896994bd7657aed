#![allow(clippy::unwrap_used)]

use super::*;

fn document(name: &str, pool: &str, path: &str, trip_percent: u32) -> CheckedPolicy {
    CheckedPolicy::from_document(&format!(
        "apiVersion: headgate.dev/v1
kind: AdmissionPolicy
metadata: {{ name: {name} }}
spec:
  pool: {pool}
  routes: [{{ pathPrefix: {path} }}]
  classes: [{{ name: low, whenTripped: refuse }}]
  levels: {{ gpuMemory: {{ tripPercent: {trip_percent} }} }}"
    ))
    .unwrap()
}

fn names(store: &Store) -> Vec<String> {
    store.list().iter().map(|stored| stored.policy.name.clone()).collect()
}

#[test]
fn what_was_acknowledged_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let a = document("a", "pool-a", "/a", 75);
    let stored = {
        let store = Store::open(directory.path(), Fleet::new()).unwrap();
        store.apply(&document("b", "pool-b", "/b", 75), &Expected::Any).unwrap();
        store.delete("b", &Expected::Any).unwrap();
        store.apply(&a, &Expected::Absent).unwrap().stored
    };
    let fleet = Fleet::new();
    let store = Store::open(directory.path(), fleet.clone()).unwrap();
    assert_eq!(store.list(), std::slice::from_ref(&stored));
    assert_eq!(stored.policy, *a.wire());
    assert!(stored.changed_at_unix_ms > 0);
    assert_eq!(fleet.policies().borrow().policies.get("a"), Some(&stored), "published on opening");
}

#[test]
fn the_directory_is_created() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("a/b"), Fleet::new()).unwrap();
    assert!(store.list().is_empty());
}

#[test]
fn the_same_content_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), Fleet::new()).unwrap();
    let first = store.apply(&document("a", "p", "/", 75), &Expected::Any).unwrap();
    let (_, mut changes) = store.watch();
    let second = store.apply(&document("a", "p", "/", 75), &Expected::Any).unwrap();
    assert!(first.changed && !second.changed);
    assert_eq!(first.stored, second.stored);
    assert!(changes.try_recv().is_err(), "nobody is told of it");
}

#[test]
fn another_version_than_expected_is_a_conflict_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), Fleet::new()).unwrap();
    let first = store.apply(&document("a", "p", "/", 75), &Expected::Absent).unwrap().stored;
    let next = document("a", "p", "/", 80);
    for expected in [Expected::Absent, Expected::Version("0123456789abcdef".into())] {
        assert!(matches!(store.apply(&next, &expected), Err(ChangeError::Conflict { .. })));
        assert!(matches!(store.delete("a", &expected), Err(ChangeError::Conflict { .. })));
    }
    assert_eq!(store.list(), std::slice::from_ref(&first));
    assert!(store.apply(&next, &Expected::Version(first.policy.version.clone())).unwrap().changed);
    let error = store.apply(&document("b", "q", "/b", 1), &Expected::Version("v".into())).unwrap_err();
    assert_eq!(error.to_string(), "policy `b`: expected version v, found no policy");
}

#[test]
fn a_policy_that_is_not_there_cannot_be_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), Fleet::new()).unwrap();
    assert!(matches!(store.delete("a", &Expected::Any), Err(ChangeError::NotFound { .. })));
}

#[test]
fn two_policies_share_neither_pool_nor_route() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), Fleet::new()).unwrap();
    store.apply(&document("a", "p", "/v1", 75), &Expected::Any).unwrap();
    let error = store.apply(&document("b", "p", "/v1", 75), &Expected::Any).unwrap_err();
    let lines = "pool: \"p\" is already protected by policy `a`\nroutes[0]: path \"/v1\" on any host is already governed by policy `a`";
    assert_eq!(error.to_string(), lines);
    assert_eq!(store.check(&document("b", "p", "/v1", 75)).unwrap_err().to_string(), lines);
    assert_eq!(names(&store), ["a"]);
    store.apply(&document("b", "q", "/v1/chat", 75), &Expected::Any).unwrap();
    store.apply(&document("a", "p", "/v1", 80), &Expected::Any).unwrap();
}

#[test]
fn the_number_of_policies_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), Fleet::new()).unwrap();
    for n in 0..MAX_POLICIES {
        store.apply(&document(&format!("p{n}"), &format!("pool-{n}"), &format!("/{n}"), 75), &Expected::Any).unwrap();
    }
    assert!(matches!(store.apply(&document("x", "x", "/x", 75), &Expected::Any), Err(ChangeError::Full)));
    store.apply(&document("p0", "pool-0", "/0", 80), &Expected::Any).unwrap();
}

#[test]
fn a_watcher_sees_what_is_there_and_then_every_change() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), Fleet::new()).unwrap();
    let a = store.apply(&document("a", "p", "/", 75), &Expected::Any).unwrap().stored;
    let (existing, mut changes) = store.watch();
    assert_eq!(existing, [a]);
    let newer = store.apply(&document("a", "p", "/", 80), &Expected::Any).unwrap().stored;
    store.delete("a", &Expected::Any).unwrap();
    assert_eq!(changes.try_recv().unwrap(), PolicyChange::Applied(newer));
    assert_eq!(changes.try_recv().unwrap(), PolicyChange::Deleted("a".into()));
}

#[test]
fn a_store_is_open_once() {
    let directory = tempfile::tempdir().unwrap();
    let _store = Store::open(directory.path(), Fleet::new()).unwrap();
    let error = Store::open(directory.path(), Fleet::new()).map(drop).unwrap_err();
    assert!(matches!(error, StoreError::Database(redb::Error::DatabaseAlreadyOpen)), "{error}");
}

#[test]
fn a_file_of_another_schema_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    Disk::open(directory.path()).unwrap().overwrite_schema(2).unwrap();
    let error = Store::open(directory.path(), Fleet::new()).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "policy database: schema 2 is not 1, the one that this version reads");
}

#[test]
fn a_stored_policy_that_is_not_valid_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let policy = v1::Policy { name: "old".into(), ..v1::Policy::default() };
    Disk::open(directory.path()).unwrap().put(&StoredPolicy { policy, changed_at_unix_ms: 0 }).unwrap();
    let error = Store::open(directory.path(), Fleet::new()).map(drop).unwrap_err();
    assert!(matches!(&error, StoreError::Unreadable { name, .. } if name == "old"), "{error}");
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Store::open(&file, Fleet::new()).map(drop).unwrap_err();
    assert!(error.to_string().starts_with("data directory "), "{error}");
}
