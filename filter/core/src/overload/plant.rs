//! A small model of engines and a proxy's queue, to tune and test the controller against.
//!
//! Engines: continuous batching with chunked prefill, a KV cache, preemption of the youngest. One queue by class, then deadline. Reports,
//! readings and limits are each one control tick old when they are used. The simulator has the faithful model; this one is for unit tests.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Budgets, CutOff, EngineSample, Flow, Level, OverloadController, OverloadSignals, OverloadState, Work};
use crate::policy::{ClassId, Policy, fixture};
use crate::rng::Rng;
use crate::time::Timestamp;

pub(super) const STEP_MS: u64 = 5;
pub(super) const CONTROL_MS: u64 = 100;

/// Shape of the plant. The engine is that of a 32B-class model on one H100.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) engines: usize,
    pub(super) kv_tokens: f64,
    pub(super) max_sequences: usize,
    pub(super) prompt_tokens: f64,
    pub(super) output_tokens: f64,
    /// 0: every output has the mean length; 1: exponential.
    pub(super) spread: f64,
    pub(super) seen: Seen,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Seen {
    Metrics,
    Nothing,
}

impl Shape {
    pub(super) const DEFAULT: Self = Self {
        engines: 4,
        kv_tokens: 152_000.0,
        max_sequences: 256,
        prompt_tokens: 512.0,
        output_tokens: 256.0,
        spread: 1.0,
        seen: Seen::Metrics,
    };
}

#[derive(Clone, Copy, Debug)]
struct Request {
    class: usize,
    sent_ms: u64,
    admitted_ms: u64,
    first_ms: u64,
    prompt: f64,
    output: f64,
    reserved_output: f64,
    done: f64,
    made: f64,
}

#[derive(Clone, Debug, Default)]
struct Engine {
    waiting: VecDeque<Request>,
    running: Vec<Request>,
    ends_at_ms: f64,
}

/// One row of the trace, a control tick.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Row {
    pub(super) at_ms: u64,
    pub(super) kv_use: f64,
    pub(super) queued: usize,
    pub(super) good_work: f64,
    pub(super) finished_work: f64,
    pub(super) cut: f64,
}

pub(super) struct Plant {
    shape: Shape,
    rng: Rng,
    now_ms: u64,
    engines: Vec<Engine>,
    queue: BTreeMap<(usize, u64, u64), Request>,
    flow: Flow,
    late_flow: Flow,
    late_sample: Option<EngineSample>,
    epoch: u64,
    preemptions: u64,
    output_tokens: u64,
    pub(super) controller: OverloadController,
    in_force: OverloadState,
    ids: u64,
    good_work: f64,
    finished_work: f64,
    pub(super) offered: [u64; 3],
    pub(super) good: [u64; 3],
    /// Cut off, expired in the queue, late first token, slow tokens; by class.
    pub(super) lost: [[u64; 3]; 4],
    pub(super) rows: Vec<Row>,
    ttft_slo_ms: u64,
    tpot_slo_ms: f64,
}

impl Plant {
    pub(super) fn new(seed: u64, shape: Shape, policy: &Policy) -> Self {
        let controller = OverloadController::new(Timestamp::ZERO, policy);
        let overload = policy.overload().expect("the fixture switches it on");
        Self {
            shape,
            rng: Rng::new(seed),
            now_ms: 0,
            engines: vec![Engine::default(); shape.engines],
            queue: BTreeMap::new(),
            flow: Flow::default(),
            late_flow: Flow::default(),
            late_sample: None,
            epoch: 0,
            preemptions: 0,
            output_tokens: 0,
            in_force: controller.state().clone(),
            controller,
            ids: 0,
            good_work: 0.0,
            finished_work: 0.0,
            offered: [0; 3],
            good: [0; 3],
            lost: [[0; 3]; 4],
            rows: Vec::new(),
            ttft_slo_ms: overload.ttft_slo.as_millis() as u64,
            tpot_slo_ms: overload.tpot_slo.as_secs_f64() * 1000.0,
        }
    }

    pub(super) fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Runs for a time at an offered rate.
    pub(super) fn run(&mut self, millis: u64, rate_rps: f64) {
        let mut next = self.now_ms as f64 + self.gap_ms(rate_rps);
        for _ in 0..millis / STEP_MS {
            self.now_ms += STEP_MS;
            while next <= self.now_ms as f64 {
                next += self.gap_ms(rate_rps);
                self.arrive();
            }
            self.advance_engines();
            self.serve_queue();
            if self.now_ms.is_multiple_of(CONTROL_MS) {
                self.control();
            }
        }
    }

    fn gap_ms(&mut self, rate_rps: f64) -> f64 {
        -libm::log(1.0 - self.rng.next_f64()) * 1000.0 / rate_rps
    }

    fn length(&mut self, mean: f64) -> f64 {
        let random = -libm::log(1.0 - self.rng.next_f64()) * mean;
        (self.shape.spread * random + (1.0 - self.shape.spread) * mean).clamp(8.0, 20.0 * mean)
    }

    fn arrive(&mut self) {
        let u = self.rng.next_f64();
        // A tenth is critical, a third standard, the rest batch.
        let class = if u < 0.1 {
            0
        } else if u < 0.4 {
            1
        } else {
            2
        };
        let (prompt, output) = (self.length(self.shape.prompt_tokens), self.length(self.shape.output_tokens));
        let learned = self.in_force.output_tokens;
        let reserved_output = if learned > 0.0 { learned } else { 256.0 };
        let request =
            Request { class, sent_ms: self.now_ms, admitted_ms: 0, first_ms: 0, prompt, output, reserved_output, done: 0.0, made: 0.0 };
        let level = Level::new(ClassId::new(class), (self.rng.next_u64() % 128) as u8);
        self.offered[class] += 1;
        self.flow.offered_requests += 1;
        self.flow.offered.record(level, work(&request) as u64);
        let cut: CutOff = self.in_force.cut_off;
        if cut.admits(level, self.rng.next_f64()) {
            self.ids += 1;
            self.queue.insert((class, self.now_ms + self.ttft_slo_ms, self.ids), request);
        } else {
            self.lost[0][class] += 1;
        }
    }

    fn serve_queue(&mut self) {
        let expected_ms = self.in_force.expected_ttft.as_millis() as u64;
        let now_ms = self.now_ms;
        let lost = &mut self.lost[1];
        self.queue.retain(|(class, deadline, _), _| {
            let in_time = now_ms + expected_ms <= *deadline;
            lost[*class] += u64::from(!in_time);
            in_time
        });
        while let Some((key, request)) = self.queue.first_key_value() {
            let (key, mut request) = (*key, *request);
            let more = reserved(&request);
            let budgets: Budgets = self.in_force.budgets;
            // As in the worker: a kind of which nothing is in flight has room for any one request.
            let prefill_free = self.flow.in_flight.prefill_tokens == 0;
            let budgets = if prefill_free { Budgets { prefill_tokens: None, ..budgets } } else { budgets };
            if !self.flow.in_flight.plus(more).fits(&budgets) && self.flow.in_flight != Work::NONE {
                break;
            }
            self.queue.remove(&key);
            request.admitted_ms = now_ms;
            self.flow.in_flight = self.flow.in_flight.plus(more);
            self.flow.admitted = self.flow.admitted.plus(more);
            self.flow.queue_wait_us.record((now_ms - request.sent_ms) * 1000);
            let engine = self.engines.iter_mut().min_by_key(|engine| engine.waiting.len() + engine.running.len());
            engine.expect("there are engines").waiting.push_back(request);
        }
        self.flow.queued_requests = self.queue.len() as u64;
        self.flow.queued_work = self.queue.values().map(work).sum::<f64>() as u64;
        let oldest = self.queue.values().map(|request| now_ms - request.sent_ms).max().unwrap_or(0);
        self.flow.oldest_wait = Duration::from_millis(oldest);
    }

    fn advance_engines(&mut self) {
        for index in 0..self.engines.len() {
            while self.engines[index].ends_at_ms <= self.now_ms as f64 {
                let mut engine = core::mem::take(&mut self.engines[index]);
                self.engine_step(&mut engine);
                self.engines[index] = engine;
            }
        }
    }

    fn engine_step(&mut self, engine: &mut Engine) {
        let kv = |engine: &Engine| engine.running.iter().map(|r| r.done + r.made).sum::<f64>();
        while kv(engine) + engine.running.len() as f64 > self.shape.kv_tokens {
            let Some(mut youngest) = engine.running.pop() else { break };
            self.preemptions += 1;
            youngest.done = 0.0;
            engine.waiting.push_front(youngest);
        }
        let mut chunk = 2048.0_f64;
        while let Some(next) = engine.waiting.front() {
            let queued: f64 = engine.running.iter().map(|r| r.prompt - r.done).sum();
            let fits = kv(engine) + queued + next.prompt + next.made <= self.shape.kv_tokens;
            if engine.running.len() >= self.shape.max_sequences || queued >= chunk || !fits {
                break;
            }
            engine.running.extend(engine.waiting.pop_front());
        }
        let (mut prefilled, mut decoded) = (0.0, 0.0);
        for request in &mut engine.running {
            let missing = request.prompt - request.done;
            if missing > 0.0 {
                let part = missing.min(chunk);
                chunk -= part;
                prefilled += part;
                request.done += part;
            } else {
                decoded += 1.0;
            }
        }
        let took_ms = 12.0 + 0.020 * decoded + 0.091 * prefilled + 78e-6 * kv(engine);
        engine.ends_at_ms = engine.ends_at_ms.max(self.now_ms as f64 - STEP_MS as f64) + took_ms;
        let ends_ms = engine.ends_at_ms as u64;
        let mut index = 0;
        while index < engine.running.len() {
            let request = &mut engine.running[index];
            if request.done >= request.prompt {
                request.made += 1.0;
                self.output_tokens += 1;
                if request.first_ms == 0 {
                    request.first_ms = ends_ms.max(1);
                    first_token(&mut self.flow, request);
                }
                if request.made >= request.output {
                    let done = engine.running.remove(index);
                    self.end(done, ends_ms);
                    continue;
                }
            }
            index += 1;
        }
    }

    fn end(&mut self, request: Request, ends_ms: u64) {
        let all = reserved(&request);
        let rest = Work { prefill_tokens: 0, ..all };
        self.flow.in_flight = self.flow.in_flight.minus(rest);
        self.flow.finished = self.flow.finished.plus(rest);
        self.flow.output_tokens += request.made as u64;
        self.flow.responses += 1;
        let tpot_ms = (ends_ms - request.first_ms) as f64 / (request.made - 1.0).max(1.0);
        self.flow.tpot_us.record((tpot_ms * 1000.0) as u64);
        let true_work = request.prompt + 2.0 * request.made;
        self.finished_work += true_work;
        if request.first_ms - request.sent_ms <= self.ttft_slo_ms && tpot_ms <= self.tpot_slo_ms {
            self.good_work += true_work;
            self.good[request.class] += 1;
        } else if request.first_ms - request.sent_ms > self.ttft_slo_ms {
            self.lost[2][request.class] += 1;
        } else {
            self.lost[3][request.class] += 1;
        }
    }

    fn control(&mut self) {
        let now = Timestamp::from_millis(self.now_ms);
        self.in_force = self.controller.state().clone();
        let flow = core::mem::replace(&mut self.late_flow, self.flow.clone());
        let sample = self.late_sample.take();
        self.epoch += 1;
        let kv = |engine: &Engine| engine.running.iter().map(|r| r.done + r.made).sum::<f64>();
        let used: f64 = self.engines.iter().map(kv).sum();
        let total = self.shape.kv_tokens * self.shape.engines as f64;
        let fullest = self.engines.iter().map(kv).fold(0.0, f64::max) / self.shape.kv_tokens;
        let running: usize = self.engines.iter().map(|engine| engine.running.len()).sum();
        let waiting: usize = self.engines.iter().map(|engine| engine.waiting.len()).sum();
        self.late_sample = (self.shape.seen == Seen::Metrics).then_some(EngineSample {
            at: now,
            epoch: self.epoch,
            kv_used_tokens: used as u64,
            kv_total_tokens: total as u64,
            kv_fullest: fullest,
            running: running as u64,
            waiting: waiting as u64,
            preemptions: self.preemptions,
            output_tokens: self.output_tokens,
            engines: self.shape.engines as u32,
            slowest: 1.0,
            tpot_p95: None,
        });
        let signals = OverloadSignals { series: 1, flow: &flow, engine: sample, level_pressure: 0.0 };
        self.controller.step(now, &signals);
        let cut = self.in_force.cut_off;
        self.rows.push(Row {
            at_ms: self.now_ms,
            kv_use: used / total,
            queued: self.queue.len(),
            good_work: core::mem::take(&mut self.good_work) * 1000.0 / CONTROL_MS as f64,
            finished_work: core::mem::take(&mut self.finished_work) * 1000.0 / CONTROL_MS as f64,
            cut: f64::from(cut.level) + cut.fraction,
        });
    }
}

fn work(request: &Request) -> f64 {
    request.prompt + 2.0 * request.reserved_output
}

fn reserved(request: &Request) -> Work {
    let prompt = request.prompt as u64;
    Work { prefill_tokens: prompt, kv_tokens: prompt + request.reserved_output as u64, streams: 1 }
}

fn first_token(flow: &mut Flow, request: &Request) {
    let prefill = Work { prefill_tokens: request.prompt as u64, ..Work::NONE };
    flow.in_flight = flow.in_flight.minus(prefill);
    flow.finished = flow.finished.plus(prefill);
    let service_us = request.first_ms.saturating_sub(request.admitted_ms) * 1000;
    flow.service_ttft_us.record(service_us);
    flow.ttft_fit.observe(request.prompt, service_us as f64);
}

/// Three classes, a queue and the default objectives.
pub(super) fn policy() -> alloc::sync::Arc<Policy> {
    use headgate_protos::v1;
    fixture::policy(|spec| {
        spec.overload = Some(v1::Overload { queue: Some(v1::AdmissionQueue::default()), ..Default::default() });
    })
}
