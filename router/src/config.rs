//! Every knob of the router: name, unit, default and range. Read by [`hawser_proto::knobs`] from flags,
//! `HAWSER_ROUTER_*` variables and the file that `--config` names.

pub mod kafka;
pub mod nats;
pub mod redis;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use hawser_proto::knobs::{
    Unfit, byte_size, count, duration, from_process, identifier, socket_address,
};

use crate::engine::EngineKind;
use crate::hub::HubConfig;
use crate::limits;

mod api;

pub use api::ApiKnobs;

/// Environment variables that are knobs start with this and an underscore.
pub const ENVIRONMENT_PREFIX: &str = "HAWSER_ROUTER";

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const KIB: usize = 1024;
const MIB: usize = 1024 * 1024;

/// Moves messages between edges and the durable queue.
#[derive(Debug, Clone, Parser)]
#[command(name = "hawser-router", version)]
pub struct Config {
    /// Where edges connect: address:port, or unix:/path. May be given several times.
    #[arg(long, value_name = "PLACE", default_value = "127.0.0.1:7800", value_parser = listen)]
    pub listen: Vec<Listen>,

    /// PEM file with this router's certificate and its chain; edges then have to speak TLS 1.3 where they come over TCP. Unix
    /// sockets stay as they are. Read at the start.
    #[arg(long, value_name = "FILE", requires = "link_tls_key")]
    pub link_tls_cert: Option<PathBuf>,

    /// PEM file with the private key of --link-tls-cert.
    #[arg(long, value_name = "FILE", requires = "link_tls_cert")]
    pub link_tls_key: Option<PathBuf>,

    /// PEM file with the authorities that sign the certificates of edges, which then have to show one.
    #[arg(long, value_name = "FILE", requires = "link_tls_cert")]
    pub link_tls_client_ca: Option<PathBuf>,

    /// Where /healthz and /metrics are served. Not meant for the outside.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7801",
          value_parser = socket_address)]
    pub admin: SocketAddr,

    /// Folder of the queue and the store. Made when it is not there; one router at a time uses it.
    #[arg(long, value_name = "FOLDER", default_value = "hawser-data")]
    pub data_dir: PathBuf,

    /// Name of this router, told to edges.
    #[arg(long, value_name = "NAME", default_value = "router-1", value_parser = identifier(1..=64))]
    pub router_id: String,

    /// Slices of the users. Fixed when the data folder is made.
    #[arg(long, value_name = "COUNT", default_value = "64",
          value_parser = count::<u16>(1..=limits::PARTITIONS_MAX as u64))]
    pub partitions: u16,

    /// Tasks that share the partitions; 0: one for every two cores.
    #[arg(long, value_name = "COUNT", default_value = "0", value_parser = count::<u16>(0..=256))]
    pub owners: u16,

    /// Unacknowledged messages let out to one device.
    #[arg(long, value_name = "MESSAGES", default_value = "64", value_parser = count::<u32>(1..=4096))]
    pub window: u32,

    /// Undelivered messages kept for a user; past it the oldest goes, told as a gap.
    #[arg(long, value_name = "MESSAGES", default_value = "10000",
          value_parser = count::<u64>(1..=1_000_000))]
    pub inbox_messages_max: u64,

    /// Oldest message that is delivered.
    #[arg(long, value_name = "DURATION", default_value = "30d",
          value_parser = duration(SECOND..=365 * DAY))]
    pub inbox_age_max: Duration,

    /// Without a frame for this long an edge's connections are forgotten.
    #[arg(long, value_name = "DURATION", default_value = "15s",
          value_parser = duration(Duration::from_millis(500)..=10 * MINUTE))]
    pub lease: Duration,

    /// Free disk space below which sends are refused.
    #[arg(long, value_name = "SIZE", default_value = "64MiB",
          value_parser = byte_size(0..=usize::MAX))]
    pub disk_free_min: usize,

    /// Least time from one commit to the next. What comes earlier waits and shares a sync and its wake-ups: less CPU a message for
    /// at most this much more latency. A message after a pause is committed at once. 0s: none waits.
    #[arg(long, value_name = "DURATION", default_value = "5ms",
          value_parser = duration(Duration::ZERO..=limits::COMMIT_INTERVAL_MAX))]
    pub commit_interval: Duration,

    /// Memory for undelivered messages, over all partitions; past it they are read back from disk.
    #[arg(long, value_name = "SIZE", default_value = "256MiB",
          value_parser = byte_size(MIB..=usize::MAX))]
    pub memory_max: usize,

    /// Memory for what was lately read from the store: inboxes and messages of those who come back, indexes, filters. The
    /// kernel keeps the files in its own cache as well; more than a few MiB helps where that is short.
    #[arg(long, value_name = "SIZE", default_value = "1MiB",
          value_parser = byte_size(256 * KIB..=usize::MAX))]
    pub store_cache: usize,

    /// What keeps the messages: the disk of this machine (embedded, one router), or servers that any number of routers
    /// share (nats, kafka).
    #[arg(long, value_name = "ENGINE", default_value = "embedded")]
    pub engine: EngineKind,

    /// Name of the routers that share an engine: what they keep there begins with it.
    #[arg(long, value_name = "NAME", default_value = "hawser", value_parser = identifier(1..=32))]
    pub cluster: String,

    /// The engine `nats`.
    #[command(flatten)]
    pub nats: nats::NatsConfig,

    /// The engine `kafka`.
    #[command(flatten)]
    pub kafka: kafka::KafkaConfig,

    /// The registry `redis`.
    #[command(flatten)]
    pub redis: redis::RedisConfig,

    /// The server API
    #[command(flatten)]
    pub api: ApiKnobs,

    /// What is logged, to standard error: error, warn, info, debug, trace, or a filter by module.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,
}

/// A place to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// An address and port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Config {
    /// Reads the knobs of this process; prints and exits when that cannot be done.
    #[must_use]
    pub fn from_process() -> Self {
        from_process(ENVIRONMENT_PREFIX)
    }

    /// The knobs that concern a partition.
    #[must_use]
    pub fn hub(&self) -> HubConfig {
        HubConfig {
            window_messages: self.window as usize,
            inbox_messages_max: self.inbox_messages_max,
            inbox_age_max_ms: i64::try_from(self.inbox_age_max.as_millis()).unwrap_or(i64::MAX),
            memory_bytes_max: self.memory_max / usize::from(self.partitions),
            record_bytes_max: usize::MAX,
            trace_steps_max: self.api.trace_steps,
            tells_registry: self.redis.registry == redis::RegistryKind::Redis,
        }
    }
}

fn listen(text: &str) -> Result<Listen, Unfit> {
    match text.strip_prefix("unix:") {
        Some("") => Err(Unfit("has no path after unix:".to_owned())),
        Some(path) => Ok(Listen::Unix(path.into())),
        None => socket_address(text).map(Listen::Tcp),
    }
}

#[cfg(test)]
mod tests {
    use hawser_proto::knobs::read;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Config, String> {
        let all = ["hawser-router"].iter().chain(arguments).map(Into::into);
        read(ENVIRONMENT_PREFIX, all, []).map_err(|unread| format!("{unread:?}"))
    }

    #[test]
    fn values_carry_units() {
        let config = parse(&["--lease", "20s", "--disk-free-min", "1GiB"]).unwrap();
        assert_eq!(config.lease, Duration::from_secs(20));
        assert_eq!(config.disk_free_min, 1024 * MIB);
        assert_eq!(config.hub().inbox_age_max_ms, 30 * 24 * 60 * 60 * 1000);
        assert_eq!(config.hub().memory_bytes_max, 4 * MIB);
    }

    #[test]
    fn a_value_out_of_range_names_its_knob() {
        for (knob, value) in [("--lease", "1ms"), ("--partitions", "0"), ("--window", "5000")] {
            let error = parse(&[knob, value]).unwrap_err();
            assert!(error.contains(knob), "{error}");
        }
    }

    #[test]
    fn several_places_to_listen_at() {
        let config = parse(&["--listen", "127.0.0.1:1", "--listen", "unix:/run/h.sock"]).unwrap();
        assert_eq!(config.listen[1], Listen::Unix("/run/h.sock".into()));
        assert!(parse(&["--listen", "7800"]).is_err());
    }
}
