//! One shard's counters, merged when they are read.
//!
//! Each has one writer, the shard's own thread; the admin thread reads. So counting is a plain load, add and store
//! without a locked instruction. Shards sit on cache lines of their own.

mod histogram;
pub mod process;

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hawser_proto::client::error::Code;

pub use self::histogram::Histogram;
use crate::auth::Refused;

/// A number with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds. Only the owning thread may call it.
    #[inline]
    pub fn add(&self, n: u64) {
        // One writer: nothing is lost between load and store. Readers order nothing by it.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets a gauge. Only the owning thread may call it.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it stands at.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters that share a name and differ in one label, whose values are known beforehand.
#[derive(Debug)]
pub struct Family<const N: usize> {
    labels: [&'static str; N],
    counters: [Counter; N],
}

impl<const N: usize> Family<N> {
    fn new(labels: [&'static str; N]) -> Self {
        Self { labels, counters: std::array::from_fn(|_| Counter::default()) }
    }

    fn add(&self, label: &str, n: u64) {
        debug_assert!(self.labels.contains(&label), "{label} is not in the family");
        if let Some(at) = self.labels.iter().position(|l| *l == label) {
            self.counters[at].add(n);
        }
    }

    fn get(&self, label: &str) -> u64 {
        self.labels.iter().position(|l| *l == label).map_or(0, |at| self.counters[at].get())
    }
}

/// A turn takes microseconds when little happens; above some milliseconds clients feel it.
const TURN_BOUNDS: [Duration; 9] = [
    Duration::from_micros(10),
    Duration::from_micros(100),
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
];
/// A near client with a near router is in within milliseconds, one on a slow network within a second; time-outs are 10 s.
const ENTRY_BOUNDS: [Duration; 10] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(10),
];
const STATUSES: [&str; 13] =
    ["400", "401", "403", "404", "405", "408", "413", "414", "426", "429", "431", "503", "505"];
const LIMITS: [&str; 7] = [
    "connections_max",
    "handshakes_max",
    "address_connections_max",
    "address_connects_per_second",
    "address_failures_per_second",
    "user_connections_max",
    "user_connects_per_second",
];
const REASONS: [&str; 26] = [
    "closed_by_peer",
    "vanished",
    "socket_failed",
    "protocol",
    "wrong_message_type",
    "bad_client_frame",
    "not_connected",
    "connect_missing",
    "unauthenticated",
    "token_unchecked",
    "token_expired",
    "early_frames",
    "bad_connect",
    "replaced",
    "operator",
    "ping_missing",
    "slow_reader",
    "router_unavailable",
    "refused",
    "tls",
    "tls_timeout",
    "proxy_header",
    "user_limit",
    "going_away",
    "drained",
    "rebalanced",
];
const TLS_FAILURES: [&str; 18] = [
    "plain_http",
    "not_tls",
    "nothing_in_common",
    "client_certificate",
    "bad_handshake",
    "handshake_too_long",
    "peer_alert",
    "record_overflow",
    "bad_record",
    "unexpected_message",
    "malformed",
    "illegal_parameter",
    "renegotiation",
    "too_many_empty_records",
    "too_many_key_updates",
    "too_many_warnings",
    "keys_exhausted",
    "internal",
];
const CODES: [&str; 7] = [
    "invalid_argument",
    "too_large",
    "unavailable",
    "overloaded",
    "unsupported",
    "permission_denied",
    "other",
];
/// What `Refused::label` says, and the Origin of a page.
const ADMISSION: [&str; Refused::ALL.len() + 1] = {
    let mut labels = ["origin"; Refused::ALL.len() + 1];
    let mut at = 0;
    while at < Refused::ALL.len() {
        labels[at] = Refused::ALL[at].label();
        at += 1;
    }
    labels
};

macro_rules! counters {
    ($( $field:ident, $kind:literal, $name:literal, $help:literal; )*) => {
        /// The counters of one shard.
        #[derive(Debug)]
        #[repr(align(128))]
        pub struct Counters {
            $( #[doc = $help] pub $field: Counter, )*
            /// How long the loop's turns took, without what the kernel does when it is entered.
            pub turn: Histogram<{ TURN_BOUNDS.len() }>,
            /// From accept to upgrade.
            pub handshake: Histogram<{ ENTRY_BOUNDS.len() }>,
            /// From Connect to Welcome.
            pub registration: Histogram<{ ENTRY_BOUNDS.len() }>,
            refused: Family<{ STATUSES.len() }>,
            limited: Family<{ LIMITS.len() }>,
            closed: Family<{ REASONS.len() }>,
            tls_failures: Family<{ TLS_FAILURES.len() }>,
            send_failures: Family<{ CODES.len() }>,
            admission_refused: Family<{ ADMISSION.len() }>,
        }

        impl Default for Counters {
            fn default() -> Self {
                Self {
                    $( $field: Counter::default(), )*
                    turn: Histogram::new(&TURN_BOUNDS),
                    handshake: Histogram::new(&ENTRY_BOUNDS),
                    registration: Histogram::new(&ENTRY_BOUNDS),
                    refused: Family::new(STATUSES),
                    limited: Family::new(LIMITS),
                    closed: Family::new(REASONS),
                    tls_failures: Family::new(TLS_FAILURES),
                    send_failures: Family::new(CODES),
                    admission_refused: Family::new(ADMISSION),
                }
            }
        }

        /// Writes the sum over all shards in Prometheus' text format.
        pub fn render(shards: &[Arc<Counters>], out: &mut String) {
            $(
                header(out, $name, $kind, $help);
                let sum: u64 = shards.iter().map(|s| s.$field.get()).sum();
                let _ = writeln!(out, "{} {sum}", $name);
            )*
            shard_connections(out, shards);
            histogram::render(out, shards, "edge_turn_seconds", "turns of the shards' loops", |s| &s.turn);
            histogram::render(out, shards, "edge_handshake_seconds", "time from accept to upgrade, TLS and request included", |s| &s.handshake);
            histogram::render(out, shards, "edge_registration_seconds", "time from Connect to Welcome", |s| &s.registration);
            family(out, shards, "edge_refused_total", "status", "requests answered with an error instead of an upgrade", |s| &s.refused);
            family(out, shards, "edge_limited_total", "limit", "clients not let in, by the limit that they ran into", |s| &s.limited);
            family(out, shards, "edge_closed_total", "reason", "connections that ended, by reason", |s| &s.closed);
            family(out, shards, "edge_tls_failures_total", "failure", "connections that TLS ended, by what was wrong", |s| &s.tls_failures);
            family(out, shards, "edge_send_failures_total", "code", "sends answered with an error, by code", |s| &s.send_failures);
            family(out, shards, "edge_admission_refused_total", "reason", "tokens and origins that were not let in, by reason", |s| &s.admission_refused);
        }
    };
}

counters! {
    connections, "gauge", "edge_connections", "sockets held, from accept to close";
    accepted, "counter", "edge_accepted_total", "sockets accepted";
    draining, "gauge", "edge_draining_shards", "shards that are being drained: nobody new is let in, and everybody goes";
    passed, "counter", "edge_passed_total", "sockets passed to a shard that held fewer";
    accept_failures, "counter", "edge_accept_failures_total", "accepts that failed, for want of a descriptor or of memory";
    upgraded, "counter", "edge_upgraded_total", "requests upgraded to WebSocket";
    received_messages, "counter", "edge_received_messages_total", "WebSocket messages received";
    received_bytes, "counter", "edge_received_bytes_total", "bytes received from clients";
    sent_messages, "counter", "edge_sent_messages_total", "WebSocket messages written to clients";
    sent_bytes, "counter", "edge_sent_bytes_total", "bytes handed to the kernel for clients";
    inflated_messages, "counter", "edge_inflated_messages_total", "WebSocket messages that came deflated";
    deflate_saved_bytes, "counter", "edge_deflate_saved_bytes_total", "bytes that deflate has saved on messages to clients";
    sends, "counter", "edge_sends_total", "Send frames from clients";
    signals_denied, "counter", "edge_signals_denied_total", "signals that the token does not allow";
    refreshed, "counter", "edge_refreshed_total", "tokens exchanged for newer ones on open connections";
    delivers, "counter", "edge_delivers_total", "Deliver messages handed to clients";
    foreign_deliveries, "counter", "edge_foreign_deliveries_total", "messages of a router about a user that another one serves by now";
    signals_dropped, "counter", "edge_signals_dropped_total", "signals dropped because the router they were for had no room";
    stale_deliveries, "counter", "edge_stale_deliveries_total", "router messages for connections that are gone";
    bad_router_messages, "counter", "edge_bad_router_messages_total", "router messages that could not be read";
    handshakes, "gauge", "edge_handshakes", "connections between accept and upgrade";
    tls_full_handshakes, "counter", "edge_tls_full_handshakes_total", "TLS handshakes with certificates";
    tls_resumed_handshakes, "counter", "edge_tls_resumed_handshakes_total", "TLS handshakes that a ticket made short";
    throttled, "counter", "edge_throttled_total", "times that a client above its rate was not read from for a while";
    outbox_overflows, "counter", "edge_outbox_overflows_total", "connections ended because their outbox was full";
    receive_buffers_empty, "counter", "edge_receive_buffers_empty_total", "receives started again for want of a buffer";
    partitions, "gauge", "edge_partitions", "partitions of the users, 1 where one router serves all";
    partitions_unrouted, "gauge", "edge_partitions_unrouted", "partitions that no router serves";
    link_bad_messages, "counter", "edge_link_bad_messages_total", "router messages for no shard of this edge, or unreadable";
    link_ups, "counter", "edge_link_ups_total", "times that a link came up";
}

impl Counters {
    /// A request was refused with this HTTP status.
    pub fn refused(&self, status: u16) {
        let mut label = [0; 3];
        for (digit, place) in label.iter_mut().zip([100, 10, 1]) {
            *digit = b'0' + (status / place % 10) as u8;
        }
        self.refused.add(std::str::from_utf8(&label).unwrap_or_default(), 1);
    }

    /// A client was not let in because of this limit, which is called as its knob is.
    pub fn limited(&self, limit: &'static str) {
        self.limited.add(limit, 1);
    }

    /// How many clients were not let in because of this limit.
    #[must_use]
    pub fn limited_by(&self, limit: &str) -> u64 {
        self.limited.get(limit)
    }

    /// TLS ended a connection with this fault ([`crate::tls::TlsError::label`]).
    pub fn tls_failed(&self, fault: &'static str) {
        self.tls_failures.add(fault, 1);
    }

    /// A connection ended for this reason (`CloseReason::label`).
    pub fn closed(&self, reason: &'static str) {
        self.closed.add(reason, 1);
    }

    /// How many connections ended for this reason.
    #[must_use]
    pub fn closed_for(&self, reason: &str) -> u64 {
        self.closed.get(reason)
    }

    /// A token was refused.
    pub fn token_refused(&self, refused: Refused) {
        self.admission_refused.add(refused.label(), 1);
    }

    /// A page was refused for its Origin.
    pub fn origin_refused(&self) {
        self.admission_refused.add("origin", 1);
    }

    /// How often a token, or an origin, was refused for this reason.
    #[must_use]
    pub fn admission_refused_for(&self, reason: &str) -> u64 {
        self.admission_refused.get(reason)
    }

    /// A Send was answered with this error.
    pub fn send_failed(&self, code: Code) {
        let label = match code {
            Code::InvalidArgument => "invalid_argument",
            Code::TooLarge => "too_large",
            Code::Unavailable => "unavailable",
            Code::Overloaded => "overloaded",
            Code::Unsupported => "unsupported",
            Code::PermissionDenied => "permission_denied",
            Code::Unspecified
            | Code::UnknownFrame
            | Code::NotConnected
            | Code::AlreadyConnected
            | Code::Unauthenticated
            | Code::Replaced
            | Code::NotFound => "other",
        };
        self.send_failures.add(label, 1);
    }
}

pub(crate) fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Writes one gauge of the process.
pub fn gauge(out: &mut String, name: &str, help: &str, value: u64) {
    header(out, name, "gauge", help);
    let _ = writeln!(out, "{name} {value}");
}

fn shard_connections(out: &mut String, shards: &[Arc<Counters>]) {
    let name = "edge_shard_connections";
    header(out, name, "gauge", "sockets held by each shard");
    for (at, shard) in shards.iter().enumerate() {
        let _ = writeln!(out, "{name}{{shard=\"{at}\"}} {}", shard.connections.get());
    }
}

fn family<const N: usize>(
    out: &mut String,
    shards: &[Arc<Counters>],
    name: &str,
    label: &str,
    help: &str,
    of: impl Fn(&Counters) -> &Family<N>,
) {
    header(out, name, "counter", help);
    let Some(first) = shards.first() else { return };
    for (at, value) in of(first).labels.iter().enumerate() {
        let sum: u64 = shards.iter().map(|s| of(s).counters[at].get()).sum();
        let _ = writeln!(out, "{name}{{{label}=\"{value}\"}} {sum}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_summed_and_labels_stand_apart() {
        let shards = [Arc::new(Counters::default()), Arc::new(Counters::default())];
        shards[0].accepted.add(2);
        shards[1].accepted.add(3);
        shards[1].refused(426);
        shards[0].closed("vanished");
        let mut out = String::new();
        render(&shards, &mut out);
        assert!(
            out.contains("# TYPE edge_accepted_total counter\nedge_accepted_total 5\n"),
            "{out}"
        );
        assert!(out.contains("edge_refused_total{status=\"426\"} 1\n"), "{out}");
        assert!(out.contains("edge_refused_total{status=\"503\"} 0\n"), "{out}");
        assert!(out.contains("edge_closed_total{reason=\"vanished\"} 1\n"), "{out}");
    }
}
