//! A filter that does nothing but cross the border to its host, as often as Headgate must for an admitted request. Its features are
//! steps: none but the context that Envoy makes for each request, then the three callbacks, then the header map, then two clock reads.
//!
//! What the last step adds to Envoy is the floor under any filter that decides by headers and measures time; `cargo xtask bench filter
//! --decompose` measures each. It is empty on native targets, where the host calls that it imports do not exist.

#[cfg(target_arch = "wasm32")]
mod exports {
    #[cfg(feature = "callbacks")]
    const CONTINUE: u32 = 0;
    /// More than the headers of a benchmark take.
    const BUFFER_SIZE: usize = 64 << 10;

    static mut BUFFER: [u8; BUFFER_SIZE] = [0; BUFFER_SIZE];

    /// Tells the host which ABI this is.
    #[unsafe(no_mangle)]
    extern "C" fn proxy_abi_version_0_2_1() {}

    /// Memory for a value that the host hands over: always the same, so that the allocation costs nothing.
    #[unsafe(no_mangle)]
    extern "C" fn malloc(size: usize) -> *mut u8 {
        if size <= BUFFER_SIZE { (&raw mut BUFFER).cast() } else { core::ptr::null_mut() }
    }

    #[cfg(feature = "callbacks")]
    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_request_headers(_context: u32, _headers: u32, _end_of_stream: u32) -> u32 {
        #[cfg(feature = "header-map")]
        read_headers();
        #[cfg(feature = "clocks")]
        read_clock();
        CONTINUE
    }

    #[cfg(feature = "callbacks")]
    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_response_body(_context: u32, _size: usize, _end_of_stream: u32) -> u32 {
        #[cfg(feature = "clocks")]
        read_clock();
        CONTINUE
    }

    #[cfg(feature = "callbacks")]
    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_log(_context: u32) {}

    #[cfg(feature = "header-map")]
    #[link(wasm_import_module = "env")]
    unsafe extern "C" {
        fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut usize) -> i32;
    }

    #[cfg(feature = "clocks")]
    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> i32;
    }

    #[cfg(feature = "header-map")]
    fn read_headers() {
        const REQUEST_HEADERS: u32 = 0;
        let (mut data, mut size) = (core::ptr::null_mut(), 0);
        // SAFETY: both pointers are to live variables, and the host keeps neither.
        unsafe { proxy_get_header_map_pairs(REQUEST_HEADERS, &raw mut data, &raw mut size) };
    }

    #[cfg(feature = "clocks")]
    fn read_clock() {
        const MONOTONIC: u32 = 1;
        let mut nanos = 0;
        // SAFETY: the pointer is to a live variable, and the host does not keep it.
        unsafe { clock_time_get(MONOTONIC, 0, &raw mut nanos) };
    }
}
