//! Each limit of the skeleton: what happens beyond it, what the log says, and that nothing happens below it.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

use crate::harness::{Daemon, Peer, Plan};
use crate::serve::wait_until;

/// The connection has ended; waits for that a short time only.
fn has_ended(peer: &mut Peer) -> bool {
    peer.stream
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let ended = matches!((&peer.stream).read(&mut [0]), Ok(0));
    peer.stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    ended
}

fn warnings(daemon: &Daemon) -> Vec<String> {
    daemon
        .log()
        .into_iter()
        .filter(|line| line.contains("warning: "))
        .collect()
}

#[test]
fn at_the_client_limit_the_one_that_is_idle_for_longest_makes_room() {
    let daemon = Plan::unix().main_cf("postkeep_client_limit = 4").start();
    let mut peers: Vec<Peer> = (0..4).map(|_| daemon.greeted()).collect();
    for peer in &mut peers {
        assert_eq!(peer.ask("echo a"), "a");
    }
    assert!(daemon.log().is_empty(), "{:?}", daemon.log());
    // The first has been idle for longest, until it asks again.
    assert_eq!(peers[0].ask("echo b"), "b");
    let mut new = daemon.greeted();
    assert_eq!(new.ask("echo c"), "c");
    assert!(has_ended(&mut peers[1]));
    for index in [0, 2, 3] {
        assert_eq!(peers[index].ask("echo d"), "d");
    }
    // Many more, and the line stays alone.
    let mut later: Vec<Peer> = (0..20).map(|_| daemon.greeted()).collect();
    assert_eq!(later.last_mut().unwrap().ask("echo e"), "e");
    assert!(has_ended(&mut later[0]));
    assert_eq!(
        daemon.log(),
        [
            "postfix/echo: warning: client limit reached: 4 clients, the one that is idle for longest makes room; \
             to raise this limit: postkeep_client_limit"
        ]
    );
}

#[test]
fn the_order_holds_over_many_clients() {
    const MANY: usize = 200;
    let daemon = Plan::unix()
        .main_cf(&format!("postkeep_client_limit = {MANY}"))
        .main_cf("max_use = 10000")
        .start();
    let mut old: Vec<Peer> = (0..MANY).map(|_| daemon.greeted()).collect();
    for peer in &mut old {
        assert_eq!(peer.ask("echo a"), "a");
    }
    let mut new = Vec::new();
    for number in 0..MANY {
        let mut peer = daemon.greeted();
        assert_eq!(peer.ask("echo b"), "b");
        new.push(peer);
        // Every other one speaks again before its turn would have come.
        if let Some(next) = old.get_mut(number + 40)
            && number.is_multiple_of(2)
            && number < MANY / 4
        {
            assert_eq!(next.ask("echo c"), "c");
        }
    }
    // All but those that spoke have made room, and then the oldest of the new.
    let spoke = |number: usize| number >= 40 && number.is_multiple_of(2) && number - 40 < MANY / 4;
    let left: Vec<usize> = (0..MANY)
        .filter(|&number| !has_ended(&mut old[number]))
        .collect();
    assert!(
        !left.is_empty() && left.iter().all(|&number| spoke(number)),
        "{left:?}"
    );
    assert!(!has_ended(&mut new[MANY - 1]));
}

#[test]
fn clients_that_are_served_do_not_make_room() {
    let daemon = Plan::unix().main_cf("postkeep_client_limit = 2").start();
    let mut busy: Vec<Peer> = (0..2).map(|_| daemon.greeted()).collect();
    for peer in &mut busy {
        peer.send("park 300\n");
    }
    // It waits in the queue until one of them is done.
    let mut new = daemon.connect();
    assert_eq!(new.line(), "hello");
    for peer in &mut busy {
        assert_eq!(peer.line(), "parked");
    }
    assert_eq!(new.ask("echo a"), "a");
}

#[test]
fn a_user_with_too_many_clients_gets_no_more() {
    let daemon = Plan::unix()
        .main_cf("postkeep_user_client_limit = 3")
        .start();
    let mut peers: Vec<Peer> = (0..3).map(|_| daemon.greeted()).collect();
    assert!(daemon.log().is_empty());
    for _ in 0..5 {
        assert!(daemon.connect().is_closed());
    }
    for peer in &mut peers {
        assert_eq!(peer.ask("echo a"), "a");
    }
    let log = daemon.log();
    assert_eq!(log.len(), 1, "{log:?}");
    let user = rustix::process::getuid().as_raw();
    assert_eq!(
        log[0],
        format!(
            "postfix/echo: warning: connection of process {} closed: user ID {user} has 3 connections already; \
             to raise this limit: postkeep_user_client_limit",
            std::process::id()
        )
    );
    // Who has gone does not count.
    peers.pop();
    wait_until(|| {
        let mut peer = daemon.connect();
        let mut greeting = [0; 6];
        peer.stream.read_exact(&mut greeting).is_ok()
    });
}

#[test]
fn requests_beyond_the_rate_wait_for_their_slot() {
    let daemon = Plan::unix()
        .main_cf("postkeep_request_rate_limit = 10")
        .start();
    let (mut eager, mut modest) = (daemon.greeted(), daemon.greeted());
    // A second's worth at once, and then one every 100 ms.
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(eager.ask("echo a"), "a");
    }
    assert!(began.elapsed() < Duration::from_millis(500));
    assert!(daemon.log().is_empty());
    for _ in 0..5 {
        assert_eq!(eager.ask("echo b"), "b");
        assert_eq!(modest.ask("echo c"), "c");
    }
    let time = began.elapsed();
    assert!(
        (Duration::from_millis(300)..Duration::from_secs(3)).contains(&time),
        "{time:?}"
    );
    let log = daemon.log();
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(
        log[0].starts_with(
            "postfix/echo: warning: client sends more than 10 requests per second, it waits for "
        ) && log[0].ends_with(" ms; to raise this limit: postkeep_request_rate_limit"),
        "{log:?}"
    );
}

#[test]
fn requests_in_one_packet_count_each_and_all_are_answered() {
    let daemon = Plan::unix()
        .main_cf("postkeep_request_rate_limit = 20")
        .start();
    let mut peer = daemon.greeted();
    let began = Instant::now();
    // Half a request at the end: the rest of it comes while the client is held back, and is not too late.
    peer.send(&"echo a\n".repeat(44));
    peer.send("echo b\nec");
    for _ in 0..44 {
        assert_eq!(peer.line(), "a");
    }
    peer.send("ho c\n");
    let answers = [peer.line(), peer.line()];
    assert_eq!(answers, ["b", "c"]);
    // 46 requests less 20 at once: the last was looked at after more than a second.
    let time = began.elapsed();
    assert!(
        (Duration::from_secs(1)..Duration::from_secs(4)).contains(&time),
        "{time:?}"
    );
    assert_eq!(warnings(&daemon).len(), 1);
}

#[test]
fn without_descriptors_the_oldest_idle_client_goes_and_all_new_ones_are_served() {
    let daemon = Plan::unix().start();
    let mut busy = daemon.greeted();
    let mut old: Vec<Peer> = (0..3).map(|_| daemon.greeted()).collect();
    for peer in &mut old {
        assert_eq!(peer.ask("echo a"), "a");
    }
    busy.send("park 1500\n");
    let pid = Pid::from_child(&daemon.child);
    // Numbers of clients begin at 128; there are four.
    let limit = Rlimit {
        current: Some(132),
        maximum: Some(132),
    };
    prlimit(Some(pid), Resource::Nofile, limit).unwrap();
    let began = Instant::now();
    let mut kept = Vec::new();
    for number in 0..30 {
        let mut peer = daemon.greeted();
        assert_eq!(peer.ask("echo b"), "b");
        if let Some(oldest) = old.get_mut(number) {
            assert!(has_ended(oldest), "{number}");
            for younger in &mut old[number + 1..] {
                assert!(!has_ended(younger), "{number}");
            }
        }
        kept.push(peer);
    }
    // Nobody had to wait for a pause to pass.
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(busy.line(), "parked");
    assert_eq!(
        daemon.log()[..2],
        [
            "postfix/echo: error: accept connection: Too many open files",
            "postfix/echo: warning: descriptor limit reached: 4 clients, the one that is idle for longest makes \
             room; to raise this limit: the number of open files that the system allows"
        ]
    );
    assert_eq!(daemon.log().len(), 2, "{:?}", daemon.log());
}

#[test]
fn clients_in_the_middle_of_a_request_make_room_when_nobody_is_idle() {
    let daemon = Plan::unix().main_cf("postkeep_client_limit = 3").start();
    let mut slow: Vec<Peer> = (0..3).map(|_| daemon.greeted()).collect();
    for peer in &mut slow {
        peer.send("echo half");
        std::thread::sleep(Duration::from_millis(20));
    }
    let began = Instant::now();
    let mut new = daemon.greeted();
    assert_eq!(new.ask("echo a"), "a");
    // Long before their own time is over.
    assert!(began.elapsed() < Duration::from_millis(600));
    assert!(has_ended(&mut slow[0]));
    assert!(!has_ended(&mut slow[2]));
}

#[test]
fn who_holds_most_memory_is_disconnected() {
    // Each worker may hold one request of the longest kind, and a bit.
    let daemon = Plan::unix()
        .main_cf("postkeep_buffer_memory_limit = 1")
        .main_cf("postkeep_request_size_limit = 4096")
        .start();
    let mut witness = daemon.greeted();
    assert_eq!(
        witness.ask(&format!("echo {}", "w".repeat(30_000))).len(),
        30_000
    );
    assert!(daemon.log().is_empty(), "{:?}", daemon.log());
    let mut hogs: Vec<Peer> = (0..16).map(|_| daemon.greeted()).collect();
    for hog in &mut hogs {
        hog.send(&format!("echo {}", "x".repeat(50_000)));
    }
    wait_until(|| {
        daemon
            .log()
            .iter()
            .any(|line| line.contains("buffer memory limit"))
    });
    assert_eq!(witness.ask("echo a"), "a");
    let log = warnings(&daemon);
    assert!(
        log[0].starts_with("postfix/echo: warning: buffer memory limit reached: ")
            && log[0].ends_with(
                "of them is disconnected; to raise this limit: postkeep_buffer_memory_limit"
            ),
        "{log:?}"
    );
}

#[test]
fn too_many_descriptors_at_once_are_a_reason_to_disconnect() {
    use std::os::fd::AsFd;
    let daemon = Plan::unix().start();
    let _witness = daemon.greeted();
    let before = daemon.descriptors().len();
    let peer = daemon.greeted();
    let (own, _other) = UnixStream::pair().unwrap();
    // The line never ends, so nothing of it is taken.
    for _ in 0..70 {
        if postkeep_sys::socket::send_descriptor(&peer.stream, b'x', own.as_fd()).is_err() {
            break;
        }
    }
    wait_until(|| daemon.descriptors().len() == before);
    assert_eq!(
        daemon.log(),
        [
            "postfix/echo: warning: client sends more than 64 descriptors that nobody asked for, it is \
             disconnected; to raise this limit: there is no way"
        ]
    );
}

#[test]
fn failed_handovers_cannot_end_the_process() {
    let mut daemon = Plan::new(&["-t", "pass"]).main_cf("max_use = 1000").start();
    for _ in 0..20 {
        let mut broken = daemon.connect();
        broken.send("\0");
        assert!(broken.is_closed());
    }
    assert!(daemon.is_running());
    assert_eq!(daemon.log().len(), 2, "{:?}", daemon.log());
}

#[test]
fn a_lookup_that_never_ends_is_noticed() {
    let mut daemon = Plan::unix().main_cf("daemon_timeout = 3").start();
    let (mut stuck, mut other) = (daemon.greeted(), daemon.greeted());
    stuck.send("park 60000\n");
    assert_eq!(other.ask("echo a"), "a");
    assert_eq!(daemon.wait().0.code(), Some(1));
    assert_eq!(daemon.log(), ["postfix/echo: fatal: watchdog timeout"]);
}

/// Resident memory in KiB.
fn memory(daemon: &Daemon) -> u64 {
    let text = daemon.proc_status("VmRSS");
    text.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn ten_thousand_silent_connections_leave_nothing_behind() {
    const CROWD: usize = 10_000;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let enough = limit.current.is_none_or(|most| most > CROWD as u64 + 2000);
    assert!(enough, "the test needs more than {CROWD} descriptors");
    let daemon = Plan::unix().main_cf("max_use = 1000000").start();
    let mut witness = daemon.greeted();
    let before = daemon.descriptors().len();
    let mut left = Vec::new();
    for _ in 0..3 {
        let crowd: Vec<UnixStream> = (0..CROWD)
            .map(|_| UnixStream::connect(daemon.queue.join("socket")).unwrap())
            .collect();
        wait_until(|| daemon.descriptors().len() == before + CROWD);
        assert_eq!(witness.ask("echo a"), "a");
        drop(crowd);
        wait_until(|| daemon.descriptors().len() == before);
        left.push(memory(&daemon));
    }
    assert_eq!(witness.ask("echo b"), "b");
    // What was kept of the first crowd serves the next ones.
    assert!(left[2] <= left[0] + 1024, "KiB: {left:?}");
}
