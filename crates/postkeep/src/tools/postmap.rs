//! postmap(1) and postalias(1): create, change and query tables.
//!
//! The same options, texts and exit statuses as the programs of Postfix 3.7; `-j` is that of 3.11. What is done
//! better: results found before an error are written out; each source file is opened with the caller's privileges,
//! also after one of another user; a source that cannot be read is an error and not an empty table.

mod alias;
mod change;
mod message;
mod options;
mod query;

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use postkeep_conf::{Common, Dictionary, extract_braced, split_list_braced, split_name_value};
use postkeep_daemon::{configuration, evaluate_common, logging};
use postkeep_sys::{environment, process};
use postkeep_table::{Flags, LookupError, TableName};
use postkeep_tables::{Caller, Context, Registry};

use options::{Action, Options, Program};

/// Text for a `fatal` record, which ends the command.
struct Fatal(String);

impl Fatal {
    /// What the table said, or that `what` failed on it.
    fn of_table(name: &TableName, what: &str, error: &LookupError) -> Self {
        let text = error.to_string();
        Self(match error {
            _ if !text.is_empty() => text,
            LookupError::Config(_) if what == "query" => format!("table {name}: {what} error"),
            _ => format!("table {name}: {what} error: Application error"),
        })
    }
}

/// Whether something was found, which is the exit status.
type Outcome = Result<bool, Fatal>;

/// What all actions need.
struct Command {
    program: Program,
    options: Options,
    registry: Registry,
    default_type: Vec<u8>,
    /// `myhostname`, for the entries that postalias adds.
    host: Vec<u8>,
}

/// Runs the program that `argv0` names.
pub(crate) fn run(argv0: &OsStr, arguments: &[OsString]) -> ExitCode {
    process::set_umask(0o022);
    // A reader that goes away ends the command silently, as it ends other filters.
    let _ = process::restore_broken_pipe();
    let name = logging::command(argv0);
    let program = if name == "postalias" {
        Program::Postalias
    } else {
        Program::Postmap
    };
    let result = options::parse(program, &name, arguments)
        .and_then(|options| Command::prepare(program, &name, options))
        .and_then(|command| command.act());
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Fatal(text)) => logging::fatal(format_args!("{text}")),
    }
}

impl Command {
    fn prepare(program: Program, name: &str, mut options: Options) -> Result<Self, Fatal> {
        let verbose = options.verbosity + u32::from(std::env::var_os("MAIL_VERBOSE").is_some());
        logging::set_verbosity(verbose);
        if let Some(directory) = &options.config_directory {
            set_variable(OsStr::new("MAIL_CONFIG"), directory)?;
        }
        let (dictionary, common) = read_configuration(name)?;
        if program == Program::Postmap {
            update_environment(&common.import_environment)?;
        }
        logging::configure(&log_settings(&common));
        options.check_message_options()?;
        let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let context = Context {
            caller: Caller::Command,
            smtputf8_enable: common.smtputf8_enable,
            lmdb_map_size: u64::try_from(common.lmdb_map_size).unwrap_or(1),
            queue_directory: path(&common.queue_directory),
            proxymap_service_name: text(&common.proxymap_service_name),
            proxywrite_service_name: text(&common.proxywrite_service_name),
            ipc_timeout: common.ipc_timeout,
            ipc_idle: common.ipc_idle,
            ipc_ttl: common.ipc_ttl,
            main_cf: Arc::new(dictionary),
        };
        Ok(Self {
            program,
            options,
            registry: Registry::new(context),
            default_type: common.default_database_type,
            host: common.myhostname,
        })
    }

    fn act(&self) -> Outcome {
        if self.options.operands.is_empty() && !matches!(self.options.action, Action::List) {
            return Err(options::usage(self.program));
        }
        match &self.options.action {
            Action::Query(key) => self.query(key),
            Action::Delete(key) => self.delete(key),
            Action::List => self.list(),
            Action::Create | Action::Add => self.build_all(),
        }
    }

    /// The table that an operand names.
    fn table_name(&self, operand: &OsStr) -> Result<TableName, Fatal> {
        let mut text = operand.as_bytes().to_vec();
        if !text.contains(&b':') {
            text.splice(0..0, [&self.default_type[..], b":"].concat());
        }
        TableName::parse(&text).map_err(|error| Fatal(error.to_string()))
    }

    /// The flags of queries, deletions and listings.
    fn access_flags(&self) -> Flags {
        self.options.flags | Flags::LOCK
    }
}

/// Reads keys from standard input, one a line, up to the first NUL of each.
fn for_each_line(mut each: impl FnMut(&[u8]) -> Result<(), Fatal>) -> Result<(), Fatal> {
    let mut input = io::stdin().lock();
    let mut line = Vec::new();
    loop {
        line.clear();
        match input.read_until(b'\n', &mut line) {
            // The reference takes a read error for the end.
            Ok(0) | Err(_) => return Ok(()),
            Ok(_) => {}
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        each(to_nul(&line))?;
    }
}

fn to_nul(text: &[u8]) -> &[u8] {
    text.split(|&byte| byte == 0).next().unwrap_or_default()
}

fn read_configuration(name: &str) -> Result<(Dictionary, Common), Fatal> {
    let fatal = |error: &dyn std::fmt::Display| Fatal(error.to_string());
    let directory = configuration::directory();
    configuration::authorize(&directory).map_err(|error| fatal(&error))?;
    let (text, file) = configuration::read(&directory).map_err(|error| fatal(&error))?;
    let mut sink = configuration::LogSink;
    let mut dictionary = configuration::load(&directory, name, &text, &file, &[], &mut sink)
        .map_err(|error| fatal(&error))?;
    let common = evaluate_common(&mut dictionary, &mut sink).map_err(|error| fatal(&error))?;
    Ok((dictionary, common))
}

fn log_settings(common: &Common) -> logging::Settings {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    logging::Settings {
        syslog_name: text(&common.syslog_name),
        facility: logging::Facility::new(common.syslog_facility_code()),
        postlog: (!common.maillog_file.is_empty()).then(|| logging::Postlog {
            queue_directory: PathBuf::from(OsStr::from_bytes(&common.queue_directory)),
            service: text(&common.postlog_service_name),
            host: text(&common.myhostname),
        }),
        utf8: common.smtputf8_enable,
    }
}

/// Makes the assignments of `import_environment`; what is only named there is left as it is.
fn update_environment(list: &[u8]) -> Result<(), Fatal> {
    for item in split_list_braced(list) {
        if !item.contains(&b'=') {
            continue;
        }
        let (item, fault) = if item.starts_with(b"{") {
            extract_braced(item, true)
        } else {
            (item, None)
        };
        if let Some(fault) = fault {
            return Err(Fatal(format!("import_environment: {fault}")));
        }
        let (name, value) = split_name_value(item).map_err(|fault| {
            Fatal(format!(
                "update_env: {fault} in: {}",
                String::from_utf8_lossy(item)
            ))
        })?;
        set_variable(OsStr::from_bytes(name), OsStr::from_bytes(value))?;
    }
    Ok(())
}

fn set_variable(name: &OsStr, value: &OsStr) -> Result<(), Fatal> {
    environment::set(name, value)
        .map_err(|error| Fatal(format!("setenv: {}", postkeep_sys::error_text(&error))))
}
