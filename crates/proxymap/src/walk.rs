//! Where one client stands in its walks through tables (`sequence` requests).
//!
//! The reference has one cursor for each open table, so two clients that walk at the same time each see a part of
//! the entries. Here each client has its own. Clients drop idle connections in the middle of a walk and go on
//! over a new one, so the cursor of a client that leaves stays with the table until the next client without one
//! asks for the next entry.

use std::sync::Arc;

use postkeep_table::Cursor;

use crate::instance::Instance;

/// How many walks one client may have open; the oldest makes room.
const MAX_WALKS: usize = 16;

/// One walk.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    pub(crate) cursor: Cursor,
    /// The end was reached; asking for more stays without result.
    pub(crate) finished: bool,
}

/// The walks of one client.
#[derive(Debug, Default)]
pub(crate) struct Walks {
    walks: Vec<(Arc<Instance>, Walk)>,
}

impl Walks {
    /// Takes out the walk through this table: the client's own, or else one that somebody left behind.
    pub(crate) fn take(&mut self, instance: &Arc<Instance>) -> Option<Walk> {
        let own = self
            .walks
            .iter()
            .position(|(other, _)| Arc::ptr_eq(other, instance));
        match own {
            Some(index) => Some(self.walks.remove(index).1),
            None => instance.adopt().map(|cursor| Walk {
                cursor,
                finished: false,
            }),
        }
    }

    /// Puts a walk back, or a new one in the place of an old one.
    pub(crate) fn put(&mut self, instance: &Arc<Instance>, walk: Walk) {
        self.walks
            .retain(|(other, _)| !Arc::ptr_eq(other, instance));
        if self.walks.len() >= MAX_WALKS {
            let (oldest, walk) = self.walks.remove(0);
            leave(&oldest, walk);
        }
        self.walks.push((Arc::clone(instance), walk));
    }
}

impl Drop for Walks {
    fn drop(&mut self) {
        for (instance, walk) in self.walks.drain(..) {
            leave(&instance, walk);
        }
    }
}

fn leave(instance: &Instance, walk: Walk) {
    if !walk.finished {
        instance.abandon(walk.cursor);
    }
}
