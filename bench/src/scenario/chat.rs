//! How fast, and is anything lost? Durable pairs, latency from send to delivery, and the history checker.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::pairs::{Pacing, Pairs, PairsPlan, STAMP_BYTES, Weather};
use super::rotation::Rotation;
use super::{
    CLIENT_PATH, Outcome, OutputFlags, ServerFlags, Stop, TURN_MAX, as_seconds, as_seconds_if,
    parse_seconds,
};
use crate::client::{Fleet, SUBPROTOCOL};
use crate::clock;
use crate::failure::Failure;
use crate::processes::Plan;
use crate::report::{CpuClocks, Latencies, Progress, Report, rounded};
use crate::services::EngineFlags;

/// For all clients together, and the share of each.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT_EACH: Duration = Duration::from_millis(5);
/// For what is on its way when Ctrl-C came.
const SETTLE_TIMEOUT_INTERRUPTED: Duration = Duration::from_secs(3);

/// Messages of a pair on their way.
const IN_FLIGHT_DEFAULT: u32 = 8;

/// What a chat run does.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    #[serde(flatten)]
    servers: ServerFlags,
    #[command(flatten)]
    #[serde(flatten)]
    pairs: PairsFlags,
    #[command(flatten)]
    #[serde(flatten)]
    engine: EngineFlags,
    /// Measured time
    #[arg(long, default_value = "10s", value_parser = parse_seconds)]
    #[serde(serialize_with = "as_seconds")]
    seconds: Duration,
    /// Load before the measured time
    #[arg(long, default_value = "1s", value_parser = parse_seconds)]
    #[serde(serialize_with = "as_seconds")]
    warmup: Duration,
    /// Own edges, behind a balancer
    #[arg(long, default_value_t = 1, conflicts_with = "target",
          value_parser = clap::value_parser!(u32).range(1..=16))]
    edges: u32,
    /// One edge after the other is told to leave, and started again when it has; so long lies between them. Needs two
    /// edges, for clients to have where to go
    #[arg(long, value_name = "DURATION", conflicts_with = "target", value_parser = parse_seconds)]
    #[serde(serialize_with = "as_seconds_if", skip_serializing_if = "Option::is_none")]
    drain_every: Option<Duration>,
    /// Over which an edge sends its clients away
    #[arg(long, default_value = "5s", requires = "drain_every", value_parser = parse_seconds)]
    #[serde(serialize_with = "as_seconds")]
    drain_window: Duration,
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) output: OutputFlags,
}

/// Flags of the traffic between pairs.
#[derive(Clone, Debug, Args, Serialize)]
pub(super) struct PairsFlags {
    /// Pairs of clients; in each both write to the other
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub pairs: u32,
    /// Messages a second, all pairs together; absent: each pair sends when a message arrives
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u32>,
    /// Without --rate: messages of a pair on their way, both directions together; absent: 8
    #[arg(long, value_name = "N", conflicts_with = "rate",
          value_parser = clap::value_parser!(u32).range(1..=128))]
    #[serde(skip_serializing_if = "Option::is_none")]
    in_flight: Option<u32>,
    /// Length of a payload
    #[arg(long, default_value_t = 200,
          value_parser = clap::value_parser!(u32).range(STAMP_BYTES as i64..=65_536))]
    payload_bytes: u32,
    /// Bound on sends, and so on the log that is kept for the checker
    #[arg(long, default_value_t = 2_000_000, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=50_000_000))]
    messages_max: u32,
    /// Longest time that what is on its way at the end gets to arrive
    #[arg(long, default_value = "30s", value_parser = parse_seconds)]
    #[serde(serialize_with = "as_seconds")]
    settle: Duration,
}

impl PairsFlags {
    /// The same, at `rate` where no pace was given.
    pub(super) fn or_at_rate(mut self, rate: u32) -> Self {
        if self.in_flight.is_none() {
            self.rate.get_or_insert(rate);
        }
        self
    }

    pub(super) fn clients(&self) -> usize {
        self.pairs as usize * 2
    }

    /// When settling that begins now is over at the latest.
    pub(super) fn settled_until(&self, stop: &Stop) -> Instant {
        let longest = if stop.is_asked() { SETTLE_TIMEOUT_INTERRUPTED } else { Duration::MAX };
        clock::now() + self.settle.min(longest)
    }

    pub(super) fn plan(&self, weather: Weather, seed: u64) -> PairsPlan {
        PairsPlan {
            pairs: self.pairs as usize,
            payload_bytes: self.payload_bytes as usize,
            messages_max: self.messages_max as usize,
            pacing: match self.rate {
                Some(rate) => Pacing::Rate { per_second: rate.into() },
                None => Pacing::Closed {
                    in_flight: self.in_flight.unwrap_or(IN_FLIGHT_DEFAULT) as usize,
                },
            },
            weather,
            seed,
            run: clock::random_seed(),
        }
    }
}

/// Runs it.
///
/// # Errors
/// [`Failure`] when there is nothing to report.
pub(crate) fn run(args: &ChatArgs, stop: &Stop) -> Result<Outcome, Failure> {
    if args.drain_every.is_some() && args.edges < 2 {
        return Err(Failure::Usage("--drain-every: needs --edges 2 or more".to_owned()));
    }
    let clients = args.pairs.clients();
    let seed = clock::random_seed();
    let routers = args.engine.routers()?;
    let own = |plan: &mut Plan| {
        plan.engine = args.engine.engine;
        plan.engine_nodes = args.engine.engine_nodes as usize;
        plan.routers = routers;
        plan.edges = args.edges as usize;
        plan.drain_window = args.drain_every.map(|_| args.drain_window);
        CLIENT_PATH
    };
    let mut served = args.servers.serve(clients, own, seed, stop)?;
    let mut fleet = Fleet::new(served.front.clone(), Some(SUBPROTOCOL), clients, seed)?;
    let weather = if args.drain_every.is_some() { Weather::Deploys } else { Weather::Calm };
    let mut pairs = Pairs::new(clock::now(), &args.pairs.plan(weather, seed));
    let mut report = Report::new("chat", args);
    report.data_filesystem = served.servers.as_ref().map(|servers| servers.data_filesystem.clone());
    let mut progress = Progress::new();

    let (connecting, handshakes) = (clock::now(), served.handshakes());
    connect(&mut pairs, &mut fleet, stop)?;
    let connected = clock::now();
    report.connections = pairs.live;
    served.report_handshakes(&handshakes, &mut report);
    let connecting_seconds = (connected - connecting).as_secs_f64();
    report.connects_per_second = Some(rounded(clients as f64 / connecting_seconds));

    // Where processes come and go, their CPU says nothing.
    let pids = if args.drain_every.is_some() { Vec::new() } else { served.pids.clone() };
    let mut rotation =
        args.drain_every.map(|every| Rotation::new(connected, every, args.drain_window));
    let mut drive = |pairs: &mut Pairs, until: Instant| loop {
        let now = clock::now();
        if now >= until || stop.is_asked() || pairs.is_full() {
            return served.check_alive();
        }
        if let Some((rotation, servers)) = rotation.as_mut().zip(served.servers.as_mut()) {
            rotation.turn(now, servers, fleet.front())?;
        }
        pairs.turn(&mut fleet, until)?;
        progress.show(now, || {
            format!("{} sent and acknowledged, {} delivered", pairs.accepted, pairs.delivered)
        });
    };
    pairs.begin_sending(connected);
    drive(&mut pairs, connected + args.warmup)?;
    let before = CpuClocks::read(clock::now(), &pids);
    let delivered_before = pairs.delivered;
    pairs.latencies = Some(Latencies::new());
    drive(&mut pairs, clock::now() + args.seconds)?;
    let after = CpuClocks::read(clock::now(), &pids);
    let latencies = pairs.latencies.take();
    before.report_until(&after, pairs.delivered - delivered_before, &mut report);
    report.latency_ms = latencies.and_then(|latencies| latencies.summary());
    report.cut_short = cut_short(&pairs, stop);

    // Whoever is on its way out or in gets there first.
    while let Some((rotation, servers)) = rotation.as_mut().zip(served.servers.as_mut())
        && !rotation.is_calm()
        && !stop.is_asked()
    {
        let now = clock::now();
        rotation.turn(now, servers, fleet.front())?;
        pairs.turn(&mut fleet, now + TURN_MAX)?;
    }
    report.drains = rotation.map(|rotation| rotation.rounds);
    pairs.settle(&mut fleet, args.pairs.settled_until(stop), |now, pairs| {
        progress.show(now, || format!("settling, {} delivered", pairs.delivered));
        served.check_alive()
    })?;
    Ok(finish(report, pairs))
}

/// Connects every client.
pub(super) fn connect(pairs: &mut Pairs, fleet: &mut Fleet, stop: &Stop) -> Result<(), Failure> {
    let began = clock::now();
    let clients = pairs.clients();
    let deadline = began + CONNECT_TIMEOUT + CONNECT_TIMEOUT_EACH * clients as u32;
    while !pairs.is_connected() {
        let now = clock::now();
        if let Some(error) = &pairs.first_error {
            return Err(Failure::Unreachable(error.clone()));
        }
        if now >= deadline || stop.is_asked() {
            let live = pairs.live;
            let waited = now - began;
            return Err(Failure::Unreachable(format!(
                "only {live} of {clients} clients were welcomed after {waited:.1?}"
            )));
        }
        pairs.turn(fleet, deadline)?;
    }
    Ok(())
}

pub(super) fn cut_short(pairs: &Pairs, stop: &Stop) -> Option<String> {
    if stop.is_asked() {
        return Some("interrupted".to_owned());
    }
    pairs.is_full().then(|| "--messages-max was reached".to_owned())
}

/// Puts the checker's verdict and the counters into the report.
pub(super) fn finish(mut report: Report, pairs: Pairs) -> Outcome {
    let verdict = pairs.verdict();
    let is_good = verdict.is_clean() && pairs.errors == 0;
    report.verdict = Some(verdict);
    report.traffic = Some(pairs.traffic);
    report.errors = pairs.errors;
    report.first_error = pairs.first_error;
    Outcome { report, is_good }
}
