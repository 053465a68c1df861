//! What does one message cost a server? Any WebSocket server that gives back what it gets.
//!
//! Closed loop: every connection keeps `--in-flight` messages on their way. Each echo is compared with what was
//! sent, in length and content.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::background::{Background, Crowding};
use super::{
    ECHO_PATH, OPENING_MAX, Outcome, OutputFlags, ServerFlags, Stop, as_seconds, parse_seconds,
    turn_end,
};
use crate::client::{Ending, Fleet, Handler, Message, Outgoing};
use crate::clock;
use crate::crowd::{CrowdPlan, Speech};
use crate::failure::Failure;
use crate::processes::Plan;
use crate::report::{CpuClocks, Latencies, Progress, Report, rounded};

/// Shards of an own edge unless `--shards` says otherwise: the figure is per core.
const ECHO_SHARDS: usize = 1;
/// With more idle connections than that, one shard may not have the descriptors; the edge works out how many it needs.
const IDLE_ON_ECHO_SHARDS_MAX: u32 = 10_000;
const IDLE_PING_INTERVAL: Duration = Duration::from_secs(60);
/// For all connections together, and the share of each.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT_EACH: Duration = Duration::from_millis(2);
/// Bytes of a payload that tell which message it is, if the payload is that long.
const STAMP_BYTES: usize = 16;

/// What an echo run does.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct EchoArgs {
    #[command(flatten)]
    #[serde(flatten)]
    servers: ServerFlags,
    /// Connections
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
    /// Length of a payload
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    payload_bytes: u32,
    /// Messages on their way on each connection
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    in_flight: u32,
    /// Measured time
    #[arg(long, default_value = "5s", value_parser = parse_seconds)]
    #[serde(serialize_with = "as_seconds")]
    seconds: Duration,
    /// Others that are connected and only ping, each once a minute
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=5_000_000))]
    idle: u32,
    /// Load before the measured time
    #[arg(long, default_value = "1s", value_parser = parse_seconds)]
    #[serde(serialize_with = "as_seconds")]
    warmup: Duration,
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) output: OutputFlags,
}

/// Runs it.
///
/// # Errors
/// [`Failure`] when there is nothing to report.
pub(crate) fn run(args: &EchoArgs, stop: &Stop) -> Result<Outcome, Failure> {
    let connections = args.connections as usize;
    let seed = clock::random_seed();
    let own = |plan: &mut Plan| {
        plan.routers = 0;
        plan.connections_max += args.idle as usize + args.idle as usize / 64;
        if args.idle <= IDLE_ON_ECHO_SHARDS_MAX {
            plan.shards = plan.shards.or(Some(ECHO_SHARDS));
        }
        plan.echo_path = Some(ECHO_PATH);
        ECHO_PATH
    };
    let mut served = args.servers.serve(connections, own, seed, stop)?;
    let mut fleet = Fleet::new(served.front.clone(), None, connections, seed)?;
    let mut echo = Echo::new(args);
    let mut report = Report::new("echo", args);
    let mut progress = Progress::new();

    let idle = (args.idle > 0).then(|| {
        let plan = CrowdPlan {
            front: served.front.clone(),
            speech: Speech::Ws,
            sessions: args.idle,
            connecting_max: OPENING_MAX,
            ping_interval: Some(IDLE_PING_INTERVAL),
            seed,
        };
        Background::start(plan, stop)
    });
    let idle = idle.transpose()?;

    let (began, handshakes) = (clock::now(), served.handshakes());
    connect(&mut fleet, &mut echo, connections, stop)?;
    let connected = clock::now();
    report.connections = fleet.open();
    served.report_handshakes(&handshakes, &mut report);
    let connecting_seconds = (connected - began).as_secs_f64();
    report.connects_per_second = Some(rounded(connections as f64 / connecting_seconds));

    for client in 0..connections {
        if let Some(out) = fleet.outgoing(client) {
            (0..args.in_flight).for_each(|_| echo.send(connected, client, out));
        }
    }
    let pids = served.pids.clone();
    let mut drive = |echo: &mut Echo, until: Instant| {
        loop {
            let now = clock::now();
            if now >= until || stop.is_asked() || fleet.open() == 0 {
                return served.check_alive();
            }
            fleet.turn(turn_end(now, until), echo)?;
            progress.show(now, || format!("{} echoes", echo.echoes));
        }
    };
    drive(&mut echo, connected + args.warmup)?;
    let before = CpuClocks::read(clock::now(), &pids);
    echo.begin_measuring();
    drive(&mut echo, clock::now() + args.seconds)?;
    let after = CpuClocks::read(clock::now(), &pids);

    before.report_until(&after, echo.echoes, &mut report);
    report.latency_ms = echo.latencies.summary();
    report.errors = echo.errors;
    report.first_error = echo.first_error;
    report.cut_short = stop.is_asked().then(|| "interrupted".to_owned());
    if let Some(idle) = idle {
        let Crowding { live, errors, first_error } = idle.end()?;
        report.idle_connections = Some(live);
        report.errors += errors;
        report.first_error = report.first_error.or(first_error);
    }
    let is_good = report.errors == 0;
    Ok(Outcome { report, is_good })
}

/// Opens all connections, a bounded number at a time.
fn connect(
    fleet: &mut Fleet,
    echo: &mut Echo,
    connections: usize,
    stop: &Stop,
) -> Result<(), Failure> {
    let began = clock::now();
    let deadline = began + CONNECT_TIMEOUT + CONNECT_TIMEOUT_EACH * connections as u32;
    let mut begun = 0;
    loop {
        let now = clock::now();
        if let Some(error) = &echo.first_error {
            return Err(Failure::Unreachable(error.clone()));
        }
        if fleet.open() == connections {
            return Ok(());
        }
        if now >= deadline || stop.is_asked() {
            let open = fleet.open();
            return Err(Failure::Unreachable(format!(
                "only {open} of {connections} connections were open after {:.1?}",
                now - began
            )));
        }
        while begun < connections && begun - fleet.open() < OPENING_MAX {
            fleet.connect(now, begun)?;
            begun += 1;
        }
        fleet.turn(turn_end(now, deadline), echo)?;
    }
}

struct Echo {
    /// What every payload looks like, but for its stamp.
    payload: Vec<u8>,
    clients: Vec<EchoClient>,
    measuring: bool,
    echoes: u64,
    latencies: Latencies,
    errors: u64,
    first_error: Option<String>,
}

#[derive(Default)]
struct EchoClient {
    sent: u64,
    echoed: u64,
    sent_at: VecDeque<Instant>,
}

impl Echo {
    fn new(args: &EchoArgs) -> Self {
        Self {
            payload: (0..args.payload_bytes).map(|at| (at * 31 + 7) as u8).collect(),
            clients: (0..args.connections).map(|_| EchoClient::default()).collect(),
            measuring: false,
            echoes: 0,
            latencies: Latencies::new(),
            errors: 0,
            first_error: None,
        }
    }

    fn begin_measuring(&mut self) {
        self.measuring = true;
        self.echoes = 0;
    }

    fn send(&mut self, now: Instant, client: usize, out: &mut Outgoing) {
        let number = self.clients[client].sent;
        self.clients[client].sent += 1;
        self.clients[client].sent_at.push_back(now);
        self.stamp(client, number);
        out.push(&self.payload);
    }

    /// Makes `payload` that of one message.
    fn stamp(&mut self, client: usize, number: u64) {
        if let Some(stamp) = self.payload.first_chunk_mut::<STAMP_BYTES>() {
            let (who, which) = stamp.split_at_mut(STAMP_BYTES / 2);
            who.copy_from_slice(&(client as u64).to_le_bytes());
            which.copy_from_slice(&number.to_le_bytes());
        }
    }

    fn fail(&mut self, client: usize, what: impl std::fmt::Display) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| format!("connection {client}: {what}"));
    }
}

impl Handler for Echo {
    fn handle_open(&mut self, _: Instant, _: usize, _: &mut Outgoing) {}

    fn handle_message(
        &mut self,
        now: Instant,
        client: usize,
        message: Message<'_>,
        out: &mut Outgoing,
    ) {
        let state = &mut self.clients[client];
        let number = state.echoed;
        state.echoed += 1;
        let Some(sent_at) = state.sent_at.pop_front() else {
            return self.fail(client, "an echo of nothing");
        };
        self.stamp(client, number);
        if message.is_text || message.payload != self.payload {
            let bytes = message.payload.len();
            return self.fail(client, format_args!("echo {number} differs ({bytes} bytes)"));
        }
        self.echoes += 1;
        if self.measuring {
            self.latencies.record(now.saturating_duration_since(sent_at));
        }
        self.send(now, client, out);
    }

    fn handle_closed(&mut self, _: Instant, client: usize, ending: Ending) {
        self.fail(client, ending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        echo: EchoArgs,
    }

    fn echo() -> Echo {
        Echo::new(&Cli::parse_from(["echo", "--connections", "2", "--payload-bytes", "32"]).echo)
    }

    fn give_back(echo: &mut Echo, client: usize, payload: &[u8]) {
        let message = Message { is_text: false, payload };
        echo.handle_message(clock::now(), client, message, &mut Outgoing::default());
    }

    #[test]
    fn a_true_echo_counts_and_leads_to_the_next_message() {
        let mut echo = echo();
        echo.send(clock::now(), 1, &mut Outgoing::default());
        let payload = echo.payload.clone();
        give_back(&mut echo, 1, &payload);
        assert_eq!((echo.echoes, echo.errors, echo.clients[1].sent), (1, 0, 2));
    }

    #[test]
    fn an_echo_with_another_length_content_or_owner_is_an_error() {
        for change in [
            |payload: &mut Vec<u8>| payload.truncate(31),
            |payload: &mut Vec<u8>| payload[20] ^= 1,
            |payload: &mut Vec<u8>| payload[0] ^= 1,
        ] {
            let mut echo = echo();
            echo.send(clock::now(), 1, &mut Outgoing::default());
            let mut payload = echo.payload.clone();
            change(&mut payload);
            give_back(&mut echo, 1, &payload);
            assert_eq!((echo.echoes, echo.errors), (0, 1));
        }
    }

    #[test]
    fn an_echo_that_nobody_asked_for_is_an_error() {
        let mut echo = echo();
        let payload = echo.payload.clone();
        give_back(&mut echo, 0, &payload);
        assert_eq!(echo.errors, 1);
    }
}
