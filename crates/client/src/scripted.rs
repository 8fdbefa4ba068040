//! Servers for tests that say what a script says, and the log lines of the running test.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Once;
use std::thread::{self, JoinHandle};

use tempfile::TempDir;

/// What the server does on one connection, in order; then it closes.
pub(crate) enum Step {
    /// Sends this.
    Say(&'static [u8]),
    /// Receives exactly this.
    Hear(&'static [u8]),
    /// Waits until the client closes.
    AwaitEnd,
    /// Waits until the client closes, with the listening socket closed.
    LastOne,
}

pub(crate) struct Server {
    directory: TempDir,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves one connection after the other, each with its script.
    pub(crate) fn start(connections: Vec<Vec<Step>>) -> Self {
        Self::run(move |listener| {
            for script in connections {
                let (mut stream, _) = listener.accept().unwrap();
                for step in script {
                    match step {
                        Step::Say(bytes) => stream.write_all(bytes).unwrap(),
                        Step::Hear(bytes) => {
                            let mut heard = vec![0; bytes.len()];
                            stream.read_exact(&mut heard).unwrap();
                            assert_eq!(
                                String::from_utf8_lossy(&heard),
                                String::from_utf8_lossy(bytes)
                            );
                        }
                        Step::AwaitEnd => await_end(&mut stream),
                        Step::LastOne => {
                            drop(listener);
                            await_end(&mut stream);
                            return;
                        }
                    }
                }
            }
        })
    }

    /// Serves in whatever way.
    pub(crate) fn run(serve: impl FnOnce(UnixListener) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        Self {
            directory,
            thread: Some(thread::spawn(move || serve(listener))),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Waits for the end of the script, which fails the test if the client did not keep to it.
    pub(crate) fn finish(mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn await_end(stream: &mut UnixStream) {
    // A client that closes with bytes unread makes this an error, which is an end as well.
    let _ = stream.read_to_end(&mut Vec::new());
}

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct PerThread;

impl log::Log for PerThread {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LINES.with_borrow_mut(|lines| lines.push(record.args().to_string()));
    }

    fn flush(&self) {}
}

/// Runs a test and returns what it logged from its own thread.
pub(crate) fn logged(test: impl FnOnce()) -> Vec<String> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&PerThread).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
    });
    LINES.take();
    test();
    LINES.take()
}
