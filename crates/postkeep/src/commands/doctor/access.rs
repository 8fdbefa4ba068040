//! What a user may do with a file, told from modes and owners.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use postkeep_sys::account;

/// The bits of a mode, as for others.
pub(super) const READ: u32 = 4;
/// As [`READ`].
pub(super) const WRITE: u32 = 2;
const SEARCH: u32 = 1;

/// A user with its groups.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub(super) uid: u32,
    groups: Vec<u32>,
}

impl User {
    /// Looks a user up; `None` when there is none.
    pub(super) fn named(name: &str) -> Option<Self> {
        let user = account::user_by_name(name).ok()??;
        let mut groups = vec![user.gid];
        // Groups from elsewhere than this file are not known here; they are rare for a service.
        let file = fs::read_to_string("/etc/group").unwrap_or_default();
        for line in file.lines() {
            let mut fields = line.split(':');
            let (Some(gid), Some(members)) = (fields.nth(2), fields.next()) else {
                continue;
            };
            if members.split(',').any(|member| member == name)
                && let Ok(gid) = gid.parse()
            {
                groups.push(gid);
            }
        }
        Some(Self {
            uid: user.uid,
            groups,
        })
    }

    /// May this user do `wanted` with a file or directory of that kind?
    pub(super) fn may(&self, metadata: &Metadata, wanted: u32) -> bool {
        let shift = if metadata.uid() == self.uid {
            6
        } else if self.groups.contains(&metadata.gid()) {
            3
        } else {
            0
        };
        self.uid == 0 || metadata.mode() >> shift & wanted == wanted
    }

    /// The file or directory that is in the way of `wanted`.
    pub(super) fn obstacle(&self, file: &Path, wanted: u32) -> Option<PathBuf> {
        let real = fs::canonicalize(file).ok()?;
        let mut above: Vec<&Path> = real.ancestors().skip(1).collect();
        above.reverse();
        for directory in above {
            if !self.may(&directory.metadata().ok()?, SEARCH) {
                return Some(directory.to_owned());
            }
        }
        let metadata = real.metadata().ok()?;
        (!self.may(&metadata, wanted)).then(|| file.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn modes_count_for_the_class_a_user_is_in() {
        let scratch = tempfile::tempdir().unwrap();
        fs::set_permissions(scratch.path(), Permissions::from_mode(0o755)).unwrap();
        let path = scratch.path().join("file");
        fs::write(&path, "").unwrap();
        let (uid, gid) = {
            let metadata = path.metadata().unwrap();
            (metadata.uid(), metadata.gid())
        };
        let stranger = User {
            uid: 54_321,
            groups: vec![54_321],
        };
        let friend = User {
            uid: 54_321,
            groups: vec![54_321, gid],
        };
        let owner = User {
            uid,
            groups: Vec::new(),
        };
        let mode = |mode| fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        mode(0o640);
        assert_eq!(stranger.obstacle(&path, READ), Some(path.clone()));
        assert_eq!(friend.obstacle(&path, READ), None);
        assert_eq!(friend.obstacle(&path, WRITE), Some(path.clone()));
        assert_eq!(owner.obstacle(&path, WRITE), None);
        mode(0o604);
        assert_eq!(stranger.obstacle(&path, READ), None);
        assert_eq!(friend.obstacle(&path, READ), Some(path.clone()));
        fs::set_permissions(scratch.path(), Permissions::from_mode(0o700)).unwrap();
        assert_eq!(
            stranger.obstacle(&path, READ),
            Some(scratch.path().to_owned())
        );
    }
}
