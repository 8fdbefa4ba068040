//! Tests of the parent module. Those that make tables say SKIP where there is no library.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use postkeep_table::Opener as _;

use super::*;
use crate::{BuildMode, Builder, Context, Registry};

const FOLD: Flags = Flags::FOLD_FIX;

pub(super) struct Place {
    directory: tempfile::TempDir,
    name: TableName,
    pub file: PathBuf,
    registry: Registry,
}

/// A place for a table of each type; none without a library.
pub(super) fn places(caller: Caller) -> Vec<Place> {
    if library().is_err() {
        eprintln!("SKIP: no Berkeley DB library");
        return Vec::new();
    }
    ["hash", "btree"]
        .map(|kind| {
            let directory = tempfile::tempdir().unwrap();
            let name = format!("{kind}:{}", directory.path().join("t").display());
            Place {
                file: directory.path().join("t.db"),
                directory,
                name: TableName::parse(name.as_bytes()).unwrap(),
                registry: Registry::new(Context {
                    caller,
                    ..Context::default()
                }),
            }
        })
        .into()
}

impl Place {
    fn open(&self, access: Access, flags: Flags) -> Arc<dyn Table> {
        self.registry.open(&self.name, access, flags).unwrap()
    }

    pub(super) fn layout(&self) -> Layout {
        if self.name.kind() == b"hash" {
            Layout::Hash
        } else {
            Layout::Btree
        }
    }

    /// Opens the table without the layers that stand before it.
    pub(super) fn bare(&self, access: Access) -> Berkeley {
        let request = Request {
            registry: &self.registry,
            context: &Context::default(),
            name: &self.name,
            access,
            flags: Flags::LOCK,
            depth: 0,
            text: None,
            utf8: false,
        };
        Berkeley::open(&request, self.layout()).unwrap()
    }

    fn reason(&self, access: Access, flags: Flags) -> String {
        let error = self.registry.open(&self.name, access, flags).err().unwrap();
        let text = error.to_string();
        text.replace(&self.directory.path().display().to_string(), "D")
    }

    fn builder(&self, mode: BuildMode) -> Box<dyn Builder> {
        self.registry.build(&self.name, mode, FOLD).unwrap()
    }

    pub(super) fn build(&self, mode: BuildMode, entries: &[(&str, &str)]) {
        let mut builder = self.builder(mode);
        for (key, value) in entries {
            builder.add(FOLD, key.as_bytes(), value.as_bytes()).unwrap();
        }
        builder.finish().unwrap();
    }

    /// The names in the directory.
    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn answer(table: &Arc<dyn Table>, key: &str) -> Option<String> {
    let mut value = Vec::new();
    let outcome = table.lookup(FOLD, key.as_bytes(), &mut value).unwrap();
    (outcome == Outcome::Done).then(|| String::from_utf8(value).unwrap())
}

fn list(table: &Arc<dyn Table>) -> Vec<String> {
    let mut cursor = Cursor::default();
    let mut step = Step::First;
    let mut list: Vec<_> = std::iter::from_fn(|| {
        let (mut key, mut value) = (Vec::new(), b"=".to_vec());
        let outcome = table
            .sequence(Flags::empty(), step, &mut cursor, &mut key, &mut value)
            .unwrap();
        step = Step::Next;
        (outcome == Outcome::Done).then(|| String::from_utf8([key, value].concat()).unwrap())
    })
    .collect();
    list.sort();
    list
}

#[test]
fn creating_replaces_everything_and_an_open_table_stays_as_it_was() {
    for place in places(Caller::Daemon) {
        place.build(BuildMode::Create, &[("B", "2"), ("a", "1")]);
        std::fs::set_permissions(&place.file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let table = place.open(Access::Read, Flags::LOCK);
        assert_eq!(list(&table), ["a=1", "b=2"]);
        place.build(BuildMode::Create, &[("c", "3")]);
        assert_eq!(list(&table), ["a=1", "b=2"]);
        let table = place.open(Access::Read, Flags::LOCK);
        assert_eq!(list(&table), ["c=3"]);
        assert_eq!(answer(&table, "C").as_deref(), Some("3"));
        assert_eq!(answer(&table, "a"), None);
        assert_eq!(table.flags() & Flags::REQUEST, Flags::LOCK);
        let mode = std::fs::metadata(&place.file).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o640);
        assert_eq!(place.files(), ["t.db"]);
    }
}

#[test]
fn adding_keeps_what_is_there() {
    for place in places(Caller::Daemon) {
        place.build(BuildMode::Add, &[("a", "1")]);
        place.build(BuildMode::Add, &[("b", "2")]);
        place.build(BuildMode::Add, &[]);
        assert_eq!(list(&place.open(Access::Read, Flags::LOCK)), ["a=1", "b=2"]);
        let mut builder = place.builder(BuildMode::Add);
        let twice = builder.add(FOLD, b"a", b"2").unwrap_err();
        let file = place.file.display();
        assert_eq!(twice.to_string(), format!("{file}: duplicate entry: \"a\""));
        let flags = [Flags::DUP_IGNORE, Flags::DUP_WARN];
        for flags in flags {
            assert_eq!(builder.add(flags, b"a", b"2").unwrap(), Outcome::Absent);
        }
        builder.add(Flags::DUP_REPLACE, b"b", b"3").unwrap();
        builder.finish().unwrap();
        assert_eq!(list(&place.open(Access::Read, Flags::LOCK)), ["a=1", "b=3"]);
        assert_eq!(place.files(), ["t.db"]);
    }
}

#[test]
fn a_build_that_is_given_up_leaves_the_old_entries_and_nothing_else() {
    for place in places(Caller::Command) {
        place.build(BuildMode::Create, &[("a", "1")]);
        for mode in [BuildMode::Create, BuildMode::Add] {
            let mut builder = place.builder(mode);
            builder.add(FOLD, b"b", b"2").unwrap();
            assert_eq!(place.files().len(), 2);
            drop(builder);
            assert_eq!(list(&place.open(Access::Read, Flags::LOCK)), ["a=1"]);
            assert_eq!(place.files(), ["t.db"]);
        }
    }
}

#[test]
fn a_link_is_replaced_by_a_creation() {
    for place in places(Caller::Command) {
        let target = place.directory.path().join("target");
        std::fs::write(&target, "precious").unwrap();
        symlink(&target, &place.file).unwrap();
        place.build(BuildMode::Create, &[("a", "1")]);
        assert_eq!(std::fs::read(&target).unwrap(), b"precious");
        assert!(!place.file.is_symlink());
        assert_eq!(list(&place.open(Access::Read, Flags::LOCK)), ["a=1"]);
    }
}

#[test]
fn changes_are_seen_at_once_by_others() {
    for place in places(Caller::Daemon) {
        // Opening for writing makes the file.
        let writer = place.open(Access::ReadWrite, Flags::LOCK);
        let reader = place.open(Access::Read, Flags::LOCK);
        let replace = Flags::DUP_REPLACE;
        assert_eq!(writer.update(replace, b"k", b"1").unwrap(), Outcome::Done);
        assert_eq!(answer(&reader, "k").as_deref(), Some("1"));
        let long = "v".repeat(100_000);
        writer.update(replace, b"k", long.as_bytes()).unwrap();
        writer.update(replace, long.as_bytes(), b"2").unwrap();
        assert_eq!(answer(&reader, "k"), Some(long.clone()));
        assert_eq!(answer(&reader, &long).as_deref(), Some("2"));
        assert_eq!(answer(&reader, &long[1..]), None);
        assert_eq!(writer.delete(FOLD, b"k").unwrap(), Outcome::Done);
        assert_eq!(writer.delete(FOLD, b"k").unwrap(), Outcome::Absent);
        assert_eq!(list(&reader), [format!("{long}=2")]);
        assert_eq!(place.files(), ["t.db", "t.db.journal"]);
    }
}

#[test]
fn a_table_that_was_replaced_is_opened_again_before_it_is_changed() {
    for place in places(Caller::Daemon) {
        let writer = place.open(Access::ReadWrite, Flags::LOCK);
        place.build(BuildMode::Create, &[("a", "1")]);
        writer.update(Flags::SYNC_UPDATE, b"b", b"2").unwrap();
        assert_eq!(list(&writer), ["a=1", "b=2"]);
        assert_eq!(list(&place.open(Access::Read, Flags::LOCK)), ["a=1", "b=2"]);
        std::fs::remove_file(&place.file).unwrap();
        let error = writer.update(Flags::empty(), b"c", b"3").unwrap_err();
        assert!(matches!(error, LookupError::Retry(_)));
    }
}

#[test]
fn both_forms_of_a_key_are_found_and_each_can_be_asked_for_alone() {
    for place in places(Caller::Daemon) {
        let table = place.open(Access::ReadWrite, Flags::LOCK);
        table.update(Flags::TRY0NULL, b"plain", b"1").unwrap();
        table.update(Flags::TRY1NULL, b"nul", b"2").unwrap();
        assert_eq!(answer(&table, "plain").as_deref(), Some("1"));
        assert_eq!(answer(&table, "nul").as_deref(), Some("2"));
        assert_eq!(answer(&table, "plain").as_deref(), Some("1"));
        // What was found tells how to store.
        table.update(Flags::empty(), b"more", b"3").unwrap();
        let plain = place.open(Access::Read, Flags::TRY0NULL);
        assert_eq!(answer(&plain, "more").as_deref(), Some("3"));
        assert_eq!(answer(&plain, "nul"), None);
        let nul = place.open(Access::Read, Flags::TRY1NULL);
        assert_eq!(answer(&nul, "plain"), None);
        for key in [&b"plain"[..], b"nul"] {
            assert_eq!(table.delete(Flags::empty(), key).unwrap(), Outcome::Done);
            assert_eq!(table.delete(Flags::empty(), key).unwrap(), Outcome::Absent);
        }
    }
}

#[test]
fn a_walk_goes_on_when_entries_are_deleted() {
    for place in places(Caller::Daemon) {
        let table = place.open(Access::ReadWrite, Flags::LOCK);
        let keys: Vec<String> = (0..40).map(|number| format!("k{number}")).collect();
        for key in &keys {
            table.update(Flags::empty(), key.as_bytes(), b"v").unwrap();
        }
        let mut cursor = Cursor::default();
        let mut step = Step::First;
        let mut seen = Vec::new();
        loop {
            let (mut key, mut value) = (Vec::new(), Vec::new());
            let outcome = table
                .sequence(Flags::empty(), step, &mut cursor, &mut key, &mut value)
                .unwrap();
            if outcome == Outcome::Absent {
                break;
            }
            step = Step::Next;
            if seen.len() % 3 != 0 {
                table.delete(Flags::empty(), &key).unwrap();
            }
            seen.push(String::from_utf8(key).unwrap());
        }
        seen.sort();
        let mut keys = keys;
        keys.sort();
        assert_eq!(seen, keys);
    }
}

#[test]
fn a_damaged_file_is_reported_once_and_asked_again() {
    for place in places(Caller::Daemon) {
        place.build(BuildMode::Create, &[("k", &"v".repeat(50_000)), ("a", "1")]);
        let table = place.open(Access::Read, Flags::LOCK);
        // A daemon would set it aside.
        let command = Registry::new(Context {
            caller: Caller::Command,
            ..Context::default()
        });
        let writer = command
            .open(&place.name, Access::ReadWrite, Flags::LOCK)
            .unwrap();
        let whole = std::fs::read(&place.file).unwrap();
        // In place, as the reference does it.
        std::fs::write(&place.file, &whole[..whole.len() - 30_000]).unwrap();
        let mut value = b"before".to_vec();
        assert!(table.try_lookup(FOLD, b"k", &mut value).is_none());
        let mut ask = || match table.lookup(FOLD, b"k", &mut value) {
            Err(LookupError::Retry(text)) => text,
            other => panic!("{other:?}"),
        };
        let file = place.file.display();
        assert_eq!(ask(), format!("error reading {file}: Invalid argument"));
        assert_eq!(ask(), "");
        assert_eq!(value, b"before");
        // Nobody lets the library loose on it.
        let error = writer.update(Flags::empty(), b"b", b"2").unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("error writing {file}: Invalid argument")
        );
        let mut builder = place.builder(BuildMode::Add);
        assert!(builder.add(FOLD, b"b", b"2").is_err());
        drop(builder);
        assert_eq!(place.files(), ["t.db"]);
        std::fs::write(&place.file, &whole).unwrap();
        assert_eq!(answer(&table, "k").map(|value| value.len()), Some(50_000));
        assert!(table.try_lookup(FOLD, b"k", &mut Vec::new()).is_some());
        writer.update(Flags::empty(), b"b", b"2").unwrap();
        std::fs::write(&place.file, b"").unwrap();
        assert!(table.lookup(FOLD, b"k", &mut Vec::new()).is_err());
    }
}

#[test]
fn pages_that_lead_to_themselves_do_not_keep_anybody_busy() {
    for place in places(Caller::Daemon) {
        let value = "v".repeat(50_000);
        place.build(BuildMode::Create, &[("k", &value), ("a", "1")]);
        let whole = std::fs::read(&place.file).unwrap();
        let layout = place.layout();
        for page in 1..whole.len() / 4096 {
            for field in [12, 16] {
                let mut file = whole.clone();
                let at = page * 4096;
                let number = file[at + 8..at + 12].to_vec();
                if number == [0; 4] {
                    continue;
                }
                file[at + field..at + field + 4].copy_from_slice(&number);
                let reader = Reader::new(&file, layout).unwrap();
                assert!(reader.check().is_err(), "page {page}");
                let mut found = Vec::new();
                let result = reader.find(b"k\0", &mut found);
                assert!(result.is_err() || found.len() == value.len() + 1);
            }
        }
        let (mut key, mut found) = (Vec::new(), Vec::new());
        let reader = Reader::new(&whole, layout).unwrap();
        reader.check().unwrap();
        reader.after(None, &mut key, &mut found).unwrap().unwrap();
    }
}

/// Files of Berkeley DB 4, too: the version is another, and hash pages need not be sorted.
#[test]
fn older_versions_are_read() {
    for place in places(Caller::Daemon) {
        place.build(BuildMode::Create, &[("k", "v"), ("a", "1")]);
        let mut file = std::fs::read(&place.file).unwrap();
        file[16] = 8;
        for page in file.chunks_mut(4096).filter(|page| page[25] == 13) {
            page[25] = 2;
        }
        std::fs::write(&place.file, &file).unwrap();
        let table = place.open(Access::Read, Flags::LOCK);
        assert_eq!(list(&table), ["a=1", "k=v"]);
        file[16] = 7;
        std::fs::write(&place.file, &file).unwrap();
        assert!(
            place
                .reason(Access::Read, Flags::LOCK)
                .ends_with(": Invalid argument")
        );
    }
}

#[test]
fn one_lock_for_as_long_as_the_table_is_open() {
    for place in places(Caller::Daemon) {
        let table = place.open(Access::ReadWrite, Flags::OPEN_LOCK | Flags::SYNC_UPDATE);
        table.update(Flags::DUP_REPLACE, b"k", b"v").unwrap();
        assert_eq!(answer(&table, "k").as_deref(), Some("v"));
        assert_eq!(
            place.reason(Access::ReadWrite, Flags::OPEN_LOCK),
            format!(
                "{}:D/t: unable to get exclusive lock: Resource temporarily unavailable",
                Printable(place.name.kind())
            )
        );
        let other = place.open(Access::Read, Flags::empty());
        assert!(
            other
                .try_lookup(Flags::LOCK, b"k", &mut Vec::new())
                .is_none()
        );
        drop(table);
        assert!(
            other
                .try_lookup(Flags::LOCK, b"k", &mut Vec::new())
                .is_some()
        );
        place.open(Access::ReadWrite, Flags::OPEN_LOCK);
    }
}

#[test]
fn what_cannot_be_opened_has_the_reference_s_reason() {
    for place in places(Caller::Command) {
        let reason = || place.reason(Access::Read, Flags::LOCK);
        assert_eq!(reason(), "open database D/t.db: No such file or directory");
        // Deleting from a command does not make a table.
        assert_eq!(
            place.reason(Access::ReadWrite, Flags::LOCK),
            "open database D/t.db: No such file or directory"
        );
        for contents in [&b""[..], b"text", &[0; 8192], &[0xff; 8192]] {
            std::fs::write(&place.file, contents).unwrap();
            assert_eq!(reason(), "open database D/t.db: Invalid argument");
        }
        std::fs::remove_file(&place.file).unwrap();
        std::fs::create_dir(&place.file).unwrap();
        assert_eq!(reason(), "open database D/t.db: Is a directory");
    }
    for pair in places(Caller::Command).chunks(2) {
        let [hash, btree] = pair else { continue };
        for (from, to) in [(hash, btree), (btree, hash)] {
            from.build(BuildMode::Create, &[("k", "v")]);
            std::fs::copy(&from.file, &to.file).unwrap();
            assert_eq!(
                to.reason(Access::Read, Flags::LOCK),
                "open database D/t.db: Invalid argument"
            );
            std::fs::remove_file(&from.file).unwrap();
        }
    }
}

#[test]
fn many_writers_and_readers_share_a_table() {
    for place in places(Caller::Daemon) {
        let tables = [0; 3].map(|_| place.open(Access::ReadWrite, Flags::LOCK));
        std::thread::scope(|scope| {
            for (number, table) in tables.iter().enumerate() {
                for half in 0..2 {
                    scope.spawn(move || {
                        for count in 0..10 {
                            let key = format!("{number}-{half}-{count}");
                            let long = "v".repeat(count * 500);
                            table
                                .update(Flags::empty(), key.as_bytes(), long.as_bytes())
                                .unwrap();
                            assert_eq!(answer(table, &key), Some(long));
                        }
                    });
                }
            }
        });
        assert_eq!(list(&tables[0]).len(), 60);
    }
}
