//! Records in shared data, which any plugin may write: whatever lies there, a lease never hands out more than there is, and the newest
//! holder reads what it wrote.

use std::time::Duration;

use headgate_core::discovery::{LimitsSnapshot, PolicySnapshot};
use headgate_core::leader::{self, LeaderLease, LeaderStep};
use headgate_core::lease::{Grant, LeaseRecord, Want};
use headgate_core::shared::{Revisions, SharedLimits, next_generation, refresh_lease};
use headgate_core::time::Timestamp;
use prost::Message;

use crate::input::{Input, fingerprint, push_frame};

/// Permits of the proxy.
const PERMITS: u32 = 40;

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut script: Vec<u8> = (0..6).flat_map(|owner| [0, owner, 20, 0, 30, 0, 1, 0]).collect();
    script.extend([1, 1, 100, 0]);
    script.extend((0..6).flat_map(|owner| [0, owner, 5, 0, 9, 0, 1, 0]));
    script.push(2);
    push_frame(&mut script, &LeaseRecord::new().encode());
    script.extend([3, 1, 1, 3, 2, 2]);
    vec![script]
}

pub(super) fn run(input: &[u8]) -> u64 {
    let mut input = Input::new(input);
    let mut now = Timestamp::from_millis(1000);
    let (mut lease, mut lead) = (Vec::new(), Vec::new());
    let mut seen = Vec::new();
    for _ in 0..256 {
        if input.is_empty() {
            break;
        }
        let step = input.choice(5);
        seen.push(match step {
            0 => refresh(&mut input, now, &mut lease),
            1 => {
                now = now + Duration::from_millis(input.number().min(1 << 40));
                0
            }
            2 => damage(&mut input, &mut lease),
            3 => lead_step(&mut input, now, &mut lead),
            _ => decode_all(input.frame()),
        });
        seen.push(step as u8);
    }
    fingerprint([seen])
}

fn refresh(input: &mut Input<'_>, now: Timestamp, lease: &mut Vec<u8>) -> u8 {
    let owner = u64::from(input.byte());
    let (permits_in_use, permits_wanted) = (u32::from(input.short()), u32::from(input.short()));
    let want = Want { permits_in_use, permits_wanted, rate_wanted: input.number() as f64 };
    let before = LeaseRecord::decode(lease);
    let Some((bytes, (_, holding))) = refresh_lease(lease, now, owner, want, Grant { permits_total: Some(PERMITS) }) else { return 1 };
    let record = LeaseRecord::decode(&bytes).expect("what was written can be read");
    // Who came with more than there is keeps it until it falls: only what is handed out anew is bounded.
    let held_before = before.map_or(0, |record| record.permits_held());
    let held = record.permits_held();
    assert!(
        held <= u64::from(PERMITS) || held <= held_before.max(u64::from(permits_in_use) + held_before),
        "{held} permits are held of {PERMITS}, {held_before} before"
    );
    assert!(holding.rate_share.is_finite() && (0.0..=1.0).contains(&holding.rate_share), "share {}", holding.rate_share);
    *lease = bytes;
    2 + u8::from(holding.permits == Some(0))
}

fn damage(input: &mut Input<'_>, lease: &mut Vec<u8>) -> u8 {
    if input.byte().is_multiple_of(2) {
        *lease = input.frame().to_vec();
    } else if let Some(byte) = (!lease.is_empty()).then(|| usize::from(input.byte()) % lease.len()).and_then(|at| lease.get_mut(at)) {
        *byte ^= input.byte();
    }
    u8::from(LeaseRecord::decode(lease).is_some())
}

fn lead_step(input: &mut Input<'_>, now: Timestamp, lead: &mut Vec<u8>) -> u8 {
    let (me, generation) = (u64::from(input.byte()), u64::from(input.byte() % 4));
    match leader::step(now, me, generation, LeaderLease::decode(lead).as_ref()) {
        LeaderStep::Hold(lease) | LeaderStep::TakeOver(lease) => {
            assert_eq!(lease.owner, me);
            *lead = lease.encode();
            assert_eq!(LeaderLease::decode(lead).map(|lease| (lease.owner, lease.generation)), Some((me, generation)));
            1
        }
        LeaderStep::Follow => 2,
    }
}

fn decode_all(bytes: &[u8]) -> u8 {
    let _ = Revisions::decode(&Revisions::raise(bytes, true, false));
    let (next, generation) = next_generation(bytes, b"configuration", 7);
    assert_eq!(next_generation(&next, b"configuration", 8).1, generation, "the same configuration keeps its number");
    u8::from(PolicySnapshot::decode(bytes).is_some())
        + 2 * u8::from(LimitsSnapshot::decode(bytes).is_some())
        + 4 * u8::from(SharedLimits::decode(bytes).is_ok())
        + 8 * u8::from(LeaseRecord::decode(bytes).is_some())
}
