//! How soon are a router's users served by others when it is killed? A crowd is registered at routers that share an
//! engine; one router gets SIGKILL and stays away. Pairs write to each other all the while, and lose nothing.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::chat;
use super::crash::{Fault, Struck};
use super::crowded::{CrowdFlags, Crowded};
use super::pairs::{Pacing, Pairs, PairsPlan, Weather};
use super::waits::Waits;
use super::{CLIENT_PATH, Outcome, OutputFlags, ServerFlags, Stop, as_seconds, parse_seconds};
use crate::client::{Fleet, SUBPROTOCOL};
use crate::clock;
use crate::crowd::Speech;
use crate::failure::Failure;
use crate::processes::{Plan, Server, values_of};
use crate::report::{Progress, Report, Takeover, rounded};
use crate::services::{Engine, EngineFlags};

/// How long all are registered before the kill.
const CALM: Duration = Duration::from_secs(2);
/// How long a turn of the crowd and one of the pairs take at most.
const TURN: Duration = Duration::from_millis(5);
/// Between two looks at the metrics.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Payload of the pairs.
const PAYLOAD_BYTES: usize = 200;
/// Bound on the messages of the pairs.
const MESSAGES_MAX: usize = 1_000_000;
/// Longest time that what is on its way at the end gets to arrive.
const SETTLE: Duration = Duration::from_secs(30);

/// What a takeover run does.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct TakeoverArgs {
    #[command(flatten)]
    #[serde(flatten)]
    servers: ServerFlags,
    #[command(flatten)]
    #[serde(flatten)]
    engine: EngineFlags,
    /// Users that are registered, spread over the routers
    #[arg(long, default_value_t = 100_000, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=5_000_000))]
    users: u32,
    /// Pairs beside them that write to each other
    #[arg(long, default_value_t = 20, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pairs: u32,
    /// Messages a second, all pairs together
    #[arg(long, default_value_t = 100, value_name = "R",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Longest time that all get to be registered again
    #[arg(long, default_value = "60s", value_parser = parse_seconds)]
    #[serde(serialize_with = "as_seconds")]
    patience: Duration,
    #[command(flatten)]
    #[serde(flatten)]
    crowd: CrowdFlags,
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) output: OutputFlags,
}

/// Runs it.
///
/// # Errors
/// [`Failure`] when there is nothing to report.
pub(crate) fn run(args: &TakeoverArgs, stop: &Stop) -> Result<Outcome, Failure> {
    let routers = args.check()?;
    let (mut progress, mut report) = (Progress::new(), Report::new("takeover", args));
    let clients = args.pairs as usize * 2;
    let own = |plan: &mut Plan| {
        plan.engine = args.engine.engine;
        plan.engine_nodes = args.engine.engine_nodes as usize;
        plan.routers = routers;
    };
    // The pairs' connections fit into what a crowd may have above its number, or are part of it.
    let all = args.users + 2 * args.pairs;
    let mut crowded = Crowded::start(&args.servers, &args.crowd, all, own, stop)?;
    crowded.connect(args.users, stop, &mut progress, &mut report)?;
    let seed = clock::random_seed();
    let front = crowded.servers()?.front(CLIENT_PATH);
    let mut fleet = Fleet::new(front, Some(SUBPROTOCOL), clients, seed)?;
    let mut pairs = Pairs::new(clock::now(), &args.pairs_plan(seed));
    chat::connect(&mut pairs, &mut fleet, stop)?;
    pairs.waits = Some(Waits::new(clients));
    pairs.begin_sending(clock::now());
    let mut watch = Watch { crowded, pairs, fleet, all: all as usize };
    watch.turn_until(clock::now() + CALM, stop)?;
    watch.wait_until_registered(clock::now() + args.patience, stop)?;

    let began = clock::now();
    let mut takeover = watch.kill_first()?;
    let until = began + args.patience;
    while takeover.registered_after_seconds.is_none() && clock::now() < until && !stop.is_asked() {
        watch.turn_until(clock::now() + LOOK_INTERVAL, stop)?;
        watch.look(began, &mut takeover)?;
        progress.show(clock::now(), || format!("{takeover:?}"));
    }
    let struck = Struck { fault: Fault::RouterKill, struck_at: began, mended_at: clock::now() };
    report.seconds = rounded((clock::now() - began).as_secs_f64());
    let Watch { mut crowded, mut pairs, mut fleet, .. } = watch;
    pairs.settle(&mut fleet, clock::now() + SETTLE, |now, _| Ok(crowded.crowd.turn(now)?))?;
    let waits = pairs.waits.take().map(|waits| waits.around(&[struck]));
    takeover.waited = waits.and_then(|waits| waits.get(&Fault::RouterKill).copied());
    report.takeover = Some(takeover);
    let Outcome { report, is_good } = crowded.outcome(args.users, stop, report);
    let (registered, errors) = (takeover.registered_after_seconds, report.errors);
    let mut outcome = chat::finish(report, pairs);
    outcome.report.errors += errors;
    outcome.is_good &= is_good && registered.is_some();
    Ok(outcome)
}

impl TakeoverArgs {
    /// How many routers there are.
    fn check(&self) -> Result<usize, Failure> {
        if self.servers.target.is_some() {
            return Err(Failure::Usage("--target: a running server is not killed".to_owned()));
        }
        if self.crowd.session == Speech::Ws {
            return Err(Failure::Usage("--session: only hawser registers anybody".to_owned()));
        }
        if self.engine.engine == Engine::Embedded {
            return Err(Failure::Usage(
                "--engine: only with nats or kafka there is another router to take over".to_owned(),
            ));
        }
        match self.engine.routers()? {
            1 => Err(Failure::Usage("--routers: one has nobody to take over".to_owned())),
            routers => Ok(routers),
        }
    }

    fn pairs_plan(&self, seed: u64) -> PairsPlan {
        PairsPlan {
            pairs: self.pairs as usize,
            payload_bytes: PAYLOAD_BYTES,
            messages_max: MESSAGES_MAX,
            pacing: Pacing::Rate { per_second: self.rate.into() },
            weather: Weather::Calm,
            seed,
            run: clock::random_seed(),
        }
    }
}

/// All that is there while a router goes.
struct Watch {
    crowded: Crowded,
    pairs: Pairs,
    fleet: Fleet,
    /// Connections, the pairs' too.
    all: usize,
}

impl Watch {
    /// The crowd and the pairs by turns.
    fn turn_until(&mut self, until: Instant, stop: &Stop) -> Result<(), Failure> {
        let mut now = clock::now();
        while now < until && !stop.is_asked() {
            self.pairs.turn(&mut self.fleet, until.min(now + TURN))?;
            self.crowded.crowd.turn(until.min(clock::now() + TURN))?;
            now = clock::now();
        }
        Ok(())
    }

    fn wait_until_registered(&mut self, until: Instant, stop: &Stop) -> Result<(), Failure> {
        loop {
            let registered: usize = self.crowded.servers()?.routers.iter().map(registered).sum();
            if registered == self.all {
                return Ok(());
            }
            if clock::now() > until || stop.is_asked() {
                let all = self.all;
                return Err(Failure::Broken(format!(
                    "routers know {registered} of {all} connections"
                )));
            }
            self.turn_until(clock::now() + LOOK_INTERVAL, stop)?;
        }
    }

    fn kill_first(&mut self) -> Result<Takeover, Failure> {
        let servers = self.crowded.servers()?;
        let mut killed = servers.routers.remove(0);
        let registered_there = registered(&killed);
        killed.kill();
        Ok(Takeover { registered_there, ..Takeover::default() })
    }

    /// Notes what has come about since the kill at `began`.
    fn look(&mut self, began: Instant, takeover: &mut Takeover) -> Result<(), Failure> {
        let servers = self.crowded.servers()?;
        let metrics = servers.edges[0].metrics().unwrap_or_default();
        // One a shard, or one in all.
        let unrouted = values_of(&metrics, "edge_partitions_unrouted").map(|(_, count)| count);
        let unrouted = unrouted.reduce(f64::max);
        let seconds = rounded((clock::now() - began).as_secs_f64());
        takeover.unrouted_max = takeover.unrouted_max.max(unrouted.unwrap_or_default() as usize);
        if takeover.unrouted_max > 0 && unrouted == Some(0.0) {
            takeover.routed_after_seconds.get_or_insert(seconds);
        }
        let all: usize = servers.routers.iter().map(registered).sum();
        if takeover.routed_after_seconds.is_some() && all >= self.all {
            takeover
                .registered_after_seconds
                .get_or_insert(rounded((clock::now() - began).as_secs_f64()));
        }
        Ok(())
    }
}

/// Connections that a router knows; none while it does not say.
fn registered(router: &Server) -> usize {
    let metrics = router.metrics().unwrap_or_default();
    values_of(&metrics, "router_connections").map(|(_, count)| count as usize).sum()
}
