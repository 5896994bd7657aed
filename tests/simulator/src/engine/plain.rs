//! A server that is no LLM engine: so many requests at once, each for a time of service, the others in a queue.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use headgate_core::time::Timestamp;

use super::{EngineCounters, Output, seconds};
use crate::controller::RequestId;
use crate::rng::Rng;

/// Shape and speed of a plain server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlainConfig {
    /// Requests in service at once.
    pub concurrency: u32,
    /// Most requests that wait; one more is refused.
    pub max_queue: u32,
    /// Median time of service.
    pub service: Duration,
    /// Standard deviation of its logarithm; 0: always the same.
    pub sigma: f64,
    /// What a prompt token adds, in seconds.
    pub per_token_s: f64,
}

impl Default for PlainConfig {
    /// An image classifier or embedder behind a batching server: 32 at once, 20 ms each.
    fn default() -> Self {
        Self { concurrency: 32, max_queue: u32::MAX, service: Duration::from_millis(20), sigma: 0.3, per_token_s: 0.0 }
    }
}

#[derive(Clone, Copy, Debug)]
struct Job {
    id: RequestId,
    tokens: u32,
    submitted_at: Timestamp,
    served_at: Option<Timestamp>,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Queue,
    Service { number: u64 },
    Left,
    Free,
}

/// The server.
#[derive(Clone, Debug)]
pub(super) struct Plain {
    config: PlainConfig,
    rng: Rng,
    jobs: Vec<Job>,
    free: Vec<u32>,
    queue: VecDeque<u32>,
    queued: u32,
    /// End of service, number of the service, slot. A service whose number is not the job's any more is void.
    ends: BinaryHeap<Reverse<(Timestamp, u64, u32)>>,
    running: u32,
    counters: EngineCounters,
}

impl Plain {
    pub(super) fn new(config: PlainConfig, rng: Rng) -> Self {
        Self {
            config: PlainConfig { concurrency: config.concurrency.max(1), ..config },
            rng,
            jobs: Vec::new(),
            free: Vec::new(),
            queue: VecDeque::new(),
            queued: 0,
            ends: BinaryHeap::new(),
            running: 0,
            counters: EngineCounters::default(),
        }
    }

    pub(super) fn config(&self) -> &PlainConfig {
        &self.config
    }

    pub(super) fn running(&self) -> u32 {
        self.running
    }

    pub(super) fn waiting(&self) -> u32 {
        self.queued
    }

    pub(super) fn queueing(&self, slot: u32) -> Option<Duration> {
        let job = self.jobs.get(slot as usize)?;
        job.served_at.map(|at| at.since(job.submitted_at))
    }

    pub(super) fn counters(&self) -> &EngineCounters {
        &self.counters
    }

    pub(super) fn submit(&mut self, now: Timestamp, id: RequestId, tokens: u32, factor: f64) -> Option<u32> {
        if self.running >= self.config.concurrency && self.queued >= self.config.max_queue {
            self.counters.refused += 1;
            return None;
        }
        let job = Job { id, tokens, submitted_at: now, served_at: None, place: Place::Queue };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.jobs[slot as usize] = job;
                slot
            }
            None => {
                self.jobs.push(job);
                (self.jobs.len() - 1) as u32
            }
        };
        self.counters.accepted += 1;
        self.queue.push_back(slot);
        self.queued += 1;
        self.serve(now, factor);
        Some(slot)
    }

    pub(super) fn abort(&mut self, now: Timestamp, slot: u32, factor: f64) -> u32 {
        match self.jobs[slot as usize].place {
            Place::Queue => {
                self.jobs[slot as usize].place = Place::Left;
                self.queued -= 1;
            }
            Place::Service { .. } => {
                self.running -= 1;
                self.release(slot);
                self.serve(now, factor);
            }
            Place::Left | Place::Free => {}
        }
        0
    }

    pub(super) fn next_at(&mut self) -> Option<Timestamp> {
        while let Some(&Reverse((at, number, slot))) = self.ends.peek() {
            if self.jobs[slot as usize].place == (Place::Service { number }) {
                return Some(at);
            }
            self.ends.pop();
        }
        None
    }

    pub(super) fn advance(&mut self, now: Timestamp, factor: f64, outputs: &mut Vec<Output>) {
        while self.next_at().is_some_and(|at| at <= now) {
            let Some(Reverse((_, _, slot))) = self.ends.pop() else { return };
            let id = self.jobs[slot as usize].id;
            outputs.extend([Output::FirstToken(id), Output::Done(id)]);
            self.running -= 1;
            self.counters.finished += 1;
            self.counters.output_tokens += 1;
            self.release(slot);
            self.serve(now, factor);
        }
    }

    pub(super) fn clear(&mut self) {
        let (rng, counters) = (self.rng.clone(), self.counters);
        *self = Self { counters, ..Self::new(self.config, rng) };
    }

    fn serve(&mut self, now: Timestamp, factor: f64) {
        while self.running < self.config.concurrency {
            let Some(slot) = self.queue.pop_front() else { return };
            let job = &mut self.jobs[slot as usize];
            if job.place == Place::Left {
                self.release(slot);
                continue;
            }
            self.queued -= 1;
            self.running += 1;
            self.counters.steps += 1;
            let number = self.counters.steps;
            job.served_at = Some(now);
            job.place = Place::Service { number };
            let median = self.config.service.as_secs_f64() + self.config.per_token_s * f64::from(job.tokens);
            let took = if self.config.sigma > 0.0 { self.rng.log_normal(median, self.config.sigma) } else { median };
            self.ends.push(Reverse((now + seconds(factor * took), number, slot)));
        }
    }

    fn release(&mut self, slot: u32) {
        self.jobs[slot as usize].place = Place::Free;
        self.free.push(slot);
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let in_service = self.jobs.iter().filter(|job| matches!(job.place, Place::Service { .. })).count();
        if in_service == self.running as usize { Ok(()) } else { Err(format!("{in_service} in service, counted {}", self.running)) }
    }
}
