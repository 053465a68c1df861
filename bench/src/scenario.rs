//! One module per question. What they share stands here: stopping, and the flags that several have.

mod background;
pub(crate) mod chat;
pub(crate) mod crash;
mod crowded;
pub(crate) mod drain;
pub(crate) mod echo;
pub(crate) mod flood;
mod hand;
pub(crate) mod idle;
pub(crate) mod listen;
mod pairs;
mod rotation;
pub(crate) mod send;
pub(crate) mod slow;
pub(crate) mod soak;
pub(crate) mod storm;
pub(crate) mod takeover;
mod waits;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::clock;
use crate::failure::Failure;
use crate::front::Front;
use crate::host;
use crate::processes::{Plan, Servers};
use crate::report::{Report, rounded};
use crate::services::Engine;
use crate::target::Target;

/// Path on which an edge of ours speaks the client protocol.
const CLIENT_PATH: &str = "/ws";
/// Path of an own edge's echo.
const ECHO_PATH: &str = "/echo";
/// Longest turn of a fleet: a signal that comes between two system calls is seen after it at the latest.
const TURN_MAX: Duration = Duration::from_millis(50);
/// Handshakes on their way at once, well below a listener's usual backlog.
const OPENING_MAX: usize = 128;
/// Descriptors that are not clients: epoll, logs, standard streams, /proc.
const DESCRIPTORS_SPARE: u64 = 64;

/// Set by Ctrl-C and SIGTERM.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Catches both signals from now on.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub(crate) fn on_signals() -> Result<Self, Failure> {
        let stop = Self::default();
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop.0))?;
        }
        Ok(stop)
    }

    pub(crate) fn is_asked(&self) -> bool {
        // Nothing else is published with the flag.
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Waits for `duration`, or less when asked to stop.
    pub(crate) fn pause(&self, duration: Duration) {
        let until = clock::now() + duration;
        while !self.is_asked() {
            let left = until.saturating_duration_since(clock::now());
            if left.is_zero() {
                return;
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "waits for other processes, serves nobody"
            )]
            std::thread::sleep(left.min(TURN_MAX));
        }
    }
}

/// A scenario's answer: the report, and whether it is good.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub report: Report,
    pub is_good: bool,
}

/// How results are told.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OutputFlags {
    /// Print one JSON object on stdout instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Servers that run, or else servers of our own.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct ServerFlags {
    /// WebSocket URL of a running server; absent: start an own one from the binaries beside this one
    #[arg(long, value_name = "URL")]
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// Clients speak TLS; a running server is told to by its wss:// URL
    #[arg(long, conflicts_with = "target")]
    pub tls: bool,
    /// With TLS: of a hundred connects so many resume an earlier session, once there are tickets
    #[arg(long, value_name = "PERCENT", default_value_t = 0,
          value_parser = clap::value_parser!(u32).range(0..=100))]
    pub tls_resume: u32,
    /// PEM file with whom clients trust at a wss:// URL; absent: every certificate is taken
    #[arg(long, value_name = "FILE", requires = "target")]
    #[serde(skip)]
    pub tls_ca: Option<PathBuf>,
    /// Processes of the running server whose CPU is counted
    #[arg(long, value_name = "PID", num_args = 1.., requires = "target")]
    #[serde(skip)]
    pub pid: Vec<u32>,
    /// Shards of the own edge; absent: its default, the cores
    #[arg(long, value_name = "N", conflicts_with = "target",
          value_parser = clap::value_parser!(u32).range(1..=256))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<u32>,
    /// Where the own servers' temporary folder is made; absent: the system's own place for such
    #[arg(long, value_name = "DIR", conflicts_with = "target")]
    #[serde(skip)]
    pub folder: Option<PathBuf>,
    /// Leave that folder there
    #[arg(long, conflicts_with = "target")]
    #[serde(skip)]
    pub keep: bool,
}

fn as_text<S: serde::Serializer>(target: &Option<Target>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(target.as_ref().map_or(&"" as &dyn std::fmt::Display, |target| target))
}

/// The server under test.
struct Served {
    front: Front,
    /// The edges first.
    pids: Vec<u32>,
    edges: usize,
    /// `None` when it was running already.
    servers: Option<Servers>,
}

impl ServerFlags {
    /// Starts own servers for `connections` clients unless a target was named.
    fn serve(
        &self,
        connections: usize,
        own: impl FnOnce(&mut Plan) -> &'static str,
        seed: u64,
        stop: &Stop,
    ) -> Result<Served, Failure> {
        check_descriptors(connections)?;
        self.serve_any(connections, own, seed, stop)
    }

    /// The same for clients that take no descriptors of this process.
    fn serve_any(
        &self,
        connections: usize,
        own: impl FnOnce(&mut Plan) -> &'static str,
        seed: u64,
        stop: &Stop,
    ) -> Result<Served, Failure> {
        if let Some(target) = &self.target {
            for pid in &self.pid {
                host::cpu_time(*pid)
                    .map_err(|error| Failure::Usage(format!("--pid: process {pid}: {error}")))?;
            }
            let target = target.trusting(self.tls_ca.as_deref(), self.tls_resume)?;
            let front = target.into();
            return Ok(Served { front, pids: self.pid.clone(), edges: 1, servers: None });
        }
        let mut plan = Plan {
            routers: 1,
            engine: Engine::Embedded,
            engine_nodes: 3,
            wires: false,
            disk: false,
            stepped_clock: false,
            edges: 1,
            drain_window: None,
            tls_resume_percent: self.tls.then_some(self.tls_resume),
            // Connections that broke may not be gone yet when their successors come.
            connections_max: 2 * connections + 64,
            shards: self.shards.map(|shards| shards as usize),
            echo_path: None,
            folder: self.folder.clone().unwrap_or_else(std::env::temp_dir),
            keep: self.keep,
        };
        let path = own(&mut plan);
        let servers = Servers::start(&plan, seed, stop)?;
        let (front, pids) = (servers.front(path), servers.pids());
        Ok(Served { front, pids, edges: plan.edges, servers: Some(servers) })
    }
}

/// TLS handshakes at one instant, and the CPU of the edges.
#[derive(Clone, Copy, Debug)]
struct Handshakes {
    all: u64,
    resumed: u64,
    edge_cpu: Duration,
}

impl Served {
    /// CPU that the edges have used; of a server that is not Hawser's, all of its processes.
    fn edge_cpu(&self) -> Duration {
        let edges = self.pids.iter().take(self.edges);
        edges.filter_map(|pid| host::cpu_time(*pid).ok()).sum()
    }

    /// Where handshakes stand now.
    fn handshakes(&self) -> Handshakes {
        let tls = self.front.first().tls.as_ref();
        let (all, resumed) = tls.map_or((0, 0), |tls| tls.handshakes());
        Handshakes { all, resumed, edge_cpu: self.edge_cpu() }
    }

    /// Fills in what TLS handshakes since `before` took of the edges' CPU. The accept, the upgrade and a session's
    /// registration are counted in.
    fn report_handshakes(&self, before: &Handshakes, report: &mut Report) {
        let Some(tls) = &self.front.first().tls else { return };
        let now = self.handshakes();
        let (handshakes, resumed) = (now.all - before.all, now.resumed - before.resumed);
        let cpu = now.edge_cpu.saturating_sub(before.edge_cpu);
        if !cpu.is_zero() {
            let per_second = handshakes as f64 / cpu.as_secs_f64();
            report.handshakes_per_cpu_second = Some(rounded(per_second));
        }
        report.resumed_share = Some(rounded(resumed as f64 / handshakes.max(1) as f64));
        report.tls = tls.agreed();
    }

    /// Fails when an own server ended by itself.
    fn check_alive(&mut self) -> Result<(), Failure> {
        self.servers.as_mut().map_or(Ok(()), Servers::check_alive)
    }
}

fn check_descriptors(connections: usize) -> Result<(), Failure> {
    let (limit, needed) = (host::raise_descriptor_limit(), connections as u64 + DESCRIPTORS_SPARE);
    if needed > limit {
        return Err(Failure::Usage(format!(
            "--connections: {connections} needs {needed} file descriptors, the limit is {limit}; see tuning/"
        )));
    }
    Ok(())
}

/// The earlier of `until` and the end of the longest turn.
fn turn_end(now: Instant, until: Instant) -> Instant {
    until.min(now + TURN_MAX)
}

/// Reads a duration flag: `30s`, `1m 30s`, or a bare number of seconds. At most a day.
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let duration = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?,
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string())?,
    };
    if duration > Duration::from_secs(86_400) {
        return Err("more than a day".to_owned());
    }
    Ok(duration)
}

/// Writes a duration into the report's settings, in seconds.
fn as_seconds<S: serde::Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(duration.as_secs_f64())
}

/// The same for one that may be absent, which is then left out.
fn as_seconds_if<S: serde::Serializer>(
    duration: &Option<Duration>,
    to: S,
) -> Result<S::Ok, S::Error> {
    as_seconds(&duration.unwrap_or_default(), to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_bare_seconds_or_carry_units() {
        assert_eq!(parse_seconds("1.5"), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse_seconds("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "-1", "2 parsecs", "nan", "2d"] {
            assert!(parse_seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_pause_ends_when_stop_is_asked() {
        let stop = Stop::default();
        stop.ask();
        let before = clock::now();
        stop.pause(Duration::from_secs(3_600));
        assert!(clock::now() - before < Duration::from_secs(60));
    }
}
