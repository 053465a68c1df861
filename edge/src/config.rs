//! Every knob of the edge: name, unit, default and its reason, range.
//!
//! Text becomes a [`Config`] once, by [`Config::from_process`], and nobody checks again. How a knob is
//! written (flag, environment, file) is told in [`hawser_proto::knobs`]; bounds that are no knobs are in
//! [`crate::limits`]; what the machine has to offer is asked by [`crate::probe`].

mod admission;
pub mod change;
pub mod files;
mod limit;
mod link_tls;
mod operate;
mod tls;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use hawser_proto::knobs::{
    self, Unfit, Unread, UsageError, byte_size, count, duration, identifier, socket_address,
};
use tracing_subscriber::filter::Targets;

pub use self::admission::{AdmissionKnobs, ServiceUrl};
pub use self::limit::LimitKnobs;
pub use self::link_tls::LinkTlsKnobs;
pub use self::operate::{LogFormat, OperateKnobs};
pub use self::tls::{ClientAuth, MinVersion, TlsKnobs};
use crate::conn::Mode;
use crate::limits;
use crate::meter::Allowance;

/// What variables of the environment start with.
pub const ENV_PREFIX: &str = "HAWSER_EDGE";

/// The knobs. Made by [`Config::read`], which also checks them against each other.
#[derive(Parser, Clone, Debug)]
#[command(name = "hawser-edge", version, about = "The WebSocket server of Hawser")]
#[command(override_usage = "hawser-edge [KNOBS]\n       \
    hawser-edge config check [KNOBS]   says whether an edge could start so, and by what it would live\n       \
    hawser-edge config show [KNOBS]    says by what it would live, and where that is written")]
pub struct Config {
    /// Address that clients connect to. The default is this machine only: opening it to others is a
    /// decision. Port 0 lets the kernel choose
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", value_parser = socket_address)]
    pub listen: SocketAddr,

    /// Address of /healthz, of /metrics and, with a token (--admin-token-file), of all that an operator may do. Not
    /// for the public
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081", value_parser = socket_address)]
    pub admin: SocketAddr,

    /// Where the router is: HOST:PORT, or unix:/PATH when it runs on this machine. All routers of the cluster, at most 16, where
    /// there are several: given several times or with commas between them
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', default_value = "127.0.0.1:7800")]
    pub router: Vec<RouterAddress>,

    /// Name of this edge, unique among all edges of a cluster and the same after a restart, at most 64
    /// bytes. Empty, which is the default: the host's name and the port of --listen
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true,
          value_parser = identifier(0..=limits::EDGE_ID_BYTES_MAX))]
    pub edge_id: String,

    /// Region that this edge stands in, at most 32 bytes. Empty: there is only one
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true,
          value_parser = identifier(0..=limits::REGION_BYTES_MAX))]
    pub region: String,

    /// Number of shards, each a thread with a ring of its own. Left out: one per core that this process may use,
    /// and more only where a low descriptor limit (ulimit -n) makes them necessary for --connections-max
    #[arg(long, value_name = "NUMBER", value_parser = count::<usize>(1..=limits::SHARDS_MAX as u64))]
    pub shards: Option<usize>,

    /// Most connections, all shards together; one more is answered with 503. The default fits the limits
    /// of an untuned machine. Each costs about 4.5 KB in the kernel and 256 B here
    #[arg(long, value_name = "NUMBER", default_value = "10000",
          value_parser = count::<usize>(1..=limits::CONNECTIONS_CEILING))]
    pub connections_max: usize,

    /// Path that clients ask for in their WebSocket request
    #[arg(long, value_name = "PATH", default_value = "/ws", value_parser = url_path)]
    pub client_path: String,

    /// Path where every data message is given back as it came, for conformance tests and for measuring.
    /// Off by default: anybody may use it, without a token
    #[arg(long, value_name = "PATH", value_parser = url_path)]
    pub echo_path: Option<String>,

    /// Takes the token for the user id, so anybody can be anybody. Refused unless --listen is a loopback
    /// address
    #[arg(long)]
    pub dev_auth: bool,

    /// Longest payload of a message, in bytes, 1 to 1 MiB. A longer one is answered with an error and the
    /// connection stays. The default carries text and small pictures; larger things belong in a store of
    /// files, with their address sent here
    #[arg(long, value_name = "SIZE", default_value = "64KiB",
          value_parser = byte_size(1..=limits::PAYLOAD_BYTES_MAX))]
    pub payload_bytes_max: usize,

    /// How often a client on screen has to say something. The default notices a lost phone within a
    /// minute at 4 pings a minute
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration(INTERVALS))]
    pub ping_interval_active: Duration,

    /// The same for a client that is open but not looked at
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration(INTERVALS))]
    pub ping_interval_idle: Duration,

    /// The same for a client asleep. The default stays below the time after which mobile networks forget
    /// a connection, and lets the radio sleep
    #[arg(long, value_name = "DURATION", default_value = "300s", value_parser = duration(INTERVALS))]
    pub ping_interval_background: Duration,

    /// A client is given up when it was silent for its interval times this, plus the grace, 1 to 10. At 2
    /// one lost ping is forgiven
    #[arg(long, value_name = "NUMBER", default_value = "2", value_parser = count::<u32>(1..=10))]
    pub missed_beats_max: u32,

    /// Time on top of the missed beats, for slow networks
    #[arg(long, value_name = "DURATION", default_value = "5s",
          value_parser = duration(Duration::ZERO..=Duration::from_secs(60)))]
    pub ping_grace: Duration,

    /// Time from accept to the whole request head, then 408. Slow mobile networks need a second or two;
    /// this is five times that
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration(TIMEOUTS))]
    pub handshake_timeout: Duration,

    /// Time from the upgrade to the Connect frame, then the connection is closed with 1008
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration(TIMEOUTS))]
    pub connect_timeout: Duration,

    /// Time for the client's answer to our Close frame, and for what is left to be sent
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration(TIMEOUTS))]
    pub close_timeout: Duration,

    /// How long a Send waits for the router before it is answered with a retryable error. The default is
    /// longer than a router takes to restart
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration(TIMEOUTS))]
    pub send_timeout: Duration,

    /// Sends of one connection that may wait for their answer, 1 to 4,096; at the bound the edge stops
    /// reading from it. 64 keep a connection busy that is 64 commits away
    #[arg(long, value_name = "NUMBER", default_value = "64", value_parser = count::<u32>(1..=4096))]
    pub sends_in_flight_max: u32,

    /// Most that may wait to be sent to one connection, in bytes, 16 KiB to 64 MiB; at the bound the
    /// client is closed as a slow reader. The default holds a window of 64 messages of 16 KiB
    #[arg(long, value_name = "SIZE", default_value = "1MiB",
          value_parser = byte_size(16 * 1024..=64 * 1024 * 1024))]
    pub outbox_bytes_max: usize,

    /// Most receive buffers of one shard, a power of two up to 32,768, lent for one event each; fewer where
    /// shards share cores or locked memory is scarce. Empty costs one more submission, nothing is lost; the
    /// default takes 4,096 arrivals in one turn
    #[arg(long, value_name = "NUMBER", default_value = "4096", value_parser = power_of_two)]
    pub receive_buffers: u16,

    /// Size of one receive buffer, in bytes, 512 B to 64 KiB. The default holds a request head or several
    /// chat messages
    #[arg(long, value_name = "SIZE", default_value = "2KiB",
          value_parser = byte_size(512..=64 * 1024))]
    pub receive_buffer_bytes: usize,

    /// What is logged: error, warn, info, debug or trace, or by module (info,hawser_edge::uplink=debug).
    /// Connections are told at debug
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = log_filter)]
    pub log: Targets,

    /// TLS
    #[command(flatten)]
    pub tls: TlsKnobs,

    /// TLS on the link
    #[command(flatten)]
    pub link_tls: LinkTlsKnobs,

    /// Who may come in
    #[command(flatten)]
    pub admission: AdmissionKnobs,

    /// What they may do
    #[command(flatten)]
    pub limit: LimitKnobs,

    /// How the edge is run
    #[command(flatten)]
    pub operate: OperateKnobs,
}

/// Below a second pings cost more than they tell; above an hour no network remembers the connection.
const INTERVALS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// Long enough to lose a packet and send it again, short enough that nobody holds a socket for nothing.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(300);

impl Config {
    /// The configuration that these arguments (the program's name first) and this environment ask for.
    ///
    /// # Errors
    /// See [`knobs::read`]; and when two knobs contradict each other.
    pub fn read(
        args: impl IntoIterator<Item = OsString>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Config, Unread> {
        let mut config: Config = knobs::read(ENV_PREFIX, args, env)?;
        config.settle()?;
        Ok(config)
    }

    /// Checks the knobs against each other, and fills in what follows from others.
    fn settle(&mut self) -> Result<(), UsageError> {
        self.check_together()?;
        if self.edge_id.is_empty() {
            self.edge_id = default_edge_id(self.listen.port());
        }
        Ok(())
    }

    fn check_together(&self) -> Result<(), UsageError> {
        let Config { listen, admin, client_path, payload_bytes_max, outbox_bytes_max, .. } = self;
        self.tls.check_together()?;
        self.check_routers()?;
        if self.dev_auth && !listen.ip().is_loopback() {
            return Err(UsageError(format!(
                "--dev-auth: lets anybody be anybody, so --listen has to be a loopback address such as \
                 127.0.0.1:8080, not {listen}"
            )));
        }
        self.admission.check_together(self.dev_auth)?;
        if listen == admin && listen.port() != 0 {
            return Err(UsageError(format!(
                "--admin: {admin} is taken by --listen; give it another port"
            )));
        }
        if self.echo_path.as_ref() == Some(client_path) {
            return Err(UsageError(format!(
                "--echo-path: {client_path} is --client-path already; give it another path"
            )));
        }
        // The largest message has to fit beside a little else, also in JSON, where payloads grow by a third.
        let outbox_bytes_min = 2 * payload_bytes_max;
        if *outbox_bytes_max < outbox_bytes_min {
            return Err(UsageError(format!(
                "--outbox-bytes-max: {outbox_bytes_max} is less than twice --payload-bytes-max; allowed \
                 from {outbox_bytes_min}"
            )));
        }
        Ok(())
    }

    fn check_routers(&self) -> Result<(), UsageError> {
        if self.router.len() > limits::ROUTERS_MAX {
            return Err(UsageError(format!(
                "--router: {} of them are more than an edge has links for, which is {}",
                self.router.len(),
                limits::ROUTERS_MAX
            )));
        }
        for (at, router) in self.router.iter().enumerate() {
            if self.router[..at].contains(router) {
                return Err(UsageError(format!("--router: {router} is given twice")));
            }
            self.link_tls.check_together(router)?;
        }
        Ok(())
    }

    /// What connections may do, by the number of their rate class.
    #[must_use]
    pub fn allowances(&self) -> Box<[Allowance]> {
        self.limit.allowances(&self.admission.rate_classes)
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
}

impl Default for Config {
    /// Every knob as it is when nobody says anything.
    fn default() -> Config {
        Config::read([OsString::from("hawser-edge")], []).expect("defaults are in range")
    }
}

/// Where the router listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouterAddress {
    /// `HOST:PORT`, the name looked up later.
    Tcp(String),
    /// `unix:/PATH`.
    Unix(PathBuf),
}

impl FromStr for RouterAddress {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<RouterAddress, Unfit> {
        let unfit = || Unfit("is not HOST:PORT such as 127.0.0.1:7800, nor unix:/PATH".to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            // sun_path of unix(7) has 108 bytes, the last a zero.
            let fits = path.starts_with('/') && path.len() < 108 && !path.contains('\0');
            return if fits { Ok(RouterAddress::Unix(path.into())) } else { Err(unfit()) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(unfit)?;
        // An IPv6 address has to stand in brackets, or its last group would be taken for the port.
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let host_fits = !host.is_empty() && (bracketed || !host.contains(':'));
        match port.parse::<u16>() {
            Ok(1..) if host_fits => Ok(RouterAddress::Tcp(text.to_owned())),
            _ => Err(unfit()),
        }
    }
}

impl fmt::Display for RouterAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouterAddress::Tcp(address) => f.write_str(address),
            RouterAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Host name and port; with port 0 the process id, since two such edges may run beside each other.
fn default_edge_id(port: u16) -> String {
    let suffix = match port {
        0 => format!("-{}", std::process::id()),
        port => format!(":{port}"),
    };
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy();
    let mut id: String = host.chars().filter(|char| !char.is_control()).collect();
    while id.len() + suffix.len() > limits::EDGE_ID_BYTES_MAX {
        id.pop();
    }
    id + &suffix
}

fn url_path(text: &str) -> Result<String, Unfit> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#');
    if text.starts_with('/') && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err(Unfit("is not a path such as /ws".to_owned()))
    }
}

fn power_of_two(text: &str) -> Result<u16, Unfit> {
    let value = count::<u16>(1..=limits::RECEIVE_BUFFERS_CEILING)(text)?;
    if value.is_power_of_two() {
        Ok(value)
    } else {
        Err(Unfit(format!("is not a power of two such as {}", value.next_power_of_two())))
    }
}

fn log_filter(text: &str) -> Result<Targets, Unfit> {
    text.parse().map_err(|error| Unfit(format!("is not a filter such as info: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn read(flags: &[&str]) -> Result<Config, String> {
        let args = std::iter::once("hawser-edge").chain(flags.iter().copied()).map(OsString::from);
        Config::read(args, []).map_err(|unread| match unread {
            Unread::Usage(UsageError(sentence)) => sentence,
            Unread::Asked(text) => panic!("{text}"),
        })
    }

    #[test]
    fn every_default_is_in_its_range() {
        let config = Config::default();
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(config.router, ["127.0.0.1:7800".parse().unwrap()]);
        assert_eq!(config.payload_bytes_max, 64 * 1024);
        assert_eq!(config.receive_buffer_bytes, 2048);
        assert_eq!(config.shards, None);
        assert!(config.edge_id.ends_with(":8080"), "{}", config.edge_id);
        assert!(!config.dev_auth);
    }

    #[test]
    fn dev_auth_is_refused_on_any_address_that_others_can_reach() {
        for listen in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1"] {
            assert!(read(&["--dev-auth", "--listen", listen]).is_ok_and(|config| config.dev_auth));
        }
        for listen in ["0.0.0.0:1", "[::]:1", "192.168.1.1:1"] {
            let refused = read(&["--dev-auth", "--listen", listen]).unwrap_err();
            assert!(refused.starts_with("--dev-auth: ") && refused.ends_with(listen), "{refused}");
        }
    }

    #[test]
    fn knobs_that_contradict_each_other_are_named() {
        for (flags, told) in [
            (
                &["--echo-path=/ws"][..],
                "--echo-path: /ws is --client-path already; give it another path",
            ),
            (
                &["--admin=127.0.0.1:8080"],
                "--admin: 127.0.0.1:8080 is taken by --listen; give it another port",
            ),
            (
                &["--payload-bytes-max=1MiB"],
                "--outbox-bytes-max: 1048576 is less than twice --payload-bytes-max; allowed from 2097152",
            ),
        ] {
            assert_eq!(read(flags).unwrap_err(), told);
        }
        assert!(read(&["--listen=127.0.0.1:0", "--admin=127.0.0.1:0"]).is_ok());
    }

    #[test]
    fn a_cluster_has_several_routers_each_named_once_and_not_too_many() {
        let config = read(&["--router=a:1,b:1", "--router=unix:/run/c"]).unwrap();
        let names: Vec<_> = config.router.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a:1", "b:1", "unix:/run/c"]);
        assert_eq!(
            read(&["--router=a:1", "--router=a:1"]).unwrap_err(),
            "--router: a:1 is given twice"
        );
        let many: Vec<_> = (0..17).map(|n| format!("host{n}:1")).collect();
        let told = read(&[&format!("--router={}", many.join(","))]).unwrap_err();
        assert_eq!(told, "--router: 17 of them are more than an edge has links for, which is 16");
        let unix_among_them = ["--router-tls-ca=ca.pem", "--router=a:1,unix:/run/c"];
        let told = read(&unix_among_them).unwrap_err();
        assert!(told.starts_with("--router-tls-ca: a Unix socket"), "{told}");
    }

    #[test]
    fn a_router_address_is_a_host_and_port_or_a_path() {
        for text in ["127.0.0.1:7800", "router.example:1", "[::1]:7800", "unix:/run/hawser/router"]
        {
            assert_eq!(text.parse::<RouterAddress>().unwrap().to_string(), text);
        }
        let long = format!("unix:/{}", "x".repeat(107));
        for text in
            ["", "host", ":1", "host:", "host:0", "host:65536", "::1:7800", "unix:run", &long]
        {
            let told = text.parse::<RouterAddress>().unwrap_err().to_string();
            assert!(told.starts_with("is not HOST:PORT"), "{text}: {told}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused_by_their_knob() {
        for flag in [
            "--shards=0",
            "--connections-max=0",
            "--payload-bytes-max=2MiB",
            "--ping-interval-active=0s",
            "--ping-interval-idle=2h",
            "--missed-beats-max=0",
            "--send-timeout=1ms",
            "--sends-in-flight-max=0",
            "--outbox-bytes-max=1",
            "--receive-buffers=1000",
            "--receive-buffers=65536",
            "--receive-buffer-bytes=1",
            "--client-path=ws",
            "--client-path=/ws?a",
            "--region=ten-thousand-miles-away-from-everywhere",
            "--log=hawser=loud",
        ] {
            let refused = read(&[flag]).unwrap_err();
            let name = flag.split('=').next().unwrap();
            assert!(refused.starts_with(&format!("{name}: ")), "{flag}: {refused}");
        }
    }

    #[test]
    fn edges_on_ports_of_the_kernels_choosing_do_not_share_a_name() {
        let suffix = format!("-{}", std::process::id());
        assert!(default_edge_id(0).ends_with(&suffix));
        assert!(default_edge_id(65_535).len() <= limits::EDGE_ID_BYTES_MAX);
    }
}
