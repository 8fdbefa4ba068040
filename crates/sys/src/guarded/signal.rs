//! The handler for SIGBUS, and the list of maps that it looks at.
//!
//! A handler may run at any moment in any thread, so the list is an array of atomics that is never moved, and the
//! handler allocates nothing and waits for nobody.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// How many maps there can be at a time.
const MAPS: usize = 1024;

/// A place in the list.
#[derive(Debug)]
pub(super) struct Slot {
    taken: AtomicBool,
    /// Where the map begins; 0 when there is none.
    start: AtomicUsize,
    /// Where it ends.
    end: AtomicUsize,
    damaged: AtomicBool,
}

static SLOTS: [Slot; MAPS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        damaged: AtomicBool::new(false),
    }
}; MAPS];

/// No slot from here on was ever taken.
static USED: AtomicUsize = AtomicUsize::new(0);

/// What happened at SIGBUS before; leaked, and null before the handler is there.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

/// The size of a page of memory.
static PAGE: AtomicUsize = AtomicUsize::new(0);

impl Slot {
    /// A free place, if there is one.
    pub(super) fn take() -> Option<&'static Self> {
        let number = SLOTS.iter().position(|slot| {
            !slot.taken.load(Ordering::SeqCst) && !slot.taken.swap(true, Ordering::SeqCst)
        })?;
        USED.fetch_max(number + 1, Ordering::SeqCst);
        let slot = &SLOTS[number];
        slot.damaged.store(false, Ordering::SeqCst);
        Some(slot)
    }

    /// Puts a map into the list.
    pub(super) fn publish(&self, start: usize, length: usize) {
        let page = PAGE.load(Ordering::SeqCst);
        // The end first: whoever sees the beginning must see it.
        let end = start.saturating_add(length.next_multiple_of(page));
        self.end.store(end, Ordering::SeqCst);
        self.start.store(start, Ordering::SeqCst);
    }

    /// Takes the map out of the list, if there is one, and gives the place back.
    pub(super) fn release(&self) {
        self.start.store(0, Ordering::SeqCst);
        self.taken.store(false, Ordering::SeqCst);
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    fn holds(&self, address: usize) -> bool {
        let start = self.start.load(Ordering::SeqCst);
        if start == 0 || address < start {
            return false;
        }
        let end = self.end.load(Ordering::SeqCst);
        // The same beginning before and after: the end belongs to it.
        address < end && self.start.load(Ordering::SeqCst) == start
    }
}

/// Installs the handler, the first time.
///
/// On the alternate stack where the thread has one, as the handler that the Rust runtime installs: a thread that has
/// used up its stack may get SIGBUS, and then the text about that must not be lost.
pub(super) fn install() -> io::Result<()> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if !PREVIOUS.load(Ordering::SeqCst).is_null() {
        return Ok(());
    }
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let page = usize::try_from(page).map_err(|_| io::Error::last_os_error())?;
    PAGE.store(page, Ordering::SeqCst);
    let mut previous = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null action only asks; the result is valid when the call succeeded.
    let previous = unsafe {
        if libc::sigaction(libc::SIGBUS, ptr::null(), previous.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        previous.assume_init()
    };
    // Known before the handler can run.
    PREVIOUS.store(Box::into_raw(Box::new(previous)), Ordering::SeqCst);
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handle;
    // SAFETY: all fields are numbers, for which zero is a value; the handler has the signature that the flags promise.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut())
    };
    if result != 0 {
        let error = io::Error::last_os_error();
        PREVIOUS.store(ptr::null_mut(), Ordering::SeqCst);
        return Err(error);
    }
    Ok(())
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: errno belongs to the thread that was interrupted and is as it was when this returns; `info` is the
    // system's; sigaction(2) and raise(3) may be called in a handler.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        // Positive: the system's, about an address, and not sent by a process.
        let sent = (*info).si_code <= 0;
        let address = (*info).si_addr().addr();
        if sent || !replace_page(address) {
            // What would have happened happens when the instruction runs again.
            libc::sigaction(signal, PREVIOUS.load(Ordering::SeqCst), ptr::null_mut());
            if sent {
                libc::raise(signal);
            }
        }
        *errno = before;
    }
}

/// Puts zeros in the place of a page of one of our maps; false when it is none of ours.
fn replace_page(address: usize) -> bool {
    let used = USED.load(Ordering::SeqCst).min(MAPS);
    let Some(slot) = SLOTS[..used].iter().find(|slot| slot.holds(address)) else {
        return false;
    };
    let page = PAGE.load(Ordering::SeqCst);
    // Before the zeros are there: whoever reads them sees it.
    slot.damaged.store(true, Ordering::SeqCst);
    // SAFETY: the page is inside a map of ours that somebody is reading, so it is not being unmapped. The call is
    // nothing but a system call.
    let mapped = unsafe {
        libc::mmap(
            ptr::without_provenance_mut(address - address % page),
            page,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}
