//! A daemon that has given up what it does not need, and tables that ask servers or read more files than their own: all
//! must find what they find without that.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use postkeep_interop::lookups::lookup;
use postkeep_interop::servers::certificates::Certificates;
use postkeep_interop::servers::mariadb::MariaDb;
use postkeep_interop::servers::memcached::Memcached;
use postkeep_interop::servers::postgresql::PostgreSql;
use postkeep_interop::servers::redis::Redis;
use postkeep_interop::servers::secantus::Secantus;
use postkeep_interop::servers::slapd::Slapd;
use postkeep_interop::servers::web::Web;
use postkeep_testkit::scratch::give_to;
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{Implementation, Scratch, postkeep_binary};

/// What has the tables: each kind of file in a directory of its own, which only the table's configuration names.
struct Place {
    scratch: Scratch,
    /// Tables, and their keys with what is found.
    tables: Vec<(String, &'static str, &'static str)>,
    parameters: Vec<(String, String)>,
}

impl Place {
    fn root(&self) -> String {
        self.scratch.path().display().to_string()
    }

    /// A file in a directory of this name.
    fn file(&self, directory: &str, name: &str, content: &[u8]) -> String {
        let path = self.scratch.path().join(directory);
        if !path.is_dir() {
            self.scratch.directory(directory, 0o755).unwrap();
        }
        let file = path.join(name);
        fs::write(&file, content).unwrap();
        file.display().to_string()
    }

    /// The certificate of a server's authority, beside nothing else.
    fn authority(&self, directory: &str, made: &Certificates) -> String {
        self.file(directory, "ca.pem", &fs::read(&made.authority).unwrap())
    }

    fn table(&mut self, kind: &str, text: &str, key: &'static str, value: &'static str) {
        let name = format!("{kind}{}.cf", self.tables.len());
        let file = self.file("tables", &name, text.as_bytes());
        self.tables.push((format!("{kind}:{file}"), key, value));
    }

    /// The same with its keys in main.cf.
    fn in_main_cf(&mut self, kind: &str, text: &str, key: &'static str, value: &'static str) {
        let name = format!("{kind}{}", self.tables.len());
        for line in text.lines() {
            let (parameter, value) = line.split_once(" = ").unwrap();
            self.parameters
                .push((format!("{name}_{parameter}"), value.to_owned()));
        }
        self.tables.push((format!("{kind}:{name}"), key, value));
    }

    /// Makes a table with our own postmap.
    fn index(&self, directory: &str, text: &str) -> Result<String> {
        let file = self.file(directory, "index", text.as_bytes());
        let table = format!("lmdb:{file}");
        let program = postkeep_binary().context("no postkeep executable")?;
        let output = Command::new(program)
            .args(["postmap", "-c", "/etc/postfix", &table])
            .output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(table)
    }
}

/// sqlite3(1) on a database, when it has done what it was told; it ends with its input.
fn told(file: &Path, statements: &str) -> Result<Child> {
    let mut child = Command::new("sqlite3")
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run sqlite3")?;
    let stdin = child.stdin.as_mut().context("no input")?;
    writeln!(stdin, "{statements}; SELECT 'done';")?;
    let mut lines = BufReader::new(child.stdout.as_mut().context("no output")?).lines();
    let done = |line: std::io::Result<String>| line.is_ok_and(|line| line == "done");
    ensure!(lines.any(done), "{statements}");
    Ok(child)
}

/// A database that a query sorts more of than SQLite keeps in memory, and one with a log that somebody writes to.
fn sqlite(place: &mut Place) -> Result<Child> {
    let base = place.scratch.directory("base", 0o755)?;
    let file = base.join("plain");
    let mut made = told(
        &file,
        "CREATE TABLE t (k TEXT, v TEXT);
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
         INSERT INTO t SELECT 'k' || i, hex(randomblob(50)) FROM n;
         INSERT INTO t VALUES ('a', 'plain'), ('z', 'ZZZ')",
    )?;
    ensure!(finish(&mut made)?);
    place.table(
        "sqlite",
        &format!(
            "dbpath = {}\nquery = SELECT v FROM t WHERE k = '%s'\n",
            file.display()
        ),
        "a",
        "plain",
    );
    place.table(
        "sqlite",
        &format!(
            "dbpath = {}\nquery = SELECT (SELECT v FROM (SELECT v, k FROM t ORDER BY v DESC, k LIMIT 60000) \
             WHERE k = '%s')\n",
            file.display()
        ),
        "z",
        "ZZZ",
    );
    let log = place.scratch.directory("logged", 0o755)?.join("base");
    let writer = told(
        &log,
        "PRAGMA journal_mode = WAL; CREATE TABLE t (k TEXT, v TEXT); INSERT INTO t VALUES ('a', 'logged')",
    )?;
    place.table(
        "sqlite",
        &format!(
            "dbpath = {}\nquery = SELECT v FROM t WHERE k = '%s'\n",
            log.display()
        ),
        "a",
        "logged",
    );
    Ok(writer)
}

fn finish(child: &mut Child) -> Result<bool> {
    drop(child.stdin.take());
    Ok(child.wait()?.success())
}

#[test]
fn tables_find_all_that_they_name() -> Result<()> {
    let (mysql, pgsql, redis, web, ldap, mongodb, memcached, socket) = thread::scope(|scope| {
        let mysql = scope.spawn(|| MariaDb::with_tls(|made| &made.server, &[]));
        let pgsql = scope.spawn(|| PostgreSql::with_tls(|made| &made.server, &[]));
        let redis =
            scope.spawn(|| Redis::with_tls(|made| &made.server, &["--tls-auth-clients", "no"]));
        let web = scope.spawn(|| Web::node("h2", Some(|made| &made.server), false));
        let entry = "dn: cn=k,dc=example\nobjectclass: mailThing\ncn: k\nmaildrop: value\n";
        let ldap = scope.spawn(|| Slapd::start(entry, ""));
        let mongodb = Secantus::start(Some(|made| &made.server));
        let socket = Memcached::start_on_socket();
        (
            mysql.join().unwrap(),
            pgsql.join().unwrap(),
            redis.join().unwrap(),
            web.join().unwrap(),
            ldap.join().unwrap(),
            mongodb,
            Memcached::start(),
            socket,
        )
    });
    let mut place = Place {
        scratch: Scratch::new("confined")?,
        tables: Vec::new(),
        parameters: Vec::new(),
    };
    let mut writer = sqlite(&mut place)?;
    let root = place.root();
    if let Some(server) = &mysql {
        server.execute(
            "CREATE TABLE mail.t (k VARCHAR(9), v VARCHAR(9)); INSERT INTO mail.t VALUES ('k', 'value');
             CREATE USER u IDENTIFIED BY 'p' REQUIRE SSL; GRANT ALL ON mail.* TO u;",
        );
        let authority = place.authority("mysql-ca", &server.certificates);
        let text = format!(
            "hosts = 127.0.0.1:{}\nuser = u\npassword = p\ndbname = mail\n\
             query = SELECT v FROM t WHERE k = '%s'\n",
            server.port
        );
        let more = format!("tls_CAfile = {authority}\ntls_verify_cert = yes\n");
        place.table("mysql", &format!("{text}{more}"), "k", "value");
        let listed = place.file("mysql-domains", "list", b"d.example\n");
        let index = place.index("mysql-index", "d.example x\n")?;
        for list in [&listed, &index] {
            let domains = format!("domain = {list}\nresult_format = value\n");
            let text = text.replace("k = '%s'", "k = LEFT('%s', 1)");
            place.table(
                "mysql",
                &format!("{text}{more}{domains}"),
                "k@d.example",
                "value",
            );
        }
        let options = place.file(
            "mysql-options",
            "my.cnf",
            format!("[client]\nssl-ca = {authority}\n").as_bytes(),
        );
        place.table(
            "mysql",
            &format!("{text}option_file = {options}\noption_group = client\n"),
            "k",
            "value",
        );
    }
    if let Some(server) = &pgsql {
        server.execute(
            "mail",
            "CREATE TABLE t (k TEXT, v TEXT); INSERT INTO t VALUES ('k', 'value');
             CREATE ROLE u LOGIN PASSWORD 'p'; GRANT SELECT ON t TO u;",
        );
        let authority = place.authority("pgsql-ca", &server.certificates);
        let encoded = place
            .authority("pgsql-encoded", &server.certificates)
            .replace('/', "%2F");
        let query = "query = SELECT v FROM t WHERE k = '%s'\n";
        for file in [authority, encoded] {
            place.table(
                "pgsql",
                &format!(
                    "hosts = postgresql://u:p@localhost:{}/mail?sslmode=verify-full&sslrootcert={file}&connect_timeout=9\ndbname = mail\n{query}",
                    server.port
                ),
                "k",
                "value",
            );
        }
    }
    if let Some(server) = &redis {
        server.command(&[b"SET", b"k", b"value"]);
        let made = server.certificates.as_ref().unwrap();
        for directory in ["redis-ca", "redis-main"] {
            let authority = place.authority(directory, made);
            let text = format!(
                "hosts = localhost:{}\ntls_CAfile = {authority}\n",
                server.port
            );
            if directory == "redis-ca" {
                place.table("redis", &text, "k", "value");
            } else {
                place.in_main_cf("redis", &text, "k", "value");
            }
        }
    }
    if let Some(server) = &web {
        let authority = place.authority("http-ca", &server.certificates);
        let token = place.file("http-token", "token", b"sesame\n");
        let text = format!(
            "url = https://localhost:{}/v1/%s\nvalue_path = $.values\ntls_CAfile = {authority}\n",
            server.port
        );
        place.table(
            "http",
            &format!("{text}bearer_token_file={token}\n"),
            "locked",
            "open",
        );
    }
    if let Some(server) = &ldap {
        let authority = place.authority("ldap-ca", &server.certificates);
        place.table(
            "ldap",
            &format!(
                "server_host = ldap://localhost:{}\nversion = 3\nstart_tls = yes\ntls_require_cert = yes\n\
                 tls_ca_cert_file = {authority}\nsearch_base = dc=example\nquery_filter = (cn=%s)\nbind = no\n\
                 result_attribute = maildrop\n",
                server.port
            ),
            "k",
            "value",
        );
    }
    if let Some(server) = &mongodb {
        server.python(
            "client.mail.users.insert_one({'user': 'k', 'box': 'value'})",
            b"",
        );
        let authority = place.authority("mongodb-ca", &server.certificates);
        place.table(
            "mongodb",
            &format!(
                "uri = mongodb://localhost:{}/?tls=true&tlsCAFile={authority}&appName=x\ndbname = mail\n\
                 collection = users\nquery_filter = {{\"user\": \"%s\"}}\nresult_attribute = box\n",
                server.port
            ),
            "k",
            "value",
        );
    }
    for server in [&memcached, &socket].into_iter().flatten() {
        server.say(b"set k 0 0 5\r\nvalue\r\n", "STORED\r\n");
        place.table(
            "memcache",
            &format!("memcache = {}\n", server.place),
            "k",
            "value",
        );
        let number = place.tables.len();
        let index = place.index(&format!("backup{number}"), "b behind\n")?;
        let text = format!("memcache = {}\nbackup = {index}\n", server.place);
        place.table("memcache", &text, "b", "behind");
        // A backup that has a file, which names another.
        let text = format!(
            "memcache = {}\nkey_format = q:%s\nbackup = sqlite:{root}/tables/sqlite0.cf\n",
            server.place
        );
        place.table("memcache", &text, "a", "plain");
    }
    check(place)?;
    ensure!(finish(&mut writer)?);
    Ok(())
}

fn check(place: Place) -> Result<()> {
    let Place {
        scratch,
        tables,
        parameters,
    } = place;
    for directory in ["base", "logged"] {
        let directory = scratch.path().join(directory);
        give_to("postfix", &directory)?;
        for file in fs::read_dir(&directory)? {
            give_to("postfix", &file?.path())?;
        }
    }
    let lists: Vec<String> = tables
        .iter()
        .map(|(table, ..)| format!("proxy:{table}"))
        .collect();
    let mut plan = Plan::new(Implementation::Postkeep, "proxymap")
        .parameter("proxy_read_maps", &lists.join(" "))
        .parameter("postkeep_least_privilege", "yes");
    for (name, value) in &parameters {
        plan = plan.parameter(name, value);
    }
    let Some(daemon) = plan.start_in(scratch)? else {
        return Ok(());
    };
    let mut peer = daemon.connect_and_greet()?;
    let mut wrong = Vec::new();
    for (table, key, value) in &tables {
        let reply = lookup(&mut peer, table, key)?;
        if reply != format!("status\\00\\0value\\0{value}\\0\\0") {
            wrong.push(format!("{table} {key}: {reply}"));
        }
    }
    let log = daemon.log_texts();
    if log
        .iter()
        .any(|text| text.contains("not enforced by this kernel"))
    {
        eprintln!("SKIP: {log:?}");
        return Ok(());
    }
    ensure!(wrong.is_empty(), "{wrong:#?}\n{log:#?}");
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    ensure!(status.contains("Seccomp:\t2"), "{status}");
    Ok(())
}
