//! What the router counts, as Prometheus text.

use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::health::{Health, Part};
use crate::hub::Counts;

/// What the Hubs of one owner hold in memory.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Connections registered.
    pub connections: usize,
    /// Inboxes.
    pub inboxes: usize,
    /// Devices that have left and are not in the store yet.
    pub departed: usize,
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    owners: Vec<[AtomicUsize; 3]>,
    connections: Gauge,
    inboxes: Gauge,
    departed: Gauge,
    degraded: Family<[(&'static str, &'static str); 1], Gauge>,
    partitions: Family<[(&'static str, &'static str); 1], Gauge>,
    api_requests: Family<[(&'static str, String); 2], Counter>,
    sends_accepted: Counter,
    sends_repeated: Counter,
    sends_refused: Counter,
    delivered: Counter,
    acknowledged: Counter,
    cursors: Counter,
    gaps: Counter,
    signals: Counter,
    signals_dropped: Counter,
    receipts: Counter,
    replaced: Counter,
    store_errors: Counter,
    unreadable: Counter,
    /// Receipts that found no room on their way to another owner.
    pub receipts_dropped: Counter,
    /// Changes of the registry that stand in Redis.
    pub registry_written: Counter,
    /// Changes of the registry that found no room, or that Redis did not take; everything is written again then.
    pub registry_dropped: Counter,
    /// Changes of the registry that Redis has from a later owner of the partition.
    pub registry_outdated: Counter,
    /// Times that everything registered in a partition was written again.
    pub registry_rewrites: Counter,
    /// Links accepted.
    pub links_accepted: Counter,
    /// Links ended, for whatever reason.
    pub links_ended: Counter,
    /// Links closed because too much waited to be written.
    pub links_overflowed: Counter,
    /// Checkpoints written.
    pub checkpoints: Counter,
    /// Records in the log.
    pub appended_records: Counter,
    /// How long the appends that worked took, in seconds.
    pub append_seconds: Histogram,
}

impl Metrics {
    /// Metrics for `owners` owners, all zero.
    #[must_use]
    pub fn new(owners: usize) -> Self {
        let mut registry = Registry::with_prefix("router");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let sends_accepted = counter("sends_accepted", "Messages that are durable");
        let sends_repeated =
            counter("sends_repeated", "Sends answered from memory of an earlier one");
        let sends_refused = counter("sends_refused", "Sends answered with a failure");
        let delivered = counter("delivered", "Messages let out to devices, repetitions included");
        let acknowledged = counter("acknowledged", "Acknowledgements taken from devices");
        let cursors = counter("cursors_logged", "Cursors of devices written to the log");
        let gaps = counter("gaps", "Gaps told to devices");
        let signals = counter("signals", "Signals forwarded");
        let signals_dropped = counter("signals_dropped", "Signals to users who were away");
        let receipts = counter("receipts", "Receipts told to senders");
        let replaced =
            counter("replaced", "Connections replaced by a newer one of the same device");
        let store_errors = counter("store_errors", "Reads and writes of the store that failed");
        let unreadable = counter("records_unreadable", "Log records that could not be read");
        let receipts_dropped = counter("receipts_dropped", "Receipts that found no room");
        let registry_written = counter("registry_written", "Changes that stand in Redis");
        let registry_dropped =
            counter("registry_dropped", "Changes that found no room or that Redis did not take");
        let registry_outdated =
            counter("registry_outdated", "Changes that Redis has from a later owner");
        let registry_rewrites =
            counter("registry_rewrites", "Partitions whose registrations were all written again");
        let links_accepted = counter("links_accepted", "Links accepted");
        let links_ended = counter("links_ended", "Links ended");
        let links_overflowed = counter("links_overflowed", "Links closed with too much to write");
        let checkpoints = counter("checkpoints", "Checkpoints written");
        let appended_records = counter("appended_records", "Records in the log");
        let (connections, inboxes, departed) =
            (Gauge::default(), Gauge::default(), Gauge::default());
        registry.register("connections", "Connections registered", connections.clone());
        registry.register("inboxes", "Inboxes in memory", inboxes.clone());
        let help = "Devices that have left and are not in the store yet";
        registry.register("devices_departed", help, departed.clone());
        // From 0.1 ms to 13 s.
        let append_seconds = Histogram::new(exponential_buckets(1e-4, 2.0, 18));
        let help = "How long an append to the log took, and a power cut is survived";
        registry.register("append_seconds", help, append_seconds.clone());
        let degraded = Family::default();
        registry.register("degraded", "1 while this part is out of order", degraded.clone());
        let partitions = Family::default();
        let help = "Partitions that are served here, are being taken over, or leave";
        registry.register("partitions", help, partitions.clone());
        let api_requests = Family::default();
        let help = "Requests to the server API, by route and status";
        registry.register("api_requests", help, api_requests.clone());
        Self {
            registry,
            owners: (0..owners).map(|_| Default::default()).collect(),
            connections,
            inboxes,
            departed,
            degraded,
            partitions,
            api_requests,
            sends_accepted,
            sends_repeated,
            sends_refused,
            delivered,
            acknowledged,
            cursors,
            gaps,
            signals,
            signals_dropped,
            receipts,
            replaced,
            store_errors,
            unreadable,
            receipts_dropped,
            registry_written,
            registry_dropped,
            registry_outdated,
            registry_rewrites,
            links_accepted,
            links_ended,
            links_overflowed,
            checkpoints,
            appended_records,
            append_seconds,
        }
    }

    /// Notes how many partitions are here, come and go.
    pub fn note_partitions(&self, here: usize, coming: usize, going: usize) {
        for (state, count) in [("here", here), ("coming", coming), ("going", going)] {
            self.partitions.get_or_create(&[("state", state)]).set(count as i64);
        }
    }

    /// Counts a request to the server API. `route` is one of those that there are, with the names of its parameters.
    pub fn note_api_request(&self, method: &axum::http::Method, route: &str, status: u16) {
        // Methods that no route takes are one: anybody can make up another.
        let known = ["GET", "POST", "DELETE"].contains(&method.as_str());
        let method = if known { method.as_str() } else { "other" };
        let labels = [("route", format!("{method} {route}")), ("status", status.to_string())];
        self.api_requests.get_or_create(&labels).inc();
    }

    /// Adds up what the Hubs of one owner did, and notes what they hold.
    pub fn note_owner(&self, owner: usize, counts: &Counts, held: Held) {
        if let Some(noted) = self.owners.get(owner) {
            for (noted, held) in noted.iter().zip([held.connections, held.inboxes, held.departed]) {
                noted.store(held, Ordering::Relaxed);
            }
        }
        for (counter, count) in [
            (&self.sends_accepted, counts.accepted),
            (&self.sends_repeated, counts.repeated),
            (&self.sends_refused, counts.refused),
            (&self.delivered, counts.delivered),
            (&self.acknowledged, counts.acknowledged),
            (&self.cursors, counts.cursors),
            (&self.gaps, counts.gaps),
            (&self.signals, counts.signals),
            (&self.signals_dropped, counts.signals_dropped),
            (&self.receipts, counts.receipts),
            (&self.replaced, counts.replaced),
            (&self.store_errors, counts.store_errors),
            (&self.unreadable, counts.unreadable),
        ] {
            if count > 0 {
                counter.inc_by(count);
            }
        }
    }

    /// All metrics in the Prometheus text format.
    #[must_use]
    pub fn render(&self, health: &Health) -> String {
        for part in Part::ALL {
            let degraded = self.degraded.get_or_create(&[("part", part.label())]);
            degraded.set(health.of(part).is_some().into());
        }
        let sum = |index: usize| {
            let held = self.owners.iter().map(|owner| owner[index].load(Ordering::Relaxed));
            held.sum::<usize>() as i64
        };
        self.connections.set(sum(0));
        self.inboxes.set(sum(1));
        self.departed.set(sum(2));
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(std::fmt::Error) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_owners_hold_and_did_is_rendered() {
        let metrics = Metrics::new(2);
        let counts = Counts { accepted: 3, ..Counts::default() };
        metrics.note_owner(0, &counts, Held { connections: 5, inboxes: 1, departed: 0 });
        metrics.note_owner(1, &counts, Held { connections: 2, inboxes: 1, departed: 4 });
        let health = Health::default();
        health.set(Part::Disk, Some("nearly full".into()));
        let text = metrics.render(&health);
        assert!(text.contains("router_degraded{part=\"disk\"} 1\n"), "{text}");
        assert!(text.contains("router_degraded{part=\"queue\"} 0\n"), "{text}");
        assert!(text.contains("router_sends_accepted_total 6"), "{text}");
        assert!(text.contains("router_connections 7"), "{text}");
        assert!(text.contains("router_devices_departed 4"), "{text}");
    }
}
