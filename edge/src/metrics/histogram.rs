//! Durations, counted by how long they were.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::{Counter, Counters, header};

/// Counts durations up to each of some bounds, and those above all of them. One writer, as for a [`Counter`]; takes a few
/// comparisons, the fewer the shorter what is observed.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: &'static [Duration; N],
    /// Up to the bound of the same place and above the one before.
    counts: [Counter; N],
    above: Counter,
    sum_nanos: Counter,
}

impl<const N: usize> Histogram<N> {
    pub(super) fn new(bounds: &'static [Duration; N]) -> Self {
        let counts = std::array::from_fn(|_| Counter::default());
        Self { bounds, counts, above: Counter::default(), sum_nanos: Counter::default() }
    }

    /// Counts one. Only the owning thread may call it.
    pub fn observe(&self, took: Duration) {
        let at = self.bounds.iter().position(|bound| took <= *bound);
        at.map_or(&self.above, |at| &self.counts[at]).add(1);
        self.sum_nanos.add(took.as_nanos() as u64);
    }

    /// How many were observed.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().map(Counter::get).sum::<u64>() + self.above.get()
    }
}

/// Writes the sum over all shards.
pub(super) fn render<const N: usize>(
    out: &mut String,
    shards: &[Arc<Counters>],
    name: &str,
    help: &str,
    of: impl Fn(&Counters) -> &Histogram<N>,
) {
    header(out, name, "histogram", help);
    let Some(first) = shards.first() else { return };
    let mut count = 0;
    for (at, bound) in of(first).bounds.iter().enumerate() {
        count += shards.iter().map(|shard| of(shard).counts[at].get()).sum::<u64>();
        let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {count}", bound.as_secs_f64());
    }
    count += shards.iter().map(|shard| of(shard).above.get()).sum::<u64>();
    let nanos: u64 = shards.iter().map(|shard| of(shard).sum_nanos.get()).sum();
    let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{name}_sum {}", Duration::from_nanos(nanos).as_secs_f64());
    let _ = writeln!(out, "{name}_count {count}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_up_to_their_bounds_and_summed_over_shards() {
        let shards = [Arc::new(Counters::default()), Arc::new(Counters::default())];
        for micros in [3, 10, 11, 700] {
            shards[0].turn.observe(Duration::from_micros(micros));
        }
        shards[1].turn.observe(Duration::from_secs(2));
        let mut out = String::new();
        render(&mut out, &shards, "turns", "turns", |shard| &shard.turn);
        for line in [
            "# TYPE turns histogram",
            "turns_bucket{le=\"0.00001\"} 2",
            "turns_bucket{le=\"0.0001\"} 3",
            "turns_bucket{le=\"0.001\"} 4",
            "turns_bucket{le=\"1\"} 4",
            "turns_bucket{le=\"+Inf\"} 5",
            "turns_sum 2.000724",
            "turns_count 5",
        ] {
            assert!(out.lines().any(|written| written == line), "{line} is not in {out}");
        }
    }
}
