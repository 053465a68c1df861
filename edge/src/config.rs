//! Every knob of the edge: name, unit, default and its reason, range. Text is parsed once, into types that cannot
//! be wrong; where it may stand is told in [`hawser_proto::knobs`].

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use hawser_proto::knobs::{self, Unfit, UsageError, byte_size, count, duration, identifier};

use crate::conn::Mode;
use crate::conn::slab::SHARDS_MAX;
use crate::limits;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Where the router is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouterAddress {
    /// `host:port`; looked up once, at the start.
    Tcp(String),
    /// `unix:/path`.
    Unix(PathBuf),
}

impl fmt::Display for RouterAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(name) => f.write_str(name),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

fn router_address(text: &str) -> Result<RouterAddress, Unfit> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(RouterAddress::Unix(path.into()));
    }
    let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(1..) => Ok(RouterAddress::Tcp(text.to_owned())),
        Some(0) | None => Err(Unfit("is neither host:port nor unix:/path".into())),
    }
}

fn path(text: &str) -> Result<String, Unfit> {
    let fits = text.starts_with('/') && text.len() <= 256 && !text.contains(['?', '#', ' ']);
    if fits { Ok(text.to_owned()) } else { Err(Unfit("is not a path such as /ws".into())) }
}

/// The WebSocket edge of Hawser.
#[derive(Debug, Clone, Parser)]
#[command(name = "hawser-edge", version)]
pub struct Config {
    /// Where clients connect.
    #[arg(long, default_value = "127.0.0.1:8080", value_parser = knobs::socket_address)]
    pub listen: SocketAddr,
    /// Where /healthz and /metrics are answered; not for clients.
    #[arg(long, default_value = "127.0.0.1:8081", value_parser = knobs::socket_address)]
    pub admin: SocketAddr,
    /// Where the router is: host:port, or unix:/path.
    #[arg(long, default_value = "127.0.0.1:7800", value_parser = router_address)]
    pub router: RouterAddress,
    /// Stable name of this edge among the router's edges; host name and port when not given.
    #[arg(long, default_value = "", value_parser = identifier(0..=64))]
    pub edge_id: String,
    /// Where this edge stands; for later use by routers.
    #[arg(long, default_value = "", value_parser = identifier(0..=32))]
    pub region: String,
    /// Shards: 0 is one a core. More than cores where the descriptor limit asks for it: every shard's ring has
    /// a table of its own.
    #[arg(long, default_value = "0", value_parser = count::<usize>(0..=SHARDS_MAX as u64))]
    pub shards: usize,
    /// Connections held, all shards together; one more is answered with 503.
    #[arg(long, default_value = "10000", value_parser = count::<usize>(1..=100_000_000))]
    pub connections_max: usize,
    /// Path of the client protocol.
    #[arg(long, default_value = "/ws", value_parser = path)]
    pub client_path: String,
    /// Path where every data message is given back: for conformance and for measuring. Off unless given.
    #[arg(long, value_parser = path)]
    pub echo_path: Option<String>,
    /// Take the user id as token. For development: refused unless --listen is a loopback address.
    #[arg(long)]
    pub dev_auth: bool,
    /// Longest payload of a Send.
    #[arg(long, default_value = "64KiB", value_parser = byte_size(1..=limits::PAYLOAD_BYTES_MAX))]
    pub payload_bytes_max: usize,
    /// How often a client on screen has to say something.
    #[arg(long, default_value = "15s", value_parser = duration(SECOND..=HOUR))]
    pub ping_interval_active: Duration,
    /// How often a client that is open but not looked at has to say something.
    #[arg(long, default_value = "60s", value_parser = duration(SECOND..=HOUR))]
    pub ping_interval_idle: Duration,
    /// How often a sleeping client has to say something.
    #[arg(long, default_value = "300s", value_parser = duration(SECOND..=HOUR))]
    pub ping_interval_background: Duration,
    /// Intervals that may pass in silence before a client is given up.
    #[arg(long, default_value = "2", value_parser = count::<u32>(1..=10))]
    pub missed_beats_max: u32,
    /// Grace on top of them, for slow networks.
    #[arg(long, default_value = "5s", value_parser = duration(Duration::ZERO..=HOUR))]
    pub ping_grace: Duration,
    /// Time for the whole request head; past it the answer is 408.
    #[arg(long, default_value = "10s", value_parser = duration(SECOND..=HOUR))]
    pub handshake_timeout: Duration,
    /// Time from the upgrade to Connect, and from Connect to the router's answer.
    #[arg(long, default_value = "10s", value_parser = duration(SECOND..=HOUR))]
    pub connect_timeout: Duration,
    /// Time for a client to answer a Close frame.
    #[arg(long, default_value = "5s", value_parser = duration(SECOND..=HOUR))]
    pub close_timeout: Duration,
    /// How long a Send waits for the router before its sender is told to try again.
    #[arg(long, default_value = "10s", value_parser = duration(SECOND..=HOUR))]
    pub send_timeout: Duration,
    /// Sends that may wait for their answer on one connection; past it the client is not read from.
    #[arg(long, default_value = "64", value_parser = count::<u32>(1..=10_000))]
    pub sends_in_flight_max: u32,
    /// Bytes that may wait to be sent to one client; past it the connection ends with a reason.
    #[arg(long, default_value = "1MiB", value_parser = byte_size(64 * 1024..=1 << 30))]
    pub outbox_bytes_max: usize,
    /// Receive buffers of a shard, lent for one event each: a power of two. More than the clients that speak within
    /// one turn, or receives have to be started again.
    #[arg(long, default_value = "4096", value_parser = count::<u16>(4..=32_768))]
    pub receive_buffers: u16,
    /// Bytes of each: a chat message and its framing fit, and the pages of all stay in a core's cache.
    #[arg(long, default_value = "2KiB", value_parser = byte_size(256..=64 * 1024))]
    pub receive_buffer_bytes: usize,
    /// What is logged to stderr, as in tracing's EnvFilter.
    #[arg(long, default_value = "info")]
    pub log: String,
}

impl Default for Config {
    /// What `hawser-edge` without arguments runs with, but for one shard.
    fn default() -> Self {
        let mut config = Self::parse_from(["hawser-edge"]);
        config.shards = 1;
        config
    }
}

impl Config {
    /// Reads arguments, environment and file; prints one sentence and exits with 64 when they are wrong.
    #[must_use]
    pub fn from_process() -> Self {
        let mut config: Self = knobs::from_process("HAWSER_EDGE");
        if let Err(error) = config.check() {
            error.exit("hawser-edge");
        }
        config.fill_in();
        config
    }

    /// Checks between knobs.
    ///
    /// # Errors
    /// One sentence that names them.
    pub fn check(&self) -> Result<(), UsageError> {
        if !self.dev_auth {
            let sentence = "--dev-auth: not given, and there is no other way to check tokens yet; give it for \
                development, with --listen on a loopback address";
            return Err(UsageError(sentence.into()));
        }
        if !self.listen.ip().is_loopback() {
            return Err(UsageError(format!(
                "--dev-auth: takes any user name as token and so works on a loopback address only, \
                 but --listen is {}",
                self.listen
            )));
        }
        if self.echo_path.as_ref() == Some(&self.client_path) {
            return Err(UsageError(format!(
                "--echo-path: {} is the --client-path already; choose another",
                self.client_path
            )));
        }
        if !self.receive_buffers.is_power_of_two() {
            return Err(UsageError(format!(
                "--receive-buffers: {} is not a power of two; {} is",
                self.receive_buffers,
                self.receive_buffers.next_power_of_two()
            )));
        }
        Ok(())
    }

    /// Puts in what depends on the machine.
    fn fill_in(&mut self) {
        if self.shards == 0 {
            self.shards = std::thread::available_parallelism().map_or(1, usize::from);
        }
        if self.edge_id.is_empty() {
            let name = rustix::system::uname();
            let host = name.nodename().to_string_lossy();
            self.edge_id =
                format!("{}:{}", host.chars().take(50).collect::<String>(), self.listen.port());
        }
    }

    /// How long a client may be silent: its interval, times what may be missed, and some grace.
    #[must_use]
    pub fn silence_max(&self, mode: Mode) -> Duration {
        let interval = match mode {
            Mode::Active => self.ping_interval_active,
            Mode::Idle => self.ping_interval_idle,
            Mode::Background => self.ping_interval_background,
        };
        interval * self.missed_beats_max + self.ping_grace
    }

    /// Longest WebSocket message that is taken, in bytes: a payload over its limit is still answered
    /// politely (JSON needs 4/3 for base64), one far over it ends the connection with 1009.
    #[must_use]
    pub fn message_bytes_max(&self) -> usize {
        2 * self.payload_bytes_max + 8 * 1024
    }

    /// Connections of one shard.
    #[must_use]
    pub fn connections_max_a_shard(&self) -> usize {
        self.connections_max.div_ceil(self.shards.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dev_auth_works_on_loopback_only_and_nothing_works_without_it() {
        let check = |args: &[&str]| {
            Config::parse_from([&["hawser-edge"], args].concat()).check().map_err(|e| e.0)
        };
        assert_eq!(check(&["--dev-auth"]), Ok(()));
        assert_eq!(check(&["--dev-auth", "--listen", "[::1]:1"]), Ok(()));
        assert!(check(&[]).unwrap_err().starts_with("--dev-auth: not given"));
        let public = check(&["--dev-auth", "--listen", "0.0.0.0:8080"]).unwrap_err();
        assert!(public.starts_with("--dev-auth: ") && public.contains("0.0.0.0:8080"), "{public}");
    }

    #[test]
    fn the_router_is_a_host_and_port_or_a_path() {
        assert_eq!(router_address("unix:/run/r"), Ok(RouterAddress::Unix("/run/r".into())));
        assert_eq!(
            router_address("r.example:7800"),
            Ok(RouterAddress::Tcp("r.example:7800".into()))
        );
        for bad in ["", "r.example", "r.example:0", "r.example:x"] {
            assert!(router_address(bad).is_err(), "{bad}");
        }
    }
}
