//! Is anything lost when processes die? Chat, while edge and router are killed with SIGKILL at random instants and
//! started again.
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
use crate::report::{Killed, Progress, Report, rounded};

/// Longest undisturbed time before a kill.
const PAUSE_BEFORE_KILL_MAX: Duration = Duration::from_millis(400);
/// Longest time that a killed process stays away.
const PAUSE_BEFORE_START_MAX: Duration = Duration::from_millis(150);
/// For a message to be acknowledged again after a start.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(20);
const RECOVERY_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Of ten kills, how many wait until messages flow again; the others hit processes that are just starting.
const PATIENT_OF_TEN: u8 = 8;
/// Of ten kills, how many take both.
const BOTH_OF_TEN: u8 = 1;

/// Which process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Victim {
    Edge,
    Router,
}

/// What a crash run does.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct CrashArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pairs: PairsFlags,
    /// How many processes are killed in all
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    kills: u32,
    /// Repeats the draws of an earlier run; absent: a new seed, which is printed
    #[arg(long)]
    #[serde(skip)]
    seed: Option<u64>,
    /// Kill only this process
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    only: Option<Victim>,
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
    let seed = args.seed.unwrap_or_else(clock::random_seed);
    if !args.output.json {
        eprintln!("seed {seed}");
    }
    let clients = args.pairs.clients();
    let plan = Plan {
        router: true,
        edges: 1,
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
    report.kills = Some(killed.edge + killed.router);
    report.killed = Some(killed);

    pairs.settle(&mut fleet, args.pairs.settled_until(stop), |now, pairs| {
        progress.show(now, || format!("settling, {} delivered", pairs.delivered));
        servers.check_alive()
    })?;
    Ok(chat::finish(report, pairs))
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
            only: args.only,
            random: fastrand::Rng::with_seed(seed),
        };
        let thread = std::thread::Builder::new().name("killer".to_owned()).spawn(|| run.run())?;
        Ok(Self { stop, accepted, kills, thread: Some(thread) })
    }

    fn is_done(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the killing; both servers run when it returns.
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
    only: Option<Victim>,
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
            let both = self.random.u8(0..10) < BOTH_OF_TEN;
            let edge_is_next = self.random.bool();
            let edge = self.only.map_or(edge_is_next, |only| only == Victim::Edge);
            let room_for_both = self.killed() + 1 < self.kills_max;
            let both = both && self.only.is_none() && room_for_both;
            self.strike(edge || both, !edge || both)?;
        }
        Ok((self.servers, self.killed))
    }

    fn killed(&self) -> u64 {
        self.killed.edge + self.killed.router
    }

    /// Kills what is asked, waits a little, starts it again in either order.
    fn strike(&mut self, edge: bool, router: bool) -> Result<(), Failure> {
        self.servers.check_alive()?;
        if edge {
            self.servers.edges[0].kill();
            self.killed.edge += 1;
        }
        if router && let Some(router) = &mut self.servers.router {
            router.kill();
            self.killed.router += 1;
        }
        self.kills.store(self.killed(), Ordering::Relaxed);
        self.pause(PAUSE_BEFORE_START_MAX);
        if edge {
            self.servers.edges[0].start()?;
        }
        if router && let Some(router) = &mut self.servers.router {
            router.start()?;
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
