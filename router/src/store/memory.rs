//! A store in memory, for tests and simulation.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ahash::AHashMap;
use bytes::Bytes;

use super::{Accepted, Checkpoint, Dumped, StatePlace, Store, StoreError, dump_through};
use crate::queue::{Offset, PartitionId};
use crate::record::SendKey;

/// Holds what checkpoints wrote, as long as it lives.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    refuses: bool,
    applied: AHashMap<PartitionId, Offset>,
    inboxes: BTreeMap<(PartitionId, String), Bytes>,
    messages: BTreeMap<(PartitionId, String, u64), Bytes>,
    sends: BTreeMap<(PartitionId, i64, SendKey), Accepted>,
    places: AHashMap<PartitionId, StatePlace>,
}

impl MemoryStore {
    /// Makes every call fail from now on, or work again.
    pub fn set_refuses(&self, refuses: bool) {
        self.lock().refuses = refuses;
    }

    /// How many messages it holds.
    pub fn messages_held(&self) -> usize {
        self.lock().messages.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn working(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.lock();
        if state.refuses { Err(StoreError("told to refuse".to_owned())) } else { Ok(state) }
    }
}

impl Store for MemoryStore {
    fn seed(&self, partition: PartitionId) -> u64 {
        self.lock().places.get(&partition).map_or(0, |place| place.seed)
    }

    fn place(&self, partition: PartitionId) -> Result<Option<StatePlace>, StoreError> {
        Ok(self.working()?.places.get(&partition).copied())
    }

    fn applied(&self, partition: PartitionId) -> Result<Offset, StoreError> {
        Ok(self.working()?.applied.get(&partition).copied().unwrap_or(0))
    }

    fn inbox(&self, partition: PartitionId, user: &str) -> Result<Option<Bytes>, StoreError> {
        Ok(self.working()?.inboxes.get(&(partition, user.to_owned())).cloned())
    }

    fn users_after(
        &self,
        partition: PartitionId,
        after: &str,
        count: usize,
    ) -> Result<Vec<String>, StoreError> {
        let state = self.working()?;
        let after = (Bound::Excluded((partition, after.to_owned())), Bound::Unbounded);
        let users = state.inboxes.range(after).map(|(key, _)| key);
        let of_partition = users.take_while(|(other, _)| *other == partition);
        Ok(of_partition.take(count).map(|(_, user)| user.clone()).collect())
    }

    fn messages(
        &self,
        partition: PartitionId,
        user: &str,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        let state = self.working()?;
        let key = |sequence| (partition, user.to_owned(), sequence);
        let mut bytes = 0;
        let mut found = Vec::new();
        for ((_, _, sequence), message) in state.messages.range(key(range.start)..key(range.end)) {
            found.push((*sequence, message.clone()));
            bytes += message.len();
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(found)
    }

    fn send(
        &self,
        partition: PartitionId,
        key: &SendKey,
        today: i64,
    ) -> Result<Option<Accepted>, StoreError> {
        let state = self.working()?;
        let known = |day| state.sends.get(&(partition, day, *key)).copied();
        Ok([today, today - 1].into_iter().find_map(known))
    }

    fn commit(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let mut state = self.working()?;
        let partition = checkpoint.partition;
        for change in &checkpoint.inboxes {
            let user = &change.user;
            state.inboxes.insert((partition, user.clone()), Bytes::from(change.inbox.clone()));
            for (sequence, message) in &change.added {
                state.messages.insert((partition, user.clone(), *sequence), message.clone());
            }
            for sequence in change.removed.clone() {
                state.messages.remove(&(partition, user.clone(), sequence));
            }
        }
        for (key, accepted) in &checkpoint.sends {
            state.sends.insert((partition, accepted.day(), *key), *accepted);
        }
        if let Some(place) = checkpoint.place {
            state.places.insert(partition, place);
        }
        state.applied.insert(partition, checkpoint.applied);
        Ok(())
    }

    fn forget_sends(&self, today: i64) -> Result<(), StoreError> {
        self.working()?.sends.retain(|(_, day, _), _| *day >= today - 1);
        Ok(())
    }

    fn wipe(&self, partition: PartitionId) -> Result<(), StoreError> {
        let mut state = self.working()?;
        state.places.remove(&partition);
        state.applied.remove(&partition);
        state.inboxes.retain(|(other, _), _| *other != partition);
        state.messages.retain(|(other, ..), _| *other != partition);
        state.sends.retain(|(other, ..), _| *other != partition);
        Ok(())
    }

    fn dump(
        &self,
        partition: PartitionId,
        bytes_max: usize,
        each: &mut dyn FnMut(Dumped) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let of_partition =
            |((other, _, key), accepted): (&(PartitionId, i64, SendKey), &Accepted)| {
                (*other == partition).then_some(Ok((*key, *accepted)))
            };
        let sends: Vec<_> = self.working()?.sends.iter().filter_map(of_partition).collect();
        dump_through(self, partition, bytes_max, sends, each)
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract;
    use super::*;

    #[test]
    fn the_contract_holds() {
        contract::holds(&MemoryStore::default());
    }
}
