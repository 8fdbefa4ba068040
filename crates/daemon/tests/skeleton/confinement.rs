//! Least privilege: what a confined daemon can still do, and what it cannot.

use std::path::{Path, PathBuf};

use crate::harness::{Daemon, Peer, Plan};

/// A file in a directory of its own that anybody may read and write.
fn open_file() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, mode).unwrap();
    };
    let path = directory.path().join("file");
    std::fs::write(&path, "text").unwrap();
    mode(directory.path(), 0o777);
    mode(&path, 0o666);
    (directory, path)
}

/// A kernel without this cannot show it.
fn is_enforced(daemon: &Daemon) -> bool {
    let missing = daemon
        .log()
        .iter()
        .any(|line| line.contains("not enforced by this kernel"));
    if missing {
        eprintln!("SKIP: {:?}", daemon.log());
    }
    !missing
}

fn ask(peer: &mut Peer, verb: &str, path: &Path) -> String {
    peer.ask(&format!("{verb} {}", path.display()))
}

#[test]
fn off_by_default() {
    let daemon = Plan::unix().start();
    let (_directory, path) = open_file();
    let mut peer = daemon.greeted();
    assert_eq!(ask(&mut peer, "read", &path), "ok");
    assert_eq!(ask(&mut peer, "write", &path), "ok");
    assert_eq!(ask(&mut peer, "run", Path::new("/bin/true")), "ok");
    assert_eq!(daemon.proc_status("NoNewPrivs"), "0");
    assert_eq!(daemon.proc_status("Seccomp"), "0");
}

#[test]
fn a_confined_daemon_serves_and_can_do_little_else() {
    let (_directory, path) = open_file();
    let (_other, allowed) = open_file();
    let daemon = Plan::unix()
        .main_cf("postkeep_least_privilege = yes")
        .main_cf(&format!(
            "postkeep_least_privilege_paths = {} /nonexistent",
            allowed.parent().unwrap().display()
        ))
        .start();
    let mut peer = daemon.greeted();
    if !is_enforced(&daemon) {
        return;
    }
    assert!(daemon.log().is_empty(), "{:?}", daemon.log());
    // Threads, files of name services and of the configuration, and the log.
    assert_eq!(peer.ask("park 1"), "parked");
    assert_eq!(ask(&mut peer, "read", Path::new("/etc/passwd")), "ok");
    assert_eq!(ask(&mut peer, "read", &daemon.queue.join("main.cf")), "ok");
    assert_eq!(ask(&mut peer, "read", &allowed), "ok");
    assert_eq!(ask(&mut peer, "write", Path::new("/dev/null")), "ok");
    peer.ask("error");
    assert_eq!(
        daemon.log(),
        ["postfix/echo: error: echo socket: on purpose"]
    );
    // And what is over.
    let denied = "Permission denied";
    assert_eq!(ask(&mut peer, "read", &path), denied);
    for path in [&path, &allowed, &daemon.queue.join("main.cf")] {
        assert_eq!(ask(&mut peer, "write", path), denied);
    }
    assert_eq!(
        ask(&mut peer, "run", Path::new("/bin/true")),
        "Operation not permitted"
    );
    assert_eq!(daemon.proc_status("NoNewPrivs"), "1");
    assert_eq!(daemon.proc_status("Seccomp"), "2");
    for task in std::fs::read_dir(daemon.proc("task")).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(status.contains("Seccomp:\t2"), "{status}");
    }
}

#[test]
fn in_a_jail_and_as_somebody_else() {
    if !rustix::process::getuid().is_root() {
        eprintln!("SKIP: only root can change the root directory");
        return;
    }
    let daemon = Plan::new(&["-t", "unix", "-c", "-u"])
        .main_cf("postkeep_least_privilege = yes")
        .start();
    let mut peer = daemon.greeted();
    if !is_enforced(&daemon) {
        return;
    }
    peer.ask("error");
    assert_eq!(daemon.log().len(), 1, "{:?}", daemon.log());
    assert_eq!(
        ask(&mut peer, "read", Path::new("/main.cf")),
        "Permission denied"
    );
    assert_eq!(
        ask(&mut peer, "read", Path::new("/etc/passwd")),
        "No such file or directory"
    );
}
