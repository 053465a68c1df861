//! Registrations, packed: what a million idle connections cost is decided here.
//!
//! A registration is a [`Slot`] of 48 bytes and one piece of text, user and device in one. Slots stand dense in
//! chunks: a removed one is replaced by the last, so what is not needed any more is at the end and is given
//! back. Nothing moves when the table grows, and at most a chunk or two stand by empty.

use super::{ConnectionRef, EdgeId, Session};
use crate::limits;

/// Place of a slot; another slot's after a removal.
pub(super) type Place = u32;
/// No place.
pub(super) const NOWHERE: Place = Place::MAX;

/// Slots that are taken from and given back to the allocator at a time.
const CHUNK_SLOTS: usize = 1_024;

/// One registration.
#[derive(Debug)]
pub(super) struct Slot {
    /// The edge's number for the connection.
    pub(super) connection: u64,
    /// When it connected, by the edge's clock; when it left, by ours. In milliseconds since the epoch.
    pub(super) at_ms: i64,
    /// User, then device.
    text: Box<str>,
    /// Where the connection is.
    pub(super) edge: EdgeId,
    /// The session in which it was told last.
    pub(super) session: Session,
    /// The next registration of the user.
    pub(super) next: Place,
    /// Place of its program in [`Programs`](super::programs::Programs).
    pub(super) program: u16,
    user_bytes: u8,
    /// What else has to be known.
    pub(super) mark: Mark,
}

const _: () = assert!(size_of::<Slot>() == 48);
const _: () = assert!(limits::USER_BYTES_MAX <= u8::MAX as usize);

/// How a device stands with the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// Its inbox knows it.
    Recorded,
    /// Nobody else knows it, and it is connected.
    Unrecorded,
    /// Nobody else knows it, and it has left.
    Departed,
}

impl Slot {
    pub(super) fn new(user: &str, device: &str) -> Self {
        debug_assert!(user.len() <= limits::USER_BYTES_MAX);
        let mut text = String::with_capacity(user.len() + device.len());
        text.push_str(user);
        text.push_str(device);
        Self {
            connection: 0,
            at_ms: 0,
            text: text.into_boxed_str(),
            edge: EdgeId(0),
            session: Session(0),
            next: NOWHERE,
            program: 0,
            user_bytes: user.len() as u8,
            mark: Mark::Recorded,
        }
    }

    pub(super) fn user(&self) -> &str {
        self.text.split_at(usize::from(self.user_bytes)).0
    }

    pub(super) fn device(&self) -> &str {
        self.text.split_at(usize::from(self.user_bytes)).1
    }

    pub(super) fn connection(&self) -> ConnectionRef {
        ConnectionRef { edge: self.edge, connection: self.connection }
    }
}

/// All slots of a partition, dense.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// All but the last two are full, and only the last may be empty.
    chunks: Vec<Vec<Slot>>,
    len: usize,
}

impl Slots {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Takes a slot in and answers its place.
    pub(super) fn push(&mut self, slot: Slot) -> Place {
        let place = self.len;
        let chunk = place / CHUNK_SLOTS;
        if chunk == self.chunks.len() {
            self.chunks.push(Vec::with_capacity(CHUNK_SLOTS));
        }
        self.chunks[chunk].push(slot);
        self.len += 1;
        place as Place
    }

    /// Takes a slot out. The last one, if it is another, is at its place then.
    pub(super) fn swap_remove(&mut self, place: Place) -> Slot {
        let last = self.len - 1;
        let moved = self.chunks[last / CHUNK_SLOTS].pop();
        self.len = last;
        self.give_back();
        match moved {
            Some(moved) if place as usize != last => std::mem::replace(self.get_mut(place), moved),
            Some(removed) => removed,
            None => unreachable!("the last slot is in the last chunk that has any"),
        }
    }

    pub(super) fn get(&self, place: Place) -> &Slot {
        &self.chunks[place as usize / CHUNK_SLOTS][place as usize % CHUNK_SLOTS]
    }

    pub(super) fn get_mut(&mut self, place: Place) -> &mut Slot {
        &mut self.chunks[place as usize / CHUNK_SLOTS][place as usize % CHUNK_SLOTS]
    }

    /// Drops an empty chunk when half of the one before is free too: not at every step over a border.
    fn give_back(&mut self) {
        if self.chunks.len() * CHUNK_SLOTS >= self.len + CHUNK_SLOTS + CHUNK_SLOTS / 2 {
            self.chunks.pop();
        }
        if self.len == 0 {
            self.chunks = Vec::new();
        }
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.chunks.len() * CHUNK_SLOTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_device_stand_apart_also_when_they_are_not_ascii() {
        let slot = Slot::new("zoë", "télé");
        assert_eq!((slot.user(), slot.device()), ("zoë", "télé"));
    }

    #[test]
    fn slots_stay_dense_and_chunks_are_given_back() {
        let mut slots = Slots::default();
        let count = 5 * CHUNK_SLOTS + 7;
        for number in 0..count {
            let mut slot = Slot::new("user", "device");
            slot.connection = number as u64;
            assert_eq!(slots.push(slot), number as Place);
        }
        let mut expected: Vec<u64> = (0..count as u64).collect();
        let mut random = fastrand::Rng::with_seed(7);
        while slots.len() > 0 {
            let place = random.usize(..slots.len());
            assert_eq!(slots.swap_remove(place as Place).connection, expected.swap_remove(place));
            assert!(slots.capacity() <= slots.len() + 2 * CHUNK_SLOTS, "{}", slots.len());
            if slots.len() % 500 == 1 {
                let held = (0..slots.len()).map(|place| slots.get(place as Place).connection);
                assert_eq!(held.collect::<Vec<_>>(), expected);
            }
        }
        assert_eq!(slots.capacity(), 0);
    }

    #[test]
    fn a_connection_that_comes_and_goes_at_a_border_takes_no_chunk_each_time() {
        let mut slots = Slots::default();
        for _ in 0..=CHUNK_SLOTS {
            slots.push(Slot::new("user", "device"));
        }
        for _ in 0..10 {
            slots.swap_remove(0);
            assert_eq!(slots.capacity(), 2 * CHUNK_SLOTS);
            slots.push(Slot::new("user", "device"));
        }
    }
}
