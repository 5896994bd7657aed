//! The decision about one request under overload control: ladder, retry budget, cut-off, budgets, queue.

use core::time::Duration;

use super::Newcomer;
use super::held::Held;
use crate::budget::{self, Reservation, Size};
use crate::overload::{Budgets, COHORTS, Level};
use crate::policy::{Class, ClassId, OverloadConfig, Policy, RungKind};
use crate::pool::overload::{Need, PoolOverload, WaitQueue};
use crate::pool::quotas::Charges;
use crate::queue::{Full, Ticket, Waiting};
use crate::reason::{Cause, Reason, Source};
use crate::rng::Rng;
use crate::time::Timestamp;

/// Cohorts by which a retry within its budget is less important than a first attempt of the same tenant: a quarter of its class.
const RETRY_PENALTY: u8 = 32;
/// Saturation from which on retries are held to their budget; a pool with room to spare takes them all.
const RETRIES_COUNT_FROM: f64 = 0.9;
/// Part of the budgets that classes which a rung makes wait may fill.
const DELAYED_PART: f64 = 0.8;
/// How far the most important class may pass the worker's part of the budgets of KV tokens and streams: what a part may shrink by while
/// its requests last.
const PRECEDENCE: f64 = 0.2;
/// The same of the prefill budget, which is a fraction of the objective's time: a prompt more costs the others a moment. It is no more than
/// this since where only the first classes are admitted the whole pool passes its budget by it.
const PREFILL_PRECEDENCE: f64 = 0.4;
/// How far besides a request may pass the budgets of KV tokens and streams when its time to start is over, and that of prefill. A worker's part
/// is a few prompts: a few of the first class that came together expired in it while other workers started what matters less.
const URGENCY: f64 = 0.2;
const PREFILL_URGENCY: f64 = 2.0;
/// Bytes for which a body of unknown length counts in the queue: what Envoy may hold of it by default.
const UNKNOWN_BODY_BYTES: u64 = 1 << 20;

/// What is done with a request.
#[derive(Debug)]
pub(super) enum Ruling {
    Admit(Held),
    Wait(Ticket),
    /// A rung of the ladder, by its position, sends it elsewhere.
    Degrade {
        cause: Cause,
        rung: usize,
    },
    /// It is told to come back; `work` says when.
    Refuse {
        cause: Cause,
        work: u64,
    },
}

/// A request as overload control sees it.
struct Candidate {
    class: ClassId,
    tenant: u16,
    size: Size,
    /// Work tokens.
    work: u64,
    level: Level,
}

/// Rules on a request. `has_permit`: whether `maxInFlight` leaves room for it.
pub(super) fn rule(
    load: &mut PoolOverload,
    policy: &Policy,
    now: Timestamp,
    rng: &mut Rng,
    newcomer: &Newcomer<'_>,
    has_permit: bool,
) -> Option<Ruling> {
    let (config, class) = (policy.overload()?, policy.class(newcomer.classified.class)?);
    let candidate = size_up(load, config, now, newcomer);
    let refuse = |cause| Some(Ruling::Refuse { cause, work: candidate.work });
    if let Some(rung) = load.rung(config, candidate.class, |index, kind| redirects(kind).then_some(index)) {
        let engage_at = config.ladder.get(rung).map_or(0.0, |rung| rung.engage_at);
        return Some(Ruling::Degrade { cause: saturation(load, Reason::Ladder, engage_at), rung });
    }
    if newcomer.request.is_retry
        && is_short(load)
        && let Err(over) = load.retries.take(now, load.in_force.retry_ratio, config.retries.min_rps)
    {
        let source = load.in_force.source;
        return refuse(Cause { reason: Reason::RetryBudget, value: over.percent, threshold: over.limit, term: None, source });
    }
    if !passes_cut_off(load, now, rng, &candidate) && !has_outlived(load, policy, &candidate, has_permit) {
        return refuse(saturation(load, Reason::CutOff, 1.0));
    }
    let delay = load.queue.as_ref().and_then(|_| load.rung(config, candidate.class, |_, kind| delays(kind)));
    let room = room(load, policy, &candidate, has_permit, delay.is_some());
    let is_behind = load.queue.as_ref().is_some_and(|queue| queue.has_before(candidate.class));
    Some(match room {
        Ok(()) if !is_behind => {
            Ruling::Admit(hold(load, now, config, candidate.size, (candidate.class, candidate.tenant), newcomer.charged.charges))
        }
        room => wait(load, config, class, now, newcomer, &candidate, delay).unwrap_or_else(|refused| {
            let cause = refused.unwrap_or_else(|| room.err().unwrap_or_else(|| saturation(load, Reason::Budget, 1.0)));
            Ruling::Refuse { cause, work: candidate.work }
        }),
    })
}

/// The budgets for a class: more of them the more important it is, or what a rung that makes it wait leaves it.
///
/// What a worker may fill is a part of a part, and full most of the time under overload. The most important class may pass it by
/// [`PRECEDENCE`], the last not at all, those between by as much as their place: so a request of the first class starts at once instead
/// of waiting until one that this very worker has admitted ends. The pool as a whole is held to its target by the control plane, which
/// measures it. `urgency` is that of one that waits, `0..=1`.
fn budgets(load: &PoolOverload, policy: &Policy, class: ClassId, is_held: bool, urgency: f64) -> Budgets {
    let whole = load.in_force.budgets;
    if is_held {
        return whole.part(DELAYED_PART);
    }
    let last = policy.classes().len().saturating_sub(1).max(1) as f64;
    let place = 1.0 - (class.index() as f64 / last).min(1.0);
    let stretch = |budget: Option<u64>, by: f64| budget.map(|budget| (budget as f64 * (1.0 + by)) as u64);
    let held = PRECEDENCE * place + URGENCY * urgency;
    Budgets {
        prefill_tokens: stretch(whole.prefill_tokens, PREFILL_PRECEDENCE * place + PREFILL_URGENCY * urgency),
        kv_tokens: stretch(whole.kv_tokens, held),
        streams: stretch(whole.streams, held),
    }
}

/// How near a waiting request is to the end of its time, where all of its class is to start: 0 up to half of it, then linear, 1 at the end.
fn urgency(load: &PoolOverload, now: Timestamp, waiting: &Waiting<Need>) -> f64 {
    if !load.starts_all_of(waiting.class) {
        return 0.0;
    }
    let until_start_s = |from: Timestamp| waiting.start_by.since(from).as_secs_f64();
    let left = until_start_s(now) / until_start_s(waiting.arrived).max(f64::MIN_POSITIVE);
    (1.0 - 2.0 * left).clamp(0.0, 1.0)
}

fn redirects(kind: &RungKind) -> bool {
    matches!(kind, RungKind::SwitchModel(_) | RungKind::CacheFirst)
}

fn delays(kind: &RungKind) -> Option<Duration> {
    if let RungKind::Delay(delay) = kind { Some(*delay) } else { None }
}

/// Estimates what the request asks for and how important it is, and counts it as offered.
fn size_up(load: &mut PoolOverload, config: &OverloadConfig, now: Timestamp, newcomer: &Newcomer<'_>) -> Candidate {
    let class = newcomer.classified.class;
    let index = class.index();
    let size = load.estimates.size(index, newcomer.request.content_length, load.presumed(config));
    if newcomer.request.content_length.is_some() {
        load.estimates.note_prompt(index, size.prompt);
    }
    let tenant = load.usage.index(newcomer.classified.tenant);
    let usual = load.estimates.usual_prompt(index).filter(|_| load.has_sizes());
    let beyond = usual.map_or(0.0, |usual| f64::from(size.prompt) - usual);
    let by_rank = if config.fair_tenants { load.usage.cohort(now, index, tenant, beyond) } else { load.usage.cohort_by_hash(now, tenant) };
    let cohort = if newcomer.request.is_retry { by_rank.saturating_add(RETRY_PENALTY).min(COHORTS as u8 - 1) } else { by_rank };
    let (work, level) = (size.work_tokens(config.output_weight), Level::new(class, cohort));
    if newcomer.request.is_retry {
        load.flow.retries += 1;
    } else {
        load.retries.note_first_attempt(now);
    }
    load.flow.offered_requests += 1;
    load.levels.record(level, work);
    if let Some(offered) = load.offered.get_mut(index) {
        offered.total = offered.total.saturating_add(work);
    }
    Candidate { class, tenant: if config.fair_tenants { tenant } else { 0 }, size, work, level }
}

/// Whether the pool cannot take everything.
fn is_short(load: &PoolOverload) -> bool {
    let has_waiting = load.queue.as_ref().is_some_and(|queue| queue.len() > 0);
    has_waiting || load.in_force.saturation >= RETRIES_COUNT_FROM || !load.in_force.cut_off.is_none()
}

/// The numbers of a refusal for saturation.
fn saturation(load: &PoolOverload, reason: Reason, threshold: f64) -> Cause {
    let limits = &load.in_force;
    Cause { reason, value: limits.saturation, threshold, term: limits.binding, source: limits.source }
}

/// Whether the request's level passes, or its class is still owed its floor.
fn passes_cut_off(load: &mut PoolOverload, now: Timestamp, rng: &mut Rng, candidate: &Candidate) -> bool {
    let Some(floor) = load.floors.get_mut(candidate.class.index()) else { return true };
    let cut_off = load.in_force.cut_off;
    if cut_off.is_none() {
        return true;
    }
    let passes = cut_off.admits(candidate.level, rng.next_f64());
    if passes {
        floor.use_up(now, candidate.work as f64);
    }
    passes || floor.take_amount(now, candidate.work as f64)
}

/// Whether the cut-off has outlived what it was made for: a worker that decides alone has nobody waiting, and room for the request.
///
/// Its controller sheds in one step and recovers in many, so after a storm of clients that leave it would refuse on for seconds with
/// nothing in flight. A request that starts at once in a bounded pool takes no place that anybody waits for, and what comes back with it is
/// held by the same bounds, the queue, and the retry budget, which goes before. Limits of the control plane are not passed by: it sees the
/// queues of all workers. Nor is a cut-off that is the only bound.
fn has_outlived(load: &PoolOverload, policy: &Policy, candidate: &Candidate, has_permit: bool) -> bool {
    let is_bounded = policy.concurrency().is_some() || load.in_force.budgets != Budgets::UNBOUNDED;
    let waits_nobody = load.queue.as_ref().is_some_and(|queue| queue.len() == 0);
    load.in_force.source == Source::Local && is_bounded && waits_nobody && room(load, policy, candidate, has_permit, false).is_ok()
}

/// Whether every budget has room, and a permit is free.
fn room(load: &PoolOverload, policy: &Policy, candidate: &Candidate, has_permit: bool, is_held: bool) -> Result<(), Cause> {
    let in_flight = load.flow.in_flight;
    if !has_permit {
        let streams = in_flight.streams as f64;
        return Err(Cause { reason: Reason::Concurrency, value: streams, threshold: streams, term: None, source: Source::Policy });
    }
    match budget::lack(in_flight, candidate.size.work(), &budgets(load, policy, candidate.class, is_held, 0.0)) {
        None => Ok(()),
        Some(lack) => {
            let (value, threshold) = (lack.value as f64, lack.budget as f64);
            Err(Cause { reason: Reason::Budget, value, threshold, term: Some(lack.term), source: load.in_force.source })
        }
    }
}

/// Reserves the work of a request that is admitted, and counts it as served to its tenant.
fn hold(load: &mut PoolOverload, now: Timestamp, config: &OverloadConfig, size: Size, whose: (ClassId, u16), charges: Charges) -> Held {
    let (class, tenant) = whose;
    load.usage.serve(now, class.index(), tenant, size.work_tokens(config.output_weight) as f64);
    let looks_at_pieces = config.reads_usage && load.yields.looks_at_next();
    let pick = load.aperture.pick(u64::from(size.prompt));
    Held { reservation: Reservation::take(&mut load.flow, size), class, tenant, charges, number: load.number, looks_at_pieces, pick }
}

/// Time for which a request of a class may wait: what the policy says, or what the objective leaves after the expected time to first
/// token.
fn patience(load: &PoolOverload, config: &OverloadConfig, class: &Class) -> Duration {
    class.max_queue.unwrap_or_else(|| config.ttft_slo.saturating_sub(load.in_force.expected_ttft))
}

/// Lets a request wait if it can start in time.
///
/// # Errors
/// Why it cannot; `None`: its class does not wait, so what it lacks is the cause.
fn wait(
    load: &mut PoolOverload,
    config: &OverloadConfig,
    class: &Class,
    now: Timestamp,
    newcomer: &Newcomer<'_>,
    candidate: &Candidate,
    delay: Option<Duration>,
) -> Result<Ruling, Option<Cause>> {
    let patience = patience(load, config, class) + delay.unwrap_or_default();
    // Refused at once is what cannot start in time even if nobody comes who is more important. What may not is for the cut-off, which
    // takes tenants and sizes into account: by a class's own part of the drain the newest were refused, whatever they were, and work that
    // was worth more went with them. Who is overtaken then is told as soon as that is known.
    let drain = load.in_force.drain_work_per_s;
    let served = load.usage.served(candidate.class.index(), candidate.tenant);
    let cost = if load.orders_by_size(candidate.class) { candidate.work as f64 * load.usage.growth(now) } else { 0.0 };
    let queue = load.queue.as_mut().filter(|_| class.max_queue != Some(Duration::ZERO)).ok_or(None)?;
    let ahead = queue.work_ahead(candidate.class, candidate.tenant, candidate.work, served, cost);
    let expected_wait = if drain > 0.0 { span(ahead as f64 / drain) } else { Duration::ZERO };
    if expected_wait >= patience {
        return Err(Some(misses(load, expected_wait, patience)));
    }
    let waiting = Waiting {
        stream: newcomer.stream,
        class: candidate.class,
        tenant: candidate.tenant,
        work: candidate.work,
        cost,
        bytes: bytes(newcomer),
        arrived: now,
        start_by: now + patience,
        need: Need {
            size: candidate.size,
            charges: newcomer.charged.charges,
            held_until: delay.map_or(Timestamp::ZERO, |delay| now + delay),
        },
    };
    match queue.push(waiting, served) {
        Ok(ticket) => Ok(Ruling::Wait(ticket)),
        Err(full) => {
            let cause = is_full(queue, full, &waiting);
            load.counts.overflowed += 1;
            Err(Some(cause))
        }
    }
}

/// Why a request cannot start in time that would wait for `wait` and may for `patience`: it would miss its objective by what it is later.
fn misses(load: &PoolOverload, wait: Duration, patience: Duration) -> Cause {
    let ttft = |wait: Duration| millis(wait.saturating_add(load.in_force.expected_ttft));
    Cause { reason: Reason::Deadline, value: ttft(wait), threshold: ttft(patience), term: None, source: load.in_force.source }
}

fn is_full(queue: &WaitQueue, full: Full, waiting: &Waiting<Need>) -> Cause {
    let bounds = queue.bounds();
    let (value, threshold) = match full {
        Full::Requests => (f64::from(queue.held()) + 1.0, f64::from(bounds.requests)),
        Full::Bytes => (queue.bytes().saturating_add(waiting.bytes) as f64, bounds.bytes as f64),
    };
    Cause { reason: Reason::QueueFull, value, threshold, term: None, source: Source::Policy }
}

/// Bytes that a waiting request takes at most: its headers and the body that it declares.
fn bytes(newcomer: &Newcomer<'_>) -> u64 {
    let request = newcomer.request;
    let headers = request.headers.iter().fold(0_u64, |sum, (name, value)| sum + (name.len() + value.len()) as u64);
    let undeclared = if matches!(request.method, b"GET" | b"HEAD" | b"OPTIONS") { 0 } else { UNKNOWN_BODY_BYTES };
    headers.saturating_add(request.content_length.unwrap_or(undeclared))
}

/// A span of seconds; one that is too long, or none, is the longest.
fn span(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

/// What becomes of the request that is served next.
#[derive(Debug)]
pub(super) enum Next {
    /// Nobody waits, or there is no room.
    Nothing,
    /// It starts.
    Start(Ticket, Waiting<Need>, Held),
    /// It has waited as long as it could.
    Expire(Ticket, Waiting<Need>, Cause),
}

/// Looks at the head of the queue. `has_permit`: whether `maxInFlight` leaves room for its class. What starts is reserved here; the caller
/// answers the ticket.
pub(super) fn next(load: &mut PoolOverload, policy: &Policy, now: Timestamp, has_permit: bool) -> Option<Next> {
    let config = policy.overload()?;
    let (ticket, waiting) = load.queue.as_ref()?.head().map(|(ticket, waiting)| (ticket, *waiting))?;
    if is_late(load, config, policy, now, &waiting) {
        return Some(expire(now, ticket, waiting));
    }
    let is_held = now < waiting.need.held_until && load.rung(config, waiting.class, |_, kind| delays(kind)).is_some();
    let budgets = budgets(load, policy, waiting.class, is_held, urgency(load, now, &waiting));
    if !has_permit || budget::lack(load.flow.in_flight, waiting.need.size.work(), &budgets).is_some() {
        return Some(Next::Nothing);
    }
    let held = hold(load, now, config, waiting.need.size, (waiting.class, waiting.tenant), waiting.need.charges);
    Some(Next::Start(ticket, waiting, held))
}

/// A request whose time has passed, or who waits in vain, if there is one.
pub(super) fn next_expired(load: &mut PoolOverload, now: Timestamp) -> Option<Next> {
    let queue = load.queue.as_mut()?;
    if let Some((ticket, waiting)) = queue.next_to_expire().filter(|(_, waiting)| waiting.start_by <= now) {
        return Some(expire(now, ticket, *waiting));
    }
    let (ticket, waiting, wait_s) = queue.next_in_vain()?;
    let cause = misses(load, now.since(waiting.arrived).saturating_add(span(wait_s)), waiting.start_by.since(waiting.arrived));
    Some(Next::Expire(ticket, waiting, cause))
}

/// Whether it is too late to start it: its time has passed, or the objective would be missed by what is expected now.
fn is_late(load: &PoolOverload, config: &OverloadConfig, policy: &Policy, now: Timestamp, waiting: &Waiting<Need>) -> bool {
    let has_own_bound = policy.class(waiting.class).is_some_and(|class| class.max_queue.is_some());
    let is_delayed = waiting.need.held_until > Timestamp::ZERO;
    let misses = now.since(waiting.arrived).saturating_add(load.in_force.expected_ttft) > config.ttft_slo;
    waiting.start_by <= now || (misses && !has_own_bound && !is_delayed)
}

fn expire(now: Timestamp, ticket: Ticket, waiting: Waiting<Need>) -> Next {
    let (value, threshold) = (millis(now.since(waiting.arrived)), millis(waiting.start_by.since(waiting.arrived)));
    Next::Expire(ticket, waiting, Cause { reason: Reason::Expired, value, threshold, term: None, source: Source::Policy })
}
