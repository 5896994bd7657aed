//! How a document writes enums and leaves defaults out; what the generated messages name in their serde attributes.

use core::marker::PhantomData;

use crate::v1;
use serde::{Serialize, Serializer};

/// Whether a field holds its default and is left out of a document.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// An enum whose values are written in a document as lower_snake_case without the type's prefix.
pub(crate) trait DocumentEnum: Copy + 'static {
    /// All values but the unspecified one, as documents and the wire have them.
    const VALUES: &'static [(&'static str, Self)];
    /// The number on the wire.
    fn number(self) -> i32;
}

/// Serde adapter for a field that holds one value of `T` as its number.
pub(crate) struct EnumName<T>(PhantomData<T>);

/// Serde adapter for a field that holds a list of values of `T` as their numbers.
pub(crate) struct EnumNames<T>(PhantomData<T>);

impl<T: DocumentEnum + 'static> EnumName<T> {
    pub(crate) fn serialize<S: Serializer>(number: &i32, serializer: S) -> Result<S::Ok, S::Error> {
        name_of::<T>(*number).serialize(serializer)
    }
}

impl<T: DocumentEnum + 'static> EnumNames<T> {
    pub(crate) fn serialize<S: Serializer>(numbers: &[i32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(numbers.iter().map(|number| name_of::<T>(*number)))
    }
}

fn name_of<T: DocumentEnum + 'static>(number: i32) -> &'static str {
    T::VALUES.iter().find(|(_, value)| value.number() == number).map_or("unspecified", |(name, _)| name)
}

macro_rules! document_enum {
    ($kind:ident { $($name:literal = $value:ident),* $(,)? }) => {
        impl DocumentEnum for v1::$kind {
            const VALUES: &'static [(&'static str, Self)] = &[$(($name, v1::$kind::$value)),*];
            fn number(self) -> i32 {
                self as i32
            }
        }
    };
}

document_enum!(WhenTripped { "reserved_lane" = ReservedLane, "gradient_throttle" = GradientThrottle, "refuse" = Refuse });
document_enum!(GpuMemorySource { "auto" = Auto, "nvml" = Nvml, "kv_cache" = KvCache });
document_enum!(Enforcement { "enforce" = Enforce, "shadow" = Shadow });
document_enum!(QuotaUnit { "requests" = Requests, "tokens" = Tokens, "work_tokens" = WorkTokens });
document_enum!(QuotaPeriod { "second" = Second, "minute" = Minute });
document_enum!(QuotaMode { "strict" = Strict, "fast" = Fast });
document_enum!(Fusion { "max" = Max, "weighted" = Weighted });
document_enum!(RungKind {
    "cap_max_tokens" = CapMaxTokens,
    "drop_features" = DropFeatures,
    "delay" = Delay,
    "switch_model" = SwitchModel,
    "cache_first" = CacheFirst,
});
document_enum!(BreakerScope { "endpoint" = Endpoint, "dependency" = Dependency });
document_enum!(BalancingAlgorithm {
    "round_robin" = RoundRobin,
    "weighted" = Weighted,
    "least_request" = LeastRequest,
    "latency_aware" = LatencyAware,
    "consistent_hash" = ConsistentHash,
});
document_enum!(WeightSource { "given" = Given, "telemetry" = Telemetry });
document_enum!(PoolProtocol { "http1" = Http1, "http2" = Http2 });
