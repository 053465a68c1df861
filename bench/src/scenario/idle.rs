//! What does a connection cost that says nothing? Memory of the edge before and after many full sessions.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::chat;
use super::pairs::{Pacing, Pairs, PairsPlan, STAMP_BYTES};
use super::{CLIENT_PATH, Outcome, OutputFlags, ServerFlags, Stop, as_seconds, parse_seconds};
use crate::client::{Fleet, SUBPROTOCOL};
use crate::clock;
use crate::failure::Failure;
use crate::host;
use crate::report::{Progress, Report, rounded};

/// What an idle run does.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct IdleArgs {
    #[command(flatten)]
    #[serde(flatten)]
    servers: ServerFlags,
    /// Connections, each a user of its own
    #[arg(long, default_value_t = 15_000,
          value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    connections: u32,
    /// Time between the last connect and the reading
    #[arg(long, default_value = "5s", value_parser = parse_seconds)]
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
pub(crate) fn run(args: &IdleArgs, stop: &Stop) -> Result<Outcome, Failure> {
    let pairs = (args.connections as usize).div_ceil(2);
    let clients = pairs * 2;
    let seed = clock::random_seed();
    let mut served = args.servers.serve(clients, |_| CLIENT_PATH, seed, stop)?;
    let Some(&edge) = served.pids.first() else {
        return Err(Failure::Usage("--pid: with --target, name the edge's process".to_owned()));
    };
    let plan = PairsPlan {
        pairs,
        payload_bytes: STAMP_BYTES,
        messages_max: 1,
        pacing: Pacing::Closed { in_flight: 1 },
        calm: true,
        seed,
        run: seed,
    };
    let mut fleet = Fleet::new(served.target.clone(), Some(SUBPROTOCOL), clients, seed)?;
    let mut sessions = Pairs::new(clock::now(), &plan);
    let mut report = Report::new("idle", args);
    let mut progress = Progress::new();

    let bytes_before = host::anonymous_bytes(edge)?;
    let began = clock::now();
    chat::connect(&mut sessions, &mut fleet, stop)?;
    let connecting_seconds = (clock::now() - began).as_secs_f64();
    let until = clock::now() + args.seconds;
    while clock::now() < until && !stop.is_asked() {
        sessions.turn(&mut fleet, until)?;
        served.check_alive()?;
        progress.show(clock::now(), || format!("{} connections", sessions.live));
    }
    let bytes = host::anonymous_bytes(edge)?.saturating_sub(bytes_before);

    report.seconds = rounded(args.seconds.as_secs_f64());
    report.connections = sessions.live;
    report.connects_per_second = Some(rounded(clients as f64 / connecting_seconds));
    report.edge_user_bytes_per_connection = Some(rounded(bytes as f64 / clients as f64));
    report.errors = sessions.errors;
    report.first_error = sessions.first_error;
    report.cut_short = stop.is_asked().then(|| "interrupted".to_owned());
    let is_good = report.errors == 0 && report.connections == clients;
    Ok(Outcome { report, is_good })
}
