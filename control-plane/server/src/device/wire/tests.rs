//! What is sent is what arrives, in few bytes.

use std::path::Path;
use std::sync::Arc;

use headgate_core::time::Timestamp;
use headgate_protos::v1;
use prost::Message;

use super::figure::place_of;
use super::*;
use crate::device::tape::Tape;
use crate::device::{DeviceDetail, DeviceReading, DeviceState, LostDevice, SampleError, SourceState};

fn apply(state: &mut DeviceState, decoder: &mut Decoder, report: v1::DeviceReport) {
    let bytes = report.encode_to_vec();
    let readings = decoder.decode(v1::DeviceReport::decode(&bytes[..]).unwrap()).unwrap();
    state.take(Timestamp::ZERO, readings);
    state.details = decoder.details();
}

#[test]
fn the_figures_stand_in_the_order_of_their_numbers() {
    for (place, figure) in FIGURES.iter().enumerate() {
        assert_eq!(place_of(figure.id.into()), Some(place));
    }
    assert_eq!((place_of(0), place_of(-1), place_of(FIGURES.len() as i32 + 1)), (None, None, None));
}

#[test]
fn a_recorded_h200_arrives_as_it_was_and_a_sample_takes_few_bytes() {
    let tape = Tape::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/tapes/h200.jsonl")).unwrap();
    let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
    let (mut sent, mut arrived) = (DeviceState::starting("tape"), DeviceState::starting("tape"));
    let mut details = tape.details().iter().peekable();
    let mut sizes = Vec::new();
    for moment in tape.samples() {
        while let Some(detail) = details.next_if(|detail| detail.asked_at <= moment.asked_at) {
            sent.details = Arc::new(detail.answer.clone().unwrap());
        }
        sent.take(Timestamp::ZERO, moment.answer.clone().unwrap());
        let report = encoder.encode(&sent);
        sizes.push(report.encoded_len());
        apply(&mut arrived, &mut decoder, report);
        assert_eq!((&arrived.devices, &arrived.lost, arrived.epoch), (&sent.devices, &sent.lost, sent.epoch));
        assert_eq!(arrived.details.len(), 1);
        let without_processes = |detail: &DeviceDetail| DeviceDetail { processes: None, ..detail.clone() };
        if let Some(detail) = sent.details.first() {
            assert_eq!(without_processes(&arrived.details[0]), without_processes(detail));
            assert_eq!(arrived.details[0].processes, detail.processes);
        }
    }
    let mean = sizes.iter().sum::<usize>() / sizes.len();
    assert!(mean < 40, "{mean} bytes a sample of a device");
}

#[test]
fn a_device_that_is_lost_and_one_that_vanishes_arrive_so() {
    let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
    let (mut sent, mut arrived) = (DeviceState::starting("t"), DeviceState::starting("t"));
    let sample = |index: u32, used: u64| {
        DeviceReading::Sample(crate::device::DeviceSample {
            index,
            uuid: format!("GPU-{index}").into(),
            memory_used_bytes: used,
            ..Default::default()
        })
    };
    let lost = DeviceReading::Lost(LostDevice { index: 1, uuid: "GPU-1".into(), name: "".into(), lost: "fell off".to_owned() });
    for readings in [
        vec![sample(0, 5), sample(1, 7)],
        vec![sample(0, 4), lost.clone()],
        vec![sample(0, 4), lost],
        vec![sample(0, u64::MAX), sample(1, 8)],
        vec![sample(0, 1)],
    ] {
        sent.take(Timestamp::ZERO, readings);
        apply(&mut arrived, &mut decoder, encoder.encode(&sent));
        assert_eq!((&arrived.devices, &arrived.lost), (&sent.devices, &sent.lost));
    }
    sent.state = SourceState::Failing(SampleError::NoDevice);
    assert_eq!(encoder.encode(&sent).problem, "the driver lists no GPU");
}

#[test]
fn a_message_that_makes_no_sense_is_refused_with_its_field() {
    let refused = |change: v1::DeviceChange| {
        Decoder::default().decode(v1::DeviceReport { devices: vec![change], ..Default::default() }).unwrap_err().to_string()
    };
    let identity = Some(v1::DeviceIdentity::default());
    assert_eq!(refused(v1::DeviceChange { key: 7, ..Default::default() }), "devices: key 7 has no identity");
    let uneven = v1::DeviceChange { identity: identity.clone(), figures: vec![1, 2], changes: vec![5], ..Default::default() };
    assert_eq!(refused(uneven), "devices.changes: 1 for 2 figures");
    let long = v1::DeviceChange { identity: identity.clone(), lost: Some("x".repeat(600)), ..Default::default() };
    assert_eq!(refused(long), "devices.lost: 600 bytes is outside 0..=512");
    let crowd = v1::DeviceProcesses { processes: vec![v1::DeviceProcess::default(); 65], known: true };
    let crowded = v1::DeviceChange { identity: identity.clone(), processes: Some(crowd), ..Default::default() };
    assert_eq!(refused(crowded), "devices.processes: 65 is outside 0..=64");
    let devices = (0..=256).map(|key| v1::DeviceChange { key, identity: identity.clone(), ..Default::default() }).collect();
    let many = Decoder::default().decode(v1::DeviceReport { devices, ..Default::default() }).unwrap_err();
    assert_eq!(many, ReportError::TooMany);
    let future = v1::DeviceChange { identity, figures: vec![1, 9999], changes: vec![5, 5], ..Default::default() };
    assert!(Decoder::default().decode(v1::DeviceReport { devices: vec![future], ..Default::default() }).is_ok(), "a newer agent's figure");
}
