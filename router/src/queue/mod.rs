//! The durable queue: a partitioned log behind one contract.
//!
//! ```text
//! append ─► [ partition 0: 7 8 9 ] ─► durable ─► offsets
//!           [ partition 1: 3     ]
//! read(partition, from) ─► records in order          trim(partition, below) ─► forgotten
//! ```
//!
//! What every engine promises, and `contract.rs` tests:
//!
//! - **Order.** Records of a partition have offsets that count up by one from 1. The records of one batch
//!   for one partition stand in the order of the batch, after those of every batch before.
//! - **Durability.** When [`Queue::append`] answers `Ok` to a batch with `durable` set, all of it, and all
//!   that was appended before it, survives a power cut. Without `durable` it survives once a later durable
//!   batch has been answered.
//! - **Failure.** When `append` answers `Err`, nothing of the batch is acknowledged. Records of it may be
//!   in the log all the same, and a read after the next opening shows them; never a part of a record, and
//!   of a partition never a later record without the earlier. The engine may be unusable from then on: the
//!   caller drops it and opens it again.
//! - **Reading.** [`Queue::read`] gives records in order, from an offset. What was read once reads the same
//!   again until it is trimmed.
//! - **Trimming.** Records below the mark may go, at once or later or (the last one of a partition) never.
//!   Offsets are not used again, also after a restart.
//!
//! - **Others.** Several processes may have one log open. Each partition has one writer at a time, who calls
//!   [`Queue::refresh`] before its first append and from then on expects to be alone. Where another appends all
//!   the same, one of two things happens, by the engine's nature: `append` answers `Err` (it is fenced), or the
//!   offsets of two appends are not adjacent, and the hole is read.
//!
//! An engine is called from one thread, which may block in it.

pub mod committer;
#[cfg(test)]
mod contract;
pub mod embedded;
mod files;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod memory;
pub mod nats;

use bytes::Bytes;

pub use hawser_proto::partition::PartitionId;

/// Place of a record in its partition. The first record has 1; 0 means "before everything".
pub type Offset = u64;

/// Which of the two logs of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// What the Hub appends: the messages and what happens to them.
    Messages,
    /// What the owner's store holds, as far as it was saved.
    State,
}

/// What one append carries.
#[derive(Debug, Default)]
pub struct Batch {
    /// Records in order. Those of one partition need not stand together.
    pub records: Vec<(PartitionId, Bytes)>,
    /// Whether the answer has to wait until all is safe from a power cut.
    pub durable: bool,
}

/// A record as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place in the partition.
    pub offset: Offset,
    /// What was appended.
    pub bytes: Bytes,
}

/// The engine could not do it; the operator may have to act, the sender tries again later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueError(pub String);

impl std::fmt::Display for QueueError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for QueueError {}

impl QueueError {
    /// A record is for a partition that the log was not made with.
    fn no_partition(partition: PartitionId) -> Self {
        Self(format!("the log has no partition {partition}"))
    }
}

/// A partitioned log. The contract is in the module's documentation.
pub trait Queue: Send {
    /// Appends a batch and gives the offset of each record, in the order of the batch.
    ///
    /// # Errors
    /// Nothing of the batch is acknowledged; the engine has to be opened again before the next call.
    fn append(&mut self, batch: &Batch, offsets: &mut Vec<Offset>) -> Result<(), QueueError>;

    /// Adds to `out` the records of `partition` from offset `from` on, until about `bytes_max` bytes (at
    /// least one record, when there is one). An empty answer means there is nothing at or after `from`.
    /// Records below the start of the log are passed over: the first one may have a higher offset.
    ///
    /// # Errors
    /// The log could not be read; `out` may have grown.
    fn read(
        &mut self,
        partition: PartitionId,
        from: Offset,
        bytes_max: usize,
        out: &mut Vec<Record>,
    ) -> Result<(), QueueError>;

    /// Offset that the next record of `partition` will get, if nobody else appends.
    fn end(&self, partition: PartitionId) -> Offset;

    /// Looks at the end of `partition` anew, because others may have appended since; appends go on behind it. Answers
    /// [`Queue::end`].
    ///
    /// # Errors
    /// The log could not be read.
    fn refresh(&mut self, partition: PartitionId) -> Result<Offset, QueueError> {
        Ok(self.end(partition))
    }

    /// Whether the log refuses a writer who is not alone. Where it does not, what another appended is only found by looking:
    /// at the next append, which leaves a hole, or by [`Queue::refresh`].
    fn is_fenced(&self) -> bool {
        true
    }

    /// Longest record that the engine takes, in bytes. A longer one fails its whole batch.
    fn record_bytes_max(&self) -> usize {
        usize::MAX
    }

    /// Makes sure that the next record of `partition` gets an offset of at least `next`. After a power cut
    /// the log may have lost records that were appended without `durable`, while others remember their
    /// offsets; those must not be given again. Records below `next` may go.
    ///
    /// # Errors
    /// The engine cannot leave offsets out, or the log could not be written.
    fn skip_to(&mut self, partition: PartitionId, next: Offset) -> Result<(), QueueError>;

    /// Lets go of the records of each partition below the mark. Costs little; space may come back later.
    ///
    /// # Errors
    /// Some of it was not forgotten; trimming again does it.
    fn trim(&mut self, below: &[(PartitionId, Offset)]) -> Result<(), QueueError>;
}

/// Opens an engine; called again after a failure. What it answers has read back all that was acknowledged.
pub trait Opener: Send {
    /// Opens the log.
    ///
    /// # Errors
    /// A sentence for the operator; opening may be tried again.
    fn open(&mut self) -> Result<Box<dyn Queue>, QueueError>;
}
