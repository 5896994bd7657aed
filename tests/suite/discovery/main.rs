//! Discovery on real Envoys: every pinned version, aggregated in both variants and on services of single types, through everything that
//! happens to a configuration in its life.

use anyhow::Result;
use headgate_test_support::EnvoyVersion;

mod bootstrap;
mod life;
mod replica;
mod world;

use bootstrap::Mode;

macro_rules! lives {
    ($($name:ident: $version:literal, $mode:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() -> Result<()> {
                life::of_a_configuration(EnvoyVersion::named($version)?, $mode).await
            }
        )*
    };
}

lives! {
    envoy_1_36_4_lives_on_the_aggregated_state_of_the_world: "1.36.4", Mode::AggregatedSotw;
    envoy_1_36_4_lives_on_aggregated_deltas: "1.36.4", Mode::AggregatedDelta;
    envoy_1_36_4_lives_on_services_of_single_types: "1.36.4", Mode::Split;
    envoy_1_38_2_lives_on_the_aggregated_state_of_the_world: "1.38.2", Mode::AggregatedSotw;
    envoy_1_38_2_lives_on_aggregated_deltas: "1.38.2", Mode::AggregatedDelta;
    envoy_1_38_2_lives_on_services_of_single_types: "1.38.2", Mode::Split;
    envoy_1_40_0_lives_on_the_aggregated_state_of_the_world: "1.40.0", Mode::AggregatedSotw;
    envoy_1_40_0_lives_on_aggregated_deltas: "1.40.0", Mode::AggregatedDelta;
    envoy_1_40_0_lives_on_services_of_single_types: "1.40.0", Mode::Split;
}
