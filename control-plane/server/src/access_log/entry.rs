//! One entry of an access log: whose request it was, and how long what took.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{address, socket_address};
use envoy_types::pb::envoy::data::accesslog::v3::{AccessLogCommon, AccessLogType, HttpAccessLogEntry};
use envoy_types::pb::google::protobuf::value::Kind;
use headgate_core::fleet::PolicySet;
use headgate_core::latency::Metric;
use headgate_core::policy::Policy;
use prost::Message;

/// Custom tags by which an access log names what it cannot know otherwise.
const POOL_TAG: &str = "headgate.pool";
const CLASS_TAG: &str = "headgate.class";
const MODEL_TAG: &str = "headgate.model";
const TOKENS_TAG: &str = "headgate.streamed_tokens";
/// Namespace of dynamic metadata with the same names: `pool`, `class` and `streamed_tokens`.
const METADATA: &str = "headgate";
/// Filter state in which the filter leaves its decision.
const FILTER_STATE: &str = "wasm.headgate";

/// Most tokens that an output is believed to have.
const MAX_TOKENS: u64 = 1 << 24;

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is in the histograms.
    Booked,
    /// No pool has the name of its tag, metadata, route or cluster.
    NoPool,
    /// Nothing came from an upstream, or an error: it says nothing about inference.
    NoResponse,
    /// It is of a request that goes on.
    Intermediate,
    /// The filter of the same proxy reports the pool, more exactly.
    Reported,
}

/// The pools that are known, and how requests name their class.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    by_name: BTreeMap<String, Naming>,
}

#[derive(Debug)]
struct Naming {
    classes: Vec<String>,
    default_class: String,
    priority_header: String,
    model_header: String,
}

/// What an entry says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reading<'a> {
    pub(crate) pool: &'a str,
    pub(crate) class: &'a str,
    /// Empty: not named.
    pub(crate) model: &'a str,
    pub(crate) samples: Vec<(Metric, u64)>,
}

// === impl Outcome ===

impl Outcome {
    pub(crate) const ALL: [Self; 5] = [Self::Booked, Self::NoPool, Self::NoResponse, Self::Intermediate, Self::Reported];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Booked => "booked",
            Self::NoPool => "no_pool",
            Self::NoResponse => "no_response",
            Self::Intermediate => "intermediate",
            Self::Reported => "reported_by_filter",
        }
    }
}

// === impl Pools ===

impl Pools {
    pub(crate) fn of(policies: &PolicySet) -> Self {
        // What the store holds is valid; anything else has no pool.
        let valid = policies.policies.values().filter_map(|stored| Policy::try_from_wire(&stored.policy).ok());
        Self { by_name: valid.map(|policy| (policy.pool().to_owned(), Naming::of(&policy))).collect() }
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// The [`Outcome`] of an entry that says nothing.
    pub(crate) fn read<'a>(&'a self, entry: &'a HttpAccessLogEntry) -> Result<Reading<'a>, Outcome> {
        let common = entry.common_properties.as_ref().ok_or(Outcome::NoPool)?;
        let kind = common.access_log_type;
        if kind != AccessLogType::NotSet as i32 && kind != AccessLogType::DownstreamEnd as i32 {
            return Err(Outcome::Intermediate);
        }
        let (pool, naming) = self.pool(common).ok_or(Outcome::NoPool)?;
        let status = entry.response.as_ref().and_then(|response| response.response_code.as_ref()).map_or(0, |code| code.value);
        let samples = if (200..400).contains(&status) { samples(common) } else { Vec::new() };
        if samples.is_empty() {
            return Err(Outcome::NoResponse);
        }
        let header = |name: &str| entry.request.as_ref().and_then(|request| request.request_headers.get(name)).map(String::as_str);
        let model = tag(common, MODEL_TAG).or_else(|| header(&naming.model_header)).unwrap_or_default();
        Ok(Reading { pool, class: naming.class(common, header(&naming.priority_header)), model, samples })
    }

    /// The first that names a pool: custom tag, dynamic metadata, route, upstream cluster.
    fn pool(&self, common: &AccessLogCommon) -> Option<(&str, &Naming)> {
        let named = [tag(common, POOL_TAG), metadata(common, "pool"), Some(&*common.route_name), Some(&*common.upstream_cluster)];
        named.into_iter().flatten().find_map(|name| self.by_name.get_key_value(name)).map(|(pool, naming)| (pool.as_str(), naming))
    }
}

// === impl Naming ===

impl Naming {
    fn of(policy: &Policy) -> Self {
        let classification = policy.classification();
        let classes: Vec<String> = policy.classes().iter().map(|class| class.name.clone()).collect();
        Self {
            default_class: classes.get(classification.default_class.index()).cloned().unwrap_or_default(),
            classes,
            priority_header: classification.priority_header.clone(),
            model_header: classification.model_header.clone(),
        }
    }

    /// The first that names a class of the policy: custom tag, metadata, the filter's own decision, the header; else the default.
    fn class(&self, common: &AccessLogCommon, header: Option<&str>) -> &str {
        let decided = decision(common);
        let decided = decided.as_deref().and_then(|line| line.split(' ').find_map(|word| word.strip_prefix("class=")));
        let named = [tag(common, CLASS_TAG), metadata(common, "class"), decided, header];
        let known = named.into_iter().flatten().find_map(|name| self.classes.iter().find(|class| *class == name));
        known.unwrap_or(&self.default_class)
    }
}

/// How long what took, in microseconds. Times without a value did not come to pass.
fn samples(common: &AccessLogCommon) -> Vec<(Metric, u64)> {
    let first_sent = micros(common.time_to_first_upstream_tx_byte.as_ref());
    let first_received = micros(common.time_to_first_upstream_rx_byte.as_ref());
    let last_received = micros(common.time_to_last_upstream_rx_byte.as_ref());
    let last_sent_down = micros(common.time_to_last_downstream_tx_byte.as_ref());
    let Some(ttft) = first_received else { return Vec::new() };
    let mut samples = vec![(Metric::Ttft, ttft)];
    samples.extend(first_sent.map(|queue| (Metric::Queue, queue)));
    samples.extend(last_sent_down.map(|total| (Metric::Total, total)));
    samples.extend(time_per_token(ttft, last_received, streamed_tokens(common)).map(|tpot| (Metric::Tpot, tpot)));
    samples.extend(first_sent.zip(last_received).map(|(from, to)| (Metric::Upstream, to.saturating_sub(from))));
    samples
}

/// Mean time between tokens of a stream, in microseconds: from the response's first byte to its last, over one less than its tokens.
///
/// An entry has no time of any token, only eight of a request's first and last bytes (`time_to_*` of `AccessLogCommon`, Envoy
/// `api/envoy/data/accesslog/v3/accesslog.proto`), so their number has to come from elsewhere. The first byte is of the response's headers:
/// of an engine that sends them before its first token the mean is too long by the prompt's time over the gaps, never too short.
fn time_per_token(first_received: u64, last_received: Option<u64>, tokens: Option<u64>) -> Option<u64> {
    let gaps = tokens?.checked_sub(1).filter(|gaps| (1..MAX_TOKENS).contains(gaps))?;
    Some(last_received?.checked_sub(first_received)? / gaps)
}

/// How many tokens a streamed output had; not of one that came whole, which has no time between tokens.
fn streamed_tokens(common: &AccessLogCommon) -> Option<u64> {
    if let Some(said) = tag(common, TOKENS_TAG) {
        return said.parse().ok();
    }
    match metadata_value(common, "streamed_tokens")? {
        Kind::NumberValue(count) if count.fract() == 0.0 && (0.0..=MAX_TOKENS as f64).contains(count) => Some(*count as u64),
        Kind::StringValue(count) => count.parse().ok(),
        _ => None,
    }
}

/// The endpoint that answered well, and how long its first byte took once the request was on its way to it.
pub(crate) fn endpoint_latency(entry: &HttpAccessLogEntry) -> Option<(SocketAddr, Duration)> {
    let common = entry.common_properties.as_ref()?;
    let status = entry.response.as_ref()?.response_code.as_ref()?.value;
    let Some(address::Address::SocketAddress(endpoint)) = common.upstream_remote_address.as_ref()?.address.as_ref() else { return None };
    let Some(socket_address::PortSpecifier::PortValue(port)) = endpoint.port_specifier else { return None };
    let endpoint = SocketAddr::new(endpoint.address.parse().ok()?, u16::try_from(port).ok()?);
    let sent = micros(common.time_to_first_upstream_tx_byte.as_ref())?;
    let received = micros(common.time_to_first_upstream_rx_byte.as_ref())?;
    (200..400).contains(&status).then(|| (endpoint, Duration::from_micros(received.saturating_sub(sent))))
}

fn micros(duration: Option<&envoy_types::pb::google::protobuf::Duration>) -> Option<u64> {
    let duration = duration?;
    let (seconds, nanos) = (u64::try_from(duration.seconds).ok()?, u64::try_from(duration.nanos).ok()?);
    seconds.checked_mul(1_000_000)?.checked_add(nanos / 1000)
}

fn tag<'a>(common: &'a AccessLogCommon, name: &str) -> Option<&'a str> {
    common.custom_tags.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

fn metadata<'a>(common: &'a AccessLogCommon, field: &str) -> Option<&'a str> {
    match metadata_value(common, field)? {
        Kind::StringValue(value) => Some(value),
        _ => None,
    }
}

fn metadata_value<'a>(common: &'a AccessLogCommon, field: &str) -> Option<&'a Kind> {
    common.metadata.as_ref()?.filter_metadata.get(METADATA)?.fields.get(field)?.kind.as_ref()
}

/// The line that the filter leaves in filter state, which Envoy logs as a `BytesValue`: field 1, as in a `StringValue`.
fn decision(common: &AccessLogCommon) -> Option<String> {
    let any = common.filter_state_objects.get(FILTER_STATE)?;
    Vec::<u8>::decode(any.value.as_slice()).ok().and_then(|line| String::from_utf8(line).ok())
}
