//! Is anything lost when things break? Chat, while edges, routers and the servers of the engine are killed, stopped and
//! cut off at random instants, and mended again.
//!
//! The traffic runs on this thread; the [`Killer`] has a thread of its own, which owns the servers, so that a kill
//! waits for nothing that the traffic does. What is drawn follows from the seed; when exactly it happens, from the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::chat::{self, PairsFlags};
use super::pairs::{Pairs, Weather};
use super::{CLIENT_PATH, Outcome, OutputFlags, Stop, as_seconds, parse_seconds};
use crate::client::{Fleet, SUBPROTOCOL};
use crate::clock;
use crate::failure::Failure;
use crate::processes::{Plan, Servers};
use crate::report::{Killed, Latencies, Progress, Report, rounded};
use crate::services::{Engine, EngineFlags, Service};
use crate::wire::State;

/// Longest undisturbed time before a fault.
const PAUSE_BEFORE_KILL_MAX: Duration = Duration::from_millis(400);
/// Longest time that a killed process stays away.
const PAUSE_BEFORE_START_MAX: Duration = Duration::from_millis(150);
/// For a message to be acknowledged again after a start.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(60);
const RECOVERY_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Of ten faults, how many wait until messages flow again; the others hit processes that are just starting.
const PATIENT_OF_TEN: u8 = 8;

/// What is done to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    /// An edge is killed, and started again.
    EdgeKill,
    /// A router is killed, and started again.
    RouterKill,
    /// An edge and a router are killed in the same instant.
    BothKill,
    /// An edge is stopped, and goes on.
    EdgeStop,
    /// A router is stopped, and goes on as if nothing had happened.
    RouterStop,
    /// The links to a router are closed, and new ones too for a while.
    LinkCut,
    /// Nothing gets through to a router for a while, and nobody is told.
    LinkBlock,
    /// A router is killed, and started with an empty data folder.
    DiskLost,
    /// A server of the engine is killed, and started again.
    BrokerKill,
    /// A server of the engine is stopped, and goes on.
    BrokerStop,
    /// All servers of the engine are killed, and started again.
    BrokersKill,
}

impl Fault {
    /// Of all faults that happen so many are of this kind.
    fn weight(self) -> u32 {
        match self {
            Self::EdgeKill | Self::RouterKill => 8,
            Self::RouterStop | Self::LinkCut | Self::LinkBlock | Self::DiskLost => 4,
            Self::BothKill | Self::EdgeStop | Self::BrokerKill => 2,
            Self::BrokerStop | Self::BrokersKill => 1,
        }
    }

    /// Whether it needs an engine that routers share.
    fn needs_servers(self) -> bool {
        matches!(self, Self::DiskLost | Self::BrokerKill | Self::BrokerStop | Self::BrokersKill)
    }

    /// Longest time from the blow to the mending.
    fn longest(self) -> Duration {
        match self {
            Self::EdgeKill | Self::RouterKill | Self::BothKill | Self::DiskLost => {
                PAUSE_BEFORE_START_MAX
            }
            Self::LinkCut | Self::BrokerKill | Self::BrokersKill => Duration::from_secs(1),
            Self::EdgeStop | Self::BrokerStop => Duration::from_secs(3),
            // Longer than a lease of claims: others take over, and it wakes up.
            Self::RouterStop | Self::LinkBlock => Duration::from_secs(8),
        }
    }
}

/// What a crash run does.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct CrashArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pairs: PairsFlags,
    #[command(flatten)]
    #[serde(flatten)]
    engine: EngineFlags,
    /// Edges, behind a balancer
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    edges: u32,
    /// How many faults there are in all
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    kills: u32,
    /// Repeats the draws of an earlier run; absent: a new seed, which is printed
    #[arg(long)]
    #[serde(skip)]
    seed: Option<u64>,
    /// Only faults of these kinds; absent: all that the engine has
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    faults: Vec<Fault>,
    /// Shards of the edge; absent: its default, the cores
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    #[serde(skip_serializing_if = "Option::is_none")]
    shards: Option<u32>,
    /// The run ends after this time at the latest, with as many kills as it had
    #[arg(long, default_value = "30m", value_parser = parse_seconds)]
    #[serde(serialize_with = "as_seconds")]
    seconds_max: Duration,
    /// Where the servers' temporary folder is made; absent: the system's own place for such
    #[arg(long, value_name = "DIR")]
    #[serde(skip)]
    folder: Option<std::path::PathBuf>,
    /// Leave that folder there
    #[arg(long)]
    #[serde(skip)]
    keep: bool,
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) output: OutputFlags,
}

/// Runs it.
///
/// # Errors
/// [`Failure`] when there is nothing to report.
pub(crate) fn run(args: &CrashArgs, stop: &Stop) -> Result<Outcome, Failure> {
    args.check()?;
    let seed = args.seed.unwrap_or_else(clock::random_seed);
    if !args.output.json {
        eprintln!("seed {seed}");
    }
    let clients = args.pairs.clients();
    let plan = Plan {
        routers: args.engine.routers()?,
        engine: args.engine.engine,
        engine_nodes: args.engine.engine_nodes as usize,
        wires: true,
        edges: args.edges as usize,
        connections_max: 2 * clients + 64,
        drain_window: None,
        tls_resume_percent: None,
        shards: args.shards.map(|shards| shards as usize),
        echo_path: None,
        folder: args.folder.clone().unwrap_or_else(std::env::temp_dir),
        keep: args.keep,
    };
    let servers = Servers::start(&plan, clock::random_seed(), stop)?;
    let mut fleet =
        Fleet::new(servers.front(CLIENT_PATH), Some(SUBPROTOCOL), clients, seed.wrapping_add(1))?;
    let mut pairs =
        Pairs::new(clock::now(), &args.pairs.plan(Weather::Storm, seed.wrapping_add(2)));
    let mut report = Report::new("crash", args);
    report.seed = Some(seed);
    report.data_filesystem = Some(servers.data_filesystem.clone());
    let mut progress = Progress::new();

    chat::connect(&mut pairs, &mut fleet, stop)?;
    report.connections = pairs.live;
    let began = clock::now();
    let until = began + args.seconds_max;
    pairs.latencies = Some(Latencies::new());
    pairs.begin_sending(began);
    let killer = Killer::start(servers, args, seed)?;
    loop {
        let now = clock::now();
        if now >= until || stop.is_asked() || pairs.is_full() || killer.is_done() {
            break;
        }
        pairs.turn(&mut fleet, until)?;
        // Only a count; nothing is published with it.
        killer.accepted.store(pairs.accepted, Ordering::Relaxed);
        progress.show(now, || {
            let kills = killer.kills.load(Ordering::Relaxed);
            format!("{kills} kills, {} acknowledged, {} delivered", pairs.accepted, pairs.delivered)
        });
    }
    report.cut_short = chat::cut_short(&pairs, stop)
        .or_else(|| (clock::now() >= until).then(|| "--seconds-max was reached".to_owned()));
    let (mut servers, killed) = killer.finish()?;
    let seconds = (clock::now() - began).as_secs_f64();
    report.seconds = rounded(seconds);
    report.messages_per_second = Some(rounded(pairs.delivered as f64 / seconds));
    report.kills = Some(killed.values().sum());
    report.killed = Some(killed);

    pairs.settle(&mut fleet, args.pairs.settled_until(stop), |now, pairs| {
        progress.show(now, || format!("settling, {} delivered", pairs.delivered));
        servers.check_alive()
    })?;
    report.latency_ms = pairs.latencies.take().and_then(|latencies| latencies.summary());
    Ok(chat::finish(report, pairs))
}

impl CrashArgs {
    /// The kinds of faults, all that there are when none was named.
    fn faults(&self) -> Vec<Fault> {
        let fits = |fault: &Fault| self.engine.engine != Engine::Embedded || !fault.needs_servers();
        let named = Some(self.faults.clone()).filter(|faults| !faults.is_empty());
        named.unwrap_or_else(|| Fault::value_variants().iter().copied().filter(fits).collect())
    }

    fn check(&self) -> Result<(), Failure> {
        let unfit =
            |fault: &&Fault| self.engine.engine == Engine::Embedded && fault.needs_servers();
        match self.faults.iter().find(unfit) {
            Some(_) => Err(Failure::Usage(
                "--faults: the engine embedded has no servers, and its disk is all that it has"
                    .to_owned(),
            )),
            None => Ok(()),
        }
    }
}

/// Kills and starts servers on a thread of its own. Dropping it ends that thread, and with it the servers.
struct Killer {
    stop: Stop,
    accepted: Arc<AtomicU64>,
    kills: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<(Servers, Killed), Failure>>>,
}

impl Killer {
    fn start(servers: Servers, args: &CrashArgs, seed: u64) -> Result<Self, Failure> {
        let (stop, accepted, kills) = (Stop::default(), Arc::default(), Arc::default());
        let run = KillerRun {
            servers,
            stop: stop.clone(),
            accepted: Arc::clone(&accepted),
            kills: Arc::clone(&kills),
            killed: Killed::default(),
            kills_max: args.kills.into(),
            faults: args.faults(),
            random: fastrand::Rng::with_seed(seed),
        };
        let thread = std::thread::Builder::new().name("killer".to_owned()).spawn(|| run.run())?;
        Ok(Self { stop, accepted, kills, thread: Some(thread) })
    }

    fn is_done(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the killing; all servers run when it returns.
    fn finish(mut self) -> Result<(Servers, Killed), Failure> {
        self.stop.ask();
        let joined = self.thread.take().map(JoinHandle::join);
        match joined {
            Some(Ok(result)) => result,
            _ => Err(Failure::Broken("the killer's thread panicked".to_owned())),
        }
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        self.stop.ask();
        if let Some(thread) = self.thread.take() {
            // Its result is for `finish`; here only its end matters.
            let _ = thread.join();
        }
    }
}

struct KillerRun {
    servers: Servers,
    stop: Stop,
    /// Acknowledged messages, told by the traffic.
    accepted: Arc<AtomicU64>,
    kills: Arc<AtomicU64>,
    killed: Killed,
    kills_max: u64,
    faults: Vec<Fault>,
    random: fastrand::Rng,
}

impl KillerRun {
    fn run(mut self) -> Result<(Servers, Killed), Failure> {
        while self.killed() < self.kills_max && !self.stop.is_asked() {
            if self.random.u8(0..10) < PATIENT_OF_TEN {
                self.wait_until_messages_flow()?;
            }
            self.pause(PAUSE_BEFORE_KILL_MAX);
            if self.stop.is_asked() {
                break;
            }
            let fault = self.draw();
            self.strike(fault)?;
        }
        Ok((self.servers, self.killed))
    }

    fn killed(&self) -> u64 {
        self.killed.values().sum()
    }

    fn draw(&mut self) -> Fault {
        let all = self.faults.iter().map(|fault| fault.weight()).sum();
        let mut left = self.random.u32(0..all);
        let drawn = self.faults.iter().find(|fault| {
            let here = left < fault.weight();
            left = left.saturating_sub(fault.weight());
            here
        });
        drawn.copied().unwrap_or(self.faults[0])
    }

    /// Does the harm, waits a little, mends it.
    fn strike(&mut self, fault: Fault) -> Result<(), Failure> {
        self.servers.check_alive()?;
        let edge = self.random.usize(0..self.servers.edges.len());
        let router = self.random.usize(0..self.servers.routers.len());
        let nodes = self.servers.service.as_ref().map_or(1, Service::nodes);
        let node = self.random.usize(1..=nodes);
        *self.killed.entry(fault).or_default() += 1;
        self.kills.store(self.killed(), Ordering::Relaxed);
        self.harm(fault, edge, router, node)?;
        self.pause(fault.longest());
        self.mend(fault, edge, router, node)
    }

    fn harm(
        &mut self,
        fault: Fault,
        edge: usize,
        router: usize,
        node: usize,
    ) -> Result<(), Failure> {
        let servers = &mut self.servers;
        let Servers { edges, routers, wires, service, .. } = servers;
        match fault {
            Fault::EdgeKill => edges[edge].kill(),
            Fault::RouterKill => routers[router].kill(),
            Fault::BothKill => {
                edges[edge].kill();
                routers[router].kill();
            }
            Fault::EdgeStop => edges[edge].set_stopped(true),
            Fault::RouterStop => routers[router].set_stopped(true),
            Fault::LinkCut => wires[router].set(State::Cut),
            Fault::LinkBlock => wires[router].set(State::Blocked),
            Fault::DiskLost => {
                routers[router].kill();
                routers[router].lose_data()?;
            }
            Fault::BrokerKill => service.as_ref().map_or(Ok(()), |service| service.kill(node))?,
            Fault::BrokerStop => {
                if let Some(service) = service {
                    service.set_stopped(node, true);
                }
            }
            Fault::BrokersKill => {
                let service = service.as_ref();
                service
                    .map_or(Ok(()), |all| (1..=all.nodes()).try_for_each(|node| all.kill(node)))?;
            }
        }
        Ok(())
    }

    fn mend(
        &mut self,
        fault: Fault,
        edge: usize,
        router: usize,
        node: usize,
    ) -> Result<(), Failure> {
        let Servers { edges, routers, wires, service, .. } = &mut self.servers;
        match fault {
            Fault::EdgeKill => edges[edge].start()?,
            Fault::RouterKill | Fault::DiskLost => routers[router].start()?,
            Fault::BothKill if self.random.bool() => {
                edges[edge].start()?;
                routers[router].start()?;
            }
            Fault::BothKill => {
                routers[router].start()?;
                edges[edge].start()?;
            }
            Fault::EdgeStop => edges[edge].set_stopped(false),
            Fault::RouterStop => routers[router].set_stopped(false),
            Fault::LinkCut | Fault::LinkBlock => wires[router].set(State::Whole),
            Fault::BrokerKill => {
                service.as_ref().map_or(Ok(()), |service| service.start_node(node))?
            }
            Fault::BrokerStop => {
                if let Some(service) = service {
                    service.set_stopped(node, false);
                }
            }
            Fault::BrokersKill => {
                // At once: no majority, no answer.
                let Some(service) = service.as_ref() else { return Ok(()) };
                let starting = std::thread::scope(|scope| {
                    let start = |node| scope.spawn(move || service.start_node(node));
                    let started: Vec<_> = (1..=service.nodes()).map(start).collect();
                    started.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
                });
                for started in starting {
                    let panicked = |_| Failure::Broken("a thread panicked".to_owned());
                    started.map_err(panicked)??;
                }
            }
        }
        Ok(())
    }

    fn pause(&mut self, longest: Duration) {
        let pause = longest.mul_f64(self.random.f64());
        self.stop.pause(pause);
    }

    fn wait_until_messages_flow(&mut self) -> Result<(), Failure> {
        let before = self.accepted.load(Ordering::Relaxed);
        let deadline = clock::now() + RECOVERY_TIMEOUT;
        while self.accepted.load(Ordering::Relaxed) == before && !self.stop.is_asked() {
            self.servers.check_alive()?;
            if clock::now() >= deadline {
                return Err(Failure::Broken(format!(
                    "no message was acknowledged within {RECOVERY_TIMEOUT:?} after {} kills",
                    self.killed()
                )));
            }
            self.stop.pause(RECOVERY_POLL_INTERVAL);
        }
        Ok(())
    }
}
