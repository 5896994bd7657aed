//! Which test of `conformance.rs` shows which rule of the protocol, so that no rule is without one and no test without a rule.
#![allow(missing_docs)]

use std::collections::BTreeSet;

/// Rules of xDS, as Envoy's `xds_protocol.rst` and its behaviour give them, and the tests of each by variant and name.
const RULES: &[(&str, &[&str])] = &[
    ("the node comes with the first message only", &["delta::the_node_of_the_first_request_is_kept"]),
    (
        "an aggregated stream names its types, a per-type service need not",
        &[
            "delta::a_request_that_breaks_the_protocol_or_a_bound_ends_the_stream",
            "delta::a_type_that_is_not_served_is_reported_and_ignored",
            "delta::a_per_type_stream_needs_no_type",
            "sotw::a_request_that_breaks_the_protocol_ends_the_stream",
        ],
    ),
    (
        "what is named is answered, with versions and a nonce",
        &["delta::a_named_resource_is_sent_with_its_version_and_a_nonce", "sotw::every_response_holds_all_that_is_wanted_and_exists"],
    ),
    ("an ACK is answered with nothing", &["delta::an_ack_is_answered_with_nothing_and_reported"]),
    (
        "a NACK rejects the whole response and its content is not sent again",
        &[
            "delta::refused_content_is_not_sent_again_until_it_changes",
            "delta::after_a_refusal_the_client_is_taken_to_have_what_it_accepted_before",
            "delta::refused_content_is_sent_again_when_the_client_asks_for_it",
            "delta::a_refused_response_is_sent_again_whole_when_a_part_of_it_changes",
            "delta::what_was_refused_with_something_that_is_no_longer_wanted_is_sent_again",
            "sotw::refused_content_is_not_sent_again_until_it_changes",
        ],
    ),
    ("filter configurations in one response share its fate", &["delta::a_refused_policy_or_filter_configuration_holds_back_no_other"]),
    (
        "an ACK of what was refused before proves nothing",
        &[
            "delta::accepting_what_was_refused_before_proves_nothing_of_an_extension_configuration",
            "sotw::accepting_what_was_refused_before_proves_nothing_of_an_extension_configuration",
        ],
    ),
    (
        "a stale nonce is ignored",
        &[
            "delta::a_stale_nonce_neither_accepts_nor_refuses",
            "delta::a_subscription_in_a_request_with_a_stale_nonce_counts",
            "sotw::a_stale_nonce_is_ignored_altogether",
            "sotw::what_a_client_asks_for_after_a_list_that_crossed_the_first_response_is_sent",
        ],
    ),
    (
        "one response of a type is in flight, and the newest follows it",
        &[
            "delta::what_changes_while_a_response_is_unanswered_is_sent_after_the_ack_newest_only",
            "delta::an_unanswered_type_does_not_hold_up_an_unrelated_one",
            "sotw::what_changes_while_a_response_is_unanswered_is_sent_after_the_ack_newest_only",
        ],
    ),
    ("a delta tells what changed alone", &["delta::only_what_changed_is_sent", "delta::a_resource_that_goes_away_is_removed_once"]),
    ("unknown names are answered as removed", &["delta::a_name_that_does_not_exist_is_answered_as_removed_once_and_sent_when_it_appears"]),
    (
        "changed names are a new subscription, answered although nothing changed",
        &[
            "delta::an_unsubscribed_name_is_not_sent_again",
            "delta::a_name_subscribed_to_anew_is_sent_although_it_did_not_change",
            "delta::a_name_dropped_and_taken_up_again_while_it_was_in_flight_is_sent_again",
            "sotw::newly_named_resources_are_answered_although_nothing_changed",
        ],
    ),
    (
        "wildcards, legacy and explicit",
        &[
            "delta::no_names_in_the_first_request_mean_everything_where_the_type_allows_it",
            "delta::a_star_means_everything_of_any_type",
            "delta::a_wildcard_client_is_answered_at_first_even_when_there_is_nothing",
            "delta::without_the_star_only_named_resources_remain",
            "delta::a_legacy_wildcard_outlives_a_named_subscription_and_ends_with_the_star",
            "delta::a_name_unsubscribed_under_a_wildcard_is_told_again",
            "sotw::no_names_mean_everything_at_first_and_nothing_after_a_name",
            "sotw::a_wildcard_client_is_answered_at_first_even_when_there_is_nothing",
        ],
    ),
    ("absence deletes listeners and clusters only", &["sotw::absence_deletes_clusters_and_means_nothing_for_extension_configurations"]),
    (
        "a client that comes back says what it has, and versions are content hashes",
        &[
            "delta::a_reconnecting_client_gets_only_what_differs_and_what_is_gone",
            "delta::a_reconnecting_client_that_has_everything_gets_nothing",
            "delta::initial_versions_count_in_the_first_request_only",
            "sotw::a_reconnecting_client_is_answered_whatever_version_it_names",
            "sotw::versions_are_the_same_on_every_replica",
        ],
    ),
    (
        "make before break",
        &[
            "delta::types_are_sent_in_make_before_break_order",
            "delta::limits_wait_for_a_policy_that_cannot_be_sent_yet",
            "delta::nothing_is_removed_before_the_client_settled_on_what_refers_to_it",
            "delta::a_changed_cluster_is_followed_by_its_endpoints_although_they_did_not_change",
            "delta::clusters_outlive_the_routes_and_listeners_that_name_them",
            "delta::a_filter_configuration_outlives_the_listener_that_names_it",
            "sotw::types_are_sent_in_make_before_break_order",
            "sotw::a_changed_cluster_is_followed_by_its_endpoints_although_they_did_not_change",
            "sotw::a_cluster_outlives_the_listener_that_names_it",
        ],
    ),
    (
        "resources have a time to live, renewed by heartbeats",
        &[
            "delta::what_expires_is_sent_with_its_time_to_live_and_renewed_without_its_body",
            "delta::only_clients_that_know_what_expiring_is_are_told_of_it",
            "delta::what_could_not_be_renewed_in_time_is_sent_whole",
            "delta::what_was_to_be_renewed_in_a_refused_response_is_sent_without_what_was_refused",
            "delta::what_was_not_renewed_while_something_else_was_the_newest_is_sent_whole_when_it_is_the_newest_again",
            "delta::a_reconnecting_client_is_sent_what_expires_whether_or_not_it_has_it",
            "delta::another_time_to_live_is_another_version",
            "delta::a_refused_heartbeat_refuses_nothing",
            "sotw::what_expires_is_wrapped_with_its_time_to_live_and_renewed_whole",
            "sotw::clusters_that_expire_are_renewed_whole_because_absence_deletes",
        ],
    ),
    ("snapshots are consistent by construction", &["an_inconsistent_snapshot_cannot_be_made"]),
    (
        "types, names and versions are read as they are written",
        &["a_type_is_found_by_its_url_alone", "the_wildcard_is_no_name", "a_version_reads_back_and_nothing_else_is_one"],
    ),
    (
        "streams and messages are bounded, and encoded once for all",
        &[
            "delta::names_are_bounded_over_all_requests_of_a_stream",
            "delta::resources_are_encoded_once_for_all_streams",
            "delta::a_large_set_is_sent_in_parts",
        ],
    ),
];

/// Every test of `conformance.rs` as `variant::name`, or by its name alone where it is about both.
fn tests() -> BTreeSet<String> {
    let (mut variant, mut is_test, mut found) = ("", false, BTreeSet::new());
    for line in include_str!("conformance.rs").lines() {
        if let Some(name) = line.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(" {")) {
            variant = name;
        } else if line == "}" {
            variant = "";
        }
        let name = line.trim().strip_prefix("fn ").and_then(|rest| rest.split_once('(')).map(|(name, _)| name);
        if let Some(name) = name.filter(|_| is_test) {
            found.insert(if variant.is_empty() { name.to_owned() } else { format!("{variant}::{name}") });
        }
        is_test = line.trim() == "#[test]";
    }
    found
}

#[test]
fn every_rule_has_a_test_and_every_test_a_rule() {
    let named: Vec<&str> = RULES.iter().flat_map(|(_, tests)| tests.iter().copied()).collect();
    let once: BTreeSet<String> = named.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(once.len(), named.len(), "a test stands under two rules");
    assert_eq!(once, tests());
    for (rule, tests) in RULES {
        assert!(!tests.is_empty(), "nothing shows: {rule}");
    }
}
