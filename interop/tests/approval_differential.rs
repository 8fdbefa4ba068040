//! Generated values of `proxy_read_maps` and `proxy_write_maps`: what the installed proxymap(8) approves, and in
//! which order, is what our parser approves.
//!
//! proxymap answers with its verbose lines `allowlisting TYPE:NAME from PARAMETER` (whitelisting in 3.5), written to
//! its standard error; it runs once for each value, on an empty standard input.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use postkeep_proxymap::approve::{List, Listing, Notice, Rules};
use postkeep_testkit::{RealPostfix, Scratch, real_postfix};

/// A sequence of numbers that only looks random, so that a failure comes again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit
    }

    fn pick<'p>(&mut self, pieces: &[&'p str]) -> &'p str {
        pieces[self.below(pieces.len())]
    }

    /// Something that may stand in such a list, or almost.
    fn item(&mut self, depth: usize) -> String {
        let plain = [
            "hash:/a",
            "proxy:hash:/b",
            "proxy:inline:{a=b c=d, e=f}",
            "permit",
            "x",
        ];
        let choice = self.below(if depth == 0 { 5 } else { 10 });
        match choice {
            0..=1 => self.pick(&plain).to_owned(),
            2 => format!("proxy:hash:/{}", self.below(20)),
            3 => self
                .pick(&[
                    "proxy:",
                    "proxy:x",
                    "proxy:x:",
                    "proxy::x",
                    "!proxy:hash:/c",
                    "\"proxy:hash:/d\"",
                    "Proxy:hash:/e",
                    "/no/such/file",
                    "[::1]:25",
                    "proxy:proxy:hash:/f",
                    "unionmap:x",
                    "proxy:pipemap:{proxy:hash:/g}",
                ])
                .to_owned(),
            4 => {
                let length = self.below(8);
                let bytes = [
                    "{",
                    "}",
                    ":",
                    "a",
                    "proxy:",
                    ",",
                    " ",
                    "\t",
                    "b:c",
                    "unionmap:",
                ];
                (0..length).map(|_| self.pick(&bytes)).collect()
            }
            5..=6 => {
                let kind = self.pick(&["unionmap:", "pipemap:"]);
                format!("{kind}{{{}}}", self.list(depth - 1))
            }
            7 => format!("{{{}}}", self.list(depth - 1)),
            8 => format!("{{ {} timeout=3 }}", self.item(depth - 1)),
            _ => format!(
                "{{{}}}{}",
                self.item(depth - 1),
                self.pick(&["x", "}", "{", ""])
            ),
        }
    }

    fn list(&mut self, depth: usize) -> String {
        let mut list = String::new();
        for _ in 0..=self.below(4) {
            list.push_str(&self.item(depth));
            list.push_str(self.pick(&[" ", ", ", ",", "\t", " ,, "]));
        }
        list
    }
}

/// The values: some that were chosen, others that were not.
fn values() -> Vec<String> {
    let mut values: Vec<String> = [
        "",
        "proxy:hash:/a",
        "{ }",
        "{{proxy:hash:/a}}",
        "{unionmap:{proxy:hash:/a} x}",
        "unionmap:{proxy:hash:/a",
        "pipemap:{{proxy:hash:/a}, {proxy:hash:/b}x} proxy:hash:/c",
        "unionmap:{pipemap:{unionmap:{proxy:hash:/a}}}",
        "proxy:inline:{a=b} proxy:inline:{a=b  } proxy:inline:{ a=b}",
    ]
    .map(str::to_owned)
    .into();
    let mut dice = Dice(4711);
    values.extend((0..300).map(|_| dice.list(3)));
    values
}

/// What the reference says about a value, in the form of our notices' texts.
fn reference(
    postfix: &RealPostfix,
    scratch: &Scratch,
    service: &str,
    parameter: &str,
    value: &str,
) -> Result<Vec<String>> {
    let queue = scratch.directory("queue", 0o755)?;
    let data = scratch.directory("data", 0o755)?;
    let main_cf = scratch.file(
        "main.cf",
        &format!(
            "compatibility_level = 3.6\nqueue_directory = {}\ndata_directory = {}\n\
             inet_interfaces = 127.0.0.1\ninet_protocols = ipv4\n{parameter} = {value}\n",
            queue.display(),
            data.display()
        ),
    )?;
    // A file that is younger than a second would be read again until it is not.
    let past = SystemTime::now() - Duration::from_mins(1);
    File::options()
        .write(true)
        .open(&main_cf)?
        .set_modified(past)?;
    let output = Command::new(postfix.daemon_directory.join("proxymap"))
        .args(["-v", "-S", "-V", "-n", service])
        .env("MAIL_CONFIG", scratch.path())
        .stdin(Stdio::null())
        .output()
        .context("proxymap does not run")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "proxymap: {}: {text}",
        output.status
    );
    let mut lines = Vec::new();
    for line in text.lines() {
        let Some((_, said)) = line.split_once(": ") else {
            continue;
        };
        let approved = ["allowlisting ", "whitelisting "]
            .iter()
            .any(|word| said.starts_with(word));
        if approved || said.starts_with("warning: bad ") {
            lines.push(said.to_owned());
        }
    }
    Ok(lines)
}

fn ours(rules: Rules, parameter: &str, value: &str) -> Vec<String> {
    let mut files = ();
    let mut list = List::new(rules, Listing::Proxied, &mut files);
    // The reader of main.cf removes the white space around a value.
    list.add(value.trim().as_bytes(), parameter);
    let (_, notices) = list.finish();
    notices
        .into_iter()
        .map(|notice| match notice {
            Notice::Warning(text) => format!("warning: {text}"),
            Notice::Verbose(text) => text,
        })
        // Both have a log writer behind them that does this.
        .map(|line| line.replace('\t', "?"))
        .collect()
}

fn release(version: &str) -> Result<(u32, u32, u32)> {
    let number = version.split('-').next().unwrap_or_default();
    let mut parts = number.split('.').map(str::parse::<u32>);
    let mut next = || parts.next().unwrap_or(Ok(0));
    let release = (next()?, next()?, next()?);
    Ok(release)
}

#[test]
fn the_reference_approves_the_same_tables() -> Result<()> {
    let Some(postfix) = real_postfix() else {
        return Ok(());
    };
    let release = release(&postfix.version)?;
    if release < (3, 5, 0) {
        postkeep_testkit::program::skip("this Postfix does not say what it approves");
        return Ok(());
    }
    let rules = Rules::of_release(release);
    let scratch = Scratch::new("approval")?;
    let (mut approved, mut warned) = (0, 0);
    for (index, value) in values().iter().enumerate() {
        let (service, parameter) = if index % 4 == 3 {
            ("proxywrite", "proxy_write_maps")
        } else {
            ("proxymap", "proxy_read_maps")
        };
        let expected = reference(&postfix, &scratch, service, parameter, value)?;
        assert_eq!(
            ours(rules, parameter, value),
            expected,
            "{parameter} = {value}"
        );
        warned += expected
            .iter()
            .filter(|line| line.starts_with("warning"))
            .count();
        approved += expected.len();
    }
    // A test in which nothing is approved would agree with anything.
    ensure!(
        approved > 100 && warned > 10,
        "{approved} lines, {warned} warnings"
    );
    Ok(())
}
