//! An installed server that runs in the foreground as an unprivileged user, and ends with its owner.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use postkeep_testkit::program::skip;
use rustix::process::{Pid, Signal, kill_process};

/// How long a server may take to be ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server: started, stopped and started again with the same words. Killed when dropped, and when the test ends in any
/// other way.
#[derive(Debug)]
pub struct Process {
    /// The program and its arguments.
    words: Vec<String>,
    user: String,
    /// Where its output goes.
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// A server that does not run yet.
    ///
    /// - `user`: whom it runs as, with that user's group and no others
    /// - `log`: where its output goes; appended to
    /// - `words`: a program of `PATH` or `/usr/sbin`, and its arguments. It has to stay in the foreground.
    pub fn new(user: &str, log: &Path, words: &[&str]) -> Self {
        Self {
            words: words.iter().map(|&word| word.to_owned()).collect(),
            user: user.to_owned(),
            log: log.to_owned(),
            child: None,
        }
    }

    /// Starts it, and waits until `ready` says so.
    ///
    /// # Panics
    /// When it ends before, or takes too long; with what it said.
    pub fn start(&mut self, ready: impl Fn() -> bool) {
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.log)
            .unwrap();
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let mut command = as_user(&self.user, &words);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0);
        self.child = Some(spawn(command));
        let begun = Instant::now();
        while !ready() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            let said = || fs::read_to_string(&self.log).unwrap_or_default();
            assert!(ended.is_none(), "{}: {ended:?}\n{}", self.words[0], said());
            assert!(
                begun.elapsed() < PATIENCE,
                "{} is not ready\n{}",
                self.words[0],
                said()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its process, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn end(&mut self, signal: Signal) {
        if let Some(mut child) = self.child.take() {
            let _ = kill_process(Pid::from_child(&child), signal);
            let _ = child.wait();
        }
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(&mut self) {
        self.end(Signal::TERM);
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    /// Holds it: connections stay, nothing is answered; until [`Self::resume`].
    ///
    /// # Panics
    /// When it does not run.
    pub fn suspend(&self) {
        let child = self.child.as_ref().unwrap();
        kill_process(Pid::from_child(child), Signal::STOP).unwrap();
        // A thread that runs at this moment may still give an answer.
        let begun = Instant::now();
        while !is_held(child.id()) {
            assert!(begun.elapsed() < PATIENCE, "{} runs on", self.words[0]);
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// When it does not run.
    pub fn resume(&self) {
        let child = self.child.as_ref().unwrap();
        kill_process(Pid::from_child(child), Signal::CONT).unwrap();
    }
}

/// Are all threads of a process stopped?
fn is_held(id: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{id}/task")).unwrap();
    tasks.flatten().all(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The name of the program, which may hold anything, is in parentheses before.
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('T'))
    })
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A command that runs as `user`, with that user's group and no others, and is killed when the thread that started it
/// ends.
pub fn as_user(user: &str, words: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", user, "--regid", &group_of(user)])
        .args(["--clear-groups", "--pdeathsig", "KILL", "--"])
        .args(words)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/");
    command
}

/// The number of the user's group.
fn group_of(user: &str) -> String {
    let output = Command::new("id").args(["-g", user]).output().unwrap();
    assert!(output.status.success(), "there is no user {user}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Starts a command from a thread that ends with the process: only then is the child killed too, and not with the test
/// whose thread happened to start a server for all.
fn spawn(command: Command) -> Child {
    type Order = (Command, Sender<Child>);
    static STARTER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, taken) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, done) in taken {
                done.send(command.spawn().unwrap()).unwrap();
            }
        });
        Mutex::new(orders)
    });
    let (done, child) = channel();
    let starter = starter.lock().unwrap_or_else(PoisonError::into_inner);
    starter.send((command, done)).unwrap();
    drop(starter);
    child.recv().expect("the program can be started")
}

/// Is this program installed, and are we allowed to start it as somebody else? Says SKIP where not.
///
/// # Panics
/// Under CI, when it is not.
pub fn installed(program: &str, package: &str) -> bool {
    let directories = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
    let found = program.starts_with('/') && Path::new(program).is_file()
        || directories
            .iter()
            .any(|directory| Path::new(directory).join(program).is_file());
    if !found {
        skip(&format!("{program} is not installed ({package})"));
    } else if !rustix::process::geteuid().is_root() {
        skip(&format!("{program} can only be started for tests by root"));
    } else {
        return true;
    }
    false
}
