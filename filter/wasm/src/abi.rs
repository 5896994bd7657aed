//! proxy-wasm ABI 0.2.1: the one file that names the host's functions and ours. Declarations only; no logic.
//!
//! Envoy skips a callback that the module does not export, and each that it makes costs half a microsecond, so every export here is one
//! that a decision needs: contexts are known by their first request, the status is read in the log. The imports are in `host.rs`'s vocabulary nowhere else.
//! Source: <https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1>.

/// Declares the host's functions; natively, where there is no host, each answers [`UNIMPLEMENTED`].
macro_rules! imports {
    ($module:literal { $(fn $name:ident($($arg:ident: $type:ty),*) -> i32;)* }) => {
        #[cfg(target_arch = "wasm32")]
        #[link(wasm_import_module = $module)]
        unsafe extern "C" {
            $(pub(crate) fn $name($($arg: $type),*) -> i32;)*
        }
        $(#[cfg(not(target_arch = "wasm32"))]
        pub(crate) unsafe extern "C" fn $name($(_: $type),*) -> i32 {
            UNIMPLEMENTED
        })*
    };
}

/// The host does not know the function.
#[cfg(not(target_arch = "wasm32"))]
const UNIMPLEMENTED: i32 = 12;

imports! { "env" {
    fn proxy_log(level: u32, data: *const u8, size: usize) -> i32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> i32;
    fn proxy_get_buffer_bytes(kind: u32, start: usize, max: usize, data: *mut *mut u8, size: *mut usize) -> i32;
    fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut usize) -> i32;
    fn proxy_get_header_map_value(map: u32, key: *const u8, key_size: usize, data: *mut *mut u8, size: *mut usize) -> i32;
    fn proxy_replace_header_map_value(map: u32, key: *const u8, key_size: usize, value: *const u8, value_size: usize) -> i32;
    fn proxy_remove_header_map_value(map: u32, key: *const u8, key_size: usize) -> i32;
    fn proxy_get_property(path: *const u8, path_size: usize, data: *mut *mut u8, size: *mut usize) -> i32;
    fn proxy_set_property(path: *const u8, path_size: usize, value: *const u8, value_size: usize) -> i32;
    fn proxy_get_shared_data(key: *const u8, key_size: usize, data: *mut *mut u8, size: *mut usize, cas: *mut u32) -> i32;
    fn proxy_set_shared_data(key: *const u8, key_size: usize, value: *const u8, value_size: usize, cas: u32) -> i32;
    fn proxy_send_local_response(
        status: u32, details: *const u8, details_size: usize, body: *const u8, body_size: usize,
        headers: *const u8, headers_size: usize, grpc_status: i32
    ) -> i32;
    fn proxy_continue_stream(kind: u32) -> i32;
    fn proxy_set_effective_context(context: u32) -> i32;
    fn proxy_define_metric(kind: u32, name: *const u8, name_size: usize, id: *mut u32) -> i32;
    fn proxy_increment_metric(id: u32, offset: i64) -> i32;
    fn proxy_record_metric(id: u32, value: u64) -> i32;
    fn proxy_grpc_stream(
        service: *const u8, service_size: usize, name: *const u8, name_size: usize, method: *const u8, method_size: usize,
        metadata: *const u8, metadata_size: usize, token: *mut u32
    ) -> i32;
    fn proxy_grpc_send(token: u32, message: *const u8, message_size: usize, end_stream: u32) -> i32;
    fn proxy_grpc_close(token: u32) -> i32;
    fn proxy_grpc_cancel(token: u32) -> i32;
} }

imports! { "wasi_snapshot_preview1" {
    fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> i32;
    fn random_get(data: *mut u8, size: usize) -> i32;
} }

/// What the host calls. The bodies only cross from integers to [`crate::vm`].
#[cfg(target_arch = "wasm32")]
mod exports {
    use crate::{host, vm};

    /// Tells the host which ABI we speak.
    #[unsafe(no_mangle)]
    extern "C" fn proxy_abi_version_0_2_1() {}

    /// Memory for a value that the host hands over; [`host`] frees it.
    #[unsafe(no_mangle)]
    extern "C" fn malloc(size: usize) -> *mut u8 {
        host::allocate(size)
    }

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_configure(root: u32, size: usize) -> u32 {
        u32::from(vm::on_configure(root, size))
    }

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_tick(root: u32) {
        vm::on_tick(root);
    }

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_request_headers(context: u32, _headers: u32, _end_of_stream: u32) -> u32 {
        vm::on_request_headers(context) as u32
    }

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_response_body(context: u32, size: usize, end_of_stream: u32) -> u32 {
        vm::on_response_body(context, size, end_of_stream != 0);
        host::Action::Continue as u32
    }

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_log(context: u32) {
        vm::on_log(context);
    }

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_grpc_receive(root: u32, token: u32, size: usize) {
        vm::on_grpc_receive(root, token, size);
    }

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_grpc_close(root: u32, token: u32, _status: u32) {
        vm::on_grpc_close(root, token);
    }
}
