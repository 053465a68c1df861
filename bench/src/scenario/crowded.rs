//! What the scenarios with a crowd share: flags, servers, connecting everybody, and where memory and CPU went.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    CLIENT_PATH, ECHO_PATH, Outcome, Served, ServerFlags, Stop, TURN_MAX, as_seconds, parse_seconds,
};
use crate::clock;
use crate::crowd::{Crowd, CrowdPlan, Speech};
use crate::failure::Failure;
use crate::host;
use crate::processes::{Plan, Servers, values_of};
use crate::report::{Memory, Progress, Report, rounded};

/// With so many failures and nobody in, the target is out of reach.
const FAILURES_IN_VAIN: u64 = 64;
/// Nobody new for so long: the rest will not come.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Memory is quiet when two readings so far apart differ by less than a five-hundredth.
const QUIET_INTERVAL: Duration = Duration::from_millis(500);
const QUIET_TIMEOUT: Duration = Duration::from_secs(20);

/// With fewer connections the kernel's memory says little anyway.
const KERNEL_WORTH_WAITING: u32 = 20_000;
/// The kernel is quiet when it gives back less than that in [`QUIET_INTERVAL`], so often in a row: it may pause.
const KERNEL_QUIET_BYTES: u64 = 1 << 20;
const KERNEL_QUIET_INTERVALS: u32 = 4;
const KERNEL_TIMEOUT: Duration = Duration::from_secs(60);

/// How the sessions of a crowd are.
#[derive(Clone, Debug, Args, Serialize)]
pub(super) struct CrowdFlags {
    /// Connects on their way at once
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    connecting_max: u32,
    /// What a session is: all of Hawser's client protocol, or a WebSocket alone
    #[arg(long, value_enum, default_value_t = Speech::Hawser)]
    pub session: Speech,
    /// Each session pings once in this time; 0: never
    #[arg(long, default_value = "60s", value_parser = parse_seconds)]
    #[serde(serialize_with = "as_seconds")]
    ping_interval: Duration,
}

/// A crowd and the servers that it stands before.
pub(super) struct Crowded {
    pub served: Served,
    pub crowd: Crowd,
    began: (Usage, Kernel),
}

impl Crowded {
    /// Starts servers (or finds those named) for `connections` sessions that are not there yet. `change` what is started,
    /// where the scenario needs it otherwise than usual.
    pub(super) fn start(
        servers: &ServerFlags,
        flags: &CrowdFlags,
        connections: u32,
        change: impl FnOnce(&mut Plan),
        stop: &Stop,
    ) -> Result<Self, Failure> {
        let seed = clock::random_seed();
        let own = |plan: &mut Plan| {
            change(plan);
            if flags.session == Speech::Ws {
                plan.routers = 0;
            }
            // Connections that broke may not be gone yet when their successors come.
            plan.connections_max = connections as usize + connections as usize / 64 + 64;
            if plan.routers > 0 {
                return CLIENT_PATH;
            }
            plan.echo_path = Some(ECHO_PATH);
            ECHO_PATH
        };
        let served = servers.serve_any(connections as usize, own, seed, stop)?;
        if connections >= KERNEL_WORTH_WAITING {
            wait_for_kernel(stop)?;
        }
        let began = (Usage::read(&served, flags.session)?, Kernel::read()?);
        let crowd = Crowd::new(&CrowdPlan {
            front: served.front.clone(),
            speech: flags.session,
            sessions: connections,
            connecting_max: flags.connecting_max as usize,
            ping_interval: (!flags.ping_interval.is_zero()).then_some(flags.ping_interval),
            seed,
        })?;
        Ok(Self { served, crowd, began })
    }

    /// Connects the first `connections`; those who fail come again. Fills in the rate and what it cost.
    pub(super) fn connect(
        &mut self,
        connections: u32,
        stop: &Stop,
        progress: &mut Progress,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let (before, handshakes) = (self.usage()?, self.served.handshakes());
        let began = clock::now();
        let connected = connect_all(&mut self.crowd, connections, stop, |now, crowd| {
            progress.show(now, || {
                let rate = crowd.live as f64 / (now - began).as_secs_f64();
                format!("{} of {connections} connected, {rate:.0} a second", crowd.live)
            });
        });
        if let Err(failure) = connected {
            // That an own server died says more.
            self.served.check_alive()?;
            return Err(failure);
        }
        let seconds = (clock::now() - began).as_secs_f64();
        let after = self.usage()?;
        report.connects_per_second = Some(rounded(self.crowd.live as f64 / seconds));
        report.connect_cpu_us_per_connection =
            Some(before.cpu_until(&after, self.crowd.live as f64));
        self.served.report_handshakes(&handshakes, report);
        Ok(())
    }

    /// Goes on until `until`, or until stop is asked.
    pub(super) fn hold(
        &mut self,
        until: Instant,
        stop: &Stop,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let mut now = clock::now();
        while now < until && !stop.is_asked() {
            self.crowd.turn(until)?;
            now = clock::now();
            progress.show(now, || {
                format!("{} connected, {} pings answered", self.crowd.live, self.crowd.pongs())
            });
        }
        self.served.check_alive()
    }

    /// Goes on until the servers' memory stands still.
    pub(super) fn settle(&mut self, stop: &Stop, progress: &mut Progress) -> Result<(), Failure> {
        let deadline = clock::now() + QUIET_TIMEOUT;
        let mut before = self.usage()?;
        while clock::now() < deadline && !stop.is_asked() {
            self.hold(clock::now() + QUIET_INTERVAL, stop, progress)?;
            let after = self.usage()?;
            let (was, is) = (before.user_bytes(), after.user_bytes());
            if was.abs_diff(is) <= is / 500 {
                return Ok(());
            }
            before = after;
        }
        Ok(())
    }

    /// The own servers.
    pub(super) fn servers(&mut self) -> Result<&mut Servers, Failure> {
        let missing = || Failure::Usage("--target: needs servers of its own".to_owned());
        self.served.servers.as_mut().ok_or_else(missing)
    }

    pub(super) fn usage(&self) -> Result<Usage, Failure> {
        Usage::read(&self.served, self.crowd.speech())
    }

    /// Fills in the memory of a connection, since the servers were started.
    pub(super) fn report_memory(&self, report: &mut Report) -> Result<(), Failure> {
        let ((before, kernel_before), now) = (&self.began, self.usage()?);
        let kernel_now = Kernel::read()?;
        let live = self.crowd.live.max(1) as f64;
        let each = |before: u64, now: u64| rounded(now.saturating_sub(before) as f64 / live);
        report.edge_user_bytes_per_connection = Some(each(before.edge_bytes, now.edge_bytes));
        report.router_user_bytes_per_connection =
            before.router_bytes.zip(now.router_bytes).map(|(before, now)| each(before, now));
        let kernel = kernel_now.bytes.saturating_sub(kernel_before.bytes);
        report.kernel_bytes_per_connection = Some(rounded(kernel as f64 / 2.0 / live));
        let grown = kernel_now.slabs.into_iter().map(|(name, bytes)| {
            let before = kernel_before.slabs.get(&name).copied().unwrap_or_default();
            (name, each(before, bytes))
        });
        report.memory = Some(Memory {
            edge_user_bytes: now.edge_bytes,
            router_user_bytes: now.router_bytes,
            bench_user_bytes: now.bench_bytes,
            bench_user_bytes_per_connection: each(before.bench_bytes, now.bench_bytes),
            kernel_bytes_both_ends: kernel,
            slab_bytes_per_connection_both_ends: grown.filter(|(_, each)| *each >= 1.0).collect(),
        });
        Ok(())
    }

    /// Ends the run: fills in how it stands, which is good when all `connections` are in and nothing went wrong.
    pub(super) fn outcome(mut self, connections: u32, stop: &Stop, mut report: Report) -> Outcome {
        self.report_shards(&mut report);
        report.connections = self.crowd.live;
        report.errors = self.crowd.errors;
        report.first_error = self.crowd.first_error.take();
        report.cut_short = stop.is_asked().then(|| "interrupted".to_owned());
        let is_good = report.errors == 0 && report.connections == connections as usize;
        Outcome { report, is_good }
    }

    /// Connections that each shard of the first own edge that runs holds.
    pub(super) fn held_by_shards(&self) -> Vec<f64> {
        let servers = self.served.servers.iter().flat_map(|servers| &servers.edges);
        let metrics = servers.filter(|edge| edge.pid().is_some()).find_map(|e| e.metrics().ok());
        let metrics = metrics.unwrap_or_default();
        values_of(&metrics, "edge_shard_connections").map(|(_, connections)| connections).collect()
    }

    /// Fills in how evenly an own edge's shards are filled.
    fn report_shards(&self, report: &mut Report) {
        let held = self.held_by_shards();
        let fullest = held.iter().copied().fold(0.0, f64::max);
        let emptiest = held.iter().copied().fold(f64::INFINITY, f64::min);
        if !held.is_empty() {
            report.shards = Some(held.len());
            report.shard_fullest_over_emptiest = Some(rounded(fullest / emptiest.max(1.0)));
        }
    }
}

/// Waits until the kernel has taken down what a run before has left to it: it would be counted against this one.
fn wait_for_kernel(stop: &Stop) -> Result<(), Failure> {
    let deadline = clock::now() + KERNEL_TIMEOUT;
    let (mut before, mut quiet) = (host::kernel_bytes()?, 0);
    while quiet < KERNEL_QUIET_INTERVALS && clock::now() < deadline && !stop.is_asked() {
        stop.pause(QUIET_INTERVAL);
        let now = host::kernel_bytes()?;
        quiet = if now + KERNEL_QUIET_BYTES < before { 0 } else { quiet + 1 };
        before = now;
    }
    Ok(())
}

/// Turns until the first `sessions` are in, or stop is asked; those who fail come again.
///
/// # Errors
/// When it is clear that they will not get in.
pub(super) fn connect_all(
    crowd: &mut Crowd,
    sessions: u32,
    stop: &Stop,
    mut progress: impl FnMut(Instant, &Crowd),
) -> Result<(), Failure> {
    crowd.want(sessions);
    let began = clock::now();
    let (mut most, mut most_at) = (0, began);
    while crowd.live < sessions as usize && !stop.is_asked() {
        let now = clock::now();
        if crowd.live > most {
            (most, most_at) = (crowd.live, now);
        }
        let in_vain = crowd.welcomes == 0 && crowd.errors >= FAILURES_IN_VAIN.min(sessions.into());
        if in_vain || now - most_at > STALL_TIMEOUT {
            let why = crowd.first_error.as_deref().unwrap_or("no answers");
            let (live, waited) = (crowd.live, now - began);
            return Err(Failure::Unreachable(format!(
                "{live} of {sessions} sessions are in after {waited:.0?}: {why}"
            )));
        }
        crowd.turn(now + TURN_MAX)?;
        progress(now, crowd);
    }
    Ok(())
}

/// Memory of the kernel at one instant, all of it and by slab.
struct Kernel {
    bytes: u64,
    slabs: BTreeMap<String, u64>,
}

impl Kernel {
    fn read() -> Result<Self, Failure> {
        Ok(Self { bytes: host::kernel_bytes()?, slabs: host::slabs() })
    }
}

/// Memory and CPU of everybody at one instant.
pub(super) struct Usage {
    pub edge_bytes: u64,
    pub router_bytes: Option<u64>,
    bench_bytes: u64,
    pub edge_cpu: Duration,
    router_cpu: Option<Duration>,
    bench_cpu: Duration,
}

impl Usage {
    /// The first processes are the edges, the next one is the router; a server that is not Hawser's may be many processes,
    /// which count as one.
    fn read(served: &Served, speech: Speech) -> Result<Self, Failure> {
        let (edges, routers) = match speech {
            Speech::Hawser => served.pids.split_at(served.pids.len().min(served.edges)),
            Speech::Ws => (&served.pids[..], &[][..]),
        };
        let bytes = |pids: &[u32]| pids.iter().map(|pid| host::anonymous_bytes(*pid)).sum();
        let cpu = |pids: &[u32]| pids.iter().map(|pid| host::cpu_time(*pid)).sum();
        let bench = [std::process::id()];
        let router = routers.first().map(|_| routers);
        Ok(Self {
            edge_bytes: bytes(edges)?,
            router_bytes: router.map(bytes).transpose()?,
            bench_bytes: bytes(&bench)?,
            edge_cpu: cpu(edges)?,
            router_cpu: router.map(cpu).transpose()?,
            bench_cpu: cpu(&bench)?,
        })
    }

    fn user_bytes(&self) -> u64 {
        self.edge_bytes + self.router_bytes.unwrap_or_default()
    }

    /// Microseconds of each until `later`, for one of `parts`.
    pub(super) fn cpu_until(&self, later: &Self, parts: f64) -> Value {
        let each = |before: Duration, now: Duration| {
            rounded(now.saturating_sub(before).as_secs_f64() * 1e6 / parts.max(1.0))
        };
        json!({
            "edge": each(self.edge_cpu, later.edge_cpu),
            "router": self.router_cpu.zip(later.router_cpu).map(|(before, now)| each(before, now)),
            "bench": each(self.bench_cpu, later.bench_cpu),
        })
    }
}
