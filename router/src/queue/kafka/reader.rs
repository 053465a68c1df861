//! Reads one log, a partition at a time: a consumer without a group, which is told where a partition ends and so never waits for
//! records that are not there.

use std::time::Duration;

use bytes::Bytes;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};

use super::client::{Trouble, told};
use super::{kafka_offset, now, offset_of};
use crate::queue::{Offset, PartitionId, QueueError, Record};

/// Longest wait for the next record of those that are there.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of one answer of a broker.
const FETCH_BYTES: &str = "4194304";
/// What may be fetched ahead of the caller, in KiB.
const AHEAD_KIB: &str = "16384";

/// Reads from one topic.
pub(super) struct Reader {
    consumer: BaseConsumer<Trouble>,
    topic: String,
    trouble: Trouble,
    /// What is being read.
    place: Option<Place>,
}

#[derive(Clone, Copy)]
struct Place {
    partition: PartitionId,
    next: Offset,
    end: Offset,
}

impl Reader {
    pub(super) fn new(mut settings: ClientConfig, topic: &str) -> Result<Self, QueueError> {
        // librdkafka asks for a name; the group is never joined.
        settings.set("group.id", format!("{topic}.readers"));
        settings.set("enable.auto.commit", "false");
        settings.set("enable.auto.offset.store", "false");
        settings.set("isolation.level", "read_uncommitted");
        // Where the log was trimmed meanwhile, from its first record.
        settings.set("auto.offset.reset", "earliest");
        settings.set("fetch.message.max.bytes", FETCH_BYTES);
        settings.set("queued.max.messages.kbytes", AHEAD_KIB);
        settings.set("check.crcs", "true");
        let trouble = Trouble::default();
        let consumer =
            settings.create_with_context(trouble.clone()).map_err(told("--kafka-option"))?;
        Ok(Self { consumer, topic: topic.to_owned(), trouble, place: None })
    }

    /// Whether the record at `from` is known to be there and comes next.
    pub(super) fn stands_at(&self, partition: PartitionId, from: Offset) -> bool {
        self.place.is_some_and(|place| place.partition == partition && place.next == from)
    }

    /// Goes to `from`; the log of the partition ends before `end`.
    pub(super) fn go(
        &mut self,
        partition: PartitionId,
        from: Offset,
        end: Offset,
    ) -> Result<(), QueueError> {
        let mut wanted = TopicPartitionList::with_capacity(1);
        let place = KafkaOffset::Offset(kafka_offset(from));
        wanted
            .add_partition_offset(&self.topic, i32::from(partition), place)
            .and_then(|()| self.consumer.assign(&wanted))
            .map_err(told("reading"))?;
        self.place = Some(Place { partition, next: from, end });
        Ok(())
    }

    /// Adds the next records to `out`, about `bytes_max` bytes of them, one at least.
    pub(super) fn take(
        &mut self,
        bytes_max: usize,
        out: &mut Vec<Record>,
    ) -> Result<(), QueueError> {
        let Some(mut place) = self.place.take() else { return Ok(()) };
        let mut bytes = 0;
        let mut heard_at = now();
        while place.next < place.end && (bytes == 0 || bytes < bytes_max) {
            let left = READ_TIMEOUT.saturating_sub(heard_at.elapsed());
            match self.consumer.poll(left) {
                Some(Ok(message)) => {
                    let offset = offset_of(message.offset());
                    if message.partition() != i32::from(place.partition) || offset < place.next {
                        continue;
                    }
                    let payload = message.payload().unwrap_or_default();
                    // An empty record counts too.
                    bytes += payload.len().max(1);
                    out.push(Record { offset, bytes: Bytes::copy_from_slice(payload) });
                    place.next = offset + 1;
                    heard_at = now();
                }
                // Leaders move, brokers come back: it goes on by itself, or not at all.
                Some(Err(error)) => self.trouble.note(&error.to_string()),
                None => {}
            }
            if heard_at.elapsed() >= READ_TIMEOUT {
                let _ = self.consumer.unassign();
                return Err(self.trouble.explain(&format!(
                    "Kafka did not give record {} of partition {} of {} within {READ_TIMEOUT:?}",
                    place.next, place.partition, self.topic
                )));
            }
        }
        if place.next < place.end {
            self.place = Some(place);
        } else {
            // Nothing is fetched for nobody.
            self.consumer.unassign().map_err(told("reading"))?;
        }
        self.trouble.clear();
        Ok(())
    }
}
