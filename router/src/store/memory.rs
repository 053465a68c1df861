//! A store in memory, for tests and simulation.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ahash::AHashMap;
use bytes::Bytes;

use super::{Accepted, Checkpoint, Store, StoreError};
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
    sends: BTreeMap<(i64, SendKey), Accepted>,
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
    fn seed(&self) -> u64 {
        0
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

    fn send(&self, key: &SendKey, today: i64) -> Result<Option<Accepted>, StoreError> {
        let state = self.working()?;
        Ok([today, today - 1].iter().find_map(|day| state.sends.get(&(*day, *key)).copied()))
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
            state.sends.insert((accepted.day(), *key), *accepted);
        }
        state.applied.insert(partition, checkpoint.applied);
        Ok(())
    }

    fn forget_sends(&self, today: i64) -> Result<(), StoreError> {
        self.working()?.sends.retain(|(day, _), _| *day >= today - 1);
        Ok(())
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
