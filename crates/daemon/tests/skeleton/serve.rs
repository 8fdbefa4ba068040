//! How a daemon serves many clients, and how it ends.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use crate::harness::{Daemon, Peer, Plan};

const SOON: Duration = Duration::from_millis(100);

#[test]
fn hang_up_ends_at_once_but_finishes_what_has_begun() {
    let mut daemon = Plan::unix().start();
    let mut idle = daemon.greeted();
    let mut parked = daemon.greeted();
    let mut sender = daemon.greeted();
    parked.send("park 200\n");
    sender.send("echo unfin");
    std::thread::sleep(Duration::from_millis(50));
    let finish = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        sender.send("ished\n");
        sender.line()
    });
    let time = daemon.hang_up();
    assert!(time > SOON, "{time:?}");
    assert_eq!(parked.line(), "parked");
    assert_eq!(finish.join().unwrap(), "unfinished");
    assert!(idle.is_closed());
    assert_eq!(daemon.log(), ["postfix/echo: exit hook: 3 clients"]);
}

#[test]
fn hang_up_while_idle_is_quick_and_data_means_the_same() {
    // The best of three: other tests run at the same time.
    let quickest = |end: fn(&mut Daemon)| {
        (0..3)
            .map(|_| {
                let mut daemon = Plan::unix().start();
                let _idle = daemon.greeted();
                let began = Instant::now();
                end(&mut daemon);
                assert!(daemon.wait().0.success());
                began.elapsed()
            })
            .min()
            .unwrap()
    };
    assert!(quickest(|daemon| daemon.status = None) < SOON);
    assert!(quickest(|daemon| daemon.status.as_ref().unwrap().write_all(b"x").unwrap()) < SOON);
}

#[test]
fn a_request_that_has_arrived_is_served_although_master_has_gone() {
    let mut daemon = Plan::unix().start();
    let mut peers: Vec<Peer> = (0..8).map(|_| daemon.greeted()).collect();
    let pid = rustix::process::Pid::from_child(&daemon.child);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    for peer in &mut peers {
        peer.send("echo a\n");
    }
    daemon
        .status
        .as_ref()
        .unwrap()
        .shutdown(std::net::Shutdown::Both)
        .unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    assert!(daemon.wait().0.success());
    for peer in &mut peers {
        assert_eq!(peer.line(), "a");
    }
}

#[test]
fn max_use_counts_connections_and_waits_for_the_last() {
    let mut daemon = Plan::unix().main_cf("max_use = 2").start();
    let third = daemon.greeted();
    drop(daemon.greeted());
    drop(daemon.greeted());
    std::thread::sleep(SOON);
    assert!(daemon.is_running());
    let mut fourth = daemon.greeted();
    assert_eq!(fourth.ask("echo a"), "a");
    drop(third);
    std::thread::sleep(SOON);
    assert!(daemon.is_running());
    drop(fourth);
    assert!(daemon.wait().0.success());
    assert_eq!(daemon.log(), ["postfix/echo: exit hook: 4 clients"]);
}

#[test]
fn a_program_can_lift_max_use() {
    let mut daemon = Plan::unix().main_cf("max_use = 1\necho_number = 9").start();
    for _ in 0..3 {
        drop(daemon.greeted());
    }
    std::thread::sleep(SOON);
    assert!(daemon.is_running());
}

#[test]
fn max_idle_counts_from_the_last_client() {
    let mut unused = Plan::new(&["-t", "unix", "-i", "1", "-v"]).start();
    let mut used = Plan::unix().main_cf("max_idle = 1s").start();
    let idle = used.greeted();
    let (status, time) = unused.wait();
    assert!(status.success());
    assert!(
        (Duration::from_secs(1)..Duration::from_secs(2)).contains(&time),
        "{time:?}"
    );
    assert!(
        unused
            .log()
            .contains(&"postfix/echo: idle timeout -- exiting".to_owned())
    );
    std::thread::sleep(Duration::from_millis(300));
    assert!(used.is_running());
    drop(idle);
    let dropped = Instant::now();
    assert!(used.wait().0.success());
    let time = dropped.elapsed();
    assert!(
        (Duration::from_millis(950)..Duration::from_secs(2)).contains(&time),
        "{time:?}"
    );
}

#[test]
fn two_listeners() {
    let directory = tempfile::tempdir().unwrap();
    let listener = |name: &str| {
        let listener = UnixListener::bind(directory.path().join(name)).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    };
    let _daemon = Plan::new(&["-t", "unix", "-s", "2"])
        .listener(listener("a"))
        .listener(listener("b"))
        .start();
    for name in ["a", "b"] {
        let mut peer = Peer::new(UnixStream::connect(directory.path().join(name)).unwrap());
        assert_eq!(peer.line(), "hello");
        assert_eq!(peer.ask(&format!("echo {name}")), name);
    }
}

#[test]
fn inet() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let _daemon = Plan::new(&["-t", "inet"]).listener(listener).start();
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream.write_all(b"echo a\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\na\n");
}

#[test]
fn pass() {
    let daemon = Plan::new(&["-t", "pass"]).start();
    // One that says nothing holds up nobody.
    let _silent = daemon.connect();
    for (attributes, greeting) in [
        (&b"\0"[..], "hello"),
        (b"a\0b\0{\0c\0d\0}\0\0", "hello a=b c=d"),
    ] {
        let mut control = daemon.connect();
        let (mine, theirs) = UnixStream::pair().unwrap();
        postkeep_sys::socket::send_descriptor(&control.stream, 0, theirs.as_fd()).unwrap();
        drop(theirs);
        control.stream.write_all(attributes).unwrap();
        let mut client = Peer::new(mine);
        assert_eq!(client.line(), greeting);
        assert!(control.is_closed());
        assert_eq!(client.ask("echo a"), "a");
    }
    let mut broken = daemon.connect();
    broken.send("\0");
    assert!(broken.is_closed());
    let log = daemon.log();
    assert!(
        log[0].starts_with(
            "postfix/echo: warning: pass_accept_attr: cannot receive file descriptor: "
        )
    );
    assert!(
        log[1].starts_with("postfix/echo: error: accept connection: "),
        "{log:?}"
    );
}

#[test]
fn three_hundred_clients_at_high_numbers_and_nothing_left_of_them() {
    let daemon = Plan::unix().main_cf("max_use = 1000").start();
    let first = daemon.greeted();
    let before = daemon.descriptors();
    let high = |numbers: &[i32]| numbers.iter().filter(|number| **number >= 128).count();
    let mut peers: Vec<Peer> = (0..300).map(|_| daemon.connect()).collect();
    for peer in &mut peers {
        assert_eq!(peer.line(), "hello");
    }
    for peer in &mut peers {
        peer.send("echo a\n");
    }
    for peer in &mut peers {
        assert_eq!(peer.line(), "a");
    }
    let numbers = daemon.descriptors();
    assert_eq!(numbers.len(), before.len() + 300);
    assert_eq!(high(&numbers), high(&before) + 300);
    drop(peers);
    wait_until(|| daemon.descriptors().len() == before.len());
    drop(first);
    wait_until(|| high(&daemon.descriptors()) == high(&before) - 1);
}

#[test]
fn a_reply_from_the_pool_arrives_whole_and_in_its_place() {
    let daemon = Plan::unix().start();
    let mut peer = daemon.greeted();
    // The last ones do not fit into the socket.
    for count in [0, 1, 4096, 1 << 20, 3 << 20] {
        peer.send(&format!("early {count}\necho next\n"));
        assert_eq!(peer.line(), "x".repeat(count));
        assert_eq!(peer.line(), "next");
    }
    // Who has gone is sent nothing.
    peer.send("early 10\n");
    drop(peer);
    let before = daemon.descriptors().len();
    let mut other = daemon.greeted();
    other.send("early 3\n");
    assert_eq!(other.line(), "xxx");
    drop(other);
    wait_until(|| daemon.descriptors().len() <= before);
}

#[test]
fn nobody_waits_for_the_slow() {
    let daemon = Plan::unix().start();
    // More than there are workers, of every kind of slowness.
    let mut slow: Vec<Peer> = (0..12).map(|_| daemon.greeted()).collect();
    for (number, peer) in slow.iter_mut().enumerate() {
        match number % 3 {
            0 => peer.send("echo half"),
            1 => peer.send("big 8000000\n"),
            _ => peer.send("park 700\n"),
        }
    }
    let mut quick = daemon.greeted();
    let began = Instant::now();
    for _ in 0..50 {
        assert_eq!(quick.ask("echo a"), "a");
    }
    assert!(began.elapsed() < Duration::from_millis(500));
    // After a second the patience with the first two kinds is over.
    for (number, peer) in slow.iter_mut().enumerate() {
        match number % 3 {
            0 => assert!(peer.is_closed()),
            1 => {
                // What the socket had taken by then is there, the rest is not.
                wait_until(|| daemon.descriptors().len() < 128);
            }
            _ => assert_eq!(peer.line(), "parked"),
        }
    }
    assert_eq!(
        daemon
            .log()
            .iter()
            .filter(|line| line.contains("timeout on echo socket"))
            .count(),
        4
    );
}

#[test]
fn a_slow_reader_gets_all_of_a_large_reply() {
    let daemon = Plan::unix().start();
    let mut peer = daemon.greeted();
    peer.send("big 3000000\necho after\n");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(peer.line().len(), 3_000_000);
    assert_eq!(peer.line(), "after");
    // Requests in single bytes are requests.
    for byte in "echo bytes\n".chars() {
        peer.send(&byte.to_string());
    }
    assert_eq!(peer.line(), "bytes");
}

#[test]
fn a_panic_costs_one_client() {
    let mut daemon = Plan::unix().start();
    let (mut unlucky, mut other) = (daemon.greeted(), daemon.greeted());
    unlucky.send("panic\n");
    assert!(unlucky.is_closed());
    assert_eq!(other.ask("echo a"), "a");
    assert!(daemon.log()[0].starts_with("postfix/echo: panic: on purpose ("));
    assert!(daemon.is_running());
}

#[test]
fn a_stuck_worker_ends_the_process() {
    let mut daemon = Plan::unix().main_cf("daemon_timeout = 3").start();
    let mut idle = daemon.greeted();
    let mut peer = daemon.greeted();
    peer.send("stuck\n");
    let began = Instant::now();
    assert_eq!(daemon.wait().0.code(), Some(1));
    let time = began.elapsed();
    assert!(
        (Duration::from_millis(3900)..Duration::from_secs(6)).contains(&time),
        "{time:?}"
    );
    assert_eq!(daemon.log(), ["postfix/echo: fatal: watchdog timeout"]);
    assert!(idle.is_closed());
}

#[test]
fn descriptors_in_both_directions() {
    let daemon = Plan::unix().start();
    let mut peer = daemon.greeted();
    let before = daemon.descriptors().len();
    let (mine, theirs) = UnixStream::pair().unwrap();
    // The descriptor comes right behind the request: it must not be lost.
    peer.send("take\n");
    postkeep_sys::socket::send_descriptor(&peer.stream, 0, theirs.as_fd()).unwrap();
    drop(theirs);
    assert_eq!(peer.line(), "taken 1");
    // The daemon has dropped it.
    assert!(Peer::new(mine).is_closed());
    peer.send("give\n");
    let mut arrived = Vec::new();
    let mut buffer = [9; 4];
    wait_until(|| postkeep_sys::socket::receive(&peer.stream, &mut buffer, &mut arrived).is_ok());
    assert_eq!((buffer[0], arrived.len()), (0, 1));
    wait_until(|| daemon.descriptors().len() == before);
    // Descriptors that nobody asked for cost the connection.
    let file = std::fs::File::open("/dev/null").unwrap();
    let mut flood = daemon.greeted();
    for _ in 0..100 {
        if postkeep_sys::socket::send_descriptor(&flood.stream, b'x', file.as_fd()).is_err() {
            break;
        }
    }
    let mut rest = Vec::new();
    let _ = flood.stream.read_to_end(&mut rest);
    wait_until(|| daemon.descriptors().len() == before);
}

#[test]
fn half_closed_and_pipelined_requests_are_answered() {
    let daemon = Plan::unix().start();
    let mut peer = daemon.greeted();
    peer.send("echo a\npark 20\necho b\n");
    peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(
        [peer.line(), peer.line(), peer.line()],
        ["a", "parked", "b"]
    );
    assert!(peer.is_closed());
    let mut peer = daemon.greeted();
    peer.send("echo half");
    peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(peer.is_closed());
    assert_eq!(
        daemon.log(),
        ["postfix/echo: warning: unexpected end-of-input from echo socket"]
    );
}

#[test]
fn a_parked_client_that_leaves_costs_nothing() {
    let daemon = Plan::unix().start();
    let mut peer = daemon.greeted();
    let before = daemon.descriptors().len();
    peer.send("park 300\n");
    std::thread::sleep(Duration::from_millis(20));
    drop(peer);
    let ticks = cpu_ticks(&daemon);
    std::thread::sleep(Duration::from_millis(200));
    // The end of the stream is not reported over and over.
    assert!(cpu_ticks(&daemon) - ticks <= 5);
    wait_until(|| daemon.descriptors().len() == before - 1);
}

#[test]
fn flow_control_holds_requests_back() {
    let daemon = Plan::unix().environment("ECHO_REQUIRES", "f").start();
    rustix::io::write(&daemon.flow_write, b"x").unwrap();
    let mut lucky = daemon.greeted();
    let mut unlucky = daemon.greeted();
    let began = Instant::now();
    assert_eq!(lucky.ask("echo a"), "a");
    assert!(began.elapsed() < Duration::from_millis(500));
    assert_eq!(unlucky.ask("echo a"), "a");
    assert!(began.elapsed() >= Duration::from_millis(950));
}

#[test]
fn a_drained_process_serves_whom_it_has() {
    let mut daemon = Plan::unix().start();
    let mut peer = daemon.greeted();
    let mut other = daemon.greeted();
    assert_eq!(peer.ask("drain"), "");
    assert_eq!(peer.ask("drain"), "");
    std::thread::sleep(SOON);
    let mut late = daemon.connect();
    late.stream.set_read_timeout(Some(SOON)).unwrap();
    assert!(late.stream.read(&mut [0]).is_err());
    assert_eq!(other.ask("echo a"), "a");
    drop((peer, other));
    assert!(daemon.wait().0.success());
    assert_eq!(daemon.log(), ["postfix/echo: exit hook: 2 clients"]);
}

#[test]
fn timers_of_the_service_are_finer_than_a_second() {
    let daemon = Plan::unix().main_cf("echo_number = 8").start();
    let _peer = daemon.greeted();
    std::thread::sleep(Duration::from_millis(400));
    let ticks = daemon.log().len();
    assert!((3..=12).contains(&ticks), "{ticks}");
}

#[test]
fn master_that_reads_nothing_holds_up_nobody() {
    let daemon = Plan::unix().start();
    let mut peer = daemon.greeted();
    for _ in 0..400 {
        assert_eq!(peer.ask("echo a"), "a");
    }
    assert_eq!(daemon.status_messages().len(), 2);
}

#[test]
fn descriptors_running_out_is_survived() {
    let mut daemon = Plan::unix().start();
    let first = daemon.greeted();
    // Room for a few more clients; their numbers begin at 128.
    let pid = rustix::process::Pid::from_child(&daemon.child);
    let limit = rustix::process::Rlimit {
        current: Some(132),
        maximum: Some(132),
    };
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Nofile, limit).unwrap();
    let mut crowd: Vec<Peer> = (0..20).map(|_| daemon.connect()).collect();
    std::thread::sleep(Duration::from_millis(50));
    let ticks = cpu_ticks(&daemon);
    std::thread::sleep(Duration::from_millis(300));
    assert!(cpu_ticks(&daemon) - ticks <= 5);
    // One that was idle has made room, and one that came too late was turned away.
    crowd.push(first);
    let closed = crowd
        .iter_mut()
        .filter(|peer| {
            peer.stream
                .set_read_timeout(Some(Duration::from_millis(10)))
                .unwrap();
            let mut text = Vec::new();
            (&peer.stream).read_to_end(&mut text).is_ok()
        })
        .count();
    assert!(closed >= 2, "{closed}");
    assert!(daemon.is_running());
    let errors = daemon
        .log()
        .iter()
        .filter(|line| line.contains("error: "))
        .count();
    assert!((1..=3).contains(&errors), "{:?}", daemon.log());
    assert_eq!(
        daemon.log()[0],
        "postfix/echo: error: accept connection: Too many open files"
    );
}

/// Processor time that the daemon has used, in hundredths of a second.
fn cpu_ticks(daemon: &Daemon) -> u64 {
    let stat = std::fs::read_to_string(daemon.proc("stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

pub fn wait_until(mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < limit, "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}
