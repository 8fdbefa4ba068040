//! Runs one of the parts that touch no file and no socket, so often and in a function of such a name that
//! callgrind can count its instructions alone: `cargo xtask instructions`.
//!
//! `cores` prints the names; `cores NAME` prepares, warms up, then calls [`measured`] [`TIMES`] times.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use postkeep_conf::{Dictionary, Release};
use postkeep_proxymap::approve::{List, Listing, Rules};
use postkeep_proxymap::role::Role;
use postkeep_proxymap::service::{Action, Conversation as Lookups};
use postkeep_proxymap::share::{Settings as TableSettings, Tables};
use postkeep_scache::{Cache, Conversation, Settings};
use postkeep_tables::{Address, CidrIndex, CidrRules, Context, Dialect, PatternRules, Registry};
use postkeep_wire::duplex::{Inbox, Outbox};
use postkeep_wire::proxymap::{self, Generation, RequestScanner, Scanned, Status, reply_lookup};
use postkeep_wire::scache;

/// Prepares a part, and returns what is to be counted: one operation.
type Core = fn() -> Box<dyn FnMut()>;

const CORES: &[(&str, Core)] = &[
    ("wire-lookup", wire_lookup),
    ("proxymap-lookup", proxymap_lookup),
    ("scache-cycle", scache_cycle),
    ("scache-cycle-19000", scache_cycle_beside_many),
    ("main-cf", main_cf),
    ("cidr-20000", cidr),
    ("pcre-2000-never", pcre_never),
    ("regexp-2000-never", regexp_never),
];

/// Operations that are counted together.
const TIMES: usize = 200;
/// Operations before: the first ones find empty buffers.
const WARM: usize = 20;

/// The function whose instructions are counted, with all that it calls.
#[inline(never)]
fn measured(operation: &mut dyn FnMut()) {
    operation();
}

fn main() -> ExitCode {
    let wanted = std::env::args().nth(1);
    let Some(wanted) = wanted else {
        for (name, _) in CORES {
            println!("{name}");
        }
        return ExitCode::SUCCESS;
    };
    let Some((_, core)) = CORES.iter().find(|(name, _)| *name == wanted) else {
        eprintln!("{wanted}: no such part");
        return ExitCode::FAILURE;
    };
    let mut operation = core();
    for _ in 0..WARM {
        operation();
    }
    for _ in 0..TIMES {
        measured(&mut operation);
    }
    println!("{TIMES}");
    ExitCode::SUCCESS
}

const TABLE: &str = "inline:{ {user000123@example.test=mailbox000123}, {two=2} }";
const KEY: &[u8] = b"user000123@example.test";
const VALUE: &[u8] = b"mailbox000123";

fn lookup_request() -> Vec<u8> {
    let mut bytes = Vec::new();
    proxymap::Request::Lookup {
        table: TABLE.as_bytes(),
        instance_flags: 0,
        flags: 524_353,
        key: KEY,
    }
    .encode(Generation::One, &mut bytes);
    bytes
}

/// Scans a lookup and writes the reply.
fn wire_lookup() -> Box<dyn FnMut()> {
    let input = lookup_request();
    let mut scanner = RequestScanner::new(Generation::One);
    let mut out = Vec::new();
    Box::new(move || {
        out.clear();
        match scanner.scan(black_box(&input), None, "proxymap socket", &mut ()) {
            Scanned::Request { generation, .. } => {
                reply_lookup(&mut out, generation, Status::Ok, 0, VALUE);
            }
            other => panic!("{other:?}"),
        }
        black_box(&out);
    })
}

/// One lookup of the service, in a table that is open: scan, approval, instance, table, reply.
fn proxymap_lookup() -> Box<dyn FnMut()> {
    let input = lookup_request();
    let mut files = ();
    let mut list = List::new(Rules::default(), Listing::Proxied, &mut files);
    list.add(format!("proxy:{TABLE}").as_bytes(), "proxy_read_maps");
    let (approved, _) = list.finish();
    let tables = Arc::new(Tables::new(
        Role::Read,
        &approved,
        Arc::new(Registry::new(Context::default())),
        Arc::new(()),
        TableSettings::default(),
    ));
    let mut conversation = Lookups::new("proxymap socket".into(), Generation::One);
    let mut inbox: Inbox<()> = Inbox::default();
    let mut outbox: Outbox<()> = Outbox::default();
    let mut reply = Vec::new();
    reply_lookup(&mut reply, Generation::One, Status::Ok, 0, VALUE);
    Box::new(move || {
        inbox.receive(black_box(&input), []);
        loop {
            match conversation.step(Duration::ZERO, &mut inbox, &mut outbox, &tables, &mut ()) {
                Action::Idle => break,
                Action::Run(job) => conversation
                    .finish(job.run(), &mut outbox)
                    .expect("the table opens"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(outbox.next_chunk().0, reply);
        outbox.sent(reply.len());
    })
}

/// A client of scache, without sockets: descriptors are numbers.
struct Sessions {
    settings: Settings,
    cache: RefCell<Cache<usize>>,
    conversation: Conversation<usize>,
    inbox: Inbox<usize>,
    outbox: Outbox<usize>,
}

const ENDPOINT_PROPERTY: &[u8] =
    b"tls_level=0\nreuse_count=0\nendpoint_features=32783\nexpire_time=1795323935\n\n";

impl Sessions {
    fn new() -> Self {
        let settings = Settings {
            ttl_limit: Duration::from_secs(2000),
            ..Settings::default()
        };
        Self {
            conversation: Conversation::new(&settings),
            settings,
            cache: RefCell::default(),
            inbox: Inbox::default(),
            outbox: Outbox::default(),
        }
    }

    /// Takes what the client sends, and returns the descriptor that is sent to it, if one is.
    fn take(&mut self, bytes: &[u8], handle: Option<usize>) -> Option<usize> {
        self.inbox.receive(bytes, handle);
        let mut given = None;
        self.conversation.step(
            Duration::from_secs(1),
            &self.settings,
            &mut self.inbox,
            &mut self.outbox,
            &self.cache,
            &mut (),
        );
        while !self.outbox.is_empty() {
            let length = self.outbox.next_chunk().0.len();
            if let Some(handle) = self.outbox.sent(length) {
                given = Some(handle);
                self.conversation.keep(handle);
            }
        }
        given
    }

    fn save(&mut self, request: &[u8], handle: usize) {
        self.take(request, None);
        self.take(b"\0", Some(handle));
    }

    /// What a client does to find a session; true when it got one.
    fn find(&mut self, request: &[u8], prompt: &[u8]) -> bool {
        self.take(request, None);
        let found = self.take(prompt, None).is_some();
        self.take(prompt, None);
        found
    }
}

fn encoded(request: &scache::Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode(&mut bytes);
    bytes
}

fn save_request(label: &[u8]) -> Vec<u8> {
    encoded(&scache::Request::SaveEndpoint {
        ttl: 1900,
        label,
        property: ENDPOINT_PROPERTY,
    })
}

/// Saves a session and a binding, finds the session by destination, saves it again, finds it by endpoint.
fn cycle(mut sessions: Sessions) -> Box<dyn FnMut()> {
    let endpoint = b"smtp\n192.0.2.25\n25\n0\n";
    let destination = b"smtp\n[192.0.2.25]\n";
    let save = save_request(endpoint);
    let bind = encoded(&scache::Request::SaveDestination {
        ttl: 1900,
        label: destination,
        property: b"destination=[192.0.2.25]\nhost_name=192.0.2.25\ndestination_features=4096\n\n",
        endpoint,
    });
    let find_destination = encoded(&scache::Request::FindDestination { label: destination });
    let find_endpoint = encoded(&scache::Request::FindEndpoint { label: endpoint });
    let mut prompt = Vec::new();
    scache::prompt(&mut prompt);
    Box::new(move || {
        sessions.save(black_box(&save), 7);
        sessions.take(&bind, None);
        assert!(sessions.find(&find_destination, &prompt));
        sessions.save(&save, 7);
        assert!(sessions.find(&find_endpoint, &prompt));
    })
}

fn scache_cycle() -> Box<dyn FnMut()> {
    cycle(Sessions::new())
}

fn scache_cycle_beside_many() -> Box<dyn FnMut()> {
    let mut sessions = Sessions::new();
    for number in 0..19_000 {
        let label = format!("smtp\n10.0.{}.{}\n25\n0\n", number / 256, number % 256);
        sessions.save(&save_request(label.as_bytes()), number);
    }
    cycle(sessions)
}

const MAIN_CF: &[u8] = b"compatibility_level = 3.7\n\
queue_directory = /var/spool/postfix\n\
command_directory = /usr/sbin\n\
daemon_directory = /usr/lib/postfix/sbin\n\
data_directory = /var/lib/postfix\n\
mail_owner = postfix\n\
mydomain = example.test\n\
myhostname = mail.$mydomain\n\
myorigin = $mydomain\n\
mydestination = $myhostname, localhost.$mydomain, localhost\n\
mynetworks = 127.0.0.0/8, 192.0.2.0/24, [2001:db8::]/32\n\
relay_domains = $mydestination, proxy:cdb:${config_directory}/relay\n\
alias_maps = hash:/etc/aliases\n\
alias_database = $alias_maps\n\
base = proxy:mysql:${config_directory}/sql\n\
virtual_alias_maps = $base/alias.cf, $base/alias_domain.cf\n\
virtual_mailbox_maps = $base/mailbox.cf\n\
virtual_mailbox_domains = $base/domain.cf\n\
transport_maps = proxy:cdb:${config_directory}/transport\n\
smtpd_relay_restrictions = permit_mynetworks,\n    permit_sasl_authenticated, defer_unauth_destination\n\
smtpd_recipient_restrictions = reject_unknown_recipient_domain,\n    check_client_access proxy:cidr:${config_directory}/clients\n\
smtp_tls_security_level = ${smtp_tls_wanted?{encrypt}:{may}}\n\
limit = ${{$compatibility_level} >= {3.6} ? {200} : {100}}\n\
default_process_limit = $limit\n\
smtputf8_enable = ${{$compatibility_level} < {1} ? {no} : {yes}}\n\
proxy_read_maps = $virtual_alias_maps $virtual_mailbox_maps $virtual_mailbox_domains\n    $relay_domains $transport_maps $smtpd_recipient_restrictions\n";

/// Loads a main.cf, and expands every value in it.
fn main_cf() -> Box<dyn FnMut()> {
    Box::new(|| {
        let mut warnings: Vec<String> = Vec::new();
        let mut dictionary = Dictionary::new(Release::V3_7, b"/etc/postfix");
        dictionary
            .load(black_box(MAIN_CF), "/etc/postfix/main.cf", &mut warnings)
            .expect("it is well formed");
        let mut length = 0;
        for (_, value) in dictionary.iter() {
            let expanded = dictionary.expand(value, &mut warnings);
            length += expanded.expect("it is well formed").len();
        }
        assert!(warnings.is_empty(), "{warnings:?}");
        black_box(length);
    })
}

/// Finds the last of 20,000 ranges, and no range.
fn cidr() -> Box<dyn FnMut()> {
    let mut text = String::new();
    for rule in 0..20_000 {
        let _ = writeln!(text, "10.{}.{}.0/24 REJECT {rule}", rule / 256, rule % 256);
    }
    let mut warn = |warning: String| panic!("{warning}");
    let rules = CidrRules::parse(
        text.as_bytes(),
        "cidr:t",
        "t",
        |result| Ok(Cow::Borrowed(result)),
        &mut warn,
    );
    let index = CidrIndex::new(rules);
    Box::new(move || {
        let last = Address::parse(black_box(b"10.78.31.9")).expect("an address");
        assert_eq!(index.find(last), Some(&b"REJECT 19999"[..]));
        let none = Address::parse(black_box(b"192.0.2.1")).expect("an address");
        assert_eq!(index.find(none), None);
    })
}

/// Rules out 2,000 patterns; the reference would try each of them.
fn pattern(dialect: Dialect) -> Box<dyn FnMut()> {
    let mut text = String::new();
    for rule in 0..2_000 {
        let _ = match rule % 4 {
            1 => writeln!(text, r"/^user{rule}@example{rule}\.test$/ REJECT {rule}"),
            2 => writeln!(
                text,
                r"/^[^@]+@mail{rule}\.(com|net|org)$/ REJECT {rule} $1"
            ),
            3 => writeln!(
                text,
                r"/(foo{rule}|bar{rule})-[0-9]+\.example/ REJECT {rule}"
            ),
            _ => writeln!(text, r"/host{rule}\.dynamic\.example\.net/ REJECT {rule}"),
        };
    }
    let mut warn = |warning: String| panic!("{warning}");
    let rules = PatternRules::read(dialect, text.as_bytes(), b"t", true, &mut warn);
    let rules = rules.expect("the patterns are small");
    let mut value = Vec::new();
    Box::new(move || {
        let mut warn = |warning: String| panic!("{warning}");
        rules.lookup(
            black_box(b"client7.mail.example.org"),
            &mut value,
            &mut warn,
        );
        assert!(value.is_empty());
    })
}

fn pcre_never() -> Box<dyn FnMut()> {
    pattern(Dialect::Pcre)
}

fn regexp_never() -> Box<dyn FnMut()> {
    pattern(Dialect::Regexp)
}
