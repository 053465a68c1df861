//! What does a connection cost that says nothing but its pings? Memory and CPU of everybody, with many full sessions.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::crowded::{CrowdFlags, Crowded};
use super::{Outcome, OutputFlags, ServerFlags, Stop, as_seconds, parse_seconds};
use crate::clock;
use crate::failure::Failure;
use crate::report::{Progress, Report, rounded};

/// What an idle run does.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct IdleArgs {
    #[command(flatten)]
    #[serde(flatten)]
    servers: ServerFlags,
    /// Connections, each a user of its own
    #[arg(long, default_value_t = 15_000,
          value_parser = clap::value_parser!(u32).range(1..=5_000_000))]
    connections: u32,
    #[command(flatten)]
    #[serde(flatten)]
    crowd: CrowdFlags,
    /// How long all stay, for the CPU that it takes
    #[arg(long, default_value = "60s", value_parser = parse_seconds)]
    #[serde(serialize_with = "as_seconds")]
    hold: Duration,
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) output: OutputFlags,
}

/// Runs it.
///
/// # Errors
/// [`Failure`] when there is nothing to report.
pub(crate) fn run(args: &IdleArgs, stop: &Stop) -> Result<Outcome, Failure> {
    let mut progress = Progress::new();
    let mut report = Report::new("idle", args);
    let mut crowded = Crowded::start(&args.servers, &args.crowd, args.connections, |_| {}, stop)?;
    crowded.connect(args.connections, stop, &mut progress, &mut report)?;
    crowded.settle(stop, &mut progress)?;
    crowded.report_memory(&mut report)?;

    let (before, began) = (crowded.usage()?, clock::now());
    let pongs = crowded.crowd.pongs();
    crowded.hold(began + args.hold, stop, &mut progress)?;
    let (after, seconds) = (crowded.usage()?, (clock::now() - began).as_secs_f64());
    if !args.hold.is_zero() {
        let connection_seconds = crowded.crowd.live.max(1) as f64 * seconds;
        let cpu = after.edge_cpu.saturating_sub(before.edge_cpu);
        report.idle_cpu_us_per_connection_second =
            Some(rounded(cpu.as_secs_f64() * 1e6 / connection_seconds));
        report.pongs = Some(crowded.crowd.pongs() - pongs);
    }
    report.seconds = rounded(seconds);
    Ok(crowded.outcome(args.connections, stop, report))
}
