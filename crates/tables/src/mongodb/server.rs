//! The servers of one URI: the driver keeps the connections, and knows which server to ask; the pool before it says how
//! many may ask, and for how long.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use log::warn;
use mongodb::bson::{Document, RawDocumentBuf, doc};
use mongodb::error::{Error, ErrorKind};
use mongodb::event::EventHandler;
use mongodb::event::sdam::SdamEvent;
use mongodb::options::{ClientOptions, ConnectionString, ServerAddress, ServerMonitoringMode, Tls};
use mongodb::{Client, Namespace};
use postkeep_remote::hosts::Host;
use postkeep_remote::limits::Limits;
use postkeep_remote::pool::{Backend, Fault};
use postkeep_remote::tls::system_file;
use postkeep_sys::error_text;
use postkeep_table::{LookupError, Printable, TableName};
use tokio::sync::Notify;

use super::values::Values;

/// The servers of one URI.
pub(super) struct Server {
    /// The URI, without secrets.
    shown: String,
    uri: ConnectionString,
    limits: Limits,
    /// The driver, while somebody has a connection.
    driver: Mutex<Weak<Driver>>,
    /// One at a time makes a driver.
    start: tokio::sync::Mutex<()>,
}

/// A question.
pub(super) struct Question {
    pub(super) table: TableName,
    pub(super) place: Namespace,
    pub(super) filter: Document,
    pub(super) projection: Document,
    /// The filter's text, for warnings.
    pub(super) text: Vec<u8>,
}

/// The driver with its connections and monitors; all end with the last who holds it.
pub(super) struct Driver {
    client: Client,
    health: Arc<Health>,
    born: Instant,
}

/// What the driver's monitors found.
#[derive(Default)]
struct Health {
    servers: Mutex<HashMap<ServerAddress, Failures>>,
    changed: Notify,
}

#[derive(Clone, Default)]
struct Failures {
    /// Attempts that began with a new connection. That one ends which was there is no sign yet: the server may have been
    /// started anew, and the monitor looks at once.
    count: u64,
    reason: String,
    /// The monitor's connection that last gave an answer.
    good: Option<u32>,
}

impl Health {
    fn told(&self, event: SdamEvent) {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            SdamEvent::ServerOpening(event) => {
                servers.entry(event.address).or_default();
            }
            SdamEvent::ServerClosed(event) => {
                servers.remove(&event.address);
            }
            SdamEvent::ServerHeartbeatSucceeded(event) => {
                if let Some(server) = servers.get_mut(&event.server_address) {
                    server.good = Some(event.driver_connection_id);
                }
            }
            SdamEvent::ServerHeartbeatFailed(event) => {
                if let Some(server) = servers.get_mut(&event.server_address)
                    && server.good.take() != Some(event.driver_connection_id)
                {
                    server.count += 1;
                    server.reason = reason(&event.failure);
                }
            }
            _ => return,
        }
        drop(servers);
        self.changed.notify_waiters();
    }

    fn servers(&self) -> HashMap<ServerAddress, Failures> {
        self.servers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Ends when every server has failed since; with the last reason.
    async fn fails(&self, before: HashMap<ServerAddress, Failures>) -> String {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let now = self.servers();
            let failed = |(address, server): (&ServerAddress, &Failures)| {
                server.count > before.get(address).map_or(0, |before| before.count)
            };
            if !now.is_empty() && now.iter().all(failed) {
                let reasons = now.into_values().map(|server| server.reason);
                return reasons.max().unwrap_or_default();
            }
            changed.await;
        }
    }
}

impl Driver {
    /// Does something with the servers, but no longer than one of them can be reached: the driver by itself waits on.
    async fn attempt<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Trouble> {
        let mut work = pin!(work);
        let mut fails = pin!(self.health.fails(self.health.servers()));
        std::future::poll_fn(|context| {
            if let Poll::Ready(done) = work.as_mut().poll(context) {
                return Poll::Ready(done.map_err(Trouble::Driver));
            }
            fails
                .as_mut()
                .poll(context)
                .map(|reason| Err(Trouble::Unreachable(reason)))
        })
        .await
    }
}

/// Why something was not done.
enum Trouble {
    /// The driver says so.
    Driver(Error),
    /// No server can be reached.
    Unreachable(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Driver(error) => f.write_str(&reason(error)),
            Self::Unreachable(reason) => f.write_str(reason),
        }
    }
}

impl Trouble {
    /// Did a connection end that was thought to be good?
    fn is_stale(&self) -> bool {
        matches!(self, Self::Driver(error)
            if matches!(*error.kind, ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. }))
    }
}

/// The driver's reason, without the labels around it.
fn reason(error: &Error) -> String {
    match &*error.kind {
        ErrorKind::Io(error) => error_text(error),
        ErrorKind::Command(error) => error.message.clone(),
        kind => kind.to_string(),
    }
}

impl Server {
    pub(super) fn new(shown: String, uri: ConnectionString, limits: Limits) -> Self {
        Self {
            shown,
            uri,
            limits,
            driver: Mutex::default(),
            start: tokio::sync::Mutex::default(),
        }
    }

    fn running(&self) -> Option<Arc<Driver>> {
        let driver = self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        let lifetime = self.limits.lifetime;
        driver
            .upgrade()
            .filter(|driver| lifetime.is_zero() || driver.born.elapsed() < lifetime)
    }

    async fn driver(&self) -> Result<Arc<Driver>, Error> {
        if let Some(driver) = self.running() {
            return Ok(driver);
        }
        let _one_at_a_time = self.start.lock().await;
        if let Some(driver) = self.running() {
            return Ok(driver);
        }
        let health = Arc::new(Health::default());
        let mut options = ClientOptions::parse(self.uri.clone()).await?;
        self.limit(&mut options);
        let watcher = Arc::clone(&health);
        options.sdam_event_handler = Some(EventHandler::callback(move |event| watcher.told(event)));
        let driver = Arc::new(Driver {
            client: Client::with_options(options)?,
            health,
            born: Instant::now(),
        });
        *self.driver.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&driver);
        Ok(driver)
    }

    /// Sets what is not left to a URI.
    fn limit(&self, options: &mut ClientOptions) {
        let shorter = |time: &mut Option<Duration>| {
            let limit = self.limits.connect;
            *time = Some(time.map_or(limit, |time| time.min(limit)));
        };
        shorter(&mut options.connect_timeout);
        shorter(&mut options.server_selection_timeout);
        options.max_pool_size = u32::try_from(self.limits.max_connections).ok();
        options.min_pool_size = None;
        options.max_idle_time = Some(self.limits.idle);
        options
            .app_name
            .get_or_insert_with(|| "postkeep".to_owned());
        // One connection less for each server.
        options
            .server_monitoring_mode
            .get_or_insert(ServerMonitoringMode::Poll);
        if let Some(Tls::Enabled(tls)) = &mut options.tls
            && tls.ca_file_path.is_none()
        {
            tls.ca_file_path = system_file();
        }
    }
}

impl Backend for Server {
    /// The right to use the driver's connections.
    type Connection = Arc<Driver>;
    type Request = Question;
    type Answer = Values;

    async fn connect(&self, _: &Host) -> Result<Arc<Driver>, String> {
        let driver = self.driver().await.map_err(|error| reason(&error))?;
        // Finds a server, connects and authenticates.
        let ping = || async {
            let database = driver.client.database("admin");
            driver
                .attempt(database.run_command(doc! {"ping": 1}).into_future())
                .await
        };
        let mut answer = ping().await;
        if matches!(&answer, Err(trouble) if trouble.is_stale()) {
            // A connection that lay idle; the driver has dropped all others with it.
            answer = ping().await;
        }
        answer.map_err(|trouble| trouble.to_string())?;
        Ok(driver)
    }

    async fn ask(
        &self,
        driver: &mut Arc<Driver>,
        _: &Host,
        question: &Question,
    ) -> Result<Values, Fault> {
        let Namespace { db, coll, .. } = &question.place;
        let collection = driver
            .client
            .database(db)
            .collection::<RawDocumentBuf>(coll);
        let find = async {
            let mut values = Values::default();
            let mut cursor = collection
                .find(question.filter.clone())
                .projection(question.projection.clone())
                .await?;
            while !values.is_too_much() && cursor.advance().await? {
                if let Err(error) = values.add(cursor.current()) {
                    return Ok(Err(error));
                }
            }
            Ok(Ok(values))
        };
        let trouble = match driver.attempt(find).await {
            Ok(Ok(values)) => return Ok(values),
            Ok(Err(error)) => {
                warn!("{}", question.warning(&error));
                return Err(Fault::Answer(LookupError::Retry(String::new())));
            }
            Err(trouble) => trouble,
        };
        let warning = question.warning(&trouble);
        let Trouble::Driver(error) = &trouble else {
            return Err(Fault::Host(warning));
        };
        match &*error.kind {
            ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. } => {
                Err(Fault::Stale(warning))
            }
            ErrorKind::Command(_) => {
                warn!("{warning}");
                Err(Fault::Answer(LookupError::Retry(String::new())))
            }
            ErrorKind::InvalidResponse { .. }
            | ErrorKind::Bson(_)
            | ErrorKind::BsonDeserialization(_) => {
                warn!("{warning}");
                Err(Fault::Broken(LookupError::Retry(String::new())))
            }
            _ => Err(Fault::Host(warning)),
        }
    }

    fn connect_warning(&self, _: &Host, reason: &str) -> String {
        format!("connect to mongodb server {}: {reason}", self.shown)
    }

    fn timeout_warning(&self, _: &Host, question: &Question) -> String {
        question.warning(&"Connection timed out")
    }

    fn label(&self) -> String {
        self.shown.clone()
    }
}

impl Question {
    fn warning(&self, why: &dyn fmt::Display) -> String {
        let (table, text) = (&self.table, Printable(&self.text));
        format!("{table}: cursor error for '{text}': {why}")
    }
}
