//! The processes that become ours because we are process 1: in a container nobody else takes note of their end.

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};

/// Most that are taken note of at once.
const MOST: usize = 1000;

/// Takes note of ended processes that are not among `ours`. Does nothing unless this is process 1.
///
/// To be called after one's own have been taken note of: what is found first may be one of ours that has just ended, and
/// waits until then.
pub(crate) fn reap(ours: &[u32]) {
    if std::process::id() == 1 {
        reap_others(ours);
    }
}

fn reap_others(ours: &[u32]) {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    for _ in 0..MOST {
        let ended = match waitid(Id::All, look) {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => pid,
            Err(Errno::EINTR) => continue,
            Ok(_) | Err(_) => return,
        };
        if ours.contains(&ended.as_raw().cast_unsigned()) {
            return;
        }
        let _ = waitpid(ended, Some(WaitPidFlag::WNOHANG));
    }
}
