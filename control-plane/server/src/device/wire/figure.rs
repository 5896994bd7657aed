//! The figures of a device as one array.

use headgate_protos::v1::DeviceFigure as Id;

use crate::device::{DeviceDetail, DeviceSample, ThrottleReasons};

/// One figure: its number on the wire, and how it is read from and written to a device.
pub(super) struct Figure {
    pub(super) id: Id,
    get: fn(&DeviceSample, &DeviceDetail) -> Option<u64>,
    set: fn(&mut DeviceSample, &mut DeviceDetail, Option<u64>),
}

/// The figures of one device, in the order of [`FIGURES`].
pub(super) type Figures = [Option<u64>; FIGURES.len()];

/// A figure as it stands in our structures.
trait Field {
    fn pack(&self) -> Option<u64>;
    fn unpack(value: Option<u64>) -> Self;
}

impl Field for u64 {
    fn pack(&self) -> Option<u64> {
        Some(*self)
    }

    fn unpack(value: Option<u64>) -> Self {
        value.unwrap_or(0)
    }
}

impl Field for Option<u64> {
    fn pack(&self) -> Option<u64> {
        *self
    }

    fn unpack(value: Option<u64>) -> Self {
        value
    }
}

impl Field for Option<u32> {
    fn pack(&self) -> Option<u64> {
        self.map(u64::from)
    }

    fn unpack(value: Option<u64>) -> Self {
        value.and_then(|value| u32::try_from(value).ok())
    }
}

impl Field for Option<usize> {
    fn pack(&self) -> Option<u64> {
        self.map(|value| value as u64)
    }

    fn unpack(value: Option<u64>) -> Self {
        value.and_then(|value| usize::try_from(value).ok())
    }
}

impl Field for Option<bool> {
    fn pack(&self) -> Option<u64> {
        self.map(u64::from)
    }

    fn unpack(value: Option<u64>) -> Self {
        value.map(|value| value != 0)
    }
}

impl Field for Option<ThrottleReasons> {
    fn pack(&self) -> Option<u64> {
        self.map(|reasons| reasons.bits().into())
    }

    fn unpack(value: Option<u64>) -> Self {
        value.and_then(|bits| u16::try_from(bits).ok()).map(ThrottleReasons::from_bits)
    }
}

macro_rules! figures {
    (
        sample { $($sample_id:ident = $sample:ident,)* }
        activity { $($activity_id:ident = $activity:ident,)* }
        detail { $($detail_id:ident = $detail:ident,)* }
    ) => {
        [
            $(Figure {
                id: Id::$sample_id,
                get: |sample, _| Field::pack(&sample.$sample),
                set: |sample, _, value| sample.$sample = Field::unpack(value),
            },)*
            $(Figure {
                id: Id::$activity_id,
                get: |sample, _| Field::pack(&sample.activity.$activity),
                set: |sample, _, value| sample.activity.$activity = Field::unpack(value),
            },)*
            $(Figure {
                id: Id::$detail_id,
                get: |_, detail| Field::pack(&detail.$detail),
                set: |_, detail, value| detail.$detail = Field::unpack(value),
            },)*
        ]
    };
}

/// Every figure that travels.
pub(super) const FIGURES: [Figure; 32] = figures! {
    sample {
    MemoryUsedBytes = memory_used_bytes,
    MemoryReservedBytes = memory_reserved_bytes,
    MemoryTotalBytes = memory_total_bytes,
    }
    activity {
    KernelActivePercent = kernel_active_percent,
    MemoryActivePercent = memory_active_percent,
    SmClockMhz = sm_clock_mhz,
    MemoryClockMhz = memory_clock_mhz,
    ThrottleReasons = throttle_reasons,
    PowerMilliwatts = power_milliwatts,
    TemperatureCelsius = temperature_celsius,
    MemoryTemperatureCelsius = memory_temperature_celsius,
    XidEvents = xid_events,
    LastXid = last_xid,
    FatalXid = fatal_xid,
    }
    detail {
    SmClockMaxMhz = sm_clock_max_mhz,
    MemoryClockMaxMhz = memory_clock_max_mhz,
    PowerLimitMilliwatts = power_limit_milliwatts,
    TemperatureMaxCelsius = temperature_max_celsius,
    TemperatureSlowdownCelsius = temperature_slowdown_celsius,
    TemperatureShutdownCelsius = temperature_shutdown_celsius,
    MemoryTemperatureMaxCelsius = memory_temperature_max_celsius,
    EccCorrected = ecc_corrected,
    EccUncorrected = ecc_uncorrected,
    RowsRemappedCorrectable = rows_remapped_correctable,
    RowsRemappedUncorrectable = rows_remapped_uncorrectable,
    RowRemapPending = row_remap_pending,
    RowRemapFailed = row_remap_failed,
    NvlinkCrcErrors = nvlink_crc_errors,
    NvlinkReplayErrors = nvlink_replay_errors,
    NvlinkRecoveryErrors = nvlink_recovery_errors,
    MigEnabled = mig_enabled,
    ComputeProcesses = compute_processes,
    }
};

/// Figures before this place are asked for with every sample, those from it on seldom.
const FIRST_DETAIL: usize = 14;

/// The figures of a device.
pub(super) fn figures_of(sample: &DeviceSample, detail: &DeviceDetail) -> Figures {
    std::array::from_fn(|place| (FIGURES[place].get)(sample, detail))
}

/// Writes figures into a device.
pub(super) fn write_sample(figures: &Figures, sample: &mut DeviceSample) {
    let mut detail = DeviceDetail::default();
    for (figure, value) in FIGURES.iter().zip(figures).take(FIRST_DETAIL) {
        (figure.set)(sample, &mut detail, *value);
    }
}

/// Writes figures into the details of a device.
pub(super) fn write_detail(figures: &Figures, detail: &mut DeviceDetail) {
    let mut sample = DeviceSample::default();
    for (figure, value) in FIGURES.iter().zip(figures).skip(FIRST_DETAIL) {
        (figure.set)(&mut sample, detail, *value);
    }
}

/// Whether the figure in this place is one that changes seldom.
pub(super) fn is_detail(place: usize) -> bool {
    place >= FIRST_DETAIL
}

/// Place of the figure with that number; `None` for one that this version does not know.
pub(super) fn place_of(number: i32) -> Option<usize> {
    // The order here is the order of the numbers, from 1.
    let place = usize::try_from(number).ok()?.checked_sub(1)?;
    FIGURES.get(place).filter(|figure| figure.id as i32 == number).map(|_| place)
}
