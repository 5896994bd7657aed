//! XID errors, from NVML's event set: a thread of its own waits for them, nothing polls.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::{NvmlError, NvmlErrorWithSource};

use crate::device::is_fatal_xid;

/// Longest wait for one event, in milliseconds: so long the thread takes to see that it is no longer wanted.
const WAIT_MS: u32 = 500;
/// Pause after the driver says that a device is lost: it says so at once, and again.
const LOST_PAUSE: Duration = Duration::from_millis(250);
/// NVML's number for an XID that it cannot name.
const UNKNOWN_XID: u64 = 999;

/// XIDs of one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Xids {
    /// How many came.
    pub(super) events: u64,
    /// The last one.
    pub(super) last: Option<u64>,
    /// The last one after which the device is not to be trusted.
    pub(super) fatal: Option<u64>,
}

/// What was heard, by UUID. All clones are one log; it outlives the sessions.
#[derive(Clone, Debug, Default)]
pub(super) struct XidLog(Arc<Mutex<BTreeMap<String, Xids>>>);

/// Listens until it is dropped.
#[derive(Debug)]
pub(super) struct XidWatch {
    state: Arc<WatchState>,
}

#[derive(Debug, Default)]
struct WatchState {
    stop: AtomicBool,
    listens: AtomicBool,
}

// === impl XidLog ===

impl XidLog {
    /// What was heard of the device.
    pub(super) fn of(&self, uuid: &str) -> Xids {
        self.lock().get(uuid).copied().unwrap_or_default()
    }

    /// The device was reset: it may be trusted again.
    pub(super) fn trust(&self, uuid: &str) {
        if let Some(xids) = self.lock().get_mut(uuid) {
            xids.fatal = None;
        }
    }

    fn note(&self, uuid: String, xid: u64) {
        tracing::warn!(uuid, xid, "a GPU reports an XID error");
        let mut log = self.lock();
        let xids = log.entry(uuid).or_default();
        xids.events += 1;
        xids.last = Some(xid);
        if is_fatal_xid(xid) {
            xids.fatal = Some(xid);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Xids>> {
        // Every write leaves the log whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl XidWatch ===

impl XidWatch {
    /// Listens to every device of `library` that has such events, and writes into `log`.
    pub(super) fn start(library: PathBuf, log: XidLog) -> Self {
        let state = Arc::new(WatchState::default());
        let shared = state.clone();
        let listen = move || {
            if let Err(error) = listen(&library, &log, &shared) {
                tracing::info!(%error, "no XID events");
            }
            shared.listens.store(false, Ordering::Relaxed);
        };
        if let Err(error) = std::thread::Builder::new().name("gpu-events".to_owned()).spawn(listen) {
            tracing::warn!(%error, "no thread for XID events");
        }
        Self { state }
    }

    /// Whether events would be heard.
    pub(super) fn listens(&self) -> bool {
        self.state.listens.load(Ordering::Relaxed)
    }
}

impl Drop for XidWatch {
    fn drop(&mut self) {
        // The thread may be inside a driver call; it is told to stop, not waited for.
        self.state.stop.store(true, Ordering::Relaxed);
    }
}

/// The event set cannot leave the library that it was made by, so the thread loads its own.
fn listen(library: &Path, log: &XidLog, state: &WatchState) -> Result<(), NvmlError> {
    let nvml = Nvml::builder().lib_path(library.as_os_str()).init()?;
    let mut set = nvml.create_event_set()?;
    let mut devices = 0;
    for index in 0..nvml.device_count()? {
        let Ok(device) = nvml.device_by_index(index) else { continue };
        if device.supported_event_types().is_ok_and(|types| types.contains(EventTypes::CRITICAL_XID_ERROR)) {
            let register = device.register_events(EventTypes::CRITICAL_XID_ERROR, set);
            set = register.map_err(|NvmlErrorWithSource { error, .. }| error)?;
            devices += 1;
        }
    }
    if devices == 0 {
        return Err(NvmlError::NotSupported);
    }
    state.listens.store(true, Ordering::Relaxed);
    while !state.stop.load(Ordering::Relaxed) {
        match set.wait(WAIT_MS) {
            Ok(event) => {
                let xid = match event.event_data {
                    Some(XidError::Value(xid)) => xid,
                    Some(XidError::Unknown) | None => UNKNOWN_XID,
                };
                if let Ok(uuid) = event.device.uuid() {
                    log.note(uuid, xid);
                }
            }
            Err(NvmlError::Timeout) => {}
            Err(NvmlError::GpuLost) => std::thread::sleep(LOST_PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
