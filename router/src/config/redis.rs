//! The knobs of the registry `redis`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hawser_proto::knobs::{Unfit, duration};
use redis::{ConnectionInfo, IntoConnectionInfo as _};

use super::{MINUTE, SECOND};

/// Longest `--redis-prefix`, in bytes.
const PREFIX_BYTES_MAX: usize = 32;

/// Where it can be asked who is online.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RegistryKind {
    /// At the routers, by their server API.
    Local,
    /// In a Redis Cluster as well, by any service that reaches it.
    Redis,
}

/// Where the servers are, and what stands there.
#[derive(Debug, Clone, Args)]
pub struct RedisConfig {
    /// Where it can be asked who is online: at the routers alone (local), or in Redis as well (redis). Delivery never depends on it.
    #[arg(long, value_name = "REGISTRY", default_value = "local")]
    pub registry: RegistryKind,

    /// A Redis server: redis://host:6379, or rediss://host:6379 for TLS; a user and password may stand before the host. May be given
    /// several times for a Redis Cluster, of which one has to answer; one without cluster will do as well.
    #[arg(long, value_name = "URL", default_value = "redis://127.0.0.1:6379", value_parser = server_url)]
    pub redis_url: Vec<ServerUrl>,

    /// File with the password for the servers, in place of one in --redis-url. Read whenever a connection begins.
    #[arg(long, value_name = "FILE")]
    pub redis_password_file: Option<PathBuf>,

    /// PEM file with the authorities that sign the servers' certificates; default: those of the system.
    #[arg(long, value_name = "FILE")]
    pub redis_ca: Option<PathBuf>,

    /// What every key begins with; the same for all routers of a cluster.
    #[arg(long, value_name = "TEXT", default_value = "hawser", value_parser = prefix)]
    pub redis_prefix: String,

    /// How often everything is written again, little by little. That mends whatever Redis has lost or kept too long; keys of users expire
    /// after three times this.
    #[arg(long, value_name = "DURATION", default_value = "15min", value_parser = duration(SECOND..=24 * 60 * MINUTE))]
    pub redis_rewrite_interval: Duration,
}

/// Address of a server. What may be secret in it is not printed.
#[derive(Clone)]
pub struct ServerUrl(pub ConnectionInfo);

impl std::fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.addr().fmt(f)
    }
}

fn server_url(text: &str) -> Result<ServerUrl, Unfit> {
    let info = text.into_connection_info();
    // What it is made of may be a password: not repeated.
    info.map(ServerUrl).map_err(|_| Unfit("is no URL such as redis://127.0.0.1:6379".to_owned()))
}

fn prefix(text: &str) -> Result<String, Unfit> {
    let fits = |character: char| character.is_ascii_graphic() && !"{}".contains(character);
    if (1..=PREFIX_BYTES_MAX).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err(Unfit(format!("has to have 1 to {PREFIX_BYTES_MAX} characters, no spaces and no braces")))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use hawser_proto::knobs::read;

    use super::*;

    #[derive(Parser)]
    struct Knobs {
        #[command(flatten)]
        redis: RedisConfig,
    }

    fn parse(arguments: &[&str]) -> Result<RedisConfig, String> {
        let all = ["hawser-router"].iter().chain(arguments).map(Into::into);
        read(crate::config::ENVIRONMENT_PREFIX, all, [])
            .map(|knobs: Knobs| knobs.redis)
            .map_err(|unread| format!("{unread:?}"))
    }

    #[test]
    fn a_password_is_not_printed() {
        let config = parse(&["--redis-url", "rediss://me:secret@example.org:1"]).unwrap();
        assert_eq!(config.redis_url[0].0.redis_settings().password(), Some("secret"));
        let printed = format!("{config:?}");
        assert!(printed.contains("example.org") && !printed.contains("secret"), "{printed}");
        let error = parse(&["--redis-url", "redis://me:secret@:port"]).unwrap_err();
        assert!(!error.contains("no URL such as") || error.contains("--redis-url"), "{error}");
    }

    #[test]
    fn what_is_out_of_range_names_its_knob() {
        for (knob, value) in [
            ("--redis-url", "http://example.org"),
            ("--redis-prefix", "a{b}"),
            ("--redis-prefix", ""),
            ("--redis-rewrite-interval", "1ms"),
            ("--registry", "etcd"),
        ] {
            let error = parse(&[knob, value]).unwrap_err();
            assert!(error.contains(knob), "{error}");
        }
    }
}
