//! What outlives a router, and who writes it: the log with its committer, the store with its saver.
//!
//! Stands in for the threads of `queue::committer` and `server`: the same steps, on virtual time.

use std::collections::VecDeque;
use std::sync::Arc;

use fastrand::Rng;
use hawser_router::hub::{Effects, Event, Hub, HubConfig};
use hawser_router::owner::Answer;
use hawser_router::queue::committer::{Reply, Request, replay};
use hawser_router::queue::memory::{Fault, MemoryLog};
use hawser_router::queue::{Batch, Offset, Opener as _, PartitionId, Queue, Record};
use hawser_router::store::memory::MemoryStore;
use hawser_router::store::{Checkpoint, Store};

use crate::env::{Env, Sabotage};
use crate::owner::OWNERS;

/// Partitions of the log.
pub(crate) const PARTITIONS: u16 = 4;
/// Pause between two tries to open a broken log.
const REOPEN_MS: u64 = 300;

/// The machine's disk.
pub(crate) struct Disk {
    /// The log.
    pub(crate) log: MemoryLog,
    /// Per partition, the offset below which everything is safe from a crash.
    durable_end: Vec<Offset>,
    /// The store.
    pub(crate) store: Arc<MemoryStore>,
}

impl Disk {
    /// Empty.
    pub(crate) fn new() -> Self {
        Self {
            log: MemoryLog::new(PARTITIONS),
            durable_end: vec![1; usize::from(PARTITIONS)],
            store: Arc::new(MemoryStore::default()),
        }
    }

    /// The router died: of what was not durable the log keeps, by chance, a part.
    pub(crate) fn crash(&mut self, env: &mut Env) {
        let mut old = self.log.clone();
        let mut log = MemoryLog::new(PARTITIONS);
        for partition in 0..PARTITIONS {
            let mut records = read_all(&mut old, partition);
            let end = old.end(partition);
            let start = records.first().map_or(end, |record| record.offset);
            let mut durable = self.durable_end[usize::from(partition)].clamp(start, end);
            if env.sabotage == Sabotage::LoseDurable {
                durable = start;
            }
            let kept_end = env.rng.u64(durable..=end);
            records.retain(|record| record.offset < kept_end);
            log.skip_to(partition, start).expect("memory");
            let records = records.into_iter().map(|record| (partition, record.bytes)).collect();
            let batch = Batch { records, durable: true };
            log.append(&batch, &mut Vec::new()).expect("memory");
            self.durable_end[usize::from(partition)] = kept_end;
        }
        self.log = log;
        self.store.set_refuses(false);
    }

    /// Everything the store and the log know, as one Hub a partition, sorted by owner.
    pub(crate) fn recover(&self, env: &Env, config: &HubConfig) -> (Vec<Vec<Hub>>, Committer) {
        let mut queue: Box<dyn Queue> = Box::new(self.log.clone());
        let mut hubs: Vec<Vec<Hub>> = (0..OWNERS).map(|_| Vec::new()).collect();
        let mut expected = Vec::new();
        for partition in 0..PARTITIONS {
            let store: Arc<dyn Store> = Arc::<MemoryStore>::clone(&self.store);
            let mut hub = Hub::new(partition, config.clone(), store).expect("the store works");
            let mut effects = Effects::default();
            let next = replay(&mut *queue, partition, hub.applied() + 1, |record| {
                let event = Event::Replayed(record.offset, record.bytes);
                hub.apply(env.router_now(), event, &mut effects);
            });
            let next = next.expect("memory");
            queue.skip_to(partition, next).expect("memory");
            expected.push(next);
            hubs[usize::from(partition) % OWNERS].push(hub);
        }
        (hubs, Committer { queue: Some(queue), expected, ..Committer::default() })
    }
}

fn read_all(queue: &mut dyn Queue, partition: PartitionId) -> Vec<Record> {
    let mut records = Vec::new();
    replay(queue, partition, 0, |record| records.push(record)).expect("memory");
    records
}

/// The committer and the saver.
#[derive(Default)]
pub(crate) struct Committer {
    queue: Option<Box<dyn Queue>>,
    expected: Vec<Offset>,
    reopen_at_ms: u64,
    /// Asked and not answered, oldest first.
    pub(crate) requests: VecDeque<Request>,
    /// Checkpoints that are not written, with who waits for them.
    pub(crate) checkpoints: VecDeque<(usize, Checkpoint)>,
}

/// Answers to owners.
pub(crate) type Answers = Vec<(usize, Answer)>;

impl Committer {
    /// Serves some of what was asked.
    pub(crate) fn turn(&mut self, env: &mut Env, disk: &mut Disk) -> Answers {
        let mut answers = Vec::new();
        if self.queue.is_none() && self.reopen_at_ms <= env.ms {
            self.reopen(env.ms, disk, &mut answers);
        }
        if env.calm || env.rng.u8(..3) > 0 {
            self.commit(env.ms, &mut env.rng, disk, &mut answers);
        }
        if let Some((owner, checkpoint)) = self.checkpoints.pop_front_if(|_| env.rng.u8(..3) == 0) {
            let result = disk.store.commit(&checkpoint);
            answers.push((owner, Answer::Saved(checkpoint.partition, result)));
        }
        answers
    }

    /// One round: what waits, or a part of it, in one append.
    fn commit(&mut self, ms: u64, rng: &mut Rng, disk: &mut Disk, answers: &mut Answers) {
        let count = rng.usize(..=self.requests.len());
        let (mut batch, mut askers, mut trims) = (Batch::default(), Vec::new(), Vec::new());
        for request in self.requests.drain(..count) {
            match request {
                Request::Append { owner, records, durable } => {
                    askers.push((owner, records.len()));
                    batch.records.extend(records);
                    batch.durable |= durable;
                }
                Request::Trim(partition, below) => trims.push((partition, below)),
                Request::Stop => {}
            }
        }
        let mut offsets = Vec::new();
        let queue = self.queue.as_mut();
        let appended = queue.is_some_and(|queue| queue.append(&batch, &mut offsets).is_ok());
        if appended {
            self.note_durable(&batch, disk);
            let places = batch.records.iter().map(|(partition, _)| *partition).zip(offsets);
            let mut places = places.inspect(|(partition, offset)| {
                self.expected[usize::from(*partition)] = offset + 1;
            });
            for (owner, count) in askers {
                let places = places.by_ref().take(count).collect();
                answers.push((owner, Answer::Queue(Reply::Committed(places))));
            }
        } else if !askers.is_empty() {
            if self.queue.take().is_some() {
                self.reopen_at_ms = ms + REOPEN_MS;
            }
            let mut partitions = batch.records.iter().map(|(partition, _)| *partition);
            for (owner, count) in askers {
                let refused = partitions.by_ref().take(count).collect();
                answers.push((owner, Answer::Queue(Reply::Refused(refused, "broken".into()))));
            }
        }
        if let Some(queue) = &mut self.queue {
            queue.trim(&trims).expect("memory");
        }
    }

    fn note_durable(&self, batch: &Batch, disk: &mut Disk) {
        if batch.durable
            && let Some(queue) = &self.queue
        {
            for (partition, end) in (0..).zip(&mut disk.durable_end) {
                *end = queue.end(partition);
            }
        }
    }

    /// Opens the log again; owners first get what they do not know.
    fn reopen(&mut self, ms: u64, disk: &mut Disk, answers: &mut Answers) {
        let Ok(mut queue) = disk.log.open() else {
            self.reopen_at_ms = ms + REOPEN_MS;
            return;
        };
        for partition in 0..PARTITIONS {
            let index = usize::from(partition);
            let mut found = Vec::new();
            let from = self.expected[index];
            let next = replay(&mut *queue, partition, from, |record| {
                found.push((partition, record));
            });
            self.expected[index] = next.expect("memory");
            queue.skip_to(partition, self.expected[index]).expect("memory");
            if !found.is_empty() {
                answers.push((index % OWNERS, Answer::Queue(Reply::Replayed(found))));
            }
        }
        // What an opening shows has been read back from the disk.
        for (partition, end) in (0..).zip(&mut disk.durable_end) {
            *end = queue.end(partition);
        }
        self.queue = Some(queue);
    }
}

/// How the log can fail.
pub(crate) fn any_fault(rng: &mut Rng) -> Fault {
    if rng.bool() { Fault::Refuse } else { Fault::LoseAnswer }
}
