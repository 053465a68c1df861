//! What do clients cost that stop reading? Pairs chat; then a share of the clients falls silent and deaf, with open
//! connections, while the others go on writing to them and to each other. In the end the deaf hear again, and nothing may
//! be lost.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::chat::{self, PairsFlags};
use super::pairs::{Pairs, Weather};
use super::{
    CLIENT_PATH, Outcome, OutputFlags, Served, ServerFlags, Stop, as_seconds, parse_seconds,
};
use crate::client::{Fleet, SUBPROTOCOL};
use crate::clock;
use crate::failure::Failure;
use crate::host;
use crate::processes::values_of;
use crate::report::{Latencies, LatencyMs, Progress, Report, Slow, rounded};

/// Between two readings of the edge's memory.
const MEMORY_INTERVAL: Duration = Duration::from_millis(250);

/// What a slow run does.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct SlowArgs {
    #[command(flatten)]
    #[serde(flatten)]
    servers: ServerFlags,
    #[command(flatten)]
    #[serde(flatten)]
    pairs: PairsFlags,
    /// How many of a hundred pairs have one who stops reading
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=90))]
    deaf_percent: u32,
    /// How long they do not read; before it, the others are measured for as long
    #[arg(long, default_value = "10s", value_parser = parse_seconds)]
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
pub(crate) fn run(args: &SlowArgs, stop: &Stop) -> Result<Outcome, Failure> {
    let clients = args.pairs.clients();
    let seed = clock::random_seed();
    let mut served = args.servers.serve(clients, |_| CLIENT_PATH, seed, stop)?;
    let Some(&edge) = served.pids.first() else {
        return Err(Failure::Usage("--pid: with --target, name the edge's process".to_owned()));
    };
    let mut fleet = Fleet::new(served.front.clone(), Some(SUBPROTOCOL), clients, seed)?;
    // That the edge ends a deaf client's connection is one of the answers, not an error.
    let mut pairs = Pairs::new(clock::now(), &args.pairs.plan(Weather::Storm, seed));
    let mut report = Report::new("slow", args);
    report.data_filesystem = served.servers.as_ref().map(|servers| servers.data_filesystem.clone());
    let mut progress = Progress::new();
    chat::connect(&mut pairs, &mut fleet, stop)?;
    report.connections = pairs.live;
    pairs.begin_sending(clock::now());

    let mut phase = |pairs: &mut Pairs, fleet: &mut Fleet| -> Result<Measured, Failure> {
        pairs.latencies = Some(Latencies::new());
        let until = clock::now() + args.seconds;
        let mut edge_bytes_max = 0;
        let mut read_at: Option<Instant> = None;
        while clock::now() < until && !stop.is_asked() && !pairs.is_full() {
            let now = clock::now();
            if read_at.is_none_or(|at| now - at >= MEMORY_INTERVAL) {
                read_at = Some(now);
                edge_bytes_max = host::anonymous_bytes(edge)?.max(edge_bytes_max);
            }
            pairs.turn(fleet, until)?;
            progress.show(now, || format!("{} delivered", pairs.delivered));
        }
        served.check_alive()?;
        let latency = pairs.latencies.take().and_then(|latencies| latencies.summary());
        Ok(Measured { latency, edge_bytes_max })
    };
    let before = phase(&mut pairs, &mut fleet)?;
    let deaf = args.pairs.pairs * args.deaf_percent / 100;
    let deaf: Vec<usize> = (0..deaf.max(1) as usize).map(|pair| pair * 2).collect();
    deaf.iter().for_each(|client| pairs.deafen(*client, &mut fleet));
    let during = phase(&mut pairs, &mut fleet)?;
    let closed = closed_by_reason(&served);
    deaf.iter().for_each(|client| pairs.undeafen(*client, &mut fleet));
    pairs.settle(&mut fleet, args.pairs.settled_until(stop), |_, _| Ok(()))?;

    report.seconds = rounded(args.seconds.as_secs_f64());
    report.latency_ms = during.latency;
    report.slow = Some(Slow {
        deaf: deaf.len(),
        latency_ms_before: before.latency,
        edge_user_bytes_max_before: before.edge_bytes_max,
        edge_user_bytes_max: during.edge_bytes_max,
        edge_user_bytes_per_deaf_client: rounded(
            during.edge_bytes_max.saturating_sub(before.edge_bytes_max) as f64 / deaf.len() as f64,
        ),
        closed_by_reason: closed,
    });
    report.cut_short = chat::cut_short(&pairs, stop);
    Ok(chat::finish(report, pairs))
}

struct Measured {
    latency: Option<LatencyMs>,
    edge_bytes_max: u64,
}

/// Connections that an own edge ended, by reason.
fn closed_by_reason(served: &Served) -> BTreeMap<String, u64> {
    let metrics = served.servers.as_ref().and_then(|servers| servers.edges[0].metrics().ok());
    let metrics = metrics.unwrap_or_default();
    values_of(&metrics, "edge_closed_total")
        .filter(|(_, count)| *count > 0.0)
        .map(|(labels, count)| {
            let reason = labels.trim_start_matches("reason=").trim_matches('"');
            (reason.to_owned(), count as u64)
        })
        .collect()
}
