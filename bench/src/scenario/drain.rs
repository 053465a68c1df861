//! How evenly does an edge let its clients go? All sessions are connected to one of two edges, behind a balancer; then that
//! edge is told to leave (SIGTERM), and the balancer sends those who come back to the other one.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use clap::Args;
use hawser_edge::drain::LEAVE_RATE_MIN;
use serde::Serialize;

use super::crowded::{CrowdFlags, Crowded};
use super::{Outcome, OutputFlags, ServerFlags, Stop, TURN_MAX, as_seconds, parse_seconds};
use crate::clock;
use crate::failure::Failure;
use crate::processes::{Plan, Server};
use crate::report::{Drained, Progress, Report, rounded};

/// How long all are connected before the edge is told to leave.
const CALM: Duration = Duration::from_secs(1);
/// What lies between the signal and the moment when a shard knows of it, and between the word of an edge and the moment
/// when it is read here: so much later than the window the last may hear it.
const GRACE: Duration = Duration::from_millis(500);
/// The edges in the order in which they are started.
const LEAVING: usize = 0;
const STAYING: usize = 1;

/// What a drain run does.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    #[serde(flatten)]
    servers: ServerFlags,
    /// Connections, each a user of its own
    #[arg(long, default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(1..=5_000_000))]
    connections: u32,
    /// Over which the edge is to send them away
    #[arg(long, default_value = "30s", value_parser = parse_seconds)]
    #[serde(serialize_with = "as_seconds")]
    window: Duration,
    /// Longest time after the window that all get to be back, and the edge to end
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
pub(crate) fn run(args: &DrainArgs, stop: &Stop) -> Result<Outcome, Failure> {
    if args.servers.target.is_some() {
        return Err(Failure::Usage(
            "--target: a running server is not told to leave; drain starts its own".to_owned(),
        ));
    }
    let mut progress = Progress::new();
    let mut report = Report::new("drain", args);
    let two_edges = |plan: &mut Plan| {
        plan.edges = 2;
        plan.drain_window = Some(args.window);
    };
    let mut crowded =
        Crowded::start(&args.servers, &args.crowd, args.connections, two_edges, stop)?;
    crowded.crowd.front.set_open(STAYING, false);
    crowded.connect(args.connections, stop, &mut progress, &mut report)?;
    crowded.hold(clock::now() + CALM, stop, &mut progress)?;
    let curve_seconds = curve_seconds(args.window, &crowded.held_by_shards());

    let began = clock::now();
    crowded.crowd.begin_farewell(began);
    crowded.crowd.front.set_open(STAYING, true);
    crowded.crowd.front.set_open(LEAVING, false);
    edge(&mut crowded, LEAVING)?.ask_to_leave()?;
    let end = watch(&mut crowded, args, began, stop, &mut progress)?;

    report.seconds = rounded((clock::now() - began).as_secs_f64());
    report.recovered_seconds = crowded.crowd.recovered().and_then(|recovered| recovered.seconds());
    let mut drained = Drained::of(crowded.crowd.gone_ms(), curve_seconds);
    drained.back_after_seconds = end.back_after.map(|after| rounded(after.as_secs_f64()));
    drained.ended_after_seconds = end.ended.map(|(after, _)| rounded(after.as_secs_f64()));
    drained.ended_well = end.ended.is_some_and(|(_, status)| status.success());
    drained.failed_attempts = crowded.crowd.failed_attempts;
    let in_time = drained.gone == u64::from(args.connections)
        && drained.gone_within_seconds <= (args.window + GRACE).as_secs_f64();
    let is_good = in_time && drained.ended_well && drained.back_after_seconds.is_some();
    report.drained = Some(drained);
    let outcome = crowded.outcome(args.connections, stop, report);
    Ok(Outcome { is_good: outcome.is_good && is_good, ..outcome })
}

/// What came of it, since the signal.
#[derive(Default)]
struct End {
    /// All are registered at the other edge.
    back_after: Option<Duration>,
    ended: Option<(Duration, ExitStatus)>,
}

/// Goes on until all are back and the edge has ended.
fn watch(
    crowded: &mut Crowded,
    args: &DrainArgs,
    began: Instant,
    stop: &Stop,
    progress: &mut Progress,
) -> Result<End, Failure> {
    let (until, mut end) = (began + args.window + args.patience, End::default());
    let mut now = began;
    while now < until && !stop.is_asked() && (end.back_after.is_none() || end.ended.is_none()) {
        crowded.crowd.turn(until.min(now + TURN_MAX))?;
        now = clock::now();
        let back = crowded.crowd.recovered_sessions();
        if end.back_after.is_none() && back == args.connections as usize {
            end.back_after = Some(now - began);
        }
        if let Some(status) = edge(crowded, LEAVING)?.ended()? {
            end.ended = Some((now - began, status));
        }
        edge(crowded, STAYING)?.check_alive()?;
        progress.show(now, || format!("{back} of {} are with the other edge", args.connections));
    }
    // Of those that run, the edge is the first again.
    if end.ended.is_some() {
        let servers = crowded.served.servers.as_ref();
        crowded.served.pids = servers.map(|servers| servers.pids()).unwrap_or_default();
        crowded.served.edges = 1;
    }
    Ok(end)
}

fn edge(crowded: &mut Crowded, which: usize) -> Result<&mut Server, Failure> {
    let servers = crowded.served.servers.as_mut();
    let edge = servers.and_then(|servers| servers.edges.get_mut(which));
    edge.ok_or_else(|| Failure::Broken("the edges are gone".to_owned()))
}

/// How long the edge means to take: the window, which it cuts to what a shard with few connections needs.
fn curve_seconds(window: Duration, held_by_shards: &[f64]) -> f64 {
    let fullest = held_by_shards.iter().copied().fold(0.0, f64::max);
    window.as_secs_f64().min(fullest / f64::from(LEAVE_RATE_MIN))
}
