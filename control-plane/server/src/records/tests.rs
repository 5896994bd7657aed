#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::*;

fn change(kind: Kind, name: &str, body: &str) -> Change {
    Change { kind, name: name.to_owned(), body: Some(Bytes::copy_from_slice(body.as_bytes())) }
}

fn put(records: &Records, author: &str, name: &str, body: &str) -> u64 {
    let added = records.commit(author, |_| Ok::<_, StoreError>(vec![change(Kind::Policy, name, body)])).unwrap();
    added[0].revision
}

fn delete(records: &Records, author: &str, name: &str) {
    let deletion = || vec![Change { kind: Kind::Policy, name: name.to_owned(), body: None }];
    records.commit(author, |_| Ok::<_, StoreError>(deletion())).unwrap();
}

fn text(record: &Record) -> String {
    record.body.as_ref().map_or("deleted".to_owned(), |body| String::from_utf8_lossy(body).into_owned())
}

/// `author: body` of every revision, the oldest first.
fn history(view: &View, name: &str) -> Vec<String> {
    view.history(Kind::Policy, name).iter().map(|record| format!("{}: {}", record.author, text(record))).collect()
}

#[test]
fn what_is_in_force_and_what_was_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let before = {
        let records = Records::open(directory.path()).unwrap();
        put(&records, "ann", "a", "1");
        put(&records, "bob", "a", "2");
        put(&records, "ann", "b", "3");
        delete(&records, "bob", "b");
        records.view()
    };
    let view = Records::open(directory.path()).unwrap().view();
    assert_eq!(view, before);
    assert_eq!(history(&view, "a"), ["ann: 1", "bob: 2"]);
    assert_eq!(history(&view, "b"), ["ann: 3", "bob: deleted"]);
    assert_eq!(view.live(Kind::Policy).map(|record| record.name.as_str()).collect::<Vec<_>>(), ["a"]);
    assert!(view.get(Kind::Policy, "b").is_none() && view.get(Kind::Pool, "a").is_none());
    assert!(view.get(Kind::Policy, "a").unwrap().at_unix_ms > 0);
}

#[test]
fn revisions_rise_over_all_names_and_over_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let records = Records::open(directory.path()).unwrap();
    assert_eq!([put(&records, "x", "a", "1"), put(&records, "x", "b", "1"), put(&records, "x", "a", "2")], [1, 2, 3]);
    drop(records);
    let records = Records::open(directory.path()).unwrap();
    assert_eq!(put(&records, "x", "a", "3"), 4);
}

#[test]
fn the_changes_of_a_commit_are_one_revision() {
    let directory = tempfile::tempdir().unwrap();
    let records = Records::open(directory.path()).unwrap();
    let both = || vec![change(Kind::Pool, "p", "1"), change(Kind::Route, "r", "1")];
    let added = records.commit("x", |_| Ok::<_, StoreError>(both())).unwrap();
    assert_eq!(added.iter().map(|record| (record.kind, record.revision)).collect::<Vec<_>>(), [(Kind::Pool, 1), (Kind::Route, 1)]);
}

#[test]
fn a_decision_that_refuses_or_wants_nothing_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let records = Records::open(directory.path()).unwrap();
    assert!(records.commit("x", |_| Ok::<_, StoreError>(Vec::new())).unwrap().is_empty());
    assert!(matches!(records.commit("x", |_| Err::<Vec<Change>, _>(StoreError::Full)), Err(StoreError::Full)));
    assert_eq!(records.view().revision(), 0);
}

#[test]
fn a_follower_hears_what_is_in_force_and_then_every_commit_before_it_returns() {
    let directory = tempfile::tempdir().unwrap();
    let records = Records::open(directory.path()).unwrap();
    put(&records, "x", "a", "1");
    put(&records, "x", "a", "2");
    let (heard, told) = mpsc::channel();
    records.follow(move |update| {
        heard.send((update.view.revision(), update.changed.iter().map(|record| text(record)).collect::<Vec<_>>())).unwrap();
    });
    assert_eq!(told.try_recv().unwrap(), (2, vec!["2".to_owned()]));
    put(&records, "x", "b", "3");
    assert_eq!(told.try_recv().unwrap(), (3, vec!["3".to_owned()]));
    delete(&records, "x", "b");
    assert_eq!(told.try_recv().unwrap(), (4, vec!["deleted".to_owned()]));
}

#[test]
fn the_history_of_a_name_is_bounded_and_keeps_the_newest() {
    let directory = tempfile::tempdir().unwrap();
    let records = Records::open(directory.path()).unwrap();
    put(&records, "x", "other", "1");
    for n in 0..HISTORY_DEPTH + 3 {
        put(&records, "x", "a", &n.to_string());
    }
    let view = records.view();
    let kept = view.history(Kind::Policy, "a");
    assert_eq!((kept.len(), text(&kept[0])), (HISTORY_DEPTH, "3".to_owned()));
    drop(records);
    assert_eq!(Records::open(directory.path()).unwrap().view(), view, "the file has forgotten the same");
}

#[test]
fn beyond_the_total_the_oldest_that_is_not_in_force_goes() {
    let body = Some(Bytes::from(vec![0; MAX_BODY_BYTES]));
    let row = |name: &str, revision, body: &Option<Bytes>| {
        Arc::new(Record { kind: Kind::Pool, name: name.to_owned(), revision, author: String::new(), at_unix_ms: 0, body: body.clone() })
    };
    let n_full = MAX_TOTAL_BYTES / MAX_BODY_BYTES;
    // `a` is as old as can be but in force, `b` has been superseded, `c` is deleted.
    let mut rows = vec![row("a", 1, &body), row("b", 2, &body), row("b", 3, &body), row("c", 4, &body), row("c", 5, &None)];
    rows.extend((rows.len()..=n_full).map(|n| row(&n.to_string(), n as u64 + 1, &body)));
    let mut view = View::of(0, rows);
    assert!(!view.is_over_full());
    let dropped = view.add(&[row("new", 1000, &body), row("newer", 1001, &body)]);
    assert_eq!(dropped.iter().map(|row| (row.name.as_str(), row.revision)).collect::<Vec<_>>(), [("b", 2), ("c", 4)]);
    assert!(view.get(Kind::Pool, "a").is_some() && !view.is_over_full());
}

#[test]
fn what_is_in_force_is_never_dropped_for_more() {
    let records = contended(0);
    let large = "x".repeat(MAX_BODY_BYTES);
    let changes = |n: usize| (0..n).map(|n| change(Kind::Pool, &n.to_string(), &large)).collect::<Vec<_>>();
    records.commit("x", |_| Ok::<_, StoreError>(changes(MAX_CHANGES))).unwrap();
    let more = |_: &View| Ok((100..110).map(|n| change(Kind::Pool, &n.to_string(), &large)).collect());
    assert!(matches!(records.commit::<StoreError>("x", more), Err(StoreError::Full)));
    assert_eq!(records.view().live(Kind::Pool).count(), MAX_CHANGES);
}

#[test]
fn what_is_too_long_or_too_much_is_refused_with_its_size() {
    let directory = tempfile::tempdir().unwrap();
    let records = Records::open(directory.path()).unwrap();
    let long = "x".repeat(MAX_BODY_BYTES + 1);
    let error = records.commit("x", |_| Ok::<_, StoreError>(vec![change(Kind::Route, "r", &long)])).unwrap_err();
    assert_eq!(error.to_string(), "route `r`: 1048577 bytes are more than 1048576");
    let many = |_: &View| Ok((0..=MAX_CHANGES).map(|n| change(Kind::Pool, &n.to_string(), "")).collect());
    assert!(matches!(records.commit::<StoreError>("x", many), Err(StoreError::TooMany(61))));
}

/// A backend that another writer has overtaken `times`.
struct Contended {
    times: AtomicUsize,
    other: mpsc::Sender<u64>,
}

impl Backend for Contended {
    fn commit(&self, batch: &Batch) -> Result<Durable, StoreError> {
        let left = self.times.load(Ordering::Relaxed);
        if left == 0 {
            return Ok(Durable::Done);
        }
        self.times.store(left - 1, Ordering::Relaxed);
        self.other.send(batch.revision).unwrap();
        Ok(Durable::Overtaken)
    }
}

/// Records over [`Contended`], whose other writer's commits arrive a moment later from another thread, as they do from a network.
fn contended(times: usize) -> Records {
    let (other, overtaken) = mpsc::channel();
    let records = Records::over(Box::new(Contended { times: AtomicUsize::new(times), other }), View::default());
    let network = Arc::downgrade(&records.inner);
    std::thread::spawn(move || {
        for revision in overtaken {
            let Some(inner) = network.upgrade() else { return };
            let (kind, name, author) = (Kind::Policy, "theirs".to_owned(), "other".to_owned());
            let body = Some(Bytes::from(revision.to_string()));
            inner.absorb(&[Arc::new(Record { kind, name, revision, author, at_unix_ms: 0, body })]);
        }
    });
    records
}

#[test]
fn a_writer_that_was_overtaken_decides_anew_on_what_is_then_stored() {
    let records = contended(2);
    let mut seen = Vec::new();
    let decide = |view: &View| {
        seen.push(view.revision());
        Ok::<_, StoreError>(vec![change(Kind::Policy, "ours", "1")])
    };
    assert_eq!(records.commit("x", decide).unwrap()[0].revision, 3);
    assert_eq!(seen, [0, 1, 2]);
    assert_eq!(history(&records.view(), "theirs"), ["other: 1", "other: 2"]);
}

#[test]
fn a_writer_that_is_always_overtaken_gives_up_and_says_so() {
    let records = contended(MAX_TRIES);
    let outcome = records.commit("x", |_| Ok::<_, StoreError>(vec![change(Kind::Policy, "ours", "1")]));
    assert!(matches!(outcome, Err(StoreError::Overtaken)));
    assert!(records.view().get(Kind::Policy, "ours").is_none());
}

#[test]
fn after_a_gap_followers_hear_what_is_different_deletions_included() {
    let records = contended(0);
    for name in ["kept", "changed", "deleted", "forgotten"] {
        put(&records, "x", name, "1");
    }
    let row = |name: &str, revision, body: Option<&'static str>| {
        let (kind, name, author) = (Kind::Policy, name.to_owned(), "y".to_owned());
        Arc::new(Record { kind, name, revision, author, at_unix_ms: 0, body: body.map(|body| Bytes::from_static(body.as_bytes())) })
    };
    let kept = records.view().get(Kind::Policy, "kept").unwrap().clone();
    let (heard, told) = mpsc::channel();
    records.follow(move |update| heard.send(update.changed.to_vec()).unwrap());
    assert_eq!(told.try_recv().unwrap().len(), 4);
    let rows = vec![kept, row("changed", 7, Some("2")), row("deleted", 8, None), row("new", 9, Some("1"))];
    records.inner.replace(View::of(10, rows));
    let mut news: Vec<_> = told.try_recv().unwrap().iter().map(|record| (record.name.clone(), record.revision, text(record))).collect();
    news.sort();
    let expected = [("changed", 7, "2"), ("deleted", 8, "deleted"), ("forgotten", 10, "deleted"), ("new", 9, "1")];
    assert_eq!(news, expected.map(|(name, revision, text)| (name.to_owned(), revision, text.to_owned())));
    assert_eq!(records.view().revision(), 10);
}

#[test]
fn a_writer_that_does_not_hear_of_the_others_gives_up() {
    let (other, _nobody_listens) = mpsc::channel();
    let records = Records::over(Box::new(Contended { times: AtomicUsize::new(1), other }), View::default());
    let outcome = records.commit("x", |_| Ok::<_, StoreError>(vec![change(Kind::Policy, "ours", "1")]));
    assert!(matches!(outcome, Err(StoreError::Overtaken)));
}
