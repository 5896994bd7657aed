//! One page of dcgm-exporter, read. Nothing on it is believed before it is looked at, as with an engine's.
//!
//! | figure | field |
//! |---|---|
//! | memory | `DCGM_FI_DEV_FB_USED`, `FB_FREE`, `FB_RESERVED`, in MiB; the total is their sum, or `FB_TOTAL` |
//! | kernel-active and memory-active time | `DCGM_FI_DEV_GPU_UTIL`, `MEM_COPY_UTIL`, in percent |
//! | clocks | `DCGM_FI_DEV_SM_CLOCK`, `MEM_CLOCK`, in MHz |
//! | throttle reasons | `DCGM_FI_DEV_CLOCKS_EVENT_REASONS`, before 4.0 `CLOCK_THROTTLE_REASONS`: NVML's bits |
//! | power, temperatures | `DCGM_FI_DEV_POWER_USAGE` in W, `GPU_TEMP`, `MEMORY_TEMP` in °C |
//! | health | `DCGM_FI_DEV_XID_ERRORS` (the last one), `ECC_SBE_VOL_TOTAL`, `ECC_DBE_VOL_TOTAL`, `(UN)CORRECTABLE_REMAPPED_ROWS`, `ROW_REMAP_FAILURE`, `ROW_REMAP_PENDING` |
//! | liveness | `DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION` in mJ |

use std::collections::BTreeMap;

use crate::device::wire::{MAX_DEVICES, MAX_TEXT_BYTES};
use crate::device::{DeviceActivity, DeviceDetail, DeviceReading, DeviceSample, ThrottleReasons, is_fatal_xid};
use crate::engine::line::{self, Sample, SampleError};

/// What every name begins with.
const PREFIX: &str = "DCGM_FI_DEV_";
/// Largest value that is believed: up to here a float tells neighbours apart.
const MAX_VALUE: f64 = 9_007_199_254_740_992.0;
const MIB: u64 = 1 << 20;

/// Names that are read, after the prefix.
const NAMES: [&str; 21] = [
    "FB_USED",
    "FB_FREE",
    "FB_RESERVED",
    "FB_TOTAL",
    "GPU_UTIL",
    "MEM_COPY_UTIL",
    "SM_CLOCK",
    "MEM_CLOCK",
    "CLOCKS_EVENT_REASONS",
    "CLOCK_THROTTLE_REASONS",
    "POWER_USAGE",
    "GPU_TEMP",
    "MEMORY_TEMP",
    "XID_ERRORS",
    "ECC_SBE_VOL_TOTAL",
    "ECC_DBE_VOL_TOTAL",
    "CORRECTABLE_REMAPPED_ROWS",
    "UNCORRECTABLE_REMAPPED_ROWS",
    "ROW_REMAP_FAILURE",
    "ROW_REMAP_PENDING",
    "TOTAL_ENERGY_CONSUMPTION",
];

/// What one page says.
#[derive(Debug, PartialEq)]
pub(super) struct Page {
    /// Name of the node, as the exporter has it.
    pub(super) host: Option<String>,
    devices: BTreeMap<Key, Device>,
}

/// Index of the device, and of its MIG instance.
type Key = (u32, Option<u32>);

#[derive(Debug, Default, PartialEq)]
struct Device {
    uuid: String,
    name: String,
    values: BTreeMap<&'static str, f64>,
}

/// Why a page cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum PageError {
    #[error("line {line}: {problem}")]
    Malformed { line: usize, problem: SampleError },
    #[error("line {line}: {name}: {got} is outside 0..=2^53")]
    Unbelievable { line: usize, name: &'static str, got: f64 },
    #[error("line {line}: {name} comes twice for one GPU")]
    Duplicate { line: usize, name: &'static str },
    #[error("line {line}: the label {label} is missing, no number, or longer than {MAX_TEXT_BYTES} bytes")]
    Label { line: usize, label: &'static str },
    #[error("more than {MAX_DEVICES} GPUs")]
    TooMany,
    #[error("no GPU with its memory (DCGM_FI_DEV_FB_USED and FB_FREE)")]
    Empty,
}

// === impl Page ===

impl Page {
    /// Reads a page.
    ///
    /// # Errors
    /// [`PageError`] with the line. Never panics, whatever the bytes.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, PageError> {
        let mut page = Self { host: None, devices: BTreeMap::new() };
        for (index, text) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let Some(name) = known(text) else { continue };
            let line = index + 1;
            let sample = line::parse(text, PREFIX.len() + name.len()).map_err(|problem| PageError::Malformed { line, problem })?;
            page.add(line, name, &sample)?;
        }
        page.devices.retain(|_, device| device.values.contains_key("FB_USED") && device.total_mib().is_some());
        if page.devices.is_empty() { Err(PageError::Empty) } else { Ok(page) }
    }

    fn add(&mut self, line: usize, name: &'static str, sample: &Sample<'_>) -> Result<(), PageError> {
        let number = |label: &'static str| sample.label(label).filter(|text| !text.is_empty()).map(str::parse::<u32>);
        let index = number("gpu").and_then(Result::ok).ok_or(PageError::Label { line, label: "gpu" })?;
        let instance = number("GPU_I_ID").transpose().map_err(|_| PageError::Label { line, label: "GPU_I_ID" })?;
        let text = |label: &'static str| match sample.label(label) {
            Some(text) if text.len() <= MAX_TEXT_BYTES => Ok(text.to_owned()),
            _ => Err(PageError::Label { line, label }),
        };
        // NaN is in no range.
        if !(0.0..=MAX_VALUE).contains(&sample.value) {
            return Err(PageError::Unbelievable { line, name, got: sample.value });
        }
        if self.devices.len() >= MAX_DEVICES && !self.devices.contains_key(&(index, instance)) {
            return Err(PageError::TooMany);
        }
        if self.host.is_none() {
            self.host = sample.label("Hostname").filter(|host| (1..=MAX_TEXT_BYTES).contains(&host.len())).map(str::to_owned);
        }
        let device = self.devices.entry((index, instance)).or_default();
        if device.uuid.is_empty() {
            device.uuid = instance.map_or(text("UUID")?, |instance| format!("{}/{instance}", sample.label("UUID").unwrap_or_default()));
            device.name = match sample.label("GPU_I_PROFILE").filter(|profile| !profile.is_empty()) {
                Some(profile) => format!("{} MIG {profile}", text("modelName")?),
                None => text("modelName")?,
            };
        }
        if device.values.insert(name, sample.value).is_some() {
            return Err(PageError::Duplicate { line, name });
        }
        Ok(())
    }

    /// Each device.
    pub(super) fn readings(&self) -> Vec<DeviceReading> {
        self.devices.iter().map(|((index, _), device)| DeviceReading::Sample(device.sample(*index))).collect()
    }

    /// Each device's health.
    pub(super) fn details(&self) -> Vec<DeviceDetail> {
        self.devices.values().map(Device::detail).collect()
    }
}

/// The name, after the prefix, of the figure that a line is about.
fn known(line: &[u8]) -> Option<&'static str> {
    let rest = line.strip_prefix(PREFIX.as_bytes())?;
    let is_it = |name: &&&str| rest.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'{'));
    NAMES.iter().find(is_it).copied()
}

// === impl Device ===

impl Device {
    fn get(&self, name: &str) -> Option<u64> {
        self.values.get(name).map(|value| *value as u64)
    }

    fn small(&self, name: &str) -> Option<u32> {
        self.get(name).and_then(|value| u32::try_from(value).ok())
    }

    fn total_mib(&self) -> Option<u64> {
        let sum = || Some(self.get("FB_USED")? + self.get("FB_FREE")? + self.get("FB_RESERVED").unwrap_or(0));
        self.get("FB_TOTAL").or_else(sum).filter(|total| *total > 0)
    }

    fn sample(&self, index: u32) -> DeviceSample {
        let mib = |name: &str| self.get(name).unwrap_or(0).saturating_mul(MIB);
        let xid = self.get("XID_ERRORS").filter(|xid| *xid > 0);
        let reasons = self.get("CLOCKS_EVENT_REASONS").or_else(|| self.get("CLOCK_THROTTLE_REASONS"));
        let activity = DeviceActivity {
            kernel_active_percent: self.small("GPU_UTIL"),
            memory_active_percent: self.small("MEM_COPY_UTIL"),
            sm_clock_mhz: self.small("SM_CLOCK"),
            memory_clock_mhz: self.small("MEM_CLOCK"),
            // NVML's lowest bit is idleness, which is no reason; the others come in our order.
            throttle_reasons: reasons.map(|bits| ThrottleReasons::from_bits(((bits >> 1) & 0xff) as u16)),
            power_milliwatts: self.values.get("POWER_USAGE").map(|watts| (watts * 1000.0) as u32),
            temperature_celsius: self.small("GPU_TEMP"),
            memory_temperature_celsius: self.small("MEMORY_TEMP").filter(|celsius| *celsius > 0),
            xid_events: None,
            last_xid: xid,
            fatal_xid: xid.filter(|xid| is_fatal_xid(*xid)),
        };
        DeviceSample {
            index,
            uuid: self.uuid.as_str().into(),
            name: self.name.as_str().into(),
            memory_used_bytes: mib("FB_USED"),
            memory_reserved_bytes: mib("FB_RESERVED"),
            memory_total_bytes: self.total_mib().unwrap_or(0).saturating_mul(MIB),
            activity,
        }
    }

    fn detail(&self) -> DeviceDetail {
        DeviceDetail {
            uuid: self.uuid.clone(),
            ecc_corrected: self.get("ECC_SBE_VOL_TOTAL"),
            ecc_uncorrected: self.get("ECC_DBE_VOL_TOTAL"),
            rows_remapped_correctable: self.get("CORRECTABLE_REMAPPED_ROWS"),
            rows_remapped_uncorrectable: self.get("UNCORRECTABLE_REMAPPED_ROWS"),
            row_remap_pending: self.get("ROW_REMAP_PENDING").map(|pending| pending != 0),
            row_remap_failed: self.get("ROW_REMAP_FAILURE").map(|failed| failed != 0),
            mig_parent: self.uuid.split_once('/').map(|(parent, _)| parent.to_owned()),
            ..DeviceDetail::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TWO_A100: &str = include_str!("fixtures/two-a100.txt");

    #[test]
    fn a_page_of_two_gpus_is_read_with_its_units() {
        let page = Page::read(TWO_A100.as_bytes()).unwrap();
        let samples: Vec<DeviceSample> = page.readings().iter().filter_map(|reading| reading.sample().cloned()).collect();
        assert_eq!(samples.len(), 2);
        let first = &samples[0];
        assert_eq!((&*first.uuid, &*first.name), ("GPU-52b6d7f2-8a5c-4f7b-9d5d-0b1a2c3d4e5f", "NVIDIA A100-SXM4-80GB"));
        assert_eq!((first.memory_used_bytes, first.memory_total_bytes), (73_417 * MIB, 81_920 * MIB));
        let activity = &first.activity;
        assert_eq!(
            (activity.power_milliwatts, activity.sm_clock_mhz, activity.kernel_active_percent),
            (Some(388_915), Some(1215), Some(98))
        );
        assert_eq!(activity.throttle_reasons, Some(ThrottleReasons::SW_POWER_CAP));
        assert_eq!((samples[1].activity.fatal_xid, samples[1].activity.last_xid), (Some(79), Some(79)));
        assert_eq!(page.details()[0].row_remap_failed, Some(false));
    }

    #[test]
    fn a_mig_instance_is_a_device_of_its_own_size() {
        let text = "DCGM_FI_DEV_FB_USED{gpu=\"0\",UUID=\"GPU-1\",modelName=\"NVIDIA A100\",GPU_I_PROFILE=\"3g.40gb\",GPU_I_ID=\"2\"} 10\n\
                    DCGM_FI_DEV_FB_FREE{gpu=\"0\",UUID=\"GPU-1\",modelName=\"NVIDIA A100\",GPU_I_PROFILE=\"3g.40gb\",GPU_I_ID=\"2\"} 30\n";
        let page = Page::read(text.as_bytes()).unwrap();
        let sample = page.readings()[0].sample().unwrap().clone();
        assert_eq!((&*sample.uuid, &*sample.name, sample.memory_total_bytes), ("GPU-1/2", "NVIDIA A100 MIG 3g.40gb", 40 * MIB));
        assert_eq!(page.details()[0].mig_parent.as_deref(), Some("GPU-1"));
    }

    #[test]
    fn what_is_wrong_with_a_page_is_said_with_its_line() {
        let problem = |text: &str| Page::read(text.as_bytes()).unwrap_err().to_string();
        assert!(problem("").starts_with("no GPU with its memory"));
        let line = |value: &str| format!("DCGM_FI_DEV_FB_USED{{gpu=\"0\",UUID=\"G\",modelName=\"x\"}} {value}\n");
        assert_eq!(problem(&line("NaN")), "line 1: FB_USED: NaN is outside 0..=2^53");
        assert_eq!(problem(&line("-1")), "line 1: FB_USED: -1 is outside 0..=2^53");
        assert_eq!(problem(&format!("{0}{0}", line("1"))), "line 2: FB_USED comes twice for one GPU");
        assert!(problem("DCGM_FI_DEV_FB_USED{gpu=\"x\"} 1\n").contains("the label gpu is missing"));
        let many: String = (0..300).map(|gpu| line("1").replace("gpu=\"0\"", &format!("gpu=\"{gpu}\""))).collect();
        assert_eq!(problem(&many), "more than 256 GPUs");
    }

    proptest! {
        #[test]
        fn no_bytes_hurt(cut in 0..TWO_A100.len(), at in 0..TWO_A100.len(), byte: u8) {
            let mut bytes = TWO_A100.as_bytes()[..cut].to_vec();
            if let Some(slot) = bytes.get_mut(at) {
                *slot = byte;
            }
            let _ = Page::read(&bytes);
        }
    }
}
