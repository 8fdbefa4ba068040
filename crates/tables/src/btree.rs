//! `btree:FILE` is a Berkeley DB B-tree file in `FILE.db`, made by postmap(1) or postalias(1).
//!
//! All that is said of [hash](#hash) holds, but entries are listed in the order of the bytes of their keys. Although
//! the file has the same name, one type does not read the other's file.

use std::sync::Arc;

use postkeep_sys::berkeley::Layout;
use postkeep_table::{OpenError, Table};

use crate::table_type::{Request, TableType};
use crate::{BuildMode, Builder, berkeley};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "btree",
    summary: "a Berkeley DB B-tree file",
    capabilities: berkeley::CAPABILITIES,
    open,
    build: Some(build),
};

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    berkeley::open(request, Layout::Btree)
}

fn build(request: &Request<'_>, mode: BuildMode) -> Result<Box<dyn Builder>, OpenError> {
    berkeley::build(request, Layout::Btree, mode)
}
