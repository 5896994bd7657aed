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

fn opened(directory: &std::path::Path, fleet: Fleet) -> Result<Store, StoreError> {
    Store::open(Records::open(directory)?, fleet)
}

fn names(store: &Store) -> Vec<String> {
    store.list().iter().map(|stored| stored.policy.name.clone()).collect()
}

#[test]
fn what_was_acknowledged_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let a = document("a", "pool-a", "/a", 75);
    let stored = {
        let store = opened(directory.path(), Fleet::new()).unwrap();
        store.apply(&document("b", "pool-b", "/b", 75), &Expected::Any, "ann").unwrap();
        store.delete("b", &Expected::Any, "bob").unwrap();
        store.apply(&a, &Expected::Absent, "ann").unwrap().stored
    };
    let fleet = Fleet::new();
    let store = opened(directory.path(), fleet.clone()).unwrap();
    assert_eq!(store.list(), std::slice::from_ref(&stored));
    assert_eq!(stored.policy, *a.wire());
    assert!(stored.changed_at_unix_ms > 0);
    assert_eq!(fleet.policies().borrow().policies.get("a"), Some(&stored), "published on opening");
}

#[test]
fn the_directory_is_created() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory.path().join("a/b"), Fleet::new()).unwrap();
    assert!(store.list().is_empty());
}

#[test]
fn the_same_content_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path(), Fleet::new()).unwrap();
    let first = store.apply(&document("a", "p", "/", 75), &Expected::Any, "ann").unwrap();
    let (_, mut changes) = store.watch();
    let second = store.apply(&document("a", "p", "/", 75), &Expected::Any, "ann").unwrap();
    assert!(first.changed && !second.changed);
    assert_eq!(first.stored, second.stored);
    assert!(changes.try_recv().is_err(), "nobody is told of it");
}

#[test]
fn another_version_than_expected_is_a_conflict_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path(), Fleet::new()).unwrap();
    let first = store.apply(&document("a", "p", "/", 75), &Expected::Absent, "ann").unwrap().stored;
    let next = document("a", "p", "/", 80);
    for expected in [Expected::Absent, Expected::Version("0123456789abcdef".into())] {
        assert!(matches!(store.apply(&next, &expected, "ann"), Err(ChangeError::Conflict { .. })));
        assert!(matches!(store.delete("a", &expected, "bob"), Err(ChangeError::Conflict { .. })));
    }
    assert_eq!(store.list(), std::slice::from_ref(&first));
    assert!(store.apply(&next, &Expected::Version(first.policy.version.clone()), "ann").unwrap().changed);
    let error = store.apply(&document("b", "q", "/b", 1), &Expected::Version("v".into()), "ann").unwrap_err();
    assert_eq!(error.to_string(), "policy `b`: expected version v, found no policy");
}

#[test]
fn a_policy_that_is_not_there_cannot_be_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path(), Fleet::new()).unwrap();
    assert!(matches!(store.delete("a", &Expected::Any, "bob"), Err(ChangeError::NotFound { .. })));
}

#[test]
fn two_policies_share_neither_pool_nor_route() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path(), Fleet::new()).unwrap();
    store.apply(&document("a", "p", "/v1", 75), &Expected::Any, "ann").unwrap();
    let error = store.apply(&document("b", "p", "/v1", 75), &Expected::Any, "ann").unwrap_err();
    let lines = "pool: \"p\" is already protected by policy `a`\nroutes[0]: path \"/v1\" on any host is already governed by policy `a`";
    assert_eq!(error.to_string(), lines);
    assert_eq!(store.check(&document("b", "p", "/v1", 75)).unwrap_err().to_string(), lines);
    assert_eq!(names(&store), ["a"]);
    store.apply(&document("b", "q", "/v1/chat", 75), &Expected::Any, "ann").unwrap();
    store.apply(&document("a", "p", "/v1", 80), &Expected::Any, "ann").unwrap();
}

#[test]
fn the_number_of_policies_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path(), Fleet::new()).unwrap();
    for n in 0..MAX_POLICIES {
        store.apply(&document(&format!("p{n}"), &format!("pool-{n}"), &format!("/{n}"), 75), &Expected::Any, "ann").unwrap();
    }
    assert!(matches!(store.apply(&document("x", "x", "/x", 75), &Expected::Any, "ann"), Err(ChangeError::Full)));
    store.apply(&document("p0", "pool-0", "/0", 80), &Expected::Any, "ann").unwrap();
}

#[test]
fn a_watcher_sees_what_is_there_and_then_every_change() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path(), Fleet::new()).unwrap();
    let a = store.apply(&document("a", "p", "/", 75), &Expected::Any, "ann").unwrap().stored;
    let (existing, mut changes) = store.watch();
    assert_eq!(existing, [a]);
    let newer = store.apply(&document("a", "p", "/", 80), &Expected::Any, "ann").unwrap().stored;
    store.delete("a", &Expected::Any, "bob").unwrap();
    assert_eq!(changes.try_recv().unwrap(), PolicyChange::Applied(newer));
    assert_eq!(changes.try_recv().unwrap(), PolicyChange::Deleted("a".into()));
}

#[test]
fn a_store_is_open_once() {
    let directory = tempfile::tempdir().unwrap();
    let _store = opened(directory.path(), Fleet::new()).unwrap();
    let error = opened(directory.path(), Fleet::new()).map(drop).unwrap_err();
    assert!(matches!(error, StoreError::Database(redb::Error::DatabaseAlreadyOpen)), "{error}");
}

#[test]
fn a_stored_policy_that_is_not_valid_is_named_at_the_start_and_later_leaves_the_one_before_it_in_force() {
    let directory = tempfile::tempdir().unwrap();
    let records = Records::open(directory.path()).unwrap();
    let store = Store::open(records.clone(), Fleet::new()).unwrap();
    let good = store.apply(&document("a", "p", "/", 75), &Expected::Any, "ann").unwrap().stored;
    let invalid = || prost::Message::encode_to_vec(&v1::Policy { name: "a".into(), ..v1::Policy::default() }).into();
    let change = || vec![Change { kind: Kind::Policy, name: "a".into(), body: Some(invalid()) }];
    records.commit("a newer version", |_| Ok::<_, StoreError>(change())).unwrap();
    assert_eq!(store.list(), [good]);
    let error = Store::open(records, Fleet::new()).map(drop).unwrap_err();
    assert!(matches!(&error, StoreError::Unreadable { name, .. } if name == "a"), "{error}");
}

#[test]
fn the_history_has_every_change_with_its_author() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path(), Fleet::new()).unwrap();
    let [first, second] = [75, 80].map(|percent| document("a", "p", "/", percent));
    store.apply(&first, &Expected::Any, "ann").unwrap();
    store.apply(&first, &Expected::Any, "bob").unwrap();
    store.apply(&document("b", "q", "/b", 75), &Expected::Any, "ann").unwrap();
    store.apply(&second, &Expected::Any, "bob").unwrap();
    store.delete("a", &Expected::Any, "cy").unwrap();
    let history = store.history("a").unwrap();
    assert!(history.iter().all(|revision| revision.at_unix_ms > 0));
    let shown: Vec<_> = history.iter().map(|of| (of.revision, of.author.as_str(), of.policy.as_ref())).collect();
    assert_eq!(shown, [(1, "ann", Some(first.wire())), (3, "bob", Some(second.wire())), (4, "cy", None)]);
    assert!(store.history("nobody").unwrap().is_empty());
}

#[test]
fn what_a_revision_said_is_in_force_again_as_a_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path(), Fleet::new()).unwrap();
    let [first, second] = [75, 80].map(|percent| document("a", "p", "/", percent));
    for document in [&first, &second] {
        store.apply(document, &Expected::Any, "ann").unwrap();
    }
    let back = store.rollback("a", 1, &Expected::Version(second.wire().version.clone()), "bob").unwrap();
    assert!(back.changed && back.stored.policy == *first.wire());
    assert!(!store.rollback("a", 1, &Expected::Any, "bob").unwrap().changed, "it says that already");
    let conflict = store.rollback("a", 2, &Expected::Version(second.wire().version.clone()), "bob");
    assert!(matches!(conflict, Err(ChangeError::Conflict { .. })));
    store.delete("a", &Expected::Any, "bob").unwrap();
    assert_eq!(
        store.rollback("a", 4, &Expected::Any, "bob").unwrap_err().to_string(),
        "policy `a` was deleted in revision 4; `headgate policy delete a` does that"
    );
    assert_eq!(store.rollback("a", 9, &Expected::Any, "bob").unwrap_err().to_string(), "policy `a`: revision 9 is not kept");
    assert!(store.rollback("a", 2, &Expected::Absent, "cy").unwrap().changed);
    let authors: Vec<_> = store.history("a").unwrap().into_iter().map(|of| (of.revision, of.author)).collect();
    assert_eq!(authors, [(1, "ann"), (2, "ann"), (3, "bob"), (4, "bob"), (5, "cy")].map(|(number, who)| (number, who.to_owned())));
}

#[test]
fn what_cannot_be_in_force_beside_the_others_cannot_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path(), Fleet::new()).unwrap();
    store.apply(&document("a", "p", "/a", 75), &Expected::Any, "ann").unwrap();
    store.apply(&document("a", "q", "/a", 75), &Expected::Any, "ann").unwrap();
    store.apply(&document("b", "p", "/b", 75), &Expected::Any, "ann").unwrap();
    let refused = store.rollback("a", 1, &Expected::Any, "bob").unwrap_err();
    assert_eq!(refused.to_string(), "pool: \"p\" is already protected by policy `b`");
    assert_eq!(store.history("a").unwrap().len(), 2);
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = opened(&file, Fleet::new()).map(drop).unwrap_err();
    assert!(error.to_string().starts_with("data directory "), "{error}");
}
