//! The ring on a real Envoy: what users rely on, on every pinned version.
//!
//! Each scenario starts its own Envoy, control plane and upstream on free ports and ends them. `xtask` builds what they run.

use anyhow::Result;
use headgate_test_support::EnvoyVersion;

mod access_log;
mod balancing;
mod canary;
mod connection_age;
mod control_loss;
mod dependency;
mod files;
mod gateway;
mod hostile;
mod http3;
mod identity;
mod in_band;
mod nack;
mod picks;
mod policy_errors;
mod queue;
mod quota;
mod refused_filter;
mod shadow;
mod trip;
mod workers;

/// Runs scenarios on one pinned version each, so that a failure names the version.
macro_rules! on_every_envoy {
    ($($module:ident::$scenario:ident),* $(,)?) => {
        on_every_envoy!(@version envoy_1_36_4 "1.36.4" $($module::$scenario)*);
        on_every_envoy!(@version envoy_1_38_2 "1.38.2" $($module::$scenario)*);
        on_every_envoy!(@version envoy_1_40_0 "1.40.0" $($module::$scenario)*);

        #[test]
        fn every_pinned_envoy_has_its_ring() {
            let tested = ["1.36.4", "1.38.2", "1.40.0"].map(str::to_owned);
            let pinned: Vec<String> = EnvoyVersion::all().iter().map(ToString::to_string).collect();
            assert_eq!(pinned, tested, "envoy/VERSIONS and the ring differ");
        }
    };
    (@version $name:ident $version:literal $($module:ident::$scenario:ident)*) => {
        mod $name {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $scenario() -> super::Result<()> {
                    crate::$module::$scenario(super::EnvoyVersion::named($version)?).await
                }
            )*
        }
    };
}

on_every_envoy!(
    trip::inline_policy_refuses_above_its_bound_and_no_filter_refuses_nothing,
    trip::full_gpu_refuses_low_with_its_reason_and_spares_high,
    control_loss::killing_the_control_plane_fails_no_request,
    control_loss::ecds_delivers_the_filter,
    dependency::the_breaker_of_a_dependency_hears_of_it_and_the_client_does_not,
    refused_filter::a_filter_that_was_refused_is_taken_once_its_module_is_there,
    connection_age::a_proxy_changes_its_connections_without_a_gap,
    workers::bound_holds_and_permits_of_a_trapped_worker_return,
    hostile::hostile_requests_trap_nothing_and_lift_nobody,
    access_log::latencies_come_by_access_log_where_no_filter_runs,
    access_log::time_between_tokens_comes_where_envoy_reads_the_token_counts_of_streams,
    files::bootstraps_for_users_are_valid,
    gateway::every_option_renders_to_what_envoy_takes,
    gateway::an_envoy_with_nothing_but_a_bootstrap_routes_by_model_version_and_length,
    gateway::an_endpoint_that_dies_fails_no_request_but_those_in_flight,
    gateway::an_endpoint_whose_gpu_is_ejected_leaves_the_balancing,
    gateway::what_a_proxy_refuses_is_seen_and_changes_nothing,
    gateway::who_shows_no_token_or_signature_gets_nothing,
    balancing::equal_hash_values_meet_the_same_endpoint_and_most_stay_when_one_leaves,
    balancing::consistent_hash_works_beside_picks,
    balancing::latency_aware_balancing_follows_what_endpoints_tell_of_their_load,
    balancing::latency_aware_balancing_works_beside_picks,
    balancing::a_saturated_engine_gets_the_least_part,
    picks::requests_go_to_the_endpoint_that_they_name_and_the_others_by_the_algorithm,
    picks::a_request_that_names_an_endpoint_that_is_dead_or_out_goes_elsewhere,
    picks::the_filter_names_the_engine_and_envoy_follows,
    http3::a_request_over_quic_is_served,
    identity::a_proxy_is_the_node_that_its_certificate_names_and_no_other,
    in_band::engines_tell_their_load_in_their_responses_without_any_page,
    in_band::without_its_filter_envoy_leaves_the_load_in_the_answer,
    in_band::usage_settles_tokens_and_goodput_of_streams_with_several_tokens_a_piece,
    in_band::a_policy_that_does_not_ask_changes_and_reads_nothing,
    quota::two_workers_use_a_quota_and_never_pass_it,
    queue::who_finds_no_room_waits_and_the_important_go_first,
    queue::who_cannot_start_in_time_is_refused_in_time,
    queue::clients_that_leave_the_queue_leave_nothing,
    queue::the_queue_is_never_longer_than_its_bound,
    shadow::a_policy_that_watches_refuses_nobody_and_says_whom_it_would_have_refused,
    shadow::a_candidate_that_watches_is_compared_and_changes_nothing,
    canary::a_candidate_that_refuses_more_is_aborted_and_only_its_part_was_refused,
    canary::a_candidate_that_is_as_good_is_promoted_and_governs_every_request,
    nack::policy_that_the_filter_refuses_is_a_nack_with_its_field,
);
