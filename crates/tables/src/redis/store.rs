//! Whom a question goes to: the one server that there is, or the node of a cluster that has the slot of the key.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use ::redis::Value;
use log::warn;
use postkeep_remote::hosts::{Host, Place};
use postkeep_remote::pool::{Pool, Refusal};
use postkeep_remote::tls::{Tls, TlsError};
use postkeep_table::{LookupError, Printable};
use rustls::ClientConfig;
use tokio::time::{Duration, Instant};

use super::server::{Node, Question, Reply, Server};
use super::settings::{Mode, Settings};
use super::wire::{SLOTS, slot};

/// How often a question follows one node to the next.
const REDIRECTIONS: usize = 5;

/// The most nodes that a cluster may have; the specification recommends fewer than 1000.
const NODES: usize = 2000;

/// How soon the nodes of a cluster are asked for again.
const REFRESH: Duration = Duration::from_millis(200);

/// Where the data is.
pub(super) enum Store {
    Servers(Arc<Pool<Server>>),
    Cluster(Cluster),
}

/// Stores that tables share.
static STORES: OnceLock<Mutex<HashMap<Settings, Weak<Store>>>> = OnceLock::new();

impl Store {
    /// The store with these settings, which is made when there is none.
    ///
    /// # Errors
    /// A file of TLS that cannot be used.
    pub(super) fn open(settings: Settings) -> Result<Arc<Self>, TlsError> {
        let stores = STORES.get_or_init(Mutex::default);
        let mut stores = stores.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = stores.get(&settings).and_then(Weak::upgrade) {
            return Ok(store);
        }
        stores.retain(|_, store| store.strong_count() > 0);
        let tls = settings.tls.as_ref().map(Tls::client).transpose()?;
        let store = Arc::new(Self::new(&Arc::new(settings.clone()), tls));
        stores.insert(settings, Arc::downgrade(&store));
        Ok(store)
    }

    fn new(settings: &Arc<Settings>, tls: Option<Arc<ClientConfig>>) -> Self {
        let texts: Vec<_> = settings.hosts.iter().map(|host| &host.text[..]).collect();
        let (hosts, label) = match &settings.mode {
            Mode::Sentinels { master, .. } => {
                // To the pool this is one host, wherever it is.
                let text = format!("{} of sentinels {}", Printable(master), texts.join(" "));
                let host = Host {
                    place: Place::Uri(text.clone()),
                    text,
                };
                (vec![host.clone()], format!("redis:{}", host.text))
            }
            Mode::Servers | Mode::Cluster => {
                (settings.hosts.clone(), format!("redis:{}", texts.join(" ")))
            }
        };
        let server = Server::new(Arc::clone(settings), tls.clone(), label);
        let pool = Pool::new(server, hosts, settings.limits.clone());
        if settings.mode != Mode::Cluster {
            return Self::Servers(pool);
        }
        Self::Cluster(Cluster {
            settings: Arc::clone(settings),
            tls,
            seeds: pool,
            map: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
        })
    }

    /// Asks who has this key.
    ///
    /// # Errors
    /// [`LookupError::Retry`]; all about it has been logged.
    pub(super) async fn ask(&self, key: &[u8], question: Question) -> Result<Value, LookupError> {
        match self {
            Self::Servers(pool) => of_server(pool, &question).await,
            Self::Cluster(cluster) => cluster.ask(slot(key), question).await,
        }
    }

    /// All who have keys; `None` for the one that there is.
    ///
    /// # Errors
    /// As for [`Self::ask`].
    pub(super) async fn nodes(&self) -> Result<Vec<Option<Node>>, LookupError> {
        match self {
            Self::Servers(_) => Ok(vec![None]),
            Self::Cluster(cluster) => {
                cluster.refresh().await?;
                let map = cluster.lock();
                let nodes: HashSet<_> = map.slots.iter().flatten().collect();
                let nodes = nodes
                    .into_iter()
                    .filter_map(|&at| map.nodes.get(usize::from(at)));
                Ok(nodes.map(|(node, _)| Some(node.clone())).collect())
            }
        }
    }

    /// Asks one of [`Self::nodes`].
    ///
    /// # Errors
    /// As for [`Self::ask`].
    pub(super) async fn ask_node(
        &self,
        node: Option<&Node>,
        question: Question,
    ) -> Result<Value, LookupError> {
        match (self, node) {
            (Self::Servers(pool), _) => of_server(pool, &question).await,
            (Self::Cluster(cluster), Some(node)) => {
                let pool = cluster.lock().pool(node, cluster);
                of_server(&pool, &question).await
            }
            (Self::Cluster(_), None) => Err(LookupError::Retry(String::new())),
        }
    }
}

async fn of_server(pool: &Arc<Pool<Server>>, question: &Question) -> Result<Value, LookupError> {
    match pool.ask(question).await? {
        Reply::Value { value, .. } => Ok(value),
        Reply::Moved(_) | Reply::Ask(_) => {
            warn!(
                "{}",
                question.failed(&"the server is a node of a cluster, and cluster = yes is not set")
            );
            Err(LookupError::Config(String::new()))
        }
    }
}

/// Which node has which slot.
#[derive(Default)]
struct Map {
    nodes: Vec<(Node, Arc<Pool<Server>>)>,
    /// Numbers of nodes, by slot; empty before the nodes were asked for.
    slots: Vec<Option<u16>>,
    /// What is here may be wrong.
    stale: bool,
    refreshed: Option<Instant>,
}

impl Map {
    /// The pool of a node, which is made when there is none.
    fn pool(&mut self, node: &Node, cluster: &Cluster) -> Arc<Pool<Server>> {
        if let Some((_, pool)) = self.nodes.iter().find(|(other, _)| other == node) {
            return Arc::clone(pool);
        }
        let host = node.as_host();
        let server = Server::new(
            Arc::clone(&cluster.settings),
            cluster.tls.clone(),
            format!("redis:{}", host.text),
        );
        let pool = Pool::new(server, vec![host], cluster.settings.limits.clone());
        if self.nodes.len() < NODES {
            self.nodes.push((node.clone(), Arc::clone(&pool)));
        }
        pool
    }

    fn number(&mut self, node: &Node, cluster: &Cluster) -> Option<u16> {
        self.pool(node, cluster);
        let at = self.nodes.iter().position(|(other, _)| other == node)?;
        u16::try_from(at).ok()
    }

    fn of_slot(&self, slot: u16) -> Option<Arc<Pool<Server>>> {
        let at = (*self.slots.get(usize::from(slot))?)?;
        self.nodes
            .get(usize::from(at))
            .map(|(_, pool)| Arc::clone(pool))
    }
}

/// A cluster: a pool for each node, and one to ask for the nodes.
pub(super) struct Cluster {
    settings: Arc<Settings>,
    tls: Option<Arc<ClientConfig>>,
    seeds: Arc<Pool<Server>>,
    map: Mutex<Map>,
    /// Held while the nodes are asked for: others wait for what comes of it.
    refreshing: tokio::sync::Mutex<()>,
}

impl Cluster {
    fn lock(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, slot: u16, mut question: Question) -> Result<Value, LookupError> {
        if self.lock().stale || self.lock().slots.is_empty() {
            self.refresh().await?;
        }
        let mut next = self.lock().of_slot(slot);
        for attempt in 0..=REDIRECTIONS {
            let Some(pool) = next.take() else {
                // Told apart from a node that is down: nobody has the slot.
                self.lock().stale = true;
                warn!(
                    "{}",
                    question.failed(&format_args!("no node has slot {slot}"))
                );
                return Err(LookupError::Retry(String::new()));
            };
            match pool.ask(&question).await {
                Ok(Reply::Value { value, .. }) => return Ok(value),
                Ok(Reply::Moved(node)) => {
                    question.asking = false;
                    let mut map = self.lock();
                    let number = map.number(&node, self);
                    if let Some(place) = map.slots.get_mut(usize::from(slot)) {
                        *place = number;
                    }
                    map.stale = true;
                    next = Some(map.pool(&node, self));
                }
                Ok(Reply::Ask(node)) => {
                    question.asking = true;
                    next = Some(self.lock().pool(&node, self));
                }
                Err(refusal @ (Refusal::Unreachable(_) | Refusal::Resting)) => {
                    // Perhaps another one has taken over.
                    self.lock().stale = true;
                    self.refresh().await?;
                    let now = self.lock().of_slot(slot);
                    next = now.filter(|now| attempt == 0 && !Arc::ptr_eq(now, &pool));
                    if next.is_none() {
                        return Err(refusal.into());
                    }
                }
                Err(refusal) => return Err(refusal.into()),
            }
        }
        warn!("{}", question.failed(&"sent from one node to the next"));
        Err(LookupError::Retry(String::new()))
    }

    /// Asks for the nodes, unless somebody has just done that.
    async fn refresh(&self) -> Result<(), LookupError> {
        let _one_at_a_time = self.refreshing.lock().await;
        let fresh = |map: &Map| map.refreshed.is_some_and(|then| then.elapsed() < REFRESH);
        if fresh(&self.lock()) {
            return Ok(());
        }
        let what = format!("nodes of the cluster of {}", self.settings.hosts[0].text);
        let question = Question::new(&[b"CLUSTER", b"SLOTS"], 1 << 20, what);
        let known: Vec<_> = {
            let map = self.lock();
            map.nodes.iter().map(|(_, pool)| Arc::clone(pool)).collect()
        };
        // Nodes that were configured may be gone for long.
        let mut last = None;
        for pool in std::iter::once(&self.seeds).chain(&known) {
            match pool.ask(&question).await {
                Ok(Reply::Value { value, asked }) => {
                    self.learn(&value, &asked);
                    return Ok(());
                }
                Ok(_) => {}
                Err(refusal) => last = last.or(Some(refusal)),
            }
        }
        Err(last.map_or_else(|| LookupError::Retry(String::new()), LookupError::from))
    }

    /// Takes the answer to `CLUSTER SLOTS`: for each range its first and last slot and its nodes, the master before the
    /// others, each with host and port.
    fn learn(&self, answer: &Value, asked: &Host) {
        let mut map = self.lock();
        let before = std::mem::take(&mut map.nodes);
        let old: HashMap<_, _> = before.into_iter().collect();
        let mut slots = vec![None; usize::from(SLOTS)];
        let ranges = match answer {
            Value::Array(ranges) => &ranges[..],
            _ => &[],
        };
        for (first, last, node) in ranges.iter().filter_map(|range| range_of(range, asked)) {
            if let Some(pool) = old.get(&node)
                && !map.nodes.iter().any(|(other, _)| *other == node)
            {
                map.nodes.push((node.clone(), Arc::clone(pool)));
            }
            let number = map.number(&node, self);
            slots[usize::from(first)..=usize::from(last)].fill(number);
        }
        map.slots = slots;
        map.stale = false;
        map.refreshed = Some(Instant::now());
    }
}

fn range_of(range: &Value, asked: &Host) -> Option<(u16, u16, Node)> {
    let Value::Array(parts) = range else {
        return None;
    };
    let [
        Value::Int(first),
        Value::Int(last),
        Value::Array(master),
        ..,
    ] = &parts[..]
    else {
        return None;
    };
    let [host, Value::Int(port), ..] = &master[..] else {
        return None;
    };
    let host = match host {
        Value::BulkString(host) => std::str::from_utf8(host).ok()?,
        Value::Nil => "",
        _ => return None,
    };
    let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
    let node = Node::new(host, u16::try_from(*port).ok()?, asked)?;
    (first <= last && last < SLOTS).then_some((first, last, node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_slots() {
        let asked = Node {
            host: "a".to_owned(),
            port: 1,
        }
        .as_host();
        let range = |first, last, host: Value, port| {
            let master = Value::Array(vec![host, Value::Int(port)]);
            let range = Value::Array(vec![Value::Int(first), Value::Int(last), master]);
            range_of(&range, &asked).map(|(first, last, node)| (first, last, node.as_host().text))
        };
        let host = || Value::BulkString(b"h".to_vec());
        assert_eq!(range(0, 5, host(), 7), Some((0, 5, "h:7".to_owned())));
        assert_eq!(range(3, 3, Value::Nil, 7), Some((3, 3, "a:7".to_owned())));
        for (first, last, port) in [
            (5, 4, 7),
            (0, 16_384, 7),
            (-1, 4, 7),
            (0, 1, 0),
            (0, 1, 65_536),
        ] {
            assert_eq!(range(first, last, host(), port), None);
        }
        assert_eq!(range(0, 5, Value::Int(1), 7), None);
    }
}
