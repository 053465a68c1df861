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
    /// Where the state log has it; absent where there is none.
    pub place: Option<StatePlace>,
}

/// How far a store has followed a partition's state log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatePlace {
    /// Offset of the last record of the state log that the store holds.
    pub offset: Offset,
    /// Of the owner who wrote it: where its own first record stands in the state log.
    pub epoch: Offset,
    /// Seed of the partition's [`SendKey`]s, which its first owner drew: it tells one cluster from another.
    pub seed: u64,
}

/// One inbox in a [`Checkpoint`].
#[derive(Debug, Clone)]
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
    /// Seed of a partition's [`SendKey`]s: that of its state log where there is one, else the store's own.
    fn seed(&self, partition: PartitionId) -> u64;

    /// How far a partition's state log is in the store; absent when it never was.
    ///
    /// # Errors
    /// The store cannot be read.
    fn place(&self, partition: PartitionId) -> Result<Option<StatePlace>, StoreError>;

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
    fn send(
        &self,
        partition: PartitionId,
        key: &SendKey,
        today: i64,
    ) -> Result<Option<Accepted>, StoreError>;

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

    /// Forgets all of a partition: another router had it, and its state is read anew.
    ///
    /// # Errors
    /// Part of it is forgotten, and [`Store::place`] answers `None`; doing it again does no harm.
    fn wipe(&self, partition: PartitionId) -> Result<(), StoreError>;

    /// Hands out all that a partition has, as parts of a checkpoint of about `bytes_max` bytes each.
    ///
    /// # Errors
    /// The store cannot be read.
    fn dump(
        &self,
        partition: PartitionId,
        bytes_max: usize,
        each: &mut dyn FnMut(Dumped) -> Result<(), StoreError>,
    ) -> Result<(), StoreError>;
}

/// A part of what [`Store::dump`] hands out.
#[derive(Debug, Default)]
pub struct Dumped {
    /// Inboxes; of one that is long, several parts with some of its messages each.
    pub inboxes: Vec<InboxChange>,
    /// Sends that are remembered.
    pub sends: Vec<(SendKey, Accepted)>,
    bytes: usize,
}

impl Dumped {
    /// About as much as a send takes.
    const SEND_BYTES: usize = 40;

    fn add_inbox(&mut self, user: &str, inbox: &[u8]) {
        let (user, inbox) = (user.to_owned(), inbox.to_vec());
        self.bytes += user.len() + inbox.len();
        self.inboxes.push(InboxChange { user, inbox, added: Vec::new(), removed: 0..0 });
    }

    fn add_message(&mut self, sequence: u64, message: Bytes) {
        self.bytes += message.len() + size_of::<u64>();
        if let Some(last) = self.inboxes.last_mut() {
            last.added.push((sequence, message));
        }
    }

    fn add_send(&mut self, key: SendKey, accepted: Accepted) {
        self.bytes += Self::SEND_BYTES;
        self.sends.push((key, accepted));
    }

    /// Hands the part out when it is full.
    fn hand_out_over(
        &mut self,
        bytes_max: usize,
        each: &mut dyn FnMut(Self) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if self.bytes < bytes_max { Ok(()) } else { each(std::mem::take(self)) }
    }
}

/// Writes a dump by the other calls of the store; `sends` hands out those that the partition has.
fn dump_through(
    store: &dyn Store,
    partition: PartitionId,
    bytes_max: usize,
    sends: impl IntoIterator<Item = Result<(SendKey, Accepted), StoreError>>,
    each: &mut dyn FnMut(Dumped) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    const USERS: usize = 256;
    let mut part = Dumped::default();
    let mut after = String::new();
    loop {
        let users = store.users_after(partition, &after, USERS)?;
        for user in &users {
            let Some(inbox) = store.inbox(partition, user)? else { continue };
            part.add_inbox(user, &inbox);
            let mut next = 0;
            loop {
                let page = store.messages(partition, user, next..u64::MAX, bytes_max)?;
                let Some((last, _)) = page.last() else { break };
                next = last + 1;
                for (sequence, message) in page {
                    part.add_message(sequence, message);
                    if part.bytes >= bytes_max {
                        part.hand_out_over(bytes_max, each)?;
                        part.add_inbox(user, &inbox);
                    }
                }
            }
            part.hand_out_over(bytes_max, each)?;
        }
        match users.into_iter().next_back() {
            Some(last) => after = last,
            None => break,
        }
    }
    for send in sends {
        let (key, accepted) = send?;
        part.add_send(key, accepted);
        part.hand_out_over(bytes_max, each)?;
    }
    each(part)
}
