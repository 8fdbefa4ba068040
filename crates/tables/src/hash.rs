//! `hash:FILE` is a Berkeley DB hash file in `FILE.db`, made by postmap(1) or postalias(1).
//!
//! Files of Berkeley DB 4 and 5 in either byte order are read by this program itself; the library is not needed.
//! Entries are stored and deleted, and tables created, through the system's `libdb-5.3.so`, which is loaded when it is
//! first needed. Where it is missing, these fail, and the way out is another type:
//! `postmap -s hash:FILE | postmap -fui lmdb:FILE` makes an `lmdb:` table with the same entries.
//!
//! Programs keep apart by flock(2) on the file: shared to read, exclusive to write. A key is stored with a NUL behind it
//! unless the creator was told otherwise; both forms are looked for. Keys and values have no limit. Entries are listed
//! in the order in which they lie in the file.
//!
//! Up to 64 MiB of a table that does not change are kept in memory, and lookups there take no lock. What this process
//! changed is seen at its next lookup, what another program changed within a tenth of a second; an answer is always that
//! of one state of the table. On network file systems, FUSE and ZFS nothing is kept, and each lookup locks and reads the
//! file.
//!
//! Creating a table, and `postmap -i`, write another file beside it, bring it to disk, and rename it: readers have the
//! old table or the new one, and a maker that dies leaves the old one. A table keeps its mode and owner. Where the
//! directory does not allow that the file is overwritten in place, as the reference always does.
//!
//! What is stored and deleted is first written to `FILE.db.journal`, and answered when it is on the disk and in the
//! table: the table survives a process that is killed and a power failure in the middle of it. Changes that come while another one is under
//! way share the next, 128 at most, as with `lmdb:`. The journal stays beside the table and must not be removed while the table
//! is in use: a change that was cut off is completed from it by the next program of ours that opens the table for changes.
//! Until then the table may be damaged for others. Where no file can be made in the directory there is no journal, with a warning.
//!
//! Differences from the reference: a damaged file fails lookups for the time being, with one line in the log, and not
//! the process; a file whose pages do not fit together is not written to. A symbolic link `FILE.db` is replaced, not
//! followed, by one who creates the table. Both forms of a key are tried each time. Each change is on the disk before
//! the lock is given up, of commands in the file; a table that was replaced is opened again before it is changed. `DB_CONFIG` files are not
//! read. A walk goes on when its entry was deleted.

use std::sync::Arc;

use postkeep_sys::berkeley::Layout;
use postkeep_table::{OpenError, Table};

use crate::table_type::{Request, TableType};
use crate::{BuildMode, Builder, berkeley};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "hash",
    summary: "a Berkeley DB hash file",
    capabilities: berkeley::CAPABILITIES,
    open,
    build: Some(build),
};

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    berkeley::open(request, Layout::Hash)
}

fn build(request: &Request<'_>, mode: BuildMode) -> Result<Box<dyn Builder>, OpenError> {
    berkeley::build(request, Layout::Hash, mode)
}
