//! The saver writes checkpoints, one at a time: into the store, and before that into the state log where there is one.
//!
//! A checkpoint counts as saved, and the messages log is trimmed, only when the state log has it and nobody else has
//! opened that meanwhile. Now and then all that a partition has is written into the state log, which is then trimmed
//! below: so it stays within a small multiple of what the partition holds.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};

use ahash::AHashMap;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::health::{Health, Part};
use crate::keeper::Notice;
use crate::limits;
use crate::metrics::Metrics;
use crate::owner::{Answer, SaveRequest};
use crate::queue::{Batch, Offset, Opener, PartitionId, Queue, QueueError};
use crate::state::Writer;
use crate::store::{Checkpoint, DAY_MS, Dumped, StatePlace, Store, StoreError};
use crate::takeover::overtaken_between;

/// The saver thread's state.
pub struct Saver {
    /// Where checkpoints go.
    pub store: Arc<dyn Store>,
    /// Where they go first, where other routers may take over.
    pub log: Option<StateLog>,
    /// To the owners.
    pub answers: Vec<mpsc::UnboundedSender<Answer>>,
    /// Told what is wrong.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The wall clock, in milliseconds since the epoch.
    pub unix_ms: fn() -> i64,
    /// Day on which old sends were forgotten.
    pub forgot_on: i64,
}

impl Saver {
    /// Serves requests until [`SaveRequest::Stop`], or until nobody can ask any more.
    pub fn run(mut self, requests: &Receiver<SaveRequest>) {
        loop {
            match requests.recv_timeout(limits::DUMP_INTERVAL) {
                Ok(SaveRequest::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(request) => self.handle(request),
                Err(RecvTimeoutError::Timeout) => self.dump_one(),
            }
        }
    }

    /// Serves one request.
    pub fn handle(&mut self, request: SaveRequest) {
        match request {
            SaveRequest::Write(owner, mut checkpoint) => {
                let today = (self.unix_ms)().div_euclid(DAY_MS);
                let mut result = self.write(&mut checkpoint);
                if result.is_ok() && self.forgot_on != today {
                    result = self.store.forget_sends(today);
                    self.forgot_on = today;
                }
                if result.is_ok() {
                    self.metrics.checkpoints.inc();
                }
                let problem = result.as_ref().err().map(ToString::to_string);
                self.health.set(Part::Store, problem);
                let partition = checkpoint.partition;
                let _ = self.answers[owner].send(Answer::Saved(partition, result));
                self.dump_one();
            }
            SaveRequest::Adopt(partition, writer, next) => {
                if let Some(log) = &mut self.log {
                    log.tails.insert(partition, Tail { writer, next, ..Tail::default() });
                }
            }
            SaveRequest::LetGo(partition, settled) => {
                self.log.as_mut().map(|log| log.tails.remove(&partition));
                let _ = settled.send(());
            }
            SaveRequest::Stop => {}
        }
    }

    fn write(&mut self, checkpoint: &mut Checkpoint) -> Result<(), StoreError> {
        if let Some(log) = &mut self.log {
            checkpoint.place = Some(log.write(checkpoint)?);
        }
        self.store.commit(checkpoint)
    }

    /// Writes all that a partition has, if one's state log has grown long.
    pub fn dump_one(&mut self) {
        let Some(log) = &mut self.log else { return };
        let due = log.tails.iter().find(|(_, tail)| tail.is_long(log.bytes_min));
        let Some(partition) = due.map(|(partition, _)| *partition) else { return };
        if let Err(StoreError(error)) = log.dump(partition, &*self.store) {
            tracing::warn!(partition, error, "the state log was not shortened");
            if let Some(tail) = log.tails.get_mut(&partition) {
                // Not again at once.
                tail.dump_bytes = tail.bytes;
            }
        }
    }
}

/// The state logs of the partitions that are served here.
pub struct StateLog {
    /// Opens the log after a failure.
    pub opener: Box<dyn Opener>,
    /// The open log.
    pub queue: Option<Box<dyn Queue>>,
    /// Told when another router has opened one.
    pub keeper: mpsc::UnboundedSender<Notice>,
    /// By partition.
    pub tails: AHashMap<PartitionId, Tail>,
    /// Bytes of changes, beside twice what a partition holds, after which its state log is shortened.
    pub bytes_min: usize,
}

/// The end of one state log.
#[derive(Debug, Clone, Copy)]
pub struct Tail {
    writer: Writer,
    /// Offset after the last record that this router wrote or read.
    next: Offset,
    /// Bytes written since all was written.
    bytes: usize,
    /// Bytes of all, as it was written last.
    dump_bytes: usize,
}

impl Default for Tail {
    fn default() -> Self {
        Self { writer: Writer { epoch: 0, seed: 0 }, next: 1, bytes: 0, dump_bytes: 0 }
    }
}

impl Tail {
    fn is_long(&self, bytes_min: usize) -> bool {
        self.bytes > bytes_min + 2 * self.dump_bytes
    }
}

impl StateLog {
    fn write(&mut self, checkpoint: &Checkpoint) -> Result<StatePlace, StoreError> {
        let partition = checkpoint.partition;
        let writer = self.tail(partition)?.writer;
        let records = writer.change(checkpoint, limits::STATE_RECORD_BYTES);
        let last = self.append(partition, records)?;
        Ok(StatePlace { offset: last, epoch: writer.epoch, seed: writer.seed })
    }

    fn dump(&mut self, partition: PartitionId, store: &dyn Store) -> Result<(), StoreError> {
        let mut parts: Vec<Dumped> = Vec::new();
        store.dump(partition, limits::STATE_RECORD_BYTES, &mut |part| {
            parts.push(part);
            Ok(())
        })?;
        let writer = self.tail(partition)?.writer;
        let records = writer.whole(store.applied(partition)?, &parts);
        let (count, bytes) = (records.len() as Offset, records.iter().map(Bytes::len).sum());
        let last = self.append(partition, records)?;
        if let Some(tail) = self.tails.get_mut(&partition) {
            (tail.bytes, tail.dump_bytes) = (0, bytes);
        }
        self.open()?.trim(&[(partition, last + 1 - count)]).map_err(told)
    }

    fn tail(&self, partition: PartitionId) -> Result<&Tail, StoreError> {
        let gone = || StoreError("the partition is not served here any more".to_owned());
        self.tails.get(&partition).ok_or_else(gone)
    }

    /// Appends records one behind the other, and makes sure that nobody has opened the log before them. Answers the
    /// offset of the last.
    fn append(
        &mut self,
        partition: PartitionId,
        records: Vec<Bytes>,
    ) -> Result<Offset, StoreError> {
        let bytes: usize = records.iter().map(Bytes::len).sum();
        // Behind what an append that failed may have left.
        self.look(partition)?;
        let mut last = 0;
        let mut records = records.into_iter().peekable();
        while records.peek().is_some() {
            let mut batch = Batch { records: Vec::new(), durable: true };
            let mut batch_bytes = 0;
            while batch_bytes < limits::COMMIT_BYTES_MAX
                && let Some(record) = records.next()
            {
                batch_bytes += record.len();
                batch.records.push((partition, record));
            }
            let mut offsets = Vec::new();
            if let Err(error) = self.open()?.append(&batch, &mut offsets) {
                self.queue = None;
                // Fenced, most likely: then there is an opening.
                self.look(partition)?;
                return Err(told(error));
            }
            let first = offsets.first().copied().unwrap_or(0);
            last = offsets.last().copied().unwrap_or(0);
            if first > self.tail(partition)?.next {
                self.look_until(partition, first)?;
            }
            self.note_end(partition, last + 1);
        }
        if let Some(tail) = self.tails.get_mut(&partition) {
            tail.bytes += bytes;
        }
        Ok(last)
    }

    fn note_end(&mut self, partition: PartitionId, next: Offset) {
        if let Some(tail) = self.tails.get_mut(&partition) {
            tail.next = next;
        }
    }

    fn look(&mut self, partition: PartitionId) -> Result<(), StoreError> {
        let end = self.open()?.refresh(partition).map_err(told)?;
        if end > self.tail(partition)?.next {
            self.look_until(partition, end)?;
            self.note_end(partition, end);
        }
        Ok(())
    }

    /// Reads what stands between the end that is known and `end`: what a later owner wrote means that the partition is another's.
    fn look_until(&mut self, partition: PartitionId, end: Offset) -> Result<(), StoreError> {
        let Tail { next, writer, .. } = *self.tail(partition)?;
        let log = &mut **self.open()?;
        let overtaken = overtaken_between(log, partition, writer.epoch, next, end).map_err(told)?;
        let Some(router) = overtaken else { return Ok(()) };
        let _ = self.keeper.send(Notice::Deposed(partition, writer.epoch));
        Err(StoreError(format!("{router} has taken the partition over")))
    }

    fn open(&mut self) -> Result<&mut Box<dyn Queue>, StoreError> {
        if self.queue.is_none() {
            self.queue = Some(self.opener.open().map_err(told)?);
        }
        self.queue.as_mut().ok_or_else(|| StoreError("the state log is not open".to_owned()))
    }
}

fn told(error: QueueError) -> StoreError {
    StoreError(format!("the state log: {}", error.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::memory::MemoryLog;
    use crate::state::opening;

    fn append(log: &mut MemoryLog, record: Bytes) -> Offset {
        let mut offsets = Vec::new();
        let batch = Batch { records: vec![(0, record)], durable: true };
        log.append(&batch, &mut offsets).unwrap();
        offsets[0]
    }

    /// Another router takes the partition over from one that has opened it, then `more` happens to the state log; whether the
    /// former owner can write.
    fn write_after_takeover(more: impl FnOnce(&mut MemoryLog, Writer)) -> Result<(), StoreError> {
        let mut log = MemoryLog::new(1);
        let (keeper, mut notices) = mpsc::unbounded_channel();
        let writer = Writer { epoch: append(&mut log, opening("former", 7)), seed: 7 };
        let mut former = StateLog {
            opener: Box::new(log.clone()),
            queue: None,
            keeper,
            tails: AHashMap::from([(0, Tail { writer, next: log.end(0), ..Tail::default() })]),
            bytes_min: 0,
        };
        let checkpoint = Checkpoint { partition: 0, applied: 1, ..Checkpoint::default() };
        former.write(&checkpoint).unwrap();
        let next = Writer { epoch: append(&mut log, opening("next", 7)), seed: 7 };
        more(&mut log, next);
        let end = log.end(0);
        let written = former.write(&checkpoint).map(drop);
        if written.is_err() {
            assert_eq!(log.end(0), end, "nothing was appended");
            let deposed = notices.try_recv().unwrap();
            assert!(matches!(deposed, Notice::Deposed(0, epoch) if epoch == writer.epoch));
        }
        written
    }

    #[test]
    fn a_former_owner_that_slept_writes_nothing_more() {
        let StoreError(reason) = write_after_takeover(|_, _| {}).unwrap_err();
        assert!(reason.contains("next has taken"), "{reason}");
    }

    #[test]
    fn nor_where_the_next_owner_has_trimmed_its_opening_away() {
        let shorten = |log: &mut MemoryLog, next: Writer| {
            let whole = next.whole(1, &[Dumped::default()]).remove(0);
            let offset = append(log, whole);
            log.trim(&[(0, offset)]).unwrap();
        };
        let StoreError(reason) = write_after_takeover(shorten).unwrap_err();
        assert!(reason.contains("another router has taken"), "{reason}");
    }
}
