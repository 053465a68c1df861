//! What a run found: one JSON object, or a table for people. Both always name the machine and the settings.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::Value;

use crate::checker::Verdict;
use crate::crowd::Misfit;
use crate::host::{self, Machine};
use crate::scenario::crash::Fault;

/// Longest latency that is told apart, in microseconds: ten minutes.
const LATENCY_US_MAX: u64 = 600_000_000;
/// Between two progress lines.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// The result of one scenario. Absent fields do not apply to it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub scenario: &'static str,
    pub settings: Value,
    pub machine: Machine,
    /// Where the own router keeps its data: what durable cost here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_filesystem: Option<String>,
    /// The run ended early, by a signal or at a bound; says which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_short: Option<String>,
    /// Length of the measured part.
    pub seconds: f64,
    pub connections: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connects_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_per_second: Option<f64>,
    /// Of all measured processes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_message: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<ProcessCpu>,
    /// CPU that the bench itself took, to see whether it was in the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bench_cores: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<LatencyMs>,
    /// Growth of anonymous memory with the connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edge_user_bytes_per_connection: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_user_bytes_per_connection: Option<f64>,
    /// Of one end: half of what the kernel took on this machine, which holds both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_bytes_per_connection: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// CPU of all processes until the last session was in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_cpu_us_per_connection: Option<Value>,
    /// TLS handshakes for a second of the edge's CPU, accept, upgrade and registration of each counted in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshakes_per_cpu_second: Option<f64>,
    /// Of these handshakes, the part that resumed a session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed_share: Option<f64>,
    /// Version, cipher suite and key exchange.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_cpu_us_per_connection_second: Option<f64>,
    /// Pings answered while idle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pongs: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard_fullest_over_emptiest: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovered_seconds: Option<Seconds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub drained: Option<Drained>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub churn: Option<Churn>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow: Option<Slow>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub flooded: Option<Flooded>,
    /// Others that were connected and pinged meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_connections: Option<usize>,
    /// Edges that left and were started again meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drains: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kills: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub killed: Option<Killed>,
    /// Kinds of faults that this machine does not allow, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// How long users waited around faults of each kind.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub waited_seconds: BTreeMap<Fault, Waited>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub takeover: Option<Takeover>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Connections that broke or were refused though nobody killed anything, and refused messages.
    pub errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_error: Option<String>,
}

impl Report {
    /// An empty report of `scenario`.
    pub(crate) fn new(scenario: &'static str, settings: &impl Serialize) -> Self {
        Self {
            scenario,
            settings: serde_json::to_value(settings).unwrap_or_default(),
            machine: Machine::read(),
            data_filesystem: None,
            cut_short: None,
            seconds: 0.0,
            connections: 0,
            connects_per_second: None,
            messages: None,
            messages_per_second: None,
            cpu_us_per_message: None,
            processes: Vec::new(),
            bench_cores: None,
            latency_ms: None,
            edge_user_bytes_per_connection: None,
            router_user_bytes_per_connection: None,
            kernel_bytes_per_connection: None,
            memory: None,
            connect_cpu_us_per_connection: None,
            handshakes_per_cpu_second: None,
            resumed_share: None,
            tls: None,
            idle_cpu_us_per_connection_second: None,
            pongs: None,
            shards: None,
            shard_fullest_over_emptiest: None,
            recovered_seconds: None,
            recovery: None,
            drained: None,
            churn: None,
            slow: None,
            flooded: None,
            idle_connections: None,
            drains: None,
            kills: None,
            killed: None,
            left_out: Vec::new(),
            waited_seconds: BTreeMap::new(),
            takeover: None,
            seed: None,
            traffic: None,
            verdict: None,
            errors: 0,
            first_error: None,
        }
    }

    /// Prints the report on stdout: one JSON object on one line, or a table.
    ///
    /// # Errors
    /// When stdout is gone.
    pub(crate) fn print(&self, json: bool) -> io::Result<()> {
        let value = serde_json::to_value(self)?;
        let text = if json { format!("{value}\n") } else { table(&value) };
        io::stdout().lock().write_all(text.as_bytes())
    }
}

/// Where the memory was when all were connected. Totals count in what was there before.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Memory {
    pub edge_user_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_user_bytes: Option<u64>,
    pub bench_user_bytes: u64,
    pub bench_user_bytes_per_connection: f64,
    /// Growth of the kernel's memory, both ends together.
    pub kernel_bytes_both_ends: u64,
    /// Slab caches that grew by a byte or more a connection, both ends together.
    pub slab_bytes_per_connection_both_ends: BTreeMap<String, f64>,
}

/// How a crowd came back.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Recovery {
    /// From the cut to the start of the new server.
    pub restarted_after_seconds: f64,
    /// Starts that failed because the dead server's address was not free yet.
    pub restarts_in_vain: u64,
    /// Attempts that came to nothing while the server was away or full.
    pub failed_attempts: u64,
    /// Seconds since the new server's start, and how many are registered then.
    pub curve: Vec<(f64, usize)>,
}

/// How an edge that was told to leave let its clients go. Times are seconds since it was told.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Drained {
    /// Sessions that were told to go.
    pub gone: u64,
    /// When the last was told.
    pub gone_within_seconds: f64,
    /// Most in any one second.
    pub gone_per_second_max: u64,
    /// That, over what a straight line makes of all of them.
    pub gone_per_second_max_over_mean: f64,
    /// When all were registered again.
    pub back_after_seconds: Option<f64>,
    /// When the process had ended.
    pub ended_after_seconds: Option<f64>,
    /// With exit status 0.
    pub ended_well: bool,
    /// Attempts to come back that came to nothing.
    pub failed_attempts: u64,
    /// Told in each second since.
    pub gone_in_second: Vec<u64>,
}

impl Drained {
    /// From the moments at which sessions were told, in milliseconds, and how long it was meant to take.
    pub(crate) fn of(gone_ms: impl Iterator<Item = u32>, curve_seconds: f64) -> Self {
        let mut tenths = Vec::new();
        let mut drained = Self::default();
        let mut last_ms = 0;
        for at_ms in gone_ms {
            let tenth = (at_ms / 100) as usize;
            tenths.resize(tenths.len().max(tenth + 1), 0);
            tenths[tenth] += 1;
            drained.gone += 1;
            last_ms = last_ms.max(at_ms);
        }
        // A second that begins at any tenth, not only with the clock's.
        let within = |second: &[u64]| second.iter().sum::<u64>();
        let whole = tenths.windows(10.min(tenths.len().max(1))).map(within);
        drained.gone_per_second_max = whole.max().unwrap_or_default();
        drained.gone_in_second = tenths.chunks(10).map(within).collect();
        drained.gone_within_seconds = rounded(f64::from(last_ms) / 1e3);
        let mean = drained.gone as f64 / curve_seconds;
        drained.gone_per_second_max_over_mean = rounded(drained.gone_per_second_max as f64 / mean);
        drained
    }
}

/// How memory went with coming and going.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Churn {
    pub joined: u64,
    pub left: u64,
    /// With all connected and before the first had left, where a warm-up came before the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edge_user_bytes_connected: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_user_bytes_connected: Option<u64>,
    pub edge_user_bytes_start: u64,
    pub edge_user_bytes_end: u64,
    pub edge_end_over_start: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_user_bytes_start: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_user_bytes_end: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_end_over_start: Option<f64>,
}

/// What clients did that stopped reading. `latency_ms` beside it is that of the others meanwhile.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Slow {
    pub deaf: usize,
    pub latency_ms_before: Option<LatencyMs>,
    pub edge_user_bytes_max_before: u64,
    pub edge_user_bytes_max: u64,
    pub edge_user_bytes_per_deaf_client: f64,
    pub closed_by_reason: BTreeMap<String, u64>,
}

/// What a flood of bad handshakes did to those who talked.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Flooded {
    /// 99th percentile of all windows with the flood, over that of all without.
    pub p99_ratio: Option<f64>,
    pub latency_ms_calm: Option<LatencyMs>,
    pub latency_ms_flooded: Option<LatencyMs>,
    pub misfits: Misfit,
    /// In their order.
    pub windows: Vec<FloodWindow>,
}

/// One of its windows.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct FloodWindow {
    /// With the flood.
    pub is_on: bool,
    pub latency_ms: Option<LatencyMs>,
    pub edge_cores: f64,
    pub bench_cores: f64,
}

/// How long something took.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Seconds {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

/// CPU of one measured process.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ProcessCpu {
    pub pid: u32,
    pub name: String,
    /// Cores kept busy on average.
    pub cores: f64,
    pub cpu_us_per_message: f64,
}

/// How often which fault was done.
pub(crate) type Killed = BTreeMap<Fault, u64>;

/// Of the longest wait of each user around each fault of a kind. Users who sent or got nothing then do not count.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Waited {
    /// How many faults of the kind there were.
    pub faults: u64,
    /// From a send to its acknowledgement, refusals and repetitions counted in.
    pub acknowledgement: Option<Seconds>,
    /// From a send to its arrival.
    pub delivery: Option<Seconds>,
}

/// How a router's users came to the others when it was killed. Times are seconds since the kill.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Takeover {
    /// Connections that were registered at the router that was killed.
    pub registered_there: usize,
    /// Most partitions that the edge saw without a router.
    pub unrouted_max: usize,
    /// When the edge had a router for each partition again.
    pub routed_after_seconds: Option<f64>,
    /// When all connections were registered again.
    pub registered_after_seconds: Option<f64>,
    /// Longest waits of the sample that wrote to each other meanwhile.
    pub waited: Option<Waited>,
}

/// What happened on the wire besides the messages themselves.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Traffic {
    pub reconnects: u64,
    /// Clients that were told to go.
    pub sent_away: u64,
    /// Deliveries that a client dropped because it had had them.
    pub repeated_deliveries: u64,
    /// Deliveries from behind a hole, which the server was asked to fill.
    pub holes_seen: u64,
    /// Sends refused with a retryable error, and sent again.
    pub refused_sends: u64,
    /// Connections given up because an answer did not come.
    pub stalls: u64,
    /// Messages that `--rate` asked for and no client was free to send.
    pub skipped: u64,
    pub receipts: u64,
}

/// Latencies in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct LatencyMs {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Collects latencies; three digits, up to ten minutes.
#[derive(Debug)]
pub(crate) struct Latencies(Histogram<u32>);

impl Latencies {
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3);
        Self(histogram.expect("the bounds are constants that hdrhistogram takes"))
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record((latency.as_micros() as u64).max(1));
    }

    /// Takes in what others recorded.
    pub(crate) fn add(&mut self, others: &Self) {
        let added = self.0.add(&others.0);
        debug_assert!(added.is_ok(), "all have the same bounds");
    }

    /// How many were recorded.
    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }

    pub(crate) fn seconds(&self) -> Option<Seconds> {
        let LatencyMs { p50, p99, max, .. } = self.summary()?;
        let seconds = |ms: f64| rounded(ms / 1e3);
        Some(Seconds { p50: seconds(p50), p99: seconds(p99), max: seconds(max) })
    }

    pub(crate) fn summary(&self) -> Option<LatencyMs> {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1e3;
        (!self.0.is_empty()).then(|| LatencyMs {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: self.0.max() as f64 / 1e3,
        })
    }
}

/// CPU clocks of the measured processes at one instant.
#[derive(Debug)]
pub(crate) struct CpuClocks {
    at: Instant,
    own: Duration,
    processes: Vec<(u32, Duration)>,
}

impl CpuClocks {
    /// Reads them. A process that is not there counts nothing.
    pub(crate) fn read(now: Instant, pids: &[u32]) -> Self {
        let clock = |pid| host::cpu_time(pid).unwrap_or_default();
        let processes = pids.iter().map(|pid| (*pid, clock(*pid))).collect();
        Self { at: now, own: clock(std::process::id()), processes }
    }

    /// Fills in what was used from these clocks to `later` for `messages` messages.
    pub(crate) fn report_until(&self, later: &Self, messages: u64, report: &mut Report) {
        let seconds = later.at.saturating_duration_since(self.at).as_secs_f64();
        let per_message = |cpu: Duration| cpu.as_secs_f64() * 1e6 / messages.max(1) as f64;
        let mut all = Duration::ZERO;
        for ((pid, before), (_, after)) in self.processes.iter().zip(&later.processes) {
            let used = after.saturating_sub(*before);
            all += used;
            report.processes.push(ProcessCpu {
                pid: *pid,
                name: host::process_name(*pid),
                cores: rounded(used.as_secs_f64() / seconds),
                cpu_us_per_message: rounded(per_message(used)),
            });
        }
        report.seconds = rounded(seconds);
        report.messages = Some(messages);
        report.messages_per_second = Some(rounded(messages as f64 / seconds));
        if !self.processes.is_empty() && messages > 0 {
            report.cpu_us_per_message = Some(rounded(per_message(all)));
        }
        let own = later.own.saturating_sub(self.own);
        report.bench_cores = Some(rounded(own.as_secs_f64() / seconds));
    }
}

/// Three decimals; figures with more pretend.
pub(crate) fn rounded(value: f64) -> f64 {
    if value.is_finite() { (value * 1e3).round() / 1e3 } else { 0.0 }
}

/// `name  value` lines; what is inside an object or a list is indented under its name.
fn table(value: &Value) -> String {
    let mut text = String::new();
    write_rows(&mut text, value, 0);
    text
}

fn write_rows(text: &mut String, value: &Value, depth: usize) {
    let Some(fields) = value.as_object() else { return };
    let indent = "  ".repeat(depth);
    let width = fields.keys().map(String::len).max().unwrap_or_default();
    for (name, value) in fields {
        if let Some(items) = value.as_array() {
            text.push_str(&format!("{indent}{name}\n"));
            for item in items.iter().filter(|item| !item.is_object()) {
                text.push_str(&format!("{indent}  {}\n", cell(item)));
            }
            items.iter().for_each(|item| write_rows(text, item, depth + 1));
        } else if value.is_object() {
            text.push_str(&format!("{indent}{name}\n"));
            write_rows(text, value, depth + 1);
        } else {
            text.push_str(&format!("{indent}{name:width$}  {}\n", cell(value)));
        }
    }
}

fn cell(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// One line on stderr that is written over again and again; silent where stderr is no terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    is_terminal: bool,
    shown_at: Option<Instant>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { is_terminal: io::stderr().is_terminal(), shown_at: None }
    }

    /// Shows `line()`, at most four times a second.
    pub(crate) fn show(&mut self, now: Instant, line: impl FnOnce() -> String) {
        let fresh = self.shown_at.is_some_and(|at| now - at < PROGRESS_INTERVAL);
        if self.is_terminal && !fresh {
            self.shown_at = Some(now);
            eprint!("\r\x1b[K{}", line());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown_at.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_second_of_a_drain_may_begin_at_any_time() {
        let even = Drained::of((0..3000).map(|session| session * 10), 30.0);
        assert_eq!((even.gone, even.gone_per_second_max), (3000, 100));
        assert_eq!((even.gone_per_second_max_over_mean, even.gone_within_seconds), (1.0, 29.99));
        assert_eq!(even.gone_in_second, [100; 30]);
        let lump = (0..3000).map(|session| if session < 300 { 1_700 + session } else { 29_000 });
        let uneven = Drained::of(lump.filter(|at_ms| *at_ms < 29_000), 3.0);
        assert_eq!((uneven.gone_per_second_max, uneven.gone_per_second_max_over_mean), (300, 3.0));
        assert_eq!(Drained::of([].into_iter(), 1.0).gone_per_second_max_over_mean, 0.0);
    }

    #[test]
    fn latencies_are_told_in_milliseconds() {
        let mut latencies = Latencies::new();
        assert!(latencies.summary().is_none());
        (1..=1000).for_each(|ms| latencies.record(Duration::from_millis(ms)));
        let LatencyMs { p50, p99, max, .. } = latencies.summary().unwrap();
        assert!((499.0..=501.0).contains(&p50), "{p50}");
        assert!((989.0..=991.0).contains(&p99), "{p99}");
        assert!((999.0..=1001.0).contains(&max), "{max}");
    }

    #[test]
    fn the_verdict_stands_beside_the_figures() {
        let mut report = Report::new("chat", &serde_json::json!({"pairs": 2}));
        report.verdict = Some(Verdict { lost: 3, ..Verdict::default() });
        report.latency_ms = None;
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(value["lost"], 3);
        assert_eq!(value["duplicates"], 0);
        assert_eq!(value["settings"]["pairs"], 2);
        assert!(value.get("latency_ms").is_none() && value.get("verdict").is_none());
        assert!(value["machine"]["cores"].as_u64() > Some(0));
    }

    #[test]
    fn the_table_indents_what_is_inside() {
        let value = serde_json::json!({"a": {"bb": 1, "c": "x"}, "list": ["y", {"d": 2}]});
        assert_eq!(table(&value), "a\n  bb  1\n  c   x\nlist\n  y\n  d  2\n");
    }
}
