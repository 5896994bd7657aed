//! The clairvoyant scheduler: what could be had if everything were known and nothing took time to learn.
//!
//! One central queue by class, then deadline. It knows every request's output length and sees the engines without delay, chooses the
//! engine itself, and admits a request to an engine exactly when
//! - the KV cache will hold every sequence to its end: the peak of future use, with the new one, stays within the blocks;
//! - the batch has a place;
//! - prompts take no more of the steps than keeps the mean time between tokens within the objective;
//! - its first token will come in time.
//!
//! What can no longer meet its deadline is dropped. It is no algorithm that anyone could run; it is the measure of the others.

use std::collections::BTreeMap;
use std::time::Duration;

use headgate_core::time::Timestamp;

use crate::baselines::per_request::PerRequest;
use crate::controller::{Arrival, Controller, Ctx, Ending, Gauges, RequestId, Verdict};

mod forecast;

use self::forecast::Forecast;

/// Time between two looks at what has expired.
const TICK: Duration = Duration::from_millis(10);
/// Requests behind the head that may go before it into room that it does not fit in.
const BACKFILL: usize = 24;
/// What is kept free of the way to a deadline: a step may begin just before a request arrives.
const DEADLINE_MARGIN: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug)]
struct Wanted {
    id: RequestId,
    prompt_tokens: u32,
    output_tokens: u32,
}

/// Order of service: class, deadline, arrival.
type Rank = (u8, Timestamp, u64);

/// The scheduler.
#[derive(Debug, Default)]
pub struct Oracle {
    queue: BTreeMap<Rank, Wanted>,
    waiting: PerRequest<Rank>,
    serving: PerRequest<usize>,
    engines: Vec<Forecast>,
    arrivals: u64,
}

// === impl Oracle ===

impl Oracle {
    /// Fills the engines as far as they go; only that one if something happened there alone.
    fn dispatch(&mut self, ctx: &mut Ctx<'_>, only: Option<usize>) {
        if self.queue.is_empty() {
            return;
        }
        let now = ctx.now();
        let mut room: Vec<usize> =
            (0..self.engines.len()).filter(|engine| only.is_none_or(|only| only == *engine) && ctx.engines()[*engine].is_alive()).collect();
        for engine in &room {
            self.engines[*engine].refresh(now, &ctx.engines()[*engine]);
        }
        let mut passed_over = 0;
        let mut from = (0, Timestamp::ZERO, 0);
        while !room.is_empty() && passed_over < BACKFILL {
            let Some((rank, wanted)) = self.queue.range(from..).next().map(|(rank, wanted)| (*rank, *wanted)) else { return };
            from = (rank.0, rank.1, rank.2 + 1);
            room.retain(|engine| self.engines[*engine].has_place());
            // The emptiest engine first: it will have the shortest steps.
            room.sort_by(|a, b| self.engines[*a].load().total_cmp(&self.engines[*b].load()));
            // Those that are too late behind what the engines have before them would only stand in the way of the others of their class.
            let soonest = room.iter().map(|engine| self.engines[*engine].soonest(now)).min();
            if let Some(soonest) = soonest.filter(|soonest| rank.1 < *soonest && !self.is_lost(now, rank.1, wanted.prompt_tokens)) {
                from = (rank.0, soonest, 0);
                continue;
            }
            let fits = |engine: &usize| self.engines[*engine].fits(now, rank.1, wanted.prompt_tokens, wanted.output_tokens);
            match room.iter().copied().find(fits) {
                Some(engine) => self.start(ctx, rank, wanted, engine),
                None if self.is_lost(now, rank.1, wanted.prompt_tokens) => self.drop(ctx, rank, wanted.id),
                None => passed_over += 1,
            }
        }
    }

    fn start(&mut self, ctx: &mut Ctx<'_>, rank: Rank, wanted: Wanted, engine: usize) {
        self.queue.remove(&rank);
        self.waiting.take(wanted.id);
        self.serving.insert(wanted.id, engine);
        self.engines[engine].admit(wanted.id, wanted.prompt_tokens, wanted.output_tokens);
        ctx.release_to(wanted.id, engine as u16);
    }

    /// Whether no engine could answer in time any more, even if it began now.
    fn is_lost(&self, now: Timestamp, deadline: Timestamp, prompt_tokens: u32) -> bool {
        self.engines.iter().all(|engine| !engine.is_in_time(now, deadline, prompt_tokens))
    }

    fn drop(&mut self, ctx: &mut Ctx<'_>, rank: Rank, id: RequestId) {
        self.queue.remove(&rank);
        self.waiting.take(id);
        ctx.refuse(id, None);
    }

    /// Drops what has passed its deadline.
    fn drop_expired(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now();
        for class in 0..ctx.setup().classes.len() as u8 {
            while let Some((rank, wanted)) = self.queue.range((class, Timestamp::ZERO, 0)..).next().map(|(rank, wanted)| (*rank, *wanted))
                && rank.0 == class
                && rank.1 <= now
            {
                self.drop(ctx, rank, wanted.id);
            }
        }
    }
}

impl Controller for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn on_start(&mut self, ctx: &mut Ctx<'_>) {
        let tpot = ctx.setup().classes.iter().map(|class| class.tpot).min().unwrap_or(Duration::MAX);
        self.engines = ctx.engines().iter().map(|_| Forecast::new(tpot)).collect();
        ctx.schedule(TICK, 0);
    }

    fn on_arrival(&mut self, ctx: &mut Ctx<'_>, arrival: &Arrival) -> Verdict {
        let ttft = ctx.setup().classes[usize::from(arrival.class)].ttft;
        let rank = (arrival.class, arrival.deadline.min(ctx.now() + ttft), self.arrivals);
        self.arrivals += 1;
        let wanted = Wanted { id: arrival.id, prompt_tokens: arrival.prompt_tokens, output_tokens: arrival.secret_output_tokens };
        self.queue.insert(rank, wanted);
        self.waiting.insert(arrival.id, rank);
        // When others of its class wait already, so must it, until an engine has room again.
        if self.queue.len() <= BACKFILL || self.queue.range((arrival.class, Timestamp::ZERO, 0)..rank).next().is_none() {
            self.dispatch(ctx, None);
        }
        Verdict::Wait
    }

    fn on_first_token(&mut self, ctx: &mut Ctx<'_>, id: RequestId) {
        if let Some(engine) = self.serving.get(id).copied() {
            self.engines[engine].on_first_token(id);
            self.dispatch(ctx, Some(engine));
        }
    }

    fn on_end(&mut self, ctx: &mut Ctx<'_>, id: RequestId, _ending: Ending, _output_tokens: u32) {
        if let Some(engine) = self.serving.take(id) {
            self.engines[engine].on_end(id);
            self.dispatch(ctx, Some(engine));
        }
    }

    fn on_abandoned(&mut self, _ctx: &mut Ctx<'_>, id: RequestId) {
        if let Some(rank) = self.waiting.take(id) {
            self.queue.remove(&rank);
        }
    }

    fn on_timer(&mut self, ctx: &mut Ctx<'_>, token: u64) {
        self.drop_expired(ctx);
        self.dispatch(ctx, None);
        ctx.schedule(TICK, token);
    }

    fn gauges(&self, out: &mut Gauges) {
        out.kv_target = Some(forecast::KV_TARGET);
    }
}
