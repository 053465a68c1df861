//! What stands in the log and in the store, as protobuf: fields are added, never renumbered.
//!
//! The state of a partition is a fold of its [`Record`]s. A [`MessageRecord`] is one message to one user;
//! a [`CursorRecord`] says how far a device has taken over its inbox, and may be repeated or late. The
//! store holds an [`InboxRecord`] a user and the [`MessageRecord`]s that are still to be delivered.

use bytes::Bytes;
use prost::Message as _;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::limits;
use crate::queue::{Offset, PartitionId};

/// One entry of the log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Record {
    /// Which kind; absent when a newer release wrote a kind that this one does not know.
    #[prost(oneof = "Kind", tags = "1, 2, 3")]
    pub kind: Option<Kind>,
}

/// The kinds of a [`Record`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Kind {
    /// A message was accepted.
    #[prost(message, tag = "1")]
    Message(MessageRecord),
    /// A device acknowledged.
    #[prost(message, tag = "2")]
    Cursor(CursorRecord),
    /// A router took the partition over. What a former owner has not appended by then, it does not append any more, or
    /// finds this in front of it.
    #[prost(message, tag = "3")]
    Owner(OwnerRecord),
}

/// Who owns the partition from here on.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OwnerRecord {
    /// Its epoch: where it began in the state log.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// Its name.
    #[prost(string, tag = "2")]
    pub router_id: String,
}

/// A message to one user.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MessageRecord {
    /// Recipient, a user id.
    #[prost(string, tag = "1")]
    pub to: String,
    /// Sender, a user id.
    #[prost(string, tag = "2")]
    pub from: String,
    /// The sender's name for it, unique for a day.
    #[prost(string, tag = "3")]
    pub client_message_id: String,
    /// Opaque.
    #[prost(bytes = "bytes", tag = "4")]
    pub payload: Bytes,
    /// When it was accepted, in milliseconds since the epoch.
    #[prost(int64, tag = "5")]
    pub accepted_at_ms: i64,
    /// Not worth delivering from then on; 0: only the inbox's bound counts.
    #[prost(int64, tag = "6")]
    pub expires_at_ms: i64,
    /// Only in the store, where there is no offset to tell it.
    #[prost(uint64, tag = "7")]
    pub message_id: u64,
}

/// How far a device is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CursorRecord {
    /// Whose inbox.
    #[prost(string, tag = "1")]
    pub user: String,
    /// Which device.
    #[prost(string, tag = "2")]
    pub device: String,
    /// Highest sequence that it has taken over. It never moves back.
    #[prost(uint64, tag = "3")]
    pub cursor: u64,
    /// When it was last seen, in milliseconds since the epoch.
    #[prost(int64, tag = "4")]
    pub seen_at_ms: i64,
}

/// What the store keeps of an inbox beside its messages, which are those of `floor..next`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InboxRecord {
    /// Lowest sequence that is held.
    #[prost(uint64, tag = "1")]
    pub floor: u64,
    /// Sequence of the next message.
    #[prost(uint64, tag = "2")]
    pub next: u64,
    /// Highest sequence that a bound took away from somebody.
    #[prost(uint64, tag = "3")]
    pub lost_through: u64,
    /// Which bound that was: numbers of hawser.client.v1.Gap.Reason.
    #[prost(uint32, tag = "4")]
    pub lost_reason: u32,
    /// The devices.
    #[prost(message, repeated, tag = "5")]
    pub devices: Vec<DeviceRecord>,
}

/// A device in an [`InboxRecord`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeviceRecord {
    /// Its id.
    #[prost(string, tag = "1")]
    pub device: String,
    /// Highest sequence that it has taken over.
    #[prost(uint64, tag = "2")]
    pub cursor: u64,
    /// When it was last seen, in milliseconds since the epoch.
    #[prost(int64, tag = "3")]
    pub seen_at_ms: i64,
}

impl From<Kind> for Record {
    fn from(kind: Kind) -> Self {
        Self { kind: Some(kind) }
    }
}

impl Record {
    /// Its bytes in the log.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        Bytes::from(self.encode_to_vec())
    }
}

/// The id of the message at `offset`: 16 bits of partition, 48 of offset.
#[must_use]
pub fn message_id(partition: PartitionId, offset: Offset) -> u64 {
    debug_assert!(offset < 1 << OFFSET_BITS);
    (u64::from(partition) << OFFSET_BITS) | offset
}

/// Bits of a message id that are the offset.
const OFFSET_BITS: u32 = 48;

/// The partition in a message id, which may be none of the cluster's.
#[must_use]
pub fn partition_of_id(message_id: u64) -> PartitionId {
    (message_id >> OFFSET_BITS) as PartitionId
}

/// The offset in a message id.
#[must_use]
pub fn offset_of(message_id: u64) -> Offset {
    message_id & ((1 << OFFSET_BITS) - 1)
}

/// What identifies a send: a digest of sender, recipient and client message id.
///
/// 128 bits under a seed that is drawn when the store is made, so that nobody outside can look for two
/// sends that share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SendKey(pub [u8; 16]);

impl SendKey {
    /// The key of a send.
    #[must_use]
    pub fn new(seed: u64, from: &str, to: &str, client_message_id: &str) -> Self {
        // On the stack: this runs three times a message.
        let mut text = ArrayText::default();
        for part in [from, to, client_message_id] {
            text.push(part);
        }
        Self(xxh3_128_with_seed(text.as_bytes(), seed).to_be_bytes())
    }
}

/// Parts with their lengths between them, so that two lists of parts never look alike.
struct ArrayText {
    bytes: [u8; Self::BYTES_MAX],
    length: usize,
}

impl ArrayText {
    const BYTES_MAX: usize = 2 * limits::USER_BYTES_MAX + limits::CLIENT_MESSAGE_ID_BYTES_MAX + 3;

    /// Adds a part. One that is over its bound, which nothing that was accepted is, is cut.
    fn push(&mut self, part: &str) {
        let room = Self::BYTES_MAX.saturating_sub(self.length + 1);
        let part = &part.as_bytes()[..part.len().min(room)];
        if let Some(place) = self.bytes.get_mut(self.length..=self.length + part.len()) {
            place[0] = part.len() as u8;
            place[1..].copy_from_slice(part);
            self.length += 1 + part.len();
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Default for ArrayText {
    fn default() -> Self {
        Self { bytes: [0; Self::BYTES_MAX], length: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_id_holds_partition_and_offset() {
        assert_eq!(message_id(0, 1), 1);
        assert_eq!(message_id(3, 0x1234), 0x0003_0000_0000_1234);
    }

    #[test]
    fn sends_differ_in_each_part_and_where_the_parts_meet() {
        let key = |from, to, id| SendKey::new(7, from, to, id);
        assert_eq!(key("alice", "bob", "1"), key("alice", "bob", "1"));
        assert_ne!(key("alice", "bob", "1"), key("bob", "alice", "1"));
        assert_ne!(key("alice", "bob", "1"), key("alice", "bob", "2"));
        assert_ne!(key("ab", "c", "1"), key("a", "bc", "1"));
        assert_ne!(key("a", "b", "c1"), key("a", "bc", "1"));
        assert_ne!(key("a", "b", "1"), SendKey::new(8, "a", "b", "1"));
        let long = "x".repeat(64);
        let (one, other) = (format!("{}1", &long[1..]), format!("{}2", &long[1..]));
        assert_ne!(key(&long, &long, &one), key(&long, &long, &other));
    }

    #[test]
    fn a_record_reads_back_and_an_unknown_kind_is_none() {
        let message = MessageRecord {
            to: "bob".to_owned(),
            from: "alice".to_owned(),
            client_message_id: "1".to_owned(),
            payload: Bytes::from_static(b"hello"),
            accepted_at_ms: 5,
            expires_at_ms: 0,
            message_id: 0,
        };
        let record = Record::from(Kind::Message(message));
        assert_eq!(Record::decode(record.to_bytes()).unwrap(), record);
        let newer = Bytes::from_static(&[0x4a, 1, 0x61]);
        assert_eq!(Record::decode(newer).unwrap(), Record { kind: None });
    }
}
