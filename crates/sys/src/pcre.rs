//! Perl-compatible regular expressions: PCRE2 with bytes as characters and without its compiler to machine code.
//!
//! Compiled patterns are shared by all threads; each thread that matches has a working area of its own, which is
//! small again after each match.
#![allow(unsafe_code, reason = "PCRE2 is a C library")]

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::fmt;
use std::ptr::{self, NonNull};

use pcre2_sys as ffi;

bitflags::bitflags! {
    /// Options of a pattern (pcre2api(3), "Compiling a pattern").
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Options: u32 {
        /// ASCII letters match in either case.
        const CASELESS = ffi::PCRE2_CASELESS;
        /// `^` and `$` match at each line.
        const MULTILINE = ffi::PCRE2_MULTILINE;
        /// `.` matches a newline.
        const DOTALL = ffi::PCRE2_DOTALL;
        /// White space in the pattern is ignored, `#` begins a comment.
        const EXTENDED = ffi::PCRE2_EXTENDED;
        /// Matches at the start of the subject only.
        const ANCHORED = ffi::PCRE2_ANCHORED;
        /// `$` does not match before a newline at the end.
        const DOLLAR_ENDONLY = ffi::PCRE2_DOLLAR_ENDONLY;
        /// Quantifiers take as little as they can.
        const UNGREEDY = ffi::PCRE2_UNGREEDY;
    }
}

/// How much work a match may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Well below a millisecond and 256 KiB for the usual subject.
    Quick,
    /// As many steps as PCRE2 allows by default (10 million), and 256 MiB.
    ///
    /// PCRE2 by itself would allow 20 GB; what needs more than 256 MiB is an error here.
    Full,
}

/// Backtracking steps of a quick match.
const QUICK_STEPS: u32 = 4096;
/// Memory of a quick match, in KiB.
const QUICK_MEMORY: u32 = 256;
/// Memory of a full match, in KiB.
const FULL_MEMORY: u32 = 256 * 1024;
/// A working area that grew above this size, in bytes, is given back.
const KEPT: usize = 128 * 1024;

/// A pattern that is none: where, and what is wrong in PCRE2's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("error in regex at offset {offset}: {text}")]
pub struct CompileError {
    /// Bytes from the start of the pattern.
    pub offset: usize,
    /// PCRE2's text.
    pub text: String,
}

/// A match that came to no end; displays PCRE2's text (`match limit exceeded`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatchError(c_int);

impl fmt::Display for MatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&message(self.0))
    }
}

impl std::error::Error for MatchError {}

fn message(code: c_int) -> String {
    let mut buffer = [0_u8; 256];
    // SAFETY: the buffer is as long as said; the library ends its text with NUL.
    let length = unsafe { ffi::pcre2_get_error_message_8(code, buffer.as_mut_ptr(), buffer.len()) };
    match usize::try_from(length) {
        Ok(length) if length > 0 && length <= buffer.len() => {
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        }
        _ => format!("unexpected pcre2 error code {code}"),
    }
}

/// A compiled pattern.
pub struct Pattern {
    code: NonNull<ffi::pcre2_code_8>,
    groups: u32,
    size: usize,
}

// SAFETY: PCRE2 does not change a compiled pattern after compilation (pcre2api(3), "Multithreading").
unsafe impl Send for Pattern {}
// SAFETY: as above; what a match writes to belongs to the thread.
unsafe impl Sync for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pattern")
            .field("groups", &self.groups)
            .finish_non_exhaustive()
    }
}

impl Drop for Pattern {
    fn drop(&mut self) {
        // SAFETY: nobody has the pattern any more.
        unsafe { ffi::pcre2_code_free_8(self.code.as_ptr()) };
    }
}

impl Pattern {
    /// Compiles a pattern of bytes.
    ///
    /// The library bounds the result (64 KiB) and the nesting of parentheses (250).
    ///
    /// # Errors
    /// [`CompileError`] with the library's text.
    pub fn new(pattern: &[u8], options: Options) -> Result<Self, CompileError> {
        let (mut code, mut offset) = (0, 0);
        // SAFETY: the pattern is as long as said, the other pointers are where results go.
        let compiled = unsafe {
            ffi::pcre2_compile_8(
                pattern.as_ptr(),
                pattern.len(),
                options.bits(),
                &raw mut code,
                &raw mut offset,
                ptr::null_mut(),
            )
        };
        let Some(compiled) = NonNull::new(compiled) else {
            return Err(CompileError {
                offset,
                text: message(code),
            });
        };
        let mut this = Self {
            code: compiled,
            groups: 0,
            size: 0,
        };
        // SAFETY: the results of these two questions have these types.
        unsafe {
            ffi::pcre2_pattern_info_8(
                compiled.as_ptr(),
                ffi::PCRE2_INFO_CAPTURECOUNT,
                (&raw mut this.groups).cast(),
            );
            ffi::pcre2_pattern_info_8(
                compiled.as_ptr(),
                ffi::PCRE2_INFO_SIZE,
                (&raw mut this.size).cast(),
            );
        }
        Ok(this)
    }

    /// How many groups the pattern captures.
    pub fn groups(&self) -> u32 {
        self.groups
    }

    /// The memory that the pattern takes, in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether the pattern matches somewhere in `subject`.
    ///
    /// When it does, `spans` gets where each group matched, group 0 first; a group that took no part is empty.
    /// Its length is how many groups are wanted, group 0 included.
    ///
    /// # Errors
    /// [`MatchError`] when a limit is hit; the pattern may or may not match.
    pub fn find(
        &self,
        subject: &[u8],
        effort: Effort,
        spans: &mut [(usize, usize)],
    ) -> Result<bool, MatchError> {
        WORK.with(|work| {
            let mut work = work.borrow_mut();
            if work.is_none() {
                *work = Work::new();
            }
            let out_of_memory = MatchError(ffi::PCRE2_ERROR_NOMEMORY);
            let area = work.as_mut().ok_or(out_of_memory)?;
            let pairs = u32::try_from(spans.len())
                .map_err(|_| out_of_memory)?
                .max(1);
            let result = area.find(self, subject, effort, pairs, spans);
            area.shrink();
            result
        })
    }
}

thread_local! {
    static WORK: RefCell<Option<Work>> = const { RefCell::new(None) };
    /// The largest piece of memory that the working area of this thread asked for since it was small.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

unsafe extern "C" fn allocate(size: usize, _: *mut c_void) -> *mut c_void {
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
    // SAFETY: any size may be asked for.
    unsafe { libc::malloc(size) }
}

unsafe extern "C" fn release(memory: *mut c_void, _: *mut c_void) {
    // SAFETY: the library gives back what it got from `allocate`, or nothing.
    unsafe { libc::free(memory) };
}

/// What one thread matches with.
struct Work {
    memory: NonNull<ffi::pcre2_general_context_8>,
    quick: NonNull<ffi::pcre2_match_context_8>,
    full: NonNull<ffi::pcre2_match_context_8>,
    data: Option<NonNull<ffi::pcre2_match_data_8>>,
    pairs: u32,
}

impl Work {
    /// `None` without memory.
    fn new() -> Option<Self> {
        // SAFETY: the functions follow the contract of malloc and free and live as long as the program.
        let memory = NonNull::new(unsafe {
            ffi::pcre2_general_context_create_8(Some(allocate), Some(release), ptr::null_mut())
        })?;
        let context = || {
            // SAFETY: the general context is there.
            NonNull::new(unsafe { ffi::pcre2_match_context_create_8(memory.as_ptr()) })
        };
        let (quick, full) = (context(), context());
        let (Some(quick), Some(full)) = (quick, full) else {
            // SAFETY: each was made above, or is null, which is allowed.
            unsafe {
                for one in [quick, full].into_iter().flatten() {
                    ffi::pcre2_match_context_free_8(one.as_ptr());
                }
                ffi::pcre2_general_context_free_8(memory.as_ptr());
            }
            return None;
        };
        // SAFETY: both contexts are there and used by nobody else.
        unsafe {
            ffi::pcre2_set_match_limit_8(quick.as_ptr(), QUICK_STEPS);
            ffi::pcre2_set_heap_limit_8(quick.as_ptr(), QUICK_MEMORY);
            ffi::pcre2_set_heap_limit_8(full.as_ptr(), FULL_MEMORY);
        }
        Some(Self {
            memory,
            quick,
            full,
            data: None,
            pairs: 0,
        })
    }

    fn find(
        &mut self,
        pattern: &Pattern,
        subject: &[u8],
        effort: Effort,
        pairs: u32,
        spans: &mut [(usize, usize)],
    ) -> Result<bool, MatchError> {
        if pairs > self.pairs {
            self.drop_data();
        }
        let data = if let Some(data) = self.data {
            data
        } else {
            // SAFETY: the general context is there.
            let data = unsafe { ffi::pcre2_match_data_create_8(pairs, self.memory.as_ptr()) };
            let data = NonNull::new(data).ok_or(MatchError(ffi::PCRE2_ERROR_NOMEMORY))?;
            self.data = Some(data);
            self.pairs = pairs;
            data
        };
        let context = match effort {
            Effort::Quick => self.quick,
            Effort::Full => self.full,
        };
        // SAFETY: pattern, data and context are there, the subject is as long as said; data and context belong to
        // this thread.
        let result = unsafe {
            ffi::pcre2_match_8(
                pattern.code.as_ptr(),
                subject.as_ptr(),
                subject.len(),
                0,
                0,
                data.as_ptr(),
                context.as_ptr(),
            )
        };
        // Zero: matched, with more groups than anybody asked for.
        if result < 0 {
            return if result == ffi::PCRE2_ERROR_NOMATCH {
                Ok(false)
            } else {
                Err(MatchError(result))
            };
        }
        // SAFETY: after a match the vector holds this many pairs, those of unused groups set to "unset".
        let found = unsafe {
            std::slice::from_raw_parts(
                ffi::pcre2_get_ovector_pointer_8(data.as_ptr()),
                2 * self.pairs as usize,
            )
        };
        for (span, pair) in spans.iter_mut().zip(found.chunks_exact(2)) {
            *span = if pair[0] <= pair[1] && pair[1] <= subject.len() {
                (pair[0], pair[1])
            } else {
                (0, 0)
            };
        }
        Ok(true)
    }

    fn drop_data(&mut self) {
        if let Some(data) = self.data.take() {
            // SAFETY: it was made here and is used by nobody else.
            unsafe { ffi::pcre2_match_data_free_8(data.as_ptr()) };
        }
        self.pairs = 0;
    }

    /// Gives back what a match of much backtracking took.
    fn shrink(&mut self) {
        if LARGEST.get() > KEPT {
            self.drop_data();
            LARGEST.set(0);
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.drop_data();
        // SAFETY: made by `new` and used by nobody else.
        unsafe {
            ffi::pcre2_match_context_free_8(self.quick.as_ptr());
            ffi::pcre2_match_context_free_8(self.full.as_ptr());
            ffi::pcre2_general_context_free_8(self.memory.as_ptr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str, options: Options) -> Pattern {
        Pattern::new(text.as_bytes(), options).unwrap()
    }

    fn matches(text: &str, options: Options, subject: &[u8]) -> bool {
        pattern(text, options)
            .find(subject, Effort::Full, &mut [])
            .unwrap()
    }

    #[test]
    fn groups_that_took_no_part_are_empty() {
        let pattern = pattern("(a)|(b)(c)?", Options::empty());
        assert_eq!(pattern.groups(), 3);
        let mut spans = [(9, 9); 4];
        assert_eq!(pattern.find(b"xb", Effort::Full, &mut spans), Ok(true));
        assert_eq!(spans[0], (1, 2));
        assert_eq!(spans[1].0, spans[1].1);
        assert_eq!(spans[2], (1, 2));
        assert_eq!(spans[3].0, spans[3].1);
        assert_eq!(pattern.find(b"xb", Effort::Full, &mut []), Ok(true));
        assert_eq!(pattern.find(b"x", Effort::Full, &mut spans), Ok(false));
    }

    #[test]
    fn characters_are_bytes_and_only_ascii_has_case() {
        assert!(matches("^..$", Options::empty(), "\u{e9}".as_bytes()));
        assert!(!matches("\u{e9}", Options::CASELESS, "\u{c9}".as_bytes()));
        assert!(matches("a", Options::CASELESS, b"A"));
    }

    #[test]
    fn errors_have_the_library_s_words() {
        let error = Pattern::new(b"a(", Options::empty()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "error in regex at offset 2: missing closing parenthesis"
        );
    }

    #[test]
    fn backtracking_without_end_hits_a_limit() {
        let pattern = pattern("^(a|a)*$", Options::empty());
        let subject = [&[b'a'; 40][..], b"b"].concat();
        for effort in [Effort::Quick, Effort::Full] {
            let error = pattern.find(&subject, effort, &mut []).unwrap_err();
            assert_eq!(error.to_string(), "match limit exceeded");
        }
    }

    #[test]
    fn memory_is_given_back() {
        let pattern = pattern("^(?:a|b)*c", Options::empty());
        let subject = vec![b'a'; 100_000];
        assert_eq!(pattern.find(&subject, Effort::Full, &mut []), Ok(false));
        WORK.with_borrow(|work| assert!(work.as_ref().unwrap().data.is_none()));
        assert!(pattern.find(&subject, Effort::Quick, &mut []).is_err());
    }

    #[test]
    fn threads_share_a_pattern() {
        let pattern = pattern("(b+)", Options::empty());
        std::thread::scope(|scope| {
            for length in 1..5 {
                let pattern = &pattern;
                scope.spawn(move || {
                    let subject = vec![b'b'; length];
                    let mut spans = [(0, 0); 2];
                    for _ in 0..1000 {
                        assert_eq!(pattern.find(&subject, Effort::Full, &mut spans), Ok(true));
                        assert_eq!(spans[1], (0, length));
                    }
                });
            }
        });
    }
}
