//! Changes that are cut off at every point.

use super::*;

const PAGE: usize = 1024;

fn page(letter: u8) -> Box<[u8]> {
    // Both halves of a page differ, as do its sectors.
    (0..PAGE)
        .map(|at| letter.wrapping_add(u8::try_from(at / 256).unwrap()))
        .collect()
}

struct Place {
    _directory: tempfile::TempDir,
    path: PathBuf,
    table: File,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.db");
    fs::write(&path, [page(b'a'), page(b'b'), page(b'c')].concat()).unwrap();
    let table = File::options().read(true).write(true).open(&path).unwrap();
    Place {
        _directory: directory,
        path,
        table,
    }
}

impl Place {
    fn contents(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }

    /// A journal as the next process has it.
    fn journal(&self) -> Journal {
        Journal::of(&self.path)
    }

    /// The journal of a change that was not made.
    fn written(&self, changes: Changes) -> Record {
        let record = Record::new(&self.table, changes).unwrap();
        let mut journal = self.journal();
        assert!(journal.open(&self.table).unwrap());
        journal.write(&record, true).unwrap();
        record
    }

    fn recovered(&self) -> Vec<u8> {
        self.journal().recover(&self.table).unwrap();
        assert!(self.journal().read().unwrap().is_none());
        self.contents()
    }
}

/// The second page is changed, and one comes behind the last.
fn changes() -> Changes {
    let mut changes = Changes::default();
    changes.pieces.insert(PAGE as u64, page(b'x'));
    changes.pieces.insert(3 * PAGE as u64, page(b'y'));
    changes
}

fn changed() -> Vec<u8> {
    [page(b'a'), page(b'x'), page(b'c'), page(b'y')].concat()
}

#[test]
fn a_change_is_made_and_the_journal_is_void() {
    let place = place();
    let mut journal = place.journal();
    journal.commit(&place.table, changes(), true).unwrap();
    assert_eq!(place.contents(), changed());
    assert!(journal.read().unwrap().is_none());
    journal.recover(&place.table).unwrap();
    assert_eq!(place.contents(), changed());
    let mut shorter = Changes::default();
    shorter.cut = Some(2 * PAGE as u64);
    shorter.pieces.insert(0, page(b'z'));
    journal.commit(&place.table, shorter, true).unwrap();
    assert_eq!(place.contents(), [page(b'z'), page(b'x')].concat());
}

#[test]
fn a_change_that_was_cut_off_is_made_or_not_made() {
    // Any part of what is to be written may be there, and any length.
    let sectors = 2 * PAGE / SECTOR;
    for mask in 0..1_u32 << sectors {
        for length in [3, 4] {
            let place = place();
            let record = place.written(changes());
            let before = place.contents();
            place.table.set_len(length * PAGE as u64).unwrap();
            let mut written = false;
            for number in (0..sectors).filter(|number| mask & 1 << number != 0) {
                let piece = &record.pieces[number / 2];
                let start = number % 2 * SECTOR;
                let at = piece.at + start as u64;
                if at < length * PAGE as u64 {
                    let bytes = &piece.after[start..start + SECTOR];
                    place.table.write_all_at(bytes, at).unwrap();
                    written = true;
                }
            }
            let wanted = if written { changed() } else { before };
            assert_eq!(place.recovered(), wanted, "{mask:b} {length}");
        }
    }
}

#[test]
fn a_cut_that_was_not_made_is_made() {
    for is_cut in [false, true] {
        let place = place();
        let mut changes = Changes::default();
        changes.cut = Some(2 * PAGE as u64);
        changes.pieces.insert(0, page(b'z'));
        place.written(changes);
        place.table.write_all_at(&page(b'z'), 0).unwrap();
        if is_cut {
            place.table.set_len(2 * PAGE as u64).unwrap();
        }
        assert_eq!(place.recovered(), [page(b'z'), page(b'b')].concat());
    }
}

#[test]
fn a_page_that_is_cut_off_and_comes_back_is_written() {
    for length in [2, 3, 4] {
        let place = place();
        let mut changes = changes();
        changes.cut = Some(2 * PAGE as u64);
        changes.pieces.insert(2 * PAGE as u64, page(b'z'));
        place.written(changes);
        place.table.set_len(2 * PAGE as u64).unwrap();
        place.table.set_len(length * PAGE as u64).unwrap();
        let wanted = [page(b'a'), page(b'x'), page(b'z'), page(b'y')].concat();
        assert_eq!(place.recovered(), wanted);
    }
}

#[test]
fn a_journal_of_another_state_of_the_table_is_left() {
    let place = place();
    place.written(changes());
    // Somebody who does not know of the journal changes the table.
    place.table.write_all_at(&page(b'o'), PAGE as u64).unwrap();
    let contents = place.contents();
    assert_eq!(place.recovered(), contents);
    place.written(changes());
    place.table.write_all_at(&page(b'x'), PAGE as u64).unwrap();
    place.table.set_len(5 * PAGE as u64).unwrap();
    let contents = place.contents();
    assert_eq!(place.recovered(), contents);
}

#[test]
fn a_journal_that_is_not_whole_is_none() {
    let place = place();
    let before = place.contents();
    let record = place.written(changes());
    let whole = record.encode();
    let path = place.journal().path;
    for sector in 0..whole.len().div_ceil(SECTOR) {
        let mut torn = whole.clone();
        let end = torn.len().min((sector + 1) * SECTOR);
        torn[sector * SECTOR..end].fill(0);
        fs::write(&path, &torn).unwrap();
        assert!(place.journal().read().unwrap().is_none(), "{sector}");
    }
    for length in [0, 7, HEADER, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(place.recovered(), before);
    }
    // Whatever it says, nothing breaks.
    for at in 0..whole.len().min(200) {
        let mut odd = whole.clone();
        odd[at] ^= 0xFF;
        assert!(Record::decode(&odd).is_none() || at < MAGIC.len());
    }
}

#[test]
fn what_could_not_be_completed_is_completed_before_the_next_change() {
    let place = place();
    let mut journal = place.journal();
    let read_only = File::open(&place.path).unwrap();
    // The table cannot be written through this one, as on a disk that fails.
    journal
        .commit(&read_only, changes(), true)
        .expect_err("a file that is open for reading");
    assert_eq!(place.contents().len(), 3 * PAGE);
    let record = place.written(changes());
    assert!(journal.complete(&read_only, record, true).is_err());
    journal.recover(&place.table).unwrap();
    assert_eq!(place.contents(), changed());
}

#[test]
fn others_can_use_the_journal_of_a_table() {
    let place = place();
    place
        .table
        .set_permissions(Permissions::from_mode(0o640))
        .unwrap();
    place
        .journal()
        .commit(&place.table, changes(), false)
        .unwrap();
    let metadata = fs::metadata(place.journal().path).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o640);
}
