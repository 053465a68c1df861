//! Lets go of what is not needed: DeleteRecords, one request at a time, answered while nobody waits for it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};

use super::client::Trouble;
use super::kafka_offset;
use crate::queue::{Offset, PartitionId};

type Deleting = Pin<Box<dyn Future<Output = KafkaResult<TopicPartitionList>> + Send>>;

/// The marks of one topic. A broker answers when the copies have let go too, which takes up to half a second; marks that come
/// meanwhile go with the next request, which the next trim after the answer begins.
pub(super) struct Trims {
    admin: Arc<AdminClient<Trouble>>,
    topic: String,
    /// Per partition, below which offset records may go, and below which Kafka was told so.
    marks: Vec<(Offset, Offset)>,
    deleting: Option<Deleting>,
}

impl Trims {
    pub(super) fn new(admin: Arc<AdminClient<Trouble>>, topic: &str, partitions: u16) -> Self {
        let marks = vec![(1, 1); usize::from(partitions)];
        Self { admin, topic: topic.to_owned(), marks, deleting: None }
    }

    /// Records of `partition` below `below` may go; the caller knows that the log reaches so far.
    pub(super) fn note(&mut self, partition: PartitionId, below: Offset) {
        if let Some((wanted, _)) = self.marks.get_mut(usize::from(partition)) {
            *wanted = below.max(*wanted);
        }
    }

    /// Begins what is to be done, unless it is being done. Waits for nothing.
    pub(super) fn go_on(&mut self) {
        if let Some(deleting) = &mut self.deleting {
            let mut context = Context::from_waker(Waker::noop());
            let Poll::Ready(answer) = deleting.as_mut().poll(&mut context) else { return };
            self.deleting = None;
            self.check(answer);
        }
        let mut list = TopicPartitionList::new();
        for (partition, (wanted, told)) in (0..).zip(&mut self.marks) {
            if wanted > told {
                let below = KafkaOffset::Offset(kafka_offset(*wanted));
                if list.add_partition_offset(&self.topic, partition, below).is_ok() {
                    *told = *wanted;
                }
            }
        }
        if list.count() > 0 {
            self.deleting = Some(Box::pin(self.admin.delete_records(&list, &AdminOptions::new())));
        }
    }

    /// What was not deleted is told again with the next request.
    fn check(&mut self, answer: KafkaResult<TopicPartitionList>) {
        match answer {
            Ok(list) => {
                for element in list.elements() {
                    let Err(error) = element.error() else { continue };
                    tracing::debug!(%error, partition = element.partition(), "a log was not trimmed");
                    let index = usize::try_from(element.partition()).unwrap_or(usize::MAX);
                    if let Some((_, told)) = self.marks.get_mut(index) {
                        *told = 1;
                    }
                }
            }
            Err(error) => {
                tracing::debug!(%error, topic = self.topic, "nothing was trimmed");
                for (_, told) in &mut self.marks {
                    *told = 1;
                }
            }
        }
    }
}
