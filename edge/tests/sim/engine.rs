//! The logs, in memory, with the weakest behaviour that `queue` allows.
//!
//! - An append that fails has left nothing, all, or the first records of some partitions; or they **arrive late**: at the
//!   latest when the same part of the same process opens the log again, and of a process that died at any time.
//! - A writer who is not alone is refused (**fenced**, like NATS), or gets in and leaves a hole (like Kafka), as the seed has
//!   it. A batch of which one partition is fenced fails, and the others' records may be there.
//! - A read answers less than it could; a trim does less than it was asked for.
//! - What was appended without `durable` is lost by chance when a router dies that has the log for itself.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fastrand::Rng;
use hawser_router::queue::{Batch, Log, Offset, Opener, PartitionId, Queue, QueueError, Record};

use crate::env::Sabotage;

/// Partitions of the logs.
pub(crate) const PARTITIONS: u16 = 4;
/// How late an append may arrive whose process has died.
const LATE_MS_MAX: u64 = 2_000;

/// Which start of which router opens a log, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Visitor {
    /// The router.
    pub(crate) router: usize,
    /// Which start of it.
    pub(crate) start: u64,
    /// Which part.
    pub(crate) part: Part,
}

/// What a part of a router does with a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Committer,
    Saver,
    Taker,
}

/// Both logs. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Engine(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// By log.
    partitions: [Vec<Partition>; 2],
    is_fenced: bool,
    /// Several routers share it.
    is_shared: bool,
    rng: Rng,
    ms: u64,
    /// Nothing fails any more.
    calm: bool,
    /// Until when appends fail, each in its way.
    fails_until_ms: u64,
    /// By router, until when it does not reach the engine.
    unreached_until_ms: Vec<u64>,
    late: Vec<Late>,
    sabotage: Sabotage,
    /// Broken promises, as sentences.
    violations: Vec<String>,
    refused: u64,
    fenced: u64,
    holes: u64,
    arrived_late: u64,
}

#[derive(Debug, Clone)]
struct Partition {
    /// Offset of the first record that is held.
    start: Offset,
    records: VecDeque<Bytes>,
    /// Everything below is safe from a crash.
    durable_end: Offset,
}

/// Records of one partition that are on their way.
#[derive(Debug)]
struct Late {
    due_ms: u64,
    visitor: Visitor,
    log: Log,
    partition: PartitionId,
    /// Where they shall stand; elsewhere a log that fences does not take them.
    at: Offset,
    records: Vec<Bytes>,
}

/// What the engine did, to be counted.
#[derive(Debug, Default)]
pub(crate) struct Deeds {
    /// Broken promises.
    pub(crate) violations: Vec<String>,
    /// In words.
    pub(crate) counts: [(&'static str, u64); 4],
}

fn index(log: Log) -> usize {
    match log {
        Log::Messages => 0,
        Log::State => 1,
    }
}

impl Partition {
    fn end(&self) -> Offset {
        self.start + self.records.len() as Offset
    }
}

impl Engine {
    /// Empty logs for so many routers; one has it for itself.
    pub(crate) fn new(rng: &mut Rng, routers: usize, sabotage: Sabotage) -> Self {
        let empty = Partition { start: 1, records: VecDeque::new(), durable_end: 1 };
        let partitions = vec![empty; usize::from(PARTITIONS)];
        Self(Arc::new(Mutex::new(State {
            partitions: [partitions.clone(), partitions],
            is_fenced: routers == 1 || rng.bool(),
            is_shared: routers > 1,
            rng: rng.fork(),
            ms: 0,
            calm: true,
            fails_until_ms: 0,
            unreached_until_ms: vec![0; routers],
            late: Vec::new(),
            sabotage,
            violations: Vec::new(),
            refused: 0,
            fenced: 0,
            holes: 0,
            arrived_late: 0,
        })))
    }

    /// Opens one of the logs.
    pub(crate) fn opener(&self, log: Log, visitor: Visitor) -> LogOpener {
        LogOpener { engine: self.clone(), log, visitor }
    }

    /// Tells the time, and whether all shall be well.
    pub(crate) fn pass(&self, ms: u64, calm: bool) {
        let mut state = self.lock();
        (state.ms, state.calm) = (ms, calm);
        state.deliver_late(|late| late.due_ms <= ms);
    }

    /// Appends fail for a while.
    pub(crate) fn fail_until(&self, ms: u64) {
        self.lock().fails_until_ms = ms;
    }

    /// A router does not reach the engine for a while.
    pub(crate) fn part_from(&self, router: usize, until_ms: u64) {
        self.lock().unreached_until_ms[router] = until_ms;
    }

    /// A router died that had the log for itself: of what was not durable the log keeps, by chance, a part.
    pub(crate) fn crash(&self) {
        let mut state = self.lock();
        let State { rng, sabotage, partitions, .. } = &mut *state;
        for partition in &mut partitions[0] {
            let durable = if *sabotage == Sabotage::LoseDurable {
                partition.start
            } else {
                partition.durable_end.clamp(partition.start, partition.end())
            };
            let end = rng.u64(durable..=partition.end());
            partition.records.truncate((end - partition.start) as usize);
            partition.durable_end = end;
        }
        state.late.clear();
    }

    /// Takes what there is to tell.
    pub(crate) fn take_deeds(&self) -> Deeds {
        let mut state = self.lock();
        let counts = [
            ("appends failed", std::mem::take(&mut state.refused)),
            ("appends fenced", std::mem::take(&mut state.fenced)),
            ("holes", std::mem::take(&mut state.holes)),
            ("appends arrived late", std::mem::take(&mut state.arrived_late)),
        ];
        Deeds { violations: std::mem::take(&mut state.violations), counts }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn deliver_late(&mut self, is_due: impl Fn(&Late) -> bool) {
        if self.late.is_empty() {
            return;
        }
        let (due, late) = std::mem::take(&mut self.late).into_iter().partition(is_due);
        self.late = late;
        let due: Vec<Late> = due;
        for Late { log, partition, at, records, .. } in due {
            let partition = &mut self.partitions[index(log)][usize::from(partition)];
            if self.is_fenced && partition.end() != at {
                continue;
            }
            self.arrived_late += 1;
            partition.records.extend(records);
        }
    }

    fn reach(&self, visitor: Visitor) -> Result<(), QueueError> {
        if self.ms < self.unreached_until_ms[visitor.router] && !self.calm {
            return Err(QueueError("the engine is not reached".to_owned()));
        }
        Ok(())
    }

    /// A batch fails: what of it is there, or will be, is left to chance.
    fn fail(&mut self, visitor: Visitor, log: Log, batch: &Batch, ends: &[Offset]) {
        let way = self.rng.u8(..4);
        for partition in 0..PARTITIONS {
            let of_partition = batch.records.iter().filter(|(other, _)| *other == partition);
            let mut records: Vec<Bytes> = of_partition.map(|(_, bytes)| bytes.clone()).collect();
            let kept = match way {
                0 => 0,
                1 => records.len(),
                _ => self.rng.usize(..=records.len()),
            };
            records.truncate(kept);
            if records.is_empty() {
                continue;
            }
            let due_ms = match way {
                3 => self.ms + self.rng.u64(..LATE_MS_MAX),
                _ => 0,
            };
            let at = ends[usize::from(partition)];
            self.late.push(Late { due_ms, visitor, log, partition, at, records });
        }
        self.deliver_late(|late| late.due_ms == 0);
    }
}

/// See [`Engine::opener`].
#[derive(Debug)]
pub(crate) struct LogOpener {
    engine: Engine,
    log: Log,
    visitor: Visitor,
}

impl Opener for LogOpener {
    fn open(&mut self) -> Result<Box<dyn Queue>, QueueError> {
        let Self { log, visitor, .. } = *self;
        let mut state = self.engine.lock();
        state.reach(visitor)?;
        if state.ms < state.fails_until_ms && !state.calm && state.rng.bool() {
            return Err(QueueError("the engine does not open".to_owned()));
        }
        state.deliver_late(|late| (late.visitor, late.log) == (visitor, log));
        for partition in &mut state.partitions[index(log)] {
            // What an opening shows has been read back.
            partition.durable_end = partition.end();
        }
        let engine = self.engine.clone();
        let ends = vec![0; usize::from(PARTITIONS)];
        Ok(Box::new(Handle { engine, log, visitor, ends, is_broken: false }))
    }
}

/// An open log.
struct Handle {
    engine: Engine,
    log: Log,
    visitor: Visitor,
    /// Where each partition ended when it was last looked at; 0: it never was.
    ends: Vec<Offset>,
    is_broken: bool,
}

impl Queue for Handle {
    fn append(&mut self, batch: &Batch, offsets: &mut Vec<Offset>) -> Result<(), QueueError> {
        offsets.clear();
        assert!(!self.is_broken, "a log that failed is opened again");
        let Self { log, visitor, ends, .. } = self;
        let (log, visitor) = (*log, *visitor);
        let mut state = self.engine.lock();
        let state = &mut *state;
        if let Err(error) = state.reach(visitor) {
            self.is_broken = true;
            return Err(error);
        }
        for (partition, _) in &batch.records {
            let (end, partition) = (&mut ends[usize::from(*partition)], usize::from(*partition));
            let actual = state.partitions[index(log)][partition].end();
            if *end == 0 || !state.is_shared {
                *end = actual;
            }
        }
        let is_stale = |(partition, _): &(PartitionId, Bytes)| {
            let place = usize::from(*partition);
            ends[place] != state.partitions[index(log)][place].end()
        };
        let is_fenced = state.is_fenced && batch.records.iter().any(is_stale);
        let fails = !state.calm && state.ms < state.fails_until_ms && state.rng.u8(..4) > 0;
        if is_fenced || fails {
            self.is_broken = true;
            let count = if is_fenced { &mut state.fenced } else { &mut state.refused };
            *count += 1;
            // Who is not alone gets nothing in; the records of other partitions may.
            state.fail(visitor, log, batch, ends);
            return Err(QueueError("the engine was told to fail".to_owned()));
        }
        for (place, bytes) in &batch.records {
            let partition = &mut state.partitions[index(log)][usize::from(*place)];
            let end = &mut ends[usize::from(*place)];
            if *end != partition.end() {
                state.holes += 1;
            }
            offsets.push(partition.end());
            partition.records.push_back(bytes.clone());
            *end = partition.end();
        }
        if batch.durable {
            for partition in &mut state.partitions[index(log)] {
                partition.durable_end = partition.end();
            }
        }
        Ok(())
    }

    fn read(
        &mut self,
        partition: PartitionId,
        from: Offset,
        bytes_max: usize,
        out: &mut Vec<Record>,
    ) -> Result<(), QueueError> {
        let mut state = self.engine.lock();
        let state = &mut *state;
        state.reach(self.visitor)?;
        let held = &state.partitions[index(self.log)][usize::from(partition)];
        let from = from.max(held.start);
        let skipped = (from - held.start) as usize;
        // About a read in four ends early.
        let count = if state.rng.u8(..4) == 0 { state.rng.usize(1..4) } else { usize::MAX };
        let mut bytes_read = 0;
        for (bytes, offset) in held.records.iter().skip(skipped).zip(from..).take(count) {
            let is_hidden = state.sabotage == Sabotage::SkipLastChange
                && (self.visitor.part, self.log) == (Part::Taker, Log::State)
                && offset + 2 == held.end();
            let bytes = if is_hidden { Bytes::new() } else { bytes.clone() };
            bytes_read += bytes.len();
            out.push(Record { offset, bytes });
            if bytes_read >= bytes_max {
                break;
            }
        }
        Ok(())
    }

    fn end(&self, partition: PartitionId) -> Offset {
        let held = self.engine.lock();
        held.partitions[index(self.log)][usize::from(partition)].end()
    }

    fn refresh(&mut self, partition: PartitionId) -> Result<Offset, QueueError> {
        let state = self.engine.lock();
        state.reach(self.visitor)?;
        let end = state.partitions[index(self.log)][usize::from(partition)].end();
        self.ends[usize::from(partition)] = end;
        Ok(end)
    }

    fn is_fenced(&self) -> bool {
        self.engine.lock().is_fenced
    }

    fn skip_to(&mut self, partition: PartitionId, next: Offset) -> Result<(), QueueError> {
        let mut state = self.engine.lock();
        let is_shared = state.is_shared;
        let held = &mut state.partitions[index(self.log)][usize::from(partition)];
        let end = held.end();
        if end >= next {
            return Ok(());
        }
        if is_shared {
            let sentence = format!("partition {partition} ends at {end}, and {next} is expected");
            state.violations.push(sentence.clone());
            return Err(QueueError(sentence));
        }
        held.records.clear();
        (held.start, held.durable_end) = (next, next);
        Ok(())
    }

    fn trim(&mut self, below: &[(PartitionId, Offset)]) -> Result<(), QueueError> {
        let mut state = self.engine.lock();
        let state = &mut *state;
        state.reach(self.visitor)?;
        for (partition, below) in below {
            let held = &mut state.partitions[index(self.log)][usize::from(*partition)];
            let below = (*below).min(held.end());
            if below > held.start && state.rng.u8(..4) > 0 {
                // The last one may stay for ever.
                let below = below - state.rng.u64(0..=1);
                held.records.drain(..(below - held.start) as usize);
                held.start = below;
            }
        }
        Ok(())
    }
}
