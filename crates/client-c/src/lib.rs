//! The client of scache(8) for programs in C: `include/postkeep_scache.h` is its manual.
//!
//! All of `unsafe` here is what a C interface cannot do without: exported names, and pointers that callers promise to be
//! good. Each function turns them into references, slices or descriptors at once, and does the rest in safe code of
//! `postkeep-client`. No panic leaves a function: it ends in [`ERROR`].
#![allow(
    unsafe_code,
    reason = "a C interface: exported names, and pointers and descriptors from callers"
)]

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::time::Duration;

use postkeep_client::Place;
use postkeep_client::scache::{Client, Error, Session, Settings, Status};

/// `POSTKEEP_OK`
pub const OK: c_int = 0;
/// `POSTKEEP_NO`
pub const NO: c_int = 1;
/// `POSTKEEP_ERROR`
pub const ERROR: c_int = -1;

/// `struct postkeep_scache`
#[derive(Debug)]
pub struct Scache {
    settings: Settings,
    client: Client,
    error: CString,
}

/// `struct postkeep_session`
#[derive(Debug)]
pub struct Found {
    descriptor: Option<OwnedFd>,
    endpoint_property: CString,
    destination_property: CString,
}

/// Bytes of the caller; `None` for NULL, and for bytes with a NUL, which cannot be sent.
///
/// # Safety
/// `start` is NULL, or there are `length` bytes, which stay as they are for `'a`.
unsafe fn bytes<'a>(start: *const c_void, length: usize) -> Option<&'a [u8]> {
    if start.is_null() {
        return None;
    }
    // SAFETY: the caller's promise; a length that no object can have is refused.
    let bytes = (isize::try_from(length).is_ok())
        .then(|| unsafe { std::slice::from_raw_parts(start.cast::<u8>(), length) })?;
    (!bytes.contains(&0)).then_some(bytes)
}

/// Text for C: what would end it early is left out.
fn text(bytes: Vec<u8>) -> CString {
    let mut bytes = bytes;
    bytes.retain(|&byte| byte != 0);
    CString::new(bytes).unwrap_or_default()
}

impl Scache {
    /// Runs an operation; a client that has given the cache up gets another chance with the next one.
    fn run<T>(
        &mut self,
        operation: impl FnOnce(&mut Client) -> Result<T, Error>,
    ) -> Result<T, c_int> {
        let outcome = catch_unwind(AssertUnwindSafe(|| operation(&mut self.client)));
        let reason = match outcome {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "internal error".to_owned(),
        };
        self.client = Client::new(self.settings.clone());
        self.refuse(&reason);
        Err(ERROR)
    }

    fn refuse(&mut self, reason: &str) -> c_int {
        self.error = text(reason.as_bytes().to_vec());
        ERROR
    }

    fn saved(&mut self, operation: impl FnOnce(&mut Client) -> Result<Status, Error>) -> c_int {
        match self.run(operation) {
            Ok(Status::Ok) => OK,
            Ok(_) => NO,
            Err(code) => code,
        }
    }

    fn found(
        &mut self,
        session: &mut *mut Found,
        operation: impl FnOnce(&mut Client) -> Result<Option<Session>, Error>,
    ) -> c_int {
        match self.run(operation) {
            Ok(Some(found)) => {
                let found = Found {
                    endpoint_property: text(found.endpoint_property),
                    destination_property: text(found.destination_property),
                    descriptor: Some(found.descriptor),
                };
                *session = Box::into_raw(Box::new(found));
                OK
            }
            Ok(None) => NO,
            Err(code) => code,
        }
    }
}

const BAD_ARGUMENT: &str = "bad argument";

/// See the header.
///
/// # Safety
/// `path` is NULL or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn postkeep_scache_open(
    path: *const c_char,
    announced: c_int,
    timeout: c_int,
) -> *mut Scache {
    let milliseconds = u64::try_from(timeout).unwrap_or(0);
    if path.is_null() || milliseconds == 0 {
        return ptr::null_mut();
    }
    // SAFETY: the caller's promise.
    let path = OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes());
    let settings = Settings {
        announced: announced != 0,
        limit: Duration::from_millis(milliseconds),
        delay: Duration::from_millis(10),
        ..Settings::new(Place::Path(path.into()))
    };
    Box::into_raw(Box::new(Scache {
        client: Client::new(settings.clone()),
        settings,
        error: CString::default(),
    }))
}

/// See the header.
///
/// # Safety
/// `cache` is NULL or from [`postkeep_scache_open`], and not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn postkeep_scache_close(cache: *mut Scache) {
    if !cache.is_null() {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(cache) });
    }
}

/// See the header.
///
/// # Safety
/// `cache` is NULL or from [`postkeep_scache_open`], and used by this thread only; the pointers are NULL or have so many
/// bytes; `fd` is negative or an open descriptor, which nobody else owns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn postkeep_scache_save_endpoint(
    cache: *mut Scache,
    ttl: c_int,
    label: *const c_void,
    label_length: usize,
    property: *const c_void,
    property_length: usize,
    fd: c_int,
) -> c_int {
    // SAFETY: the caller's promise; from here on it is closed in any case.
    let descriptor = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
    // SAFETY: the caller's promise.
    let (cache, label, property) = unsafe {
        (
            cache.as_mut(),
            bytes(label, label_length),
            bytes(property, property_length),
        )
    };
    let Some(cache) = cache else { return ERROR };
    match (label, property, descriptor) {
        (Some(label), Some(property), Some(descriptor)) if ttl > 0 => {
            cache.saved(|client| client.save_endpoint(ttl, label, property, descriptor))
        }
        _ => cache.refuse(BAD_ARGUMENT),
    }
}

/// See the header.
///
/// # Safety
/// As of [`postkeep_scache_save_endpoint`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn postkeep_scache_save_destination(
    cache: *mut Scache,
    ttl: c_int,
    label: *const c_void,
    label_length: usize,
    property: *const c_void,
    property_length: usize,
    endpoint: *const c_void,
    endpoint_length: usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let (cache, label, property, endpoint) = unsafe {
        (
            cache.as_mut(),
            bytes(label, label_length),
            bytes(property, property_length),
            bytes(endpoint, endpoint_length),
        )
    };
    let Some(cache) = cache else { return ERROR };
    match (label, property, endpoint) {
        (Some(label), Some(property), Some(endpoint)) if ttl > 0 => {
            cache.saved(|client| client.save_destination(ttl, label, property, endpoint))
        }
        _ => cache.refuse(BAD_ARGUMENT),
    }
}

/// See the header.
///
/// # Safety
/// As of [`postkeep_scache_save_endpoint`]; `session` is NULL or where a pointer may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn postkeep_scache_find_endpoint(
    cache: *mut Scache,
    label: *const c_void,
    label_length: usize,
    session: *mut *mut Found,
) -> c_int {
    // SAFETY: the caller's promise.
    let (cache, label) = unsafe { (cache.as_mut(), bytes(label, label_length)) };
    // SAFETY: the caller's promise; what is there before is not read.
    let Some(session) = (unsafe { cleared(session) }) else {
        return ERROR;
    };
    match (cache, label) {
        (Some(cache), Some(label)) => cache.found(session, |client| client.find_endpoint(label)),
        (Some(cache), None) => cache.refuse(BAD_ARGUMENT),
        (None, _) => ERROR,
    }
}

/// See the header.
///
/// # Safety
/// As of [`postkeep_scache_find_endpoint`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn postkeep_scache_find_destination(
    cache: *mut Scache,
    label: *const c_void,
    label_length: usize,
    session: *mut *mut Found,
) -> c_int {
    // SAFETY: the caller's promise.
    let (cache, label) = unsafe { (cache.as_mut(), bytes(label, label_length)) };
    // SAFETY: the caller's promise; what is there before is not read.
    let Some(session) = (unsafe { cleared(session) }) else {
        return ERROR;
    };
    match (cache, label) {
        (Some(cache), Some(label)) => cache.found(session, |client| client.find_destination(label)),
        (Some(cache), None) => cache.refuse(BAD_ARGUMENT),
        (None, _) => ERROR,
    }
}

/// The caller's place for a session, with NULL in it.
///
/// # Safety
/// It is NULL or where a pointer may be written, and nobody else uses it for `'a`.
unsafe fn cleared<'a>(place: *mut *mut Found) -> Option<&'a mut *mut Found> {
    if place.is_null() {
        return None;
    }
    // SAFETY: the caller's promise; written before anything could read it.
    unsafe {
        place.write(ptr::null_mut());
        place.as_mut()
    }
}

/// See the header.
///
/// # Safety
/// `cache` is NULL or from [`postkeep_scache_open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn postkeep_scache_error(cache: *const Scache) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { cache.as_ref() }.map_or(c"no cache".as_ptr(), |cache| cache.error.as_ptr())
}

/// See the header.
///
/// # Safety
/// `session` is NULL or was found, and is used by this thread only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn postkeep_session_take(session: *mut Found) -> c_int {
    // SAFETY: the caller's promise.
    let descriptor = unsafe { session.as_mut() }.and_then(|session| session.descriptor.take());
    descriptor.map_or(-1, OwnedFd::into_raw_fd)
}

/// Tells the length of a text, and where it is.
///
/// # Safety
/// `length` is NULL or where a length may be written.
unsafe fn told(text: Option<&CString>, length: *mut usize) -> *const c_char {
    let text = text.map_or(c"", CString::as_c_str);
    if !length.is_null() {
        // SAFETY: the caller's promise.
        unsafe { length.write(text.to_bytes().len()) };
    }
    text.as_ptr()
}

/// See the header.
///
/// # Safety
/// `session` is NULL or was found; `length` is NULL or where a length may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn postkeep_session_endpoint_property(
    session: *const Found,
    length: *mut usize,
) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe {
        let session = session.as_ref();
        told(session.map(|session| &session.endpoint_property), length)
    }
}

/// See the header.
///
/// # Safety
/// As of [`postkeep_session_endpoint_property`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn postkeep_session_destination_property(
    session: *const Found,
    length: *mut usize,
) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe {
        let session = session.as_ref();
        told(session.map(|session| &session.destination_property), length)
    }
}

/// See the header.
///
/// # Safety
/// `session` is NULL or was found, and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn postkeep_session_free(session: *mut Found) {
    if !session.is_null() {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(session) });
    }
}
