//! Servers that are away or answer as no memcached does, and files with faults.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use postkeep_interop::postmap::{Sides, write_old};
use postkeep_interop::servers::{Server, read_until};
use rustix::net::sockopt::set_socket_linger;

use super::{Place, Told, both};

#[test]
fn a_server_that_is_away() {
    let Some(mut place) = Place::new() else {
        return;
    };
    let with_backup = place.table("backup = static:x\ntimeout = 1\nmax_try = 1\n");
    let alone = place.table("timeout = 1\n");
    let one = |place: &Place, key, table| place.ask(&["postmap", "-q", key, table]);
    // Both tables at once.
    let ask = |place: &Place| {
        thread::scope(|scope| {
            let other = scope.spawn(|| one(place, "a", &with_backup));
            [one(place, "b", &alone), other.join().unwrap()]
        })
    };
    assert_eq!(ask(&place), [Some(1), Some(0)]);
    for server in &place.servers {
        server.process.suspend();
    }
    assert_eq!(ask(&place), [Some(1), Some(0)]);
    for server in &mut place.servers {
        server.process.resume();
        server.process.kill();
    }
    assert_eq!(ask(&place), [Some(1), Some(0)]);
    for server in &mut place.servers {
        server.restart();
    }
    assert_eq!(one(&place, "a", &alone), Some(1));
    assert_eq!(ask(&place), [Some(1), Some(0)]);
    // What the backup said is in the server now.
    assert_eq!(one(&place, "a", &alone), Some(0));
}

/// Answers of no memcached, to each request the same.
#[test]
fn answers_that_are_none() {
    let Some(sides) = Sides::new() else { return };
    let answers: [&[u8]; 24] = [
        b"END\n",
        b"END\r\nmore",
        b"end\r\n",
        b"\r\n",
        b"ERROR\r\n",
        b"SERVER_ERROR out of memory, and some more words behind it\r\n",
        b"VALUE k 0 1\r\nx\r\nEND\r\n",
        b"VALUE k 0 1 99\r\nx\r\nEND\r\n",
        b"VALUE  other  9  +1 \r\nx\r\nEND\r\n",
        b"VALUE k 0 1x\r\nx\r\nEND\r\n",
        b"VALUE k 0 1\nx\r\nEND\n",
        b"VALUE k 0 1\r\nx\r\nEN\r\n",
        b"VALUE k 0 1\r\nx\r\n",
        b"VALUE k 0 1\r\nx\n",
        b"VALUE k 0 1\r\nxx\r\nEND\r\n",
        b"VALUE k 0 5\r\nx\r\nEND\r\n",
        b"VALUE k 0\r\nx\r\nEND\r\n",
        b"VALUE k 0 -1\r\nx\r\nEND\r\n",
        b"VALUE k 0 10241\r\nx\r\nEND\r\n",
        b"VALUE k 0 99999999999999999999999\r\nx\r\nEND\r\n",
        b"STORED\r\n",
        b"DELETED\r\n",
        b"NOT_FOUND\r\n",
        b"",
    ];
    let long = [&[b'x'; 1100][..], b"\r\n"].concat();
    thread::scope(|scope| {
        for (number, answer) in answers.into_iter().chain([&long[..]]).enumerate() {
            let sides = &sides;
            let answer = answer.to_vec();
            scope.spawn(move || {
                let shown = answer[..answer.len().min(60)].escape_ascii().to_string();
                // One answer for each connection.
                let server = Server::start(move |mut client| {
                    let _ = read_until(&mut client, b'\n');
                    let _ = client.write_all(&answer);
                });
                let file = sides.root().join(format!("a{number}.cf"));
                let text = format!("memcache = inet:127.0.0.1:{}\nmax_try = 2\n", server.port);
                write_old(&file, text.as_bytes());
                compare(sides, &format!("memcache:{}", file.display()), &shown);
            });
        }
    });
}

/// Asks, stores and deletes at once.
fn compare(sides: &Sides, table: &str, note: &str) {
    let commands: [(&[&str], &[u8]); 3] = [
        (&["postmap", "-q", "k", table], b""),
        (&["postmap", "-i", table], b"k v\n"),
        (&["postmap", "-d", "k", table], b""),
    ];
    thread::scope(|scope| {
        for (words, input) in commands {
            scope.spawn(move || {
                let [real, ours] = both(sides, words, input);
                assert_eq!(
                    real, ours,
                    "{words:?} {note}: the first is the installed one"
                );
            });
        }
    });
}

/// How a connection ends in the middle of an answer.
#[derive(Clone, Copy, Debug)]
enum Cut {
    End,
    Reset,
    Silence,
}

fn cut(mut client: TcpStream, answer: &[u8], how: Cut) {
    let _ = read_until(&mut client, b'\n');
    let _ = client.write_all(answer);
    match how {
        Cut::End => {}
        // After what was sent has arrived, as it would be thrown away.
        Cut::Reset => {
            thread::sleep(Duration::from_millis(100));
            set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        }
        Cut::Silence => {
            let _ = client.read_to_end(&mut Vec::new());
        }
    }
}

#[test]
fn answers_that_break_off() {
    let Some(place) = Place::new() else { return };
    let whole = "VALUE k 0 5\r\nabcde\r\nEN";
    let answers = [
        "VALUE k 0",
        "VALUE k 0 5\r\nab",
        "VALUE k 0 5\r\nabcde",
        whole,
        "EN",
        "STORED",
    ];
    let number = AtomicUsize::new(0);
    let file = |ports: [u16; 2], more: &str| {
        let text =
            ports.map(|port| format!("memcache = inet:127.0.0.1:{port}\ntimeout = 1\n{more}"));
        let number = number.fetch_add(1, Ordering::Relaxed);
        let file = place.file(
            &format!("c{number}.cf"),
            &text.each_ref().map(String::as_str),
        );
        format!("memcache:{file}")
    };
    let find = |table: &str| both(&place.sides, &["postmap", "-q", "k", table], b"");
    let exits = |[real, ours]: [Told; 2]| [real.0, ours.0].map(Option::unwrap);
    thread::scope(|scope| {
        for answer in answers {
            for how in [Cut::End, Cut::Reset, Cut::Silence] {
                let (file, sides) = (&file, &place.sides);
                let note = format!("{answer:?} {how:?}");
                // The installed one takes a value also when the end of the answer is all that does not come in time.
                let silent = matches!(how, Cut::Silence);
                let late = silent && answer == whole;
                let always = Server::start(move |client| cut(client, answer.as_bytes(), how)).port;
                let noted = note.clone();
                scope.spawn(move || {
                    let table = file([always; 2], "");
                    if silent {
                        assert_eq!(exits(find(&table)), [i32::from(!late), 1], "{noted}");
                    } else {
                        compare(sides, &table, &noted);
                    }
                });
                let noted = note.clone();
                scope.spawn(move || {
                    let [real, ours] = find(&file([always; 2], "backup = static:b\nmax_try = 1\n"));
                    if silent {
                        let values = [real.1, ours.1];
                        assert_eq!(
                            values,
                            [if late { "abcde\\n" } else { "b\\n" }, "b\\n"],
                            "{noted}"
                        );
                    } else {
                        assert_eq!(real, ours, "{noted} with a backup");
                    }
                });
                // The next connection is better.
                scope.spawn(move || {
                    let ports = [(); 2].map(|()| {
                        let first = AtomicBool::new(true);
                        let server = Server::start(move |mut client| {
                            if first.swap(false, Ordering::SeqCst) {
                                return cut(client, answer.as_bytes(), how);
                            }
                            while read_until(&mut client, b'\n').is_some() {
                                let _ = client.write_all(b"VALUE k 0 1\r\nx\r\nEND\r\n");
                            }
                        });
                        server.port
                    });
                    let told = find(&file(ports, ""));
                    if late {
                        assert_eq!(exits(told), [0, 0], "{note} at first");
                    } else {
                        assert_eq!(told[0], told[1], "{note} at first");
                        assert_eq!(told[0].0, Some(0), "{note} at first: {told:?}");
                    }
                });
            }
        }
    });
}

#[test]
fn faults_in_the_configuration() {
    let Some(sides) = Sides::new() else { return };
    let texts = [
        "memcache = 127.0.0.1:11299\n",
        "memcache = inet\n",
        "memcache = inet:\n",
        "memcache = tcp:h:1\n",
        "memcache = inet:127.0.0.1\n",
        "memcache = inet:127.0.0.1:1x\n",
        "max_try = 0\n",
        "retry_pause = 0\n",
        "ttl = 1h\n",
        "flags = x\n",
        "timeout = 2s\n",
        "line_size_limit = 0\n",
        "data_size_limit = 0\n",
        "key_format = %x\n",
        "domain = /no/such/list\n",
        "memcache\n",
        "memcache = unix:/no/such/socket\n",
        "memcache = inet:127.0.0.1:1\n",
        "memcache = inet:no.such.host.invalid:1\n",
        "memcache = inet:127.0.0.1:no-such-service\n",
    ];
    thread::scope(|scope| {
        for (number, text) in texts.into_iter().enumerate() {
            let sides = &sides;
            scope.spawn(move || {
                let file = sides.root().join(format!("f{number}.cf"));
                write_old(&file, text.as_bytes());
                let table = format!("memcache:{}", file.display());
                let words = ["postmap", "-q", "k", &table];
                let [real, ours] = both(sides, &words, b"").map(|(exit, stdout, mut lines)| {
                    // Ours says which line of the file it is first.
                    lines.retain(|line| !line.contains(": expecting "));
                    (exit, stdout, lines)
                });
                assert_eq!(real, ours, "{text}: the first is the installed one");
            });
        }
    });
}
