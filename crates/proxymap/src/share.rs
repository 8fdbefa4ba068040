//! The tables of one service process: which are approved, and the instances that clients share.
//!
//! The set of approved names is fixed when the process starts, so finding one takes no lock. Each name has a
//! short list of instances behind an atomic pointer, one for each way in which it was asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use postkeep_table::{CacheCounts, Flags, Opener};
use postkeep_wire::diagnostics::{Shown, Throttle};
use postkeep_wire::proxymap::Generation;

use crate::approve::{Approved, canonical};
use crate::counters::{Counters, Counts, Refusals, Refused};
use crate::instance::{Current, Instance, opening_flags};
use crate::role::Role;
use crate::sync::{ArcSwap, AtomicU32, Mutex, Ordering, PoisonError};
use crate::watch::Observer;

/// Limits and choices of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a table that could not be opened is left alone before the next attempt.
    pub retry_open: Duration,
    /// How many instances one name may have; the one that was idle longest makes room. Clients choose the
    /// flags.
    pub instances: usize,
    /// `postkeep_open_table_limit`: how many instances all names may have together; the one that was idle longest
    /// makes room.
    pub open_tables: usize,
    /// `daemon_table_open_error_is_fatal`: a table that cannot be opened ends the process.
    pub open_error_is_fatal: bool,
    /// Lines that each request can cause come once a minute for each table, with the number of those that were held back:
    /// for clients that are not to be trusted with the log. The reference logs them all.
    pub few_lines: bool,
    /// How many failures to open are logged as errors, the others being warnings.
    ///
    /// The reference ends a process at its 13th error line. A process that serves all clients must not end
    /// because of 13 missing tables.
    pub error_lines: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            retry_open: Duration::from_secs(5),
            instances: 16,
            open_tables: 4096,
            open_error_is_fatal: false,
            few_lines: false,
            error_lines: 12,
        }
    }
}

/// What instances need to open tables.
pub(crate) struct Environment {
    pub(crate) role: Role,
    pub(crate) settings: Settings,
    pub(crate) opener: Arc<dyn Opener>,
    pub(crate) observer: Arc<dyn Observer>,
    errors: AtomicU32,
    /// The line that says that there are too many ways to open tables.
    crowded: Mutex<Throttle>,
}

impl Environment {
    /// Logs that a table made room.
    fn log_crowded(&self, now: Duration, text: std::fmt::Arguments<'_>) {
        let admitted = self
            .crowded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(now);
        if let Some(held_back) = admitted {
            log::warn!("{text}{held_back}");
        }
    }

    /// Logs why a table could not be opened.
    pub(crate) fn log_open_error(&self, reason: &str) {
        if self.errors.fetch_add(1, Ordering::Relaxed) < self.settings.error_lines {
            log::error!("{reason}");
        } else {
            log::warn!("{reason}");
        }
    }
}

/// Instances by how they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct States {
    /// Open.
    pub open: usize,
    /// Could not be opened.
    pub unavailable: usize,
    /// Nobody has asked for them yet, but to find out about them.
    pub unopened: usize,
}

/// A table name that may be asked for.
#[derive(Debug)]
pub(crate) struct Entry {
    name: Box<[u8]>,
    counters: Arc<Counters>,
    instances: ArcSwap<Vec<Arc<Instance>>>,
}

/// All tables of a service process, shared by its workers.
pub struct Tables {
    entries: HashMap<Box<[u8]>, Entry>,
    pub(crate) environment: Environment,
    pub(crate) refusals: Refusals,
    /// Held while a list of instances is replaced.
    adding: Mutex<()>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables")
            .field("role", &self.environment.role)
            .field("entries", &self.entries.len())
            .finish_non_exhaustive()
    }
}

impl Tables {
    /// The tables of a service; none is opened yet.
    ///
    /// - `approved`: which names may be asked for
    /// - `opener`: the registry of table types
    /// - `observer`: looks at files for [`Self::reload_changed`]
    pub fn new(
        role: Role,
        approved: &Approved,
        opener: Arc<dyn Opener>,
        observer: Arc<dyn Observer>,
        settings: Settings,
    ) -> Self {
        let entry = |name: &[u8]| {
            let entry = Entry {
                name: name.into(),
                counters: Arc::default(),
                instances: ArcSwap::default(),
            };
            (Box::from(name), entry)
        };
        Self {
            entries: approved.sorted().into_iter().map(entry).collect(),
            environment: Environment {
                role,
                settings,
                opener,
                observer,
                errors: AtomicU32::new(0),
                crowded: Mutex::default(),
            },
            refusals: Refusals::default(),
            adding: Mutex::default(),
        }
    }

    /// What clients may do.
    pub fn role(&self) -> Role {
        self.environment.role
    }

    /// Opens anew each table whose files have changed, beside the old one, and swaps it in; clients notice
    /// nothing. Returns how many were replaced.
    ///
    /// To be called about once a second from a thread that may wait. A read-only service only: proxywrite
    /// never looks for changes, as in the reference.
    ///
    /// For each changed table one line is logged at level info, `table REGNAME has changed -- reloading`. The
    /// reference's line ends in `-- restarting`, which would not be true here. When the new table cannot be
    /// opened the old one serves on, the reason is logged once, and the next change is waited for.
    pub fn reload_changed(&self) -> usize {
        if self.environment.role == Role::Write {
            return 0;
        }
        self.entries
            .values()
            .flat_map(|entry| entry.instances.load_full().to_vec())
            .filter(|instance| instance.reload_if_changed(&self.environment))
            .count()
    }

    /// Opens a table anew beside the one in use and swaps it in, in all ways in which it is open; clients notice nothing.
    /// Returns in how many it is, `None` when there is no such table. To be called from a thread that may wait.
    ///
    /// - `name`: as it is approved, `proxy:` before it or not
    ///
    /// # Errors
    /// The reason why it cannot be opened, or why that must not be done; what could not be opened stays as it was.
    pub fn reload(&self, name: &[u8]) -> Option<Result<usize, String>> {
        let entry = self.find(canonical(name))?;
        if self.environment.role == Role::Write {
            return Some(Err(
                "a table that clients change is opened anew with its service only".to_owned(),
            ));
        }
        let instances = entry.instances.load_full();
        let mut count = 0;
        for instance in instances.iter() {
            match instance.reload(&self.environment) {
                Ok(opened) => count += usize::from(opened),
                Err(reason) => return Some(Err(reason)),
            }
        }
        Some(Ok(count))
    }

    /// Names and counts of all approved tables, in no particular order.
    pub fn counts(&self) -> impl Iterator<Item = (&[u8], Counts)> {
        self.entries
            .values()
            .map(|entry| (&*entry.name, entry.counters.counts()))
    }

    /// Names and counts of the approved tables that keep answers, over all ways in which each is open; in no particular
    /// order. A table that is opened anew counts from zero again.
    pub fn cache_counts(&self) -> impl Iterator<Item = (&[u8], CacheCounts)> {
        self.entries.values().filter_map(|entry| {
            let instances = entry.instances.load();
            let counts = instances
                .iter()
                .filter_map(|instance| instance.current().cache_counts())
                .reduce(|mut all, one| {
                    all += one;
                    all
                })?;
            Some((&*entry.name, counts))
        })
    }

    /// How many requests reached no table.
    pub fn refused(&self) -> Refused {
        self.refusals.counts()
    }

    /// How many instances there are, by how they are.
    pub fn states(&self) -> States {
        let mut states = States::default();
        for entry in self.entries.values() {
            for instance in entry.instances.load().iter() {
                *match &**instance.current() {
                    Current::Open { .. } => &mut states.open,
                    Current::Surrogate(_) => &mut states.unavailable,
                    Current::Unopened => &mut states.unopened,
                } += 1;
            }
        }
        states
    }

    /// Number of instances, opened or not.
    pub fn instances(&self) -> usize {
        self.entries
            .values()
            .map(|entry| entry.instances.load().len())
            .sum()
    }

    pub(crate) fn find(&self, canonical: &[u8]) -> Option<&Entry> {
        self.entries.get(canonical)
    }

    /// The instance of a table for requests with these flags; it may not be open yet.
    pub(crate) fn instance(
        &self,
        entry: &Entry,
        generation: Generation,
        flags: Flags,
        now: Duration,
    ) -> Arc<Instance> {
        let flags = opening_flags(generation, flags);
        let find = || {
            let instances = entry.instances.load();
            instances
                .iter()
                .find(|instance| instance.flags == flags)
                .cloned()
        };
        if let Some(instance) = find() {
            return instance;
        }
        // The list is replaced as a whole, so it is in order even if somebody panicked here.
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(instance) = find() {
            return instance;
        }
        let instance = Arc::new(Instance::new(
            &entry.name,
            self.environment.role,
            generation,
            flags,
            Arc::clone(&entry.counters),
            self.environment.settings.few_lines,
        ));
        instance.touch(now);
        let settings = &self.environment.settings;
        while self.instances() >= settings.open_tables.max(1) {
            let idle = self
                .entries
                .values()
                .filter_map(|entry| {
                    let instances = entry.instances.load();
                    let idle = instances
                        .iter()
                        .min_by_key(|instance| instance.last_used())?;
                    Some((idle.last_used(), entry, Arc::clone(idle)))
                })
                .min_by_key(|(last_used, ..)| *last_used);
            let Some((_, entry, idle)) = idle else { break };
            self.environment.log_crowded(
                now,
                format_args!(
                    "open table limit reached: {} tables are open, {} is closed to make room; \
                     to raise this limit: postkeep_open_table_limit",
                    self.instances(),
                    Shown::new(&entry.name)
                ),
            );
            let rest = entry.instances.load();
            let rest = rest.iter().filter(|other| !Arc::ptr_eq(other, &idle));
            entry.instances.store(Arc::new(rest.cloned().collect()));
            idle.retire();
        }
        let mut instances = entry.instances.load().to_vec();
        while instances.len() >= settings.instances.max(1) {
            let idle = (0..instances.len()).min_by_key(|&index| instances[index].last_used());
            let Some(idle) = idle else { break };
            self.environment.log_crowded(
                now,
                format_args!(
                    "open table limit reached: {} is open in {} ways, the one that is idle for longest is closed \
                     to make room; this limit is fixed",
                    Shown::new(&entry.name),
                    instances.len(),
                ),
            );
            instances.swap_remove(idle).retire();
        }
        instances.push(Arc::clone(&instance));
        entry.instances.store(Arc::new(instances));
        instance
    }
}
