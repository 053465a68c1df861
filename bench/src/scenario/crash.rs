//! Is anything lost when things break? Chat, while edges, routers and the servers of the engine are killed, stopped and
//! cut off at random instants, and mended again.
//!
//! The traffic runs on this thread; the [`Killer`] has a thread of its own, which owns the servers, so that a kill
//! waits for nothing that the traffic does. What is drawn follows from the seed; when exactly it happens, from the machine.

mod fault;
mod killer;

use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::{Args, ValueEnum as _};
use serde::Serialize;

pub(crate) use self::fault::{Fault, Struck};
use self::killer::Killer;
use super::chat::{self, PairsFlags};
use super::pairs::{Pairs, Weather};
use super::waits::Waits;
use super::{CLIENT_PATH, Outcome, OutputFlags, Stop, as_seconds, parse_seconds};
use crate::client::{Fleet, SUBPROTOCOL};
use crate::clock;
use crate::failure::Failure;
use crate::processes::{Plan, Servers};
use crate::report::{Killed, Latencies, Progress, Report, rounded};
use crate::services::{Engine, EngineFlags};

/// Messages a second where no pace was given: so few that two cores have time to recover.
const RATE_DEFAULT: u32 = 200;

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
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
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
    /// Longest undisturbed time before a fault; each is drawn up to it
    #[arg(long, default_value = "400ms", value_parser = parse_seconds)]
    #[serde(serialize_with = "as_seconds")]
    pause: Duration,
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
    let args = &CrashArgs { pairs: args.pairs.clone().or_at_rate(RATE_DEFAULT), ..args.clone() };
    let faults = args.faults();
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
        disk: faults.contains(&Fault::DiskFull),
        stepped_clock: faults.contains(&Fault::ClockStep),
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
    report.left_out.clone_from(&servers.left_out);
    let mut progress = Progress::new();

    chat::connect(&mut pairs, &mut fleet, stop)?;
    report.connections = pairs.live;
    let began = clock::now();
    let until = began + args.seconds_max;
    pairs.latencies = Some(Latencies::new());
    pairs.waits = Some(Waits::new(clients));
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
    let (mut servers, struck) = killer.finish()?;
    let mut killed = Killed::new();
    struck.iter().for_each(|struck| *killed.entry(struck.fault).or_default() += 1);
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
    report.waited_seconds =
        pairs.waits.take().map(|waits| waits.around(&struck)).unwrap_or_default();
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
        self.engine.routers()?;
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
