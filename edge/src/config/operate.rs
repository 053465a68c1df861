//! How the edge is run: drain, logs, the admin address.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hawser_proto::knobs::duration;

/// Longer than an hour is no deploy any more.
const WINDOWS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);

/// The knobs; each stands beside its like in [`super::Config`].
#[derive(Args, Clone, Debug)]
pub struct OperateKnobs {
    /// Time over which clients are sent away when the edge is drained (SIGTERM, SIGUSR1, admin call), evenly. The default lets
    /// 100,000 come back to other edges at 3,333 a second; a few do not take all of it
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration(WINDOWS))]
    pub drain_window: Duration,

    /// Time from the failing health check to the beginning of the drain: new clients are still let in, until the load balancers
    /// have seen it. Set it to what they need (interval times failures of their check)
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration(WINDOWS))]
    pub drain_delay: Duration,

    /// How the log is written: text for people, json for machines, an object a line
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,

    /// File with the token, 16 to 1,024 visible characters, that the admin address wants to see (Authorization:
    /// Bearer) before it tells about connections or acts. Left out: it does neither, and answers /healthz and
    /// /metrics alone. Read again on a reload
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}
