//! The C ABI: `include/gitdevops.h` is its description, `docs/formats/c-abi.md` its rules.
//!
//! Every entry point goes through `guard`: NULL and a panic become a negative number and a sentence, never a crash.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;

use git_devops::chunk::{Chunker, ChunkerSpec};
use git_devops::error::{Error, Kind, Result};
use git_devops::id::ChunkId;

/// A chunker and what C must know about it; the header leaves it incomplete.
#[allow(non_camel_case_types)]
pub struct gdo_chunker {
    chunker: Chunker,
    max_len: usize,
}

/// Returns the version of the library, a string that lives as long as the program.
#[unsafe(no_mangle)]
pub extern "C" fn gdo_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("BUG: the version has a NUL"),
    };
    VERSION.as_ptr()
}

/// Returns what went wrong in the last failed call of this thread, until its next failed call; "" if none failed.
#[unsafe(no_mangle)]
pub extern "C" fn gdo_last_error() -> *const c_char {
    LAST_ERROR.try_with(|error| error.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Writes the id of a chunk, 32 bytes, to `out`.
///
/// # Safety
///
/// `data` is NULL or has `len` readable bytes; `out` is NULL or has 32 writable ones.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gdo_chunk_id(data: *const u8, len: usize, out: *mut u8) -> c_int {
    guard(|| {
        // SAFETY: the header requires `len` readable bytes.
        let data = unsafe { bytes(data, len)? };
        if out.is_null() {
            return Err(null("out"));
        }
        let id = ChunkId::of(data);
        // SAFETY: the header requires 32 writable bytes, and NULL was refused above; `id` is our own.
        unsafe { out.copy_from_nonoverlapping(id.as_bytes().as_ptr(), id.as_bytes().len()) };
        Ok(())
    })
}

/// Makes a chunker from the text of its parameters.
///
/// # Safety
///
/// `spec` is NULL or ends with a NUL; `out` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gdo_chunker_new(spec: *const c_char, out: *mut *mut gdo_chunker) -> c_int {
    guard(|| {
        if out.is_null() {
            return Err(null("out"));
        }
        // SAFETY: the header requires that it can be written, and NULL was refused above.
        unsafe { out.write(std::ptr::null_mut()) };
        if spec.is_null() {
            return Err(null("spec"));
        }
        // SAFETY: the header requires a NUL at the end, and NULL was refused above.
        let spec = unsafe { CStr::from_ptr(spec) };
        let spec: ChunkerSpec = spec.to_string_lossy().parse()?;
        let chunker = gdo_chunker { chunker: Chunker::new(&spec), max_len: spec.max_len() };
        // SAFETY: as above.
        unsafe { out.write(Box::into_raw(Box::new(chunker))) };
        Ok(())
    })
}

/// Writes the length of the chunk at the start of `data` to `out_len`.
///
/// # Safety
///
/// `chunker` is NULL or from `gdo_chunker_new` and used by no other thread; `data` is NULL or has `len` readable bytes;
/// `out_len` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gdo_chunker_cut(chunker: *mut gdo_chunker, data: *const u8, len: usize, out_len: *mut usize) -> c_int {
    guard(|| {
        // SAFETY: the header requires a chunker of ours that nobody else uses now.
        let chunker = unsafe { chunker.as_mut() }.ok_or_else(|| null("chunker"))?;
        // SAFETY: the header requires `len` readable bytes.
        let data = unsafe { bytes(data, len)? };
        if out_len.is_null() {
            return Err(null("out_len"));
        }
        let length = chunker.chunker.cut(data);
        // SAFETY: the header requires that it can be written, and NULL was refused above.
        unsafe { out_len.write(length) };
        Ok(())
    })
}

/// Returns the length that no chunk exceeds; 0 if `chunker` is NULL.
///
/// # Safety
///
/// `chunker` is NULL or from `gdo_chunker_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gdo_chunker_max_len(chunker: *const gdo_chunker) -> usize {
    let mut max_len = 0;
    guard(|| {
        // SAFETY: the header requires a chunker of ours.
        max_len = unsafe { chunker.as_ref() }.ok_or_else(|| null("chunker"))?.max_len;
        Ok(())
    });
    max_len
}

/// Takes the chunker to the start of another stream.
///
/// # Safety
///
/// `chunker` is NULL or from `gdo_chunker_new` and used by no other thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gdo_chunker_reset(chunker: *mut gdo_chunker) -> c_int {
    guard(|| {
        // SAFETY: the header requires a chunker of ours that nobody else uses now.
        unsafe { chunker.as_mut() }.ok_or_else(|| null("chunker"))?.chunker.reset();
        Ok(())
    })
}

/// Frees a chunker; NULL is left alone.
///
/// # Safety
///
/// `chunker` is NULL or from `gdo_chunker_new`, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gdo_chunker_free(chunker: *mut gdo_chunker) {
    guard(|| {
        if !chunker.is_null() {
            // SAFETY: the header requires a chunker of ours that is freed once.
            drop(unsafe { Box::from_raw(chunker) });
        }
        Ok(())
    });
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs the work of an entry point and returns what C gets: 0, or a negative number and a sentence for `gdo_last_error`.
fn guard(work: impl FnOnce() -> Result<()>) -> c_int {
    // A panic may leave what `work` borrows half changed, in ways that are safe to use or free; the header says to free it.
    let outcome = catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Error::new(Kind::Bug, "the library failed in a way it should not; please report it")));
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            let code = code(error.kind());
            let text = format!("{error:#}").replace('\0', "\\0");
            let text = CString::new(text).expect("BUG: every NUL was replaced");
            // While a thread ends there is no place for the sentence; the code has to do.
            let _ = LAST_ERROR.try_with(|last| last.replace(text));
            code
        }
    }
}

/// Returns the number that the header gives to a kind of error; a number never gets another meaning.
fn code(kind: Kind) -> c_int {
    match kind {
        Kind::Usage => -1,
        Kind::NotFound => -2,
        Kind::Corrupt => -3,
        Kind::Io => -4,
        Kind::NoSpace => -5,
        Kind::Locked => -6,
        Kind::Refused => -7,
        Kind::Conflict => -8,
        Kind::Partial => -9,
        Kind::Unsupported => -10,
        Kind::Bug => -11,
        Kind::Halted => -12,
        Kind::Reboot => -13,
    }
}

/// Returns `len` bytes from C; NULL stands for no bytes only where `len` is 0.
///
/// # Safety
///
/// `data` is NULL or has `len` readable bytes, unchanged while they are used.
unsafe fn bytes<'a>(data: *const u8, len: usize) -> Result<&'a [u8]> {
    match (data.is_null(), len) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(null("data")),
        (false, _) if isize::try_from(len).is_err() => {
            Err(Error::new(Kind::Usage, format!("'len' is {len}; no data is so long")))
        }
        // SAFETY: the caller promises `len` readable bytes; NULL and a length beyond the address space were refused above.
        (false, _) => Ok(unsafe { slice::from_raw_parts(data, len) }),
    }
}

fn null(name: &str) -> Error {
    Error::new(Kind::Usage, format!("'{name}' is NULL; it must point to something"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_number_and_a_sentence() {
        assert_eq!(guard(|| panic!("on purpose")), -11);
        // SAFETY: the string lives until the next failed call of this thread.
        let text = unsafe { CStr::from_ptr(gdo_last_error()) };
        assert_eq!(text, c"the library failed in a way it should not; please report it");
    }

    #[test]
    fn the_header_gives_each_kind_the_number_that_the_code_does() {
        let header = include_str!("../include/gitdevops.h");
        for kind in [
            Kind::Usage,
            Kind::NotFound,
            Kind::Corrupt,
            Kind::Io,
            Kind::NoSpace,
            Kind::Locked,
            Kind::Refused,
            Kind::Conflict,
            Kind::Partial,
            Kind::Unsupported,
            Kind::Bug,
        ] {
            let definition = format!("    GDO_E{} = {}", format!("{kind:?}").to_uppercase(), code(kind));
            let is_there = header.lines().any(|line| line.split([',', '/']).next().map(str::trim_end) == Some(&definition));
            assert!(is_there, "{definition}");
        }
    }
}
