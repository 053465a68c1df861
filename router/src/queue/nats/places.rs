//! Which message of a stream a record is in, as far as that is known.

use std::collections::BTreeMap;

use crate::queue::Offset;

/// Messages of a partition that are remembered. Past it only every second one is, then every fourth, and so on; what is between
/// is searched for.
const PLACES_MAX: usize = 1_024;

/// Offsets of first records, and the sequences of their messages.
#[derive(Debug)]
pub(super) struct Places {
    known: BTreeMap<Offset, u64>,
    /// Only sequences that are a multiple of it are remembered.
    stride: u64,
}

impl Default for Places {
    fn default() -> Self {
        Self { known: BTreeMap::new(), stride: 1 }
    }
}

impl Places {
    /// The message `sequence` begins with the record `first`.
    pub(super) fn note(&mut self, first: Offset, sequence: u64) {
        if !sequence.is_multiple_of(self.stride) {
            return;
        }
        self.known.insert(first, sequence);
        if self.known.len() > PLACES_MAX {
            self.stride *= 2;
            let stride = self.stride;
            self.known.retain(|_, sequence| sequence.is_multiple_of(stride));
        }
    }

    /// The last known message that begins at or before an offset.
    pub(super) fn at_or_before(&self, offset: Offset) -> Option<u64> {
        self.known.range(..=offset).next_back().map(|(_, sequence)| *sequence)
    }

    /// The first known message that begins after an offset.
    pub(super) fn after(&self, offset: Offset) -> Option<u64> {
        self.known.range(offset.saturating_add(1)..).next().map(|(_, sequence)| *sequence)
    }

    /// Messages below a sequence are gone.
    pub(super) fn forget_below(&mut self, sequence: u64) {
        self.known.retain(|_, place| *place >= sequence);
        if self.known.len() < PLACES_MAX / 2 {
            self.stride = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_lies_between_the_messages_that_are_known() {
        let mut places = Places::default();
        for (first, sequence) in [(1, 7), (10, 8), (25, 9)] {
            places.note(first, sequence);
        }
        assert_eq!((places.at_or_before(9), places.after(9)), (Some(7), Some(8)));
        assert_eq!((places.at_or_before(10), places.after(10)), (Some(8), Some(9)));
        assert_eq!((places.at_or_before(99), places.after(99)), (Some(9), None));
        places.forget_below(8);
        assert_eq!((places.at_or_before(9), places.after(9)), (None, Some(8)));
    }

    #[test]
    fn of_very_many_messages_some_are_remembered_everywhere() {
        let mut places = Places::default();
        for sequence in 1..=10 * PLACES_MAX as u64 {
            places.note(sequence * 5, sequence);
            assert!(places.known.len() <= PLACES_MAX);
        }
        let (below, above) = (places.at_or_before(2_500).unwrap(), places.after(2_500).unwrap());
        assert!(below <= 500 && 500 < above && above - below < 64, "{below} {above}");
    }
}
