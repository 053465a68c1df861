//! The store on disk: one fjall database.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `meta` | `format`, `partitions`, `seed` | little-endian numbers |
//! | `meta` | `applied/` partition (u16) | offset (u64) |
//! | `meta` | `place/` partition (u16) | [`StatePlace`]: offset, epoch, seed (u64 each) |
//! | `inboxes` | partition (u16), user | [`InboxRecord`](crate::record::InboxRecord) |
//! | `messages` | partition (u16), length of user (u8), user, sequence (u64) | [`MessageRecord`](crate::record::MessageRecord) |
//! | `sends-DAY` | partition (u16), [`SendKey`] | message id (u64), accepted at (i64) |
//!
//! Numbers in keys and values are big-endian unless said otherwise. Sends have a keyspace a day, so that
//! forgetting them is dropping one. A fjall database that failed to write stays poisoned; it is opened
//! again at the next commit.
//!
//! Memory is bounded whatever is stored: the tables in memory by their sizes below, and everything that is read, also
//! the indexes and filters of tables on disk, lies in one cache. A keyspace keeps the options it was made with.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use fjall::compaction::Leveled;
use fjall::config::{PartitioningPolicy, PinningPolicy};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};

use super::{Accepted, Checkpoint, Dumped, StatePlace, Store, StoreError, dump_through};
use crate::queue::{Offset, PartitionId};
use crate::record::SendKey;

/// Version of the layout above.
const FORMAT: u64 = 2;
/// Most that fjall's journals may take, in bytes, before it flushes what they hold.
const JOURNAL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// What changed in a keyspace is held in memory up to so many bytes, by fjall's count, then written as a table. While that
/// is written as many may gather again, and the allocator takes half as much on top.
///
/// Inboxes: small, because a million devices that are recorded for the first time would fill any.
const INBOXES_TABLE_BYTES: u64 = 256 * 1024;
/// An offset a partition, but each checkpoint's is one entry more.
const META_TABLE_BYTES: u64 = 64 * 1024;
/// Messages and sends: filled by traffic alone, which at full speed writes one a second.
const TRAFFIC_TABLE_BYTES: u64 = 32 * 1024 * 1024;
/// Tables on disk are this many times larger than those in memory: each time four of these have gathered they are merged
/// with the first level, four tables, so that is how often an entry is written there.
const TABLE_RATIO: u64 = 8;
const SENDS_PREFIX: &str = "sends-";

/// Why a store was not opened.
#[derive(Debug)]
pub enum OpenError {
    /// It was made with another number of partitions.
    Partitions {
        /// What the store has.
        stored: u64,
    },
    /// A release wrote it whose layout this one does not know.
    Format {
        /// What the store has.
        stored: u64,
    },
    /// It could not be read or made.
    Failed(StoreError),
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl From<fjall::Error> for OpenError {
    fn from(error: fjall::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl From<fjall::Error> for StoreError {
    fn from(error: fjall::Error) -> Self {
        Self(format!("the store failed: {error}"))
    }
}

/// The store in a folder.
pub struct DiskStore {
    folder: PathBuf,
    seed: u64,
    cache_bytes: u64,
    open: RwLock<Option<Open>>,
    /// Set by a failed write: the next commit opens the database again.
    broken: Mutex<bool>,
}

impl std::fmt::Debug for DiskStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskStore").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl DiskStore {
    /// Opens the store in `folder`, or makes one for `partitions` partitions with `seed`. Of what was read lately it keeps
    /// up to `cache_bytes` in memory.
    ///
    /// # Errors
    /// The store belongs to another configuration or release, or the disk refused.
    pub fn open(
        folder: &Path,
        partitions: u16,
        seed: u64,
        cache_bytes: u64,
    ) -> Result<Self, OpenError> {
        let open = Open::new(folder, cache_bytes)?;
        let meta = &open.meta;
        if meta.get("format")?.is_none() {
            let mut batch = open.database.batch().durability(Some(PersistMode::SyncAll));
            batch.insert(meta, "partitions", u64::from(partitions).to_le_bytes());
            batch.insert(meta, "seed", seed.to_le_bytes());
            batch.insert(meta, "format", FORMAT.to_le_bytes());
            batch.commit()?;
        }
        let number = |key: &str| -> Result<u64, OpenError> {
            let value = meta.get(key)?;
            let bytes = value.as_deref().and_then(|value| value.first_chunk::<8>());
            bytes
                .map(|bytes| u64::from_le_bytes(*bytes))
                .ok_or_else(|| StoreError(format!("the store lacks its {key}")).into())
        };
        let (format, stored) = (number("format")?, number("partitions")?);
        if format != FORMAT {
            return Err(OpenError::Format { stored: format });
        }
        if stored != u64::from(partitions) {
            return Err(OpenError::Partitions { stored });
        }
        let seed = number("seed")?;
        Ok(Self {
            folder: folder.to_owned(),
            seed,
            cache_bytes,
            open: RwLock::new(Some(open)),
            broken: Mutex::new(false),
        })
    }

    fn working(&self) -> Result<Working<'_>, StoreError> {
        let guard = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            return Err(StoreError("the store is not open".to_owned()));
        }
        Ok(Working(guard))
    }

    /// Opens the database again after a failed write.
    fn mend(&self) -> Result<(), StoreError> {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        if !*broken {
            return Ok(());
        }
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        // First gone, then opened: the database locks its folder.
        *open = None;
        *open = Some(Open::new(&self.folder, self.cache_bytes)?);
        *broken = false;
        Ok(())
    }

    fn note<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if result.is_err() {
            *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        }
        result
    }
}

impl Store for DiskStore {
    fn seed(&self, partition: PartitionId) -> u64 {
        self.place(partition).ok().flatten().map_or(self.seed, |place| place.seed)
    }

    fn place(&self, partition: PartitionId) -> Result<Option<StatePlace>, StoreError> {
        let value = self.working()?.get().meta.get(place_key(partition))?;
        Ok(value.as_deref().and_then(numbers).map(|[offset, epoch, seed]| StatePlace {
            offset,
            epoch,
            seed,
        }))
    }

    fn applied(&self, partition: PartitionId) -> Result<Offset, StoreError> {
        let value = self.working()?.get().meta.get(applied_key(partition))?;
        Ok(value
            .as_deref()
            .and_then(|value| value.first_chunk::<8>())
            .map_or(0, |bytes| u64::from_be_bytes(*bytes)))
    }

    fn inbox(&self, partition: PartitionId, user: &str) -> Result<Option<Bytes>, StoreError> {
        let value = self.working()?.get().inboxes.get(inbox_key(partition, user))?;
        Ok(value.map(Bytes::from))
    }

    fn users_after(
        &self,
        partition: PartitionId,
        after: &str,
        count: usize,
    ) -> Result<Vec<String>, StoreError> {
        let first = Bound::Excluded(inbox_key(partition, after));
        // The key of the next partition; the last one has no next, and nothing behind it.
        let end = Bound::Excluded(inbox_key(partition.saturating_add(1), ""));
        let mut users = Vec::new();
        for pair in self.working()?.get().inboxes.range((first, end)).take(count) {
            let key = pair.key()?;
            let user = key.get(size_of::<PartitionId>()..).unwrap_or_default();
            users.push(String::from_utf8_lossy(user).into_owned());
        }
        Ok(users)
    }

    fn messages(
        &self,
        partition: PartitionId,
        user: &str,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        let working = self.working()?;
        let key = |sequence| message_key(partition, user, sequence);
        let mut bytes = 0;
        let mut found = Vec::new();
        for pair in working.get().messages.range(key(range.start)..key(range.end)) {
            let (key, message) = pair.into_inner()?;
            let Some(sequence) = key.last_chunk::<8>() else { continue };
            bytes += message.len();
            found.push((u64::from_be_bytes(*sequence), Bytes::from(message)));
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
        let working = self.working()?;
        let sends = working.get().sends.read().unwrap_or_else(PoisonError::into_inner);
        for day in [today, today - 1] {
            let Some(keyspace) = sends.get(&day) else { continue };
            if let Some(value) = keyspace.get(send_key(partition, key))? {
                return Ok(decode_accepted(&value));
            }
        }
        Ok(None)
    }

    fn commit(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        self.mend()?;
        let working = self.working()?;
        self.note(working.get().commit(checkpoint))
    }

    fn forget_sends(&self, today: i64) -> Result<(), StoreError> {
        let working = self.working()?;
        self.note(working.get().forget_sends(today))
    }

    fn wipe(&self, partition: PartitionId) -> Result<(), StoreError> {
        self.mend()?;
        let working = self.working()?;
        self.note(working.get().wipe(partition))
    }

    fn dump(
        &self,
        partition: PartitionId,
        bytes_max: usize,
        each: &mut dyn FnMut(Dumped) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let working = self.working()?;
        let keyspaces: Vec<Keyspace> = {
            let sends = working.get().sends.read().unwrap_or_else(PoisonError::into_inner);
            sends.values().cloned().collect()
        };
        let stored = keyspaces.iter().flat_map(|sends| sends.range(keys_of(partition)));
        let sends = stored.filter_map(|pair| match pair.into_inner() {
            Ok((key, value)) => {
                let key = SendKey(*key.get(size_of::<PartitionId>()..)?.first_chunk()?);
                Some(Ok((key, decode_accepted(&value)?)))
            }
            Err(error) => Some(Err(error.into())),
        });
        dump_through(self, partition, bytes_max, sends, each)
    }
}

struct Working<'a>(RwLockReadGuard<'a, Option<Open>>);

impl Working<'_> {
    fn get(&self) -> &Open {
        match self.0.as_ref() {
            Some(open) => open,
            None => unreachable!("checked when the guard was taken"),
        }
    }
}

/// The open database and its keyspaces.
struct Open {
    database: Database,
    meta: Keyspace,
    inboxes: Keyspace,
    messages: Keyspace,
    /// By day since the epoch.
    sends: RwLock<BTreeMap<i64, Keyspace>>,
}

impl Open {
    fn new(folder: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        let database = Database::builder(folder)
            .manual_journal_persist(true)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .cache_size(cache_bytes)
            .worker_threads(1)
            .open()?;
        let keyspace = |name: &str, table_bytes| database.keyspace(name, || options(table_bytes));
        let meta = keyspace("meta", META_TABLE_BYTES)?;
        let inboxes = keyspace("inboxes", INBOXES_TABLE_BYTES)?;
        let messages = keyspace("messages", TRAFFIC_TABLE_BYTES)?;
        let mut sends = BTreeMap::new();
        for name in database.list_keyspace_names() {
            if let Some(day) = name.strip_prefix(SENDS_PREFIX).and_then(|day| day.parse().ok()) {
                sends.insert(day, keyspace(&name, TRAFFIC_TABLE_BYTES)?);
            }
        }
        Ok(Self { database, meta, inboxes, messages, sends: RwLock::new(sends) })
    }

    fn commit(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let partition = checkpoint.partition;
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        for change in &checkpoint.inboxes {
            let user = change.user.as_str();
            batch.insert(&self.inboxes, inbox_key(partition, user), change.inbox.as_slice());
            for (sequence, message) in &change.added {
                let key = message_key(partition, user, *sequence);
                batch.insert(&self.messages, key, message.clone());
            }
            for sequence in change.removed.clone() {
                batch.remove(&self.messages, message_key(partition, user, sequence));
            }
        }
        self.put_sends(&mut batch, partition, &checkpoint.sends)?;
        if let Some(StatePlace { offset, epoch, seed }) = checkpoint.place {
            let value = [offset, epoch, seed].map(u64::to_be_bytes).concat();
            batch.insert(&self.meta, place_key(partition), value);
        }
        batch.insert(&self.meta, applied_key(partition), checkpoint.applied.to_be_bytes());
        batch.commit()?;
        Ok(())
    }

    fn put_sends(
        &self,
        batch: &mut OwnedWriteBatch,
        partition: PartitionId,
        sends: &[(SendKey, Accepted)],
    ) -> Result<(), StoreError> {
        for of_one_day in sends.chunk_by(|(_, one), (_, other)| one.day() == other.day()) {
            let keyspace = self.sends_of(of_one_day[0].1.day())?;
            for (key, accepted) in of_one_day {
                batch.insert(&keyspace, send_key(partition, key), encode_accepted(accepted));
            }
        }
        Ok(())
    }

    fn sends_of(&self, day: i64) -> Result<Keyspace, StoreError> {
        let known = self.sends.read().unwrap_or_else(PoisonError::into_inner).get(&day).cloned();
        if let Some(keyspace) = known {
            return Ok(keyspace);
        }
        let name = format!("{SENDS_PREFIX}{day}");
        let keyspace = self.database.keyspace(&name, || options(TRAFFIC_TABLE_BYTES))?;
        let mut sends = self.sends.write().unwrap_or_else(PoisonError::into_inner);
        Ok(sends.entry(day).or_insert(keyspace).clone())
    }

    fn forget_sends(&self, today: i64) -> Result<(), StoreError> {
        let mut sends = self.sends.write().unwrap_or_else(PoisonError::into_inner);
        while let Some(oldest) = sends.first_entry().filter(|oldest| *oldest.key() < today - 1) {
            self.database.delete_keyspace(oldest.remove())?;
        }
        Ok(())
    }

    fn wipe(&self, partition: PartitionId) -> Result<(), StoreError> {
        const KEYS: usize = 10_000;
        // First what says that there is anything.
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        batch.remove(&self.meta, place_key(partition));
        batch.remove(&self.meta, applied_key(partition));
        batch.commit()?;
        let sends: Vec<Keyspace> = {
            let sends = self.sends.read().unwrap_or_else(PoisonError::into_inner);
            sends.values().cloned().collect()
        };
        for keyspace in [&self.inboxes, &self.messages].into_iter().chain(&sends) {
            loop {
                let pairs = keyspace.range(keys_of(partition)).take(KEYS);
                let keys = pairs.map(|pair| pair.key()).collect::<Result<Vec<_>, _>>()?;
                let mut batch = self.database.batch();
                let count = keys.len();
                keys.into_iter().for_each(|key| batch.remove(keyspace, key));
                batch.commit()?;
                if count < KEYS {
                    break;
                }
            }
        }
        self.database.persist(PersistMode::SyncData)?;
        Ok(())
    }
}

/// Options of a keyspace that is made with tables in memory of `table_bytes`.
fn options(table_bytes: u64) -> KeyspaceCreateOptions {
    let tables = Leveled::default().with_table_target_size(table_bytes * TABLE_RATIO);
    KeyspaceCreateOptions::default()
        .max_memtable_size(table_bytes)
        .compaction_strategy(Arc::new(tables))
        // Indexes and filters in blocks of the cache, none outside of it.
        .index_block_partitioning_policy(PartitioningPolicy::all(true))
        .filter_block_partitioning_policy(PartitioningPolicy::all(true))
        .index_block_pinning_policy(PinningPolicy::disabled())
        .filter_block_pinning_policy(PinningPolicy::disabled())
}

fn applied_key(partition: PartitionId) -> Vec<u8> {
    [b"applied/".as_slice(), &partition.to_be_bytes()].concat()
}

fn place_key(partition: PartitionId) -> Vec<u8> {
    [b"place/".as_slice(), &partition.to_be_bytes()].concat()
}

fn send_key(partition: PartitionId, key: &SendKey) -> Vec<u8> {
    [partition.to_be_bytes().as_slice(), &key.0].concat()
}

/// The keys that begin with a partition; there are never so many that the next has no number.
fn keys_of(partition: PartitionId) -> Range<[u8; 2]> {
    partition.to_be_bytes()..(partition + 1).to_be_bytes()
}

fn inbox_key(partition: PartitionId, user: &str) -> Vec<u8> {
    [partition.to_be_bytes().as_slice(), user.as_bytes()].concat()
}

fn message_key(partition: PartitionId, user: &str, sequence: u64) -> Vec<u8> {
    let length = [user.len() as u8];
    [partition.to_be_bytes().as_slice(), &length, user.as_bytes(), &sequence.to_be_bytes()].concat()
}

fn encode_accepted(accepted: &Accepted) -> [u8; 16] {
    let mut value = [0; 16];
    value[..8].copy_from_slice(&accepted.message_id.to_be_bytes());
    value[8..].copy_from_slice(&accepted.accepted_at_ms.to_be_bytes());
    value
}

fn decode_accepted(value: &[u8]) -> Option<Accepted> {
    let [message_id, accepted_at_ms] = numbers(value)?;
    Some(Accepted { message_id, accepted_at_ms: accepted_at_ms.cast_signed() })
}

/// The numbers that stand in a value.
fn numbers<const N: usize>(value: &[u8]) -> Option<[u64; N]> {
    let (numbers, _) = value.as_chunks::<8>();
    Some(numbers.first_chunk::<N>()?.map(u64::from_be_bytes))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::{InboxChange, contract};
    use super::*;

    const CACHE_BYTES: u64 = 1024 * 1024;

    fn open(folder: &TempDir, partitions: u16) -> Result<DiskStore, OpenError> {
        DiskStore::open(folder.path(), partitions, 7, CACHE_BYTES)
    }

    fn checkpoint(applied: Offset) -> Checkpoint {
        let inbox = InboxChange {
            user: "bob".to_owned(),
            inbox: vec![1],
            added: vec![(applied, Bytes::from_static(b"x"))],
            removed: 0..0,
        };
        let accepted = Accepted { message_id: applied, accepted_at_ms: 5 };
        let sends = vec![(SendKey([applied as u8; 16]), accepted)];
        Checkpoint { partition: 1, applied, inboxes: vec![inbox], sends, place: None }
    }

    #[test]
    fn the_contract_holds() {
        let folder = TempDir::new().unwrap();
        contract::holds(&open(&folder, 300).unwrap());
    }

    #[test]
    fn what_was_committed_is_there_after_opening_again() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder, 8).unwrap();
        store.commit(&checkpoint(3)).unwrap();
        drop(store);
        let store = DiskStore::open(folder.path(), 8, 99, CACHE_BYTES).unwrap();
        assert_eq!(store.seed(1), 7);
        assert_eq!(store.applied(1), Ok(3));
        assert_eq!(store.messages(1, "bob", 0..9, 1).unwrap().len(), 1);
        assert!(store.send(1, &SendKey([3; 16]), 0).unwrap().is_some());
    }

    #[test]
    fn another_number_of_partitions_is_refused() {
        let folder = TempDir::new().unwrap();
        drop(open(&folder, 8).unwrap());
        let error = open(&folder, 16).unwrap_err();
        assert!(matches!(error, OpenError::Partitions { stored: 8 }), "{error:?}");
    }

    #[test]
    fn a_store_that_failed_to_write_is_opened_again() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder, 8).unwrap();
        store.commit(&checkpoint(3)).unwrap();
        *store.broken.lock().unwrap() = true;
        store.commit(&checkpoint(4)).unwrap();
        assert!(!*store.broken.lock().unwrap());
        assert_eq!(store.messages(1, "bob", 0..9, usize::MAX).unwrap().len(), 2);
    }
}
