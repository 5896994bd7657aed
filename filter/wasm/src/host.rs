//! Total functions over the host's calls: every status is a value, every result is bytes, nothing here can panic.

use crate::abi;
use core::ptr::NonNull;
use headgate_core::in_band::{LoadHeader, LoadSeen};
use headgate_core::stream::{FAILED_DEPENDENCY_HEADER, FAILED_DEPENDENCY_METADATA, HeaderOp, Reply};
use headgate_core::time::Timestamp;
use std::alloc::Layout;
use std::cell::Cell;
use std::ops::Deref;

/// A status other than `ok` from a host call. Numbers: proxy-wasm ABI 0.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostError(i32);

impl HostError {
    /// There is no such value.
    pub(crate) const NOT_FOUND: HostError = HostError(1);
    /// Somebody else wrote the value first.
    pub(crate) const CAS_MISMATCH: HostError = HostError(8);
}

/// What the host does with a stream after a callback.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Action {
    /// Goes on.
    Continue = 0,
    /// Stops here; after a local reply nothing may reach the upstream.
    Pause = 1,
}

/// Severity of a log line.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum LogLevel {
    /// Wrong.
    Error = 4,
}

/// Kind of a metric.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum MetricKind {
    /// Only grows.
    Counter = 0,
    /// Goes up and down.
    Gauge = 1,
}

/// Where [`buffer`] reads.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum BufferKind {
    /// The piece of a response's body that a callback is about.
    ResponseBody = 1,
    /// Message of a gRPC stream.
    GrpcMessage = 5,
    /// Configuration of the plugin.
    PluginConfiguration = 7,
}

const REQUEST: u32 = 0;
const REQUEST_HEADERS: u32 = 0;
const RESPONSE_HEADERS: u32 = 2;
const CLOCK_MONOTONIC: u32 = 1;

thread_local! {
    static ERRORS: Cell<u64> = const { Cell::new(0) };
}

/// Statuses so far that no caller expects.
pub(crate) fn errors() -> u64 {
    ERRORS.get()
}

fn check(status: i32) -> Result<(), HostError> {
    let error = HostError(status);
    if status == 0 {
        return Ok(());
    }
    if error != HostError::NOT_FOUND && error != HostError::CAS_MISMATCH {
        ERRORS.set(ERRORS.get().wrapping_add(1));
    }
    Err(error)
}

/// Values up to this size share one buffer that is never given back: a request needs one at a time.
const SPARE_SIZE: usize = 16 << 10;

thread_local! {
    /// That buffer, while nobody uses it.
    static SPARE: Cell<Option<NonNull<u8>>> = const { Cell::new(None) };
}

/// Memory of `size` bytes for the host to fill; [`Bytes`] gives it back. Null if there is none.
#[cfg(target_arch = "wasm32")]
pub(crate) fn allocate(size: usize) -> *mut u8 {
    if size <= SPARE_SIZE
        && let Some(spare) = SPARE.take()
    {
        return spare.as_ptr();
    }
    // SAFETY: the layout is not zero-sized.
    layout(size).map_or(core::ptr::null_mut(), |layout| unsafe { std::alloc::alloc(layout) })
}

/// What is allocated for a value of `size` bytes.
fn layout(size: usize) -> Option<Layout> {
    Layout::array::<u8>(size.max(SPARE_SIZE)).ok()
}

/// A value that the host has handed over.
#[derive(Default)]
pub(crate) struct Bytes {
    data: Option<NonNull<u8>>,
    size: usize,
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the host got `data` from `allocate(size)`, filled it and keeps no pointer to it; it is ours until we are dropped.
        self.data.map_or(&[], |data| unsafe { core::slice::from_raw_parts(data.as_ptr(), self.size) })
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        let (Some(data), Some(layout)) = (self.data, layout(self.size)) else { return };
        if layout.size() == SPARE_SIZE && SPARE.get().is_none() {
            return SPARE.set(Some(data));
        }
        // SAFETY: `allocate` got `data` with this layout.
        unsafe { std::alloc::dealloc(data.as_ptr(), layout) };
    }
}

/// Calls `call` with the two out-pointers of a value.
fn value(call: impl FnOnce(*mut *mut u8, *mut usize) -> i32) -> Result<Bytes, HostError> {
    let (mut data, mut size) = (core::ptr::null_mut(), 0);
    check(call(&raw mut data, &raw mut size))?;
    Ok(Bytes { data: NonNull::new(data), size })
}

// In every block below: each pointer is into a live slice or variable of ours, its length goes with it, and the host keeps none.

/// Writes one line to the proxy's log. Never give it bytes of a request.
pub(crate) fn log(level: LogLevel, line: &str) {
    // SAFETY: pointers as said above.
    unsafe { abi::proxy_log(level as u32, line.as_ptr(), line.len()) };
}

/// Monotonic time, the same in every VM of the process; the time zero if the host has no clock.
pub(crate) fn now() -> Timestamp {
    let mut nanos = 0;
    // SAFETY: pointers as said above.
    unsafe { abi::clock_time_get(CLOCK_MONOTONIC, 0, &raw mut nanos) };
    Timestamp::from_nanos(nanos)
}

/// A random number that no other VM has.
pub(crate) fn random() -> Result<u64, HostError> {
    let mut bytes = [0; 8];
    // SAFETY: pointers as said above.
    check(unsafe { abi::random_get(bytes.as_mut_ptr(), bytes.len()) })?;
    Ok(u64::from_le_bytes(bytes))
}

/// Calls the tick of this root every `period_ms`.
pub(crate) fn set_tick_period(period_ms: u32) -> Result<(), HostError> {
    // SAFETY: no pointers.
    check(unsafe { abi::proxy_set_tick_period_milliseconds(period_ms) })
}

/// The last `size` bytes of the piece of a response's body, of `len`, that a callback is about; none if the host does not give them.
pub(crate) fn body_tail(len: usize, size: usize) -> Bytes {
    let size = size.min(len);
    buffer(BufferKind::ResponseBody, len - size, size).unwrap_or_default()
}

/// `size` bytes of a buffer, from `start` on.
pub(crate) fn buffer(kind: BufferKind, start: usize, size: usize) -> Result<Bytes, HostError> {
    // SAFETY: pointers as said above.
    value(|data, len| unsafe { abi::proxy_get_buffer_bytes(kind as u32, start, size, data, len) })
}

/// All request headers in the host's encoding, which `HeaderView::from_serialized` reads in place.
pub(crate) fn request_headers() -> Result<Bytes, HostError> {
    // SAFETY: pointers as said above.
    value(|data, len| unsafe { abi::proxy_get_header_map_pairs(REQUEST_HEADERS, data, len) })
}

/// One response header; the first of several.
pub(crate) fn response_header(name: &str) -> Result<Bytes, HostError> {
    // SAFETY: pointers as said above.
    value(|data, len| unsafe { abi::proxy_get_header_map_value(RESPONSE_HEADERS, name.as_ptr(), name.len(), data, len) })
}

/// The dependency that the response's headers name as failed, or that Envoy's `header_to_metadata` filter has kept of them.
pub(crate) fn failed_dependency() -> Option<Bytes> {
    response_header(FAILED_DEPENDENCY_HEADER).or_else(|_| property(FAILED_DEPENDENCY_METADATA)).ok()
}

/// Endpoint, header and value, where the response's headers say something of the engine's load. With the body Envoy does not show them, but
/// what its `header_to_metadata` filter has kept of them, which also takes them off what the client gets.
pub(crate) fn engine_load(seen: LoadSeen) -> Option<(Bytes, LoadHeader, Bytes)> {
    let read = |header: LoadHeader| match seen {
        LoadSeen::AtFirstByte => property(header.metadata()),
        LoadSeen::AtEnd => response_header(header.name()).or_else(|_| property(header.metadata())),
    };
    let (header, value) = LoadHeader::ALL.into_iter().find_map(|header| read(header).ok().map(|value| (header, value)))?;
    Some((property("upstream\0address").ok()?, header, value))
}

/// Changes a request header: sets it whatever was there, or removes every one of that name.
fn change_request_header(change: &HeaderOp) -> Result<(), HostError> {
    check(match change {
        HeaderOp::Set { name, value } => {
            let (value, size) = (value.as_ptr(), value.len());
            // SAFETY: pointers as said above.
            unsafe { abi::proxy_replace_header_map_value(REQUEST_HEADERS, name.as_ptr(), name.len(), value, size) }
        }
        // SAFETY: pointers as said above.
        HeaderOp::Remove { name } => unsafe { abi::proxy_remove_header_map_value(REQUEST_HEADERS, name.as_ptr(), name.len()) },
    })
}

/// Changes request headers, which can be done only before the request goes on. A header that cannot be changed is a host error, which is
/// counted; `action` is done with the request nevertheless.
pub(crate) fn change_request_headers(changes: &[HeaderOp], action: Action) -> Action {
    for change in changes {
        let _ = change_request_header(change);
    }
    action
}

/// A property; the parts of `path` are separated by NUL.
pub(crate) fn property(path: &str) -> Result<Bytes, HostError> {
    // SAFETY: pointers as said above.
    value(|data, len| unsafe { abi::proxy_get_property(path.as_ptr(), path.len(), data, len) })
}

/// Sets filter state `wasm.<name>`.
pub(crate) fn set_filter_state(name: &str, value: &[u8]) -> Result<(), HostError> {
    // SAFETY: pointers as said above.
    check(unsafe { abi::proxy_set_property(name.as_ptr(), name.len(), value.as_ptr(), value.len()) })
}

/// A shared value and its CAS number, never 0.
pub(crate) fn shared(key: &str) -> Result<(Bytes, u32), HostError> {
    let mut cas = 0;
    // SAFETY: pointers as said above.
    let bytes = value(|data, len| unsafe { abi::proxy_get_shared_data(key.as_ptr(), key.len(), data, len, &raw mut cas) })?;
    Ok((bytes, cas))
}

/// Sets a shared value if its CAS number is still `cas`; 0 sets it whatever it is.
pub(crate) fn set_shared(key: &str, value: &[u8], cas: u32) -> Result<(), HostError> {
    // SAFETY: pointers as said above.
    check(unsafe { abi::proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), cas) })
}

/// A shared value, created empty if it does not exist: compare-and-set needs something to compare.
pub(crate) fn shared_or_empty(key: &str) -> Result<(Bytes, u32), HostError> {
    match shared(key) {
        Err(HostError::NOT_FOUND) => {
            set_shared(key, &[], 0)?;
            shared(key)
        }
        result => result,
    }
}

/// Reads a shared value, changes it and writes it back, again if somebody else was faster. `change` returns the new bytes and what is
/// returned once they are written; `None` leaves the value alone.
pub(crate) fn update_shared<T>(key: &str, mut change: impl FnMut(&[u8]) -> Option<(Vec<u8>, T)>) -> Option<T> {
    // Somebody else's success is what makes ours fail, so more failures than this mean a broken host.
    const ATTEMPTS: usize = 64;
    for _ in 0..ATTEMPTS {
        let (bytes, cas) = shared_or_empty(key).ok()?;
        let (changed, result) = change(&bytes)?;
        match set_shared(key, &changed, cas) {
            Ok(()) => return Some(result),
            Err(HostError::CAS_MISMATCH) => {}
            Err(_) => return None,
        }
    }
    None
}

/// Lets the calls that follow in this callback be about another stream; the host forgets it with the callback. Fails when the stream is gone.
pub(crate) fn turn_to(context: u32) -> Result<(), HostError> {
    // SAFETY: no pointers.
    check(unsafe { abi::proxy_set_effective_context(context) })
}

/// Lets a request go on that was held, once the current callback has returned.
pub(crate) fn continue_request() -> Result<(), HostError> {
    // SAFETY: no pointers.
    check(unsafe { abi::proxy_continue_stream(REQUEST) })
}

/// Answers the request here. The details show as `%RESPONSE_CODE_DETAILS%`.
pub(crate) fn reply(reply: &Reply) -> Result<(), HostError> {
    let Reply { status, headers, body, details } = reply;
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    let headers = encode_pairs(&headers);
    // SAFETY: pointers as said above.
    check(unsafe {
        abi::proxy_send_local_response(
            u32::from(*status),
            details.as_ptr(),
            details.len(),
            body.as_ptr(),
            body.len(),
            headers.as_ptr(),
            headers.len(),
            -1,
        )
    })
}

/// The number of the metric with that name; a new one every time, so ask once.
pub(crate) fn define_metric(kind: MetricKind, name: &str) -> Result<u32, HostError> {
    let mut id = 0;
    // SAFETY: pointers as said above.
    check(unsafe { abi::proxy_define_metric(kind as u32, name.as_ptr(), name.len(), &raw mut id) })?;
    Ok(id)
}

/// Adds to a metric.
pub(crate) fn increment_metric(id: u32, offset: i64) -> Result<(), HostError> {
    // SAFETY: no pointers.
    check(unsafe { abi::proxy_increment_metric(id, offset) })
}

/// Sets a gauge.
pub(crate) fn record_metric(id: u32, value: u64) -> Result<(), HostError> {
    // SAFETY: no pointers.
    check(unsafe { abi::proxy_record_metric(id, value) })
}

/// Opens a stream to `service`, an encoded `GrpcService`, and returns its token. A bare cluster name can abort the whole proxy, so
/// none is accepted here.
pub(crate) fn open_stream(service: &[u8], (name, method): (&str, &str)) -> Result<u32, HostError> {
    let mut token = 0;
    let metadata = encode_pairs(&[]);
    // SAFETY: pointers as said above.
    check(unsafe {
        abi::proxy_grpc_stream(
            service.as_ptr(),
            service.len(),
            name.as_ptr(),
            name.len(),
            method.as_ptr(),
            method.len(),
            metadata.as_ptr(),
            metadata.len(),
            &raw mut token,
        )
    })?;
    Ok(token)
}

/// Sends a message on a stream.
pub(crate) fn send(token: u32, message: &[u8]) -> Result<(), HostError> {
    // SAFETY: pointers as said above.
    check(unsafe { abi::proxy_grpc_send(token, message.as_ptr(), message.len(), 0) })
}

/// Closes a stream; inside its close callback this frees the host's entry. The token is dead afterwards.
pub(crate) fn close_stream(token: u32) -> Result<(), HostError> {
    // SAFETY: no pointers.
    check(unsafe { abi::proxy_grpc_close(token) })
}

/// Resets a stream from our side. The token is dead afterwards and no callback comes.
pub(crate) fn cancel_stream(token: u32) -> Result<(), HostError> {
    // SAFETY: no pointers.
    check(unsafe { abi::proxy_grpc_cancel(token) })
}

/// `count, (name length, value length)*, (name NUL value NUL)*`, all numbers u32 little-endian.
fn encode_pairs(pairs: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + pairs.iter().map(|(name, value)| name.len() + value.len() + 10).sum::<usize>());
    bytes.extend_from_slice(&(pairs.len() as u32).to_le_bytes());
    for (name, value) in pairs {
        bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
    }
    for (name, value) in pairs {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(value);
        bytes.push(0);
    }
    bytes
}
