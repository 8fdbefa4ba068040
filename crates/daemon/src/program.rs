//! What a daemon program declares about itself, and what it is told while it starts.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use postkeep_conf::{Common, Dictionary, Error, Sink};
use postkeep_sys::confine::Reach;

use crate::confinement::Confinement;
use crate::limits::Limits;
use crate::service::Service;
use crate::shared::Control;

/// Reads parameters of a program; the program keeps the values. Also the place for its own warnings.
pub type ReadParameters<P> = fn(&mut P, &mut Dictionary, &mut dyn Sink) -> Result<(), Error>;

/// One thing that a program asks of its configuration or its master.cf entry.
///
/// They are seen to in the order in which they are listed, which decides what is reported first, and which
/// parameters can refer to which.
pub enum Requirement<P> {
    /// Parameters to read; an error is fatal.
    Parameters(ReadParameters<P>),
    /// The process limit must be 1 (`-l`), or the mode one-shot.
    Solitary,
    /// The process limit must be 0 (`-z`), or the mode one-shot.
    Unlimited,
    /// The process must keep its privileges (no `-u`).
    Privileged,
    /// Clients are held up by `in_flow_delay` when mail comes in faster than it goes out.
    InFlowDelay,
    /// The program is a client of bounce(8) and wants its filters; a declaration without effect here.
    BounceInit,
}

/// How clients connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UNIX-domain stream sockets.
    Unix,
    /// TCP sockets.
    Inet,
    /// UNIX-domain sockets over which another process hands over its clients.
    Pass,
}

/// What is known about the process while it starts. Fields that say so may be changed by the hooks.
#[derive(Debug)]
pub struct Setup {
    /// Last component of `argv[0]`.
    pub process_name: String,
    /// The service's name in master.cf (`-n`), else the process name.
    pub service_name: String,
    /// Arguments after the options. proxymap and scache refuse them at the first request, as
    /// `unexpected command-line argument: ARG`.
    pub arguments: Vec<OsString>,
    /// `-t`; unix in one-shot mode without `-t`.
    pub transport: Transport,
    /// `-S`: one client on standard input and output.
    pub one_shot: bool,
    /// `-v`, how often.
    pub verbosity: u32,
    /// main.cf and the options, evaluated as far as has been asked for. May be read further.
    pub dictionary: Dictionary,
    /// `queue_directory`: the working directory, `/` after chroot.
    pub queue_directory: PathBuf,
    /// `config_directory`.
    pub config_directory: PathBuf,
    /// The parameters that every program reads.
    pub common: Common,
    /// `max_use`; a program may set 0: no limit.
    pub max_use: u64,
    /// `max_idle`; a program may set zero: no limit.
    pub max_idle: Duration,
    /// What clients may take up; the skeleton sees to the number of clients and of requests by itself.
    pub limits: Limits,
    /// Worker threads, at first one per processor; may be changed.
    pub workers: usize,
    /// The running process, for threads and hooks of the service.
    pub control: Control,
    pub(crate) confinement: Confinement,
}

impl Setup {
    /// Gives up all that the daemon does not need, for good, when `postkeep_least_privilege` says so. Further calls
    /// do nothing.
    ///
    /// A program whose service opens files, connects to others or has threads of its own calls it in
    /// [`Program::after_jail`], before the first of them. The skeleton calls it after that, with nothing to
    /// reach. Threads that exist by then can still open files.
    ///
    /// - `reach`: what the service needs beside libraries, name services, `/etc` and `config_directory`
    ///
    /// # References
    /// postkeep-proxymap(8), "SECURITY".
    pub fn confine(&mut self, reach: Reach) {
        self.confinement.apply(reach, &self.config_directory);
    }

    /// The name of clients' streams in log lines: `SERVICE socket`.
    pub fn stream_name(&self) -> String {
        format!("{} socket", self.service_name)
    }
}

/// A daemon: what it needs, and how its service is made.
///
/// Hooks may end the process with [`logging::fatal`](crate::logging::fatal), or [`std::process::exit`].
pub trait Program: Sized + 'static {
    /// What serves the clients.
    type Service: Service;

    /// What the program asks for, in order.
    fn requirements(&self) -> Vec<Requirement<Self>>;

    /// The pre-init hook: runs with the privileges that the process was started with, in the queue directory,
    /// before any chroot. Must not start threads.
    fn before_jail(&mut self, setup: &mut Setup) {
        let _ = setup;
    }

    /// The post-init hook: runs with the final privileges and root directory, and makes the service. May start
    /// threads.
    fn after_jail(self, setup: &mut Setup) -> Self::Service;
}
