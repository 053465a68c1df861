//! The producer of one log: appends a batch and waits until every record of it is reported.
//!
//! ```text
//!            all reported                    not all within APPEND_TIMEOUT
//!  Idle ──► append ──► Idle        append ─────────────────────────► Owing ── all reported ─► Idle
//!                                    └ a record is refused ─► Spent ◄───┘
//! ```
//!
//! **Why an old record never comes after a newer one.** A batch that was given up may still be on its way: in our queue, in a
//! broker's socket, in a broker that stands still. Nobody can call it back. So a producer that owes reports is neither dropped nor
//! replaced: it goes on trying, without a limit, and the log opens again only when all is reported (`settle`). By then every record
//! is in the log or refused, and the broker knows what it has had of this producer by sequence numbers (`enable.idempotence`), so that
//! a repeated request that lies somewhere adds nothing.
//!
//! A refusal leaves a hole in those numbers, and whatever stands behind it is refused too (`enable.gapless.guarantee`): never a
//! later record without the earlier. Such a producer is spent; another takes its place when all of it is reported. Where a report
//! does not say whether the record was written, a request may still lie in a broker that stands still: then not before such a
//! broker has lost its partitions to others ([`FENCED_AFTER`]), and what it still writes is cut off again.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};

use super::client::{Trouble, say, told};
use super::topics::RECORD_OVERHEAD_BYTES;
use super::{now, offset_of};
use crate::queue::{Batch, Offset, QueueError};

/// How long an append waits for its reports.
pub(super) const APPEND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an opening waits for what is owed; the committer tries again.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);
/// After this long without a word to the controllers a broker has lost its partitions: broker.session.timeout.ms is 9 s where
/// nobody has changed it.
const FENCED_AFTER: Duration = Duration::from_secs(10);
/// How long a record waits for others of its partition, in ms, so that they travel as one.
const LINGER_MS: &str = "0.5";
/// How long a broker waits for the other copies before it says that they are too few, in ms.
const ACKS_TIMEOUT_MS: &str = "5000";

/// Writes to one topic.
pub(super) struct Writer {
    producer: ThreadedProducer<Reports>,
    topic: String,
    trouble: Trouble,
    /// When a spent producer was seen to owe nothing more.
    settled_at: Option<Instant>,
}

impl Writer {
    pub(super) fn new(
        mut settings: ClientConfig,
        topic: &str,
        record_bytes_max: usize,
    ) -> Result<Self, QueueError> {
        settings.set("acks", "all");
        settings.set("enable.idempotence", "true");
        settings.set("enable.gapless.guarantee", "true");
        // Without a limit, as above.
        settings.set("message.timeout.ms", "0");
        settings.set("request.timeout.ms", ACKS_TIMEOUT_MS);
        settings.set("linger.ms", LINGER_MS);
        settings.set("retry.backoff.max.ms", "500");
        settings.set("message.max.bytes", (record_bytes_max + RECORD_OVERHEAD_BYTES).to_string());
        // The committer bounds a batch.
        settings.set("queue.buffering.max.messages", "0");
        let trouble = Trouble::default();
        let reports = Reports { trouble: trouble.clone(), ..Reports::default() };
        let producer = settings.create_with_context(reports).map_err(told("--kafka-option"))?;
        Ok(Self { producer, topic: topic.to_owned(), trouble, settled_at: None })
    }

    /// Appends the batch, and gives the offset of every record.
    ///
    /// # Errors
    /// Not all is reported, or something was refused. The writer has to settle before the next append.
    pub(super) fn append(
        &mut self,
        batch: &Batch,
        offsets: &mut Vec<Offset>,
    ) -> Result<(), QueueError> {
        let count = batch.records.len();
        let reports = self.producer.context();
        reports.tally().begin(count);
        for (index, (partition, bytes)) in batch.records.iter().enumerate() {
            let record = BaseRecord::<(), [u8], usize>::with_opaque_to(&self.topic, index)
                .partition(i32::from(*partition))
                .payload(bytes);
            if let Err((error, _)) = self.producer.send(record) {
                let mut tally = reports.tally();
                tally.missing -= count - index;
                tally.refusal.get_or_insert_with(|| error.to_string());
                break;
            }
        }
        let tally =
            reports.wait(APPEND_TIMEOUT, |tally| tally.missing == 0 || tally.refusal.is_some());
        if let Some(refusal) = &tally.refusal {
            return Err(QueueError(format!("Kafka refused a record of {}: {refusal}", self.topic)));
        }
        if tally.missing > 0 {
            return Err(self.trouble.explain(&format!(
                "Kafka has acknowledged {} of {count} records of {} within {APPEND_TIMEOUT:?}",
                count - tally.missing,
                self.topic
            )));
        }
        offsets.extend(tally.offsets.iter().copied().map(offset_of));
        drop(tally);
        self.trouble.clear();
        Ok(())
    }

    /// Waits until nothing is on its way any more. Answers whether this writer may go on; if not, another takes its place.
    ///
    /// # Errors
    /// Something is still on its way, or may be.
    pub(super) fn settle(&mut self) -> Result<bool, QueueError> {
        let reports = self.producer.context();
        let tally = reports.wait(SETTLE_TIMEOUT, |tally| tally.missing == 0);
        if tally.missing > 0 {
            return Err(self.trouble.explain(&format!(
                "Kafka has not said yet what became of {} records of {}",
                tally.missing, self.topic
            )));
        }
        if tally.refusal.is_none() && self.producer.client().fatal_error().is_none() {
            return Ok(true);
        }
        let settled_at = *self.settled_at.get_or_insert_with(now);
        let left = FENCED_AFTER.saturating_sub(settled_at.elapsed());
        if tally.uncertain && !left.is_zero() {
            return Err(QueueError(format!(
                "what became of a record of {} is not known: its broker is given {left:.0?} to be cut off",
                self.topic
            )));
        }
        Ok(false)
    }

    /// First offset of the log of a partition, and the one after its last.
    pub(super) fn bounds(
        &self,
        partition: u16,
        timeout: Duration,
    ) -> Result<(Offset, Offset), QueueError> {
        let client = self.producer.client();
        match client.fetch_watermarks(&self.topic, i32::from(partition), timeout) {
            Ok((first, end)) => Ok((offset_of(first), offset_of(end))),
            Err(error) => {
                let sentence = format!(
                    "Kafka: where does partition {partition} of {} end: {error}",
                    self.topic
                );
                Err(self.trouble.explain(&sentence))
            }
        }
    }
}

/// What is known of the batch that was appended last.
#[derive(Default)]
struct Tally {
    /// By index in the batch, as Kafka counts.
    offsets: Vec<i64>,
    /// Reports that have not come.
    missing: usize,
    /// Why a record was refused; the first reason is the reason.
    refusal: Option<String>,
    /// A refused record may have been written all the same, or may be yet.
    uncertain: bool,
}

impl Tally {
    fn begin(&mut self, count: usize) {
        self.offsets.clear();
        self.offsets.resize(count, -1);
        self.missing = count;
        self.refusal = None;
        self.uncertain = false;
    }

    fn note(&mut self, index: usize, result: &DeliveryResult<'_>) {
        self.missing = self.missing.saturating_sub(1);
        match result {
            Ok(message) if message.offset() >= 0 => {
                if let Some(offset) = self.offsets.get_mut(index) {
                    *offset = message.offset();
                }
            }
            // Written by a request whose answer was lost, and the broker has forgotten where.
            Ok(_) => {
                self.refusal
                    .get_or_insert_with(|| "it is written, but nobody knows where".to_owned());
            }
            Err((error, _)) => {
                self.uncertain |= error.rdkafka_error_code().is_none_or(leaves_open);
                self.refusal.get_or_insert_with(|| error.to_string());
            }
        }
    }
}

/// Whether a record that was refused with this may have been written. What brokers say is final, but for two.
fn leaves_open(code: RDKafkaErrorCode) -> bool {
    let (broker, local) = (
        [RDKafkaErrorCode::NotEnoughReplicasAfterAppend, RDKafkaErrorCode::RequestTimedOut],
        [RDKafkaErrorCode::PurgeQueue, RDKafkaErrorCode::GaplessGuarantee],
    );
    // librdkafka's own codes are negative.
    broker.contains(&code) || ((code as i32) < 0 && !local.contains(&code))
}

/// Takes the reports, on the producer's own thread.
#[derive(Default)]
struct Reports {
    tally: Mutex<Tally>,
    changed: Condvar,
    trouble: Trouble,
}

impl Reports {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, timeout: Duration, is_over: impl Fn(&Tally) -> bool) -> MutexGuard<'_, Tally> {
        let waited =
            self.changed.wait_timeout_while(self.tally(), timeout, |tally| !is_over(tally));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        say(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.trouble.error(error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        let mut tally = self.tally();
        tally.note(index, result);
        if tally.missing == 0 || tally.refusal.is_some() {
            self.changed.notify_all();
        }
    }
}
