//! The source without devices: always says why.

use super::{DeviceDetail, DeviceReading, DeviceSource, DriverInfo, SampleError};

/// A source that never has a device.
#[derive(Debug)]
pub struct NoDevices {
    reason: SampleError,
}

// === impl NoDevices ===

impl NoDevices {
    /// A source that answers every question with `reason`.
    pub fn new(reason: SampleError) -> Self {
        Self { reason }
    }
}

impl DeviceSource for NoDevices {
    fn name(&self) -> &'static str {
        "none"
    }

    fn driver(&mut self) -> Result<DriverInfo, SampleError> {
        Err(self.reason.clone())
    }

    fn sample(&mut self) -> Result<Vec<DeviceReading>, SampleError> {
        Err(self.reason.clone())
    }

    fn inspect(&mut self) -> Result<Vec<DeviceDetail>, SampleError> {
        Err(self.reason.clone())
    }
}
