//! The installed postmap against ours, on `mysql:` tables: one server for both, with good answers, faults of statements
//! and configurations, servers that are not there, and TLS; then what only ours is asked.
//!
//! What differs on purpose is asked of ours alone: a server without TLS, answers that are too long, servers that do
//! not answer.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::thread;
use std::time::Duration;

use postkeep_interop::postmap::{Outcome, Random, Sides, write_old};
use postkeep_interop::servers::mariadb::MariaDb;
use postkeep_interop::servers::{Server, told};
use postkeep_testkit::private_postfix::free_port;

/// A server with users and tables, and both postmaps.
struct Pair {
    sides: Sides,
    server: MariaDb,
    files: usize,
}

const USERS: &str = "
CREATE USER u IDENTIFIED BY 'p';
GRANT ALL ON mail.* TO u;
USE mail;
CREATE TABLE t (n INT AUTO_INCREMENT PRIMARY KEY, k VARCHAR(200) COLLATE utf8mb4_bin, v VARCHAR(300), w VARCHAR(300));
INSERT INTO t (k, v, w) VALUES
 ('one', 'value', NULL), ('two', 'a', 'b'), ('two', 'c', NULL), ('empty', '', NULL), ('null', NULL, NULL),
 ('mixed', '', 'x'), ('mixed', 'y', ''), ('blank', ' ', NULL), ('comma', 'a,b', 'c'), ('u@d.example', 'box@there', 'plain'),
 ('u@d.example', '@nobody', 'x@'), ('u@d.example', 'last@x@y', NULL), ('\u{e9}', '\u{fc}', '\u{1f600}'),
 ('o''x', 'quote', NULL), ('back\\\\slash', 'slash', NULL), ('a%b', 'percent', NULL), ('axb', 'x', NULL),
 ('many', '1', '2'), ('many', '3', '4'), ('many', '5', '6'), ('a@b', 'one', 'two'), ('@b', 'all', NULL);
DELIMITER //
CREATE PROCEDURE one_set(key_ TEXT CHARACTER SET utf8mb4) BEGIN SELECT v FROM t WHERE k = key_; END//
CREATE PROCEDURE two_sets(key_ TEXT) BEGIN SELECT v FROM t WHERE k = key_; SELECT w FROM t WHERE k = key_; END//
CREATE PROCEDURE no_set(key_ TEXT) BEGIN SET @x = key_; END//
CREATE PROCEDURE late_fault(key_ TEXT) BEGIN SELECT v FROM t WHERE k = key_; SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'too late'; END//
CREATE FUNCTION fails(key_ TEXT) RETURNS TEXT DETERMINISTIC BEGIN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no \u{e9}'; RETURN ''; END//
DELIMITER ;
";

impl Pair {
    fn start(options: &[&str]) -> Option<Self> {
        Self::with(MariaDb::start, options)
    }

    fn with(start: impl Fn(&[&str]) -> Option<MariaDb>, options: &[&str]) -> Option<Self> {
        let sides = Sides::new()?;
        let server = start(options)?;
        server.execute(USERS);
        Some(Self {
            sides,
            server,
            files: 0,
        })
    }

    /// Writes a configuration; the name of its table.
    fn table(&mut self, text: &str) -> String {
        self.files += 1;
        let file = self.sides.root().join(format!("t{}.cf", self.files));
        write_old(&file, text.as_bytes());
        format!("mysql:{}", file.display())
    }

    /// Where the server is, and who asks it.
    fn place(&self) -> String {
        format!(
            "hosts = 127.0.0.1:{}\nuser = u\npassword = p\ndbname = mail\n",
            self.server.port
        )
    }

    /// A table of this server.
    fn good(&mut self, rest: &str) -> String {
        self.table(&format!("{}{rest}", self.place()))
    }

    fn run(&self, programs: &Path, table: &str, key: &str) -> Told {
        let words = ["postmap", "-q", key, table];
        normal(&self.sides.run(programs, self.sides.root(), &words, b""))
    }

    fn ours(&self, table: &str, key: &str) -> Told {
        self.run(&self.sides.ours, table, key)
    }

    fn same(&self, cases: &[(String, &str)]) {
        for some in cases.chunks(32) {
            thread::scope(|scope| {
                for (table, key) in some {
                    scope.spawn(move || {
                        let real = self.run(&self.sides.real, table, key);
                        let ours = self.ours(table, key);
                        let file = table.strip_prefix("mysql:").unwrap();
                        let text = std::fs::read_to_string(file).unwrap_or_default();
                        assert_eq!(real, ours, "real, ours: {key:?} in\n{text}");
                    });
                }
            });
        }
    }

    /// Asks both for all keys at once.
    fn same_keys(&self, table: &str, options: &str, keys: &[u8]) {
        let mut words = vec!["postmap"];
        words.extend(Some(options).filter(|options| !options.is_empty()));
        words.extend(["-q", "-", table]);
        let root = self.sides.root();
        self.sides
            .compare([root, root], &words, keys, false, "keys");
    }
}

type Told = (Option<i32>, Vec<u8>, Vec<String>);

/// The client library tells the number of "in progress" when a connection is refused.
fn normal(outcome: &Outcome) -> Told {
    let (exit, stdout, lines) = told(outcome);
    let lines = lines
        .iter()
        // Where a fault is, which only ours says.
        .filter(|line| !line.contains(": expecting "))
        .map(|line| line.replace("' (115)", "' (111)"));
    (exit, stdout, lines.collect())
}

const SELECT: &str = "query = SELECT v, w FROM t WHERE k = '%s' ORDER BY n\n";

#[test]
fn answers() {
    let Some(mut pair) = Pair::start(&[]) else {
        return;
    };
    let keys = "one\ntwo\nempty\nnull\nmixed\nblank\ncomma\nu@d.example\n\u{e9}\no'x\nback\\slash\na%b\nmany\nnothing\nA@B\n@b\nONE\n@\nx@\n";
    let mut tables = Vec::new();
    for rest in [
        SELECT,
        "query = SELECT v, w FROM t WHERE k = \"%s\" ORDER BY n\n",
        "query = SELECT v FROM t WHERE k LIKE '%s' ORDER BY n\n",
        "query = SELECT n FROM t WHERE k = '%u@%d'\n",
        "query = SELECT '%1', '%2' FROM t WHERE k = '%s'\n",
        "query = SELECT 1.50, 1e3, DATE '2020-01-02', TRUE, X'6162', NULL FROM t WHERE k = '%s'\n",
        "table = t\nselect_field = v\nwhere_field = k\n",
        "table = t\nselect_field = v, w\nwhere_field = k\nadditional_conditions = AND w IS NOT NULL\n",
        "query = CALL one_set('%s')\n",
        "query = UPDATE t SET w = w WHERE k = '%s' AND FALSE\nrequire_result_set = no\n",
        "query = CALL no_set('%s')\nrequire_result_set = no\n",
    ] {
        for more in [
            "",
            "result_format = <%s>\n",
            "result_format = %u of %d for %U\n",
            "expansion_limit = 20\n",
            "domain = d.example, B\n",
            "domain = !b static:all\nresult_format = %S=%s\n",
        ] {
            tables.push(pair.good(&format!("{rest}{more}")));
        }
    }
    for some in tables.chunks(16) {
        thread::scope(|scope| {
            for table in some {
                scope.spawn(|| pair.same_keys(table, "", keys.as_bytes()));
            }
        });
    }
    let select = pair.good(SELECT);
    for options in ["-f", "-u", "-fu", "-N", "-n"] {
        pair.same_keys(&select, options, keys.as_bytes());
    }
    let mut cases = Vec::new();
    for (rest, key) in [
        (
            "query = SELECT v, w FROM t WHERE k = '%s'\nexpansion_limit = 5\n",
            "many",
        ),
        (
            "query = SELECT v, w FROM t WHERE k = '%s'\nexpansion_limit = 1\n",
            "two",
        ),
        ("query = CALL two_sets('%s')\n", "one"),
        ("query = CALL no_set('%s')\n", "one"),
        ("query = CALL late_fault('%s')\n", "one"),
        ("query = SELECT fails('%s')\n", "one"),
        (
            "query = UPDATE t SET w = w WHERE k = '%s' AND FALSE\n",
            "one",
        ),
        ("query = SELEC '%s'\n", "one"),
        ("query = SELECT v FROM nowhere WHERE k = '%s'\n", "one"),
        ("query = SELECT v FROM mysql.user WHERE k = '%s'\n", "one"),
        ("query = SELECT nothing FROM t WHERE k = '%s'\n", "one"),
        ("query = SELECT %s\n", "one"),
        ("query = SELECT '%s\n", "one"),
        (
            "query = SELECT (SELECT v FROM t) FROM t WHERE k = '%s'\n",
            "one",
        ),
        (
            "query = KILL CONNECTION_ID()\nresult_format = %s%S\n",
            "one",
        ),
        (
            "query = SELECT v FROM t WHERE k = '%s'\ndomain = fail:x\n",
            "u@x",
        ),
        ("query = SELECT X'ff'\n", "one"),
        ("query = SELECT REPEAT('x', 1000000)\n", "one"),
        ("query = SELECT v FROM t WHERE k = '%s'\n", ""),
    ] {
        cases.push((pair.good(rest), key));
    }
    cases.retain(|(_, key)| !key.is_empty());
    pair.same(&cases);
    for words in [
        ["postmap", "-d", "k", &select],
        ["postmap", "-s", &select, &select],
    ] {
        let root = pair.sides.root();
        pair.sides
            .compare([root, root], &words, b"", false, "operations");
    }
}

#[test]
fn keys_are_data() {
    let Some(mut pair) = Pair::start(&[]) else {
        return;
    };
    let mut keys = Vec::new();
    for key in [
        "'",
        "\"",
        "\\",
        "\\'",
        "\\\\'",
        "''",
        "' OR '1'='1",
        "\" OR \"1\"=\"1",
        "'; DROP TABLE t; -- ",
        "x' UNION SELECT v FROM t -- @d.example",
        "%s%u%d%1",
        "_%",
        "a\tb",
        "\u{1}\u{1a}\u{7f}",
        "\u{ff07} OR \u{2019}1",
        "/*!50000 x */",
        "a#b",
    ] {
        keys.extend([key.as_bytes(), b"\n"].concat());
    }
    let mut random = Random(0x5eed_0012);
    let pieces: [&[u8]; 16] = [
        b"'",
        b"\"",
        b"\\",
        b"a",
        b"@",
        b".",
        b"%",
        b"_",
        b"\xc3\xa9",
        b"\xf0\x9f\x98\x80",
        b"--",
        b";",
        b"`",
        b" ",
        b"\x1a",
        b"N",
    ];
    for _ in 0..300 {
        let count = 1 + random.below(8);
        keys.extend(random.join(&pieces, count));
        keys.push(b'\n');
    }
    let queries = [
        "query = SELECT HEX('%s')\n",
        "query = SELECT HEX(\"%s\")\n",
        "query = SELECT HEX('%u'), HEX(\"%d\")\n",
        "query = SELECT HEX('%2'), HEX('%1')\n",
    ];
    for query in queries {
        let table = pair.good(query);
        for options in ["", "-f"] {
            pair.same_keys(&table, options, &keys);
        }
    }
    // Whole keys as they are, against what the server says they are.
    let table = pair.good(&format!("{}result_format = %s\n", queries[0]));
    for key in ["a\nb\r'", "\u{1a}'\"\\", "'\n"] {
        let (exit, stdout, _) = pair.ours(&table, key);
        let hex: Vec<_> = key
            .to_ascii_lowercase()
            .bytes()
            .map(|byte| format!("{byte:02X}"))
            .collect();
        let hex = hex.concat();
        assert_eq!((exit, stdout), (Some(0), format!("{hex}\n").into_bytes()));
    }
    // A server that takes a backslash for a letter.
    pair.server
        .execute("SET GLOBAL sql_mode = 'NO_BACKSLASH_ESCAPES'");
    for query in [queries[0], "query = SELECT HEX('%u')\n"] {
        let table = pair.good(query);
        pair.same_keys(&table, "", &keys);
    }
    let table = pair.good(queries[1]);
    let (exit, _, lines) = pair.ours(&table, "a\"b");
    assert_eq!(exit, Some(1));
    assert_eq!(
        lines[0],
        format!(
            "postmap: warning: dict_mysql: host (127.0.0.1:{}) cannot escape input string: >a\"b<",
            pair.server.port
        )
    );
}

#[test]
fn character_sets() {
    let Some(mut pair) = Pair::start(&[]) else {
        return;
    };
    let options = pair.sides.root().join("my.cnf");
    let text =
        "[client]\ndefault-character-set = latin1\n[other]\ndefault-character-set = \"utf8mb4\"\n";
    std::fs::write(&options, text).unwrap();
    let options = format!("option_file = {}\n", options.display());
    let keys = "one\n\u{e9}\nz\u{e9}\n";
    for group in ["", "option_group = other\n", "option_group =\n"] {
        for query in [
            SELECT,
            "query = SELECT @@character_set_connection, HEX('%s')\n",
        ] {
            let table = pair.good(&format!("{query}{options}{group}"));
            pair.same_keys(&table, "", keys.as_bytes());
        }
    }
    // Ours from here: the key `charset` is younger than the installed release.
    let latin = pair.good("query = SELECT @@character_set_client, HEX('%s')\ncharset = latin1\n");
    let told = pair.ours(&latin, "\u{e9}");
    assert_eq!(told.1, b"latin1,C3A9\n");
    let mixed = pair.good("query = SELECT @@character_set_client, HEX('%s')\ncharset = gbk\n");
    assert_eq!(pair.ours(&mixed, "a'b\\").1, b"gbk,6127625C\n");
    assert_eq!(pair.ours(&mixed, "\u{e9}'"), (Some(1), vec![], vec![]));
    let unknown = pair.good("query = SELECT 1\ncharset = klingon\n");
    let (exit, _, lines) = pair.ours(&unknown, "a");
    assert_eq!(exit, Some(1));
    assert_eq!(
        lines[0],
        "postmap: warning: dict_mysql: mysql_set_character_set 'klingon' failed: Unknown character set: 'klingon'"
    );
}

#[test]
fn configurations() {
    let Some(mut pair) = Pair::start(&[]) else {
        return;
    };
    let mut cases = Vec::new();
    for text in [
        "",
        "dbname =\n",
        "dbname = d\n",
        "dbname = d\ntable = t\n",
        "dbname = d\ntable = t\nselect_field = s\n",
        "dbname = d\nselect_field = s\nwhere_field = w\n",
        "dbname = d\nquery =\nresult_format =\n",
        "dbname = d\nquery = x\nresult_format = %x\n",
        "dbname = d\nquery = %0\n",
        "dbname = d\nquery = x%\n",
        "dbname = d\nquery = x\nexpansion_limit = x\n",
        "dbname = d\nquery = x\nexpansion_limit = 1x\nresult_format =\n",
        "dbname = d\nquery = x\nexpansion_limit = 1x\ntls_verify_cert = 1\n",
        "dbname = d\nquery = x\nexpansion_limit = 1x\nrequire_result_set = 1\n",
        "dbname = d\nquery = x\nrequire_result_set = maybe\n",
        "dbname = d\nquery = x\nrequire_result_set = maybe\ntls_verify_cert = 1\n",
        "dbname = d\nquery = x\ntls_verify_cert = 1\nresult_format =\n",
        "dbname = d\nquery = %x\ntls_verify_cert = 1\n",
        "dbname = d\nquery = x\ndomain = /no/such/list\n",
        "dbname = d\nquery = x\ndomain = /no/such/list\nhosts = h:nosuch\n",
        "dbname = d\nquery = x\nhosts = h:nosuch\n",
        "dbname = d\nquery = x\nhosts = inet:h:\n",
        "dbname = d\nquery = x\nhosts = [::1]:nosuch\n",
        "dbname\n",
    ] {
        cases.push((pair.table(text), "k"));
    }
    cases.push(("mysql:/no/such/file".to_owned(), "k"));
    pair.same(&cases);
    // main.cf, with expressions in it.
    let file = pair.sides.root().join("cfg/main.cf");
    let text = std::fs::read_to_string(&file).unwrap();
    let more = format!(
        "m_hosts = 127.0.0.1:$port\nport = {}\nm_user = u\nm_password = p\nm_dbname = mail\n\
         m_query = SELECT v FROM t WHERE k = '%s' OR k = '$$'\nbad_dbname = d\nbad_query = x\nbad_expansion_limit = x\n",
        pair.server.port
    );
    write_old(&file, [text, more].concat().as_bytes());
    pair.same(&["m", "bad", "none"].map(|name| (format!("mysql:{name}"), "one")));
}

#[test]
fn servers_that_fail() {
    let Some(mut pair) = Pair::start(&[]) else {
        return;
    };
    let dead = free_port().unwrap();
    let (port, socket) = (pair.server.port, pair.server.socket.display().to_string());
    let rest = format!("user = u\npassword = p\ndbname = mail\n{SELECT}");
    let table =
        |pair: &mut Pair, hosts: &str, rest: &str| pair.table(&format!("hosts = {hosts}\n{rest}"));
    let mut cases = Vec::new();
    for hosts in [
        format!("127.0.0.1:{dead}"),
        format!("inet:127.0.0.1:{dead}"),
        format!("127.0.0.1:{dead} unix:{socket}"),
        format!("inet:127.0.0.1:{port}, unix:/no/such/socket"),
        "unix:/no/such/socket".to_owned(),
        format!("unix:{socket}"),
        format!("inet:no.such.host.invalid:{port}"),
    ] {
        for key in ["one", "nothing"] {
            cases.push((table(&mut pair, &hosts, &rest), key));
        }
    }
    let here = format!("127.0.0.1:{port}");
    for login in [
        "user = u\npassword = wrong\ndbname = mail\n",
        "user = u\ndbname = mail\n",
        "user = nobody\npassword = p\ndbname = mail\n",
        "user = u\npassword = p\ndbname = nowhere\n",
    ] {
        cases.push((table(&mut pair, &here, &format!("{login}{SELECT}")), "one"));
    }
    // Other ways to prove a password, and two in a row.
    pair.server.execute(
        "INSTALL SONAME 'auth_ed25519';
         CREATE USER ed IDENTIFIED VIA ed25519 USING PASSWORD('p'); GRANT ALL ON mail.* TO ed;
         CREATE USER either IDENTIFIED VIA unix_socket OR ed25519 USING PASSWORD('p') OR mysql_native_password USING PASSWORD('q');
         GRANT ALL ON mail.* TO either; CREATE USER open_; GRANT ALL ON mail.* TO open_;",
    );
    for login in [
        "user = ed\npassword = p\n",
        "user = ed\npassword = q\n",
        "user = ed\n",
        "user = either\npassword = p\n",
        "user = either\npassword = q\n",
        "user = either\npassword = r\n",
        "user = open_\n",
        "user = open_\npassword = p\n",
    ] {
        for place in [&here, &format!("unix:{socket}")] {
            let rest = format!("{login}dbname = mail\n{SELECT}");
            cases.push((table(&mut pair, place, &rest), "one"));
        }
    }
    pair.same(&cases);
    // A password in the option file; there the port, too.
    let options = pair.sides.root().join("my.cnf");
    std::fs::write(
        &options,
        format!("[client]\nuser=u\npassword=p\n[x]\nport={port}\n"),
    )
    .unwrap();
    let more = format!(
        "option_file = {}\noption_group = x\ndbname = mail\n{SELECT}",
        options.display()
    );
    let with_options = table(&mut pair, "127.0.0.1", &more);
    assert_eq!(pair.ours(&with_options, "one").1, b"value\n");
    pair.server.stop();
    let stopped = table(&mut pair, &here, &rest);
    pair.same(&[(stopped.clone(), "one")]);
    pair.server.restart();
    pair.same(&[(stopped.clone(), "one")]);
    // It accepts, and says nothing.
    pair.server.process().suspend();
    let quick = format!("{rest}connect_timeout = 300ms\n");
    let silent = table(&mut pair, &here, &quick);
    let (exit, _, lines) = pair.ours(&silent, "one");
    assert_eq!(exit, Some(1));
    assert_eq!(
        lines[0],
        format!("postmap: warning: connect to mysql server {here}: Connection timed out")
    );
    pair.server.process().resume();
    let slow = table(
        &mut pair,
        &here,
        &rest.replace("SELECT", "SELECT SLEEP(20),"),
    );
    let slow = slow.strip_prefix("mysql:").unwrap();
    let mut text = std::fs::read_to_string(slow).unwrap();
    text.push_str("answer_timeout = 300ms\n");
    write_old(slow.as_ref(), text.as_bytes());
    let (exit, _, lines) = pair.ours(&format!("mysql:{slow}"), "one");
    assert_eq!(exit, Some(1));
    assert_eq!(
        lines[0],
        format!("postmap: warning: mysql:{slow}: query failed: no answer from {here} within 300ms")
    );
    // Killed in the middle of a statement.
    let slow = table(
        &mut pair,
        &here,
        &rest.replace("SELECT", "SELECT SLEEP(20),"),
    );
    let words = ["postmap", "-q", "one", &slow];
    let sides = &pair.sides;
    let server = &mut pair.server;
    let outcome = thread::scope(|scope| {
        let asked = scope.spawn(|| sides.run(&sides.ours, sides.root(), &words, b""));
        while server.execute(
            "SELECT COUNT(*) FROM information_schema.processlist WHERE state = 'User sleep'",
        ) != "1\n"
        {
            thread::sleep(Duration::from_millis(20));
        }
        server.kill();
        asked.join().unwrap()
    });
    let (exit, _, lines) = told(&outcome);
    assert_eq!(exit, Some(1));
    // By then it may have a socket that nobody serves any more.
    let start = format!("postmap: warning: connect to mysql server {here}: ");
    let rest = lines[0].strip_prefix(&start).unwrap();
    assert!(
        rest.starts_with("Can't connect") || rest.starts_with("Lost connection"),
        "{lines:?}"
    );
}

#[test]
fn answers_that_are_too_long() {
    let Some(mut pair) = Pair::start(&[]) else {
        return;
    };
    for (query, why) in [
        (
            "SELECT REPEAT('x', 1100000)",
            "dict_mysql_lookup: FILE: Result size limit exceeded for key: 'one'",
        ),
        (
            "SELECT REPEAT('x', 3000000)",
            "mysql:FILE: query failed: the answer has more than 1048576 bytes",
        ),
        (
            "SELECT REPEAT('x', 10000000)",
            "mysql:FILE: query failed: the answer has more than 1048576 bytes",
        ),
        (
            "SELECT v FROM t JOIN seq_1_to_1000000",
            "dict_mysql_lookup: FILE: Result size limit exceeded for key: 'one'",
        ),
        (
            "SELECT NULL FROM seq_1_to_1000000",
            "dict_mysql_lookup: FILE: Result size limit exceeded for key: 'one'",
        ),
    ] {
        let table = pair.good(&format!("query = {query}\n"));
        let (exit, stdout, lines) = pair.ours(&table, "one");
        let why = why.replace("FILE", table.strip_prefix("mysql:").unwrap());
        assert_eq!((exit, stdout.len()), (Some(1), 0), "{query}");
        assert!(
            lines.contains(&format!("postmap: warning: {why}")),
            "{query}: {lines:?}"
        );
    }
}

#[test]
fn tls() {
    let start = |options: &[&str]| MariaDb::with_tls(|made| &made.server, options);
    let Some(mut pair) = Pair::with(start, &[]) else {
        return;
    };
    pair.server.execute(
        "CREATE USER secure IDENTIFIED BY 'p' REQUIRE SSL; GRANT ALL ON mail.* TO secure;
         CREATE USER known IDENTIFIED BY 'p' REQUIRE X509; GRANT ALL ON mail.* TO known;",
    );
    let made = pair.server.certificates.clone();
    let good = format!("tls_CAfile = {}\n", made.authority.display());
    let wrong = format!("tls_CAfile = {}\n", made.stranger.display());
    let ours = format!(
        "tls_cert_file = {}\ntls_key_file = {}\n",
        made.client.certificate.display(),
        made.client.key.display()
    );
    let cipher = "query = SELECT IF(variable_value = '', 'clear', 'secret') FROM information_schema.session_status \
                  WHERE variable_name = 'Ssl_cipher'\n";
    let table = |pair: &mut Pair, host: &str, user: &str, rest: &str| {
        pair.table(&format!(
            "hosts = {host}\nuser = {user}\npassword = p\ndbname = mail\n{cipher}{rest}"
        ))
    };
    let here = format!("127.0.0.1:{}", pair.server.port);
    let socket = format!("unix:{}", pair.server.socket.display());
    let verify = "tls_verify_cert = yes\n";
    let mut cases = Vec::new();
    for (user, rest) in [
        ("u", String::new()),
        ("u", good.clone()),
        ("secure", good.clone()),
        ("secure", String::new()),
        ("known", good.clone()),
        ("known", format!("{good}{ours}")),
        ("secure", format!("{good}{verify}")),
        ("u", "tls_ciphers = HIGH\n".to_owned()),
    ] {
        cases.push((table(&mut pair, &here, user, &rest), "one"));
        if !rest.contains("ciphers") {
            cases.push((table(&mut pair, &socket, user, &rest), "one"));
        }
    }
    let ciphers = cases.pop().unwrap();
    pair.same(&cases);
    let (exit, stdout, lines) = pair.ours(&ciphers.0, "one");
    assert_eq!((exit, &stdout[..]), (Some(0), &b"secret\n"[..]));
    assert!(
        lines[0].ends_with(": tls_ciphers is not used: there are no weak ciphers to leave out")
    );
    // Who is not to be trusted: the same outcome, in other words.
    for rest in [
        &wrong,
        &format!("{wrong}{verify}"),
        &format!("{wrong}tls_verify_cert = no\n"),
    ] {
        let table = table(&mut pair, &here, "u", rest);
        let real = pair.run(&pair.sides.real, &table, "one");
        let ours = pair.ours(&table, "one");
        assert_eq!((real.0, &real.1), (ours.0, &ours.1), "{rest}");
        for (_, _, lines) in [&real, &ours] {
            let start =
                format!("postmap: warning: connect to mysql server {here}: TLS/SSL error: ");
            assert!(lines[0].starts_with(&start), "{lines:?}");
        }
    }
    let none = table(&mut pair, &here, "u", "tls_CAfile = /no/such/file\n");
    assert_eq!(pair.ours(&none, "one").0, Some(1));
}

#[test]
fn tls_with_another_name_or_none() {
    let start = |options: &[&str]| MariaDb::with_tls(|made| &made.misnamed, options);
    let Some(mut pair) = Pair::with(start, &[]) else {
        return;
    };
    let authority = pair.server.certificates.authority.display().to_string();
    let trust = format!("{SELECT}tls_CAfile = {authority}\n");
    let chain = pair.good(&trust);
    pair.same(&[(chain, "one")]);
    let name = pair.good(&format!("{trust}tls_verify_cert = yes\n"));
    let (real, ours) = (
        pair.run(&pair.sides.real, &name, "one"),
        pair.ours(&name, "one"),
    );
    assert_eq!((real.0, ours.0), (Some(1), Some(1)));
    assert!(ours.2[0].contains("TLS/SSL error: "), "{ours:?}");
    let Some(mut clear) = Pair::start(&[]) else {
        return;
    };
    let refused = clear.good(&trust);
    let (exit, _, lines) = clear.ours(&refused, "one");
    assert_eq!(exit, Some(1));
    assert!(lines[0].contains("TLS/SSL error: the server does not offer TLS"));
    let content = clear.good(&format!("{trust}tls_required = no\n"));
    clear.same(&[(content, "one")]);
}

/// Nothing that is sent instead of the protocol does harm.
#[test]
fn servers_that_talk_nonsense() {
    let Some(sides) = Sides::new() else { return };
    let mut greeting = b"\x0a5.5.5-x\0\x01\0\0\0abcdefgh\0\xff\xf7\x2d\x02\0\xff\x81\x15".to_vec();
    greeting.extend([0; 10]);
    greeting.extend(b"ijklmnopqrst\0caching_sha2_password\0");
    let packet = |sequence: u8, body: &[u8]| {
        let length = u32::try_from(body.len()).unwrap().to_le_bytes();
        [&length[..3], &[sequence], body].concat()
    };
    let hello = packet(0, &greeting);
    let ok = packet(2, b"\0\0\0\x02\0\0\0");
    let welcome = [&hello[..], &ok].concat();
    let script = |parts: &[&[u8]]| parts.concat();
    let mut scripts = vec![
        Vec::new(),
        b"\0\0\0\0".to_vec(),
        b"\xff\xff\xff\0".to_vec(),
        packet(0, b"\xff\x10\x04Too many connections"),
        packet(0, b"\xff"),
        packet(1, &greeting),
        script(&[&hello, &packet(2, b"\xfe")]),
        script(&[&hello, &packet(2, b"\xfemysql_old_password\0")]),
        script(&[&hello, &packet(2, b"\xfemysql_clear_password\0")]),
        script(&[&hello, &packet(2, b"\xfeclient_ed25519\0short")]),
        script(&[&hello, &packet(2, b"\xfenone\0")]),
        script(&[&hello, &packet(2, b"\x01\x04"), &packet(4, b"\x01no key")]),
        script(&[&hello, &packet(2, b"\x01\x04"), &packet(4, b"")]),
        script(&[&hello, &packet(2, b"\x01")]),
        script(&[&hello, &packet(2, b"")]),
        script(&[&welcome, &packet(1, b"\xfb/etc/passwd")]),
        script(&[&welcome, &packet(1, b"\xfd\xff\xff\xff")]),
        script(&[
            &welcome,
            &packet(1, b"\x01"),
            &packet(2, b"c"),
            &packet(3, b"\xfe\0\0\0\0"),
            &packet(4, b"\x09short"),
        ]),
        script(&[
            &welcome,
            &packet(1, b"\x01"),
            &packet(2, b"c"),
            &packet(3, b"row"),
        ]),
        script(&[&welcome, &packet(1, b"")]),
        script(&[&welcome, &packet(1, b"\0")]),
    ];
    let mut random = Random(0x5eed_0013);
    for number in 0..24 {
        let mut noise = if number % 2 == 0 {
            hello.clone()
        } else {
            welcome.clone()
        };
        for _ in 0..random.below(4) {
            let place = random.below(noise.len());
            noise[place] ^= 1 << random.below(8);
        }
        let letters: [&[u8]; 6] = [b"\0", b"\x01", b"\x02", b"\xfe", b"\xff", b"a"];
        let count = random.below(60);
        noise.extend(random.join(&letters, count));
        scripts.push(noise);
    }
    for some in scripts.chunks(16) {
        thread::scope(|scope| {
            for (number, script) in some.iter().enumerate() {
                let sides = &sides;
                scope.spawn(move || {
                    let said = script.clone();
                    let server = Server::start(move |mut client| {
                        let _ = client.write_all(&said);
                        let _ = client.shutdown(std::net::Shutdown::Write);
                        let _ = client.read_to_end(&mut Vec::new());
                    });
                    let file = sides.root().join(format!("nonsense{number}.cf"));
                    let text = format!(
                        "hosts = 127.0.0.1:{}\npassword = p\ndbname = d\nquery = SELECT '%s'\nconnect_timeout = 2s\nanswer_timeout = 2s\n",
                        server.port
                    );
                    write_old(&file, text.as_bytes());
                    let table = format!("mysql:{}", file.display());
                    let words = ["postmap", "-q", "k", &table];
                    let outcome = sides.run(&sides.ours, sides.root(), &words, b"");
                    let shown = script.escape_ascii();
                    assert_eq!(outcome.exit, Some(1), "{shown}: {}", outcome.stderr);
                    assert_eq!(outcome.stdout, b"", "{shown}");
                    assert!(outcome.stderr.contains("fatal: table mysql:"), "{shown}: {}", outcome.stderr);
                    assert!(!outcome.stderr.contains("panicked"), "{shown}: {}", outcome.stderr);
                });
            }
        });
    }
}
