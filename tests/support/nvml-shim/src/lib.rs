//! A stand-in for `libnvidia-ml.so.1`: NVML's C ABI, answered from a JSON file.
//!
//! The file is named by the environment variable [`STATE_VARIABLE`] and read anew on every query, so values are live;
//! whoever writes it replaces it by a rename. What differs from a real driver is where the numbers come from, nothing
//! else: names, layouts and error codes are those of `nvml.h`, a test holds every signature against the bindings, and its answers,
//! to wrong questions too, were compared with those of driver 580.159 on an H200.
//!
//! | state | answer |
//! |---|---|
//! | variable not set | `nvmlInit*` fails with `DRIVER_NOT_LOADED`, as on a machine without a GPU |
//! | file missing or not understood | `UNKNOWN` |
//! | `"lost": true` on a device | `GPU_IS_LOST` for every question about it |
//! | a device that is no longer listed | `GPU_IS_LOST` |
//! | a field that is absent | `NOT_SUPPORTED` |
//! | a number added to `xid_errors` | an event for every set that listens to the device |
//! | an entry of `mig_devices` | a MIG instance with a handle and memory of its own |

// The exported names are NVML's.
#![allow(non_snake_case)]

mod abi;
mod device;
mod event;
mod field;
mod state;
mod system;

pub use device::*;
pub use event::*;
pub use field::*;
pub use state::STATE_VARIABLE;
pub use system::*;
