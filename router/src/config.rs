//! Every knob of the router: name, unit, default and range.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Parser;

use crate::hub::HubConfig;

/// Moves messages between edges and the durable queue.
#[derive(Debug, Clone, Parser)]
#[command(name = "hawser-router", version)]
pub struct Config {
    /// Where edges connect: host:port, or unix:/path. May be given several times.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:7800")]
    pub listen: Vec<Listen>,

    /// Where /healthz and /metrics are served: host:port. Not meant for the outside.
    #[arg(long, default_value = "127.0.0.1:7801")]
    pub admin: String,

    /// Folder of the queue and the store. Made when it is not there; one router at a time uses it.
    #[arg(long, default_value = "hawser-data")]
    pub data_dir: PathBuf,

    /// Name of this router, told to edges.
    #[arg(long, default_value = "router-1")]
    pub router_id: String,

    /// Slices of the users, 1 to 1024. Fixed when the data folder is made.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub partitions: u16,

    /// Tasks that share the partitions; 0: one for every two cores.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=256))]
    pub owners: u16,

    /// Unacknowledged messages let out to one device, 1 to 4096.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub window: u32,

    /// Undelivered messages kept for a user, 1 to 1000000; past it the oldest goes, told as a gap.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub inbox_messages_max: u64,

    /// Oldest message that is delivered, 1s to 365d.
    #[arg(long, default_value = "30d", value_parser = inbox_age)]
    pub inbox_age_max: Duration,

    /// Without a frame for this long an edge's connections are forgotten, 500ms to 10min.
    #[arg(long, default_value = "15s", value_parser = lease)]
    pub lease: Duration,

    /// Free disk space below which sends are refused.
    #[arg(long, default_value = "64MiB")]
    pub disk_free_min: ByteSize,

    /// Memory for undelivered messages, over all partitions; past it they are read back from disk.
    #[arg(long, default_value = "256MiB", value_parser = memory)]
    pub memory_max: ByteSize,

    /// What is logged, to standard error: error, warn, info, debug, trace, or a filter by module.
    #[arg(long, default_value = "info")]
    pub log: String,
}

/// A place to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// host:port
    Tcp(String),
    /// A Unix socket.
    Unix(PathBuf),
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("a path is missing after unix:".to_owned()),
            Some(path) => Ok(Self::Unix(path.into())),
            None if text.contains(':') => Ok(Self::Tcp(text.to_owned())),
            None => Err("want host:port or unix:/path".to_owned()),
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Config {
    /// The knobs that concern a partition.
    #[must_use]
    pub fn hub(&self) -> HubConfig {
        let memory = self.memory_max.as_u64() / u64::from(self.partitions);
        HubConfig {
            window_messages: self.window as usize,
            inbox_messages_max: self.inbox_messages_max,
            inbox_age_max_ms: i64::try_from(self.inbox_age_max.as_millis()).unwrap_or(i64::MAX),
            memory_bytes_max: usize::try_from(memory).unwrap_or(usize::MAX),
        }
    }
}

fn duration_within(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (least..=most).contains(&duration) {
        Ok(duration)
    } else {
        let (least, most) = (humantime::format_duration(least), humantime::format_duration(most));
        Err(format!("allowed are {least} to {most}"))
    }
}

fn inbox_age(text: &str) -> Result<Duration, String> {
    duration_within(text, Duration::from_secs(1), Duration::from_secs(365 * 24 * 60 * 60))
}

fn lease(text: &str) -> Result<Duration, String> {
    duration_within(text, Duration::from_millis(500), Duration::from_secs(600))
}

fn memory(text: &str) -> Result<ByteSize, String> {
    let memory: ByteSize = text.parse()?;
    if memory < ByteSize::mib(16) {
        return Err("allowed is 16MiB and more".to_owned());
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Config, String> {
        let all = ["hawser-router"].iter().chain(arguments);
        Config::try_parse_from(all).map_err(|error| error.to_string())
    }

    #[test]
    fn values_carry_units() {
        let config = parse(&["--lease", "20s", "--disk-free-min", "1GiB"]).unwrap();
        assert_eq!(config.lease, Duration::from_secs(20));
        assert_eq!(config.disk_free_min, ByteSize::gib(1));
        assert_eq!(config.hub().inbox_age_max_ms, 30 * 24 * 60 * 60 * 1000);
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
