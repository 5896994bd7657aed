#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use envoy_types::pb::envoy::config::endpoint::v3::LocalityLbEndpoints;

use super::*;
use crate::config::FilterDelivery;
use crate::device::{DeviceActivity, DeviceReading, DeviceSample, DeviceState, LostDevice, NodeView};
use crate::gateway::documents;
use crate::gateway::render::render;

const POOL: &str = "
apiVersion: headgate.dev/v1
kind: Pool
metadata: { name: llm }
spec:
  endpoints:
  - { address: 10.0.0.1, port: 8000, gpus: [GPU-0] }
  - { address: 10.0.0.2, port: 8000, gpus: [GPU-1] }
  - { address: 10.0.0.3, port: 8000, node: gpu-node }
  balancing: { algorithm: weighted, weights: WEIGHTS, slowStartMs: 10000 }
";

fn set(weights: &str) -> GatewaySet {
    GatewaySet::try_new(&documents::read(&POOL.replace("WEIGHTS", weights)).unwrap()).unwrap()
}

fn sample(index: u32, active: u32, fatal_xid: Option<u64>) -> DeviceReading {
    let activity = DeviceActivity { kernel_active_percent: Some(active), fatal_xid, ..DeviceActivity::default() };
    DeviceReading::Sample(DeviceSample { index, uuid: format!("GPU-{index}").as_str().into(), activity, ..DeviceSample::default() })
}

fn view(now_ms: u64, node: &str, at_ms: u64, readings: Vec<DeviceReading>) -> DeviceView {
    let mut state = DeviceState::starting("test");
    state.node = node.into();
    state.take(Timestamp::from_millis(at_ms), readings);
    DeviceView::new(Timestamp::from_millis(now_ms), vec![Arc::new(NodeView::of(state))])
}

fn look(memory: &mut TelemetryMemory, set: &GatewaySet, view: &DeviceView) -> Vec<(u32, String)> {
    look_at(memory, set, view, None)
}

/// The engine of the first endpoint says `reading`, the others are not read.
fn look_at(memory: &mut TelemetryMemory, set: &GatewaySet, view: &DeviceView, reading: Option<Reading>) -> Vec<(u32, String)> {
    let engine = |address: SocketAddr| reading.clone().filter(|_| address.to_string() == "10.0.0.1:8000");
    let states = memory.look(view.now(), set, &Measured { devices: view, latency: &|_| None, engine: &engine });
    let pool = set.pool("llm").unwrap();
    pool.endpoints.iter().map(|endpoint| states.of(pool, endpoint)).map(|state| (state.weight, state.out_because)).collect()
}

fn weights(states: &[(u32, String)]) -> Vec<u32> {
    states.iter().map(|(weight, _)| *weight).collect()
}

#[test]
fn weight_follows_the_formula_and_never_falls_below_ten() {
    let latency = |ms: u64| Some(Duration::from_millis(ms));
    assert_eq!(formula(100.0, None, None), 100.0);
    assert_eq!(formula(100.0, Some(0.5), latency(200)).round(), 45.0, "100 · 0.5 · 0.9");
    assert_eq!(formula(100.0, Some(1.0), None).round(), 30.0, "utilisation counts up to 0.7");
    assert_eq!(formula(100.0, Some(0.2), latency(5000)), 10.0, "the least");
    assert_eq!(formula(4.0, Some(0.2), latency(5000)), 4.0, "unless the document wants less");
}

#[test]
fn telemetry_moves_weights_only_where_the_document_says_so() {
    let busy = || view(0, "", 0, vec![sample(0, 50, None), sample(1, 0, None)]);
    assert_eq!(weights(&look(&mut TelemetryMemory::default(), &set("telemetry"), &busy())), [50, 100, 100]);
    assert_eq!(weights(&look(&mut TelemetryMemory::default(), &set("given"), &busy())), [100, 100, 100]);
}

#[test]
fn small_changes_are_not_told_and_stale_figures_move_nothing() {
    let (set, mut memory) = (set("telemetry"), TelemetryMemory::default());
    let at = |memory: &mut TelemetryMemory, active| weights(&look(memory, &set, &view(0, "", 0, vec![sample(0, active, None)])));
    assert_eq!(at(&mut memory, 50)[0], 50);
    assert_eq!(at(&mut memory, 54)[0], 50, "46 is within a tenth of 50");
    assert_eq!(at(&mut memory, 60)[0], 40);
    let stale = view(4000, "", 0, vec![sample(0, 60, None)]);
    assert_eq!(weights(&look(&mut memory, &set, &stale))[0], 100, "what nobody measures takes nothing away");
}

#[test]
fn an_endpoint_with_an_ejected_gpu_is_out_with_its_reason_and_comes_back_by_steps() {
    let (set, mut memory) = (set("given"), TelemetryMemory::default());
    let ejected = view(0, "", 0, vec![sample(0, 10, Some(79)), sample(1, 10, None)]);
    let states = look(&mut memory, &set, &ejected);
    assert_eq!(states[0].1, "GPU 0 GPU-0: XID 79");
    assert_eq!(states[1], (100, String::new()), "the other endpoint stays");
    let silent = view(60_000, "", 0, vec![sample(0, 10, Some(79))]);
    assert_eq!(look(&mut memory, &set, &silent)[0].1, "GPU 0 GPU-0: XID 79", "silence heals no device");
    let mut told = Vec::new();
    for ms in [60_100, 61_200, 65_200, 70_200, 71_000] {
        let healthy = view(ms, "", ms, vec![sample(0, 10, None), sample(1, 10, None)]);
        told.push(weights(&look(&mut memory, &set, &healthy))[0]);
    }
    assert_eq!(told, [10, 10, 50, 100, 100], "a tenth at first, everything after ten seconds");
}

#[test]
fn an_endpoint_that_is_out_is_not_told_at_all_where_requests_name_endpoints() {
    let ejected = view(0, "", 0, vec![sample(0, 10, Some(79)), sample(1, 10, None)]);
    let measured = Measured { devices: &ejected, latency: &|_| None, engine: &|_| None };
    let filter = FilterDelivery { wasm: "w".into(), control_cluster: "c".into(), control_authority: "a".into() };
    // Tier, endpoints, and how many of them are told to be out.
    let told = |follows: &str| {
        let tiers = POOL.replace("[GPU-1]", "[GPU-1], tier: 1").replace("gpu-node", "gpu-node, tier: 1").replace("WEIGHTS", "given");
        let text = tiers.replace("slowStartMs: 10000", &format!("followPicks: {follows}"));
        let set = GatewaySet::try_new(&documents::read(&text).unwrap()).unwrap();
        let states = TelemetryMemory::default().look(ejected.now(), &set, &measured);
        let groups = render(&set, &states, &filter).assignments[0].endpoints.clone();
        let unhealthy = |group: &LocalityLbEndpoints| group.lb_endpoints.iter().filter(|one| one.health_status != 0).count();
        groups.iter().map(|group| (group.priority, group.lb_endpoints.len(), unhealthy(group))).collect::<Vec<_>>()
    };
    assert_eq!(told("false"), [(0, 1, 1), (1, 2, 0)]);
    assert_eq!(told("true"), [(0, 0, 0), (1, 2, 0)], "Envoy would follow to it; its tier stays");
}

#[test]
fn a_lost_gpu_takes_out_the_endpoints_of_its_node() {
    let lost = LostDevice { index: 3, uuid: "GPU-3".into(), name: "".into(), lost: "gone".to_owned() };
    let devices = view(0, "gpu-node", 0, vec![DeviceReading::Lost(lost), sample(4, 10, None)]);
    let states = look(&mut TelemetryMemory::default(), &set("given"), &devices);
    assert_eq!(states[2].1, "GPU 3 GPU-3 is lost");
    assert_eq!((states[0].1.as_str(), states[1].1.as_str()), ("", ""));
}

#[test]
fn saturation_takes_weight_away_slowly_and_never_all() {
    let (set, mut memory) = (set("saturation"), TelemetryMemory::default());
    let reading = |waiting: u64, kv: f64| Some(Reading { waiting: Some(waiting), kv_use: Some(kv), ..Reading::default() });
    let at = |memory: &mut TelemetryMemory, ms: u64, reading: Option<Reading>| {
        weights(&look_at(memory, &set, &view(ms, "", ms, vec![sample(0, 90, None)]), reading))
    };
    assert_eq!(at(&mut memory, 0, reading(0, 0.4)), [50, 100, 100], "half of 0.8; a busy GPU is not a saturated engine");
    assert_eq!(at(&mut memory, 693, reading(4, 0.4))[0], 35, "halfway from 0.5 to 4 of 5");
    assert_eq!(at(&mut memory, 60_000, reading(500, 1.0))[0], 10, "the least");
    assert_eq!(at(&mut memory, 60_100, None)[0], 100, "an engine that nobody reads keeps its weight");
    assert_eq!(at(&mut memory, 60_200, Some(Reading::default()))[0], 100, "one that tells nothing, too");
}
