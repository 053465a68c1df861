//! The engine `kafka`: a topic for each of the two logs, a Kafka partition for each of ours.
//!
//! ```text
//! append ─► writer ─ acks=all ─► topic CLUSTER.messages or CLUSTER.state ─► reader ─► read
//!                                offset = Kafka's + 1
//! ```
//!
//! - A record is acknowledged when all copies that keep up have it, and `min.insync.replicas` of them at least. That is what a
//!   power cut of one machine leaves whole; where one broker may be alone with a record, it has to sync it (`topics`).
//! - Kafka keeps nobody out: where two routers append to one partition, their records stand in one order that both read, and each
//!   finds that its offsets are not adjacent.
//! - What a failed append has left on its way is in the log, or refused for good, before the log opens again (`writer`).
//! - Offsets cannot be left out, and need not be: what has got one is acknowledged by the copies, or nobody knows of it.

mod client;
mod reader;
#[cfg(test)]
mod tests;
mod topics;
mod trims;
mod writer;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::AdminClient;

use self::client::told;
pub(crate) use self::client::{Trouble, settings};
use self::reader::Reader;
use self::trims::Trims;
use self::writer::Writer;
use super::{Batch, Log, Offset, Opener, PartitionId, Queue, QueueError, Record};
use crate::config::kafka::KafkaConfig;

/// Longest wait for a broker to say where a partition ends.
const BOUNDS_TIMEOUT: Duration = Duration::from_secs(2);
/// Name of our clients in the brokers' logs and quotas.
const CLIENT_ID: &str = "hawser-router";

/// The topics of a cluster of routers. Clones share what is open.
#[derive(Clone)]
pub struct KafkaEngine(Arc<Inner>);

struct Inner {
    config: KafkaConfig,
    cluster: String,
    partitions: u16,
    admin: Arc<AdminClient<Trouble>>,
    /// Per log.
    record_bytes_max: [usize; 2],
}

impl std::fmt::Debug for KafkaEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaEngine").field("cluster", &self.0.cluster).finish_non_exhaustive()
    }
}

impl KafkaEngine {
    /// Finds the brokers; makes both topics, or looks at those that are there. What `cluster` names is shared by all routers that have
    /// the same, with one number of partitions. Blocks for seconds where the brokers do not answer.
    ///
    /// # Errors
    /// A sentence: no broker answers, there are too few of them, a topic has the wrong settings. May be tried again.
    pub fn connect(
        config: &KafkaConfig,
        cluster: &str,
        partitions: u16,
    ) -> Result<Self, QueueError> {
        let admin: AdminClient<Trouble> = settings(config, CLIENT_ID)
            .create_with_context(Trouble::default())
            .map_err(told("--kafka-option"))?;
        let prepare = |log| topics::prepare(&admin, config, &topic(cluster, log), partitions);
        let record_bytes_max = [prepare(Log::Messages)?, prepare(Log::State)?];
        let admin = Arc::new(admin);
        let (config, cluster) = (config.clone(), cluster.to_owned());
        Ok(Self(Arc::new(Inner { config, cluster, partitions, admin, record_bytes_max })))
    }

    /// Opens one of the logs, as often as needed.
    #[must_use]
    pub fn opener(&self, log: Log) -> KafkaOpener {
        KafkaOpener { engine: self.clone(), log, left: Arc::default() }
    }
}

/// Name of the topic of a log.
pub(crate) fn topic(cluster: &str, log: Log) -> String {
    match log {
        Log::Messages => format!("{cluster}.messages"),
        Log::State => format!("{cluster}.state"),
    }
}

/// Opens one log.
pub struct KafkaOpener {
    engine: KafkaEngine,
    log: Log,
    /// The writer of the queue that was dropped last.
    left: Arc<Mutex<Option<Writer>>>,
}

impl std::fmt::Debug for KafkaOpener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaOpener").field("log", &self.log).finish_non_exhaustive()
    }
}

impl KafkaOpener {
    /// The writer that was left when it owes nothing and may go on, or a new one.
    fn writer(&self, topic: &str, record_bytes_max: usize) -> Result<Writer, QueueError> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = &mut *left {
            let may_go_on = writer.settle()?;
            if let Some(writer) = left.take().filter(|_| may_go_on) {
                return Ok(writer);
            }
        }
        let inner = &self.engine.0;
        Writer::new(settings(&inner.config, CLIENT_ID), topic, record_bytes_max)
    }
}

impl Opener for KafkaOpener {
    fn open(&mut self) -> Result<Box<dyn Queue>, QueueError> {
        let inner = &self.engine.0;
        let topic = topic(&inner.cluster, self.log);
        let record_bytes_max = inner.record_bytes_max[self.log as usize];
        let mut queue = KafkaLog {
            writer: Some(self.writer(&topic, record_bytes_max)?),
            left: Arc::clone(&self.left),
            reader: None,
            ends: vec![1; usize::from(inner.partitions)],
            trims: Trims::new(Arc::clone(&inner.admin), &topic, inner.partitions),
            record_bytes_max,
            engine: self.engine.clone(),
            topic,
        };
        (0..inner.partitions).try_for_each(|partition| queue.refresh(partition).map(drop))?;
        Ok(Box::new(queue))
    }
}

struct KafkaLog {
    engine: KafkaEngine,
    topic: String,
    /// There until it is dropped.
    writer: Option<Writer>,
    /// Where the writer is left.
    left: Arc<Mutex<Option<Writer>>>,
    /// Made when there is something to read.
    reader: Option<Reader>,
    /// Per partition, the offset of the next record, as far as this instance knows.
    ends: Vec<Offset>,
    trims: Trims,
    record_bytes_max: usize,
}

impl KafkaLog {
    fn writer(&mut self) -> Result<&mut Writer, QueueError> {
        self.writer.as_mut().ok_or_else(|| QueueError("the log is closed".to_owned()))
    }

    fn end_of(&mut self, partition: PartitionId) -> Result<&mut Offset, QueueError> {
        self.ends.get_mut(usize::from(partition)).ok_or_else(|| QueueError::no_partition(partition))
    }

    /// First offset of a partition and the one after its last, from its leader.
    fn look(&mut self, partition: PartitionId) -> Result<(Offset, Offset), QueueError> {
        let known = *self.end_of(partition)?;
        let (first, end) = self.writer()?.bounds(partition, BOUNDS_TIMEOUT)?;
        if end < known {
            return Err(lost(&self.topic, partition, end, known));
        }
        *self.end_of(partition)? = end;
        Ok((first, end))
    }

    fn check(&self, batch: &Batch) -> Result<(), QueueError> {
        for (partition, bytes) in &batch.records {
            if usize::from(*partition) >= self.ends.len() {
                return Err(QueueError::no_partition(*partition));
            }
            if bytes.len() > self.record_bytes_max {
                return Err(QueueError(format!(
                    "a record of {} bytes is longer than the {} that topic {} takes (max.message.bytes)",
                    bytes.len(),
                    self.record_bytes_max,
                    self.topic
                )));
            }
        }
        Ok(())
    }
}

impl Queue for KafkaLog {
    fn append(&mut self, batch: &Batch, offsets: &mut Vec<Offset>) -> Result<(), QueueError> {
        offsets.clear();
        self.check(batch)?;
        self.writer()?.append(batch, offsets)?;
        for ((partition, _), offset) in batch.records.iter().zip(&*offsets) {
            let end = self.end_of(*partition)?;
            *end = (*end).max(offset + 1);
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
        if !self.reader.as_ref().is_some_and(|reader| reader.stands_at(partition, from)) {
            let (first, end) = self.look(partition)?;
            let from = from.max(first);
            if from >= end {
                return Ok(());
            }
            if self.reader.is_none() {
                self.reader =
                    Some(Reader::new(settings(&self.engine.0.config, CLIENT_ID), &self.topic)?);
            }
            if let Some(reader) = &mut self.reader {
                reader.go(partition, from, end)?;
            }
        }
        self.reader.as_mut().map_or(Ok(()), |reader| reader.take(bytes_max, out))
    }

    fn end(&self, partition: PartitionId) -> Offset {
        self.ends.get(usize::from(partition)).copied().unwrap_or(1)
    }

    fn refresh(&mut self, partition: PartitionId) -> Result<Offset, QueueError> {
        self.look(partition).map(|(_, end)| end)
    }

    fn record_bytes_max(&self) -> usize {
        self.record_bytes_max
    }

    fn skip_to(&mut self, partition: PartitionId, next: Offset) -> Result<(), QueueError> {
        if *self.end_of(partition)? >= next {
            return Ok(());
        }
        let end = self.refresh(partition)?;
        if end < next { Err(lost(&self.topic, partition, end, next)) } else { Ok(()) }
    }

    fn trim(&mut self, below: &[(PartitionId, Offset)]) -> Result<(), QueueError> {
        for (partition, below) in below {
            let end = *self.end_of(*partition)?;
            self.trims.note(*partition, (*below).min(end));
        }
        self.trims.go_on();
        Ok(())
    }
}

impl Drop for KafkaLog {
    fn drop(&mut self) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = self.writer.take();
    }
}

fn lost(topic: &str, partition: PartitionId, end: Offset, known: Offset) -> QueueError {
    QueueError(format!(
        "topic {topic} has lost records: partition {partition} ends at {end}, and {known} was the next offset; \
         a broker that has them may come back, or the topic was made anew"
    ))
}

/// Our offset of a record: Kafka counts from 0.
fn offset_of(kafka: i64) -> Offset {
    u64::try_from(kafka).unwrap_or(0) + 1
}

/// Kafka's offset of a record.
fn kafka_offset(offset: Offset) -> i64 {
    i64::try_from(offset.saturating_sub(1)).unwrap_or(i64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "an engine is the rim: it waits by the clock")]
fn now() -> Instant {
    Instant::now()
}
