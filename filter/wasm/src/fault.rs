//! A fault on demand, for tests of what a trap costs. Only with feature `fault-injection`.

use headgate_core::request::HeaderView;

/// Traps the VM when the request says `x-fault: trap`.
pub(crate) fn trap_if_asked(headers: &HeaderView<'_>) {
    if headers.first(b"x-fault") == Some(b"trap".as_slice()) {
        #[cfg(target_arch = "wasm32")]
        core::arch::wasm32::unreachable();
    }
}
