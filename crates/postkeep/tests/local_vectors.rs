//! Runs `vectors/local/cases.json` with the built executable as postmap and postalias.
//!
//! Cases that need a table type which is not there yet are counted by type in the output, not run.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use serde_json::Value;

/// All types that a reference has; others are only words before a colon.
const KNOWN: [&str; 28] = [
    "btree",
    "cdb",
    "cidr",
    "dbm",
    "debug",
    "environ",
    "fail",
    "hash",
    "inline",
    "internal",
    "ldap",
    "lmdb",
    "memcache",
    "mysql",
    "nis",
    "pcre",
    "pgsql",
    "pipemap",
    "proxy",
    "randmap",
    "regexp",
    "sdbm",
    "socketmap",
    "sqlite",
    "static",
    "tcp",
    "texthash",
    "unionmap",
];

fn bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.clone().into_bytes(),
        Value::Object(object) if object.contains_key("b64") => {
            postkeep_tables::decode_file_value(object["b64"].as_str().unwrap().as_bytes()).unwrap()
        }
        Value::Object(object) => bytes(&object["text"]),
        _ => panic!("no bytes: {value}"),
    }
}

fn arguments(step: &Value) -> Vec<OsString> {
    step["cmd"]
        .as_array()
        .unwrap()
        .iter()
        .map(|word| OsString::from_vec(bytes(word)))
        .collect()
}

/// The table types that a case asks for.
fn types(case: &Value) -> BTreeSet<String> {
    let default = case["config"]["default_database_type"]
        .as_str()
        .unwrap_or("hash");
    let mut types = BTreeSet::new();
    for step in case["steps"].as_array().unwrap() {
        let words = arguments(step);
        if words[0] != "postmap" && words[0] != "postalias" {
            continue;
        }
        let mut value_follows = false;
        for word in &words[1..] {
            let text = word.to_string_lossy();
            if value_follows {
                value_follows = false;
            } else if text.starts_with('-') {
                value_follows = text.ends_with(['q', 'd', 'c']);
            } else if text.contains(':') {
                for (place, _) in text.match_indices(':') {
                    let start = text[..place]
                        .rfind(|c: char| !c.is_ascii_alphanumeric())
                        .map_or(0, |at| at + 1);
                    if KNOWN.contains(&&text[start..place]) {
                        types.insert(text[start..place].to_owned());
                    }
                }
            } else {
                types.insert(default.to_owned());
            }
        }
    }
    types
}

fn prepare(case: &Value, directory: &Path) {
    fs::create_dir(directory.join("cfg")).unwrap();
    for name in ["queue", "data"] {
        fs::create_dir(directory.join("cfg").join(name)).unwrap();
    }
    let place = directory.join("cfg").display().to_string();
    let mut settings: BTreeMap<String, String> = [
        ("compatibility_level", "3.6"),
        ("queue_directory", &format!("{place}/queue")),
        ("data_directory", &format!("{place}/data")),
        ("myhostname", "h.example"),
        ("mydomain", "example"),
        ("maillog_file", ""),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    if let Some(config) = case["config"].as_object() {
        settings.extend(
            config
                .iter()
                .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())),
        );
    }
    let mut text = String::new();
    for (name, value) in &settings {
        writeln!(text, "{name} = {value}").unwrap();
    }
    let old = SystemTime::now() - Duration::from_secs(100_000);
    let write = |path: &Path, text: &[u8]| {
        let mut file = fs::File::create(path).unwrap();
        file.write_all(text).unwrap();
        file.set_modified(old).unwrap();
    };
    write(&directory.join("cfg/main.cf"), text.as_bytes());
    for (name, content) in case["files"].as_object().into_iter().flatten() {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if content["dir"] == Value::Bool(true) {
            fs::create_dir(&path).unwrap();
        } else {
            write(&path, &bytes(content));
        }
        if let Some(mode) = content["mode"].as_str() {
            let mode = u32::from_str_radix(mode, 8).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        if let Some(uid) = content["uid"].as_u64() {
            chown(&path, Some(u32::try_from(uid).unwrap()), None).unwrap();
        }
    }
}

fn lines(text: &[u8]) -> Vec<String> {
    text.split(|&byte| byte == b'\n')
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .filter(|line| !line.is_empty() && !line.starts_with("BDB"))
        .collect()
}

/// What is wrong with a case; empty when nothing is.
fn run(case: &Value, directory: &Path, programs: &OsStr) -> Vec<String> {
    let mut faults = Vec::new();
    prepare(case, directory);
    for (number, step) in case["steps"].as_array().unwrap().iter().enumerate() {
        let words = arguments(step);
        let mut path = programs.to_owned();
        path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
        // The program by its path, but called by its name: the name is in its messages.
        let own = Path::new(programs).join(&words[0]);
        let mut command = Command::new(if own.exists() {
            own.as_os_str()
        } else {
            &words[0]
        });
        command
            .args(&words[1..])
            .current_dir(directory)
            .env_clear()
            .env("PATH", &path)
            .env("MAIL_CONFIG", "cfg")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, value) in step["env"].as_object().into_iter().flatten() {
            command.env(name, value.as_str().unwrap());
        }
        let mut child = command.spawn().unwrap();
        let input = if step["stdin"].is_null() {
            Vec::new()
        } else {
            bytes(&step["stdin"])
        };
        // A program that does not read its input closes it.
        let _ = child.stdin.take().unwrap().write_all(&input);
        let output = child.wait_with_output().unwrap();
        let expect = &step["expect"];
        if expect.is_null() {
            continue;
        }
        let mut compare = |what: &str, got: String, wanted: String| {
            if got != wanted {
                faults.push(format!(
                    "step {} {words:?}: {what}: got {got}, wanted {wanted}",
                    number + 1
                ));
            }
        };
        compare(
            "exit",
            format!("{:?}", output.status.code()),
            format!("{:?}", expect["exit"].as_i64()),
        );
        let wanted: Vec<String> = expect["stderr"]
            .as_array()
            .unwrap()
            .iter()
            .map(|line| line.as_str().unwrap().to_owned())
            .filter(|line| !line.starts_with("BDB"))
            .collect();
        compare(
            "stderr",
            format!("{:#?}", lines(&output.stderr)),
            format!("{wanted:#?}"),
        );
        if let Some(any) = step["any_of"]
            .as_array()
            .or(expect["any_of"].as_array())
            .or(case["any_of"].as_array())
        {
            let found = any.iter().any(|one| bytes(one) == output.stdout);
            compare(
                "stdout is one of those",
                found.to_string(),
                "true".to_owned(),
            );
        } else if case["unordered"] == true
            || step["unordered"] == true
            || expect["unordered"] == true
        {
            let sorted = |text: &[u8]| lines(text).into_iter().collect::<BTreeSet<_>>();
            compare(
                "stdout",
                format!("{:?}", sorted(&output.stdout)),
                format!("{:?}", sorted(&bytes(&expect["stdout"]))),
            );
        } else {
            compare(
                "stdout",
                output.stdout.escape_ascii().to_string(),
                bytes(&expect["stdout"]).escape_ascii().to_string(),
            );
        }
    }
    faults.extend(compare_files(case, directory));
    faults
}

fn compare_files(case: &Value, directory: &Path) -> Option<String> {
    let wanted = &case["files_after"];
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name != "cfg" {
            found.insert(
                name,
                format!("{:o}", entry.metadata().unwrap().mode() & 0o7777),
            );
        }
    }
    let wanted: BTreeMap<String, Option<String>> = match wanted {
        Value::Null => return None,
        Value::Array(names) => names
            .iter()
            .map(|name| (name.as_str().unwrap().to_owned(), None))
            .collect(),
        Value::Object(modes) => modes
            .iter()
            .map(|(name, mode)| (name.clone(), mode.as_str().map(str::to_owned)))
            .collect(),
        _ => panic!("files_after: {wanted}"),
    };
    let same = wanted.len() == found.len()
        && wanted.iter().all(|(name, mode)| {
            found
                .get(name)
                .is_some_and(|found| mode.as_ref().is_none_or(|mode| mode == found))
        });
    (!same).then(|| format!("files afterwards: got {found:?}, wanted {wanted:?}"))
}

#[test]
fn every_case_whose_types_are_there() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vectors/local/cases.json");
    let vectors: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    let ours: BTreeSet<&str> = postkeep_tables::table_types()
        .iter()
        .map(|row| row.name)
        .collect();
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;

    let mut missing: BTreeMap<String, usize> = BTreeMap::new();
    let mut ready = Vec::new();
    for case in cases {
        let types = types(case);
        if let Some(kind) = types.iter().find(|kind| !ours.contains(kind.as_str())) {
            *missing.entry(kind.clone()).or_default() += 1;
        } else if case["needs_root"] == true && !root {
            *missing.entry("root".to_owned()).or_default() += 1;
        } else {
            ready.push(case);
        }
    }
    let programs = tempfile::tempdir().unwrap();
    for name in ["postmap", "postalias"] {
        symlink(env!("CARGO_BIN_EXE_postkeep"), programs.path().join(name)).unwrap();
    }

    let faults = Mutex::new(Vec::new());
    let next = Mutex::new(ready.iter());
    // Each fatal error of a case costs a second, spent asleep.
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let Some(case) = next.lock().unwrap().next() else {
                        return;
                    };
                    let directory = tempfile::tempdir().unwrap();
                    let id = case["id"].as_str().unwrap();
                    for fault in run(case, directory.path(), programs.path().as_os_str()) {
                        faults.lock().unwrap().push(format!("{id}: {fault}"));
                    }
                }
            });
        }
    });
    let missing: Vec<_> = missing
        .iter()
        .map(|(kind, count)| format!("{kind} ({count})"))
        .collect();
    println!(
        "{} of {} cases run; not yet: {}",
        ready.len(),
        cases.len(),
        missing.join(", ")
    );
    assert!(ready.len() >= 39, "cases were lost");
    let faults = faults.into_inner().unwrap();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
