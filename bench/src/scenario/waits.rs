//! How long users waited: from sending a message to its acknowledgement, and to its arrival; and which waits lie around
//! which fault.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::crash::{Fault, Struck};
use crate::report::{Latencies, Waited};

/// So long after it was mended a fault counts for what users wait for, if no other one comes first.
const AFTERMATH_MAX: Duration = Duration::from_secs(15);

/// What a user waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    /// SendAck without an error; the sender waits.
    Acknowledgement,
    /// The message; the recipient waits.
    Delivery,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    user: u32,
    is_for: For,
    from: Instant,
    until: Instant,
}

/// All waits of a run that are over, in the order in which they ended. The caller bounds the messages; each makes two.
#[derive(Debug)]
pub(super) struct Waits {
    /// By user: the sends without an answer, by number.
    sent: Vec<VecDeque<(u64, Instant)>>,
    over: Vec<Wait>,
    longest: Duration,
}

impl Waits {
    pub(super) fn new(users: usize) -> Self {
        Self { sent: vec![VecDeque::new(); users], over: Vec::new(), longest: Duration::ZERO }
    }

    /// A message is sent for the first time.
    pub(super) fn handle_sent(&mut self, now: Instant, user: usize, number: u64) {
        self.sent[user].push_back((number, now));
    }

    /// It is acknowledged.
    pub(super) fn handle_accepted(&mut self, now: Instant, user: usize, number: u64) {
        let sent = &mut self.sent[user];
        let at = sent.iter().position(|(other, _)| *other == number);
        if let Some((_, from)) = at.and_then(|at| sent.remove(at)) {
            self.end(now, user, For::Acknowledgement, from);
        }
    }

    /// One that was sent at `from` has arrived at `user`.
    pub(super) fn handle_delivered(&mut self, now: Instant, user: usize, from: Instant) {
        self.end(now, user, For::Delivery, from);
    }

    fn end(&mut self, until: Instant, user: usize, is_for: For, from: Instant) {
        self.over.push(Wait { user: user as u32, is_for, from, until });
        self.longest = self.longest.max(until.saturating_duration_since(from));
    }

    /// By kind of fault: of the longest wait of each user around each fault of that kind, the middle and the ends.
    ///
    /// A wait lies around a fault when a part of it lies between the blow and the next fault's blow (or the mending, when
    /// that comes later). Faults that overlap share waits.
    pub(super) fn around(&self, faults: &[Struck]) -> BTreeMap<Fault, Waited> {
        let mut kinds: BTreeMap<Fault, (u64, [Latencies; 2])> = BTreeMap::new();
        for (number, struck) in faults.iter().enumerate() {
            let next = faults.get(number + 1).map(|next| next.struck_at);
            let aftermath = struck.mended_at + AFTERMATH_MAX;
            let until = next.map_or(aftermath, |next| next.max(struck.mended_at).min(aftermath));
            let (count, latencies) = kinds
                .entry(struck.fault)
                .or_insert_with(|| (0, [Latencies::new(), Latencies::new()]));
            *count += 1;
            for (latencies, longest) in
                latencies.iter_mut().zip(self.longest(struck.struck_at, until))
            {
                longest.into_iter().flatten().for_each(|wait| latencies.record(wait));
            }
        }
        let told = |(fault, (faults, [acknowledgement, delivery])): (_, (_, [Latencies; 2]))| {
            let (acknowledgement, delivery) = (acknowledgement.seconds(), delivery.seconds());
            (fault, Waited { faults, acknowledgement, delivery })
        };
        kinds.into_iter().map(told).collect()
    }

    /// By user the longest wait with a part between `since` and `until`: for acknowledgements, for deliveries.
    fn longest(&self, since: Instant, until: Instant) -> [Vec<Option<Duration>>; 2] {
        let mut longest = [vec![None; self.sent.len()], vec![None; self.sent.len()]];
        let first = self.over.partition_point(|wait| wait.until < since);
        let around = self.over[first..].iter();
        for wait in around.take_while(|wait| wait.until < until + self.longest) {
            if wait.from < until {
                let of_kind = &mut longest[usize::from(wait.is_for == For::Delivery)];
                let user = &mut of_kind[wait.user as usize];
                *user = (*user).max(Some(wait.until.saturating_duration_since(wait.from)));
            }
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_wait_counts_for_the_fault_around_which_it_lies_and_only_the_longest_of_a_user() {
        let t0 = clock::now();
        let at = |second: u32| t0 + SECOND * second;
        let mut waits = Waits::new(2);
        waits.handle_sent(at(0), 0, 1);
        waits.handle_accepted(at(1), 0, 1);
        // Begins before the first fault, ends in it.
        waits.handle_sent(at(9), 0, 2);
        waits.handle_sent(at(10), 0, 3);
        waits.handle_accepted(at(12), 0, 3);
        waits.handle_accepted(at(13), 0, 2);
        waits.handle_delivered(at(14), 1, at(9));
        // After the second.
        waits.handle_sent(at(31), 1, 1);
        waits.handle_accepted(at(33), 1, 1);
        let struck =
            |fault, second| Struck { fault, struck_at: at(second), mended_at: at(second + 1) };
        let faults = [struck(Fault::EdgeKill, 10), struck(Fault::RouterKill, 30)];
        let around = waits.around(&faults);
        let max = |fault: Fault| {
            let waited = &around[&fault];
            let max = |seconds: Option<crate::report::Seconds>| seconds.map(|s| s.max.round());
            (waited.faults, max(waited.acknowledgement), max(waited.delivery))
        };
        assert_eq!(max(Fault::EdgeKill), (1, Some(4.0), Some(5.0)));
        assert_eq!(max(Fault::RouterKill), (1, Some(2.0), None));
        let p50 = around[&Fault::EdgeKill].acknowledgement.unwrap().p50;
        assert!((p50 - 4.0).abs() < 0.1, "one user, one wait: {p50}");
    }
}
