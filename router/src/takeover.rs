//! Taking a partition over: from the engine's two logs to a Hub that can serve.
//!
//! ```text
//!  state log:    opening ─► follow into the store, from where it was
//!  messages log: owner's mark ─► replay from the checkpoint ─► Hub
//! ```
//!
//! In this order: whoever owned the partition before can write no checkpoint that counts once the opening stands in the
//! state log, so it does not trim the messages log further; and what it appends to the messages log is either in front of
//! the mark, and replayed here, or behind it, where the engine refuses it or the new owner finds it as a hole.
//!
//! Runs in threads of its own, which may block; each has its own handles of both logs.

use std::sync::Arc;

use crate::hub::{Effects, Event, Hub, HubConfig, Now};
use crate::queue::{Batch, Offset, PartitionId, Queue, QueueError};
use crate::record::{Kind, OwnerRecord, Record};
use crate::state::{self, Follower, Writer};
use crate::store::{Checkpoint, StatePlace, Store, StoreError};
use crate::{limits, queue};

/// Takes partitions over, one at a time.
pub struct Takeover {
    /// Where the state log is followed into.
    pub store: Arc<dyn Store>,
    /// The messages log.
    pub messages: Box<dyn Queue>,
    /// The state log.
    pub state: Box<dyn Queue>,
    /// For the Hubs.
    pub config: HubConfig,
    /// Written into both logs.
    pub router_id: String,
}

/// A partition whose state log was opened.
#[derive(Debug, Clone, Copy)]
pub struct Opened {
    partition: PartitionId,
    /// How far the store had followed before.
    known: Option<StatePlace>,
    epoch: Offset,
}

/// A partition that can be served.
#[derive(Debug)]
pub struct Taken {
    /// Its Hub, with everything that the log has.
    pub hub: Hub,
    /// What the owner writes the state log with.
    pub writer: Writer,
    /// Offset of the next record of the state log.
    pub state_next: Offset,
    /// Offset of the next record of the messages log.
    pub messages_next: Offset,
    /// Records that were replayed.
    pub replayed: u64,
}

/// Why a partition was not taken over; a sentence. It can be tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotTaken(pub String);

impl From<QueueError> for NotTaken {
    fn from(error: QueueError) -> Self {
        Self(error.0)
    }
}

impl From<StoreError> for NotTaken {
    fn from(error: StoreError) -> Self {
        Self(error.0)
    }
}

impl Takeover {
    /// Takes one over, at this time of the wall clock in milliseconds. `seed` is drawn by the caller and counts when nobody
    /// has ever owned the partition.
    ///
    /// # Errors
    /// [`NotTaken`]; the handles may be unusable then.
    pub fn take(
        &mut self,
        partition: PartitionId,
        unix_ms: i64,
        seed: u64,
    ) -> Result<Taken, NotTaken> {
        let opened = self.open(partition, seed)?;
        self.follow(&opened)?;
        self.mark(&opened)?;
        self.finish(opened, unix_ms)
    }

    /// First step: opens the state log.
    ///
    /// # Errors
    /// As [`Takeover::take`].
    pub fn open(&mut self, partition: PartitionId, seed: u64) -> Result<Opened, NotTaken> {
        let known = self.store.place(partition)?;
        if self.state.refresh(partition)? == 1 && known.is_some() {
            let text = "the data folder was made with another cluster: give another --data-dir";
            return Err(NotTaken(text.to_owned()));
        }
        if known.is_none() && self.store.applied(partition)? > 0 {
            let text = "the data folder was made with the engine embedded: give another --data-dir";
            return Err(NotTaken(text.to_owned()));
        }
        let opening = state::opening(&self.router_id, seed);
        let epoch = append(&mut *self.state, partition, opening)?;
        Ok(Opened { partition, known, epoch })
    }

    /// Third step: the mark in the messages log.
    ///
    /// # Errors
    /// As [`Takeover::take`].
    pub fn mark(&mut self, opened: &Opened) -> Result<(), NotTaken> {
        let Opened { partition, epoch, .. } = *opened;
        self.messages.refresh(partition)?;
        let owner = OwnerRecord { epoch, router_id: self.router_id.clone() };
        let mark = Record::from(Kind::Owner(owner)).to_bytes();
        append(&mut *self.messages, partition, mark)?;
        Ok(())
    }

    /// Last step: the Hub, from the store and the messages log.
    ///
    /// # Errors
    /// As [`Takeover::take`].
    pub fn finish(&mut self, opened: Opened, unix_ms: i64) -> Result<Taken, NotTaken> {
        let Opened { partition, epoch, .. } = opened;
        let seed = self.store.seed(partition);
        let store = Arc::clone(&self.store);
        let record_bytes_max = self.messages.record_bytes_max();
        let config = HubConfig { record_bytes_max, ..self.config.clone() };
        let hub = Hub::new(partition, config, store)?.with_epoch(epoch);
        let (hub, messages_next, replayed) = self.replay(hub, unix_ms)?;
        let writer = Writer { epoch, seed };
        Ok(Taken { hub, writer, state_next: epoch + 1, messages_next, replayed })
    }

    /// Second step: brings into the store what the state log has up to this owner's opening.
    ///
    /// # Errors
    /// As [`Takeover::take`].
    pub fn follow(&mut self, opened: &Opened) -> Result<(), NotTaken> {
        let Opened { partition, known, epoch: opening } = *opened;
        let mut place = known;
        let mut follower = Follower::behind(known);
        let mut found = Vec::new();
        let mut next = known.map_or(1, |known| known.offset + 1);
        while next <= opening {
            self.state.read(partition, next, limits::REPLAY_BYTES_MAX, &mut found)?;
            if found.is_empty() {
                let text = format!("the state log ends before {opening}, which it gave out");
                return Err(NotTaken(text));
            }
            for record in found.drain(..) {
                if record.offset > next && (place.is_some() || next == 1) {
                    // What stood between is not needed: all that the partition has was written behind it.
                    self.store.wipe(partition)?;
                    place = None;
                }
                next = record.offset + 1;
                let Some(change) = follower
                    .read(partition, record.offset, &record.bytes)
                    .map_err(|reason| NotTaken(format!("partition {partition}: {reason}")))?
                else {
                    continue;
                };
                if change.whole {
                    self.store.wipe(partition)?;
                }
                self.store.commit(&change.checkpoint)?;
                place = change.checkpoint.place;
            }
        }
        // The opening itself, so that nothing is read twice.
        let seed = place.map(|place| place.seed).or(follower.seed()).unwrap_or(0);
        let applied = self.store.applied(partition)?;
        let place = Some(StatePlace { offset: opening, epoch: opening, seed });
        self.store.commit(&Checkpoint { partition, applied, place, ..Checkpoint::default() })?;
        Ok(())
    }

    /// Folds what the messages log has behind the checkpoint.
    fn replay(&mut self, mut hub: Hub, unix_ms: i64) -> Result<(Hub, Offset, u64), NotTaken> {
        let partition = hub.partition();
        let from = hub.applied() + 1;
        let now = Now { mono_ms: 0, unix_ms };
        let mut effects = Effects::default();
        let (mut replayed, mut expected) = (0, from);
        let messages = &mut *self.messages;
        let next = queue::committer::replay(messages, partition, from, |record| {
            if record.offset > expected && expected > 1 {
                let (first, last) = (expected, record.offset - 1);
                tracing::error!(partition, first, last, "the messages log has lost records");
            }
            expected = record.offset + 1;
            hub.apply(now, Event::Replayed(record.offset, record.bytes), &mut effects);
            replayed += 1;
        })?;
        if hub.is_stalled() {
            let text = "the store could not be read while the log was replayed";
            return Err(NotTaken(text.to_owned()));
        }
        if effects.deposed {
            return Err(NotTaken("another router has taken the partition over".to_owned()));
        }
        Ok((hub, next, replayed))
    }
}

fn append(
    queue: &mut dyn Queue,
    partition: PartitionId,
    record: bytes::Bytes,
) -> Result<Offset, QueueError> {
    let mut offsets = Vec::new();
    queue.append(&Batch { records: vec![(partition, record)], durable: true }, &mut offsets)?;
    offsets.first().copied().ok_or_else(|| QueueError("the log gave no offset".to_owned()))
}
