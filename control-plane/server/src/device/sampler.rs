//! The thread that asks a device source and publishes what it says.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{DEFAULT_PERIOD, DeviceSource, DeviceState, LostDevice, MIN_PERIOD, SampleError, SourceState};
use crate::clock::Clock;

/// First wait after a failure; it doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(250);
/// Longest wait after failures: a GPU that returns is seen within this time.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Period of the slow figures.
const DETAIL_PERIOD: Duration = Duration::from_secs(1);

/// Handle to the sampling thread; dropping it ends the thread.
#[derive(Debug)]
pub struct Sampler {
    state: watch::Receiver<Arc<DeviceState>>,
    orders: mpsc::Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

/// Sets the period of a [`Sampler`] from elsewhere.
#[derive(Clone, Debug)]
pub struct SamplerControl {
    orders: mpsc::Sender<Order>,
}

#[derive(Debug)]
enum Order {
    Period(Duration),
    Stop,
}

// === impl Sampler ===

impl Sampler {
    /// Starts the thread on `source`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(source: Box<dyn DeviceSource>, clock: Clock) -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let (publish, state) = watch::channel(Arc::new(DeviceState::starting(source.name())));
        let task = Task { source, clock, publish, backoff: MIN_BACKOFF, detail_due: Instant::now() };
        let thread = std::thread::Builder::new().name("gpu-sampler".to_owned()).spawn(move || task.run(&inbox))?;
        Ok(Self { state, orders, thread: Some(thread) })
    }

    /// The newest state; the receiver wakes after every sample.
    pub fn state(&self) -> watch::Receiver<Arc<DeviceState>> {
        self.state.clone()
    }

    /// The control of the period.
    pub fn control(&self) -> SamplerControl {
        SamplerControl { orders: self.orders.clone() }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // The thread may be inside a driver call that never returns; it is told to stop, not waited for.
        let _ = self.orders.send(Order::Stop);
        drop(self.thread.take());
    }
}

// === impl SamplerControl ===

impl SamplerControl {
    /// Samples every `period` from now on, but not more often than [`MIN_PERIOD`].
    pub fn set_period(&self, period: Duration) {
        // A thread that has ended needs no period.
        let _ = self.orders.send(Order::Period(period.max(MIN_PERIOD)));
    }
}

/// What the thread owns.
struct Task {
    source: Box<dyn DeviceSource>,
    clock: Clock,
    publish: watch::Sender<Arc<DeviceState>>,
    backoff: Duration,
    detail_due: Instant,
}

// === impl Task ===

impl Task {
    fn run(mut self, inbox: &mpsc::Receiver<Order>) {
        let mut period = DEFAULT_PERIOD;
        let mut due = Instant::now();
        loop {
            match inbox.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Order::Period(wanted)) => {
                    period = wanted;
                    due = due.min(Instant::now() + period);
                }
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    let asked_at = Instant::now();
                    due = asked_at + self.ask().unwrap_or(period);
                }
            }
        }
    }

    /// Asks once and publishes; returns how long to wait when it failed.
    fn ask(&mut self) -> Option<Duration> {
        let at = self.clock.now();
        let mut state = DeviceState::clone(&self.publish.borrow());
        let failure = match self.source.sample().and_then(|readings| self.inspect(&mut state).map(|()| readings)) {
            Ok(readings) => {
                let before = std::mem::replace(&mut state.state, SourceState::Sampling);
                let lost_before = std::mem::take(&mut state.lost);
                state.take(at, readings);
                if before != SourceState::Sampling {
                    tracing::info!(source = %state.source, devices = state.devices.len(), "GPU telemetry is there");
                }
                say_changes(&lost_before, &state.lost);
                self.backoff = MIN_BACKOFF;
                None
            }
            Err(error) => {
                if !matches!(&state.state, SourceState::Failing(before) if *before == error) {
                    tracing::warn!(source = %state.source, %error, "no GPU telemetry");
                }
                state.state = SourceState::Failing(error);
                let wait = self.backoff;
                self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
                Some(wait)
            }
        };
        self.publish.send_replace(Arc::new(state));
        failure
    }

    fn inspect(&mut self, state: &mut DeviceState) -> Result<(), SampleError> {
        let now = Instant::now();
        if now >= self.detail_due {
            state.details = Arc::new(self.source.inspect()?);
            self.detail_due = now + DETAIL_PERIOD;
        }
        Ok(())
    }
}

/// Says once which devices are lost and which have come back.
fn say_changes(before: &[LostDevice], now: &[LostDevice]) {
    let among = |device: &LostDevice, others: &[LostDevice]| others.iter().any(|other| other.index == device.index);
    for device in now.iter().filter(|device| !among(device, before)) {
        tracing::warn!(gpu = device.index, uuid = %device.uuid, problem = device.lost, "a GPU is lost");
    }
    for device in before.iter().filter(|device| !among(device, now)) {
        tracing::info!(gpu = device.index, uuid = %device.uuid, "a GPU is back");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{DeviceDetail, DeviceReading, DeviceSample, DriverInfo};

    /// Answers from a list, one entry a sample; waits for the test to hand out the next.
    struct Scripted {
        answers: mpsc::Receiver<Result<u64, SampleError>>,
    }

    impl DeviceSource for Scripted {
        fn name(&self) -> &'static str {
            "scripted"
        }

        fn driver(&mut self) -> Result<DriverInfo, SampleError> {
            Ok(DriverInfo::default())
        }

        fn sample(&mut self) -> Result<Vec<DeviceReading>, SampleError> {
            let used = self.answers.recv().unwrap_or(Err(SampleError::Off))?;
            let sample = DeviceSample { uuid: "GPU-1".into(), memory_used_bytes: used, memory_total_bytes: 100, ..DeviceSample::default() };
            let lost = LostDevice { index: 1, lost: "fell off the bus".to_owned(), ..LostDevice::default() };
            let second =
                if used == 45 { DeviceReading::Lost(lost) } else { DeviceReading::Sample(DeviceSample { index: 1, ..sample.clone() }) };
            Ok(vec![DeviceReading::Sample(sample), second])
        }

        fn inspect(&mut self) -> Result<Vec<DeviceDetail>, SampleError> {
            Ok(vec![DeviceDetail { uuid: "GPU-1".to_owned(), ..DeviceDetail::default() }])
        }
    }

    #[tokio::test]
    async fn one_lost_device_takes_no_other_with_it() {
        let (script, answers) = mpsc::channel();
        let sampler = Sampler::start(Box::new(Scripted { answers }), Clock::start()).unwrap();
        let mut state = sampler.state();
        for (used, devices, lost) in [(40, 2, 0), (45, 1, 1), (50, 2, 0)] {
            script.send(Ok(used)).unwrap();
            let seen = state.wait_for(|state| state.devices.first().is_some_and(|device| device.memory_used_bytes == used)).await.unwrap();
            assert_eq!((&seen.state, seen.devices.len(), seen.lost.len()), (&SourceState::Sampling, devices, lost));
        }
        assert_eq!(state.borrow().epoch, 3);
    }

    #[tokio::test]
    async fn a_lost_driver_is_a_state_and_its_return_is_seen() {
        let (script, answers) = mpsc::channel();
        let sampler = Sampler::start(Box::new(Scripted { answers }), Clock::start()).unwrap();
        let mut state = sampler.state();

        script.send(Ok(40)).unwrap();
        let first = state.wait_for(|state| state.state == SourceState::Sampling).await.unwrap().clone();
        assert_eq!(first.devices[0].memory_used_bytes, 40);
        assert_eq!(first.details.len(), 1);

        let gone = SampleError::Lost { index: 0, problem: "fell off the bus".to_owned() };
        script.send(Err(gone.clone())).unwrap();
        let lost = state.wait_for(|state| matches!(state.state, SourceState::Failing(_))).await.unwrap().clone();
        assert_eq!(lost.state, SourceState::Failing(gone));
        assert_eq!(lost.sampled_at, first.sampled_at, "the last good sample stays, with its age");

        script.send(Ok(50)).unwrap();
        let back = state.wait_for(|state| state.state == SourceState::Sampling).await.unwrap().clone();
        assert_eq!(back.devices[0].memory_used_bytes, 50);
    }
}
