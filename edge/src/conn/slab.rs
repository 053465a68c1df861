//! The connections of one shard, by slot.
//!
//! Grows by pages, of which memory is used slot by slot, so that nothing is ever moved or copied; a page that is empty
//! is given back. New connections take the lowest page that has room, so that after a storm the upper pages
//! empty. A [`ConnKey`] names slot and generation: a stale key misses, and hits no stranger.

use crate::timer::{TimerEntries, TimerEntry};

use super::Connection;

/// Slots a page. At 200 bytes a page is above the 128 KiB from which the allocator maps and unmaps memory by itself,
/// so an empty page really goes back to the system.
const PAGE_SLOTS: usize = 1024;

/// Most connections a shard can hold: what a slot number of [`SLOT_BITS`] bits can tell apart.
pub const SLOTS_MAX: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 24;
const GENERATION_BITS: u32 = 28;
/// Most shards an edge can have: what is left of 64 bits.
const SHARDS_MAX: usize = 1 << (64 - SLOT_BITS - GENERATION_BITS);
const _: () = assert!(SHARDS_MAX == crate::limits::SHARDS_MAX);

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
    reason = "a free slot is as large as one in use: that is what a slab is"
)]
enum Slot {
    /// `next` is the page's next free slot, within the page.
    Free {
        next: u16,
        generation: u32,
    },
    Used(Connection),
}

/// End of a page's list of free slots.
const NO_SLOT: u16 = u16::MAX;
const _: () = assert!(PAGE_SLOTS < NO_SLOT as usize);

/// A run of slots. Its memory is there while one of them is in use.
struct Page {
    /// As long as the highest slot that was ever used; capacity [`PAGE_SLOTS`], or 0 while nothing is here.
    slots: Vec<Slot>,
    used: u16,
    free: u16,
    /// Generation of slots that are used for the first time: above all that this page has given out before its memory
    /// went back.
    generation: u32,
}

impl Page {
    const EMPTY: Self = Self { slots: Vec::new(), used: 0, free: NO_SLOT, generation: 1 };

    fn has_room(&self) -> bool {
        usize::from(self.used) < PAGE_SLOTS
    }

    /// Puts a connection into a free slot; there has to be one. Returns slot and generation.
    fn insert(&mut self, mut connection: Connection) -> (usize, u32) {
        self.used += 1;
        if self.free == NO_SLOT {
            if self.slots.is_empty() {
                self.slots.reserve_exact(PAGE_SLOTS);
            }
            connection.generation = self.generation;
            self.slots.push(Slot::Used(connection));
            return (self.slots.len() - 1, self.generation);
        }
        let at = usize::from(self.free);
        let Slot::Free { next, generation } = self.slots[at] else {
            unreachable!("a used slot in the free list")
        };
        connection.generation = generation;
        self.slots[at] = Slot::Used(connection);
        self.free = next;
        (at, generation)
    }

    fn remove(&mut self, at: usize, generation: u32) -> Option<Connection> {
        let slot = self.slots.get_mut(at)?;
        if !matches!(slot, Slot::Used(connection) if connection.generation == generation) {
            return None;
        }
        // On free, not on reuse: a completion in flight for the old socket has to miss.
        let freed = Slot::Free { next: self.free, generation: next_generation(generation) };
        let Slot::Used(connection) = std::mem::replace(slot, freed) else {
            unreachable!("matched above");
        };
        self.free = at as u16;
        self.used -= 1;
        Some(connection)
    }

    /// Gives the memory back. No slot may be in use.
    fn empty(&mut self) {
        debug_assert_eq!(self.used, 0);
        let given = self.slots.iter().map(|slot| match slot {
            Slot::Free { generation, .. } => *generation,
            Slot::Used(connection) => next_generation(connection.generation),
        });
        self.generation = given.max().unwrap_or(self.generation).max(self.generation);
        self.slots = Vec::new();
        self.free = NO_SLOT;
    }
}

/// The generation after this one. Never 0: a connection id of 0 would be left out of protobuf, and looks like none.
fn next_generation(generation: u32) -> u32 {
    (generation % ((1 << GENERATION_BITS) - 1)) + 1
}

/// See the module.
pub struct ConnSlab {
    pages: Vec<Page>,
    /// No page below this one has room.
    open: usize,
    /// Pages that hold memory and no connection; one is kept, so that a connection that comes and goes maps nothing.
    vacant: usize,
    len: usize,
    max: usize,
}

impl ConnSlab {
    /// An empty slab that will hold at most `max` connections ([`SLOTS_MAX`] at the very most).
    #[must_use]
    pub fn new(max: usize) -> Self {
        let max = max.min(SLOTS_MAX);
        let pages = Vec::with_capacity(max.div_ceil(PAGE_SLOTS));
        Self { pages, open: 0, vacant: 0, len: 0, max }
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
        while self.pages.get(self.open).is_some_and(|page| !page.has_room()) {
            self.open += 1;
        }
        if self.open == self.pages.len() {
            self.pages.push(Page::EMPTY);
        }
        let page = &mut self.pages[self.open];
        if page.used == 0 && !page.slots.is_empty() {
            self.vacant -= 1;
        }
        let (at, generation) = page.insert(connection);
        self.len += 1;
        Ok(ConnKey { index: (self.open * PAGE_SLOTS + at) as u32, generation })
    }

    /// Takes a connection out.
    pub fn remove(&mut self, key: ConnKey) -> Option<Connection> {
        let (page_at, at) = place_of(key.index);
        let page = self.pages.get_mut(page_at)?;
        let connection = page.remove(at, key.generation)?;
        self.len -= 1;
        self.open = self.open.min(page_at);
        if page.used == 0 {
            if self.vacant == 0 {
                self.vacant = 1;
            } else {
                page.empty();
            }
        }
        Some(connection)
    }

    /// The connection, unless it is gone.
    #[must_use]
    pub fn get(&self, key: ConnKey) -> Option<&Connection> {
        let (page, at) = place_of(key.index);
        match self.pages.get(page)?.slots.get(at)? {
            Slot::Used(connection) if connection.generation == key.generation => Some(connection),
            Slot::Used(_) | Slot::Free { .. } => None,
        }
    }

    /// The connection, unless it is gone.
    pub fn get_mut(&mut self, key: ConnKey) -> Option<&mut Connection> {
        match self.slot_mut(key.index)? {
            Slot::Used(connection) if connection.generation == key.generation => Some(connection),
            Slot::Used(_) | Slot::Free { .. } => None,
        }
    }

    /// The connection in a slot that is in use, whatever its generation.
    #[must_use]
    pub fn at(&self, index: u32) -> Option<(ConnKey, &Connection)> {
        let (page, at) = place_of(index);
        match self.pages.get(page)?.slots.get(at)? {
            Slot::Used(connection) => {
                Some((ConnKey { index, generation: connection.generation }, connection))
            }
            Slot::Free { .. } => None,
        }
    }

    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot> {
        let (page, at) = place_of(index);
        self.pages.get_mut(page)?.slots.get_mut(at)
    }
}

/// Page of a slot, and where it lies there.
fn place_of(index: u32) -> (usize, usize) {
    (index as usize / PAGE_SLOTS, index as usize % PAGE_SLOTS)
}

impl TimerEntries for ConnSlab {
    fn entry(&mut self, slot: u32) -> &mut TimerEntry {
        match self.slot_mut(slot) {
            Some(Slot::Used(connection)) => &mut connection.timer,
            Some(Slot::Free { .. }) | None => {
                unreachable!("a timer is cancelled before its slot is freed")
            }
        }
    }
}

const _: () = assert!(size_of::<Slot>() <= crate::limits::CONNECTION_BYTES_MAX);
const _: () = assert!(PAGE_SLOTS * size_of::<Slot>() > 128 * 1024, "see PAGE_SLOTS");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::Peer;

    fn connection(socket: u32) -> Connection {
        Connection::accepted(socket, Peer::default(), crate::timer::Now::default())
    }

    #[test]
    fn a_stale_key_misses_the_stranger_in_its_old_slot() {
        let mut slab = ConnSlab::new(10);
        let first = slab.insert(connection(1)).ok().unwrap();
        assert!(slab.remove(first).is_some());
        let second = slab.insert(connection(2)).ok().unwrap();
        assert_eq!(first.index(), second.index());
        assert!(slab.get(first).is_none() && slab.remove(first).is_none());
        assert_eq!(slab.get(second).map(|c| c.socket), Some(2));
    }

    #[test]
    fn a_full_slab_gives_the_connection_back() {
        let mut slab = ConnSlab::new(1500);
        for socket in 0..1500 {
            assert!(slab.insert(connection(socket)).is_ok());
        }
        let refused = slab.insert(connection(1500));
        assert_eq!(refused.map_err(|c| c.socket), Err(1500));
        assert_eq!(slab.len(), 1500);
    }

    #[test]
    fn empty_pages_give_their_memory_back_and_their_old_keys_still_miss() {
        let mut slab = ConnSlab::new(10 * PAGE_SLOTS);
        let fill = |slab: &mut ConnSlab| -> Vec<ConnKey> {
            (0..10 * PAGE_SLOTS as u32)
                .map(|socket| slab.insert(connection(socket)).ok().unwrap())
                .collect()
        };
        let held = |slab: &ConnSlab| slab.pages.iter().filter(|p| p.slots.capacity() > 0).count();
        let old = fill(&mut slab);
        assert_eq!(held(&slab), 10);
        for key in &old {
            assert!(slab.remove(*key).is_some());
        }
        assert_eq!((held(&slab), slab.len()), (1, 0));
        let new = fill(&mut slab);
        for (old, new) in old.iter().zip(&new) {
            assert!(slab.get(*old).is_none() && slab.get(*new).is_some());
        }
        assert_eq!(slab.at(new[77].index()).map(|(key, _)| key), Some(new[77]));
    }

    #[test]
    fn new_connections_take_the_lowest_page_so_that_the_upper_ones_empty() {
        let mut slab = ConnSlab::new(4 * PAGE_SLOTS);
        let keys: Vec<_> = (0..4 * PAGE_SLOTS as u32)
            .map(|socket| slab.insert(connection(socket)).ok().unwrap())
            .collect();
        for key in keys.iter().step_by(2) {
            slab.remove(*key);
        }
        for socket in 0..PAGE_SLOTS as u32 {
            let key = slab.insert(connection(socket)).ok().unwrap();
            assert!((key.index() as usize) < 2 * PAGE_SLOTS, "{key:?}");
        }
    }

    #[test]
    fn generations_go_round_without_ever_being_0() {
        assert_eq!(next_generation(1), 2);
        assert_eq!(next_generation((1 << GENERATION_BITS) - 1), 1);
    }

    #[test]
    fn a_key_survives_its_way_through_64_bits() {
        let key = ConnKey { index: (SLOTS_MAX - 1) as u32, generation: (1 << GENERATION_BITS) - 1 };
        assert_eq!(ConnKey::from_bits(key.to_bits()), key);
        let id = key.to_connection_id((SHARDS_MAX - 1) as u16);
        assert_eq!((usize::from(shard_of(id)), ConnKey::from_bits(id)), (SHARDS_MAX - 1, key));
    }
}
