//! The asynchronous client, with Postfix's connection cache and with ours.

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postkeep_client::Place;
use postkeep_client::scache::asynchronous::{Client, Connection};
use postkeep_client::scache::{Error, Settings, Status};
use postkeep_testkit::stand_in::{Plan, StandIn};
use postkeep_testkit::{Implementation, Scratch};

const BOTH: [Implementation; 2] = [Implementation::Postfix, Implementation::Postkeep];

fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

fn daemon(implementation: Implementation) -> Result<Option<StandIn>> {
    Plan::new(implementation, "scache")
        .parameter("connection_cache_ttl_limit", "600s")
        .start()
}

fn settings(path: &Path) -> Settings {
    Settings {
        limit: Duration::from_secs(5),
        delay: Duration::from_millis(10),
        ..Settings::new(Place::Path(path.to_owned()))
    }
}

#[test]
fn a_session_goes_into_the_cache_and_comes_out_once() -> Result<()> {
    for implementation in BOTH {
        let Some(daemon) = daemon(implementation)? else {
            return Ok(());
        };
        run(async {
            let mut client = Client::new(settings(&daemon.socket()));
            let (near, mut far) = UnixStream::pair()?;
            let bound = client.save_destination(60, b"d", b"dp", b"e").await?;
            ensure!(bound == Status::Ok);
            ensure!(client.find_destination(b"d").await?.is_none());
            let saved = client.save_endpoint(60, b"e", b"p", near.into()).await?;
            ensure!(saved == Status::Ok);
            let found = client.find_destination(b"d").await?.context("nothing")?;
            ensure!(found.destination_property == b"dp" && found.endpoint_property == b"p");
            UnixStream::from(found.descriptor).write_all(b"same")?;
            let mut word = String::new();
            far.read_to_string(&mut word)?;
            ensure!(word == "same");
            ensure!(client.find_endpoint(b"e").await?.is_none());
            ensure!(client.save_destination(0, b"d", b"dp", b"e").await? == Status::Bad);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn many_tasks_on_one_thread_do_not_mix_up_sessions() -> Result<()> {
    let Some(daemon) = daemon(Implementation::Postkeep)? else {
        return Ok(());
    };
    run(async {
        let tasks = (0..40_u8).map(|number| {
            let mut client = Client::new(settings(&daemon.socket()));
            tokio::spawn(async move {
                for _ in 0..20 {
                    let (near, mut far) = UnixStream::pair()?;
                    let label = [b'l', b'A' + number];
                    client
                        .save_endpoint(60, &label, &label, near.into())
                        .await?;
                    let found = client.find_endpoint(&label).await?.context("lost")?;
                    ensure!(found.endpoint_property == label);
                    UnixStream::from(found.descriptor).write_all(&label)?;
                    let mut heard = Vec::new();
                    far.read_to_end(&mut heard)?;
                    ensure!(heard == label);
                }
                Ok(())
            })
        });
        let tasks: Vec<_> = tasks.collect();
        for task in tasks {
            task.await??;
        }
        Ok(())
    })
}

/// Goes on so often only, then drops the future.
async fn up_to<T>(turns: u32, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    let mut left = turns;
    std::future::poll_fn(|context| {
        use std::task::Poll;
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        work.as_mut().poll(context).map(Some)
    })
    .await
}

/// Whether this end still has a far end.
fn is_open(far: &UnixStream) -> Result<bool> {
    far.set_nonblocking(true)?;
    Ok(!matches!((&*far).read(&mut [0]), Ok(0)))
}

#[test]
fn a_future_that_is_dropped_anywhere_leaks_no_session() -> Result<()> {
    let Some(daemon) = daemon(Implementation::Postkeep)? else {
        return Ok(());
    };
    run(async {
        let mut other = Client::new(settings(&daemon.socket()));
        let mut dropped = 0;
        for round in 0..300_u32 {
            let (near, far) = UnixStream::pair()?;
            other.save_endpoint(60, b"e", b"p", near.into()).await?;
            let connection = Connection::open(&settings(&daemon.socket())).await?;
            let find = connection.find_endpoint(b"e");
            // Sessions are never in two places: found here, or there, or closed.
            let here = up_to(round % 8, find).await;
            dropped += u32::from(here.is_none());
            let here = here.map(|found| found.map(|(_, found)| found));
            let here = here.transpose()?.flatten();
            let there = other.find_endpoint(b"e").await?;
            ensure!(here.is_none() || there.is_none(), "found twice");
            let held = here.is_some() || there.is_some();
            drop((here, there));
            let late = Instant::now() + Duration::from_secs(5);
            while is_open(&far)? {
                ensure!(Instant::now() < late, "round {round}: leaked, held: {held}");
                tokio::time::sleep(Duration::from_millis(1)).await;
                drop(other.find_endpoint(b"e").await?);
            }
        }
        println!("{dropped} of 300 futures were dropped before they had ended");
        ensure!((30..300).contains(&dropped), "not at every point");
        Ok(())
    })
}

#[test]
fn failures_are_those_of_the_blocking_client() -> Result<()> {
    run(async {
        let scratch = Scratch::new("async")?;
        let path = scratch.path().join("socket");
        let quick = Settings {
            limit: Duration::from_millis(50),
            ..settings(&path)
        };
        let mut client = Client::new(quick.clone());
        let error = client.find_endpoint(b"e").await;
        ensure!(matches!(error, Err(Error::Connect { .. })), "{error:?}");
        let error = client.find_endpoint(b"e").await;
        ensure!(matches!(error, Err(Error::Disabled)), "{error:?}");

        // Never says a word; says something else; ends.
        let listener = UnixListener::bind(&path)?;
        let opened = Connection::open(&quick).await;
        ensure!(matches!(opened, Err(Error::Protocol { .. })), "{opened:?}");
        drop(listener.accept()?);
        for words in [&b"protocol\0other\0\0"[..], b""] {
            let open = Connection::open(&quick);
            let answer = async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let mut server = listener.accept()?.0;
                server.write_all(words)?;
                Ok::<_, anyhow::Error>(server)
            };
            let (opened, server) = both(open, answer).await;
            drop(server?);
            ensure!(matches!(opened, Err(Error::Protocol { .. })), "{opened:?}");
        }
        // The descriptor stays the caller's.
        let unannounced = Settings {
            announced: false,
            ..quick
        };
        let (near, far) = UnixStream::pair()?;
        let connection = Connection::open(&unannounced).await?;
        let saved = connection.save_endpoint(1, b"e", b"", near.as_fd()).await;
        ensure!(matches!(saved, Err(Error::Exchange { .. })), "{saved:?}");
        ensure!(is_open(&far)?);
        Ok(())
    })
}

/// Both, at the same time.
async fn both<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> (A, B) {
    use std::pin::pin;
    use std::task::Poll;
    let (mut one, mut other) = (pin!(one), pin!(other));
    let (mut first, mut second) = (None, None);
    std::future::poll_fn(|context| {
        if first.is_none()
            && let Poll::Ready(value) = one.as_mut().poll(context)
        {
            first = Some(value);
        }
        if second.is_none()
            && let Poll::Ready(value) = other.as_mut().poll(context)
        {
            second = Some(value);
        }
        match (first.take(), second.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (first, second) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}
