//! Whom the fleet served, from reports to limits.

use std::borrow::ToOwned;
use std::format;
use std::vec;

use super::*;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(1000 * seconds)
}

/// A policy of two classes and as many tenants, in version `version`.
fn policy(version: &str, tenants: usize) -> v1::Policy {
    let class = |name: &str| v1::PriorityClass { name: name.to_owned(), ..Default::default() };
    let tenant = |n: usize| v1::Tenant { name: format!("t{n}"), ..Default::default() };
    let classification = v1::Classification { tenants: (0..tenants).map(tenant).collect(), ..Default::default() };
    let spec = v1::PolicySpec {
        pool: "pool".to_owned(),
        classes: vec![class("high"), class("low")],
        classification: Some(classification),
        ..Default::default()
    };
    v1::Policy { name: "demo".to_owned(), spec: Some(spec), version: version.to_owned() }
}

fn book(tenants: usize) -> ServedBook {
    let mut book = ServedBook::default();
    follow(&mut book, &policy("1", tenants));
    book
}

fn follow(book: &mut ServedBook, policy: &v1::Policy) {
    book.set_policy(policy, policy.spec.as_ref().unwrap());
}

/// Work served to the first `tenants` of the class `low`, and to one of `high`.
fn served(tenants: u32, work: u64) -> v1::OverloadReport {
    let slot_deltas = (0..=tenants).map(|n| [3, 1022, 1][n.min(2) as usize]).collect();
    v1::OverloadReport { served_slot_deltas: slot_deltas, served_work: vec![work; tenants as usize + 1], ..Default::default() }
}

fn told(book: &ServedBook) -> v1::OverloadLimits {
    let mut limits = v1::OverloadLimits::default();
    if let Some(newest) = book.newest() {
        newest.write(&mut limits);
    }
    limits
}

#[test]
fn what_all_workers_served_is_told_each_second_in_classes_that_many_ask_and_halves_in_two_minutes() {
    let mut book = book(100);
    book.add(at(0), "1", &served(70, 100));
    book.add(at(0), "1", &served(70, 300));
    assert!(book.newest().is_none(), "a second is not over");
    book.add(at(1), "1", &served(64, 0));
    let (first, telling) = (told(&book), book.newest().unwrap());
    assert_eq!((first.served_slot_deltas[0], first.served_work.len()), (1025, 70), "one tenant of `high` is not many");
    assert!(first.served_work.iter().all(|work| (396..400).contains(work)), "{first:?}");
    book.add(at(121), "1", &served(64, 0));
    assert!(told(&book).served_work.iter().all(|work| (198..200).contains(work)));
    assert!(!Arc::ptr_eq(&telling, &book.newest().unwrap()), "another telling is news");
}

#[test]
fn few_tenants_are_not_told() {
    let mut book = book(100);
    book.add(at(0), "1", &served(63, 100));
    book.add(at(1), "1", &served(63, 100));
    assert!(book.newest().is_none());
}

#[test]
fn workers_with_another_version_are_not_counted_and_other_tenants_begin_anew() {
    let mut book = book(100);
    book.add(at(0), "0", &served(70, 100));
    book.add(at(0), "1", &served(70, 100));
    book.add(at(1), "0", &served(70, 100));
    book.add(at(1), "1", &served(70, 100));
    assert!(told(&book).served_work.iter().all(|work| (198..=200).contains(work)));
    follow(&mut book, &policy("2", 100));
    book.add(at(2), "1", &served(70, 100));
    book.add(at(2), "2", &served(70, 100));
    assert!(told(&book).served_work.iter().all(|work| (296..=300).contains(work)), "the same tenants in another version");
    follow(&mut book, &policy("3", 101));
    assert!(book.newest().is_none());
}
