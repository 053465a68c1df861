//! One module per question. What they share stands here: stopping, and the flags that several have.

mod background;
pub(crate) mod chat;
pub(crate) mod crash;
mod crowded;
pub(crate) mod drain;
pub(crate) mod echo;
mod hand;
pub(crate) mod idle;
pub(crate) mod listen;
mod pairs;
mod rotation;
pub(crate) mod send;
pub(crate) mod slow;
pub(crate) mod soak;
pub(crate) mod storm;

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
use crate::report::Report;
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
            let front = target.clone().into();
            return Ok(Served { front, pids: self.pid.clone(), edges: 1, servers: None });
        }
        let mut plan = Plan {
            router: true,
            edges: 1,
            drain_window: None,
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

impl Served {
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
