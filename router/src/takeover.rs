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
use crate::state::{self, Follower, Writer, later_owner};
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
        let end = self.state.refresh(partition)?;
        if let Some(known) = known
            && (end <= known.offset || !self.is_of_store(partition, known)?)
        {
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
        self.check_last(&opened)?;
        let writer = Writer { epoch, seed };
        Ok(Taken { hub, writer, state_next: epoch + 1, messages_next, replayed })
    }

    /// Whether the store may have been filled from this state log. Where another one has the same seed by its looks, the
    /// follower finds out.
    fn is_of_store(
        &mut self,
        partition: PartitionId,
        known: StatePlace,
    ) -> Result<bool, QueueError> {
        let mut found = Vec::new();
        self.state.read(partition, 1, 1, &mut found)?;
        let first = found.first().filter(|first| first.offset <= known.offset);
        let seed = first.and_then(|first| state::seed_of(first.offset, &first.bytes));
        Ok(seed.is_none_or(|seed| seed == known.seed))
    }

    /// Second step: brings into the store what the state log has up to this owner's opening.
    ///
    /// # Errors
    /// As [`Takeover::take`].
    pub fn follow(&mut self, opened: &Opened) -> Result<(), NotTaken> {
        let Opened { partition, known, epoch: opening } = *opened;
        let mut place = known;
        let mut follower = Follower::behind(known, self.store.applied(partition)?);
        let mut found = Vec::new();
        let mut next = known.map_or(1, |known| known.offset + 1);
        while next <= opening {
            self.state.read(partition, next, limits::REPLAY_BYTES_MAX, &mut found)?;
            if found.is_empty() {
                let text = format!("the state log ends before {opening}, which it gave out");
                return Err(NotTaken(text));
            }
            if found[0].offset > opening {
                return Err(NotTaken("another router has taken the partition over".to_owned()));
            }
            for record in found.drain(..).take_while(|record| record.offset <= opening) {
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

    /// Fails where another router has opened the state log meanwhile: its mark may be gone from the messages log with all that
    /// was in front of it, and edges would not listen to this one.
    fn check_last(&mut self, opened: &Opened) -> Result<(), NotTaken> {
        let Opened { partition, epoch, .. } = *opened;
        let next = epoch + 1;
        if self.state.refresh(partition)? > next
            && let Some(router) =
                overtaken_between(&mut *self.state, partition, epoch, next, Offset::MAX)?
        {
            return Err(NotTaken(format!("{router} has taken the partition over")));
        }
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

/// Who has taken a partition over from the owner with this epoch, as its state log tells between two offsets, the second not
/// included: the first of them.
///
/// # Errors
/// The log could not be read.
pub(crate) fn overtaken_between(
    state: &mut dyn Queue,
    partition: PartitionId,
    epoch: u64,
    mut next: Offset,
    end: Offset,
) -> Result<Option<String>, QueueError> {
    let mut found = Vec::new();
    while next < end {
        state.read(partition, next, limits::REPLAY_BYTES_MAX, &mut found)?;
        let Some(last) = found.last() else { break };
        next = last.offset + 1;
        let mut before_end = found.drain(..).filter(|record| record.offset < end);
        if let Some(router) = before_end.find_map(|record| later_owner(epoch, &record.bytes)) {
            return Ok(Some(router));
        }
    }
    Ok(None)
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

#[cfg(test)]
mod tests {
    use hawser_proto::link::Send;
    use hawser_proto::link::edge_message::Message as Inbound;
    use hawser_proto::link::router_message::Message as Outbound;

    use super::*;
    use crate::queue::Opener as _;
    use crate::queue::memory::MemoryLog;
    use crate::registry::{EdgeId, Session};
    use crate::store::Dumped;
    use crate::store::memory::MemoryStore;

    const EDGE: EdgeId = EdgeId(0);
    const NOW: Now = Now { mono_ms: 0, unix_ms: 1_000 };

    /// A cluster with one partition; routers share its logs and have a store each.
    struct World {
        messages: MemoryLog,
        state: MemoryLog,
        stores: [Arc<MemoryStore>; 2],
    }

    impl World {
        fn new() -> Self {
            let stores = [Arc::default(), Arc::default()];
            Self { messages: MemoryLog::new(1), state: MemoryLog::new(1), stores }
        }

        fn takeover(&mut self, router: usize) -> Takeover {
            let store: Arc<dyn Store> = Arc::<MemoryStore>::clone(&self.stores[router]);
            let config = HubConfig {
                window_messages: 4,
                inbox_messages_max: 100,
                inbox_age_max_ms: 1_000_000,
                memory_bytes_max: 1_000_000,
                record_bytes_max: usize::MAX,
                trace_steps_max: 0,
                tells_registry: false,
            };
            Takeover {
                store,
                messages: self.messages.open().unwrap(),
                state: self.state.open().unwrap(),
                config,
                router_id: format!("router-{router}"),
            }
        }

        fn try_take(&mut self, router: usize) -> Result<Taken, NotTaken> {
            self.takeover(router).take(0, NOW.unix_ms, 7 + router as u64)
        }

        fn take(&mut self, router: usize) -> Taken {
            self.try_take(router).unwrap()
        }

        /// Sends through a Hub, durably; gives the message id.
        fn send(&mut self, hub: &mut Hub, client_message_id: &str) -> u64 {
            let send = Send {
                connection: 1,
                ticket: 1,
                from: "alice".to_owned(),
                to_user: "bob".to_owned(),
                client_message_id: client_message_id.to_owned(),
                ..Send::default()
            };
            let mut out = Effects::default();
            hub.apply(NOW, Event::EdgeUp(EDGE, Session(1)), &mut out);
            let message = Inbound::Send(send);
            hub.apply(NOW, Event::Link { edge: EDGE, session: Session(1), message }, &mut out);
            for record in std::mem::take(&mut out.append) {
                let offset = append(&mut self.messages, 0, record).unwrap();
                hub.apply(NOW, Event::Committed(offset), &mut out);
            }
            let [(_, Outbound::SendAck(ack))] = &out.outbound[..] else { panic!("{out:?}") };
            assert_eq!(ack.failure, None);
            ack.message_id
        }

        /// Writes a checkpoint into the state log and the store, and trims the messages log, as the saver does.
        fn save(&mut self, router: usize, taken: &mut Taken) {
            let mut out = Effects::default();
            taken.hub.apply(NOW, Event::Save, &mut out);
            let mut checkpoint = out.checkpoint.take().unwrap();
            let Writer { epoch, seed } = taken.writer;
            let mut offset = 0;
            for record in taken.writer.change(&checkpoint, 10_000) {
                offset = append(&mut self.state, 0, record).unwrap();
            }
            checkpoint.place = Some(StatePlace { offset, epoch, seed });
            self.stores[router].commit(&checkpoint).unwrap();
            taken.hub.apply(NOW, Event::Saved(Ok(())), &mut out);
            self.messages.trim(&[(0, out.trim_below.unwrap())]).unwrap();
        }
    }

    #[test]
    fn what_was_sent_before_is_known_to_the_next_owner_with_or_without_a_checkpoint() {
        let mut world = World::new();
        let mut first = world.take(0);
        let saved = world.send(&mut first.hub, "1");
        world.save(0, &mut first);
        let unsaved = world.send(&mut first.hub, "2");
        let mut second = world.take(1);
        assert!(second.hub.epoch() > first.hub.epoch());
        assert_eq!(second.writer.seed, first.writer.seed);
        assert_eq!(world.send(&mut second.hub, "1"), saved);
        assert_eq!(world.send(&mut second.hub, "2"), unsaved);
        assert_ne!(world.send(&mut second.hub, "3"), unsaved);
    }

    #[test]
    fn a_router_whose_disk_is_lost_reads_everything_back() {
        let mut world = World::new();
        let mut taken = world.take(0);
        let saved = world.send(&mut taken.hub, "1");
        world.save(0, &mut taken);
        world.stores[0] = Arc::default();
        let mut taken = world.take(0);
        assert_eq!(world.send(&mut taken.hub, "1"), saved);
    }

    #[test]
    fn a_checkpoint_of_a_former_owner_does_not_count() {
        let mut world = World::new();
        let mut former = world.take(0);
        let known = world.send(&mut former.hub, "1");
        let next = world.take(1);
        // It wakes up, and writes what it believes: a partition in which everything is forgotten.
        let stale = Checkpoint { partition: 0, applied: 1_000, ..Checkpoint::default() };
        for record in former.writer.change(&stale, 10_000) {
            append(&mut world.state, 0, record).unwrap();
        }
        drop(next);
        let mut third = world.take(0);
        assert!(third.hub.applied() < 1_000);
        assert_eq!(world.send(&mut third.hub, "1"), known);
    }

    #[test]
    fn a_former_owner_finds_the_mark_of_the_next_in_the_log() {
        let mut world = World::new();
        let mut former = world.take(0).hub;
        let applied = former.applied();
        world.take(1);
        let mut found = Vec::new();
        world.messages.read(0, applied + 1, 10_000, &mut found).unwrap();
        let mut out = Effects::default();
        for record in found {
            former.apply(NOW, Event::Replayed(record.offset, record.bytes), &mut out);
        }
        assert!(out.deposed);
    }

    #[test]
    fn a_shortened_state_log_is_read_from_where_all_was_written() {
        let mut world = World::new();
        world.take(1);
        let mut first = world.take(0);
        let saved = world.send(&mut first.hub, "1");
        world.save(0, &mut first);
        let mut parts = Vec::new();
        let mut note = |part| {
            parts.push(part);
            Ok(())
        };
        world.stores[0].dump(0, 10_000, &mut note).unwrap();
        let applied = world.stores[0].applied(0).unwrap();
        for record in first.writer.whole(applied, &parts) {
            let offset = append(&mut world.state, 0, record).unwrap();
            world.state.trim(&[(0, offset)]).unwrap();
        }
        // One that has followed the log up to a place that is gone, and one that has nothing.
        let mut second = world.take(1);
        assert_eq!(world.send(&mut second.hub, "1"), saved);
        world.stores[0] = Arc::default();
        let mut third = world.take(0);
        assert_eq!(world.send(&mut third.hub, "1"), saved);
    }

    #[test]
    fn a_store_of_another_cluster_or_engine_is_refused() {
        let mut world = World::new();
        let mut taken = world.take(0);
        world.send(&mut taken.hub, "1");
        world.save(0, &mut taken);
        (world.messages, world.state) = (MemoryLog::new(1), MemoryLog::new(1));
        let NotTaken(reason) = world.try_take(0).unwrap_err();
        assert!(reason.contains("another cluster"), "{reason}");
        world.take(1);
        let NotTaken(reason) = world.try_take(0).unwrap_err();
        assert!(reason.contains("data folder"), "{reason}");
        let embedded = Checkpoint { partition: 0, applied: 5, ..Checkpoint::default() };
        world.stores[1] = Arc::default();
        world.stores[1].commit(&embedded).unwrap();
        let NotTaken(reason) = world.try_take(1).unwrap_err();
        assert!(reason.contains("embedded"), "{reason}");
    }

    #[test]
    fn one_that_was_overtaken_between_its_steps_fails_also_where_the_marks_are_trimmed() {
        let mut world = World::new();
        let mut slow = world.takeover(0);
        let opened = slow.open(0, 7).unwrap();
        let mut taken = world.take(1);
        world.send(&mut taken.hub, "1");
        world.save(1, &mut taken);
        slow.follow(&opened).unwrap();
        slow.mark(&opened).unwrap();
        let NotTaken(reason) = slow.finish(opened, 0).unwrap_err();
        assert!(reason.contains("router-1"), "{reason}");
        assert!(world.take(0).hub.epoch() > taken.hub.epoch());
    }

    #[test]
    fn one_that_was_overtaken_fails_also_where_the_others_opening_is_trimmed() {
        let mut world = World::new();
        let mut slow = world.takeover(0);
        let opened = slow.open(0, 7).unwrap();
        let mut taken = world.take(1);
        world.send(&mut taken.hub, "1");
        world.save(1, &mut taken);
        let whole = taken.writer.whole(taken.hub.applied(), &[Dumped::default()]).remove(0);
        let offset = append(&mut world.state, 0, whole).unwrap();
        world.state.trim(&[(0, offset)]).unwrap();
        slow.mark(&opened).unwrap();
        let NotTaken(reason) = slow.finish(opened, 0).unwrap_err();
        assert!(reason.contains("another router"), "{reason}");
    }
}
