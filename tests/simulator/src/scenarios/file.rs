//! From the document to a [`Scenario`]: one way, every problem at once.

use std::fmt;
use std::time::Duration;

use super::check::{Check, Problem};
use super::engines::engines;
use super::raw::{
    RawArrivals, RawBackoff, RawClass, RawFault, RawLengths, RawRetries, RawScenario, RawShape, RawSpan, RawTenants, RawTraffic,
};
use super::{Judging, Scenario, Span};
use crate::controller::Site;
use crate::setup::{
    Arrivals, Backoff, ClassSpec, Fault, FaultAt, Lengths, Network, Patience, Retries, Setup, Shape, Source, Spread, Tenants,
};

/// Longest run, in seconds of virtual time.
const MAX_SECONDS: f64 = 86_400.0;
const MAX_TOKENS: u64 = 10_000_000;

/// Why a document is no scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScenarioError {
    /// It has not the expected shape: not YAML, an unknown field, a wrong type.
    Syntax(String),
    /// Values are out of range: all of them, in the order of the document.
    Invalid(Vec<Problem>),
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(problem) => f.write_str(problem),
            Self::Invalid(problems) => {
                let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
                f.write_str(&lines.join("\n"))
            }
        }
    }
}

impl std::error::Error for ScenarioError {}

// === impl Scenario ===

impl Scenario {
    /// Reads a YAML or JSON document.
    ///
    /// # Errors
    /// When it has not the shape of a scenario, or with every field that is out of its range.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let raw: RawScenario = serde_yaml_ng::from_str(text).map_err(|error| ScenarioError::Syntax(error.to_string()))?;
        let mut check = Check::default();
        let scenario = scenario(&mut check, &raw);
        check.finish(scenario).map_err(ScenarioError::Invalid)
    }
}

fn scenario(check: &mut Check, raw: &RawScenario) -> Scenario {
    check.name("name", &raw.name);
    let duration = check.seconds("seconds", raw.seconds, 1.0, MAX_SECONDS);
    let engines = engines(check, &raw.engines);
    let classes: Vec<ClassSpec> = classes(check, &raw.classes);
    let proxies = check.count("fleet.proxies", raw.fleet.proxies, 1, 1000) as u16;
    let workers = check.count("fleet.workers", raw.fleet.workers, 1, 64) as u16;
    let mut first_tenant = 0;
    let mut sources = Vec::new();
    for (at, traffic) in raw.traffic.iter().enumerate() {
        let source = source(check, &format!("traffic[{at}]"), traffic, &raw.classes, first_tenant, duration);
        first_tenant = source.tenants.first + source.tenants.count;
        sources.push(source);
    }
    if sources.is_empty() {
        check.wrong("traffic", "empty: at least one source is needed");
    }
    let faults =
        raw.faults.iter().enumerate().map(|(at, raw)| fault(check, &format!("faults[{at}]"), raw, proxies, workers, engines.len()));
    let mut faults: Vec<FaultAt> = faults.collect();
    faults.sort_by_key(|fault| fault.at);
    let least = check.millis("network.leastDelayMs", raw.network.least_delay_ms, 0.0, 1000.0);
    let mean = check.millis("network.meanDelayMs", raw.network.mean_delay_ms, raw.network.least_delay_ms, 10_000.0);
    let setup = Setup {
        name: raw.name.clone(),
        duration,
        drain: check.seconds("drainSeconds", raw.drain_seconds, 0.0, 3600.0),
        proxies,
        workers,
        engines,
        classes,
        sources,
        trace: Vec::new(),
        trace_patience: Patience::default(),
        network: Network {
            delay: Spread { minimum: least, mean },
            loss: check.number("network.loss", raw.network.loss, 0.0, 0.5),
            ..Network::default()
        },
        faults,
        bytes_per_token: (
            check.number("bytesPerToken.mean", raw.bytes_per_token.mean, 0.5, 64.0),
            check.number("bytesPerToken.sigma", raw.bytes_per_token.sigma, 0.0, 2.0),
        ),
        sample_every: Duration::from_millis(20),
    };
    let judging = judging(check, raw);
    let floors_percent = raw.classes.iter().map(|class| class.floor_percent as u32).collect();
    Scenario { summary: raw.summary.clone(), judging, floors_percent, setup }
}

fn judging(check: &mut Check, raw: &RawScenario) -> Judging {
    let from = check.seconds("measureFromSeconds", raw.measure_from_seconds, 0.0, (raw.seconds - 0.5).max(0.0));
    Judging {
        load: check.number("load", raw.load, 0.01, 1000.0),
        from,
        overload: raw.overload.as_ref().map(|span| overload(check, span, raw.seconds)),
        capacity_rps: check.number("capacityRps", raw.capacity_rps, 0.001, 1e9),
    }
}

fn overload(check: &mut Check, span: &RawSpan, seconds: f64) -> Span {
    let from = check.seconds("overload.fromSeconds", span.from_seconds, 0.0, seconds);
    Span { from, to: check.seconds("overload.toSeconds", span.to_seconds, span.from_seconds, seconds) }
}

fn classes(check: &mut Check, raw: &[RawClass]) -> Vec<ClassSpec> {
    check.count("classes", raw.len() as u64, 1, 8);
    let floors: u64 = raw.iter().map(|class| class.floor_percent).sum();
    check.count("classes[].floorPercent (sum)", floors, 0, 90);
    let mut classes: Vec<ClassSpec> = Vec::new();
    for (at, class) in raw.iter().enumerate() {
        let field = format!("classes[{at}]");
        if class.name.is_empty() || classes.iter().any(|other| other.name == class.name) {
            check.wrong(&format!("{field}.name"), format!("{:?} is empty or not unique", class.name));
        }
        classes.push(ClassSpec {
            name: class.name.clone(),
            ttft: check.millis(&format!("{field}.ttftMs"), class.ttft_ms, 1.0, 600_000.0),
            tpot: check.millis(&format!("{field}.tpotMs"), class.tpot_ms, 0.1, 600_000.0),
        });
    }
    classes
}

fn source(check: &mut Check, field: &str, raw: &RawTraffic, classes: &[RawClass], first_tenant: u32, duration: Duration) -> Source {
    let class = classes.iter().position(|class| class.name == raw.class).unwrap_or_else(|| {
        let known: Vec<&str> = classes.iter().map(|class| class.name.as_str()).collect();
        check.wrong(&format!("{field}.class"), format!("{:?} is none of {}", raw.class, known.join(", ")));
        0
    });
    let shape = shape(check, &format!("{field}.shape"), &raw.shape);
    let until = raw.until_seconds.unwrap_or(duration.as_secs_f64());
    Source {
        class: class as u8,
        tenants: tenants(check, &format!("{field}.tenants"), raw.tenants.as_ref(), first_tenant),
        arrivals: arrivals(check, field, &raw.arrivals, shape),
        prompt: lengths(check, &format!("{field}.prompt"), raw.prompt),
        output: lengths(check, &format!("{field}.output"), raw.output),
        patience: Patience {
            timeout: check.millis(&format!("{field}.timeoutMs"), raw.timeout_ms, 1.0, 3_600_000.0),
            retries: retries(check, &format!("{field}.retries"), raw.retries),
        },
        from: check.seconds(&format!("{field}.fromSeconds"), raw.from_seconds, 0.0, MAX_SECONDS),
        until: check.seconds(&format!("{field}.untilSeconds"), until, raw.from_seconds, MAX_SECONDS),
    }
}

/// Sources have tenants of their own unless `first` says otherwise.
fn tenants(check: &mut Check, field: &str, raw: Option<&RawTenants>, first_free: u32) -> Tenants {
    let Some(raw) = raw else { return Tenants { first: first_free, count: 8, zipf: 0.0 } };
    Tenants {
        first: raw.first.unwrap_or(first_free),
        count: check.count(&format!("{field}.count"), raw.count, 1, 1_000_000) as u32,
        zipf: check.number(&format!("{field}.zipf"), raw.zipf, 0.0, 5.0),
    }
}

fn arrivals(check: &mut Check, field: &str, raw: &RawArrivals, shape: Shape) -> Arrivals {
    match *raw {
        RawArrivals::Open { rps, cv } => Arrivals::Open {
            rps: check.number(&format!("{field}.arrivals.rps"), rps, 0.0, 1e7),
            cv: check.number(&format!("{field}.arrivals.cv"), cv, 0.0, 20.0),
            shape,
        },
        RawArrivals::Closed { clients, think_ms } => Arrivals::Closed {
            clients: check.count(&format!("{field}.arrivals.clients"), clients, 1, 10_000_000) as u32,
            think: check.millis(&format!("{field}.arrivals.thinkMs"), think_ms, 0.0, 3_600_000.0),
            shape,
        },
    }
}

fn shape(check: &mut Check, field: &str, raw: &RawShape) -> Shape {
    let at = |name: &str| format!("{field}.{name}");
    match raw {
        RawShape::Steady => Shape::Steady,
        RawShape::Step { from_seconds, to_seconds, factor } => Shape::Step {
            at: check.seconds(&at("fromSeconds"), *from_seconds, 0.0, MAX_SECONDS),
            until: check.seconds(&at("toSeconds"), *to_seconds, *from_seconds, MAX_SECONDS),
            factor: check.number(&at("factor"), *factor, 0.0, 1000.0),
        },
        RawShape::OnOff { on_seconds, off_seconds, high, low } => Shape::OnOff {
            on: check.seconds(&at("onSeconds"), *on_seconds, 0.01, MAX_SECONDS),
            off: check.seconds(&at("offSeconds"), *off_seconds, 0.01, MAX_SECONDS),
            high: check.number(&at("high"), *high, 0.0, 1000.0),
            low: check.number(&at("low"), *low, 0.0, 1000.0),
        },
        RawShape::Growth { doubling_seconds, peak } => Shape::Growth {
            doubling: check.seconds(&at("doublingSeconds"), *doubling_seconds, 0.01, MAX_SECONDS),
            peak: check.number(&at("peak"), *peak, 1.0, 1000.0),
        },
        RawShape::Points { points } => {
            let mut last = 0.0;
            let point = |(index, point): (usize, &super::raw::RawPoint)| {
                let time = check.seconds(&at(&format!("points[{index}].atSeconds")), point.at_seconds, last, MAX_SECONDS);
                last = point.at_seconds;
                (time, check.number(&at(&format!("points[{index}].factor")), point.factor, 0.0, 1000.0))
            };
            Shape::Points(points.iter().enumerate().map(point).collect())
        }
    }
}

fn lengths(check: &mut Check, field: &str, raw: RawLengths) -> Lengths {
    let at = |name: &str| format!("{field}.{name}");
    match raw {
        RawLengths::Fixed { tokens } => Lengths::Fixed(check.count(&at("tokens"), tokens, 1, MAX_TOKENS) as u32),
        RawLengths::Uniform { low, high } => Lengths::Uniform {
            low: check.count(&at("low"), low, 1, MAX_TOKENS) as u32,
            high: check.count(&at("high"), high, low.min(MAX_TOKENS), MAX_TOKENS) as u32,
        },
        RawLengths::LogNormal { median, sigma, most } => Lengths::LogNormal {
            median: check.number(&at("median"), median, 1.0, MAX_TOKENS as f64),
            sigma: check.number(&at("sigma"), sigma, 0.0, 3.0),
            most: check.count(&at("most"), most, 1, MAX_TOKENS) as u32,
        },
    }
}

fn retries(check: &mut Check, field: &str, raw: RawRetries) -> Retries {
    let mut common = |attempts: u64, backoff: RawBackoff| {
        let backoff = Backoff {
            base: check.millis(&format!("{field}.backoff.baseMs"), backoff.base_ms, 0.0, 600_000.0),
            most: check.millis(&format!("{field}.backoff.mostMs"), backoff.most_ms, backoff.base_ms, 3_600_000.0),
            jitter: check.number(&format!("{field}.backoff.jitter"), backoff.jitter, 0.0, 1.0),
        };
        (check.count(&format!("{field}.attempts"), attempts, 1, 1000) as u32, backoff)
    };
    match raw {
        RawRetries::None => Retries::None,
        RawRetries::Ignoring { attempts, backoff } => {
            let (attempts, backoff) = common(attempts, backoff);
            Retries::Ignoring { attempts, backoff }
        }
        RawRetries::Honouring { attempts, backoff } => {
            let (attempts, backoff) = common(attempts, backoff);
            Retries::Honouring { attempts, backoff }
        }
    }
}

fn fault(check: &mut Check, field: &str, raw: &RawFault, proxies: u16, workers: u16, engines: usize) -> FaultAt {
    let at = |name: &str| format!("{field}.{name}");
    let last_engine = engines.saturating_sub(1) as u64;
    match *raw {
        RawFault::ControlCut { at_seconds, seconds, proxies: cut } => FaultAt {
            at: check.seconds(&at("atSeconds"), at_seconds, 0.0, MAX_SECONDS),
            fault: Fault::ControlCut {
                proxies: check.count(&at("proxies"), cut, 1, proxies.into()) as u16,
                lasts: check.seconds(&at("seconds"), seconds, 0.001, MAX_SECONDS),
            },
        },
        RawFault::EngineLost { at_seconds, seconds, engine } => FaultAt {
            at: check.seconds(&at("atSeconds"), at_seconds, 0.0, MAX_SECONDS),
            fault: Fault::EngineLost {
                engine: check.count(&at("engine"), engine, 0, last_engine) as u16,
                lasts: check.seconds(&at("seconds"), seconds, 0.001, MAX_SECONDS),
            },
        },
        RawFault::Derate { at_seconds, engine, factor } => FaultAt {
            at: check.seconds(&at("atSeconds"), at_seconds, 0.0, MAX_SECONDS),
            fault: Fault::Derate {
                engine: check.count(&at("engine"), engine, 0, last_engine) as u16,
                factor: check.number(&at("factor"), factor, 0.1, 100.0),
            },
        },
        RawFault::WorkerRestart { at_seconds, proxy, worker } => FaultAt {
            at: check.seconds(&at("atSeconds"), at_seconds, 0.0, MAX_SECONDS),
            fault: Fault::WorkerRestart {
                site: Site {
                    proxy: check.count(&at("proxy"), proxy, 0, u64::from(proxies - 1)) as u16,
                    worker: check.count(&at("worker"), worker, 0, u64::from(workers - 1)) as u16,
                },
            },
        },
    }
}
