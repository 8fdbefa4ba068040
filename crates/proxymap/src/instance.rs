//! One open table, shared by all clients that ask for it in the same way.
//!
//! An instance is made without touching the table; opening it can take time and happens where operations that
//! may wait are run. From then on the current table is behind an atomic pointer: lookups take no lock, and a
//! reload swaps the pointer under them.

use std::sync::Arc;
use std::time::Duration;

use postkeep_table::{CacheCounts, Cursor, Flags, NameError, OpenError, Table, TableName};
use postkeep_wire::diagnostics::{Shown, Throttle};
use postkeep_wire::proxymap::{Generation, Operation};

use crate::counters::Counters;
use crate::role::Role;
use crate::share::Environment;
use crate::sync::{
    ArcSwap, AtomicBool, AtomicU8, AtomicU64, Guard, Mutex, MutexGuard, Ordering, PoisonError,
};
use crate::watch::{Verdict, Watched};

/// The flags that an opener may ask for. What a table says about itself is not among them, nor is
/// `bulk_update`, which would keep updates back until a close that never comes.
const OPENER: Flags = Flags::DUP_WARN
    .union(Flags::DUP_IGNORE)
    .union(Flags::DUP_REPLACE)
    .union(Flags::TRY0NULL)
    .union(Flags::TRY1NULL)
    .union(Flags::LOCK)
    .union(Flags::SYNC_UPDATE)
    .union(Flags::DEBUG)
    .union(Flags::NO_REGSUB)
    .union(Flags::NO_PROXY)
    .union(Flags::NO_UNAUTH)
    .union(Flags::FOLD_FIX)
    .union(Flags::FOLD_MUL)
    .union(Flags::OPEN_LOCK)
    .union(Flags::UTF8_REQUEST)
    .union(Flags::RHS_IS_FILE);

/// The flags that tell instances of a table apart, and that it is opened with.
///
/// Generation one: the instance bits only. A request's other bits do not decide how a table is opened, not even
/// those of the first one after a start, as they do in the reference: what a client gets must not depend on
/// who came first. Generation two: all. Both: what a client cannot know better than the table is dropped, and
/// of the two ways to lock only the stronger one is kept (the reference panics).
pub(crate) fn opening_flags(generation: Generation, flags: Flags) -> Flags {
    let mut kept = match generation {
        Generation::One => flags & Flags::INSTANCE & OPENER,
        Generation::Two => flags & OPENER,
    };
    if kept.contains(Flags::OPEN_LOCK) {
        kept.remove(Flags::LOCK);
    }
    kept
}

/// The name of an instance in log lines, as the reference makes it.
fn registered_name(name: &[u8], role: Role, generation: Generation, flags: Flags) -> String {
    let name = Shown::new(name);
    let form = flags.log_form();
    match (generation, role) {
        (Generation::One, _) => format!("{name}:{form}"),
        (Generation::Two, Role::Read) => format!("{name}(0,{})", renamed(&form.to_string())),
        // O_RDWR | O_CREAT, octal, as on Linux.
        (Generation::Two, Role::Write) => format!("{name}(102,{})", renamed(&form.to_string())),
    }
}

/// Generation two has another name for one flag.
fn renamed(form: &str) -> String {
    let names = form.split('|');
    let names: Vec<&str> = names
        .map(|name| {
            if name == "replace" {
                "dup_replace"
            } else {
                name
            }
        })
        .collect();
    names.join("|")
}

/// What stands behind an instance.
pub(crate) enum Current {
    /// Nobody has opened it yet.
    Unopened,
    /// The table, and what it says about itself.
    Open {
        /// The table.
        table: Arc<dyn Table>,
        /// Its flags beyond those it was opened with.
        own: Flags,
        /// Those it was opened with that it does not have: it does something better instead.
        without: Flags,
    },
    /// It could not be opened, and why.
    Surrogate(String),
}

impl Current {
    /// The flags of an `open` request that are not in the reply.
    pub(crate) fn without(&self) -> Flags {
        match self {
            Self::Open { without, .. } => *without,
            Self::Unopened | Self::Surrogate(_) => Flags::empty(),
        }
    }

    /// What a table that keeps answers has counted.
    pub(crate) fn cache_counts(&self) -> Option<CacheCounts> {
        match self {
            Self::Open { table, .. } => table.cache_counts(),
            Self::Unopened | Self::Surrogate(_) => None,
        }
    }

    /// The flags that this adds to those of an `open` request in the reply.
    pub(crate) fn own(&self, generation: Generation) -> Flags {
        match (self, generation) {
            (Self::Open { own, .. }, _) => *own,
            (Self::Unopened | Self::Surrogate(_), Generation::One) => Flags::PATTERN,
            (Self::Unopened | Self::Surrogate(_), Generation::Two) => {
                Flags::PATTERN.union(Flags::SURROGATE)
            }
        }
    }
}

/// A table opened in one way.
pub(crate) struct Instance {
    name: Result<TableName, NameError>,
    shown: String,
    registered: String,
    pub(crate) flags: Flags,
    pub(crate) counters: Arc<Counters>,
    current: ArcSwap<Current>,
    /// One opening at a time; holds what the files were at the last one.
    gate: Mutex<Watched>,
    /// A surrogate is not opened again before this time, in milliseconds of the caller's clock.
    next_try: AtomicU64,
    /// Time of the last request, in milliseconds of the caller's clock.
    last_used: AtomicU64,
    /// It made room for another one: clients must not hold on to it.
    retired: AtomicBool,
    /// Operations whose lack has been logged, a bit for each.
    unsupported: AtomicU8,
    /// Where a client stood that left in the middle of a walk.
    abandoned: Mutex<Option<Cursor>>,
    /// Set where the lines that requests cause are to be few.
    throttle: Option<Mutex<Throttle>>,
}

impl Instance {
    pub(crate) fn new(
        name: &[u8],
        role: Role,
        generation: Generation,
        flags: Flags,
        counters: Arc<Counters>,
        few_lines: bool,
    ) -> Self {
        Self {
            name: TableName::parse(name),
            shown: Shown::new(name).to_string(),
            registered: registered_name(name, role, generation, flags),
            flags,
            counters,
            current: ArcSwap::from_pointee(Current::Unopened),
            gate: Mutex::default(),
            next_try: AtomicU64::new(0),
            last_used: AtomicU64::new(0),
            retired: AtomicBool::new(false),
            unsupported: AtomicU8::new(0),
            abandoned: Mutex::default(),
            throttle: few_lines.then(Mutex::default),
        }
    }

    /// Its name, fit for a log line.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    pub(crate) fn current(&self) -> Guard<Arc<Current>> {
        self.current.load()
    }

    /// Must the table be opened before a request can be served? That may take time.
    ///
    /// True for one caller only when it is time to try a surrogate's table again.
    pub(crate) fn must_open(
        &self,
        current: &Current,
        now: Duration,
        environment: &Environment,
    ) -> bool {
        match current {
            Current::Unopened => true,
            Current::Open { .. } => false,
            Current::Surrogate(_) => {
                let due = self.next_try.load(Ordering::Relaxed);
                let next = millis(now.saturating_add(environment.settings.retry_open));
                millis(now) >= due
                    && self
                        .next_try
                        .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                        .is_ok()
            }
        }
    }

    /// Opens the table unless somebody else has done so meanwhile.
    ///
    /// - `now`: when the request came; a surrogate is tried again some time after that
    /// - `again`: it was a surrogate when the caller was told that it must be opened
    ///
    /// # Errors
    /// The reason, when a table that cannot be opened is to end the process; it has not been logged.
    pub(crate) fn open(
        &self,
        now: Duration,
        again: bool,
        environment: &Environment,
    ) -> Result<(), String> {
        let mut watched = self.lock_gate();
        let before = self.current.load_full();
        match (&*before, again) {
            (Current::Unopened, _) | (Current::Surrogate(_), true) => {}
            (Current::Open { .. } | Current::Surrogate(_), _) => return Ok(()),
        }
        self.next_try.store(
            millis(now.saturating_add(environment.settings.retry_open)),
            Ordering::Relaxed,
        );
        match self.attempt(environment) {
            Ok((current, files)) => {
                *watched = files;
                self.current.store(Arc::new(current));
                if matches!(&*before, Current::Surrogate(_)) {
                    log::info!("table {} is available again", self.registered);
                }
            }
            Err(error) => {
                let reason = error.to_string();
                if environment.settings.open_error_is_fatal {
                    return Err(reason);
                }
                let known = matches!(&*before, Current::Surrogate(before) if *before == reason);
                if !known {
                    environment.log_open_error(&reason);
                    self.current.store(Arc::new(Current::Surrogate(reason)));
                }
            }
        }
        Ok(())
    }

    fn attempt(&self, environment: &Environment) -> Result<(Current, Watched), OpenError> {
        let name = self
            .name
            .as_ref()
            .map_err(|error| OpenError::Unavailable(error.to_string()))?;
        let began = environment.observer.wall_clock();
        let access = environment.role.access();
        let table = environment.opener.open(name, access, self.flags)?;
        let watched = match environment.role {
            Role::Read => Watched::new(table.watches(), began, &*environment.observer),
            // Our own updates change the file.
            Role::Write => Watched::default(),
        };
        let current = Current::Open {
            own: table.flags() - self.flags,
            without: self.flags - table.flags(),
            table,
        };
        Ok((current, watched))
    }

    /// Opens the table anew and swaps it in when its files have changed; the old one serves on meanwhile, and
    /// also when the new one cannot be opened.
    ///
    /// Returns true when a new table was put in place.
    pub(crate) fn reload_if_changed(&self, environment: &Environment) -> bool {
        // Somebody opens it right now: then it is fresh.
        let Ok(mut watched) = self.gate.try_lock() else {
            return false;
        };
        if watched.is_empty() || !matches!(&**self.current.load(), Current::Open { .. }) {
            return false;
        }
        let verdict = watched.verdict(&*environment.observer);
        match verdict {
            Verdict::Same => return false,
            Verdict::Changed => log::info!("table {} has changed -- reloading", self.registered),
            Verdict::Doubtful => {}
        }
        match self.attempt(environment) {
            Ok((current, files)) => {
                *watched = files;
                self.current.store(Arc::new(current));
                self.leave();
                self.unsupported.store(0, Ordering::Relaxed);
                self.counters.count_reload();
                true
            }
            Err(error) => {
                watched.accept(&*environment.observer);
                log::warn!(
                    "{error}; table {} stays as it was before the change",
                    self.registered
                );
                false
            }
        }
    }

    /// Opens the table anew and swaps it in, whether its files have changed or not; false when nobody has asked for it yet,
    /// so that there is nothing to be replaced.
    ///
    /// # Errors
    /// The reason why it cannot be opened; all stays as it was.
    pub(crate) fn reload(&self, environment: &Environment) -> Result<bool, String> {
        let mut watched = self.lock_gate();
        if matches!(&**self.current.load(), Current::Unopened) {
            return Ok(false);
        }
        let (current, files) = self
            .attempt(environment)
            .map_err(|error| error.to_string())?;
        *watched = files;
        self.current.store(Arc::new(current));
        self.leave();
        self.unsupported.store(0, Ordering::Relaxed);
        self.counters.count_reload();
        log::info!("table {} is opened anew", self.registered);
        Ok(true)
    }

    fn lock_gate(&self) -> MutexGuard<'_, Watched> {
        // After a panic in a table's code what was known about its files is as good as before.
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs that the table is not there.
    pub(crate) fn log_unavailable(&self, reason: &str) {
        self.warn(format_args!("{} is unavailable. {reason}", self.shown));
    }

    /// Logs what a request has caused.
    pub(crate) fn warn(&self, text: std::fmt::Arguments<'_>) {
        let Some(throttle) = &self.throttle else {
            log::warn!("{text}");
            return;
        };
        let now = Duration::from_millis(self.last_used());
        let mut throttle = throttle.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = throttle.admit(now);
        drop(throttle);
        if let Some(held_back) = admitted {
            log::warn!("{text}{held_back}");
        }
    }

    /// Logs that the table has no such operation, once for each table and operation.
    pub(crate) fn log_unsupported(&self, operation: Operation, text: &str) {
        let bit = 1u8 << operation as u8;
        if self.unsupported.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            log::warn!("{text}");
        }
    }

    /// Remembers where a client stood that leaves.
    pub(crate) fn abandon(&self, cursor: Cursor) {
        *self.lock_abandoned() = Some(cursor);
    }

    /// Where the last client stood that left in the middle of a walk.
    pub(crate) fn adopt(&self) -> Option<Cursor> {
        self.lock_abandoned().take()
    }

    fn lock_abandoned(&self) -> MutexGuard<'_, Option<Cursor>> {
        self.abandoned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn touch(&self, now: Duration) {
        self.last_used.store(millis(now), Ordering::Relaxed);
    }

    pub(crate) fn last_used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }

    /// Closes the table as soon as nobody is in it; clients ask for another instance from now on.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
        self.current.store(Arc::new(Current::Unopened));
    }

    /// Closes a table that was opened, or opened anew, by somebody who had begun before it made room. Whoever is in it stays in it.
    pub(crate) fn leave(&self) {
        if self.is_retired() {
            self.current.store(Arc::new(Current::Unopened));
        }
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Instance").field(&self.registered).finish()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(generation: Generation, flags: u32) -> u32 {
        opening_flags(generation, Flags::from_bits_retain(flags)).bits()
    }

    #[test]
    fn opening_flags_by_generation() {
        assert_eq!(bits(Generation::One, 524_353), 0);
        assert_eq!(bits(Generation::One, 65_536), 65_536);
        assert_eq!(bits(Generation::One, 590_208), 65_536);
        assert_eq!(bits(Generation::Two, 540_737), 540_737);
    }

    #[test]
    fn clients_cannot_claim_what_only_a_table_knows() {
        for generation in [Generation::One, Generation::Two] {
            let flags = opening_flags(generation, Flags::from_bits_retain(u32::MAX));
            assert!(!flags.intersects(
                Flags::FIXED
                    | Flags::PATTERN
                    | Flags::MULTI_WRITER
                    | Flags::UTF8_ACTIVE
                    | Flags::SURROGATE
                    | Flags::BULK_UPDATE
                    | Flags::LOCK
            ));
            assert!(flags.contains(Flags::OPEN_LOCK));
            assert_eq!(flags.bits() & !0x3F_FFFF, 0);
        }
    }

    #[test]
    fn registered_names_are_the_reference_s() {
        let name = |role, generation, flags| {
            registered_name(
                b"hash:/h1",
                role,
                generation,
                Flags::from_bits_retain(flags),
            )
        };
        assert_eq!(name(Role::Read, Generation::One, 0), "hash:/h1:");
        assert_eq!(
            name(Role::Write, Generation::One, 0x1_0000),
            "hash:/h1:open_lock"
        );
        assert_eq!(
            name(Role::Read, Generation::Two, 540_737),
            "hash:/h1(0,warn_dup|lock|fold_fix|utf8_request)"
        );
        assert_eq!(
            name(Role::Write, Generation::Two, 0x1_0080),
            "hash:/h1(102,dup_replace|open_lock)"
        );
    }
}
