//! How soon are all back? All sessions are connected; then the edge is killed and started again, or every client is cut
//! off in the same moment, and all come back like clients do: with backoff and jitter.

use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::crowded::{CrowdFlags, Crowded};
use super::{Handshakes, Outcome, OutputFlags, ServerFlags, Stop, as_seconds, parse_seconds};
use crate::clock;
use crate::failure::Failure;
use crate::processes::Servers;
use crate::report::{Progress, Recovery, Report, rounded};

/// How long all are connected before the cut.
const CALM: Duration = Duration::from_secs(1);
/// Between two points of the recovery curve.
const CURVE_INTERVAL: Duration = Duration::from_millis(100);

/// What a storm run does.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct StormArgs {
    #[command(flatten)]
    #[serde(flatten)]
    servers: ServerFlags,
    /// Connections, each a user of its own
    #[arg(long, default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(1..=5_000_000))]
    connections: u32,
    /// What is cut
    #[arg(long, value_enum, default_value_t = Victim::Edge)]
    cut: Victim,
    /// Longest time that all get to come back
    #[arg(long, default_value = "120s", value_parser = parse_seconds)]
    #[serde(serialize_with = "as_seconds")]
    patience: Duration,
    #[command(flatten)]
    #[serde(flatten)]
    crowd: CrowdFlags,
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) output: OutputFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Victim {
    /// The edge gets SIGKILL and is started again at once
    Edge,
    /// All clients end their connections at once with a reset
    Clients,
}

/// Runs it.
///
/// # Errors
/// [`Failure`] when there is nothing to report.
pub(crate) fn run(args: &StormArgs, stop: &Stop) -> Result<Outcome, Failure> {
    if args.cut == Victim::Edge && args.servers.target.is_some() {
        return Err(Failure::Usage(
            "--cut: a running server is not killed; with --target, only --cut clients".to_owned(),
        ));
    }
    let mut progress = Progress::new();
    let mut report = Report::new("storm", args);
    let mut crowded = Crowded::start(&args.servers, &args.crowd, args.connections, |_| {}, stop)?;
    crowded.connect(args.connections, stop, &mut progress, &mut report)?;
    crowded.hold(clock::now() + CALM, stop, &mut progress)?;

    let handshakes = crowded.served.handshakes();
    let mut storm = Storm { crowded, recovery: Recovery::default(), curve_at: None, handshakes };
    let cut_at = clock::now();
    storm.crowded.crowd.begin_cut(cut_at);
    match args.cut {
        Victim::Edge => storm.kill_and_start(cut_at)?,
        Victim::Clients => storm.crowded.crowd.cut_clients()?,
    }
    let back_from = cut_at + Duration::from_secs_f64(storm.recovery.restarted_after_seconds);
    storm.recover(back_from, args, stop, &mut progress)?;

    let Storm { crowded, mut recovery, handshakes, .. } = storm;
    // Those of the recovery, in place of those before.
    crowded.served.report_handshakes(&handshakes, &mut report);
    report.seconds = rounded((clock::now() - back_from).as_secs_f64());
    recovery.failed_attempts = crowded.crowd.failed_attempts;
    recovery.restarted_after_seconds = rounded(recovery.restarted_after_seconds);
    report.recovered_seconds = crowded.crowd.recovered().and_then(|recovered| recovered.seconds());
    report.recovery = Some(recovery);
    Ok(crowded.outcome(args.connections, stop, report))
}

struct Storm {
    crowded: Crowded,
    recovery: Recovery,
    curve_at: Option<Instant>,
    /// At the cut.
    handshakes: Handshakes,
}

impl Storm {
    /// Kills the edge and starts it again as soon as it is dead. The clients notice meanwhile.
    fn kill_and_start(&mut self, cut_at: Instant) -> Result<(), Failure> {
        let Some(mut servers) = self.crowded.served.servers.take() else { return Ok(()) };
        // The kernel takes a while to end a process that holds so much; this thread has clients to serve.
        let killer = thread::spawn(move || -> Servers {
            servers.edges[0].kill();
            servers
        });
        while !killer.is_finished() {
            self.crowded.crowd.turn(clock::now() + CURVE_INTERVAL)?;
        }
        let mut servers =
            killer.join().map_err(|_| Failure::Broken("the edge cannot be killed".to_owned()))?;
        servers.edges[0].start()?;
        self.handshakes.edge_cpu = Duration::ZERO;
        let started = clock::now();
        self.recovery.restarted_after_seconds = (started - cut_at).as_secs_f64();
        self.crowded.crowd.move_cut(started);
        self.crowded.served.pids = servers.pids();
        self.crowded.served.servers = Some(servers);
        Ok(())
    }

    /// Goes on until all are back.
    fn recover(
        &mut self,
        began: Instant,
        args: &StormArgs,
        stop: &Stop,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let until = began + args.patience;
        while !stop.is_asked() {
            let now = clock::now();
            // Not who is live: the kernel takes its time to tell those whose server is dead.
            let back = self.crowded.crowd.recovered_sessions();
            let all_back = back == args.connections as usize;
            if all_back || self.curve_at.is_none_or(|at| now >= at) {
                self.curve_at = Some(now + CURVE_INTERVAL);
                let seconds = now.saturating_duration_since(began).as_secs_f64();
                self.recovery.curve.push((rounded(seconds), back));
                self.start_again_if_dead(began)?;
            }
            if all_back || now >= until {
                return Ok(());
            }
            self.crowded.crowd.turn(until.min(now + CURVE_INTERVAL))?;
            progress.show(now, || format!("{back} of {} are back", args.connections));
        }
        Ok(())
    }

    /// What systemd would do: while the kernel still takes the dead edge's sockets down, the new one may find its
    /// address taken and give up.
    fn start_again_if_dead(&mut self, began: Instant) -> Result<(), Failure> {
        let Some(servers) = &mut self.crowded.served.servers else { return Ok(()) };
        if servers.edges[0].is_running() {
            return Ok(());
        }
        if clock::now() - began > RESTART_PATIENCE {
            return servers.edges[0].check_alive();
        }
        self.recovery.restarts_in_vain += 1;
        servers.edges[0].kill();
        servers.edges[0].start()?;
        self.crowded.served.pids = servers.pids();
        Ok(())
    }
}

/// From the first start: until then a new edge that ended is started again.
const RESTART_PATIENCE: Duration = Duration::from_secs(20);
