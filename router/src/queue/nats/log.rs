//! One log of all partitions, open.

use std::time::Duration;

use async_nats::Subject;
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self, Context, ErrorCode};
use tokio::task::JoinSet;

use super::NatsEngine;
use super::pack::{Pack, pack, record_bytes_max};
use super::places::Places;
use super::reading::Ahead;
use super::trimming::Trimming;
use super::{direct, streams};
use crate::queue::{Batch, Log, Offset, PartitionId, Queue, QueueError, Record};

/// Longest wait for the servers to store one append, and for one read. A leader that died has a successor after 4 to 9 s: what
/// waits for that is told to try again.
pub(super) const APPEND_DEADLINE: Duration = Duration::from_secs(5);
const READ_DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait for all streams to be found, or made: thousands of them take a cluster a while.
const OPEN_DEADLINE: Duration = Duration::from_secs(60);
/// Streams that are asked for at a time. A cluster makes one after the other, and each has to be there before its request gives up.
const OPENING_MAX: usize = 16;

/// See [`Queue`].
pub(super) struct NatsLog {
    engine: NatsEngine,
    partitions: Vec<Partition>,
    record_bytes_max: usize,
    ahead: Ahead,
    trimming: Trimming,
    /// An append failed, and where the log ends is not known.
    is_broken: bool,
}

/// What is known of a partition's stream.
pub(super) struct Partition {
    pub(super) stream: Stream,
    subject: Subject,
    /// Offset of the next record.
    next: Offset,
    /// No offset below it is given: see [`Queue::skip_to`].
    least: Offset,
    /// Sequences of its first and last message, as far as is known. There may be none: then the first is above the last.
    pub(super) first_sequence: u64,
    pub(super) last_sequence: u64,
    pub(super) places: Places,
}

impl NatsLog {
    /// Finds or makes the streams of all partitions, and where each ends.
    pub(super) fn open(engine: NatsEngine, log: Log) -> Result<Self, QueueError> {
        let partitions = engine.block_on(OPEN_DEADLINE, open_all(&engine, log))?;
        let record_bytes_max = record_bytes_max(engine.client().max_payload());
        let (ahead, trimming) = (Ahead::default(), Trimming::default());
        Ok(Self { engine, partitions, record_bytes_max, ahead, trimming, is_broken: false })
    }

    fn check(&self, batch: &Batch) -> Result<(), QueueError> {
        if self.is_broken {
            return Err(QueueError("the log has to be opened again".to_owned()));
        }
        for (partition, bytes) in &batch.records {
            if usize::from(*partition) >= self.partitions.len() {
                return Err(QueueError::no_partition(*partition));
            }
            if bytes.len() > self.record_bytes_max {
                return Err(QueueError(format!(
                    "a record has {} bytes, and the NATS servers take {}: raise their max_payload",
                    bytes.len(),
                    self.record_bytes_max
                )));
            }
        }
        Ok(())
    }
}

impl Queue for NatsLog {
    fn append(&mut self, batch: &Batch, offsets: &mut Vec<Offset>) -> Result<(), QueueError> {
        self.check(batch)?;
        offsets.clear();
        let partitions = &mut self.partitions;
        let packs = pack(&batch.records, self.record_bytes_max, |partition| {
            let partition = &mut partitions[usize::from(partition)];
            let offset = partition.next;
            partition.next += 1;
            offsets.push(offset);
            offset
        });
        let context = self.engine.context();
        let stored = self.engine.block_on(APPEND_DEADLINE, store(context, partitions, packs));
        self.is_broken = stored.is_err();
        stored
    }

    fn read(
        &mut self,
        partition: PartitionId,
        from: Offset,
        bytes_max: usize,
        out: &mut Vec<Record>,
    ) -> Result<(), QueueError> {
        let Some(known) = self.partitions.get_mut(usize::from(partition)) else { return Ok(()) };
        if from >= known.next {
            return Ok(());
        }
        let context = self.engine.context();
        let reading = self.ahead.read(context, partition, known, from, bytes_max, out);
        self.engine.block_on(READ_DEADLINE, reading)
    }

    fn end(&self, partition: PartitionId) -> Offset {
        self.partitions.get(usize::from(partition)).map_or(1, |partition| partition.next)
    }

    fn refresh(&mut self, partition: PartitionId) -> Result<Offset, QueueError> {
        let Some(known) = self.partitions.get_mut(usize::from(partition)) else {
            return Ok(1);
        };
        let context = self.engine.context();
        self.engine.block_on(READ_DEADLINE, known.refresh(context))?;
        Ok(known.next)
    }

    fn record_bytes_max(&self) -> usize {
        self.record_bytes_max
    }

    fn skip_to(&mut self, partition: PartitionId, next: Offset) -> Result<(), QueueError> {
        if let Some(partition) = self.partitions.get_mut(usize::from(partition)) {
            partition.least = partition.least.max(next);
            partition.next = partition.next.max(next);
        }
        Ok(())
    }

    fn trim(&mut self, below: &[(PartitionId, Offset)]) -> Result<(), QueueError> {
        for (partition, below) in below {
            let Some(known) = self.partitions.get_mut(usize::from(*partition)) else { continue };
            // The last message stays: it says where the log ends.
            let Some(sequence) = known.places.at_or_before(*below) else { continue };
            if sequence > known.first_sequence {
                known.first_sequence = sequence;
                known.places.forget_below(sequence);
                self.trimming.want(known.stream.clone(), sequence);
            }
        }
        self.trimming.run(self.engine.handle());
        Ok(())
    }
}

/// Publishes packs without waiting in between, then waits for all.
async fn store(
    context: &Context,
    partitions: &mut [Partition],
    packs: Vec<(PartitionId, Pack)>,
) -> Result<(), QueueError> {
    let mut published = Vec::with_capacity(packs.len());
    for (id, pack) in packs {
        let partition = &mut partitions[usize::from(id)];
        let answer = partition.publish(context, &pack).await?;
        // Taken for stored: the next one stands behind it or nowhere.
        partition.last_sequence += 1;
        partition.places.note(pack.first, partition.last_sequence);
        published.push((id, partition.last_sequence, answer));
    }
    for (id, sequence, answer) in published {
        let name = partitions[usize::from(id)].name();
        let stored = answer.await.map_err(|error| refused(name, &error))?;
        if stored.sequence != sequence {
            return Err(taken(name));
        }
    }
    Ok(())
}

impl Partition {
    fn name(&self) -> &str {
        &self.stream.cached_info().config.name
    }

    async fn publish(
        &self,
        context: &Context,
        pack: &Pack,
    ) -> Result<PublishAckFuture, QueueError> {
        let message = PublishMessage::build()
            .payload(pack.to_payload())
            .expected_stream(self.name())
            .expected_last_sequence(self.last_sequence);
        context
            .send_publish(self.subject.clone(), message)
            .await
            .map_err(|error| refused(self.name(), &error))
    }

    /// Asks the stream's leader where it ends, and reads its last message.
    async fn refresh(&mut self, context: &Context) -> Result<(), QueueError> {
        let state = streams::info(&self.stream).await?.state;
        // Of a stream that never had a message the first is 0, and no sequence is.
        self.first_sequence = state.first_sequence.max(1);
        self.last_sequence = state.last_sequence;
        self.next = self.least;
        if state.messages == 0 {
            return Ok(());
        }
        let Some((_, last)) = self.message(context, state.last_sequence).await? else {
            return Err(QueueError(format!(
                "stream {} has lost its last message, {}",
                self.name(),
                state.last_sequence
            )));
        };
        self.places.note(last.first, state.last_sequence);
        self.next = last.end().max(self.least);
        Ok(())
    }

    /// The first message at or after a sequence, and its sequence.
    pub(super) async fn message(
        &self,
        context: &Context,
        sequence: u64,
    ) -> Result<Option<(u64, Pack)>, QueueError> {
        Ok(self.messages(context, sequence, 1, usize::MAX >> 1).await?.into_iter().next())
    }

    /// Messages at and after a sequence up to the last that is known, and their sequences: at least one when there is one.
    pub(super) async fn messages(
        &self,
        context: &Context,
        sequence: u64,
        messages_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Pack)>, QueueError> {
        if sequence > self.last_sequence {
            return Ok(Vec::new());
        }
        let name = self.name();
        // A server that is still catching up knows nothing; the leader does.
        let mut found =
            match direct::from_sequence(context, name, sequence, messages_max, bytes_max).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::debug!(%error, "asking the leader");
                    Vec::new()
                }
            };
        if found.is_empty() {
            let asked = self.stream.raw_message_builder().sequence(sequence);
            let message =
                asked.next_by_subject(self.subject.to_string()).send().await.map_err(|error| {
                    QueueError(format!("stream {name} could not be read: {error}"))
                })?;
            found.push((message.sequence, message.payload));
        }
        found
            .into_iter()
            .map(|(sequence, payload)| {
                let pack = Pack::read(payload).ok_or_else(|| {
                    QueueError(format!("message {sequence} of stream {name} is none of a router"))
                })?;
                Ok((sequence, pack))
            })
            .collect()
    }
}

async fn open_all(engine: &NatsEngine, log: Log) -> Result<Vec<Partition>, QueueError> {
    let mut opening = JoinSet::new();
    let mut partitions: Vec<(PartitionId, Partition)> = Vec::new();
    for partition in 0..engine.partitions() {
        if opening.len() >= OPENING_MAX
            && let Some(opened) = opening.join_next().await
        {
            partitions.push(joined(opened)?);
        }
        let context = engine.context().clone();
        let wanted = streams::wanted(engine.cluster(), log, partition, engine.replicas());
        opening.spawn_on(
            async move { Ok((partition, open(&context, wanted).await?)) },
            engine.handle(),
        );
    }
    while let Some(opened) = opening.join_next().await {
        partitions.push(joined(opened)?);
    }
    partitions.sort_by_key(|(partition, _)| *partition);
    Ok(partitions.into_iter().map(|(_, partition)| partition).collect())
}

fn joined<T>(
    outcome: Result<Result<T, QueueError>, tokio::task::JoinError>,
) -> Result<T, QueueError> {
    outcome.unwrap_or_else(|error| Err(QueueError(format!("the log was not opened: {error}"))))
}

async fn open(
    context: &Context,
    wanted: jetstream::stream::Config,
) -> Result<Partition, QueueError> {
    let subject = wanted.subjects.first().cloned().unwrap_or_default().into();
    let stream = streams::ensure(context, wanted).await?;
    let mut partition = Partition {
        stream,
        subject,
        next: 1,
        least: 1,
        first_sequence: 1,
        last_sequence: 0,
        places: Places::default(),
    };
    partition.refresh(context).await?;
    Ok(partition)
}

/// Why a message was not stored, or is not known to be.
fn refused(stream: &str, error: &PublishError) -> QueueError {
    match error.kind() {
        PublishErrorKind::WrongLastSequence => taken(stream),
        PublishErrorKind::StreamNotFound => {
            QueueError(format!("no NATS server leads stream {stream} at the moment"))
        }
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => QueueError(format!(
            "the NATS servers did not say in time whether stream {stream} has what was appended"
        )),
        PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::MaxAckPending
        | PublishErrorKind::MaxPayloadExceeded
        | PublishErrorKind::Other => match code(error) {
            Some(ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT) => taken(stream),
            _ => QueueError(format!("stream {stream} took nothing: {error}")),
        },
    }
}

fn taken(stream: &str) -> QueueError {
    QueueError(format!("somebody else has appended to stream {stream}: it has another owner"))
}

/// What JetStream said, where an error has that for a reason.
fn code(error: &PublishError) -> Option<ErrorCode> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<jetstream::Error>().map(jetstream::Error::error_code)
}
