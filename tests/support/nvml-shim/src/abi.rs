//! Crossing the C boundary: return codes, out-pointers, strings, panics.

use std::ffi::{CStr, c_char, c_uint};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use nvml_wrapper_sys::bindings as nvml;

/// A failure, by NVML's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code(nvml::nvmlReturn_t);

impl Code {
    pub(crate) const UNINITIALIZED: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED);
    pub(crate) const INVALID_ARGUMENT: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
    pub(crate) const NOT_SUPPORTED: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED);
    pub(crate) const NOT_FOUND: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_NOT_FOUND);
    pub(crate) const INSUFFICIENT_SIZE: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE);
    pub(crate) const DRIVER_NOT_LOADED: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED);
    pub(crate) const FUNCTION_NOT_FOUND: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_FUNCTION_NOT_FOUND);
    pub(crate) const TIMEOUT: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_TIMEOUT);
    pub(crate) const GPU_IS_LOST: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST);
    pub(crate) const UNKNOWN: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_UNKNOWN);
}

/// How often `nvmlInit*` succeeded more than `nvmlShutdown`; NVML counts references too.
static REFERENCES: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn retain() {
    REFERENCES.fetch_add(1, Ordering::SeqCst);
}

pub(crate) fn release() -> Result<(), Code> {
    let less = REFERENCES.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1));
    less.map(drop).map_err(|_| Code::UNINITIALIZED)
}

/// Runs the body of an exported function. A panic becomes `UNKNOWN`, for unwinding into C is undefined.
pub(crate) fn guard(body: impl FnOnce() -> Result<(), Code>) -> nvml::nvmlReturn_t {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => nvml::nvmlReturn_enum_NVML_SUCCESS,
        Ok(Err(Code(code))) => code,
        Err(_) => nvml::nvmlReturn_enum_NVML_ERROR_UNKNOWN,
    }
}

/// As [`guard`], for everything but `nvmlInit*` and `nvmlShutdown`: `UNINITIALIZED` between them.
pub(crate) fn query(body: impl FnOnce() -> Result<(), Code>) -> nvml::nvmlReturn_t {
    guard(|| if REFERENCES.load(Ordering::SeqCst) == 0 { Err(Code::UNINITIALIZED) } else { body() })
}

/// Writes an answer to the caller's out-pointer.
///
/// # Errors
/// `INVALID_ARGUMENT` when it is null.
///
/// # Safety
/// `out` is null or valid for a write of `T`.
pub(crate) unsafe fn store<T>(out: *mut T, value: T) -> Result<(), Code> {
    if out.is_null() {
        return Err(Code::INVALID_ARGUMENT);
    }
    // SAFETY: `out` is not null, so by this function's contract it is valid for a write of `T`.
    unsafe { out.write(value) };
    Ok(())
}

/// Writes a string and its closing NUL to the caller's buffer.
///
/// # Errors
/// `INVALID_ARGUMENT` for a null buffer, `INSUFFICIENT_SIZE` when it is too short; nothing is written then.
///
/// # Safety
/// `out` is null or valid for writes of `length` bytes.
pub(crate) unsafe fn store_string(out: *mut c_char, length: c_uint, text: &str) -> Result<(), Code> {
    if out.is_null() {
        return Err(Code::INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(Code::INSUFFICIENT_SIZE);
    }
    // SAFETY: `out` is not null, so it is valid for `length` bytes, and `text` with its NUL is no longer than that. The
    // source is a Rust string of our own, which cannot overlap the caller's buffer.
    unsafe {
        out.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len());
        out.add(text.len()).write(0);
    }
    Ok(())
}

/// Reads a string that the caller passes in.
///
/// # Errors
/// `INVALID_ARGUMENT` when it is null or not UTF-8.
///
/// # Safety
/// `text` is null or points to a NUL-terminated string that outlives the returned reference.
pub(crate) unsafe fn load_string<'a>(text: *const c_char) -> Result<&'a str, Code> {
    if text.is_null() {
        return Err(Code::INVALID_ARGUMENT);
    }
    // SAFETY: `text` is not null, so by this function's contract it is NUL-terminated and lives long enough.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| Code::INVALID_ARGUMENT)
}

/// The words that driver 580.159 has for its codes, from 0 on.
const WORDS: [&CStr; 31] = [
    c"Success",
    c"Uninitialized",
    c"Invalid Argument",
    c"Not Supported",
    c"Insufficient Permissions",
    c"Already Initialized",
    c"Not Found",
    c"Insufficient Size",
    c"Insufficient External Power",
    c"Driver Not Loaded",
    c"Timeout",
    c"Interrupt Request Issue",
    c"NVML Shared Library Not Found",
    c"Function Not Found",
    c"Corrupted infoROM",
    c"GPU is lost",
    c"GPU requires reset",
    c"GPU access blocked by the operating system",
    c"Driver/library version mismatch",
    c"In use by another client",
    c"Insufficient Memory",
    c"No data",
    c"vGPU ECC not supported",
    c"Insufficient Resources",
    c"Invalid Frequency",
    c"Argument version mismatch",
    c"Requested functionality has been deprecated",
    c"System is not in ready state",
    c"No supported GPUs were found",
    c"Resource not in correct state to perform requested operation",
    c"Reset type is not supported for given device",
];

/// The words that `nvmlErrorString` has for a code.
pub(crate) fn describe(code: nvml::nvmlReturn_t) -> &'static CStr {
    WORDS.get(code as usize).copied().unwrap_or(c"Unknown Error")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_does_not_cross_the_boundary() {
        assert_eq!(guard(|| panic!("inside the shim")), nvml::nvmlReturn_enum_NVML_ERROR_UNKNOWN);
    }

    #[test]
    fn each_code_has_its_own_words() {
        assert_eq!(describe(nvml::nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST), c"GPU is lost");
        assert_eq!(describe(nvml::nvmlReturn_enum_NVML_ERROR_RESET_TYPE_NOT_SUPPORTED), c"Reset type is not supported for given device");
        assert_eq!(describe(nvml::nvmlReturn_enum_NVML_ERROR_UNKNOWN), c"Unknown Error");
    }

    #[test]
    fn a_string_is_written_whole_or_not_at_all() {
        let mut buffer = [b'x' as c_char; 4];
        // SAFETY: the buffer has four bytes, and both lengths passed are at most four.
        let (short, exact) = unsafe { (store_string(buffer.as_mut_ptr(), 3, "abc"), buffer) };
        assert_eq!((short, exact), (Err(Code::INSUFFICIENT_SIZE), [b'x' as c_char; 4]), "no room for the NUL");
        // SAFETY: as above.
        assert_eq!(unsafe { store_string(buffer.as_mut_ptr(), 4, "abc") }, Ok(()));
        assert_eq!(buffer, [b'a', b'b', b'c', 0].map(|byte| byte as c_char));
    }

    #[test]
    fn null_pointers_are_invalid_arguments() {
        // SAFETY: null is allowed by each contract.
        unsafe {
            assert_eq!(store(std::ptr::null_mut(), 1), Err(Code::INVALID_ARGUMENT));
            assert_eq!(store_string(std::ptr::null_mut(), 9, "a"), Err(Code::INVALID_ARGUMENT));
            assert_eq!(load_string(std::ptr::null()), Err(Code::INVALID_ARGUMENT));
        }
    }
}
