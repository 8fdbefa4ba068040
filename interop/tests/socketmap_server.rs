//! The socketmap server under a real master, asked by the real postmap, over TLS by what stands between, and by clients
//! that do what they should not.
#![allow(clippy::unwrap_used, reason = "a failure ends the test")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postkeep_interop::servers::certificates::{Certificates, Pair};
use postkeep_testkit::private_postfix::{Plan, PrivatePostfix, free_port};
use postkeep_testkit::{Implementation, Scratch};

const LIMIT: Duration = Duration::from_secs(10);

const ALIASES: &str = "alice\talice@example.test\nBob\tbob@example.test\nspace man\tmoon\n";

fn netstring(text: &str) -> Vec<u8> {
    format!("{}:{text},", text.len()).into_bytes()
}

/// An instance with a server at this port and at `private/socketmap`.
fn plan(port: u16) -> Plan {
    Plan::new(Implementation::Postkeep)
        .daemon("socketmap")
        .table("aliases", ALIASES)
        .parameter(
            "postkeep_socketmap_maps",
            "aliases=texthash:$SCRATCH/tables/aliases, {both = unionmap:{static:x,inline:{a=b}}}, \
             gone=texthash:$SCRATCH/tables/gone",
        )
        .service(&format!("127.0.0.1:{port} inet n - n - 1 socketmap"))
        .service("socketmap unix - - n - 1 socketmap")
}

/// Sends, and reads until the end.
fn exchange(mut stream: impl Read + Write, bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    // The other side may have closed before all is sent.
    let _ = stream.write_all(bytes);
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Asks over an open connection.
fn ask(stream: &mut TcpStream, request: &str) -> Result<String> {
    stream.write_all(&netstring(request))?;
    let (mut length, mut byte) = (0, [0]);
    loop {
        stream.read_exact(&mut byte)?;
        match byte[0] {
            b':' => break,
            digit => length = length * 10 + usize::from(digit - b'0'),
        }
    }
    let mut answer = vec![0; length + 1];
    stream.read_exact(&mut answer)?;
    ensure!(answer.pop() == Some(b','));
    Ok(String::from_utf8(answer)?)
}

#[test]
fn postmap_gets_the_answers_of_the_table_itself() -> Result<()> {
    let port = free_port()?;
    let Some(postfix) = plan(port).start()? else {
        return Ok(());
    };
    let root = postfix.scratch().display().to_string();
    let query = |table: &str, key: &str| {
        let output = postfix.command("postmap", &["-q", key, table]).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let there = [
        format!("socketmap:inet:127.0.0.1:{port}:aliases"),
        format!("socketmap:unix:{root}/queue/private/socketmap:aliases"),
    ];
    for key in [
        "alice",
        "ALICE",
        "bob",
        "Bob",
        "space man",
        "nobody",
        "a,b:c",
        "\u{e9}",
        "100%s",
    ] {
        let expected = query(&format!("texthash:{root}/tables/aliases"), key);
        for table in &there {
            let found = query(table, key);
            ensure!(found == expected, "{table} {key}: {found:?} {expected:?}");
        }
    }
    ensure!(query(&there[0], "alice").1 == "alice@example.test\n");
    let both = query(&format!("socketmap:inet:127.0.0.1:{port}:both"), "a");
    ensure!(both.1 == "x,b\n", "{both:?}");
    // A table that is not there, and a map that nobody approved.
    let gone = query(&format!("socketmap:inet:127.0.0.1:{port}:gone"), "a");
    ensure!(
        gone.0 == Some(1) && gone.2.contains("temporary error: table lookup problem"),
        "{gone:?}"
    );
    for map in ["other", &format!("texthash:{root}/tables/aliases")] {
        let refused = query(&format!("socketmap:inet:127.0.0.1:{port}:{map}"), "a");
        ensure!(refused.0 == Some(1), "{refused:?}");
    }
    ensure!(
        postfix
            .log()
            .contains("client 127.0.0.1 asks for a map that there is not: \"other\"")
    );
    Ok(())
}

#[test]
fn nonsense_ends_one_connection_and_is_told_once() -> Result<()> {
    let port = free_port()?;
    let plan = plan(port)
        .parameter("postkeep_socketmap_request_size_limit", "100")
        .parameter("postkeep_socketmap_request_time", "1s")
        .parameter("postkeep_address_client_limit", "20");
    let Some(mut postfix) = plan.start()? else {
        return Ok(());
    };
    let mut witness = connect(port);
    ensure!(ask(&mut witness, "aliases alice")? == "OK alice@example.test");
    for _ in 0..3 {
        ensure!(exchange(connect(port), b"GET / HTTP/1.0\r\n\r\n").is_empty());
        ensure!(exchange(connect(port), b"\x16\x03\x01\x02\x00\x01\x00").is_empty());
        ensure!(exchange(connect(port), b"101:").ends_with(b"PERM request too large,"));
        ensure!(exchange(connect(port), b"9999999999:").ends_with(b"PERM request too large,"));
    }
    let answer = ask(&mut witness, "nonsense")?;
    ensure!(answer.starts_with("PERM expecting a map name"), "{answer}");
    // The rest of a request does not come: its time passes, however the bytes drip.
    let began = Instant::now();
    let mut slow = connect(port);
    for byte in b"50:alia" {
        let _ = slow.write_all(&[*byte]);
        thread::sleep(Duration::from_millis(100));
    }
    ensure!(exchange(slow, b"").is_empty());
    ensure!(began.elapsed() >= Duration::from_millis(900));
    // More connections than one address may have, with and without something to say.
    let flood: Vec<TcpStream> = (0..40).map(|_| connect(port)).collect();
    let turned_away = flood
        .into_iter()
        .filter(|stream| {
            stream
                .set_read_timeout(Some(Duration::from_millis(50)))
                .unwrap();
            matches!((&*stream).read(&mut [0]), Ok(0) | Err(_))
                && stream.peek(&mut [0]).is_ok_and(|count| count == 0)
        })
        .count();
    ensure!(turned_away >= 20, "{turned_away}");
    let answer = ask(&mut witness, "aliases bob")?;
    ensure!(answer == "OK bob@example.test", "{answer}");
    for line in [
        "sends what is no netstring, it is disconnected",
        "sends a request that is too large, it is disconnected; to raise this limit: postkeep_socketmap_request_size_limit",
        "does not send the rest of its request, it is disconnected",
        "connection from 127.0.0.1 closed: this address has 20 connections already",
    ] {
        postfix.wait_for(line, LIMIT, |postfix| Ok(postfix.logged(line) > 0))?;
        ensure!(postfix.logged(line) == 1, "{line}: {}", postfix.log());
    }
    Ok(())
}

#[test]
fn a_table_that_does_not_answer_holds_up_nobody_else() -> Result<()> {
    let port = free_port()?;
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let silent_port = silent.local_addr()?.port();
    let plan = plan(port)
        .parameter(
            "postkeep_socketmap_maps",
            &format!("aliases=texthash:$SCRATCH/tables/aliases silent=tcp:127.0.0.1:{silent_port}"),
        )
        .parameter("postkeep_socketmap_answer_time", "1s");
    let Some(postfix) = plan.start()? else {
        return Ok(());
    };
    let began = Instant::now();
    let mut waiting: Vec<TcpStream> = (0..50).map(|_| connect(port)).collect();
    for stream in &mut waiting {
        // One request waits, the next one is behind it.
        stream.write_all(&[netstring("silent k"), netstring("aliases alice")].concat())?;
    }
    let mut witness = connect(port);
    for _ in 0..100 {
        ensure!(ask(&mut witness, "aliases alice")? == "OK alice@example.test");
    }
    ensure!(
        began.elapsed() < Duration::from_millis(900),
        "the witness waited"
    );
    let both = [
        netstring("TIMEOUT time limit exceeded"),
        netstring("OK alice@example.test"),
    ]
    .concat();
    for mut stream in waiting {
        let mut answer = vec![0; both.len()];
        stream.read_exact(&mut answer)?;
        ensure!(answer == both, "{}", String::from_utf8_lossy(&answer));
    }
    ensure!(postfix.logged("waits for a table that does not answer in time") == 1);
    // A client that sends all and closes its side gets its answers.
    let stream = connect(port);
    (&stream).write_all(&[netstring("silent k"), netstring("aliases alice")].concat())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    ensure!(exchange(stream, b"") == both);
    Ok(())
}

/// Asks over TLS, with socat as the client; what comes back, and what socat says.
fn ask_over_tls(
    port: u16,
    authority: &Path,
    pair: Option<&Pair>,
    request: &[u8],
) -> (String, String) {
    let mut address = format!(
        "OPENSSL:127.0.0.1:{port},commonname=localhost,cafile={}",
        authority.display()
    );
    if let Some(pair) = pair {
        let (certificate, key) = (pair.certificate.display(), pair.key.display());
        address = format!("{address},cert={certificate},key={key}");
    }
    let mut child = Command::new("socat")
        .args(["-t", "5", "-", &address])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(request).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn with_tls(plan: Plan, made: &Certificates) -> Plan {
    let text = |path: &Path| path.display().to_string();
    plan.parameter(
        "postkeep_socketmap_tls_certificate",
        &text(&made.server.certificate),
    )
    .parameter("postkeep_socketmap_tls_key", &text(&made.server.key))
}

#[test]
fn who_is_let_in_is_told_by_certificates() -> Result<()> {
    let directory = Scratch::new("certificates")?;
    let made = Certificates::make(directory.path());
    let port = free_port()?;
    let fingerprint = Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(&made.misnamed.certificate)
        .output()?;
    let fingerprint = String::from_utf8(fingerprint.stdout)?;
    let fingerprint = fingerprint.trim().split('=').nth(1).unwrap();
    let plan = with_tls(plan(port), &made)
        .parameter(
            "postkeep_socketmap_tls_client_ca",
            &made.authority.display().to_string(),
        )
        .parameter(
            "postkeep_socketmap_tls_clients",
            &format!("client.example, sha256:{fingerprint}"),
        )
        .parameter("postkeep_socketmap_handshake_time", "1s");
    let Some(mut postfix) = plan.start()? else {
        return Ok(());
    };
    let requests = [netstring("aliases alice"), netstring("aliases nobody")].concat();
    let answers = "21:OK alice@example.test,9:NOTFOUND ,";
    let ask =
        |authority: &Path, pair: Option<&Pair>| ask_over_tls(port, authority, pair, &requests);
    // By a name in the certificate, and by its fingerprint.
    for pair in [&made.client, &made.misnamed] {
        let (found, errors) = ask(&made.authority, Some(pair));
        ensure!(found == answers, "{found} {errors}");
    }
    // Many requests, more than a record of TLS holds.
    let many = netstring("aliases alice").repeat(20_000);
    let (found, errors) = ask_over_tls(port, &made.authority, Some(&made.client), &many);
    ensure!(found.len() == 20_000 * 25, "{} {errors}", found.len());
    // Signed, and not on the list; not signed by who should; no certificate at all; not asked for by TLS.
    let stranger = made.stranger.with_file_name("stranger.key");
    let stranger = Pair {
        certificate: made.stranger.clone(),
        key: stranger,
    };
    for pair in [Some(&made.machine), Some(&stranger), None] {
        let (found, errors) = ask(&made.authority, pair);
        ensure!(found.is_empty(), "{found}");
        ensure!(errors.contains("alert") || errors.is_empty(), "{errors}");
    }
    ensure!(
        exchange(connect(port), &requests)
            .iter()
            .all(|byte| *byte != b'@')
    );
    // We are not who we say.
    let (found, errors) = ask(&made.stranger, Some(&made.client));
    ensure!(
        found.is_empty() && errors.contains("certificate verify failed"),
        "{errors}"
    );
    // Somebody who says nothing, or a byte now and then, is gone after a second.
    let began = Instant::now();
    let mut slow = connect(port);
    for _ in 0..4 {
        let _ = slow.write_all(&[0x16, 0x03][..1]);
        thread::sleep(Duration::from_millis(100));
    }
    exchange(slow, b"");
    exchange(connect(port), b"");
    ensure!(began.elapsed() < Duration::from_secs(5));
    for line in [
        "TLS handshake with client 127.0.0.1 failed: ",
        "client 127.0.0.1 has not finished its TLS handshake after 1 s",
    ] {
        postfix.wait_for(line, LIMIT, |postfix| Ok(postfix.logged(line) > 0))?;
        ensure!(postfix.logged(line) == 1, "{}", postfix.log());
    }
    // UNIX-domain sockets have no TLS.
    let local = UnixStream::connect(postfix.scratch().join("queue/private/socketmap"))?;
    (&local).write_all(&requests)?;
    local.shutdown(std::net::Shutdown::Write)?;
    ensure!(exchange(local, b"") == answers.as_bytes());
    Ok(())
}

/// Something between a client without TLS and a server with it, as stunnel is; gone when dropped.
struct Tunnel(std::process::Child);

impl Tunnel {
    fn start(socket: &Path, port: u16, authority: &Path, pair: &Pair) -> Self {
        let child = Command::new("socat")
            .arg(format!("UNIX-LISTEN:{},fork,mode=666", socket.display()))
            .arg(format!(
                "OPENSSL:127.0.0.1:{port},commonname=localhost,cafile={},cert={},key={}",
                authority.display(),
                pair.certificate.display(),
                pair.key.display()
            ))
            .spawn()
            .unwrap();
        let deadline = Instant::now() + LIMIT;
        while !socket.exists() {
            assert!(Instant::now() < deadline, "no tunnel");
            thread::sleep(Duration::from_millis(10));
        }
        Self(child)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn rewritten(postfix: &PrivatePostfix, address: &str, table: &str) -> String {
    let output = postfix.command("postmap", &["-q", address, table]).unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Where exim is, with its libraries; `None`, after saying so, when it is not there.
fn exim(configuration: &Path) -> Option<Command> {
    let root = Path::new("/opt/postkeep-test-exim");
    let program = root.join("usr/sbin/exim4");
    if !program.exists() {
        postkeep_testkit::program::skip("no exim: scripts/install-test-deps.sh unpacks one");
        return None;
    }
    let mut command = Command::new(program);
    command
        .env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"))
        .arg("-C")
        .arg(configuration)
        .arg("-be");
    Some(command)
}

#[test]
fn two_postfix_and_one_exim_share_a_server_over_tls() -> Result<()> {
    let directory = Scratch::new("certificates")?;
    let made = Certificates::make(directory.path());
    let port = free_port()?;
    let Some(server) = with_tls(plan(port), &made).start()? else {
        return Ok(());
    };
    let mut clients = Vec::new();
    for _ in 0..2 {
        let Some(client) = Plan::new(Implementation::Postfix).start()? else {
            return Ok(());
        };
        let socket = client.scratch().join("tunnel");
        let tunnel = Tunnel::start(&socket, port, &made.authority, &made.client);
        let table = format!("socketmap:unix:{}:aliases", socket.display());
        clients.push((client, tunnel, table));
    }
    for _ in 0..3 {
        for (client, _, table) in &clients {
            let found = rewritten(client, "bob", table);
            ensure!(found == "bob@example.test\n", "{found}");
            ensure!(rewritten(client, "nobody", table).is_empty());
        }
    }
    let spool = directory.directory("spool", 0o755)?;
    let configuration = directory.file(
        "exim.conf",
        &format!(
            "spool_directory = {0}\nlog_file_path = {0}/%slog\n",
            spool.display()
        ),
    )?;
    if let Some(mut exim) = exim(&configuration) {
        // Its own TLS here ends it (4.96 with GnuTLS), so it takes what stands between, too.
        let socket = directory.path().join("tunnel");
        let _tunnel = Tunnel::start(&socket, port, &made.authority, &made.client);
        let socket = socket.display();
        let request = |key: &str| {
            format!(
                "${{readsocket{{{socket}}}{{${{strlen:aliases {key}}}:aliases {key},}}{{timeout=5s}}}}"
            )
        };
        let output = exim.arg(request("alice")).arg(request("nobody")).output()?;
        let found = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            found == "21:OK alice@example.test,\n9:NOTFOUND ,\n",
            "{found} {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    ensure!(server.logged("warning:") == 0, "{}", server.log());
    Ok(())
}

#[test]
fn our_own_table_needs_nothing_between() -> Result<()> {
    let directory = Scratch::new("certificates")?;
    let made = Certificates::make(directory.path());
    let port = free_port()?;
    let authority = made.authority.display().to_string();
    let server = with_tls(plan(port), &made)
        .parameter("postkeep_socketmap_tls_client_ca", &authority)
        .parameter("postkeep_socketmap_tls_clients", "client.example");
    let Some(_server) = server.start()? else {
        return Ok(());
    };
    let client = |pair: Option<&Pair>, authority: &Path| {
        let mut plan = Plan::new(Implementation::Postkeep)
            .parameter(
                "proxy_read_maps",
                &format!("proxy:socketmap:tls:localhost:{port}:aliases proxy:socketmap:tls:127.0.0.1:{port}:aliases"),
            )
            .parameter("socketmap_tls_CAfile", &authority.display().to_string());
        if let Some(pair) = pair {
            let (certificate, key) = (pair.certificate.display(), pair.key.display());
            plan = plan
                .parameter("socketmap_tls_cert_file", &certificate.to_string())
                .parameter("socketmap_tls_key_file", &key.to_string());
        }
        plan.start()
    };
    let table = format!("proxy:socketmap:tls:localhost:{port}:aliases");
    let Some(good) = client(Some(&made.client), &made.authority)? else {
        return Ok(());
    };
    for name in ["localhost", "127.0.0.1"] {
        let table = format!("proxy:socketmap:tls:{name}:{port}:aliases");
        let found = rewritten(&good, "bob", &table);
        ensure!(found == "bob@example.test\n", "{found} {}", good.log());
    }
    ensure!(rewritten(&good, "nobody", &table).is_empty());
    // Who is not let in, and who does not believe the server, gets an error and not "not found".
    for (pair, authority) in [
        (None, &made.authority),
        (Some(&made.machine), &made.authority),
        (Some(&made.client), &made.stranger),
    ] {
        let Some(bad) = client(pair, authority)? else {
            return Ok(());
        };
        let output = bad.command("postmap", &["-q", "bob", &table])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.stdout.is_empty() && said.contains("query error"),
            "{said}"
        );
    }
    Ok(())
}

#[test]
fn what_is_counted_is_in_the_document() -> Result<()> {
    const DOCUMENT: &str = include_str!("../../docs/metrics.md");
    let port = free_port()?;
    let Some(postfix) = plan(port).start()? else {
        return Ok(());
    };
    let socket = postfix.scratch().join("queue/private/socketmap");
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(&[netstring("aliases alice"), netstring("other x")].concat())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    exchange(stream, b"");
    let metrics = postfix.scratch().join("queue/private/socketmap.metrics");
    let page = exchange(
        UnixStream::connect(metrics)?,
        b"GET /metrics HTTP/1.0\r\n\r\n",
    );
    let page = String::from_utf8(page)?;
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let name = help.split(' ').next().unwrap();
            ensure!(DOCUMENT.contains(&format!("`{name}`")), "{name}");
        }
    }
    for line in [
        "postkeep_socketmap_maps{service=\"socketmap\"} 3",
        "postkeep_socketmap_replies_total{service=\"socketmap\",reply=\"OK\"} 1",
        "postkeep_socketmap_replies_total{service=\"socketmap\",reply=\"PERM\"} 1",
        "postkeep_socketmap_trouble_total{service=\"socketmap\",trouble=\"no_map\"} 1",
    ] {
        ensure!(page.contains(line), "{line}: {page}");
    }
    ensure!(!page.contains("alice"));
    Ok(())
}
