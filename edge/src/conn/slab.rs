//! The connections of one shard, by slot.
//!
//! Grows by whole pages, so that nothing is ever moved or copied, and gives the last pages back when they
//! are empty. A [`ConnKey`] names slot and generation: a stale key misses, and hits no stranger.

use crate::timer::{TimerEntries, TimerEntry};

use super::Connection;

/// Slots a page: 64 KiB at 256 bytes a connection.
const PAGE_SLOTS: usize = 256;

/// Most connections a shard can hold: what a slot number of [`SLOT_BITS`] bits can tell apart.
pub const SLOTS_MAX: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 24;
const GENERATION_BITS: u32 = 28;
/// Most shards an edge can have: what is left of 64 bits.
const SHARDS_MAX: usize = 1 << (64 - SLOT_BITS - GENERATION_BITS);
const _: () = assert!(SHARDS_MAX == crate::limits::SHARDS_MAX);
const NO_SLOT: u32 = u32::MAX;

/// Names a connection within its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnKey {
    index: u32,
    generation: u32,
}

impl ConnKey {
    /// As a number of 52 bits, for the ring's user data.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << SLOT_BITS | u64::from(self.index)
    }

    /// From [`Self::to_bits`]; bits above the 52 are not looked at.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self {
            index: (bits & (SLOTS_MAX as u64 - 1)) as u32,
            generation: (bits >> SLOT_BITS) as u32 & ((1 << GENERATION_BITS) - 1),
        }
    }

    /// As the number that names this connection outside its shard (link.proto, `connection`).
    #[must_use]
    pub fn to_connection_id(self, shard: u16) -> u64 {
        debug_assert!(usize::from(shard) < SHARDS_MAX);
        u64::from(shard) << (SLOT_BITS + GENERATION_BITS) | self.to_bits()
    }

    /// The slot alone.
    #[must_use]
    pub fn index(self) -> u32 {
        self.index
    }
}

/// The shard that a connection id names; the rest of the id is [`ConnKey::from_bits`].
#[must_use]
pub fn shard_of(connection_id: u64) -> u16 {
    (connection_id >> (SLOT_BITS + GENERATION_BITS)) as u16
}

#[expect(
    clippy::large_enum_variant,
    reason = "a slot is as large as its connection; that is the point"
)]
enum Slot {
    Free { next: u32, generation: u32 },
    Used { generation: u32, connection: Connection },
}

/// See the module.
pub struct ConnSlab {
    pages: Vec<Box<[Slot]>>,
    free: u32,
    len: usize,
    max: usize,
}

impl ConnSlab {
    /// An empty slab that will hold at most `max` connections ([`SLOTS_MAX`] at the very most).
    #[must_use]
    pub fn new(max: usize) -> Self {
        let max = max.min(SLOTS_MAX);
        Self { pages: Vec::with_capacity(max.div_ceil(PAGE_SLOTS)), free: NO_SLOT, len: 0, max }
    }

    /// Connections held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Slots that exist, used or free: [`Self::at`] answers below this.
    #[must_use]
    pub fn slots(&self) -> u32 {
        (self.pages.len() * PAGE_SLOTS) as u32
    }

    /// Takes a connection in. Gives it back when the slab is full.
    ///
    /// # Errors
    /// The connection itself, boxed by nobody: the caller refuses it.
    #[expect(clippy::result_large_err, reason = "the refused connection is what the caller needs")]
    pub fn insert(&mut self, connection: Connection) -> Result<ConnKey, Connection> {
        if self.len >= self.max {
            return Err(connection);
        }
        if self.free == NO_SLOT {
            self.grow();
        }
        let index = self.free;
        let slot = &mut self.pages[index as usize / PAGE_SLOTS][index as usize % PAGE_SLOTS];
        let Slot::Free { next, generation } = *slot else {
            unreachable!("a used slot in the free list")
        };
        *slot = Slot::Used { generation, connection };
        self.free = next;
        self.len += 1;
        Ok(ConnKey { index, generation })
    }

    /// Takes a connection out.
    pub fn remove(&mut self, key: ConnKey) -> Option<Connection> {
        let free = self.free;
        let slot = self.slot_mut(key.index)?;
        if !matches!(slot, Slot::Used { generation, .. } if *generation == key.generation) {
            return None;
        }
        // On free, not on reuse: a completion in flight for the old socket has to miss.
        let generation = (key.generation + 1) & ((1 << GENERATION_BITS) - 1);
        let Slot::Used { connection, .. } =
            std::mem::replace(slot, Slot::Free { next: free, generation })
        else {
            unreachable!("matched above");
        };
        self.free = key.index;
        self.len -= 1;
        Some(connection)
    }

    /// The connection, unless it is gone.
    #[must_use]
    pub fn get(&self, key: ConnKey) -> Option<&Connection> {
        match self
            .pages
            .get(key.index as usize / PAGE_SLOTS)?
            .get(key.index as usize % PAGE_SLOTS)?
        {
            Slot::Used { generation, connection } if *generation == key.generation => {
                Some(connection)
            }
            Slot::Used { .. } | Slot::Free { .. } => None,
        }
    }

    /// The connection, unless it is gone.
    pub fn get_mut(&mut self, key: ConnKey) -> Option<&mut Connection> {
        match self.slot_mut(key.index)? {
            Slot::Used { generation, connection } if *generation == key.generation => {
                Some(connection)
            }
            Slot::Used { .. } | Slot::Free { .. } => None,
        }
    }

    /// The connection in a slot that is in use, whatever its generation.
    #[must_use]
    pub fn at(&self, index: u32) -> Option<(ConnKey, &Connection)> {
        match self.pages.get(index as usize / PAGE_SLOTS)?.get(index as usize % PAGE_SLOTS)? {
            Slot::Used { generation, connection } => {
                Some((ConnKey { index, generation: *generation }, connection))
            }
            Slot::Free { .. } => None,
        }
    }

    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot> {
        self.pages.get_mut(index as usize / PAGE_SLOTS)?.get_mut(index as usize % PAGE_SLOTS)
    }

    fn grow(&mut self) {
        let first = self.slots();
        let page: Box<[Slot]> = (first..first + PAGE_SLOTS as u32)
            .map(|index| {
                let last = index + 1 == first + PAGE_SLOTS as u32;
                // From 1: a connection id of 0 would be left out of protobuf, and looks like none.
                Slot::Free { next: if last { NO_SLOT } else { index + 1 }, generation: 1 }
            })
            .collect();
        self.pages.push(page);
        self.free = first;
    }
}

impl TimerEntries for ConnSlab {
    fn entry(&mut self, slot: u32) -> &mut TimerEntry {
        match self.slot_mut(slot) {
            Some(Slot::Used { connection, .. }) => &mut connection.timer,
            Some(Slot::Free { .. }) | None => {
                unreachable!("a timer is cancelled before its slot is freed")
            }
        }
    }
}

const _: () = assert!(size_of::<Slot>() <= crate::limits::CONNECTION_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_key_misses_the_stranger_in_its_old_slot() {
        let mut slab = ConnSlab::new(10);
        let first = slab.insert(Connection::accepted(1, crate::timer::Tick(0))).ok().unwrap();
        assert!(slab.remove(first).is_some());
        let second = slab.insert(Connection::accepted(2, crate::timer::Tick(0))).ok().unwrap();
        assert_eq!(first.index(), second.index());
        assert!(slab.get(first).is_none() && slab.remove(first).is_none());
        assert_eq!(slab.get(second).map(|c| c.socket), Some(2));
    }

    #[test]
    fn a_full_slab_gives_the_connection_back() {
        let mut slab = ConnSlab::new(300);
        for socket in 0..300 {
            assert!(slab.insert(Connection::accepted(socket, crate::timer::Tick(0))).is_ok());
        }
        let refused = slab.insert(Connection::accepted(300, crate::timer::Tick(0)));
        assert_eq!(refused.map_err(|c| c.socket), Err(300));
        assert_eq!(slab.len(), 300);
    }

    #[test]
    fn a_key_survives_its_way_through_64_bits() {
        let key = ConnKey { index: (SLOTS_MAX - 1) as u32, generation: (1 << GENERATION_BITS) - 1 };
        assert_eq!(ConnKey::from_bits(key.to_bits()), key);
        let id = key.to_connection_id((SHARDS_MAX - 1) as u16);
        assert_eq!((usize::from(shard_of(id)), ConnKey::from_bits(id)), (SHARDS_MAX - 1, key));
    }
}
