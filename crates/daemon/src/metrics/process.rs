//! What the system says about this process, under the names that Prometheus' own clients have for it.
//!
//! # References
//! proc(5).

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Family, Page};

/// The unit of times in `/proc/PID/stat`, per second: fixed for user programs on all machines that Linux runs on today.
const TICKS: f64 = 100.0;

static MEMORY: Family = Family::gauge("process_resident_memory_bytes", "Memory in use.");
static VIRTUAL: Family = Family::gauge("process_virtual_memory_bytes", "Address space in use.");
static THREADS: Family = Family::gauge("process_threads", "Threads.");
static DESCRIPTORS: Family = Family::gauge("process_open_fds", "Open descriptors.");
static MOST_DESCRIPTORS: Family =
    Family::gauge("process_max_fds", "Descriptors that may be open at most.");
static CPU: Family = Family::counter("process_cpu_seconds_total", "Processor time used.");
static START: Family = Family::gauge(
    "process_start_time_seconds",
    "When the process began, in seconds since 1970.",
);

/// Files about this process, opened while the whole file system is still in reach.
#[derive(Debug)]
pub(crate) struct Process {
    status: Option<File>,
    stat: Option<File>,
    limits: Option<File>,
    descriptors: Option<File>,
    began: f64,
}

impl Process {
    /// Opens them; what there is not is left out of the page.
    pub(crate) fn open() -> Self {
        let open = |name: &str| File::open(format!("/proc/self/{name}")).ok();
        Self {
            status: open("status"),
            stat: open("stat"),
            limits: open("limits"),
            descriptors: open("fd"),
            began: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |since| since.as_secs_f64()),
        }
    }

    /// Adds what they say now.
    pub(crate) fn describe(&self, page: &mut Page) {
        page.add(&START, &[], self.began);
        if let Some(text) = read(self.status.as_ref()) {
            for (name, family, unit) in [
                ("VmRSS:", &MEMORY, 1024),
                ("VmSize:", &VIRTUAL, 1024),
                ("Threads:", &THREADS, 1),
            ] {
                if let Some(number) = number_after(&text, name) {
                    page.add(family, &[], number.saturating_mul(unit));
                }
            }
        }
        if let Some(seconds) = read(self.stat.as_ref()).as_deref().and_then(cpu_seconds) {
            page.add(&CPU, &[], seconds);
        }
        let most = read(self.limits.as_ref())
            .as_deref()
            .and_then(|text| number_after(text, "Max open files"));
        if let Some(most) = most {
            page.add(&MOST_DESCRIPTORS, &[], most);
        }
        if let Some(count) = self.descriptors() {
            page.add(&DESCRIPTORS, &[], count);
        }
    }

    /// How many descriptors are open.
    fn descriptors(&self) -> Option<u64> {
        // From Linux 6.2 on the size of the directory says it.
        let size = self.descriptors.as_ref()?.metadata().ok()?.len();
        if size > 0 {
            return Some(size);
        }
        let count = fs::read_dir("/proc/self/fd").ok()?.count();
        u64::try_from(count).ok()
    }
}

/// The first few thousand bytes; none of these files is longer.
fn read(file: Option<&File>) -> Option<String> {
    let mut buffer = [0; 8192];
    let mut length = 0;
    while length < buffer.len() {
        match file?.read_at(&mut buffer[length..], length as u64).ok()? {
            0 => break,
            count => length += count,
        }
    }
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// The number behind a word at the beginning of a line.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // The name of the program is in parentheses and may have blanks and parentheses in it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let mut ticks = || times.next()?.parse::<u32>().ok();
    Some((f64::from(ticks()?) + f64::from(ticks()?)) / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_understood() {
        let status = "Name:\tx\nVmSize:\t  1000 kB\nVmRSS:\t   44 kB\nThreads:\t5\n";
        assert_eq!(number_after(status, "VmRSS:"), Some(44));
        let limits = "Limit   Soft Limit  Hard Limit  Units\nMax open files   1024   4096  files\n";
        assert_eq!(number_after(limits, "Max open files"), Some(1024));
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 5 0 1 1 1";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("nonsense"), None);
    }

    #[test]
    fn this_process_is_described() {
        let mut page = Page::new("test");
        Process::open().describe(&mut page);
        let text = page.into_text();
        for family in [&MEMORY, &VIRTUAL, &THREADS, &CPU, &START, &DESCRIPTORS] {
            assert!(text.contains(&format!("\n{}{{", family.name)), "{text}");
        }
    }
}
