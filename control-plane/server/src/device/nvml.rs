//! NVML: the only module that names `nvml_wrapper`.
//!
//! The library is loaded at run time, so one binary runs with and without a GPU. A device that does not answer is lost, and the others
//! go on. Handles do not survive a lost device or a reloaded driver, so while one is lost the library is initialised anew every
//! [`REOPEN_PERIOD`]: that is how its return is seen.
//!
//! A device that is partitioned by MIG is listed as its instances: that is where work runs, and whose memory fills.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nvml_wrapper::Device;
use nvml_wrapper::error::NvmlError;

use self::ask::Identity;
use self::xid::{XidLog, XidWatch};
use super::{DeviceDetail, DeviceReading, DeviceSource, DriverInfo, LostDevice, SampleError};

mod ask;
mod xid;

/// Soname of the driver's library; the name without version belongs to the development package, which need not be there.
const DRIVER_LIBRARY: &str = "libnvidia-ml.so.1";
/// Time between two attempts to find a lost device again.
const REOPEN_PERIOD: Duration = Duration::from_secs(2);

/// NVML as a device source.
pub(super) struct Nvml {
    library: PathBuf,
    session: Option<Session>,
    /// Every device that was ever there, by index: a lost one cannot say who it is.
    known: Vec<LostDevice>,
    xids: XidLog,
    reopen_at: Instant,
}

/// The loaded library and the devices that it listed when it was loaded.
struct Session {
    nvml: nvml_wrapper::Nvml,
    devices: Vec<Slot>,
    watch: XidWatch,
    xids: XidLog,
}

/// One place in the driver's list.
enum Slot {
    /// A device, and its MIG instances by their index; none when it is whole.
    Here { identity: Box<Identity>, instances: Vec<(u32, Identity)> },
    /// Nobody answers there.
    Lost(LostDevice),
}

// === impl Nvml ===

impl Nvml {
    /// NVML from `library`, or from the driver's. Nothing is loaded before the first sample.
    pub(super) fn new(library: Option<PathBuf>) -> Self {
        let library = library.unwrap_or_else(|| PathBuf::from(DRIVER_LIBRARY));
        Self { library, session: None, known: Vec::new(), xids: XidLog::default(), reopen_at: Instant::now() }
    }

    /// The session, opened if there is none.
    fn session(&mut self) -> Result<&mut Session, SampleError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => Session::open(&self.library, &mut self.known, &self.xids)?,
        };
        Ok(self.session.insert(session))
    }

    /// While a device is lost the library is opened anew now and then.
    fn look_for_lost(&mut self, readings: &[DeviceReading]) {
        let now = Instant::now();
        if readings.iter().all(|reading| reading.sample().is_some()) {
            self.reopen_at = now;
        } else if now >= self.reopen_at {
            self.reopen_at = now + REOPEN_PERIOD;
            self.session = None;
        }
    }
}

impl DeviceSource for Nvml {
    fn name(&self) -> &'static str {
        "nvml"
    }

    fn driver(&mut self) -> Result<DriverInfo, SampleError> {
        Ok(self.session()?.driver())
    }

    fn sample(&mut self) -> Result<Vec<DeviceReading>, SampleError> {
        let readings = self.session()?.sample();
        self.look_for_lost(&readings);
        Ok(readings)
    }

    fn inspect(&mut self) -> Result<Vec<DeviceDetail>, SampleError> {
        Ok(self.session()?.inspect())
    }
}

// === impl Session ===

impl Session {
    fn open(library: &Path, known: &mut Vec<LostDevice>, xids: &XidLog) -> Result<Self, SampleError> {
        let failed = |error: NvmlError| SampleError::Library { library: library.display().to_string(), problem: error.to_string() };
        let nvml = nvml_wrapper::Nvml::builder().lib_path(library.as_os_str()).init().map_err(failed)?;
        let count = nvml.device_count().map_err(failed)?;
        for index in (0..count).skip(known.len()) {
            known.push(LostDevice { index, ..LostDevice::default() });
        }
        if known.is_empty() {
            return Err(SampleError::NoDevice);
        }
        let devices = known.iter_mut().map(|known| Slot::open(&nvml, known, xids)).collect();
        Ok(Self { nvml, devices, watch: XidWatch::start(library.to_owned(), xids.clone()), xids: xids.clone() })
    }

    fn driver(&self) -> DriverInfo {
        DriverInfo {
            driver_version: self.nvml.sys_driver_version().ok(),
            nvml_version: self.nvml.sys_nvml_version().ok(),
            cuda_version: self.nvml.sys_cuda_driver_version().ok().and_then(|version| u32::try_from(version).ok()),
        }
    }

    fn sample(&self) -> Vec<DeviceReading> {
        let mut readings = Vec::with_capacity(self.devices.len());
        for (index, slot) in (0_u32..).zip(&self.devices) {
            match slot {
                Slot::Lost(lost) => readings.push(DeviceReading::Lost(lost.clone())),
                Slot::Here { identity, instances } => {
                    let before = readings.len();
                    if let Err(error) = self.sample_one(index, identity, instances, &mut readings) {
                        readings.truncate(before);
                        readings.push(DeviceReading::Lost(lost(index, identity, &error)));
                    }
                }
            }
        }
        readings
    }

    fn sample_one(
        &self,
        index: u32,
        identity: &Identity,
        instances: &[(u32, Identity)],
        readings: &mut Vec<DeviceReading>,
    ) -> Result<(), NvmlError> {
        let device = self.nvml.device_by_index(index)?;
        let activity = ask::activity(&device, self.watch.listens().then(|| self.xids.of(&identity.uuid)));
        if instances.is_empty() {
            readings.push(DeviceReading::Sample(ask::sample(&device, index, identity, activity)?));
            return Ok(());
        }
        for (number, identity) in instances {
            // An instance that has just been taken apart is no lost device; the next look at the rest forgets it.
            let Ok(instance) = device.mig_device_by_index(*number) else { continue };
            readings.push(DeviceReading::Sample(ask::sample(&instance, index, identity, activity.clone())?));
        }
        Ok(())
    }

    /// The details of what answers; looks for new MIG instances too.
    fn inspect(&mut self) -> Vec<DeviceDetail> {
        let mut details = Vec::with_capacity(self.devices.len());
        for (index, slot) in (0_u32..).zip(&mut self.devices) {
            let Slot::Here { identity, instances } = slot else { continue };
            let Ok(device) = self.nvml.device_by_index(index) else { continue };
            let detail = ask::detail(&self.nvml, &device, identity);
            *instances = if detail.mig_enabled == Some(true) { mig_instances(&device, identity) } else { Vec::new() };
            if instances.is_empty() {
                details.push(detail);
                continue;
            }
            for (number, identity) in instances {
                if let Ok(instance) = device.mig_device_by_index(*number) {
                    details.push(of_part(&detail, ask::detail(&self.nvml, &instance, identity)));
                }
            }
        }
        details
    }
}

/// The health of a device is that of its parts; who they are and what runs there is their own.
fn of_part(whole: &DeviceDetail, part: DeviceDetail) -> DeviceDetail {
    let DeviceDetail { uuid, mig_parent, processes, compute_processes, .. } = part;
    DeviceDetail { uuid, mig_parent, processes, compute_processes, ..whole.clone() }
}

fn mig_instances(device: &Device<'_>, parent: &Identity) -> Vec<(u32, Identity)> {
    let most = device.mig_device_count().unwrap_or(0);
    let instance = |number| Some((number, Identity::of_instance(&device.mig_device_by_index(number).ok()?, parent).ok()?));
    (0..most).filter_map(instance).collect()
}

// === impl Slot ===

impl Slot {
    /// Who answers in the place of `known`, which is brought up to date.
    fn open(nvml: &nvml_wrapper::Nvml, known: &mut LostDevice, xids: &XidLog) -> Self {
        let index = known.index;
        let found = nvml.device_by_index(index).and_then(|device| Ok((Identity::of(&device)?, device)));
        match found {
            Ok((identity, device)) => {
                let was_lost = !known.lost.is_empty();
                *known = LostDevice { index, uuid: identity.uuid.clone(), name: identity.name.clone(), lost: String::new() };
                if was_lost {
                    xids.trust(&identity.uuid);
                }
                let instances = if ask::mig_enabled(&device) == Some(true) { mig_instances(&device, &identity) } else { Vec::new() };
                Self::Here { identity: Box::new(identity), instances }
            }
            Err(error) => {
                known.lost = error.to_string();
                Self::Lost(known.clone())
            }
        }
    }
}

fn lost(index: u32, identity: &Identity, error: &NvmlError) -> LostDevice {
    LostDevice { index, uuid: identity.uuid.clone(), name: identity.name.clone(), lost: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named_in_the_error() {
        let mut source = Nvml::new(Some(PathBuf::from("/nowhere/libnvidia-ml.so")));
        let error = source.sample().unwrap_err();
        assert!(matches!(&error, SampleError::Library { library, .. } if library == "/nowhere/libnvidia-ml.so"), "{error}");
    }
}
