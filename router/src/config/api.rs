//! The server API and what it needs from others.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use hawser_proto::knobs::{count, duration, socket_address};

use super::{Listen, SECOND, listen};

/// The knobs; each stands beside its like in [`super::Config`].
#[derive(Args, Clone, Debug)]
pub struct ApiKnobs {
    /// Where other services reach the server API (HTTP, JSON): publish, who is online, disconnect, inbox, trace. It speaks no TLS,
    /// so beyond this machine put something in front of it that does. Left out: not served
    #[arg(long, value_name = "ADDRESS", value_parser = socket_address, requires = "api_keys")]
    pub api: Option<SocketAddr>,

    /// TOML file with the keys of the server API; read again on SIGHUP. See README.md for what stands in it
    #[arg(long, value_name = "FILE", requires = "api")]
    pub api_keys: Option<PathBuf>,

    /// Where the other routers of the cluster listen for edges (their --listen), separated by commas: the server API asks them about the
    /// users that are theirs
    #[arg(long, value_name = "PLACE,...", value_delimiter = ',', value_parser = listen, requires = "api")]
    pub api_peers: Vec<Listen>,

    /// PEM file with the authorities that sign the certificates of the other routers (their --link-tls-cert): the server API then speaks TLS 1.3 to
    /// those that come over TCP, and shows them --link-tls-cert of this router where there is one. Read at the start
    #[arg(long, value_name = "FILE", requires = "api_peers")]
    pub api_peers_ca: Option<PathBuf>,

    /// How long a request to the server API may wait for the router that has the user; then it is answered with 503 and may be repeated
    #[arg(long, value_name = "DURATION", default_value = "5s",
          value_parser = duration(SECOND / 10..=60 * SECOND))]
    pub api_timeout: Duration,

    /// Steps of messages (appended, delivered, acknowledged) that a partition remembers for the trace of the server API, some 56 bytes
    /// each, taken as they come; 0: none, and a trace knows no times. Others than this router may ask, so it does not need --api
    #[arg(long, value_name = "COUNT", default_value = "1024", value_parser = count::<usize>(0..=1_000_000))]
    pub trace_steps: usize,
}
