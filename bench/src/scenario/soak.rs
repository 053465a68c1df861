//! Does memory grow when clients come and go? So many stay connected while some leave and others come: those who left
//! before, or newcomers. Memory is compared at the start and at the end, with the same number connected. What servers
//! fill once, whatever comes after it (tables, caches), can be let fill first: then it is in the start too, and what it
//! took is told apart.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::crowded::{CrowdFlags, Crowded, Usage};
use super::{Outcome, OutputFlags, ServerFlags, Stop, as_seconds, parse_seconds};
use crate::clock;
use crate::failure::Failure;
use crate::report::{Churn, Progress, Report, rounded};

/// Longest turn, so that leaving is spread evenly.
const TURN: Duration = Duration::from_millis(5);
/// At the end: how long those who come get to be in.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);

/// What a soak run does.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct SoakArgs {
    #[command(flatten)]
    #[serde(flatten)]
    servers: ServerFlags,
    /// Connections that are held
    #[arg(long, default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(1..=5_000_000))]
    connections: u32,
    /// How many leave a second, and how many come
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    churn: u32,
    /// Who comes was never there before: a router remembers those who left, for a while
    #[arg(long)]
    newcomers: bool,
    /// How long they come and go before memory is read as that of the start
    #[arg(long, default_value = "0s", value_parser = parse_seconds)]
    #[serde(serialize_with = "as_seconds")]
    warm_up: Duration,
    /// How long this goes on, from then on
    #[arg(long, default_value = "60s", value_parser = parse_seconds)]
    #[serde(serialize_with = "as_seconds")]
    seconds: Duration,
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
pub(crate) fn run(args: &SoakArgs, stop: &Stop) -> Result<Outcome, Failure> {
    let mut progress = Progress::new();
    let mut report = Report::new("soak", args);
    let mut crowded = Crowded::start(&args.servers, &args.crowd, args.connections, |_| {}, stop)?;
    crowded.connect(args.connections, stop, &mut progress, &mut report)?;
    crowded.settle(stop, &mut progress)?;
    let mut churn = Churn::default();
    if !args.warm_up.is_zero() {
        let quiet = crowded.usage()?;
        go_and_come(&mut crowded, args, args.warm_up, &mut churn, stop, &mut progress)?;
        churn.edge_user_bytes_connected = Some(quiet.edge_bytes);
        churn.router_user_bytes_connected = quiet.router_bytes;
    }
    let (start, began) = (crowded.usage()?, clock::now());
    go_and_come(&mut crowded, args, args.seconds, &mut churn, stop, &mut progress)?;
    report.seconds = rounded((clock::now() - began).as_secs_f64());
    compare(&start, &crowded.usage()?, &mut churn);
    report.churn = Some(churn);
    Ok(crowded.outcome(args.connections, stop, report))
}

/// Sends away whoever chance picks and lets in as many, at the rate that was asked for and for so long; then waits until
/// all are in and memory stands still.
fn go_and_come(
    crowded: &mut Crowded,
    args: &SoakArgs,
    how_long: Duration,
    churn: &mut Churn,
    stop: &Stop,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let mut random = fastrand::Rng::with_seed(u64::from(args.connections));
    let (began, left_before) = (clock::now(), churn.left);
    loop {
        let now = clock::now();
        let passed = now - began;
        if passed >= how_long || stop.is_asked() {
            break;
        }
        let due = left_before + (passed.as_secs_f64() * f64::from(args.churn)) as u64;
        // Whom chance picks may have left already: then it is the next turn's. A few tries find somebody.
        for _ in 0..2 * (due - churn.left) {
            churn.left += u64::from(crowded.crowd.leave(random.u32(0..args.connections)));
            if churn.left >= due {
                break;
            }
        }
        while churn.joined < churn.left && crowded.crowd.join(args.newcomers) {
            churn.joined += 1;
        }
        crowded.crowd.turn(now + TURN)?;
        progress
            .show(now, || format!("{} connected, {} have left", crowded.crowd.live, churn.left));
    }
    let until = clock::now() + SETTLE_TIMEOUT;
    while crowded.crowd.live < args.connections as usize && clock::now() < until && !stop.is_asked()
    {
        churn.joined += u64::from(crowded.crowd.join(args.newcomers));
        crowded.crowd.turn(clock::now() + TURN)?;
    }
    crowded.settle(stop, progress)
}

fn compare(start: &Usage, end: &Usage, churn: &mut Churn) {
    let over = |end: u64, start: u64| rounded(end as f64 / start.max(1) as f64);
    churn.edge_user_bytes_start = start.edge_bytes;
    churn.edge_user_bytes_end = end.edge_bytes;
    churn.edge_end_over_start = over(end.edge_bytes, start.edge_bytes);
    churn.router_user_bytes_start = start.router_bytes;
    churn.router_user_bytes_end = end.router_bytes;
    churn.router_end_over_start =
        end.router_bytes.zip(start.router_bytes).map(|(end, start)| over(end, start));
}
