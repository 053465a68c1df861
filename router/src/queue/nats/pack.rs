//! How records stand in the messages of a stream: many in one, because a server syncs every message.

use ahash::AHashMap;
use bytes::Bytes;
use prost::Message as _;

use crate::queue::{Offset, PartitionId};

/// Size from which on a pack is closed, in bytes. Larger ones cost the servers less work a record, and hold up those of other
/// partitions for longer.
const PACK_BYTES_MAX: usize = 512 * 1024;
/// What the encoding adds to a record, and to a pack, at most.
const RECORD_OVERHEAD_BYTES: usize = 6;
const PACK_OVERHEAD_BYTES: usize = 11;
/// Room for the headers of a message, which count as part of it.
const HEADERS_BYTES: usize = 512;

/// One message: records of a partition that follow each other.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Pack {
    /// Offset of the first record.
    #[prost(uint64, tag = "1")]
    pub(super) first: Offset,
    /// At least one.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(super) records: Vec<Bytes>,
}

impl Pack {
    /// Reads the payload of a message, sharing its bytes. `None` when it is none of ours.
    pub(super) fn read(payload: Bytes) -> Option<Self> {
        let pack = Self::decode(payload).ok()?;
        let ends = pack.first.checked_add(pack.records.len() as u64).is_some();
        (pack.first > 0 && !pack.records.is_empty() && ends).then_some(pack)
    }

    /// The payload of a message.
    pub(super) fn to_payload(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// Offset after the last record.
    pub(super) fn end(&self) -> Offset {
        self.first + self.records.len() as u64
    }
}

/// Longest record that fits into a message where a server takes `payload_bytes_max`.
pub(super) fn record_bytes_max(payload_bytes_max: usize) -> usize {
    payload_bytes_max.saturating_sub(HEADERS_BYTES + PACK_OVERHEAD_BYTES + RECORD_OVERHEAD_BYTES)
}

/// Puts records, none longer than `record_bytes_max`, into as few packs as may be. Those of a partition keep their order, in and
/// between packs. `next` gives each its offset; what it gives to a partition counts up by one.
pub(super) fn pack(
    records: &[(PartitionId, Bytes)],
    record_bytes_max: usize,
    mut next: impl FnMut(PartitionId) -> Offset,
) -> Vec<(PartitionId, Pack)> {
    let pack_bytes_max = PACK_BYTES_MAX.min(record_bytes_max);
    let mut packs: Vec<(PartitionId, Pack)> = Vec::new();
    // Per partition the pack that is filled, and its size so far.
    let mut open: AHashMap<PartitionId, (usize, usize)> = AHashMap::new();
    for (partition, bytes) in records {
        let offset = next(*partition);
        let added = bytes.len() + RECORD_OVERHEAD_BYTES;
        if let Some((index, size)) = open.get_mut(partition)
            && *size + added <= pack_bytes_max
        {
            *size += added;
            packs[*index].1.records.push(bytes.clone());
        } else {
            open.insert(*partition, (packs.len(), added));
            packs.push((*partition, Pack { first: offset, records: vec![bytes.clone()] }));
        }
    }
    packs
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

    fn packed(records: &[(PartitionId, Bytes)]) -> Vec<(PartitionId, Pack)> {
        let mut ends = [0; 3];
        pack(records, record_bytes_max(PAYLOAD_BYTES_MAX), |partition| {
            ends[usize::from(partition)] += 1;
            ends[usize::from(partition)]
        })
    }

    #[test]
    fn records_of_a_partition_share_a_message() {
        let record = |text: &'static str| Bytes::from_static(text.as_bytes());
        let packs = packed(&[(0, record("a")), (2, record("b")), (0, record("c"))]);
        assert_eq!(packs.len(), 2);
        let (partition, pack) = &packs[0];
        assert_eq!((*partition, pack.first, pack.end()), (0, 1, 3));
        assert_eq!(Pack::read(pack.to_payload()).as_ref(), Some(pack));
    }

    #[test]
    fn no_message_is_longer_than_a_server_takes_and_none_is_short_without_need() {
        let longest = Bytes::from(vec![b'x'; record_bytes_max(PAYLOAD_BYTES_MAX)]);
        let small = Bytes::from(vec![b'y'; 200]);
        let mut records = vec![(0, longest.clone()), (0, longest)];
        records.extend((0..5_000).map(|_| (0, small.clone())));
        let packs = packed(&records);
        assert_eq!(packs.len(), 4);
        for (_, pack) in &packs {
            assert!(pack.to_payload().len() + HEADERS_BYTES <= PAYLOAD_BYTES_MAX);
        }
        let ends: Vec<_> = packs.iter().map(|(_, pack)| (pack.first, pack.end())).collect();
        assert!(ends.windows(2).all(|pair| pair[0].1 == pair[1].0), "{ends:?}");
    }

    #[test]
    fn what_is_no_pack_is_not_read_as_one() {
        for bytes in [&b""[..], b"hello", b"\x08\x01", b"\x12\x01x"] {
            assert_eq!(Pack::read(Bytes::from_static(bytes)), None, "{bytes:?}");
        }
        let endless = Pack { first: u64::MAX, records: vec![Bytes::new()] };
        assert_eq!(Pack::read(endless.to_payload()), None);
    }
}
