//! Telling that the file of an open table has changed.
//!
//! The reference ends the process (`table … has changed -- restarting`), which drops all clients; here the
//! table is opened anew beside the old one. The rules of what counts as a change are the reference's, with two
//! additions: a file that took the place of another (another inode) and a changed size count too, as we look at
//! the path and not at a descriptor.
//!
//! # References
//! Postfix `src/util/dict.c`, `dict_changed_name()`.

use std::path::Path;

use postkeep_table::Watch;

/// What is known about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Device that the file is on.
    pub device: u64,
    /// Its inode there.
    pub inode: u64,
    /// Number of names; 0 for a file that is open but removed.
    pub links: u64,
    /// Length in bytes.
    pub size: u64,
    /// Modification time: seconds since 1970, nanoseconds.
    pub modified: (i64, u32),
    /// Time of the last change to the inode, in seconds since 1970; renaming sets it.
    pub changed: i64,
}

/// Looks at files and at the clock that file times come from.
pub trait Observer: Send + Sync {
    /// What is at `path`, following symbolic links; `None` when it cannot be told.
    fn stat(&self, path: &Path) -> Option<Stat>;

    /// Seconds since 1970.
    fn wall_clock(&self) -> i64;
}

/// Nothing can be seen, so nothing ever changes.
impl Observer for () {
    fn stat(&self, _path: &Path) -> Option<Stat> {
        None
    }

    fn wall_clock(&self) -> i64 {
        0
    }
}

/// A file with times this close to the opening (seconds) may have changed while it was read.
const CLOSE: i64 = 1;

/// The files of one open table, as they were when it was opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watched {
    files: Vec<(Watch, Option<Stat>)>,
    /// The files may have changed between the opening and the look at them: open once more at this time
    /// (seconds since 1970).
    recheck: Option<i64>,
}

/// What to do about a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Same,
    /// Open it again: a file is not what it was.
    Changed,
    /// Open it again, without a word: a file may have changed while it was read.
    Doubtful,
}

impl Watched {
    /// Looks at the files of a table that was just opened.
    ///
    /// `began`: the wall clock before the table was opened
    pub(crate) fn new(watches: Vec<Watch>, began: i64, observer: &dyn Observer) -> Self {
        let files: Vec<(Watch, Option<Stat>)> = watches
            .into_iter()
            .map(|watch| {
                let stat = observer.stat(&watch.path);
                (watch, stat)
            })
            .collect();
        let youngest = files
            .iter()
            .filter_map(|(watch, stat)| stat.filter(|_| watch.modification_time))
            .map(|stat| stat.changed.max(stat.modified.0))
            .max();
        // A time in the future says nothing about the moment of the change.
        let recheck = youngest
            .filter(|&time| time >= began - CLOSE && time <= observer.wall_clock() + CLOSE)
            .map(|time| time + 2 * CLOSE);
        Self { files, recheck }
    }

    /// Compares the files with what they were.
    pub(crate) fn verdict(&self, observer: &dyn Observer) -> Verdict {
        let changed = |(watch, then): &(Watch, Option<Stat>)| {
            is_changed(watch, *then, observer.stat(&watch.path))
        };
        if self.files.iter().any(changed) {
            Verdict::Changed
        } else if self
            .recheck
            .is_some_and(|time| observer.wall_clock() >= time)
        {
            Verdict::Doubtful
        } else {
            Verdict::Same
        }
    }

    /// Takes the files as they are now for what they should be, when a reload failed: the next attempt waits
    /// for the next change.
    pub(crate) fn accept(&mut self, observer: &dyn Observer) {
        self.recheck = None;
        for (watch, stat) in &mut self.files {
            *stat = observer.stat(&watch.path);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

fn is_changed(watch: &Watch, then: Option<Stat>, now: Option<Stat>) -> bool {
    match (then, now) {
        (None, None) => false,
        (None, Some(_)) | (Some(_), None) => true,
        (Some(then), Some(now)) => {
            (then.device, then.inode) != (now.device, now.inode)
                || (now.links == 0 && then.links != 0)
                || (watch.modification_time
                    && (then.modified, then.size) != (now.modified, now.size))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const FILE: Stat = Stat {
        device: 1,
        inode: 2,
        links: 1,
        size: 3,
        modified: (100, 5),
        changed: 100,
    };

    struct Fake(Mutex<(Option<Stat>, i64)>);

    impl Fake {
        fn new(stat: Option<Stat>, clock: i64) -> Self {
            Self(Mutex::new((stat, clock)))
        }

        fn set(&self, stat: Option<Stat>, clock: i64) {
            *self.0.lock().unwrap() = (stat, clock);
        }
    }

    impl Observer for Fake {
        fn stat(&self, _path: &Path) -> Option<Stat> {
            self.0.lock().unwrap().0
        }

        fn wall_clock(&self) -> i64 {
            self.0.lock().unwrap().1
        }
    }

    fn watch(modification_time: bool) -> Watch {
        Watch {
            path: "/t.db".into(),
            modification_time,
        }
    }

    #[test]
    fn what_counts_as_a_change() {
        let changes = [
            (Stat { inode: 9, ..FILE }, true, true),
            (Stat { links: 0, ..FILE }, true, true),
            (Stat { size: 4, ..FILE }, true, false),
            (
                Stat {
                    modified: (100, 6),
                    ..FILE
                },
                true,
                false,
            ),
            (
                Stat {
                    changed: 200,
                    ..FILE
                },
                false,
                false,
            ),
            (FILE, false, false),
        ];
        for (now, with_time, without_time) in changes {
            assert_eq!(
                is_changed(&watch(true), Some(FILE), Some(now)),
                with_time,
                "{now:?}"
            );
            assert_eq!(
                is_changed(&watch(false), Some(FILE), Some(now)),
                without_time,
                "{now:?}"
            );
        }
        assert!(is_changed(&watch(false), Some(FILE), None));
        assert!(is_changed(&watch(false), None, Some(FILE)));
        assert!(!is_changed(&watch(true), None, None));
    }

    #[test]
    fn a_fresh_file_is_looked_at_once_more() {
        let observer = Fake::new(Some(FILE), 100);
        let watched = Watched::new(vec![watch(true)], 100, &observer);
        assert_eq!(watched.verdict(&observer), Verdict::Same);
        observer.set(Some(FILE), 102);
        assert_eq!(watched.verdict(&observer), Verdict::Doubtful);
        assert_eq!(
            Watched::new(vec![watch(true)], 102, &observer).verdict(&observer),
            Verdict::Same
        );
    }

    #[test]
    fn times_in_the_future_are_no_reason_for_doubt() {
        let observer = Fake::new(Some(FILE), 10);
        let watched = Watched::new(vec![watch(true)], 10, &observer);
        observer.set(Some(FILE), 1000);
        assert_eq!(watched.verdict(&observer), Verdict::Same);
    }

    #[test]
    fn what_was_accepted_is_no_change() {
        let observer = Fake::new(Some(FILE), 1000);
        let mut watched = Watched::new(vec![watch(true)], 1000, &observer);
        observer.set(None, 1000);
        assert_eq!(watched.verdict(&observer), Verdict::Changed);
        watched.accept(&observer);
        assert_eq!(watched.verdict(&observer), Verdict::Same);
        observer.set(Some(FILE), 1000);
        assert_eq!(watched.verdict(&observer), Verdict::Changed);
    }
}
