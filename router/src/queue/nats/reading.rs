//! Reading a partition from somewhere on: where that is, and more of it than was asked for, because a takeover reads on.

use std::collections::VecDeque;

use async_nats::jetstream::Context;

use super::log::Partition;
use super::pack::Pack;
use crate::queue::{Offset, PartitionId, QueueError, Record};

/// What is read at a time, in bytes. Held until it was asked for, or something else is.
const READ_AHEAD_BYTES: usize = 4 * 1024 * 1024;
/// Messages that are read at a time.
const READ_AHEAD_MESSAGES: usize = 1_024;
/// So many messages are read rather than searched through.
const SCAN_MESSAGES: u64 = 4;

/// Messages of one partition that were read and not asked for yet, with their sequences.
#[derive(Default)]
pub(super) struct Ahead {
    partition: PartitionId,
    packs: VecDeque<(u64, Pack)>,
    /// Offset after the last record that was read, and sequence after the last message.
    end: Offset,
    after: u64,
}

impl Ahead {
    /// See [`Queue::read`](crate::queue::Queue::read).
    pub(super) async fn read(
        &mut self,
        context: &Context,
        partition: PartitionId,
        known: &mut Partition,
        from: Offset,
        bytes_max: usize,
        out: &mut Vec<Record>,
    ) -> Result<(), QueueError> {
        if self.partition != partition || !self.reaches(from) {
            let after = locate(context, known, from).await?;
            *self = Self { partition, packs: VecDeque::new(), end: 0, after };
        }
        while !take(&mut self.packs, from, bytes_max, out) {
            if !self.load(context, known).await? {
                break;
            }
        }
        Ok(())
    }

    /// Whether reading from an offset on goes on with what is here, or right behind it.
    fn reaches(&self, from: Offset) -> bool {
        let first = self.packs.front().map_or(self.end, |(_, pack)| pack.first);
        // Sequences begin at 1: nothing was read yet where it is 0.
        self.after > 0 && first <= from && from <= self.end
    }

    /// Reads on behind what was read. False when there is no more.
    async fn load(&mut self, context: &Context, known: &mut Partition) -> Result<bool, QueueError> {
        let (messages, bytes) = (READ_AHEAD_MESSAGES, READ_AHEAD_BYTES);
        let packs = known.messages(context, self.after, messages, bytes).await?;
        for (sequence, pack) in &packs {
            known.places.note(pack.first, *sequence);
            (self.after, self.end) = (sequence + 1, pack.end());
        }
        self.packs.extend(packs);
        Ok(!self.packs.is_empty())
    }
}

/// Takes records from offset `from` on out of the packs until about `bytes_max` bytes; packs that are done with go. False when
/// there is none.
fn take(
    packs: &mut VecDeque<(u64, Pack)>,
    from: Offset,
    bytes_max: usize,
    out: &mut Vec<Record>,
) -> bool {
    let (mut bytes_taken, mut is_any) = (0, false);
    while let Some((_, pack)) = packs.front() {
        let skipped = from.saturating_sub(pack.first).min(pack.records.len() as u64) as usize;
        for (bytes, offset) in pack.records.iter().zip(pack.first..).skip(skipped) {
            if is_any && bytes_taken >= bytes_max {
                return true;
            }
            bytes_taken += bytes.len();
            is_any = true;
            out.push(Record { offset, bytes: bytes.clone() });
        }
        packs.pop_front();
    }
    is_any
}

/// Sequence of a message at or a little before the one that has an offset, or of the first there is.
async fn locate(
    context: &Context,
    known: &mut Partition,
    offset: Offset,
) -> Result<u64, QueueError> {
    let mut low = known.places.at_or_before(offset).unwrap_or(0).max(known.first_sequence);
    let mut high = known.places.after(offset).unwrap_or(known.last_sequence + 1);
    // Halves every time; a search ends after 64 messages.
    while high.saturating_sub(low) > SCAN_MESSAGES {
        let middle = low + (high - low) / 2;
        let Some((sequence, pack)) = known.message(context, middle).await? else { break };
        known.places.note(pack.first, sequence);
        if pack.first <= offset && sequence < high {
            low = sequence;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn records_are_taken_in_order_across_packs_and_holes_until_the_size() {
        let pack = |first, count| Pack { first, records: vec![Bytes::from_static(b"four"); count] };
        let mut packs: VecDeque<_> = [(3, pack(5, 3)), (4, pack(8, 1)), (5, pack(50, 2))].into();
        let mut offsets = |from, bytes_max| {
            let mut out = Vec::new();
            take(&mut packs, from, bytes_max, &mut out);
            out.iter().map(|record| record.offset).collect::<Vec<_>>()
        };
        assert_eq!(offsets(6, 1), [6]);
        assert_eq!(offsets(7, 8), [7, 8]);
        assert_eq!(offsets(9, 100), [50, 51]);
        assert!(offsets(52, 100).is_empty());
    }
}
