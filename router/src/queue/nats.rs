//! The engine `nats`: NATS JetStream, a stream a partition.
//!
//! ```text
//! append ─► packs: one message a partition (or a few) ─► stream CLUSTER-LOG-PARTITION, on `--nats-replicas` servers
//!           { first offset, records }                     expecting its last sequence, or refused
//! ```
//!
//! - A server syncs every message, so the records of a partition that are appended together go as one (`pack`). A message is
//!   stored whole or not at all.
//! - Every message names the sequence it expects to follow. Where another router has appended since, it is refused: that is what
//!   keeps a former owner out. A message whose fate is not known (the servers were silent) may even come in later; then whoever
//!   appends next is refused, opens again and reads it.
//! - Where the log ends is what its leader says; records are read from any server that has them (`direct`).
//! - The last message of a stream is never purged: it says which offset comes next.
//!
//! The connection is shared by all logs and the claims; it finds the servers of the cluster and reconnects by itself, on a thread
//! of its own.

mod direct;
mod log;
mod pack;
mod places;
mod reading;
mod servers;
mod streams;
#[cfg(test)]
pub(crate) mod tests;
mod trimming;

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, Event};
use tokio::runtime::{Builder, Handle, Runtime};

use self::log::{APPEND_DEADLINE, NatsLog};
use super::{Log, Opener, Queue, QueueError};
use crate::config::nats::NatsConfig;

pub(crate) use self::direct::{get as direct_get, sequence_of};

/// Longest wait for one server to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest pause between two tries to connect again.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_millis(500);
/// A server that is silent for two of these is left for another.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Messages that may be on their way in one append; more wait.
const PUBLISHING_MAX: usize = 4_096;

/// A connection to the servers. Clones share it.
#[derive(Clone)]
pub struct NatsEngine(Arc<Inner>);

struct Inner {
    runtime: OwnRuntime,
    client: Client,
    context: Context,
    servers: String,
    cluster: String,
    partitions: u16,
    replicas: usize,
    warnings: Vec<String>,
}

impl std::fmt::Debug for NatsEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsEngine").field("servers", &self.0.servers).finish_non_exhaustive()
    }
}

impl NatsEngine {
    /// Connects, and looks at how the servers are set up. Runs on any executor; the work is done on a thread of its own. What
    /// `cluster` names is shared by all routers that have the same, with one number of partitions.
    ///
    /// # Errors
    /// A sentence: no server is there, it does not let us in, or a knob is wrong. May be tried again.
    pub async fn connect(
        config: &NatsConfig,
        cluster: &str,
        partitions: u16,
    ) -> Result<Self, QueueError> {
        check_cluster(cluster)?;
        let runtime = OwnRuntime::start()?;
        let replicas = usize::from(config.nats_replicas);
        let config = config.clone();
        let cluster = cluster.to_owned();
        let connecting = runtime.handle().spawn(async move {
            let (client, servers) = connect(&config).await?;
            let mut warnings = servers::unsynced(&config.nats_monitor).await;
            warnings.extend(alone(config.nats_replicas));
            for warning in &warnings {
                tracing::warn!("{warning}");
            }
            let context = jetstream::ContextBuilder::new()
                .timeout(APPEND_DEADLINE)
                .max_ack_inflight(PUBLISHING_MAX)
                .build(client.clone());
            Ok((client, context, servers, warnings))
        });
        let connected = connecting.await;
        let (client, context, servers, warnings) = connected
            .map_err(|error| QueueError(format!("NATS was not connected: {error}")))
            .flatten()?;
        let inner =
            Inner { runtime, client, context, servers, cluster, partitions, replicas, warnings };
        Ok(Self(Arc::new(inner)))
    }

    /// What may be lost with the servers as they are set up, a sentence each. They are in the log already.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.0.warnings
    }

    /// Opens one of the two logs, as often as needed.
    #[must_use]
    pub fn opener(&self, log: Log) -> NatsOpener {
        NatsOpener { engine: self.clone(), log }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(crate) fn context(&self) -> &Context {
        &self.0.context
    }

    pub(crate) fn cluster(&self) -> &str {
        &self.0.cluster
    }

    pub(crate) fn replicas(&self) -> usize {
        self.0.replicas
    }

    pub(crate) fn partitions(&self) -> u16 {
        self.0.partitions
    }

    fn handle(&self) -> &Handle {
        self.0.runtime.handle()
    }

    /// Waits on this thread, which must be none of a runtime's.
    fn block_on<T>(
        &self,
        deadline: Duration,
        work: impl Future<Output = Result<T, QueueError>>,
    ) -> Result<T, QueueError> {
        let bounded = async { tokio::time::timeout(deadline, work).await };
        self.handle().block_on(bounded).unwrap_or_else(|_| {
            Err(QueueError(format!(
                "the NATS servers ({}) did not answer within {deadline:?}",
                self.0.servers
            )))
        })
    }
}

/// Opens one log of all partitions; the streams are made when they are not there.
#[derive(Debug, Clone)]
pub struct NatsOpener {
    engine: NatsEngine,
    log: Log,
}

impl Opener for NatsOpener {
    fn open(&mut self) -> Result<Box<dyn Queue>, QueueError> {
        if self.engine.client().connection_state() != async_nats::connection::State::Connected {
            return Err(QueueError(format!(
                "none of the NATS servers can be reached ({})",
                self.engine.0.servers
            )));
        }
        Ok(Box::new(NatsLog::open(self.engine.clone(), self.log)?))
    }
}

/// One worker thread for the connection. Ends without waiting, wherever it is dropped.
struct OwnRuntime(Option<Runtime>, Handle);

impl OwnRuntime {
    fn start() -> Result<Self, QueueError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("nats")
            .enable_all()
            .build()
            .map_err(|error| QueueError(format!("no thread for NATS: {error}")))?;
        let handle = runtime.handle().clone();
        Ok(Self(Some(runtime), handle))
    }

    fn handle(&self) -> &Handle {
        &self.1
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn connect(config: &NatsConfig) -> Result<(Client, String), QueueError> {
    let servers: Vec<String> = config.nats_url.iter().map(ToString::to_string).collect();
    let servers = servers.join(", ");
    let mut options = ConnectOptions::new()
        .name("hawser-router")
        .connection_timeout(CONNECT_TIMEOUT)
        .ping_interval(PING_INTERVAL)
        .request_timeout(Some(APPEND_DEADLINE))
        .reconnect_delay_callback(|tries| {
            RECONNECT_PAUSE_MAX.min(Duration::from_millis(10 * tries.min(1_000) as u64))
        })
        .event_callback(|event| async move { note(&event) });
    if let Some(file) = &config.nats_credentials {
        options = options.credentials_file(file).await.map_err(|error| {
            QueueError(format!("--nats-credentials: {}: {error}", file.display()))
        })?;
    }
    if let Some(file) = &config.nats_ca {
        options = options.add_root_certificates(file.clone()).require_tls(true);
    }
    let addresses: Vec<_> = config.nats_url.iter().map(|url| url.0.clone()).collect();
    let client = options
        .connect(&addresses[..])
        .await
        .map_err(|error| QueueError(format!("NATS ({servers}): {error}")))?;
    Ok((client, servers))
}

fn note(event: &Event) {
    match event {
        Event::Connected => tracing::info!("connected to NATS"),
        Event::Disconnected => tracing::warn!("the connection to NATS broke"),
        Event::LameDuckMode | Event::Draining | Event::Closed => tracing::info!(%event, "NATS"),
        Event::SlowConsumer(_) | Event::ServerError(_) | Event::ClientError(_) => {
            tracing::warn!(%event, "NATS");
        }
    }
}

/// Streams, subjects and buckets carry the name.
fn check_cluster(cluster: &str) -> Result<(), QueueError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if !cluster.is_empty() && cluster.bytes().all(fits) {
        return Ok(());
    }
    Err(QueueError(format!(
        "--cluster: {cluster:?} cannot be part of a stream's name; allowed are letters, digits, - and _"
    )))
}

fn alone(replicas: u8) -> Option<String> {
    (replicas == 1).then(|| {
        "--nats-replicas 1: every partition is on one server, whose disk alone keeps it".to_owned()
    })
}
