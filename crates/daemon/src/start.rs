//! From `argv` to the event loop, in the reference's order.
//!
//! # References
//! Postfix `multi_server.c`, `multi_server_main()`; `chroot_uid.c`; `debug_process.c`.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use postkeep_conf::{Account, Common, Dictionary, Release, StrParameter};
use postkeep_sys::confine::Reach;
use postkeep_sys::descriptor::Inherited;
use postkeep_sys::process::{Ignored, ignore};
use postkeep_sys::{error_text, privilege};

use crate::configuration::{self, LogSink};
use crate::confinement::Confinement;
use crate::control::{self, Plan};
use crate::limits::Limits;
use crate::logging::{self, Facility, Label, Postlog, Settings};
use crate::metrics::{Address, Exporter, Places, Process};
use crate::one_shot;
use crate::options::{self, CommandLine, Given};
use crate::program::{Program, Requirement, Setup, Transport};
use crate::shared::{Control, Shared};
use crate::status::{StatusChannel, parse_generation};
use crate::surroundings::evaluate_common;

/// Descriptors that master(8) hands down.
const FLOW_READ: i32 = 3;
const FLOW_WRITE: i32 = 4;
const STATUS: i32 = 5;
const FIRST_LISTENER: i32 = 6;

/// For whoever finds a core file: which version was this?
#[used]
static VERSION_STAMP: &str = concat!("mail_version=postkeep-", env!("CARGO_PKG_VERSION"));

/// What the options said, apart from parameters.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of the command line"
)]
struct Choices {
    alone: bool,
    unlimited: bool,
    chroot: bool,
    unprivileged: bool,
    debug: bool,
    by_hand: bool,
    one_shot: bool,
    service_name: String,
    sockets: usize,
    transport: Option<OsString>,
    verbosity: u32,
}

fn fatal(text: impl std::fmt::Display) -> ! {
    logging::fatal(format_args!("{text}"))
}

/// Runs a daemon under master(8), or one request of it (`-S`). Never returns.
///
/// Call it first in `main`, before anything opens a file or starts a thread: the descriptors 3 to 5 and from 6
/// on are taken over, and the environment is changed.
///
/// - `argv0`: the name of the program as it was started
/// - `arguments`: the words after it
pub fn main<P: Program>(argv0: &OsStr, arguments: &[OsString], mut program: P) -> ! {
    let mut inherited = Inherited::survey();
    let verbosity = u32::from(std::env::var_os("MAIL_VERBOSE").is_some());
    let debug = std::env::var_os("MAIL_DEBUG").is_some();
    for signal in [Ignored::BrokenPipe, Ignored::FileSize] {
        // There is no way for this to fail with these signals.
        let _ = ignore(signal);
    }
    let process_name = base_name(argv0);
    logging::daemon(&process_name);
    logging::set_verbosity(verbosity);
    log::debug!("daemon started");

    let line = options::parse(arguments);
    let config_directory = configuration::directory();
    let mut dictionary = read_configuration(&config_directory, &process_name, &line);
    let release = dictionary.release();
    let mut choices = Choices {
        alone: false,
        unlimited: false,
        chroot: false,
        unprivileged: false,
        debug,
        by_hand: false,
        one_shot: false,
        service_name: process_name.clone(),
        sockets: 1,
        transport: None,
        verbosity,
    };
    apply_options(&line, &mut choices, &mut dictionary);
    if release >= Release::V3_3 {
        dictionary.set("service_name", choices.service_name.as_bytes());
    }
    if release >= Release::V3_12 {
        dictionary.set("process_name", process_name.as_bytes());
    }

    let common =
        evaluate_common(&mut dictionary, &mut LogSink).unwrap_or_else(|error| fatal(error));
    configure_logging(&common);
    if !choices.by_hand && !choices.one_shot && std::io::stdin().is_terminal() {
        logging::to_stderr(Label::Program);
        fatal("do not run this command by hand");
    }
    let flow_control = see_to_requirements(&mut program, &choices, &mut dictionary);
    let limits = Limits::read(&mut dictionary, &mut LogSink).unwrap_or_else(|error| fatal(error));
    let confinement =
        Confinement::read(&mut dictionary, &mut LogSink).unwrap_or_else(|error| fatal(error));
    let metrics = Places::read(&mut dictionary, &choices.service_name, &mut LogSink)
        .unwrap_or_else(|error| fatal(error))
        .unwrap_or_else(|error| fatal(error));
    let transport = transport(&choices);
    let generation = match std::env::var_os("GENERATION") {
        None => 0,
        Some(text) => {
            let text = text.to_string_lossy();
            parse_generation(&text)
                .unwrap_or_else(|text| fatal(format_args!("bad generation: {text}")))
        }
    };
    if choices.debug {
        run_debugger(&mut dictionary, &process_name);
    }

    let queue_directory = PathBuf::from(OsStr::from_bytes(&common.queue_directory));
    if let Err(error) = std::env::set_current_dir(&queue_directory) {
        fatal(format_args!(
            "chdir(\"{}\"): {}",
            queue_directory.display(),
            error_text(&error)
        ));
    }
    let shared = Arc::new(
        Shared::new(common.daemon_timeout, limits)
            .unwrap_or_else(|error| fatal(error_text(&error))),
    );
    let mut setup = Setup {
        process_name,
        service_name: choices.service_name.clone(),
        arguments: line.arguments,
        transport,
        one_shot: choices.one_shot,
        verbosity: choices.verbosity,
        dictionary,
        queue_directory,
        config_directory,
        max_use: u64::try_from(common.max_use).unwrap_or(0),
        max_idle: common.max_idle,
        limits,
        workers: std::thread::available_parallelism().map_or(1, usize::from),
        control: Control {
            shared: Arc::clone(&shared),
        },
        common,
        confinement,
    };
    program.before_jail(&mut setup);
    let wanted = !metrics.addresses.is_empty() && !setup.one_shot;
    let process = wanted.then(Process::open);
    enter_jail(&choices, &setup.common);
    if choices.chroot {
        setup.queue_directory = PathBuf::from("/");
    }
    let exporter = process.map(|process| {
        let ports = metrics.addresses.iter().filter_map(Address::port);
        setup.confinement.listens_on(ports);
        Exporter::bind(metrics, process)
    });
    let service = Arc::new(program.after_jail(&mut setup));
    setup.confine(Reach::default());

    if setup.one_shot {
        one_shot::serve(
            &*service,
            setup.common.ipc_timeout,
            setup.common.daemon_timeout,
        );
    }
    let last = FIRST_LISTENER + i32::try_from(choices.sockets).unwrap_or(i32::MAX - FIRST_LISTENER);
    let listeners = (FIRST_LISTENER..last)
        .map(|number| take(&mut inherited, number))
        .collect();
    let status = StatusChannel::new(take(&mut inherited, STATUS), generation);
    let _ = shared.status.set(status);
    // Without the pipe there is no flow control. Its write end only has to be kept from children.
    let flow_pipe = inherited.take(FLOW_READ).ok();
    let _flow_write = inherited.take(FLOW_WRITE).ok();
    if let Some(mut exporter) = exporter {
        let _ = shared.traces.set(exporter.take_traces());
        let (service, shared) = (Arc::clone(&service), Arc::clone(&shared));
        exporter.start(setup.service_name.clone(), service, shared);
    }
    let plan = Plan {
        transport,
        max_idle: setup.max_idle,
        max_use: setup.max_use,
        flow_delay: flow_control.then_some(setup.common.in_flow_delay),
        flow_pipe,
        listeners,
        heartbeat: heartbeat(),
        workers: setup.workers,
    };
    control::serve(service, shared, plan)
}

fn take(inherited: &mut Inherited, number: i32) -> OwnedFd {
    inherited.take(number).unwrap_or_else(|error| {
        fatal(format_args!(
            "event_enable_read: epoll_ctl EPOLL_CTL_ADD: {}",
            error_text(&error)
        ))
    })
}

/// `POSTKEEP_HEARTBEAT`, in milliseconds: how often `postkeep serve` wants to hear that all threads are alive.
fn heartbeat() -> Option<Duration> {
    let milliseconds = std::env::var("POSTKEEP_HEARTBEAT").ok()?.parse().ok()?;
    (milliseconds > 0).then(|| Duration::from_millis(milliseconds))
}

/// What follows the last slash.
fn base_name(argv0: &OsStr) -> String {
    let bytes = argv0.as_bytes();
    let start = bytes
        .iter()
        .rposition(|&byte| byte == b'/')
        .map_or(0, |slash| slash + 1);
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}

fn read_configuration(directory: &Path, process_name: &str, line: &CommandLine) -> Dictionary {
    configuration::authorize(directory).unwrap_or_else(|error| fatal(error));
    let (text, file) = configuration::read(directory).unwrap_or_else(|error| fatal(error));
    let overrides: Vec<Vec<u8>> = line
        .options
        .iter()
        .filter_map(|option| match option {
            Given::Known(b'o', assignment) => Some(assignment.as_bytes().to_vec()),
            _ => None,
        })
        .collect();
    configuration::load(
        directory,
        process_name,
        &text,
        &file,
        &overrides,
        &mut LogSink,
    )
    .unwrap_or_else(|error| fatal(error))
}

fn apply_options(line: &CommandLine, choices: &mut Choices, dictionary: &mut Dictionary) {
    let mut to_stderr = false;
    for option in &line.options {
        let (letter, argument) = match option {
            Given::Known(letter, argument) => (letter, argument),
            Given::Invalid(letter) => {
                let shown = if dictionary.release() < Release::V3_3 {
                    '?'
                } else {
                    char::from(*letter)
                };
                fatal(format_args!("invalid option: {shown}"));
            }
        };
        match letter {
            b'c' => choices.chroot = true,
            b'd' => choices.by_hand = true,
            b'D' => choices.debug = true,
            b'i' => dictionary.set("max_idle", argument.as_bytes()),
            b'l' => choices.alone = true,
            b'm' => dictionary.set("max_use", argument.as_bytes()),
            b'n' => choices.service_name = argument.to_string_lossy().into_owned(),
            b'o' => {
                if let Err(error) = dictionary.set_override(argument.as_bytes()) {
                    fatal(error);
                }
            }
            b's' => {
                choices.sockets = options::socket_count(argument).unwrap_or_else(|| {
                    fatal(format_args!("invalid socket_count: {}", argument.display()));
                });
            }
            b'S' => choices.one_shot = true,
            b't' => choices.transport = Some(argument.clone()),
            b'u' => choices.unprivileged = true,
            b'v' => {
                choices.verbosity += 1;
                logging::set_verbosity(choices.verbosity);
            }
            b'V' if !to_stderr => {
                to_stderr = true;
                logging::to_stderr(Label::Ident);
            }
            b'z' => choices.unlimited = true,
            _ => {}
        }
    }
}

fn configure_logging(common: &Common) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    logging::configure(&Settings {
        syslog_name: text(&common.syslog_name),
        facility: Facility::new(common.syslog_facility_code()),
        postlog: (!common.maillog_file.is_empty()).then(|| Postlog {
            queue_directory: PathBuf::from(OsStr::from_bytes(&common.queue_directory)),
            service: text(&common.postlog_service_name),
            host: text(&common.myhostname),
        }),
        utf8: common.smtputf8_enable,
    });
}

/// Goes through the requirements in order; says whether flow control is wanted.
fn see_to_requirements<P: Program>(
    program: &mut P,
    choices: &Choices,
    dictionary: &mut Dictionary,
) -> bool {
    let service = &choices.service_name;
    let mut flow_control = false;
    for requirement in program.requirements() {
        match requirement {
            Requirement::Parameters(read) => {
                if let Err(error) = read(program, dictionary, &mut LogSink) {
                    fatal(error);
                }
            }
            Requirement::Solitary if !choices.one_shot && !choices.alone => {
                fatal(format_args!(
                    "service {service} requires a process limit of 1"
                ));
            }
            Requirement::Unlimited if !choices.one_shot && !choices.unlimited => {
                fatal(format_args!(
                    "service {service} requires a process limit of 0"
                ));
            }
            Requirement::Privileged if choices.unprivileged => {
                fatal(format_args!(
                    "service {service} requires privileged operation"
                ));
            }
            Requirement::InFlowDelay => flow_control = true,
            Requirement::Solitary
            | Requirement::Unlimited
            | Requirement::Privileged
            | Requirement::BounceInit => {}
        }
    }
    flow_control
}

fn transport(choices: &Choices) -> Transport {
    let named = choices.transport.as_ref().and_then(|name| {
        [
            ("unix", Transport::Unix),
            ("inet", Transport::Inet),
            ("pass", Transport::Pass),
        ]
        .into_iter()
        .find(|(known, _)| name.eq_ignore_ascii_case(known))
        .map(|(_, transport)| transport)
    });
    match (named, &choices.transport) {
        (Some(transport), _) => transport,
        (None, _) if choices.one_shot => Transport::Unix,
        (None, None) => fatal("no transport type specified"),
        (None, Some(name)) => fatal(format_args!(
            "unsupported transport type: {}",
            name.display()
        )),
    }
}

/// Runs `debugger_command`, and waits for it: it usually starts a debugger in the background.
fn run_debugger(dictionary: &mut Dictionary, process_name: &str) {
    let parameter = StrParameter {
        name: "debugger_command",
        default: "",
        min: 0,
        max: 0,
    };
    let command = dictionary
        .str(&parameter, &mut LogSink)
        .unwrap_or_else(|error| fatal(error));
    if command.is_empty() {
        fatal("no debugger_command variable set up");
    }
    log::info!("running: {}", String::from_utf8_lossy(&command));
    let status = Command::new("/bin/sh")
        .arg("-c")
        .arg(OsString::from_vec(command))
        .env("process_name", process_name)
        .env("process_id", std::process::id().to_string())
        .status();
    if let Err(error) = status {
        fatal(format_args!("exec /bin/sh: {}", error_text(&error)));
    }
}

/// Gives up privileges and the rest of the file system, as `-u` and `-c` ask.
fn enter_jail(choices: &Choices, common: &Common) {
    let owner = choices.unprivileged.then_some(&common.mail_owner);
    if let Some(Account { name, gid, .. }) = owner {
        if let Err(error) = privilege::set_group(*gid) {
            fatal(format_args!("setgid({gid}): {}", error_text(&error)));
        }
        if let Err(error) = privilege::initialize_groups(&String::from_utf8_lossy(name), *gid) {
            fatal(format_args!("initgroups: {}", error_text(&error)));
        }
    }
    if choices.chroot {
        let directory = Path::new(OsStr::from_bytes(&common.queue_directory));
        if let Err(error) = privilege::change_root(directory) {
            fatal(format_args!(
                "chroot({}): {}",
                directory.display(),
                error_text(&error)
            ));
        }
        if let Err(error) = std::env::set_current_dir("/") {
            fatal(format_args!("chdir(/): {}", error_text(&error)));
        }
    }
    if let Some(Account { uid, .. }) = owner
        && let Err(error) = privilege::set_user(*uid)
    {
        fatal(format_args!("setuid({uid}): {}", error_text(&error)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_programs() {
        assert_eq!(
            base_name(OsStr::new("/usr/lib/postfix/sbin/scache")),
            "scache"
        );
        assert_eq!(base_name(OsStr::new("scache")), "scache");
    }

    #[test]
    fn transports_are_known_in_any_case() {
        let choices = |transport: Option<&str>, one_shot| Choices {
            alone: false,
            unlimited: false,
            chroot: false,
            unprivileged: false,
            debug: false,
            by_hand: false,
            one_shot,
            service_name: String::new(),
            sockets: 1,
            transport: transport.map(OsString::from),
            verbosity: 0,
        };
        assert_eq!(transport(&choices(Some("UNIX"), false)), Transport::Unix);
        assert_eq!(transport(&choices(Some("Pass"), false)), Transport::Pass);
        assert_eq!(transport(&choices(Some("fifo"), true)), Transport::Unix);
    }
}
