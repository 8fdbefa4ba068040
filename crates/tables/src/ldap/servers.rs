//! The servers of tables with equal settings, as a pool sees them: one, which is whoever answers first in the order of
//! the list.

use std::sync::{Mutex, PoisonError};

use log::{error, warn};
use postkeep_remote::hosts::{Host, Place};
use postkeep_remote::pool::{Backend, Fault};
use postkeep_table::{LookupError, Printable};
use tokio::time::{Instant, timeout};

use crate::ldap::connection::{ANSWER_LIMIT, Connection, Found, Trouble};
use crate::ldap::message::{Code, Credentials, Search};
use crate::ldap::settings::{Server, Settings, Tls};
use crate::ldap::url::{Scheme, Url};

/// How many servers a referral may lead through, as in the reference's library.
const HOPS: usize = 5;

/// How many referrals one search may have.
const REFERRALS: usize = 100;

/// A search, and how a warning about it begins.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) search: Search,
    /// `dict_ldap_lookup: Search error`, or the like.
    pub(super) warning: String,
}

impl Question {
    pub(super) fn failed(&self, code: Code) -> String {
        format!("{} {}: {} ", self.warning, code.0, code.text())
    }
}

/// The servers.
pub(super) struct Servers {
    settings: Settings,
    tls: Option<Tls>,
    /// Until when each of them is tried after the others.
    resting: Mutex<Vec<Option<Instant>>>,
}

/// A failure with the number that the reference has for it.
struct Failure {
    code: Code,
    /// The server has answered, and another one would not say anything else.
    decided: bool,
    /// It was about TLS on a connection without.
    start_tls: bool,
}

impl Servers {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            tls: settings.open_tls(),
            resting: Mutex::new(vec![None; settings.servers.len()]),
            settings,
        }
    }

    /// What a pool that has them as one calls them.
    pub(super) fn host(&self) -> Host {
        Host {
            text: self.settings.text.clone(),
            place: Place::Uri(self.settings.text.clone()),
        }
    }

    /// In the order of the list, with those last that failed a moment ago.
    fn order(&self) -> Vec<usize> {
        let now = Instant::now();
        let resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        let rests = |index: &usize| resting[*index].is_some_and(|until| now < until);
        let (late, mut order): (Vec<usize>, Vec<usize>) = (0..resting.len()).partition(rests);
        order.extend(late);
        order
    }

    fn rest(&self, index: usize, rests: bool) {
        let until = rests.then(|| Instant::now() + self.settings.rest);
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting[index] = until;
    }

    /// Connects and says who we are.
    async fn log_in(
        &self,
        server: &Server,
        start_tls: bool,
        credentials: &Credentials,
    ) -> Result<Connection, Failure> {
        let step = self.settings.timeout;
        let tls = self.tls.as_ref();
        let failure = |code: Code, decided: bool| Failure {
            code,
            decided,
            start_tls: false,
        };
        let told = |error: &str| {
            let place = match &server.place {
                Place::Inet(name, port) => format!("{name}:{port}"),
                Place::Unix(path) => path.display().to_string(),
                Place::Uri(uri) => uri.clone(),
            };
            let scheme = server.scheme.name();
            warn!("{scheme}://{place}: TLS: {}", Printable(error.as_bytes()));
        };
        let opened = timeout(step, Connection::open(server, tls)).await;
        let mut connection = match opened {
            Ok(Ok(connection)) => connection,
            Ok(Err(Trouble::Tls(error))) => {
                told(&error);
                let mut failure = failure(Code::SERVER_DOWN, false);
                failure.start_tls = start_tls;
                return Err(failure);
            }
            Ok(Err(_)) | Err(_) => {
                let mut failure = failure(Code::SERVER_DOWN, false);
                failure.start_tls = start_tls;
                return Err(failure);
            }
        };
        if start_tls {
            let secured = timeout(step, connection.start_tls(server, tls)).await;
            let secured = match secured {
                Ok(Ok(secured)) => Ok(secured),
                Ok(Err(Trouble::Tls(error))) => {
                    told(&error);
                    Err((Code::CONNECT_ERROR, true))
                }
                Ok(Err(Trouble::NoTls(code))) => Err((code, true)),
                Ok(Err(_)) => Err((Code::SERVER_DOWN, false)),
                Err(_) => Err((Code::TIMEOUT, false)),
            };
            connection = secured.map_err(|(code, decided)| Failure {
                code,
                decided,
                start_tls: true,
            })?;
        }
        let bound = connection.bind(self.settings.version, credentials);
        match timeout(step, bound).await {
            Ok(Ok(())) => Ok(connection),
            Ok(Err(Trouble::Refused(code))) => {
                let decided = !matches!(code, Code::BUSY | Code::UNAVAILABLE);
                Err(failure(code, decided))
            }
            Ok(Err(Trouble::Malformed(_) | Trouble::TooLong)) => {
                Err(failure(Code::DECODING_ERROR, false))
            }
            Ok(Err(_)) => Err(failure(Code::SERVER_DOWN, false)),
            Err(_) => Err(failure(Code::TIMEOUT, false)),
        }
    }

    /// Follows the referrals of an answer, and those of what comes then.
    async fn follow(&self, search: &Search, found: &mut Found) -> Result<(), Code> {
        let mut left = REFERRALS;
        let mut waiting: Vec<(Search, Vec<Vec<u8>>, usize)> = Vec::new();
        let add = |waiting: &mut Vec<_>, search: &Search, lists: Vec<Vec<Vec<u8>>>, hops| {
            let lists = lists.into_iter().map(|urls| (search.clone(), urls, hops));
            waiting.extend(lists.rev());
        };
        if found.code == Code::REFERRAL {
            found.code = Code::SUCCESS;
        }
        add(
            &mut waiting,
            search,
            std::mem::take(&mut found.references),
            1,
        );
        while let Some((search, urls, hops)) = waiting.pop() {
            left = left.checked_sub(1).ok_or(Code::REFERRAL_LIMIT)?;
            if hops > HOPS {
                return Err(Code::REFERRAL_LIMIT);
            }
            let mut answer = Err(Code::REFERRAL);
            for url in urls {
                let Ok(url) = Url::parse(&url) else { continue };
                let Some(server) = Server::of(&url) else {
                    continue;
                };
                // Not to whom an answer from the network names.
                if server.scheme == Scheme::Ldapi {
                    continue;
                }
                let mut next = search.clone();
                if let Some(base) = url.base.filter(|base| !base.is_empty()) {
                    next.base = base;
                }
                next.scope = url.scope.unwrap_or(next.scope);
                if let Some(filter) = url.filter {
                    let Some(filter) = crate::ldap::filter::encode(&filter) else {
                        continue;
                    };
                    next.filter = filter;
                }
                answer = self
                    .ask_elsewhere(&server, &next)
                    .await
                    .map(|found| (next, found));
                if answer.is_ok() {
                    break;
                }
            }
            let (search, more) = answer?;
            found.size += more.size;
            if found.size > ANSWER_LIMIT {
                return Err(Code(11));
            }
            found.entries.extend(more.entries);
            match more.code {
                Code::SUCCESS | Code::REFERRAL => {
                    add(&mut waiting, &search, more.references, hops + 1);
                }
                code => found.code = code,
            }
        }
        Ok(())
    }

    /// Asks a server that another one names, without telling it who we are.
    async fn ask_elsewhere(&self, server: &Server, search: &Search) -> Result<Found, Code> {
        let anonymous = Credentials::Simple {
            name: Vec::new(),
            password: Vec::new(),
        };
        let connection = self.log_in(server, false, &anonymous).await;
        let mut connection = connection.map_err(|failure| failure.code)?;
        let found = connection.search(search).await;
        found.map_err(|trouble| match trouble {
            Trouble::Malformed(_) | Trouble::TooLong => Code::DECODING_ERROR,
            _ => Code::SERVER_DOWN,
        })
    }
}

impl Backend for Servers {
    type Connection = Connection;
    type Request = Question;
    type Answer = Found;

    /// The error is the number of a failure, or empty when all has been said.
    async fn connect(&self, _: &Host) -> Result<Connection, String> {
        let Settings {
            text,
            start_tls,
            credentials,
            ..
        } = &self.settings;
        if self.settings.servers.is_empty() {
            warn!("dict_ldap_connect: Unable to init LDAP server {text}");
            return Err(String::new());
        }
        if let Some(Tls {
            config: Err(error), ..
        }) = &self.tls
        {
            warn!("{text}: TLS: {}", Printable(error.as_bytes()));
            let code = Code::SERVER_DOWN;
            warn!(
                "dict_ldap_set_tls_options: Unable to allocate new TLS context {}: {}",
                code.0,
                code.text()
            );
            return Err(String::new());
        }
        let mut last = None;
        for index in self.order() {
            let server = &self.settings.servers[index];
            match self.log_in(server, *start_tls, credentials).await {
                Ok(connection) => {
                    self.rest(index, false);
                    return Ok(connection);
                }
                Err(failure) => {
                    let decided = failure.decided;
                    last = Some(failure);
                    if decided {
                        break;
                    }
                    self.rest(index, true);
                }
            }
        }
        let failure = last.unwrap_or(Failure {
            code: Code::SERVER_DOWN,
            decided: false,
            start_tls: false,
        });
        if failure.start_tls {
            let code = failure.code;
            error!(
                "dict_ldap_connect: Unable to set STARTTLS: {}: {}",
                code.0,
                code.text()
            );
            return Err(String::new());
        }
        Err(failure.code.0.to_string())
    }

    async fn ask(
        &self,
        connection: &mut Connection,
        _: &Host,
        question: &Question,
    ) -> Result<Found, Fault> {
        let mut found = match connection.search(&question.search).await {
            Ok(found) => found,
            Err(Trouble::Malformed(_)) => {
                return Err(Fault::Host(question.failed(Code::DECODING_ERROR)));
            }
            Err(trouble @ Trouble::TooLong) => {
                warn!("{}: {trouble}", question.warning);
                return Err(Fault::Broken(LookupError::Retry(String::new())));
            }
            Err(_) => return Err(Fault::Stale(question.failed(Code::SERVER_DOWN))),
        };
        if self.settings.chase_referrals && !found.references.is_empty() {
            // The whole has the time of one search.
            if let Err(code) = self.follow(&question.search, &mut found).await {
                found.code = code;
            }
        }
        Ok(found)
    }

    fn is_usable(&self, connection: &mut Connection) -> bool {
        connection.is_quiet()
    }

    fn connect_warning(&self, host: &Host, reason: &str) -> String {
        if reason.is_empty() {
            return String::new();
        }
        let code = reason.parse().map_or(Code::SERVER_DOWN, Code);
        let name = match &self.settings.credentials {
            Credentials::None => {
                let text = code.text();
                return format!("dict_ldap_lookup: Search error {}: {text} ", code.0);
            }
            Credentials::Simple { name, .. } | Credentials::External { name, .. } => name,
        };
        let name = match &name[..] {
            b"" => "empty or implicit".to_owned(),
            name => Printable(name).to_string(),
        };
        format!(
            "dict_ldap_connect: Unable to bind to server {} with dn {name}: {} ({})",
            host.text,
            code.0,
            code.text()
        )
    }

    fn timeout_warning(&self, _: &Host, question: &Question) -> String {
        question.failed(Code::TIMEOUT)
    }

    fn label(&self) -> String {
        format!("ldap server {}", self.settings.text)
    }
}
