//! Overload control of the pools whose policy has it.

use std::fmt;

use super::{Labels, Out};
use crate::status::{BudgetStatus, OverloadStatus, PoolStatus};

const RUNG_STATES: [&str; 3] = ["released", "engaged", "unavailable"];

/// Writes the families of overload control.
pub(super) fn encode(pools: &[PoolStatus], out: &mut Out<'_>) -> fmt::Result {
    encode_saturation(pools, out)?;
    encode_work(pools, out)?;
    encode_cut_off(pools, out)?;
    encode_queue(pools, out)?;
    encode_rungs(pools, out)?;
    encode_learned(pools, out)
}

fn encode_saturation(pools: &[PoolStatus], out: &mut Out<'_>) -> fmt::Result {
    out.gauges(
        "headgate_saturation",
        "How near a pool is to the most that it can do; 1: it can do no more",
        one(pools, |it| it.saturation),
    )?;
    let terms = many(pools, |it| it.terms.iter().map(|(term, value)| (vec![("term", term.clone())], *value)).collect());
    out.gauges("headgate_saturation_term", "Terms of the saturation; the largest binds", terms)?;
    let help = "How sure the learned blend of the terms is of its verdict";
    out.gauges("headgate_saturation_confidence", help, one(pools, |it| it.confidence))
}

fn encode_work(pools: &[PoolStatus], out: &mut Out<'_>) -> fmt::Result {
    let help = "Bound on work in flight over all proxies: prefill and kv in tokens; absent while unbounded";
    out.gauges("headgate_budget", help, many(pools, |it| budget_rows(&it.budgets)))?;
    let help = "Bound on work in flight when the control plane is gone";
    out.gauges("headgate_safe_budget", help, many(pools, |it| budget_rows(&it.safe_budgets)))?;
    let in_flight = many(pools, |it| {
        let kinds = [("prefill", it.in_flight.prefill_tokens), ("kv", it.in_flight.kv_tokens), ("streams", it.in_flight.streams)];
        kinds.map(|(kind, work)| (kind_label(kind), work as f64)).to_vec()
    });
    out.gauges("headgate_in_flight_work", "Work in flight over all proxies, as reserved: prefill and kv in tokens", in_flight)?;
    let good = one(pools, |it| it.good_work);
    out.counters("headgate_good_work_tokens", "Work tokens of requests that ended within their objectives", good)
}

fn encode_cut_off(pools: &[PoolStatus], out: &mut Out<'_>) -> fmt::Result {
    let help = "Level from which on nothing is admitted, class × 128 + cohort, with its admitted fraction; 1024: nothing is cut off";
    out.gauges("headgate_cut_level", help, one(pools, |it| (f64::from(it.cut_off.level) + it.cut_off.fraction).min(1024.0)))?;
    let shed = many(pools, |it| it.cut_off.shed.iter().map(|shed| (vec![("class", shed.class.clone())], shed.part)).collect());
    out.gauges("headgate_shed_ratio", "Part of a class that the cut-off sheds", shed)
}

fn encode_queue(pools: &[PoolStatus], out: &mut Out<'_>) -> fmt::Result {
    let gauge = |value: fn(&crate::status::QueueStatus) -> f64| {
        many(pools, move |it| it.queue.iter().map(|queue| (Labels::new(), value(queue))).collect())
    };
    out.gauges("headgate_queue_requests", "Requests that wait in proxies", gauge(|queue| queue.requests as f64))?;
    out.gauges("headgate_queue_bytes", "Bytes that queued requests count for", gauge(|queue| queue.bytes as f64))?;
    out.gauges("headgate_queue_work_tokens", "Work tokens that wait in proxies", gauge(|queue| queue.work as f64))?;
    let help = "How long the request that waits longest has waited";
    out.gauges("headgate_queue_oldest_seconds", help, gauge(|queue| queue.oldest_ms as f64 / 1000.0))?;
    let outcomes = many(pools, |it| {
        let of = |queue: &crate::status::QueueStatus| {
            [("released", queue.released), ("expired", queue.expired), ("abandoned", queue.abandoned), ("overflowed", queue.overflowed)]
        };
        let counts = it.queue.iter().flat_map(of);
        counts.map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], count)).collect()
    });
    out.counters("headgate_queue_outcomes", "Queued requests by what became of them, since the control plane began", outcomes)
}

fn encode_rungs(pools: &[PoolStatus], out: &mut Out<'_>) -> fmt::Result {
    let rows = many(pools, |it| {
        let rung = |(index, rung): (usize, &crate::status::RungStatus)| {
            RUNG_STATES.map(|state| {
                let labels = vec![("rung", index.to_string()), ("kind", rung.kind.clone()), ("state", state.to_owned())];
                (labels, f64::from(u8::from(rung.state == state)))
            })
        };
        it.rungs.iter().enumerate().flat_map(rung).collect()
    });
    out.gauges("headgate_rung", "State of a rung of the degradation ladder: 1 for the state that it is in", rows)
}

fn encode_learned(pools: &[PoolStatus], out: &mut Out<'_>) -> fmt::Result {
    let drain = one(pools, |it| it.drain_work_per_s);
    out.gauges("headgate_drain_work_tokens_per_second", "Work tokens/s that a busy pool finishes; 0: not known", drain)?;
    let help = "Time to first token that a request admitted now can expect";
    out.gauges("headgate_expected_ttft_seconds", help, one(pools, |it| it.expected_ttft_ms / 1000.0))?;
    let help = "Part of first attempts that retries may be";
    out.gauges("headgate_retry_ratio", help, one(pools, |it| it.retry_ratio))?;
    let help = "Learned factor on the prompt tokens that a content length suggests; 0: none yet";
    out.gauges("headgate_prompt_factor", help, one(pools, |it| it.prompt_factor))?;
    let help = "Learned mean output of a response; 0: none yet";
    out.gauges("headgate_output_tokens", help, one(pools, |it| it.output_tokens))?;
    out.counters("headgate_retries", "Requests that carried an attempt number above one", one(pools, |it| it.retries))?;
    let help = "Responses of engines that refused for overload";
    out.counters("headgate_engine_refusals", help, one(pools, |it| it.engine_refusals))
}

fn budget_rows(budgets: &BudgetStatus) -> Vec<(Labels, f64)> {
    let kinds = [("prefill", budgets.prefill_tokens), ("kv", budgets.kv_tokens), ("streams", budgets.streams)];
    kinds.into_iter().filter_map(|(kind, bound)| bound.map(|bound| (kind_label(kind), bound as f64))).collect()
}

fn kind_label(kind: &str) -> Labels {
    vec![("kind", kind.to_owned())]
}

/// One row a pool under overload control.
fn one<T: 'static>(pools: &[PoolStatus], value: impl Fn(&OverloadStatus) -> T) -> impl Iterator<Item = (Labels, T)> {
    many(pools, move |it| vec![(Labels::new(), value(it))])
}

/// Rows of every pool under overload control; the pool's label is put in front.
fn many<T: 'static>(pools: &[PoolStatus], rows: impl Fn(&OverloadStatus) -> Vec<(Labels, T)>) -> impl Iterator<Item = (Labels, T)> {
    let controlled = pools.iter().filter_map(|pool| pool.overload.as_ref().map(|overload| (pool, overload)));
    controlled.flat_map(move |(pool, overload)| {
        let pool = pool.pool.clone();
        rows(overload).into_iter().map(move |(labels, value)| ([vec![("pool", pool.clone())], labels].concat(), value))
    })
}
