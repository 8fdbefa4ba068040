//! Who we are, which server it is, and TLS.

use postkeep_interop::postmap::Sides;
use postkeep_interop::servers::slapd::{READER, ROOT, Slapd};
use postkeep_testkit::private_postfix::free_port;

use crate::{BASE, Both, ENTRIES, compare_all, difference, ours, table};

#[test]
fn credentials_servers_and_tls() {
    let Some(both) = Both::start(
        "access to dn.subtree=ou=users,dc=example by users read by * none\naccess to * by * read\n",
    ) else {
        return;
    };
    let Slapd {
        port,
        tls_port,
        certificates,
        ..
    } = &both.server;
    let dead = free_port().unwrap();
    let ldapi = both.server.ldapi();
    let reader = format!("bind_dn = {}\nbind_pw = {}\n", READER.0, READER.1);
    let root = format!("bind_dn = {}\nbind_pw = {}\n", ROOT.0, ROOT.1);
    let good = format!("tls_ca_cert_file = {}\n", certificates.authority.display());
    let wrong = format!("tls_ca_cert_file = {}\n", certificates.stranger.display());
    let own = format!(
        "tls_cert = {}\ntls_key = {}\n",
        certificates.client.certificate.display(),
        certificates.client.key.display()
    );
    let strict = "tls_require_cert = yes\n";
    let mut cases = Vec::new();
    let mut add = |hosts: &str, more: &str| {
        cases.push((
            format!("{BASE}server_host = {hosts}\n{more}"),
            "alice".to_owned(),
        ));
    };
    let plain = format!("127.0.0.1:{port}");
    for more in [
        "",
        &reader,
        &root,
        "bind = none\n",
        &format!("bind = simple\n{reader}"),
        &format!("bind = no\n{reader}"),
        "bind_dn = cn=reader,dc=example\nbind_pw = wrong\n",
        "bind_dn = cn=reader,dc=example\n",
        "bind_dn = nonsense\nbind_pw = x\n",
        "bind_dn = cn=absent,dc=example\nbind_pw = x\n",
        "bind = maybe\n",
        "start_tls = yes\n",
        &format!("start_tls = yes\n{good}{strict}{reader}"),
        &format!("start_tls = yes\n{wrong}{strict}{reader}"),
        &format!("start_tls = yes\n{wrong}{reader}"),
        &format!("start_tls = yes\n{good}{reader}"),
        "start_tls = yes\ntls_ca_cert_file = /no/such\n",
        &format!("start_tls = yes\nversion = 2\n{good}{strict}{reader}"),
        &format!("start_tls = yes\n{good}{strict}bind = sasl\nsasl_mechs = EXTERNAL\n{own}"),
        "bind = sasl\nsasl_mechs = EXTERNAL\n",
        &format!("{wrong}{strict}{reader}"),
    ] {
        add(&plain, more);
    }
    let tls = format!("ldaps://127.0.0.1:{tls_port}");
    for more in [
        String::new(),
        reader.clone(),
        format!("{good}{strict}{reader}"),
        format!("{wrong}{strict}{reader}"),
        format!("{wrong}{reader}"),
        format!("{good}{strict}{reader}version = 2\n"),
        format!("{good}{strict}bind = sasl\nsasl_mechs = EXTERNAL\n{own}"),
        format!("{good}{strict}{reader}start_tls = yes\n"),
        format!("{strict}{reader}tls_ca_cert_file = /no/such\n"),
        format!("{wrong}{strict}bind = no\n"),
    ] {
        add(&tls, &more);
    }
    for more in [
        reader.clone(),
        "bind = sasl\nsasl_mechs = EXTERNAL\n".to_owned(),
        "bind = sasl\nsasl_mechs = external\nsasl_minssf = 71\n".to_owned(),
        "bind = sasl\nsasl_mechs = EXTERNAL\nsasl_minssf = 72\n".to_owned(),
        "bind = sasl\nsasl_mechs = EXTERNAL\nbind_dn = cn=me\nsasl_authz_id = dn:cn=absent\n"
            .to_owned(),
        "bind = sasl\nsasl_mechs = EXTERNAL\nsasl_minssf = 4097\n".to_owned(),
    ] {
        add(&ldapi, &more);
    }
    for hosts in [
        format!("127.0.0.1:{dead}"),
        format!("127.0.0.1:{dead} localhost:{dead}"),
        format!("127.0.0.1:{dead}, 127.0.0.1:{port}"),
        format!("ldap://127.0.0.1:{dead} {ldapi}"),
        format!("ldap://127.0.0.1:{port}/"),
        "ldapi://%2Fno%2Fsuch".to_owned(),
        format!("ldaps://127.0.0.1:{port}"),
        format!("127.0.0.1:{tls_port}"),
        "no.such.host.invalid".to_owned(),
        "::1".to_owned(),
        format!("ldap://127.0.0.1:x 127.0.0.1:{port}"),
        format!("ldap://127.0.0.1:{port}?x"),
    ] {
        for more in [
            reader.clone(),
            "bind = no\n".to_owned(),
            format!("start_tls = yes\n{reader}"),
        ] {
            // The reference waits for an answer to what is no TLS, and its end is seldom the same; it cannot start TLS
            // on a socket.
            let on_socket = hosts.contains("ldapi") && more.contains("start_tls");
            if hosts == format!("127.0.0.1:{tls_port}") || on_socket {
                continue;
            }
            add(&hosts, &more);
        }
    }
    compare_all(&both, &cases);
}

#[test]
fn a_certificate_for_another_name() {
    let Some(sides) = Sides::new() else { return };
    let Some(server) = Slapd::with_certificate(|made| &made.misnamed, ENTRIES, "") else {
        return;
    };
    let both = Both { sides, server };
    let good = format!(
        "tls_ca_cert_file = {}\n",
        both.server.certificates.authority.display()
    );
    let mut cases = Vec::new();
    for hosts in [
        format!("ldaps://127.0.0.1:{}", both.server.tls_port),
        format!("ldap://127.0.0.1:{}\nstart_tls = yes", both.server.port),
    ] {
        for more in ["", "tls_require_cert = yes\n"] {
            cases.push((
                format!("{BASE}{good}server_host = {hosts}\n{more}"),
                "alice".to_owned(),
            ));
        }
    }
    compare_all(&both, &cases);
}

/// The reference's library looks for the name of the machine when it asks `localhost`; ours takes both.
#[test]
fn a_certificate_for_this_machine() {
    let Some(sides) = Sides::new() else { return };
    let keys = |server: &Slapd| {
        format!(
            "{BASE}server_host = ldaps://localhost:{}\ntls_require_cert = yes\ntls_ca_cert_file = {}\n",
            server.tls_port,
            server.certificates.authority.display()
        )
    };
    let Some(server) = Slapd::with_certificate(|made| &made.machine, ENTRIES, "") else {
        return;
    };
    let named = table(&sides, "machine", &keys(&server));
    assert_eq!(difference(&sides, &named, "alice"), None);
    let found = (Some(0), "alice@host.example\\n".to_owned(), Vec::new());
    assert_eq!(ours(&sides, &named, "alice"), found);
    let by_address = keys(&server).replace("//localhost", "//127.0.0.1");
    let by_address = table(&sides, "address", &by_address);
    assert_eq!(difference(&sides, &by_address, "alice"), None);
    let Some(server) = Slapd::start(ENTRIES, "") else {
        return;
    };
    let local = table(&sides, "local", &keys(&server));
    assert_eq!(ours(&sides, &local, "alice"), found);
}
