//! The state log of a partition: what its owner knows beside the messages log, for whoever owns it next.
//!
//! ```text
//!   Opening (epoch 7) · change · change · whole, in parts ········ last · change · Opening (epoch 31) · change
//!                                         └─ what stands before is not needed any more
//! ```
//!
//! A takeover begins with an **opening**, whose offset is the new owner's **epoch**. A **change** is a checkpoint, as it
//! is written into the owner's store at the same time; now and then the owner writes all that the partition has
//! (**whole**), and lets go of what stands before. One that is long takes several records, and counts when the last is
//! there. What an owner writes after the opening of the next is passed over: the epoch tells it.

use bytes::Bytes;
use prost::Message as _;

use crate::queue::Offset;
use crate::record::SendKey;
use crate::store::{Accepted, Checkpoint, Dumped, InboxChange, StatePlace};

/// One record of the state log, as protobuf: fields are added, never renumbered.
#[derive(Clone, PartialEq, prost::Message)]
struct StateRecord {
    /// The writer's; 0 in an opening, whose offset it is.
    #[prost(fixed64, tag = "1")]
    epoch: u64,
    /// The same in all records of a partition.
    #[prost(fixed64, tag = "2")]
    seed: u64,
    /// Set in an opening: the writer's name.
    #[prost(string, optional, tag = "3")]
    opened_by: Option<String>,
    #[prost(message, optional, tag = "4")]
    part: Option<PartRecord>,
}

/// A part of a change.
#[derive(Clone, PartialEq, prost::Message)]
struct PartRecord {
    #[prost(bool, tag = "1")]
    first: bool,
    #[prost(bool, tag = "2")]
    last: bool,
    /// It is all that the partition has, and takes the place of what was there.
    #[prost(bool, tag = "3")]
    whole: bool,
    /// Offset of the last record of the messages log that it holds.
    #[prost(uint64, tag = "4")]
    applied: u64,
    #[prost(message, repeated, tag = "5")]
    inboxes: Vec<InboxPart>,
    #[prost(message, repeated, tag = "6")]
    sends: Vec<SendPart>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct InboxPart {
    #[prost(string, tag = "1")]
    user: String,
    #[prost(bytes = "vec", tag = "2")]
    inbox: Vec<u8>,
    #[prost(message, repeated, tag = "3")]
    added: Vec<MessagePart>,
    #[prost(uint64, tag = "4")]
    removed_from: u64,
    #[prost(uint64, tag = "5")]
    removed_to: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MessagePart {
    #[prost(uint64, tag = "1")]
    sequence: u64,
    #[prost(bytes = "bytes", tag = "2")]
    message: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SendPart {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(uint64, tag = "2")]
    message_id: u64,
    #[prost(int64, tag = "3")]
    accepted_at_ms: i64,
}

impl From<&InboxChange> for InboxPart {
    fn from(change: &InboxChange) -> Self {
        let part = |(sequence, message): &(u64, Bytes)| MessagePart {
            sequence: *sequence,
            message: message.clone(),
        };
        Self {
            user: change.user.clone(),
            inbox: change.inbox.clone(),
            added: change.added.iter().map(part).collect(),
            removed_from: change.removed.start,
            removed_to: change.removed.end,
        }
    }
}

impl From<InboxPart> for InboxChange {
    fn from(part: InboxPart) -> Self {
        Self {
            user: part.user,
            inbox: part.inbox,
            added: part.added.into_iter().map(|part| (part.sequence, part.message)).collect(),
            removed: part.removed_from..part.removed_to,
        }
    }
}

impl From<&(SendKey, Accepted)> for SendPart {
    fn from((key, accepted): &(SendKey, Accepted)) -> Self {
        let Accepted { message_id, accepted_at_ms } = *accepted;
        Self { key: key.0.to_vec(), message_id, accepted_at_ms }
    }
}

impl SendPart {
    fn read(self) -> Option<(SendKey, Accepted)> {
        let key = SendKey(*self.key.first_chunk()?);
        Some((key, Accepted { message_id: self.message_id, accepted_at_ms: self.accepted_at_ms }))
    }
}

/// The first record of an owner. `seed` counts only where it is the first of all.
#[must_use]
pub fn opening(router_id: &str, seed: u64) -> Bytes {
    let opened_by = Some(router_id.to_owned());
    Bytes::from(StateRecord { epoch: 0, seed, opened_by, part: None }.encode_to_vec())
}

/// Who has taken the partition over from the owner with this epoch, as a record behind its opening tells: another opening, or
/// what a later owner has written, whose opening may be trimmed.
#[must_use]
pub fn later_owner(epoch: u64, record: &[u8]) -> Option<String> {
    let record = StateRecord::decode(record).ok()?;
    let nameless = || (record.epoch > epoch).then(|| "another router".to_owned());
    record.opened_by.or_else(nameless)
}

/// The partition's seed, where the record at this offset tells it for sure: later openings do not.
#[must_use]
pub fn seed_of(offset: Offset, record: &[u8]) -> Option<u64> {
    let record = StateRecord::decode(record).ok()?;
    (offset == 1 || record.part.is_some()).then_some(record.seed)
}

/// Writes the records of one owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// The owner's.
    pub epoch: u64,
    /// The partition's.
    pub seed: u64,
}

impl Writer {
    /// A checkpoint as records of about `bytes_max` bytes at most, where no single message is longer.
    #[must_use]
    pub fn change(self, checkpoint: &Checkpoint, bytes_max: usize) -> Vec<Bytes> {
        let mut parts = vec![PartRecord::default()];
        let mut bytes = 0;
        let mut room = |parts: &mut Vec<PartRecord>, wanted: usize| {
            let is_full = bytes > 0 && bytes + wanted > bytes_max;
            bytes = if is_full { wanted } else { bytes + wanted };
            if is_full {
                parts.push(PartRecord::default());
            }
            is_full
        };
        for change in &checkpoint.inboxes {
            let head = InboxChange { added: Vec::new(), ..change.clone() };
            let head_bytes = head.user.len() + head.inbox.len() + 32;
            room(&mut parts, head_bytes);
            let mut part = InboxPart::from(&head);
            for (sequence, message) in &change.added {
                let before = parts.len() - 1;
                if room(&mut parts, message.len() + 16) {
                    parts[before].inboxes.push(part);
                    part = InboxPart::from(&head);
                }
                part.added.push(MessagePart { sequence: *sequence, message: message.clone() });
            }
            if let Some(last) = parts.last_mut() {
                last.inboxes.push(part);
            }
        }
        for send in &checkpoint.sends {
            room(&mut parts, 40);
            if let Some(last) = parts.last_mut() {
                last.sends.push(send.into());
            }
        }
        self.finish(parts, checkpoint.applied, false)
    }

    /// All that a partition has, as a store dumped it.
    #[must_use]
    pub fn whole(self, applied: Offset, dumped: &[Dumped]) -> Vec<Bytes> {
        let part = |dumped: &Dumped| PartRecord {
            inboxes: dumped.inboxes.iter().map(Into::into).collect(),
            sends: dumped.sends.iter().map(Into::into).collect(),
            ..PartRecord::default()
        };
        self.finish(dumped.iter().map(part).collect(), applied, true)
    }

    fn finish(self, mut parts: Vec<PartRecord>, applied: Offset, whole: bool) -> Vec<Bytes> {
        let Self { epoch, seed } = self;
        let count = parts.len();
        for (place, part) in parts.iter_mut().enumerate() {
            (part.first, part.last) = (place == 0, place + 1 == count);
            (part.applied, part.whole) = (applied, whole);
        }
        let record = |part| StateRecord { epoch, seed, opened_by: None, part: Some(part) };
        parts.into_iter().map(|part| Bytes::from(record(part).encode_to_vec())).collect()
    }
}

/// Reads a state log in order and gives what counts of it.
#[derive(Debug, Default)]
pub struct Follower {
    /// Of the owner whose records count.
    epoch: u64,
    seed: Option<u64>,
    parts: Vec<PartRecord>,
    /// The furthest that a change was. One that was not answered may stand behind a later one, and would go back.
    applied: Offset,
}

/// A change of which every part is there.
#[derive(Debug)]
pub struct Change {
    /// It takes the place of all that was there before.
    pub whole: bool,
    /// To be written, in this order.
    pub checkpoint: Checkpoint,
}

impl Follower {
    /// One that goes on behind what a store has, which holds the messages log up to `applied`.
    #[must_use]
    pub fn behind(place: Option<StatePlace>, applied: Offset) -> Self {
        Self {
            epoch: place.map_or(0, |place| place.epoch),
            seed: place.map(|place| place.seed),
            parts: Vec::new(),
            applied,
        }
    }

    /// Of the partition, once a record was read.
    #[must_use]
    pub fn seed(&self) -> Option<u64> {
        self.seed
    }

    /// Takes the next record of `partition`.
    ///
    /// # Errors
    /// A sentence: the record is unreadable, or of another cluster than those before.
    pub fn read(
        &mut self,
        partition: u16,
        offset: Offset,
        bytes: &[u8],
    ) -> Result<Option<Change>, String> {
        let record = StateRecord::decode(bytes)
            .map_err(|error| format!("record {offset} of the state log is unreadable: {error}"))?;
        if record.opened_by.is_some() {
            self.epoch = offset;
            self.seed.get_or_insert(record.seed);
            self.parts.clear();
            return Ok(None);
        }
        let Some(part) = record.part.filter(|_| record.epoch >= self.epoch) else {
            return Ok(None);
        };
        if record.epoch > self.epoch {
            self.epoch = record.epoch;
            self.parts.clear();
        }
        if *self.seed.get_or_insert(record.seed) != record.seed {
            return Err("it is not the state log that the data folder was made with".to_owned());
        }
        if part.first {
            self.parts.clear();
        } else if self.parts.is_empty() {
            // The rest of one whose beginning was not written.
            return Ok(None);
        }
        let is_last = part.last && part.applied >= self.applied;
        self.applied = self.applied.max(part.applied);
        self.parts.push(part);
        Ok(is_last.then(|| self.finish(partition, offset, record.seed)))
    }

    fn finish(&mut self, partition: u16, offset: Offset, seed: u64) -> Change {
        let mut checkpoint = Checkpoint {
            partition,
            place: Some(StatePlace { offset, epoch: self.epoch, seed }),
            ..Checkpoint::default()
        };
        let mut whole = false;
        for part in self.parts.drain(..) {
            (checkpoint.applied, whole) = (part.applied, part.whole);
            checkpoint.inboxes.extend(part.inboxes.into_iter().map(InboxChange::from));
            checkpoint.sends.extend(part.sends.into_iter().filter_map(SendPart::read));
        }
        Change { whole, checkpoint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(applied: Offset, messages: u64) -> Checkpoint {
        let message = |sequence| (sequence, Bytes::from(vec![7; 50]));
        let inbox = InboxChange {
            user: "bob".to_owned(),
            inbox: vec![1, 2],
            added: (1..=messages).map(message).collect(),
            removed: 3..5,
        };
        let accepted = Accepted { message_id: applied, accepted_at_ms: 5 };
        Checkpoint {
            partition: 1,
            applied,
            inboxes: vec![inbox],
            sends: vec![(SendKey([1; 16]), accepted); 4],
            place: None,
        }
    }

    /// Reads records that stand from an offset on, and gives the changes.
    fn read(follower: &mut Follower, from: Offset, records: &[Bytes]) -> Vec<Change> {
        let read = |(offset, record): (Offset, &Bytes)| follower.read(1, offset, record).unwrap();
        (from..).zip(records).filter_map(read).collect()
    }

    #[test]
    fn a_change_in_parts_reads_back_as_one() {
        let (before, writer) = (checkpoint(40, 20), Writer { epoch: 1, seed: 9 });
        let records = writer.change(&before, 200);
        assert!(records.len() > 4, "{} records", records.len());
        assert!(records.iter().all(|record| record.len() < 300));
        let mut follower = Follower::default();
        let log: Vec<_> = std::iter::once(opening("router-1", 9)).chain(records).collect();
        let changes = read(&mut follower, 1, &log);
        let [Change { whole: false, checkpoint: after }] = &changes[..] else { panic!() };
        let added = |checkpoint: &Checkpoint| -> Vec<_> {
            checkpoint.inboxes.iter().flat_map(|change| change.added.clone()).collect()
        };
        assert_eq!(added(after), added(&before));
        assert_eq!((after.applied, &after.sends), (40, &before.sends));
        assert_eq!(after.inboxes[0].removed, 3..5);
        let offset = log.len() as Offset;
        assert_eq!(after.place, Some(StatePlace { offset, epoch: 1, seed: 9 }));
    }

    #[test]
    fn what_a_former_owner_writes_after_the_next_has_opened_does_not_count() {
        let (former, next) = (Writer { epoch: 1, seed: 9 }, Writer { epoch: 3, seed: 9 });
        let one = |writer: Writer, applied| writer.change(&checkpoint(applied, 0), 1_000);
        let log = [
            vec![opening("router-1", 9)],
            one(former, 10),
            vec![opening("router-2", 4)],
            one(former, 20),
            one(next, 15),
        ];
        let mut follower = Follower::default();
        let applied: Vec<_> = read(&mut follower, 1, &log.concat())
            .into_iter()
            .map(|change| change.checkpoint.applied)
            .collect();
        assert_eq!(applied, [10, 15]);
        assert_eq!(follower.seed(), Some(9), "of the first opening");
        // Also where the reader begins behind the opening.
        let place = StatePlace { offset: 3, epoch: 3, seed: 9 };
        let mut follower = Follower::behind(Some(place), 0);
        assert_eq!(read(&mut follower, 4, &log.concat()[3..]).len(), 1);
    }

    #[test]
    fn a_change_whose_last_part_is_missing_does_not_count() {
        let writer = Writer { epoch: 1, seed: 9 };
        let mut cut = writer.change(&checkpoint(10, 20), 200);
        cut.pop();
        let log = [cut, writer.change(&checkpoint(11, 0), 1_000)].concat();
        let changes = read(&mut Follower::default(), 2, &log);
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].checkpoint.applied, 11);
    }

    #[test]
    fn a_change_that_came_in_late_does_not_go_back() {
        let writer = Writer { epoch: 1, seed: 9 };
        let log = [40, 50, 45, 50].map(|at| writer.change(&checkpoint(at, 0), 1_000)).concat();
        let changes = read(&mut Follower::default(), 2, &log);
        let applied: Vec<_> = changes.iter().map(|change| change.checkpoint.applied).collect();
        assert_eq!(applied, [40, 50, 50]);
    }

    #[test]
    fn another_clusters_log_is_told() {
        let records = Writer { epoch: 1, seed: 8 }.change(&checkpoint(10, 0), 1_000);
        let place = StatePlace { offset: 3, epoch: 1, seed: 9 };
        let error = Follower::behind(Some(place), 0).read(1, 4, &records[0]).unwrap_err();
        assert!(error.contains("data folder"), "{error}");
    }
}
