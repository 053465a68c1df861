//! What do bad handshakes do to those who talk? Pairs chat at a rate; in every second window so many clients a second connect that
//! say garbage, half a hello, the wrong version, or nothing that they mean. Latencies are compared, windows in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::chat::{self, PairsFlags};
use super::pairs::{Pairs, Weather};
use super::{
    CLIENT_PATH, Outcome, OutputFlags, Served, ServerFlags, Stop, TURN_MAX, as_seconds,
    parse_seconds,
};
use crate::client::{Fleet, SUBPROTOCOL};
use crate::clock;
use crate::crowd::{MISFITS_MAX, Misfit, Misfits};
use crate::failure::Failure;
use crate::host;
use crate::processes::Plan;
use crate::report::{FloodWindow, Flooded, Latencies, Progress, Report, rounded};
use crate::target::Target;

/// Between two windows nothing is measured, so that none counts what the one before has left.
const BETWEEN: Duration = Duration::from_millis(700);

/// What a flood run does.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct FloodArgs {
    #[command(flatten)]
    #[serde(flatten)]
    servers: ServerFlags,
    #[command(flatten)]
    #[serde(flatten)]
    pairs: PairsFlags,
    /// Bad handshakes a second
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    handshakes: u32,
    /// How often a window without and one with them is measured. Give the chat a --rate below what the machine can do, or
    /// else its latency says how much that is
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Length of a window
    #[arg(long, default_value = "4s", value_parser = parse_seconds)]
    #[serde(serialize_with = "as_seconds")]
    seconds: Duration,
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) output: OutputFlags,
}

/// Runs it.
///
/// # Errors
/// [`Failure`] when there is nothing to report.
pub(crate) fn run(args: &FloodArgs, stop: &Stop) -> Result<Outcome, Failure> {
    let (clients, seed) = (args.pairs.clients(), clock::random_seed());
    let own = |plan: &mut Plan| {
        plan.connections_max += MISFITS_MAX as usize;
        CLIENT_PATH
    };
    let served = args.servers.serve(clients, own, seed, stop)?;
    let mut fleet = Fleet::new(served.front.clone(), Some(SUBPROTOCOL), clients, seed)?;
    let mut pairs = Pairs::new(clock::now(), &args.pairs.plan(Weather::Calm, seed));
    let mut report = Report::new("flood", args);
    report.data_filesystem = served.servers.as_ref().map(|servers| servers.data_filesystem.clone());
    chat::connect(&mut pairs, &mut fleet, stop)?;
    report.connections = pairs.live;
    pairs.begin_sending(clock::now());

    let flood = Flood::start(served.front.first().clone(), args.handshakes, seed)?;
    let mut beside = Beside { served, fleet, pairs, flood, progress: Progress::new() };
    let mut flooded = Flooded::default();
    let (mut calm, mut wet) = (Latencies::new(), Latencies::new());
    for _ in 0..args.rounds {
        for (is_on, all) in [(false, &mut calm), (true, &mut wet)] {
            let (window, latencies) = beside.window(is_on, args.seconds, stop)?;
            all.add(&latencies);
            flooded.windows.push(window);
        }
    }
    let Beside { mut served, mut fleet, mut pairs, flood, .. } = beside;
    flooded.misfits = flood.end()?;
    flooded.latency_ms_calm = calm.summary();
    flooded.latency_ms_flooded = wet.summary();
    let both = flooded.latency_ms_calm.zip(flooded.latency_ms_flooded);
    flooded.p99_ratio = both.map(|(calm, wet)| rounded(wet.p99 / calm.p99));
    report.seconds = rounded(args.seconds.as_secs_f64() * f64::from(args.rounds));
    report.flooded = Some(flooded);
    report.cut_short = chat::cut_short(&pairs, stop);
    pairs.settle(&mut fleet, args.pairs.settled_until(stop), |_, _| served.check_alive())?;
    Ok(chat::finish(report, pairs))
}

/// Those who talk, and beside them the flood.
struct Beside {
    served: Served,
    fleet: Fleet,
    pairs: Pairs,
    flood: Flood,
    progress: Progress,
}

impl Beside {
    /// One window with the flood or without. When stop is asked it is over at once.
    fn window(
        &mut self,
        is_on: bool,
        time: Duration,
        stop: &Stop,
    ) -> Result<(FloodWindow, Latencies), Failure> {
        self.flood.set_on(is_on);
        self.pass(BETWEEN, stop)?;
        let before = CpuTimes::read(&self.served)?;
        self.pairs.latencies = Some(Latencies::new());
        self.pass(time, stop)?;
        let latencies = self.pairs.latencies.take().unwrap_or_else(Latencies::new);
        let (edge_cores, bench_cores) = before.cores_until(&CpuTimes::read(&self.served)?);
        let latency_ms = latencies.summary();
        Ok((FloodWindow { is_on, latency_ms, edge_cores, bench_cores }, latencies))
    }

    fn pass(&mut self, time: Duration, stop: &Stop) -> Result<(), Failure> {
        let until = clock::now() + time;
        while clock::now() < until && !stop.is_asked() && !self.pairs.is_full() {
            self.pairs.turn(&mut self.fleet, until)?;
            let delivered = self.pairs.delivered;
            self.progress.show(clock::now(), || format!("{delivered} delivered"));
        }
        self.flood.check()?;
        self.served.check_alive()
    }
}

/// CPU at one instant.
struct CpuTimes {
    at: Instant,
    edge: Duration,
    bench: Duration,
}

impl CpuTimes {
    fn read(served: &Served) -> Result<Self, Failure> {
        let bench = host::cpu_time(std::process::id())?;
        Ok(Self { at: clock::now(), edge: served.edge_cpu(), bench })
    }

    /// Cores that the edge and this process kept busy until `later`.
    fn cores_until(&self, later: &Self) -> (f64, f64) {
        let seconds = (later.at - self.at).as_secs_f64();
        let cores = |before: Duration, after: Duration| {
            rounded(after.saturating_sub(before).as_secs_f64() / seconds)
        };
        (cores(self.edge, later.edge), cores(self.bench, later.bench))
    }
}

/// The misfits, on a thread of their own. They go when this is dropped.
struct Flood {
    is_on: Arc<AtomicBool>,
    stop: Stop,
    thread: Option<JoinHandle<Result<Misfit, Failure>>>,
}

impl Flood {
    fn start(target: Target, per_second: u32, seed: u64) -> Result<Self, Failure> {
        let (is_on, stop) = (Arc::new(AtomicBool::new(false)), Stop::default());
        let (on, stop_of_thread) = (Arc::clone(&is_on), stop.clone());
        let run = move || -> Result<Misfit, Failure> {
            let mut misfits = Misfits::new(&target, per_second, seed)?;
            while !stop_of_thread.is_asked() {
                let now = clock::now();
                // Nothing is published with it.
                misfits.set_on(now, on.load(Ordering::Relaxed));
                misfits.turn(now + TURN_MAX)?;
            }
            Ok(misfits.counts)
        };
        let thread = thread::Builder::new().name("misfits".to_owned()).spawn(run)?;
        Ok(Self { is_on, stop, thread: Some(thread) })
    }

    fn set_on(&self, on: bool) {
        self.is_on.store(on, Ordering::Relaxed);
    }

    /// Fails when the thread has ended by itself.
    fn check(&self) -> Result<(), Failure> {
        match &self.thread {
            Some(thread) if thread.is_finished() => {
                Err(Failure::Broken("the flood has ended by itself".to_owned()))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn end(mut self) -> Result<Misfit, Failure> {
        self.stop.ask();
        let ended = self.thread.take().map(JoinHandle::join);
        ended
            .and_then(Result::ok)
            .unwrap_or_else(|| Err(Failure::Broken("the thread of the flood panicked".to_owned())))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.ask();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
