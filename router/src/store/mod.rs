//! What outlives a checkpoint: inboxes, their undelivered messages, and the sends of the last days.
//!
//! A checkpoint of a partition is one atomic batch: after it the log below `applied` is not needed any
//! more. What a partition reads back is what its last checkpoint wrote.

#[cfg(test)]
mod contract;
pub mod disk;
pub mod memory;

use std::ops::Range;

use bytes::Bytes;

use crate::queue::{Offset, PartitionId};
use crate::record::SendKey;

/// The store could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreError(pub String);

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StoreError {}

/// A send that was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The id it got.
    pub message_id: u64,
    /// When, in milliseconds since the epoch.
    pub accepted_at_ms: i64,
}

impl Accepted {
    /// Day since the epoch on which it was accepted: its generation in the store.
    #[must_use]
    pub fn day(&self) -> i64 {
        self.accepted_at_ms.div_euclid(DAY_MS)
    }
}

/// Milliseconds of a day.
pub const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// All that changed in a partition since its last checkpoint.
#[derive(Debug, Default)]
pub struct Checkpoint {
    /// Which partition.
    pub partition: PartitionId,
    /// Offset of the last record that this state holds.
    pub applied: Offset,
    /// Inboxes that changed.
    pub inboxes: Vec<InboxChange>,
    /// Sends accepted since the last checkpoint.
    pub sends: Vec<(SendKey, Accepted)>,
}

/// One inbox in a [`Checkpoint`].
#[derive(Debug)]
pub struct InboxChange {
    /// Whose.
    pub user: String,
    /// The encoded [`InboxRecord`](crate::record::InboxRecord).
    pub inbox: Vec<u8>,
    /// Messages that the store does not hold yet.
    pub added: Vec<(u64, Bytes)>,
    /// Messages that it held and shall forget.
    pub removed: Range<u64>,
}

/// A local, transactional store. Called from many threads; reads may block for one disk access.
pub trait Store: Send + Sync {
    /// Seed of this store's [`SendKey`]s.
    fn seed(&self) -> u64;

    /// Offset up to which a partition's state is in the store; 0 when it never was.
    ///
    /// # Errors
    /// The store cannot be read.
    fn applied(&self, partition: PartitionId) -> Result<Offset, StoreError>;

    /// The inbox of a user, encoded, if it has one.
    ///
    /// # Errors
    /// The store cannot be read.
    fn inbox(&self, partition: PartitionId, user: &str) -> Result<Option<Bytes>, StoreError>;

    /// Users with an inbox, in the order of their bytes, after `after`; at most `count`.
    ///
    /// # Errors
    /// The store cannot be read.
    fn users_after(
        &self,
        partition: PartitionId,
        after: &str,
        count: usize,
    ) -> Result<Vec<String>, StoreError>;

    /// Messages of an inbox with their sequences in order, encoded, at most `range` and `bytes_max` (at
    /// least one when there is one).
    ///
    /// # Errors
    /// The store cannot be read.
    fn messages(
        &self,
        partition: PartitionId,
        user: &str,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Bytes)>, StoreError>;

    /// Whether a send was accepted on day `today` or the day before.
    ///
    /// # Errors
    /// The store cannot be read.
    fn send(&self, key: &SendKey, today: i64) -> Result<Option<Accepted>, StoreError>;

    /// Writes a checkpoint: all of it or nothing, and durable when it answers.
    ///
    /// # Errors
    /// Nothing was written, or all of it was and the answer was lost: writing it again does no harm.
    fn commit(&self, checkpoint: &Checkpoint) -> Result<(), StoreError>;

    /// Forgets the sends accepted before the day before `today`.
    ///
    /// # Errors
    /// The store cannot be written.
    fn forget_sends(&self, today: i64) -> Result<(), StoreError>;
}
