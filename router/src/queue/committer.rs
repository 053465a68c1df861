//! Group commit: one thread appends what all partitions want appended, syncs once, and answers all.
//!
//! ```text
//!             append failed                    opened
//!  Working ───────────────────► Broken ─────────────────► Working
//!     ▲                          │  ▲ not opened: wait longer
//!     └ enough space             └──┘
//! ```
//!
//! While the queue is broken, or the disk is nearly full, appends are refused at once. After a reopening the
//! owners first get what is in the log and was never acknowledged to them, so that they see every record,
//! in order, before a new one is appended.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use ahash::AHashMap;
use bytes::Bytes;

use super::{Batch, Offset, Opener, PartitionId, Queue, QueueError, Record};
use crate::health::{Health, Part};
use crate::limits;
use crate::metrics::Metrics;

/// What owners ask of the committer.
#[derive(Debug)]
pub enum Request {
    /// Append these records. Answered by one [`Reply`] to `owner`.
    Append {
        /// Whom to answer.
        owner: usize,
        /// In order.
        records: Vec<(PartitionId, Bytes)>,
        /// Whether somebody waits for it.
        durable: bool,
        /// How many refusals the owner has heard of. What it asks before it has heard of the last is refused too, or it would get
        /// in before what was refused and is asked again.
        refusals: u64,
    },
    /// The log of a partition is not needed below an offset.
    Trim(PartitionId, Offset),
    /// A partition is served here from now on, by an owner who knows the records below this offset.
    Adopt(PartitionId, Offset),
    /// A partition is not served here any more.
    LetGo(PartitionId),
    /// Finish what was asked before, and end.
    Stop,
}

/// What owners are told.
#[derive(Debug)]
pub enum Reply {
    /// The records of one request are in the log, at these offsets, in the order of the request.
    Committed(Vec<(PartitionId, Offset)>),
    /// The records of one request are not acknowledged.
    Refused(Vec<PartitionId>, Arc<str>),
    /// Records that were found in the log.
    Replayed(Vec<(PartitionId, Record)>),
    /// Another router has trimmed records that the owner of this partition has not seen, so it is not the owner any more. No
    /// answer for the partition counts until it is adopted again.
    Overtaken(PartitionId),
}

/// Where replies go: owner, reply. Must not block.
pub type Replies = Box<dyn FnMut(usize, Reply) + Send>;

/// What time it is.
pub type Clock = Box<dyn Fn() -> Instant + Send>;

/// Free bytes of the disk that the log is on; `None` where that cannot be told.
pub type FreeBytes = Box<dyn FnMut() -> Option<u64> + Send>;

/// The committer thread's state.
pub struct Committer {
    /// Opens the queue after a failure.
    pub opener: Box<dyn Opener>,
    /// The open queue.
    pub queue: Option<Box<dyn Queue>>,
    /// Per partition, the offset after the last record its owner knows; absent where it is not served here.
    pub expected: Vec<Option<Offset>>,
    /// Partitions belong to owners round robin; this is how many owners there are.
    pub owners: usize,
    /// Other routers may own these partitions meanwhile.
    pub is_shared: bool,
    /// Where replies go.
    pub replies: Replies,
    /// Free space of the disk.
    pub free_bytes: FreeBytes,
    /// Below this much free space appends are refused.
    pub disk_free_min: u64,
    /// Least time from the start of one group commit to the next. What comes earlier waits for it, and goes together.
    pub commit_interval: Duration,
    /// Told what is wrong.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// By which it waits.
    pub clock: Clock,
}

impl std::fmt::Debug for Committer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Committer").field("is_open", &self.queue.is_some()).finish_non_exhaustive()
    }
}

impl Committer {
    /// Serves requests until [`Request::Stop`], or until nobody can ask any more.
    pub fn run(mut self, requests: &Receiver<Request>) {
        let mut progress = Progress::default();
        while !progress.round.stop {
            let wait = match &self.queue {
                None => progress.backoff.remaining((self.clock)()),
                Some(queue) if !queue.is_fenced() => limits::WATCH_INTERVAL,
                // The health check shall know when there is room again, also when nobody sends.
                Some(_) if progress.space.result.is_err() => limits::DISK_CHECK_INTERVAL,
                Some(_) => limits::FENCED_WATCH_INTERVAL,
            };
            // Before it listens: what is asked meanwhile wakes nobody.
            let pause = progress.pace.remaining((self.clock)(), self.commit_interval);
            if !pause.is_zero() {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "whoever asks meanwhile need not wake this thread"
                )]
                std::thread::sleep(pause);
            }
            let first = match requests.recv_timeout(wait) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let rest = first.is_some().then(|| requests.try_iter());
            self.turn(&mut progress, &mut first.into_iter().chain(rest.into_iter().flatten()));
        }
    }

    /// One round: serves some of the requests, oldest first, and does what is due by the clock.
    pub fn turn(&mut self, progress: &mut Progress, requests: &mut dyn Iterator<Item = Request>) {
        let Progress { round, backoff, space, watch, pace } = progress;
        let mut is_idle = true;
        while !round.is_full()
            && let Some(request) = requests.next()
        {
            is_idle = false;
            if !self.refuse_stale(round, &request) {
                round.add(request);
            }
        }
        if is_idle {
            let _ = self.check_space(space);
        }
        if self.queue.is_none() && backoff.remaining((self.clock)()).is_zero() {
            self.reopen(backoff);
        }
        self.watch(watch, backoff);
        if !round.batch.records.is_empty() {
            pace.committed_at = Some((self.clock)());
        }
        self.serve(round, space, backoff);
    }

    /// Refuses an append whose owner has not heard of the last refusal. Those of its appends that are in the round had heard of
    /// as many at least, so answers stay in order.
    fn refuse_stale(&mut self, round: &mut Round, request: &Request) -> bool {
        let Request::Append { owner, records, refusals, .. } = request else { return false };
        if round.refusals.get(owner).is_none_or(|told| refusals >= told) {
            return false;
        }
        *round.refusals.entry(*owner).or_default() += 1;
        let partitions = records.iter().map(|(partition, _)| *partition).collect();
        (self.replies)(*owner, Reply::Refused(partitions, "an append before it failed".into()));
        true
    }

    fn serve(&mut self, round: &mut Round, space: &mut Space, backoff: &mut Backoff) {
        if !round.batch.records.is_empty() {
            let appended = self.check_space(space).and_then(|()| self.append(round));
            match appended {
                Ok(()) => self.answer_committed(round),
                Err(reason) => self.answer_refused(round, &reason),
            }
            if self.queue.is_none() {
                backoff.ensure_started((self.clock)());
            }
        }
        for (partition, expected) in round.moves.drain(..) {
            if let Err(error) = self.move_partition(partition, expected) {
                self.break_queue(&error.0);
                backoff.ensure_started((self.clock)());
            }
        }
        if !round.trims.is_empty() {
            if let Some(queue) = &mut self.queue
                && let Err(error) = queue.trim(&round.trims)
            {
                tracing::warn!(%error, "the log was not trimmed");
                self.break_queue(&error.0);
                backoff.ensure_started((self.clock)());
            }
            round.trims.clear();
        }
    }

    fn move_partition(
        &mut self,
        partition: PartitionId,
        expected: Option<Offset>,
    ) -> Result<(), QueueError> {
        self.expected[usize::from(partition)] = expected;
        self.catch_up(partition, Offset::MAX)
    }

    /// Looks whether others appended, where the engine lets them: at a few partitions each time.
    fn watch(&mut self, watch: &mut Watch, backoff: &mut Backoff) {
        let Some(queue) = &self.queue else { return };
        // Behind a fence nothing gets in unseen, but a former owner who has nothing to append would never find out.
        let (interval, at_once) = if queue.is_fenced() {
            (limits::FENCED_WATCH_INTERVAL, 1)
        } else {
            (limits::WATCH_INTERVAL, limits::WATCHED_AT_ONCE)
        };
        if !watch.is_due((self.clock)(), interval) {
            return;
        }
        let served = |at: &usize| self.expected.get(*at).is_some_and(Option::is_some);
        let count = self.expected.len();
        let places = (0..count).map(|step| (watch.next + step) % count).filter(served);
        let places: Vec<usize> = places.take(at_once).collect();
        for place in places {
            watch.next = place + 1;
            if let Err(error) = self.catch_up(place as PartitionId, Offset::MAX) {
                self.break_queue(&error.0);
                backoff.ensure_started((self.clock)());
                return;
            }
        }
    }

    fn check_space(&mut self, space: &mut Space) -> Result<(), String> {
        let enough = space.check((self.clock)(), &mut self.free_bytes, self.disk_free_min);
        self.health.set(Part::Disk, enough.clone().err());
        enough
    }

    fn append(&mut self, round: &mut Round) -> Result<(), String> {
        let Some(queue) = &mut self.queue else {
            return Err(self
                .health
                .of(Part::Queue)
                .unwrap_or_else(|| "the queue is broken".into()));
        };
        let began = (self.clock)();
        match queue.append(&round.batch, &mut round.offsets) {
            Ok(()) => {
                let took = (self.clock)().saturating_duration_since(began);
                self.metrics.append_seconds.observe(took.as_secs_f64());
                self.metrics.appended_records.inc_by(round.batch.records.len() as u64);
                self.fill_holes(round)
            }
            Err(QueueError(reason)) => {
                tracing::warn!(error = %reason, "an append failed; the queue will be opened again");
                self.break_queue(&reason);
                Err(reason)
            }
        }
    }

    /// Where another router appended to the same partitions, the owner gets those records first.
    fn fill_holes(&mut self, round: &Round) -> Result<(), String> {
        for ((partition, _), offset) in round.batch.records.iter().zip(&round.offsets) {
            let Some(expected) = self.expected[usize::from(*partition)] else { continue };
            if *offset > expected
                && let Err(error) = self.read_hole(*partition, *offset)
            {
                self.break_queue(&error.0);
                return Err(error.0);
            }
            if let Some(expected) = &mut self.expected[usize::from(*partition)] {
                *expected = offset + 1;
            }
        }
        Ok(())
    }

    fn break_queue(&mut self, reason: &str) {
        self.queue = None;
        self.health.set(Part::Queue, Some(reason.to_owned()));
    }

    fn reopen(&mut self, backoff: &mut Backoff) {
        let opened = self.opener.open().and_then(|queue| {
            self.queue = Some(queue);
            (0..self.expected.len())
                .try_for_each(|partition| self.catch_up(partition as PartitionId, Offset::MAX))
        });
        match opened {
            Ok(()) => {
                *backoff = Backoff::default();
                self.health.set(Part::Queue, None);
                tracing::info!("the queue works again");
            }
            Err(error) => {
                self.break_queue(&error.0);
                backoff.note_failure((self.clock)());
                tracing::debug!(%error, "the queue could not be opened");
            }
        }
    }

    /// Tells the owner of a partition that is served here about records that it does not know, and appends behind them.
    fn catch_up(&mut self, partition: PartitionId, end: Offset) -> Result<(), QueueError> {
        let Some(expected) = self.expected[usize::from(partition)] else { return Ok(()) };
        let Some(queue) = &mut self.queue else { return Ok(()) };
        let log_end = queue.refresh(partition)?;
        if log_end > expected {
            self.read_hole(partition, end.min(log_end))?;
        }
        let Some(expected) = self.expected[usize::from(partition)] else { return Ok(()) };
        self.queue.as_mut().map_or(Ok(()), |queue| queue.skip_to(partition, expected))
    }

    /// Tells the owner of a partition about the records below `end`, which are in the log, that it does not know.
    fn read_hole(&mut self, partition: PartitionId, end: Offset) -> Result<(), QueueError> {
        let index = usize::from(partition);
        let Some(queue) = &mut self.queue else { return Ok(()) };
        let mut found = Vec::new();
        while let Some(from) = self.expected[index].filter(|from| *from < end) {
            queue.read(partition, from, limits::REPLAY_BYTES_MAX, &mut found)?;
            found.retain(|record| record.offset < end);
            if found.first().is_none_or(|first| first.offset > from) && self.is_shared {
                // The mark of the router that has trimmed the log may be among what is gone.
                self.expected[index] = None;
                (self.replies)(index % self.owners, Reply::Overtaken(partition));
                return Ok(());
            }
            let Some(last) = found.last() else { break };
            self.expected[index] = Some(last.offset + 1);
            let records = found.drain(..).map(|record| (partition, record)).collect();
            (self.replies)(index % self.owners, Reply::Replayed(records));
        }
        Ok(())
    }

    fn answer_committed(&mut self, round: &mut Round) {
        let mut placed = round.batch.records.drain(..).zip(round.offsets.drain(..));
        for (owner, count) in round.askers.drain(..) {
            let places = placed.by_ref().take(count);
            let places = places.map(|((partition, _), offset)| (partition, offset)).collect();
            (self.replies)(owner, Reply::Committed(places));
        }
        drop(placed);
        round.reset();
    }

    fn answer_refused(&mut self, round: &mut Round, reason: &str) {
        let reason: Arc<str> = reason.into();
        let mut refused = round.batch.records.drain(..);
        for (owner, count) in round.askers.drain(..) {
            let partitions = refused.by_ref().take(count).map(|(partition, _)| partition).collect();
            *round.refusals.entry(owner).or_default() += 1;
            (self.replies)(owner, Reply::Refused(partitions, Arc::clone(&reason)));
        }
        drop(refused);
        round.reset();
    }
}

/// Hands every record of `partition` from `from` on to `each`, in order.
///
/// # Errors
/// The log could not be read.
pub fn replay(
    queue: &mut dyn Queue,
    partition: PartitionId,
    mut from: Offset,
    mut each: impl FnMut(Record),
) -> Result<Offset, QueueError> {
    let mut found = Vec::new();
    loop {
        queue.read(partition, from, limits::REPLAY_BYTES_MAX, &mut found)?;
        let Some(last) = found.last() else { return Ok(from) };
        from = last.offset + 1;
        found.drain(..).for_each(&mut each);
    }
}

/// What a committer goes by from round to round.
#[derive(Default)]
pub struct Progress {
    round: Round,
    backoff: Backoff,
    space: Space,
    watch: Watch,
    pace: Pace,
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").finish_non_exhaustive()
    }
}

/// What is done in one go.
#[derive(Default)]
struct Round {
    batch: Batch,
    bytes: usize,
    /// Owner and number of records of each request, in the order of the batch.
    askers: Vec<(usize, usize)>,
    offsets: Vec<Offset>,
    trims: Vec<(PartitionId, Offset)>,
    /// Partitions that come, with the offset that their owner expects next, and that go.
    moves: Vec<(PartitionId, Option<Offset>)>,
    /// Refusals that each owner was told.
    refusals: AHashMap<usize, u64>,
    stop: bool,
}

impl Round {
    fn add(&mut self, request: Request) {
        match request {
            Request::Append { owner, records, durable, refusals: _ } => {
                self.askers.push((owner, records.len()));
                self.bytes += records.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
                self.batch.records.extend(records);
                self.batch.durable |= durable;
            }
            Request::Trim(partition, below) => self.trims.push((partition, below)),
            Request::Adopt(partition, next) => self.moves.push((partition, Some(next))),
            Request::LetGo(partition) => self.moves.push((partition, None)),
            Request::Stop => self.stop = true,
        }
    }

    /// A partition that comes or goes ends a round: what was asked before is for the owner of before.
    fn is_full(&self) -> bool {
        self.bytes >= limits::COMMIT_BYTES_MAX || self.stop || !self.moves.is_empty()
    }

    fn reset(&mut self) {
        self.batch.durable = false;
        self.bytes = 0;
    }
}

/// When the last group commit began.
#[derive(Default)]
struct Pace {
    committed_at: Option<Instant>,
}

impl Pace {
    /// How long the next one waits for company.
    fn remaining(&self, now: Instant, interval: Duration) -> Duration {
        let since = |at| interval.saturating_sub(now.saturating_duration_since(at));
        self.committed_at.map_or(Duration::ZERO, since)
    }
}

/// When to look for what others appended, and where.
#[derive(Default)]
struct Watch {
    due_at: Option<Instant>,
    next: usize,
}

impl Watch {
    fn is_due(&mut self, now: Instant, interval: Duration) -> bool {
        let is_due = self.due_at.is_none_or(|due_at| due_at <= now);
        if is_due {
            self.due_at = Some(now + interval);
        }
        is_due
    }
}

/// When to try to open the queue again.
#[derive(Default)]
struct Backoff {
    next_at: Option<Instant>,
    failures: u32,
}

impl Backoff {
    fn remaining(&self, now: Instant) -> Duration {
        self.next_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    fn ensure_started(&mut self, now: Instant) {
        if self.next_at.is_none() {
            self.note_failure(now);
        }
    }

    fn note_failure(&mut self, now: Instant) {
        let (first, longest) = limits::REOPEN_BACKOFF;
        let pause = first.saturating_mul(1 << self.failures.min(10)).min(longest);
        self.failures += 1;
        self.next_at = Some(now + pause);
    }
}

/// The free space, looked at from time to time.
struct Space {
    checked_at: Option<Instant>,
    result: Result<(), String>,
}

impl Default for Space {
    fn default() -> Self {
        Self { checked_at: None, result: Ok(()) }
    }
}

impl Space {
    fn check(
        &mut self,
        now: Instant,
        free_bytes: &mut FreeBytes,
        free_min: u64,
    ) -> Result<(), String> {
        let fresh = |at: Instant| now.duration_since(at) < limits::DISK_CHECK_INTERVAL;
        if !self.checked_at.is_some_and(fresh) {
            self.checked_at = Some(now);
            self.result = match free_bytes() {
                Some(free) if free < free_min => Err(format!(
                    "the disk has {free} bytes free, --disk-free-min asks for {free_min}"
                )),
                Some(_) | None => Ok(()),
            };
        }
        self.result.clone()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the committer thread is the rim: it waits by the clock"
)]
/// The clock of a committer in a thread.
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread::JoinHandle;

    use super::super::memory::{Fault, MemoryLog};
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    /// A committer in its thread, with two owners.
    struct Running {
        log: MemoryLog,
        free: Arc<AtomicU64>,
        health: Arc<Health>,
        requests: Option<Sender<Request>>,
        replies: Receiver<(usize, Reply)>,
        thread: Option<JoinHandle<()>>,
        /// Refusals heard, by owner.
        refusals: RefCell<[u64; 2]>,
    }

    impl Running {
        fn start() -> Self {
            let log = MemoryLog::new(4);
            let free = Arc::new(AtomicU64::new(1_000));
            let health = Arc::new(Health::default());
            let (to_us, replies) = channel();
            let (requests, from_us) = channel();
            let free_bytes = Arc::clone(&free);
            let committer = Committer {
                opener: Box::new(log.clone()),
                queue: Some(Box::new(log.clone())),
                expected: vec![Some(1); 4],
                owners: 2,
                is_shared: true,
                replies: Box::new(move |owner, reply| drop(to_us.send((owner, reply)))),
                free_bytes: Box::new(move || Some(free_bytes.load(Ordering::Relaxed))),
                disk_free_min: 100,
                commit_interval: Duration::ZERO,
                health: Arc::clone(&health),
                metrics: Arc::new(Metrics::new(2)),
                clock: Box::new(now),
            };
            let thread = std::thread::spawn(move || committer.run(&from_us));
            let (requests, thread) = (Some(requests), Some(thread));
            Self { log, free, health, requests, replies, thread, refusals: RefCell::default() }
        }

        fn append(&self, owner: usize, records: &[(PartitionId, &str)]) {
            let records = records
                .iter()
                .map(|(partition, text)| (*partition, Bytes::copy_from_slice(text.as_bytes())))
                .collect();
            let refusals = self.refusals.borrow()[owner];
            let request = Request::Append { owner, records, durable: true, refusals };
            self.requests.as_ref().unwrap().send(request).unwrap();
        }

        fn reply(&self) -> (usize, Reply) {
            self.replies.recv_timeout(DEADLINE).unwrap()
        }

        fn committed(&self) -> (usize, Vec<(PartitionId, Offset)>) {
            match self.reply() {
                (owner, Reply::Committed(places)) => (owner, places),
                (_, other) => panic!("wanted Committed, got {other:?}"),
            }
        }

        fn refused(&self) -> (usize, Vec<PartitionId>, String) {
            match self.reply() {
                (owner, Reply::Refused(partitions, why)) => {
                    self.refusals.borrow_mut()[owner] += 1;
                    (owner, partitions, why.to_string())
                }
                (_, other) => panic!("wanted Refused, got {other:?}"),
            }
        }

        fn wait_until_healthy(&self) {
            let waiting = now();
            while !self.health.sentences().is_empty() {
                assert!(waiting.elapsed() < DEADLINE, "{:?}", self.health.sentences());
                std::thread::yield_now();
            }
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.requests = None;
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
        }
    }

    #[test]
    fn every_request_is_answered_with_the_places_of_its_records() {
        let running = Running::start();
        running.append(0, &[(0, "a"), (2, "b"), (0, "c")]);
        running.append(1, &[(1, "d")]);
        running.append(0, &[(0, "e")]);
        assert_eq!(running.committed(), (0, vec![(0, 1), (2, 1), (0, 2)]));
        assert_eq!(running.committed(), (1, vec![(1, 1)]));
        assert_eq!(running.committed(), (0, vec![(0, 3)]));
    }

    #[test]
    fn a_broken_queue_refuses_is_opened_again_and_tells_what_it_has() {
        let running = Running::start();
        running.append(1, &[(3, "before")]);
        assert_eq!(running.committed(), (1, vec![(3, 1)]));
        running.log.set_fault(Fault::LoseAnswer);
        running.append(1, &[(3, "there all the same")]);
        assert_eq!(running.refused().1, [3]);
        running.log.set_fault(Fault::None);
        running.wait_until_healthy();
        running.append(1, &[(3, "after")]);
        let (owner, reply) = running.reply();
        let Reply::Replayed(records) = reply else { panic!("{reply:?}") };
        assert_eq!((owner, records.len(), records[0].1.offset), (1, 1, 2));
        assert_eq!(running.committed(), (1, vec![(3, 3)]));
    }

    #[test]
    fn while_the_queue_cannot_be_opened_everything_is_refused_with_the_reason() {
        let running = Running::start();
        running.log.set_fault(Fault::Refuse);
        for _ in 0..3 {
            running.append(0, &[(0, "a"), (2, "b")]);
            let (owner, partitions, why) = running.refused();
            assert_eq!((owner, partitions), (0, vec![0, 2]));
            assert!(why.contains("told to refuse"), "{why}");
        }
        assert_eq!(running.health.sentences().len(), 1);
        running.log.set_fault(Fault::None);
        running.wait_until_healthy();
        running.append(0, &[(0, "a")]);
        assert_eq!(running.committed(), (0, vec![(0, 1)]));
    }

    #[test]
    fn too_little_space_refuses_and_space_given_back_is_noticed_without_a_send() {
        let running = Running::start();
        running.free.store(99, Ordering::Relaxed);
        running.append(0, &[(0, "a")]);
        let (_, _, why) = running.refused();
        assert!(why.contains("--disk-free-min"), "{why}");
        assert_eq!(running.log.end(0), 1);
        running.free.store(100, Ordering::Relaxed);
        running.wait_until_healthy();
        running.append(0, &[(0, "a")]);
        assert_eq!(running.committed(), (0, vec![(0, 1)]));
    }

    #[test]
    fn records_of_another_router_reach_the_owner_before_its_own() {
        let running = Running::start();
        let mut other = running.log.clone();
        let batch = Batch { records: vec![(2, Bytes::from_static(b"other"))], durable: true };
        other.append(&batch, &mut Vec::new()).unwrap();
        running.append(0, &[(2, "ours")]);
        let (owner, reply) = running.reply();
        let Reply::Replayed(records) = reply else { panic!("{reply:?}") };
        assert_eq!((owner, records[0].1.offset), (0, 1));
        assert_eq!(running.committed(), (0, vec![(2, 2)]));
    }

    #[test]
    fn one_that_has_not_seen_what_another_router_trimmed_is_not_the_owner_any_more() {
        for seen_by in ["an append", "a look"] {
            let running = Running::start();
            let mut other = running.log.clone();
            let batch = |text: &'static str| {
                let record = || (2, Bytes::from_static(text.as_bytes()));
                Batch { records: vec![record(), record()], durable: true }
            };
            other.append(&batch("the other's mark, and a message"), &mut Vec::new()).unwrap();
            other.trim(&[(2, 2)]).unwrap();
            if seen_by == "a look" {
                // The queue is opened again, and every partition looked at.
                running.log.set_fault(Fault::Refuse);
                running.append(1, &[(1, "refused")]);
                running.refused();
                running.log.set_fault(Fault::None);
            } else {
                running.append(0, &[(2, "ours"), (0, "of another partition")]);
            }
            let (owner, reply) = running.reply();
            assert!(matches!(reply, Reply::Overtaken(2)) && owner == 0, "{seen_by}: {reply:?}");
            if seen_by == "an append" {
                assert_eq!(running.committed(), (0, vec![(2, 3), (0, 1)]));
            }
            other.append(&batch("more"), &mut Vec::new()).unwrap();
            running.append(0, &[(0, "goes on")]);
            assert_eq!(running.committed().0, 0);
        }
    }

    #[test]
    fn what_was_asked_before_a_partition_came_back_is_found_by_its_new_owner() {
        let running = Running::start();
        let (replies, told) = channel();
        let log = running.log.clone();
        let mut committer = Committer {
            opener: Box::new(log.clone()),
            queue: Some(Box::new(log)),
            expected: vec![Some(1); 4],
            owners: 2,
            is_shared: true,
            replies: Box::new(move |owner, reply| drop(replies.send((owner, reply)))),
            free_bytes: Box::new(|| None),
            disk_free_min: 0,
            commit_interval: Duration::ZERO,
            health: Arc::clone(&running.health),
            metrics: Arc::new(Metrics::new(2)),
            clock: Box::new(now),
        };
        let records = vec![(2, Bytes::from_static(b"of before"))];
        let append = Request::Append { owner: 0, records, durable: true, refusals: 0 };
        let mut requests = [append, Request::LetGo(2), Request::Adopt(2, 1)].into_iter();
        let mut progress = Progress::default();
        while requests.len() > 0 {
            committer.turn(&mut progress, &mut requests);
        }
        assert!(matches!(told.try_recv().unwrap(), (0, Reply::Committed(_))), "passed over");
        let (_, Reply::Replayed(found)) = told.try_recv().unwrap() else { panic!() };
        assert_eq!((found.len(), found[0].1.offset), (1, 1));
    }

    #[test]
    fn what_an_owner_asked_before_it_heard_of_a_failure_is_refused_too() {
        let running = Running::start();
        running.log.set_fault(Fault::Refuse);
        running.append(0, &[(2, "first")]);
        let heard = running.replies.recv_timeout(DEADLINE).unwrap();
        assert!(matches!(heard, (0, Reply::Refused(..))), "{heard:?}");
        running.log.set_fault(Fault::None);
        running.wait_until_healthy();
        // The owner has not heard it yet.
        running.append(0, &[(2, "second")]);
        running.append(1, &[(3, "another's")]);
        let (owner, _, why) = running.refused();
        assert_eq!((owner, why.as_str()), (0, "an append before it failed"));
        assert_eq!(running.committed(), (1, vec![(3, 1)]));
        running.refusals.borrow_mut()[0] += 1;
        running.append(0, &[(2, "first"), (2, "second")]);
        assert_eq!(running.committed(), (0, vec![(2, 1), (2, 2)]));
    }

    #[test]
    fn only_a_commit_lets_the_next_one_wait_and_no_longer_than_the_interval() {
        let log = MemoryLog::new(4);
        let (began, interval) = (now(), Duration::from_millis(5));
        let elapsed_ms = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&elapsed_ms);
        let mut committer = Committer {
            opener: Box::new(log.clone()),
            queue: Some(Box::new(log)),
            expected: vec![Some(1); 4],
            owners: 1,
            is_shared: false,
            replies: Box::new(|_, _| {}),
            free_bytes: Box::new(|| None),
            disk_free_min: 0,
            commit_interval: interval,
            health: Arc::default(),
            metrics: Arc::new(Metrics::new(1)),
            clock: Box::new(move || began + Duration::from_millis(clock.load(Ordering::Relaxed))),
        };
        let mut progress = Progress::default();
        let mut turn = |at_ms: u64, records: Vec<(PartitionId, Bytes)>| {
            elapsed_ms.store(at_ms, Ordering::Relaxed);
            let append = Request::Append { owner: 0, records, durable: true, refusals: 0 };
            committer.turn(&mut progress, &mut [append].into_iter());
            progress.pace.remaining(began + Duration::from_millis(at_ms + 1), interval)
        };
        assert_eq!(turn(0, Vec::new()), Duration::ZERO, "nothing was committed");
        let one = || vec![(2, Bytes::from_static(b"a"))];
        assert_eq!(turn(10, one()), Duration::from_millis(4));
        assert_eq!(turn(12, Vec::new()), Duration::from_millis(2), "nothing new was committed");
        assert_eq!(turn(20, Vec::new()), Duration::ZERO);
    }

    #[test]
    fn a_trim_reaches_the_log() {
        let running = Running::start();
        running.append(0, &[(0, "a"), (0, "b")]);
        running.committed();
        running.requests.as_ref().unwrap().send(Request::Trim(0, 2)).unwrap();
        let mut log = running.log.clone();
        // Ends the committer when it has done what was asked.
        drop(running);
        let mut found = Vec::new();
        log.read(0, 0, 1_000, &mut found).unwrap();
        assert_eq!(found[0].offset, 2);
    }
}
