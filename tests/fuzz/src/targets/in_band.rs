//! What responses say of the engine, in their headers and in the ends of their bodies: any bytes are read or passed over, what comes of them
//! is in its range, and the control plane takes it.

use std::sync::Arc;

use headgate::document::CheckedPolicy;
use headgate::engine::EngineBoard;
use headgate_core::in_band::{EngineLoad, LoadHeader, LoadSeen, TAIL_BYTES};
use headgate_core::policy::Policy;
use headgate_core::request::{HeaderView, RequestInfo, VerifiedIdentity};
use headgate_core::stream::{Event, Stream, StreamEnd};
use headgate_core::time::Timestamp;
use headgate_core::worker::Worker;
use headgate_protos::v1;

use crate::input::{Input, fingerprint, push_frame};

pub(super) const WORDS: &[&str] = &[
    "TEXT ",
    "JSON ",
    "BIN ",
    "named_metrics.",
    "kv_cache_usage_perc",
    "kv_cache_utilization",
    "num_requests_waiting",
    "num_requests_running",
    "max_token_capacity",
    "\"completion_tokens\":",
    "\"output_tokens\":",
    "\"prompt_tokens\":",
    "\n\n",
    "NaN",
    "1e308",
    "-1",
];

/// Binary: `{kv_cache_usage_perc: 0.25, num_requests_waiting: 3}`.
const BINARY: &str = "Qh4KE2t2X2NhY2hlX3VzYWdlX3BlcmMRAAAAAAAA0D9CHwoUbnVtX3JlcXVlc3RzX3dhaXRpbmcRAAAAAAAACEA=";
const POLICY: &str = "apiVersion: headgate.dev/v1\nkind: AdmissionPolicy\nmetadata: {name: demo}\nspec:\n  pool: llm\n  orca: true\n  overload: {}\n  \
                      classes: [{name: low, whenTripped: refuse}]\n";
const MAX_STEPS: usize = 256;

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let text = "TEXT named_metrics.kv_cache_usage_perc=0.25,named_metrics.num_requests_waiting=3,named_metrics.max_token_capacity=9";
    let json = r#"JSON {"named_metrics": {"kv_cache_usage_perc": 0.25, "num_requests_running": 3.0}}"#;
    let openai = "data: {\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":16}}\n\n";
    let anthropic = "data: {\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}\n\n";
    let script = |steps: &[(u8, &str)]| {
        let mut script = Vec::new();
        for (step, frame) in steps {
            script.push(*step);
            push_frame(&mut script, frame.as_bytes());
        }
        script
    };
    vec![
        script(&[(0, text), (3, openai), (3, "data: [DONE]\n\n"), (5, ""), (1, BINARY), (3, anthropic), (5, "")]),
        script(&[(0, json), (0, &format!("BIN {BINARY}")), (4, ""), (3, openai), (5, "")]),
    ]
}

pub(super) fn run(input: &[u8]) -> u64 {
    let mut scene = Scene::new();
    let (mut input, mut seen) = (Input::new(input), Vec::new());
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let step = input.byte() % 6;
        seen.push([step, scene.step(step, input.frame())]);
    }
    scene.check();
    fingerprint(seen)
}

struct Scene {
    worker: Worker,
    stream: Stream,
    now: Timestamp,
}

impl Scene {
    fn new() -> Self {
        let document = CheckedPolicy::from_document(POLICY).expect("the document is valid");
        let policy = Policy::try_from_wire(document.wire()).expect("the document is valid");
        let mut worker = Worker::new(7);
        worker.set_policies(Timestamp::ZERO, vec![Arc::new(policy)]);
        let mut scene = Self { worker, stream: Stream::new(), now: Timestamp::from_millis(1) };
        scene.begin();
        scene
    }

    fn begin(&mut self) {
        let pairs: [(&[u8], &[u8]); 2] = [(b":path", b"/v1/chat/completions"), (b"content-length", b"100")];
        let info = RequestInfo::new(HeaderView::from_pairs(&pairs), VerifiedIdentity::default());
        self.stream = Stream::new();
        self.stream.handle(&mut self.worker, self.now, Event::RequestHeaders(&info));
    }

    /// Does one step and says in short what came of it.
    fn step(&mut self, step: u8, frame: &[u8]) -> u8 {
        match step {
            0 | 1 => {
                let header = LoadHeader::ALL[usize::from(step)];
                self.stream.note_load(&mut self.worker, self.now, LoadSeen::AtFirstByte, b"10.0.0.1:80", (header, frame));
                EngineLoad::read(header, frame).map_or(0, |load| {
                    let told = [load.kv_use.is_some(), load.waiting.is_some(), load.running.is_some(), load.kv_total_tokens.is_some()];
                    told.iter().fold(1, |bits, is_told| bits << 1 | u8::from(*is_told))
                })
            }
            2 => {
                self.now = self.now + std::time::Duration::from_millis(1 + frame.len() as u64);
                0
            }
            3 | 4 => {
                let event = Event::ResponseBody { len: frame.len(), end_of_stream: false };
                self.stream.handle(&mut self.worker, self.now, event);
                let looks = self.stream.looks_at_pieces();
                if looks {
                    self.stream.note_tail(&frame[frame.len().saturating_sub(TAIL_BYTES)..]);
                }
                u8::from(looks)
            }
            _ => {
                self.stream.handle(&mut self.worker, self.now, Event::ResponseHeaders { status: 200, failed_dependency: None });
                self.stream.handle(&mut self.worker, self.now, Event::Log { endpoint: None, end: StreamEnd::Complete });
                self.begin();
                self.check()
            }
        }
    }

    /// What is reported is in its range; the control plane takes it.
    fn check(&mut self) -> u8 {
        let worker = self.worker.report(self.now, 0);
        let loads = &worker.pools[0].endpoint_loads;
        assert!(loads.len() <= 1, "there is one endpoint");
        for load in loads {
            assert!(load.kv_cache_use.is_none_or(|part| (0.0..=1.0).contains(&part)), "{load:?}");
            assert!(load.made_after_ns <= self.now.as_nanos(), "{load:?}");
        }
        let output = worker.pools[0].overload.as_ref().map_or(0, |overload| overload.output_tokens);
        let report = v1::LoadReport { workers: vec![worker], ..v1::LoadReport::default() };
        let board = EngineBoard::default();
        board.keep_in_band(["llm"].into_iter());
        board.take_report(self.now, &report);
        let told = u8::from(!board.in_band("llm").is_empty());
        told << 1 | u8::from(output > 0)
    }
}
