//! Giving up, for good, what a running daemon has no use for: system calls, and most of the file system.
//!
//! Both bind the whole process and whatever it starts, cannot be taken back, and need no privileges. They also
//! set `no_new_privs`: no program that this process could start would gain any.
//!
//! # References
//! seccomp(2), landlock(7).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath,
    PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// What a process can reach from then on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Files, and directories with all below them, that may be read. Those that do not exist are passed over.
    pub readable: Vec<PathBuf>,
    /// Directories in which files may be read, written, made and removed.
    pub writable: Vec<PathBuf>,
    /// TCP connections may be made.
    pub network: bool,
    /// TCP ports on which sockets may be made that accept connections, beside those that are open already.
    pub ports: Vec<u16>,
    /// The process may make copies of itself. Other programs can be started in no case.
    pub copies: bool,
}

/// How much of what was asked for is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforced {
    /// All.
    Fully,
    /// What this kernel knows of it.
    Partly,
    /// Nothing: the kernel does not have it, or it is switched off.
    NotAtAll,
}

/// Keeps this thread, and all that it starts, to what `reach` names. Nothing can be executed.
///
/// Descriptors that are open stay usable. Connecting to UNIX-domain sockets by path is not affected, abstract ones
/// and signals to others are ruled out where the kernel can do that (Linux 6.12).
///
/// # Errors
/// A system call of landlock(7) failed for another reason than that the kernel lacks something.
pub fn restrict_files(reach: &Reach) -> io::Result<Enforced> {
    // What came later controls connections to UNIX-domain sockets, which log daemons and name services need.
    const KNOWN: ABI = ABI::V6;
    let network = if reach.network {
        AccessNet::BindTcp.into()
    } else {
        AccessNet::from_all(KNOWN)
    };
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(|rules| rules.handle_access(network))
        .and_then(|rules| rules.scope(Scope::from_all(KNOWN)))
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write =
        read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
    let paths = reach.readable.iter().map(|path| (path, read));
    for (path, access) in paths.chain(reach.writable.iter().map(|path| (path, write))) {
        if let Some((place, access)) = opened(path, access) {
            rules = rules
                .add_rule(PathBeneath::new(place, access))
                .map_err(io::Error::other)?;
        }
    }
    for &port in &reach.ports {
        rules = rules
            .add_rule(NetPort::new(port, AccessNet::BindTcp))
            .map_err(io::Error::other)?;
    }
    let status = rules.restrict_self().map_err(io::Error::other)?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Enforced::Fully,
        RulesetStatus::PartiallyEnforced => Enforced::Partly,
        RulesetStatus::NotEnforced => Enforced::NotAtAll,
    })
}

/// A place that exists, with the rights that make sense there.
fn opened(path: &Path, access: BitFlags<AccessFs>) -> Option<(PathFd, BitFlags<AccessFs>)> {
    let is_directory = path.metadata().ok()?.is_dir();
    let access = if is_directory {
        access
    } else {
        access & AccessFs::from_file(ABI::V5)
    };
    Some((PathFd::new(path).ok()?, access))
}

/// Refuses system calls that no daemon of ours makes, in all threads: they fail with `EPERM`.
///
/// - `copies`: as [`Reach::copies`]
///
/// What is refused: starting programs and processes; tracing and reading other processes; mounting, changing the
/// root directory, entering namespaces; loading kernel modules, kernels and BPF programs; keys, performance
/// counters, user-mode page faults, `io_uring`; clocks, host name, quotas, swap, accounting; handles of files by
/// number; sockets other than UNIX-domain, internet and routing ones; typing into a terminal.
///
/// # Errors
/// seccomp(2) failed.
pub fn refuse_calls(copies: bool) -> io::Result<Enforced> {
    let Ok(architecture) = TargetArch::try_from(std::env::consts::ARCH) else {
        return Ok(Enforced::NotAtAll);
    };
    let refuse = |rules, errno: i32| {
        let program: BpfProgram = SeccompFilter::new(
            rules,
            SeccompAction::Allow,
            SeccompAction::Errno(errno.unsigned_abs()),
            architecture,
        )?
        .try_into()?;
        Ok::<_, seccompiler::BackendError>(program)
    };
    // Its arguments are in memory, where a filter cannot look: the C library then uses clone(2).
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    for (rules, errno) in [(refused(copies), libc::EPERM), (Ok(unknown), libc::ENOSYS)] {
        let program = rules
            .and_then(|rules| refuse(rules, errno))
            .map_err(io::Error::other)?;
        match seccompiler::apply_filter_all_threads(&program) {
            Ok(()) => {}
            Err(seccompiler::Error::Seccomp(error) | seccompiler::Error::Prctl(error))
                if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) =>
            {
                return Ok(Enforced::NotAtAll);
            }
            Err(error) => return Err(io::Error::other(error)),
        }
    }
    Ok(Enforced::Fully)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The calls that are refused whatever their arguments are.
const REFUSED: &[i64] = &[
    // Programs and processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // Mounts, roots and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    // Code in the kernel.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_bpf,
    // Large or dangerous parts of the kernel.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_vmsplice,
    libc::SYS_personality,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    // Files behind the back of paths.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
];

/// Those that only this kind of machine has. The last ones are how programs for its third binary interface call
/// what is refused above; the others keep their numbers there.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[i64] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_uselib,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_kexec_file_load,
    X32 + 520,
    X32 + 521,
    X32 + 528,
    X32 + 532,
    X32 + 539,
    X32 + 540,
    X32 + 545,
];

/// Those that only this kind of machine has.
#[cfg(target_arch = "aarch64")]
const REFUSED_HERE: &[i64] = &[libc::SYS_kexec_file_load];

/// Those that only this kind of machine has.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const REFUSED_HERE: &[i64] = &[];

/// The bit that tells calls of the third binary interface.
#[cfg(target_arch = "x86_64")]
const X32: i64 = 0x4000_0000;

/// Bits of clone(2) that a plain copy of a process does not have.
const NOT_OF_COPIES: [i32; 8] = [
    libc::CLONE_VM,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

fn refused(copies: bool) -> Result<Rules, seccompiler::BackendError> {
    use SeccompCmpArgLen::Dword;
    let condition = |argument, operator, value: i32| {
        SeccompCondition::new(argument, Dword, operator, u64::from(value.unsigned_abs()))
    };
    let mut rules: Rules = REFUSED
        .iter()
        .chain(REFUSED_HERE)
        .map(|&call| (call, Vec::new()))
        .collect();
    #[cfg(target_arch = "x86_64")]
    for call in REFUSED {
        rules.insert(X32 + call, Vec::new());
    }
    // A process; a thread has the bit.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let process = condition(0, SeccompCmpOp::MaskedEq(thread), 0)?;
    let calls = if copies {
        // Not a copy, but something that shares memory with this process or leaves its namespaces.
        let others = NOT_OF_COPIES.map(|bit| {
            let set = SeccompCmpOp::MaskedEq(u64::from(bit.unsigned_abs()));
            SeccompRule::new(vec![process.clone(), condition(0, set, bit)?])
        });
        others.into_iter().collect::<Result<Vec<_>, _>>()?
    } else {
        vec![SeccompRule::new(vec![process])?]
    };
    rules.insert(libc::SYS_clone, calls);
    // A socket of a family that nobody needs.
    let other = [
        libc::AF_UNIX,
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
    ]
    .map(|family| condition(0, SeccompCmpOp::Ne, family));
    let other = other.into_iter().collect::<Result<Vec<_>, _>>()?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(other)?]);
    // TIOCSTI and TIOCLINUX.
    let typing = [0x5412, 0x541C]
        .map(|request| SeccompRule::new(vec![condition(1, SeccompCmpOp::Eq, request)?]));
    let typing = typing.into_iter().collect::<Result<Vec<_>, _>>()?;
    rules.insert(libc::SYS_ioctl, typing);
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    // The real thing binds a whole process, so it is tested on a daemon that is one.

    #[test]
    fn calls_that_daemons_make_are_not_refused() {
        let rules = refused(false).unwrap();
        for call in [
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_openat,
            libc::SYS_mmap,
            libc::SYS_mprotect,
            libc::SYS_futex,
            libc::SYS_epoll_pwait,
            libc::SYS_accept4,
            libc::SYS_sendmsg,
            libc::SYS_recvmsg,
            libc::SYS_connect,
            libc::SYS_fcntl,
            libc::SYS_exit_group,
            libc::SYS_tgkill,
            libc::SYS_renameat2,
        ] {
            assert!(!rules.contains_key(&call), "{call}");
        }
        // With arguments that matter, and not for all.
        for call in [libc::SYS_clone, libc::SYS_socket, libc::SYS_ioctl] {
            assert!(!rules[&call].is_empty(), "{call}");
        }
        assert!(rules[&libc::SYS_execve].is_empty());
    }

    #[test]
    fn rights_fit_what_is_there() {
        let all = AccessFs::from_all(ABI::V5);
        let (_, on_directory) = opened(Path::new("/"), all).unwrap();
        assert!(on_directory.contains(AccessFs::ReadDir));
        let (_, on_file) = opened(Path::new("/dev/null"), all).unwrap();
        assert!(!on_file.contains(AccessFs::ReadDir));
        assert!(opened(Path::new("/nonexistent"), all).is_none());
    }
}
