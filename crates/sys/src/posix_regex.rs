//! Regular expressions of the C library: regcomp(3), regexec(3), in its own locale (bytes, ASCII letters).
//!
//! The library protects a compiled expression by a lock, and keeps in it what it has learned; here an expression is
//! used by one thread at a time, and the caller keeps as many as it needs.
//!
//! # Bugs
//! The library has no limits. Its compiler takes time, memory and stack by the square of the number of optional
//! parts; back references can take exponential time. Callers must judge patterns before they come here.
#![allow(unsafe_code, reason = "regular expressions of the C library")]

use std::ffi::{CStr, CString, c_int};
use std::fmt;
use std::mem::MaybeUninit;

bitflags::bitflags! {
    /// Flags of regcomp(3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Options: c_int {
        /// Extended regular expressions; basic ones otherwise.
        const EXTENDED = libc::REG_EXTENDED;
        /// ASCII letters match in either case.
        const ICASE = libc::REG_ICASE;
        /// Lines: `.` and `[^x]` do not match a newline, `^` and `$` match beside each.
        const NEWLINE = libc::REG_NEWLINE;
        /// Nobody will ask where groups matched.
        const NOSUB = libc::REG_NOSUB;
    }
}

/// What the library says is wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Error(c_int);

impl Error {
    /// `Regular expression too big`.
    pub const TOO_BIG: Self = Self(libc::REG_ESIZE);
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = [0_u8; 256];
        // SAFETY: the buffer is as long as said; the library takes no expression for the text of a number.
        unsafe {
            libc::regerror(
                self.0,
                std::ptr::null(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
            );
        }
        let text = CStr::from_bytes_until_nul(&buffer).unwrap_or_default();
        f.write_str(&text.to_string_lossy())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "posix_regex::Error({self})")
    }
}

impl std::error::Error for Error {}

/// Where `re_nsub` is in `regex_t`, counted in machine words: `libc` has no name for it.
///
/// glibc has six words before it (`regex.h`, `struct re_pattern_buffer`), musl has it first.
const GROUPS_AT: usize = if cfg!(target_env = "musl") { 0 } else { 6 };

const _: () = assert!(size_of::<libc::regex_t>() > GROUPS_AT * size_of::<usize>());

/// A compiled expression.
pub struct Expression {
    /// On the heap, because the library may keep pointers into it.
    compiled: Box<libc::regex_t>,
}

// SAFETY: the library ties nothing to a thread; `find` takes the expression for itself.
unsafe impl Send for Expression {}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expression")
            .field("groups", &self.groups())
            .finish_non_exhaustive()
    }
}

impl Drop for Expression {
    fn drop(&mut self) {
        // SAFETY: it was compiled by `new`.
        unsafe { libc::regfree(&raw mut *self.compiled) };
    }
}

impl Expression {
    /// Compiles an expression; a NUL ends it.
    ///
    /// # Errors
    /// [`Error`] with the library's text.
    pub fn new(pattern: &[u8], options: Options) -> Result<Self, Error> {
        let end = pattern
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(pattern.len());
        let pattern = CString::new(&pattern[..end]).map_err(|_| Error(libc::REG_BADPAT))?;
        let mut compiled = Box::new(MaybeUninit::<libc::regex_t>::uninit());
        // SAFETY: the pattern ends with NUL; the structure is there to be filled.
        let code =
            unsafe { libc::regcomp(compiled.as_mut_ptr(), pattern.as_ptr(), options.bits()) };
        if code != 0 {
            // A failed regcomp has freed what it made.
            return Err(Error(code));
        }
        // SAFETY: regcomp succeeded and filled it.
        let compiled = unsafe { compiled.assume_init() };
        Ok(Self { compiled })
    }

    /// How many groups the expression has.
    pub fn groups(&self) -> usize {
        // SAFETY: the structure has a number there, which regcomp set; it is larger than that.
        unsafe {
            (&raw const *self.compiled)
                .cast::<usize>()
                .add(GROUPS_AT)
                .read()
        }
    }

    /// Whether the expression matches somewhere in `subject`.
    ///
    /// When it does, `spans` gets where each group matched, group 0 first; a group that took no part is empty.
    /// Its length is how many groups are wanted, group 0 included; none after [`Options::NOSUB`].
    ///
    /// # Errors
    /// [`Error`], for want of memory.
    pub fn find(&mut self, subject: &CStr, spans: &mut [(usize, usize)]) -> Result<bool, Error> {
        const UNSET: libc::regmatch_t = libc::regmatch_t {
            rm_so: -1,
            rm_eo: -1,
        };
        let mut few = [UNSET; 10];
        let mut many;
        let found = if spans.len() <= few.len() {
            &mut few[..spans.len()]
        } else {
            many = vec![UNSET; spans.len()];
            &mut many[..]
        };
        // SAFETY: the expression is compiled, the subject ends with NUL, `found` has the length that is said.
        let code = unsafe {
            libc::regexec(
                &raw const *self.compiled,
                subject.as_ptr(),
                found.len(),
                found.as_mut_ptr(),
                0,
            )
        };
        if code == libc::REG_NOMATCH {
            return Ok(false);
        }
        if code != 0 {
            return Err(Error(code));
        }
        let length = subject.count_bytes();
        for (span, found) in spans.iter_mut().zip(found.iter()) {
            *span = match (usize::try_from(found.rm_so), usize::try_from(found.rm_eo)) {
                (Ok(start), Ok(end)) if start <= end && end <= length => (start, end),
                _ => (0, 0),
            };
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Options = Options::EXTENDED.union(Options::ICASE);

    #[test]
    fn the_longest_match_counts() {
        let mut expression = Expression::new(b"(a|ab)(c|bcd)?", USUAL).unwrap();
        assert_eq!(expression.groups(), 2);
        let mut spans = [(9, 9); 3];
        assert_eq!(expression.find(c"xABCD", &mut spans), Ok(true));
        assert_eq!(spans, [(1, 5), (1, 2), (2, 5)]);
        assert_eq!(expression.find(c"xa", &mut spans), Ok(true));
        assert_eq!(spans[2].0, spans[2].1);
        assert_eq!(expression.find(c"x", &mut []), Ok(false));
    }

    #[test]
    fn errors_have_the_library_s_words() {
        let text = |pattern: &[u8]| Expression::new(pattern, USUAL).unwrap_err().to_string();
        assert_eq!(text(b"a("), "Unmatched ( or \\(");
        assert_eq!(text(b"a{2,1}"), "Invalid content of \\{\\}");
        assert_eq!(Error::TOO_BIG.to_string(), "Regular expression too big");
    }

    #[test]
    fn more_groups_than_the_usual_are_found() {
        let mut expression = Expression::new(&b"(a)".repeat(20), USUAL).unwrap();
        let mut spans = [(0, 0); 21];
        assert_eq!(
            expression.find(c"aaaaaaaaaaaaaaaaaaaa", &mut spans),
            Ok(true)
        );
        assert_eq!(spans[20], (19, 20));
    }
}
