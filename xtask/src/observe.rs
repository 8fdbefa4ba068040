//! What the system knows about processes and about itself: processor time, memory, system calls, other load.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use rustix::process::{Pid as Process, Signal, kill_process};

use crate::statistics::as_float;

/// Processor time of a process so far, threads that have ended included.
///
/// The clock of the process (`clock_getcpuclockid(3)`), in nanoseconds: `/proc/PID/stat` counts in ticks of ten
/// milliseconds.
///
/// # Errors
/// When the process is gone.
pub(crate) fn processor_time(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?))
        .with_context(|| format!("no process {pid}"))?;
    Ok(clock_gettime(clock)?.into())
}

/// Bytes that a process has resident.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// All pages, those that it shares with others too.
    pub(crate) resident: u64,
    /// Each page divided by the number of processes that have it: sums over processes count nothing twice.
    pub(crate) proportional: u64,
}

/// What a process has in memory now; `/proc/PID/smaps_rollup`.
///
/// # Errors
/// When the process is gone, or its memory is not ours to look at.
pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| -> Result<u64> {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .with_context(|| format!("no {name} in smaps_rollup"))?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    };
    Ok(Memory {
        resident: field("Rss:")?,
        proportional: field("Pss:")?,
    })
}

/// The machine's processors, and what has used them since it started.
#[derive(Clone, Copy, Debug)]
struct Machine {
    /// Time in which a processor did something for somebody, or was taken away by the host.
    busy: Duration,
}

impl Machine {
    fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        let line = text.lines().next().context("empty /proc/stat")?;
        let fields: Vec<u64> = line
            .split_whitespace()
            .skip(1)
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        ensure!(fields.len() >= 8, "strange /proc/stat");
        // user nice system idle iowait irq softirq steal; a guest's time is in user and nice as well.
        let ticks: u64 = [0, 1, 2, 5, 6, 7].map(|field| fields[field]).iter().sum();
        // proc(5): USER_HZ is 100 on every architecture that we know.
        Ok(Self {
            busy: Duration::from_millis(ticks * 10),
        })
    }
}

/// A look at the machine while something is measured.
pub(crate) struct Watch {
    begin: Instant,
    machine: Machine,
    daemons: Vec<u32>,
    ours: Duration,
}

impl Watch {
    /// - `daemons`: process numbers of all that is being measured; this process is known
    pub(crate) fn begin(daemons: &[u32]) -> Result<Self> {
        Ok(Self {
            begin: Instant::now(),
            machine: Machine::now()?,
            daemons: daemons.to_vec(),
            ours: ours(daemons)?,
        })
    }

    /// The part of all processors (0 to 1) that others had since the beginning: time in which processors were
    /// busy or taken away, less that of the daemons and of this process.
    pub(crate) fn foreign(&self) -> Result<f64> {
        let busy = Machine::now()?.busy.saturating_sub(self.machine.busy);
        let ours = ours(&self.daemons)?.saturating_sub(self.ours);
        let processors = as_float(thread::available_parallelism()?.get() as u64);
        let all = self.begin.elapsed().as_secs_f64() * processors;
        Ok(busy.saturating_sub(ours).as_secs_f64() / all)
    }
}

/// Processor time of this process, of those of its children that have ended, and of the daemons.
fn ours(daemons: &[u32]) -> Result<Duration> {
    let mut sum = Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?);
    let ended = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    for time in [ended.user_time(), ended.system_time()] {
        let microseconds = u64::try_from(time.num_microseconds())?;
        sum += Duration::from_micros(microseconds);
    }
    for &daemon in daemons {
        sum += processor_time(daemon)?;
    }
    Ok(sum)
}

/// How much other load a measurement bears, and how often it is tried again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quiet {
    /// The most of all processors (0 to 1) that others may have.
    pub(crate) limit: f64,
    /// How often a disturbed measurement is repeated.
    pub(crate) repeats: usize,
}

impl Quiet {
    /// Measures until nobody disturbs; `measure` tells with its result the worst of what its watches saw.
    ///
    /// # Errors
    /// "disturbed" when every try was; and what `measure` fails with.
    pub(crate) fn measure<T>(&self, mut measure: impl FnMut() -> Result<(T, f64)>) -> Result<T> {
        let mut least = f64::INFINITY;
        for attempt in 0..=self.repeats {
            if attempt > 0 {
                eprintln!(
                    "  others had {:.0} % of the machine: once more",
                    least * 100.0
                );
                thread::sleep(Duration::from_millis(300));
            }
            let (result, foreign) = measure()?;
            if foreign <= self.limit {
                return Ok(result);
            }
            least = least.min(foreign);
        }
        bail!(
            "disturbed: others had {:.0} % of the machine or more in each of {} tries",
            least * 100.0,
            self.repeats + 1
        )
    }
}

/// How the system calls of a process are counted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    /// `perf stat` at the entry of every system call; the process goes on at nearly full speed.
    Perf,
    /// `strace -c`; the process is stopped twice for every system call.
    Strace,
}

impl Counter {
    /// The best one that works on this machine; `None` when none does.
    pub(crate) fn find() -> Option<Self> {
        let works = |counter: &Self| {
            // Something that makes system calls all the time, as nothing counted tells nothing.
            let busy = Command::new("yes").stdout(Stdio::null()).spawn();
            let Ok(mut child) = busy else {
                return false;
            };
            let counted = counter.count(child.id(), || {
                thread::sleep(Duration::from_millis(50));
                Ok(())
            });
            let _ = child.kill();
            let _ = child.wait();
            counted.is_ok()
        };
        [Self::Perf, Self::Strace].into_iter().find(works)
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Perf => "perf stat",
            Self::Strace => "strace -c",
        }
    }

    /// The system calls of process `pid`, all threads, while `work` is done.
    ///
    /// # Errors
    /// When the counting program does not run or may not look.
    pub(crate) fn count<T>(self, pid: u32, work: impl FnOnce() -> Result<T>) -> Result<(u64, T)> {
        let output = tempfile::NamedTempFile::new()?;
        let pid = pid.to_string();
        let mut command = match self {
            Self::Perf => {
                let mut command = Command::new("perf");
                command.args([
                    "stat",
                    "-e",
                    "raw_syscalls:sys_enter",
                    "-x",
                    ",",
                    "-p",
                    &pid,
                ]);
                command
            }
            Self::Strace => {
                let mut command = Command::new("strace");
                command.args(["-c", "-f", "-p", &pid]);
                command
            }
        };
        let mut child = command
            .arg("-o")
            .arg(output.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| self.word())?;
        // Neither says when it has begun.
        thread::sleep(Duration::from_millis(300));
        let result = work();
        let counter = i32::try_from(child.id()).ok().and_then(Process::from_raw);
        let counter = counter.context("strange process number")?;
        // perf now and then misses the first one.
        while child.try_wait()?.is_none() {
            kill_process(counter, Signal::INT)?;
            thread::sleep(Duration::from_millis(200));
        }
        let result = result?;
        let text = fs::read_to_string(output.path())?;
        let calls = self
            .calls(&text)
            .with_context(|| format!("{} says: {}", self.word(), text.trim()))?;
        Ok((calls, result))
    }

    fn calls(self, text: &str) -> Option<u64> {
        match self {
            Self::Perf => text
                .lines()
                .find(|line| line.contains("raw_syscalls:sys_enter"))?
                .split(',')
                .next()?
                .parse()
                .ok(),
            // An empty report tells of no calls.
            Self::Strace if text.trim().is_empty() => Some(0),
            Self::Strace => {
                let line = text
                    .lines()
                    .find(|line| line.trim_end().ends_with(" total"))?;
                line.split_whitespace().nth(3)?.parse().ok()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_a_process_sees_its_work() {
        let begin = processor_time(std::process::id()).expect("we live");
        let mut sum = 0_u64;
        while processor_time(std::process::id()).expect("we live") == begin {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(processor_time(std::process::id()).expect("we live") > begin);
    }

    #[test]
    fn a_disturbed_measurement_is_repeated_and_then_refused() {
        let quiet = Quiet {
            limit: 0.1,
            repeats: 1,
        };
        let mut tries = 0;
        let calm = quiet.measure(|| {
            tries += 1;
            Ok((tries, if tries == 1 { 0.5 } else { 0.05 }))
        });
        assert_eq!(calm.expect("the second try is calm"), 2);
        let mut tries = 0;
        let error = quiet
            .measure(|| {
                tries += 1;
                Ok(((), 0.2))
            })
            .expect_err("never calm");
        assert_eq!(tries, 2);
        assert!(error.to_string().starts_with("disturbed"), "{error}");
    }

    #[test]
    fn reports_of_the_counters_are_read() {
        let perf = "273834,,raw_syscalls:sys_enter,98322198,100.00,,\n";
        assert_eq!(Counter::Perf.calls(perf), Some(273_834));
        let nothing = "<not counted>,,raw_syscalls:sys_enter,0,100.00,,\n";
        assert_eq!(Counter::Perf.calls(nothing), None);
        let strace = "% time     seconds  usecs/call     calls    errors syscall\n\
             ------ ----------- ----------- --------- --------- ----------------\n \
             50.06    0.029194          10      2709           read\n\
             100.00    0.058316          10      5418         3 total\n";
        assert_eq!(Counter::Strace.calls(strace), Some(5418));
    }
}
