//! A view of the registries in a Redis Cluster, so that other services can ask who is online: [`look_up`].
//!
//! ```text
//!  owners ─ notices ─► Publisher ─ a batch, each change of another user ─► PREFIX:{user}        never renewed
//!                          └────── every second ─► PREFIX:partition:N, PREFIX:edge:…            expire after a lease
//! ```
//!
//! What stands there is decided in [`keys`]. The registries in memory are the truth, and delivery never looks here. When Redis
//! does not take a change it is dropped, and once Redis works again everything is told again by a **walk** through the
//! registries. A walk writes in a **round** of its own; when it is over, and nothing was dropped since it began, entries of
//! earlier rounds do not count any more. So what should have been taken out, and was not, goes then, and until then nobody
//! flickers. A walk also comes every `--redis-rewrite-interval`, for what Redis lost without a word.

pub mod connection;
mod keys;
pub mod reading;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashSet;
use futures_util::future::join_all;
use redis::{RedisResult, Value};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use self::connection::Connection;
use self::keys::{Entry, Owner, Scripts, edge_key, json, partition_key, user_key};
pub use self::reading::look_up;
use super::EdgeId;
use super::view::{Change, Notice, Presence, Told, View};
use crate::config::Config;
use crate::config::redis::{RedisConfig, RegistryKind};
use crate::health::{Health, Part};
use crate::limits;
use crate::link::Links;
use crate::metrics::Metrics;
use crate::queue::PartitionId;

/// Edges that are remembered, so that those that are gone can be named.
const EDGES_REMEMBERED: usize = 2 * limits::EDGES_MAX;
/// Keys of users expire after so many intervals between two walks.
const EXPIRY_INTERVALS: u32 = 3;

/// The edges that are waited for: number, name and epoch.
pub type KnownEdges = Box<dyn Fn() -> Vec<(EdgeId, String, u64)> + Send + Sync>;

/// Where owners tell their registries, when that is wanted, and what is told there.
#[must_use]
pub fn view(config: &Config, metrics: &Metrics) -> Option<(Arc<View>, mpsc::Receiver<Notice>)> {
    if config.redis.registry == RegistryKind::Local {
        return None;
    }
    let (view, told) = View::new(config.partitions, metrics.registry_dropped.clone());
    Some((Arc::new(view), told))
}

/// Starts to bring it to Redis.
pub fn publish(
    config: &Config,
    links: &Arc<Links>,
    health: &Arc<Health>,
    told: mpsc::Receiver<Notice>,
) -> Option<JoinHandle<()>> {
    let view = links.ways.view.clone()?;
    let known = Arc::clone(links);
    let publisher = Publisher::new(Parts {
        config: config.redis.clone(),
        router: format!("{}/{:x}", links.router_id, links.epoch),
        lease: config.lease,
        view,
        edges: Box::new(move || known.edges.known()),
        health: Arc::clone(health),
        metrics: Arc::clone(&links.ways.metrics),
    });
    Some(tokio::spawn(publisher.run(told)))
}

/// What a publisher is made of.
pub struct Parts {
    /// Where the servers are.
    pub config: RedisConfig,
    /// Name and epoch of this start of the router.
    pub router: String,
    /// How long what is not renewed counts.
    pub lease: Duration,
    /// Where owners tell their registries.
    pub view: Arc<View>,
    /// The edges.
    pub edges: KnownEdges,
    /// Told when Redis does not work.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Keeps the view.
pub struct Publisher {
    parts: Parts,
    scripts: Scripts,
    connection: Option<Connection>,
    /// By partition; absent where it is not served here.
    terms: Vec<Option<Term>>,
    /// By number: name, and epoch.
    names: BTreeMap<EdgeId, (String, u64)>,
    /// Something was dropped after the last walk was asked for.
    has_dropped: bool,
}

/// A partition that is served here.
#[derive(Debug, Clone)]
struct Term {
    epoch: u64,
    /// The lowest round that counts, and the one that is written.
    rounds: (u64, u64),
    is_walked: bool,
    /// Since the walk began.
    has_dropped: bool,
    /// It has stood in Redis.
    is_known: bool,
}

impl Publisher {
    /// Nothing is connected yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let terms = parts.view.served().iter().map(|_| None).collect();
        let scripts = Scripts::new();
        let names = BTreeMap::new();
        Self { parts, scripts, connection: None, terms, names, has_dropped: false }
    }

    /// Serves until nobody tells anything any more.
    pub async fn run(mut self, mut notices: mpsc::Receiver<Notice>) {
        let mut renewal =
            tokio::time::interval((self.parts.lease / 3).min(limits::VIEW_RENEW_INTERVAL));
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let rewrite_interval = self.parts.config.redis_rewrite_interval;
        let mut rewrite_at = Instant::now() + rewrite_interval;
        let mut batch = Vec::with_capacity(limits::VIEW_BATCH_MAX);
        loop {
            tokio::select! {
                biased;
                now = renewal.tick() => {
                    self.renew().await;
                    if now >= rewrite_at {
                        self.parts.view.want_walk();
                        rewrite_at = now + rewrite_interval;
                    }
                }
                count = notices.recv_many(&mut batch, limits::VIEW_BATCH_MAX) => {
                    if count == 0 {
                        return;
                    }
                    self.publish(batch.drain(..)).await;
                }
            }
        }
    }

    /// Keeps partitions and edges alive in Redis. When all of that works, and something was dropped before, asks for a walk.
    async fn renew(&mut self) {
        self.note_served();
        self.note_edges();
        if self.connection.is_none() {
            match Connection::open(&self.parts.config).await {
                Ok(connection) => self.connection = Some(connection),
                Err(reason) => {
                    self.note_problem(&reason);
                    return;
                }
            }
        }
        let Some(connection) = self.connection.clone() else { return };
        let lease_ms = self.parts.lease.as_millis().to_string();
        let served = self.terms.iter().enumerate();
        let served = served.filter_map(|(at, term)| Some((at as PartitionId, term.as_ref()?)));
        let owned = served.map(|(partition, term)| {
            let owner = json(&self.owner(term, term.rounds.0));
            let (epoch, key) = (term.epoch.to_string(), partition_key(self.prefix(), partition));
            let (connection, lease_ms, script) = (&connection, &lease_ms, &self.scripts.own);
            async move {
                let arguments = [owner.as_bytes(), epoch.as_bytes(), lease_ms.as_bytes()];
                (partition, connection.run(script, &key, &arguments).await)
            }
        });
        let edges = (self.parts.edges)();
        let edges = edges.iter().map(|(_, name, epoch)| {
            let mut command = redis::cmd("SET");
            command.arg(edge_key(self.prefix(), name, *epoch)).arg("1").arg("PX").arg(&lease_ms);
            let connection = &connection;
            async move { connection.ask(&command).await }
        });
        let (owned, edges) = tokio::join!(join_all(owned), join_all(edges));
        let works =
            owned.iter().any(|(_, answer)| answer.is_ok()) || edges.iter().any(Result::is_ok);
        let mut problem = None;
        for (partition, answer) in owned {
            let Some(term) = &mut self.terms[usize::from(partition)] else { continue };
            match answer {
                // It was there a second ago: what else stood beside it is gone too.
                Ok(Value::Int(1)) if term.is_known => self.has_dropped = true,
                Ok(Value::Int(0)) => {}
                Ok(_) => term.is_known = true,
                Err(error) => problem = Some(error),
            }
        }
        problem = edges.into_iter().find_map(Result::err).or(problem);
        match problem {
            Some(error) => {
                // A part of a cluster is found again; where nothing answers it begins anew.
                self.connection = self.connection.take().filter(|_| works);
                self.note_problem(&error.to_string());
            }
            None => {
                self.parts.health.set(Part::Registry, None);
                if std::mem::take(&mut self.has_dropped) {
                    self.parts.view.want_walk();
                }
            }
        }
    }

    /// Writes what changed, in order for every user.
    async fn publish(&mut self, notices: impl Iterator<Item = Notice>) {
        let mut batch: Vec<(PartitionId, Change)> = Vec::new();
        let mut users = AHashSet::new();
        for Notice { partition, epoch, told } in notices {
            if !self.is_owner(partition, epoch) {
                continue;
            }
            match told {
                Told::Change(change) => {
                    if !users.insert(Box::<str>::from(change.user())) {
                        self.write(std::mem::take(&mut batch)).await;
                        users.clear();
                        users.insert(change.user().into());
                    }
                    batch.push((partition, change));
                }
                Told::WalkBegins => {
                    self.write(std::mem::take(&mut batch)).await;
                    users.clear();
                    if let Some(term) = &mut self.terms[usize::from(partition)] {
                        term.rounds.1 += 1;
                        (term.is_walked, term.has_dropped) = (true, false);
                    }
                }
                Told::WalkEnds { whole } => {
                    self.write(std::mem::take(&mut batch)).await;
                    users.clear();
                    if let Some(term) = &mut self.terms[usize::from(partition)]
                        && std::mem::take(&mut term.is_walked)
                        && whole
                        && !term.has_dropped
                    {
                        term.rounds.0 = term.rounds.1;
                        self.parts.metrics.registry_rewrites.inc();
                    }
                }
            }
        }
        self.write(batch).await;
    }

    /// Writes changes of users of whom each is there once.
    async fn write(&mut self, batch: Vec<(PartitionId, Change)>) {
        if batch.is_empty() {
            return;
        }
        let is_new = |(_, change): &(_, Change)| match change {
            Change::Came(presence) => !self.names.contains_key(&presence.connection.edge),
            Change::Left { .. } => false,
        };
        if batch.iter().any(is_new) {
            // Its entries count when the edge is there.
            self.renew().await;
        }
        let Some(connection) = self.connection.clone() else {
            for (partition, _) in &batch {
                self.note_dropped(*partition);
            }
            return;
        };
        let expiry = self.parts.config.redis_rewrite_interval * EXPIRY_INTERVALS;
        let expiry_ms = expiry.as_millis().to_string();
        let answers = join_all(batch.iter().map(|(partition, change)| {
            self.write_one(&connection, *partition, change, &expiry_ms)
        }));
        let answers = answers.await;
        for ((partition, change), answer) in batch.iter().zip(answers) {
            match (answer, change) {
                (Some(Ok(Value::Int(0))), Change::Came(_)) => {
                    self.parts.metrics.registry_outdated.inc();
                }
                (Some(Ok(_)), _) => drop(self.parts.metrics.registry_written.inc()),
                (Some(Err(error)), _) => {
                    self.note_dropped(*partition);
                    self.note_problem(&error.to_string());
                }
                // The edge or the partition is gone, and so is what was there.
                (None, _) => {}
            }
        }
    }

    async fn write_one(
        &self,
        connection: &Connection,
        partition: PartitionId,
        change: &Change,
        expiry_ms: &str,
    ) -> Option<RedisResult<Value>> {
        let term = self.terms[usize::from(partition)].as_ref()?;
        let key = user_key(self.prefix(), change.user());
        let epoch = term.epoch.to_string();
        Some(match change {
            Change::Came(presence) => {
                let entry = self.entry(partition, term, presence)?;
                let (text, round) = (json(&entry), entry.owner.round.to_string());
                let arguments =
                    [&*presence.device, &text, &epoch, &entry.owner.owner, &round, expiry_ms];
                let arguments = arguments.map(str::as_bytes);
                connection.run(&self.scripts.register, &key, &arguments).await
            }
            Change::Left { connection: left, .. } => {
                let (edge, edge_epoch) = self.names.get(&left.edge)?;
                let (edge_epoch, number) = (edge_epoch.to_string(), left.connection.to_string());
                let arguments = [&**edge, &edge_epoch, &number, &epoch].map(str::as_bytes);
                connection.run(&self.scripts.unregister, &key, &arguments).await
            }
        })
    }

    fn entry(&self, partition: PartitionId, term: &Term, presence: &Presence) -> Option<Entry> {
        let (edge, edge_epoch) = self.names.get(&presence.connection.edge)?;
        Some(Entry {
            edge: edge.clone(),
            edge_epoch: *edge_epoch,
            connection: presence.connection.connection,
            connected_at_ms: presence.connected_at_ms,
            kind: presence.program.kind.clone(),
            version: presence.program.version.clone(),
            partition,
            owner: self.owner(term, term.rounds.1),
        })
    }

    fn owner(&self, term: &Term, round: u64) -> Owner {
        let owner = format!("{}/{}", self.parts.router, term.epoch);
        Owner { owner, term: term.epoch, round }
    }

    fn prefix(&self) -> &str {
        &self.parts.config.redis_prefix
    }

    /// Whether a notice is of the owner that serves the partition now, and not of one before.
    fn is_owner(&mut self, partition: PartitionId, epoch: u64) -> bool {
        let has = |terms: &[Option<Term>]| {
            let term = terms.get(usize::from(partition)).and_then(Option::as_ref);
            term.is_some_and(|term| term.epoch == epoch)
        };
        if !has(&self.terms) {
            self.note_served();
        }
        has(&self.terms)
    }

    fn note_served(&mut self) {
        for (term, epoch) in self.terms.iter_mut().zip(self.parts.view.served()) {
            if term.as_ref().map(|term| term.epoch) != epoch {
                *term = epoch.map(Term::new);
            }
        }
    }

    fn note_edges(&mut self) {
        for (id, name, epoch) in (self.parts.edges)() {
            self.names.entry(id).or_insert((name, epoch));
        }
        while self.names.len() > EDGES_REMEMBERED {
            self.names.pop_first();
        }
    }

    fn note_dropped(&mut self, partition: PartitionId) {
        self.has_dropped = true;
        self.parts.metrics.registry_dropped.inc();
        if let Some(term) = &mut self.terms[usize::from(partition)] {
            term.has_dropped = true;
        }
    }

    fn note_problem(&self, reason: &str) {
        let sentence = format!("Redis does not tell others who is online: {reason}");
        self.parts.health.set(Part::Registry, Some(sentence));
    }
}

impl Term {
    fn new(epoch: u64) -> Self {
        Self { epoch, rounds: (0, 0), is_walked: false, has_dropped: false, is_known: false }
    }
}
