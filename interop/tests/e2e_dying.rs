//! Far ends that die in every way at every moment, and descriptors that are no sessions: what the running connection cache
//! answers, what it counts, and that it keeps nothing.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postkeep_sys::{readiness, socket};
use postkeep_testkit::attributes::list;
use postkeep_testkit::peer::{Peer, collect_session, save_endpoint};
use postkeep_testkit::{Implementation, StandIn, stand_in};

const LIMIT: Duration = Duration::from_secs(10);

/// How a far end dies; the last two only do not listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Fin,
    Reset,
    HalfClose,
    Says421AndFin,
    StrayByte,
    NeverReads,
    /// It never reads, and the connection has no room for another word.
    WindowFull,
}

const WAYS: [Way; 7] = [
    Way::Fin,
    Way::Reset,
    Way::HalfClose,
    Way::Says421AndFin,
    Way::StrayByte,
    Way::NeverReads,
    Way::WindowFull,
];

/// When it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    BeforeSave,
    BetweenSaveAndFind,
    /// The client knows that there is a session, and has not asked for it yet.
    DuringHandOver,
}

const MOMENTS: [Moment; 3] = [
    Moment::BeforeSave,
    Moment::BetweenSaveAndFind,
    Moment::DuringHandOver,
];

impl Way {
    /// What is left of the far end.
    fn die(self, near: &TcpStream, mut far: TcpStream) -> Result<Option<TcpStream>> {
        match self {
            Self::Fin => return Ok(None),
            Self::Reset => {
                rustix::net::sockopt::set_socket_linger(&far, Some(Duration::ZERO))?;
                return Ok(None);
            }
            Self::HalfClose => far.shutdown(Shutdown::Write)?,
            Self::Says421AndFin => {
                far.write_all(b"421 4.4.2 timeout\r\n")?;
                far.shutdown(Shutdown::Write)?;
            }
            Self::StrayByte => far.write_all(b"x")?,
            Self::NeverReads => {}
            Self::WindowFull => {
                near.set_nonblocking(true)?;
                // Buffers grow while they are filled, and what is on its way gives back room on arrival.
                let mut quiet = 0;
                while quiet < 5 {
                    quiet += 1;
                    while (&*near).write(&[0; 4096]).is_ok() {
                        quiet = 0;
                    }
                    thread::sleep(Duration::from_millis(10));
                }
            }
        }
        Ok(Some(far))
    }

    fn is_dead(self) -> bool {
        !matches!(self, Self::NeverReads | Self::WindowFull)
    }

    /// The counter that it is counted by.
    fn cause(self) -> &'static str {
        match self {
            Self::Fin | Self::HalfClose => "closed",
            Self::Reset => "broken",
            Self::Says421AndFin | Self::StrayByte => "unsolicited",
            Self::NeverReads | Self::WindowFull => "expired",
        }
    }
}

fn tcp() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    Ok((near, listener.accept()?.0))
}

fn daemon() -> Result<Option<StandIn>> {
    stand_in::Plan::new(Implementation::Postkeep, "scache")
        .parameter("connection_cache_ttl_limit", "600s")
        .parameter("postkeep_attribute_size_limit", "5000")
        .parameter("postkeep_metrics_address", "unix:$SCRATCH/data/metrics")
        .start()
}

/// A number of the page of metrics now.
fn counted(daemon: &StandIn, name: &str) -> Result<u64> {
    let mut stream = UnixStream::connect(daemon.scratch().join("data/metrics"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    let (family, label) = name.split_once('=').unwrap_or((name, "scache"));
    let line = page
        .lines()
        .find(|line| {
            line.starts_with(&format!("{family}{{")) && line.contains(&format!("\"{label}\""))
        })
        .with_context(|| format!("{name} is not on the page: {page}"))?;
    let value = line.rsplit(' ').next().context("no value")?;
    Ok(value.parse()?)
}

fn counted_in_time(daemon: &StandIn, name: &str, wanted: u64) -> Result<()> {
    let late = Instant::now() + LIMIT;
    loop {
        let now = counted(daemon, name)?;
        if now == wanted {
            return Ok(());
        }
        ensure!(Instant::now() < late, "{name}: {now} instead of {wanted}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn find(client: &mut Peer, label: &str) -> Result<String> {
    let reply = client.exchange(&list(&[("request", "find_endp"), ("label", label)]))?;
    Ok(String::from_utf8_lossy(&reply).replace('\0', "|"))
}

const FAIL: &str = "status|2||";
const FOUND: &str = "status|0|property|p||";
const NOT_FOUND: &str = "status|2|property|||";

/// Waits until the connection knows what its far end did; of an error it keeps what there is to be read.
fn settle(near: &impl std::os::fd::AsFd) -> Result<()> {
    ensure!(readiness::wait_for(
        near,
        readiness::Interest::Read,
        Some(LIMIT)
    )?);
    Ok(())
}

#[test]
fn every_way_of_dying_at_every_moment() -> Result<()> {
    let Some(daemon) = daemon()? else {
        return Ok(());
    };
    let mut client = daemon.connect_and_greet()?;
    ensure!(find(&mut client, "x")? == NOT_FOUND);
    let before = daemon.open_descriptors()?;
    let causes = ["closed", "broken", "unsolicited", "found"];
    let ended = |cause: &str| counted(&daemon, &format!("postkeep_scache_ended_total={cause}"));
    for moment in MOMENTS {
        for way in WAYS {
            let mut counts = [0; 4];
            for (cause, count) in causes.iter().zip(&mut counts) {
                *count = ended(cause)?;
            }
            let what = format!("{way:?}, {moment:?}");
            let label = format!("smtp\n{what}");
            let (near, far) = tcp()?;
            let number = socket::cookie(&near)?;
            let mut left = None;
            let mut far = Some(far);
            let mut die = |now: Moment, near: &TcpStream| -> Result<()> {
                if now == moment
                    && let Some(far) = far.take()
                {
                    left = way.die(near, far)?;
                    // What is in the cache is seen, and read away, by the cache alone.
                    if way.is_dead() && now != Moment::BetweenSaveAndFind {
                        settle(near)?;
                    }
                }
                Ok(())
            };
            die(Moment::BeforeSave, &near)?;
            let saved = save_endpoint(&mut client, 600, &label, "p", near.as_fd())?;
            // A connection that was reset is none any more.
            let refused = moment == Moment::BeforeSave && way == Way::Reset;
            let expected: &[u8] = if refused {
                b"status\x002\0\0"
            } else {
                b"status\x000\0\0"
            };
            ensure!(saved == expected, "{what}: {saved:?}");
            die(Moment::BetweenSaveAndFind, &near)?;
            if moment == Moment::BetweenSaveAndFind && way.is_dead() {
                let position = causes.iter().position(|cause| *cause == way.cause());
                let count = counts[position.context("it is counted")?];
                let name = format!("postkeep_scache_ended_total={}", way.cause());
                counted_in_time(&daemon, &name, count + 1).context(what.clone())?;
            }
            let reply = find(&mut client, &label)?;
            let handed_out = moment == Moment::DuringHandOver || !way.is_dead();
            let expected = if handed_out { FOUND } else { NOT_FOUND };
            ensure!(reply == expected, "{what}: {reply}");
            die(Moment::DuringHandOver, &near)?;
            if handed_out {
                // Whoever asks gets what there is, and finds out.
                let found = collect_session(&mut client)?;
                ensure!(socket::cookie(&found)? == number, "{what}: another session");
            }
            drop(near);
            ensure!(find(&mut client, &label)? == NOT_FOUND, "{what}");
            // Nobody has it any more.
            if let Some(mut left) = left {
                left.set_read_timeout(Some(LIMIT))?;
                loop {
                    match left.read(&mut [0; 4096]) {
                        Ok(0) => break,
                        Ok(_) => {}
                        // Closed with bytes unread.
                        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
                        Err(error) => return Err(error).context(what),
                    }
                }
            }
            let expected_cause = if handed_out { "found" } else { way.cause() };
            for (cause, count) in causes.iter().zip(counts) {
                let more = u64::from(*cause == expected_cause && !refused);
                let name = format!("postkeep_scache_ended_total={cause}");
                counted_in_time(&daemon, &name, count + more).context(what.clone())?;
            }
        }
    }
    ensure!(counted(&daemon, "postkeep_scache_refused_total=not_connected")? == 1);
    ensure!(counted(&daemon, "postkeep_scache_sessions")? == 0);
    // The connection over which the last page came is closed a moment after its end was seen.
    let deadline = Instant::now() + LIMIT;
    while daemon.open_descriptors()? > before {
        ensure!(Instant::now() < deadline, "descriptors leak");
        thread::sleep(Duration::from_millis(10));
    }
    ensure!(daemon.log_texts().is_empty(), "{:?}", daemon.log_texts());
    Ok(())
}

#[test]
fn far_ends_that_do_not_listen_hold_up_nobody_at_the_end() -> Result<()> {
    let Some(daemon) = daemon()? else {
        return Ok(());
    };
    let mut client = daemon.connect_and_greet()?;
    let before = daemon.open_descriptors()?;
    let mut left = Vec::new();
    for (way, count) in [(Way::NeverReads, 3), (Way::WindowFull, 3)] {
        for _ in 0..count {
            let (near, far) = tcp()?;
            left.push(way.die(&near, far)?.context("it is there")?);
            save_endpoint(&mut client, 1, "smtp\nfull", "p", near.as_fd())?;
        }
    }
    let (near, _alive) = tcp()?;
    save_endpoint(&mut client, 600, "smtp\nother", "p", near.as_fd())?;
    counted_in_time(&daemon, "postkeep_scache_ended_total=expired", 6)?;
    // Others are served meanwhile, and what had no room for the goodbye is closed without it.
    ensure!(find(&mut client, "smtp\nother")? == FOUND);
    drop(collect_session(&mut client)?);
    counted_in_time(&daemon, "postkeep_scache_goodbyes_total=not_said", 3)?;
    counted_in_time(&daemon, "postkeep_scache_goodbyes_total=said", 3)?;
    drop(near);
    // An answer to the goodbye is waited for, but not for long.
    let late = Instant::now() + LIMIT;
    while daemon.open_descriptors()? > before {
        ensure!(Instant::now() < late, "descriptors leak");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn what_is_no_session_is_refused_closed_and_counted() -> Result<()> {
    let Some(daemon) = daemon()? else {
        return Ok(());
    };
    let mut client = daemon.connect_and_greet()?;
    ensure!(find(&mut client, "x")? == NOT_FOUND);
    let before = daemon.open_descriptors()?;
    // The page may be a little old.
    let refused = |reason: &str, count| {
        counted_in_time(
            &daemon,
            &format!("postkeep_scache_refused_total={reason}"),
            count,
        )
    };
    let mut save = |descriptor: BorrowedFd<'_>| -> Result<String> {
        let status = save_endpoint(&mut client, 600, "smtp\ne", "p", descriptor)?;
        Ok(String::from_utf8_lossy(&status).replace('\0', "|"))
    };
    let (pipe, end) = rustix::pipe::pipe()?;
    let file = std::fs::File::open(daemon.scratch())?;
    let unconnected = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )?;
    let listener = UnixListener::bind(daemon.scratch().join("listener"))?;
    let unfit: [(&str, OwnedFd); 5] = [
        ("a pipe", pipe),
        ("the other end of a pipe", end),
        ("a directory", file.into()),
        ("a socket that is not connected", unconnected),
        ("a listening socket", listener.into()),
    ];
    let count = u64::try_from(unfit.len())?;
    for (what, descriptor) in unfit {
        let status = save(descriptor.as_fd())?;
        ensure!(status == FAIL, "{what}: {status}");
    }
    // The client's own end of a connection to the cache, and that of another client.
    let own = UnixStream::connect(daemon.socket())?;
    ensure!(save(own.as_fd())? == FAIL);
    drop(own);
    ensure!(find(&mut client, "smtp\ne")? == NOT_FOUND);
    refused("not_connected", count)?;
    refused("own_client", 1)?;
    ensure!(
        daemon.log_texts()
            == [
                "warning: scache_save_endp_service: file descriptor of a connection to this service"
            ]
    );

    // A label beyond the limit ends the connection, and the descriptor that came with it is closed.
    let (near, far) = UnixStream::pair()?;
    let mut long = daemon.connect_and_greet()?;
    let request = list(&[
        ("request", "save_endp"),
        ("ttl", "60"),
        ("label", &"l".repeat(5001)),
        ("property", "p"),
    ]);
    long.send(&request[..100])?;
    long.send_with(&request[100..], &[near.as_fd()])?;
    drop(near);
    ensure!(long.drain_to_end().bytes.is_empty());
    far.set_read_timeout(Some(LIMIT))?;
    ensure!((&far).read(&mut [0])? == 0, "the descriptor is kept");
    refused("too_long", 1)?;
    drop(long);

    let late = Instant::now() + LIMIT;
    while daemon.open_descriptors()? > before {
        ensure!(Instant::now() < late, "descriptors leak");
        thread::sleep(Duration::from_millis(20));
    }
    ensure!(counted(&daemon, "postkeep_scache_saved_total")? == 0);
    Ok(())
}
