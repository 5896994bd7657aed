//! Latencies by pool, class and model. Models are bounded by core (`headgate_core::fleet::MAX_MODELS` a class, the rest are `other`).

use std::fmt;

use super::{Labels, Out};
use crate::status::{LatencyFigures, PoolStatus};

/// What models without a place of their own are called.
const OTHER: &str = "other";

/// Writes the families of `headgate_latency_*`.
pub(super) fn encode(pools: &[PoolStatus], out: &mut Out<'_>) -> fmt::Result {
    out.counters("headgate_latency_samples", "Latencies measured, since the control plane began", rows(pools, |it| Some(it.count)))?;
    let sum = rows(pools, |it| Some(it.sum_ms / 1000.0));
    out.gauges("headgate_latency_sum_seconds", "Sum of all latencies measured, since the control plane began", sum)?;
    let quantiles = [("0.5", percentile(pools, |it| it.p50_ms)), ("0.99", percentile(pools, |it| it.p99_ms))];
    let quantiles = quantiles.into_iter().flat_map(|(quantile, rows)| {
        rows.into_iter().map(move |(mut labels, ms)| {
            labels.push(("quantile", quantile.to_owned()));
            (labels, ms / 1000.0)
        })
    });
    out.gauges("headgate_latency_seconds", "Percentiles of the latencies of the last minute, within 1/256", quantiles)?;
    let ewma = rows(pools, |it| it.ewma_ms.map(|ms| ms / 1000.0));
    out.gauges("headgate_latency_ewma_seconds", "Moving average of the latencies, the newest report weighing 0.2", ewma)?;
    let missing = pools.iter().flat_map(|pool| {
        let missing = pool.latencies.missing;
        let kinds = [("silent", missing.silent_workers), ("unread", missing.unread_workers), ("lost", missing.lost_series)];
        kinds.map(|(kind, count)| (vec![("pool", pool.pool.clone()), ("kind", kind.to_owned())], count as f64))
    });
    out.gauges(
        "headgate_latency_missing",
        "Workers and series of which the totals of latencies lack the end; all 0: they are exact",
        missing,
    )?;
    of_engines(pools, out)
}

/// What the engines' own histograms tell in the place of filters and access logs.
fn of_engines(pools: &[PoolStatus], out: &mut Out<'_>) -> fmt::Result {
    let told = || {
        let streams = pools.iter().flat_map(|pool| pool.latencies.streams.iter().map(move |stream| (pool, stream)));
        let figures = streams.filter(|(_, stream)| stream.is_engines()).flat_map(|(pool, stream)| {
            stream.metrics.iter().map(move |(metric, figures)| (vec![("pool", pool.pool.clone()), ("metric", metric.clone())], figures))
        });
        figures.collect::<Vec<(Labels, &LatencyFigures)>>()
    };
    let samples = told().into_iter().map(|(labels, figures)| (labels, figures.count));
    out.counters("headgate_engine_latency_samples", "Latencies that engines have told where nobody else does", samples)?;
    let quantiles = told().into_iter().flat_map(|(labels, figures)| {
        [("0.5", figures.p50_ms), ("0.99", figures.p99_ms)].into_iter().filter_map(move |(quantile, ms)| {
            let mut labels = labels.clone();
            labels.push(("quantile", quantile.to_owned()));
            ms.map(|ms| (labels, ms / 1000.0))
        })
    });
    let says = "Percentiles of the latencies of the last minute by the engines' own histograms, where nobody else tells them";
    out.gauges("headgate_engine_latency_seconds", says, quantiles)
}

/// Rows of one percentile.
fn percentile(pools: &[PoolStatus], value: fn(&LatencyFigures) -> Option<f64>) -> Vec<(Labels, f64)> {
    rows(pools, value).collect()
}

fn rows<T: 'static>(pools: &[PoolStatus], value: impl Fn(&LatencyFigures) -> Option<T> + Copy) -> impl Iterator<Item = (Labels, T)> {
    let streams = pools.iter().flat_map(|pool| pool.latencies.streams.iter().map(move |stream| (pool, stream)));
    streams.filter(|(_, stream)| !stream.is_engines()).flat_map(move |(pool, stream)| {
        let model = if stream.model.is_empty() { OTHER } else { &stream.model };
        let labels = move |metric: &str| {
            let named = [("pool", &*pool.pool), ("class", &*stream.class), ("model", model), ("metric", metric)];
            named.map(|(key, value)| (key, value.to_owned())).to_vec()
        };
        stream.metrics.iter().filter_map(move |(metric, figures)| value(figures).map(|value| (labels(metric), value)))
    })
}
