//! Receive buffers, lent by the ring for one event.
//!
//! A provided buffer ring (io_uring_register_buf_ring(3)): the kernel takes a free buffer when bytes have
//! arrived, the shard looks at them, and the buffer goes back at once. An idle connection owns none.
//!
//! The kernel takes buffers in the order in which they were offered, so with all of them offered it would walk through
//! all of their pages. Only as many are offered as arrivals need ([`Offer`]), the last used first: those are in
//! the cache, and the rest never becomes memory.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::{IoUring, types::BufRingEntry};

/// Buffer group of the shard's connections; there is one.
pub(super) const GROUP: u16 = 0;

/// A buffer that the kernel has filled. Not `Clone`: it is given back exactly once.
#[derive(Debug)]
pub(super) struct Lent {
    id: u16,
    bytes: u32,
}

/// Zeroed memory straight from the kernel, page by page as it is touched. Never unmapped: the kernel may
/// write into it until the ring that knows it is wholly gone, which happens after the descriptor's close.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> io::Result<Self> {
        // SAFETY: an anonymous mapping at an address of the kernel's choosing touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_ANONYMOUS | libc::MAP_PRIVATE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { start, bytes })
    }

    /// Gives the memory of the page at this offset back; it reads as zeros afterwards.
    fn give_back(&self, offset: usize) {
        assert!(offset.is_multiple_of(PAGE_BYTES) && offset < self.bytes);
        // SAFETY: the page lies inside the mapping (above; a mapping is whole pages). The caller says that nobody
        // refers to it. When it fails the memory is kept, which harms nobody.
        unsafe {
            libc::madvise(self.start.as_ptr().add(offset).cast(), PAGE_BYTES, libc::MADV_DONTNEED)
        };
    }
}

/// What memory is given back by. On a kernel with larger pages the calls fail, and memory is kept.
const PAGE_BYTES: usize = 4096;

/// How many buffers are offered to the kernel at once.
///
/// Grows when receives keep running out (which costs a submission each, and loses nothing), shrinks when far fewer are
/// in use; a storm of a moment moves nothing. Looked at once a tick.
#[derive(Debug)]
struct Offer {
    buffers: u16,
    least: u16,
    /// Since the last tick: buffers lent, receives that found none, and the most lent in one turn.
    lent: u32,
    empty: u32,
    turn_lent: u16,
    turn_lent_max: u16,
    /// Ticks in a row in which too many receives ran out, or in which a quarter would have done.
    short_ticks: u16,
    ample_ticks: u16,
}

/// What a shard offers at first, and at least: one with a full ring, and one that shares its core with many others.
const OFFER_MIN: u16 = 256;
const OFFER_MIN_SMALL: u16 = 64;
/// A ring of fewer buffers than this is such a one.
const FULL_COUNT: u16 = 1024;

/// How many of a shard's `count` buffers are offered at least.
pub(super) fn offered_min(count: u16) -> u16 {
    if count < FULL_COUNT { OFFER_MIN_SMALL } else { OFFER_MIN }
}

/// Ticks in a row that make the offer grow: half a second.
const SHORT_TICKS: u16 = 5;
/// Ticks in a row that make it shrink: ten seconds.
const AMPLE_TICKS: u16 = 100;

impl Offer {
    fn new(least: u16) -> Self {
        Self {
            buffers: least,
            least,
            lent: 0,
            empty: 0,
            turn_lent: 0,
            turn_lent_max: 0,
            short_ticks: 0,
            ample_ticks: 0,
        }
    }

    fn end_turn(&mut self) {
        self.turn_lent_max = self.turn_lent_max.max(self.turn_lent);
        self.turn_lent = 0;
    }

    /// Says whether it has shrunk.
    fn end_tick(&mut self, count: u16) -> bool {
        let short = self.empty > self.lent / 16;
        let ample = self.turn_lent_max < self.buffers / 4;
        self.short_ticks = if short { self.short_ticks + 1 } else { 0 };
        self.ample_ticks = if ample { self.ample_ticks + 1 } else { 0 };
        let grows = self.short_ticks >= SHORT_TICKS;
        if grows {
            self.buffers = self.buffers.saturating_mul(2).min(count);
            self.short_ticks = 0;
        }
        let shrinks = !grows && self.ample_ticks >= AMPLE_TICKS && self.buffers > self.least;
        if shrinks {
            self.buffers = (self.buffers / 2).max(self.least);
            self.ample_ticks = 0;
        }
        (self.lent, self.empty, self.turn_lent_max) = (0, 0, 0);
        shrinks
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Buffers {
    entries: Mapping,
    memory: Mapping,
    count: u16,
    bytes_each: u32,
    tail: u16,
    /// Buffers that are neither offered nor lent; the last used on top.
    spare: Vec<u16>,
    /// Buffers that the kernel may take.
    offered: u16,
    offer: Offer,
}

impl Buffers {
    /// Registers `count` buffers (a power of two, at most 32,768) of `bytes_each` with the ring, of which `offered_min` are
    /// offered at least.
    ///
    /// # Errors
    /// What mmap(2) or the registration says.
    pub(super) fn register(
        ring: &IoUring,
        count: u16,
        offered_min: u16,
        bytes_each: u32,
    ) -> io::Result<Self> {
        assert!(count.is_power_of_two() && bytes_each > 0);
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = Mapping::new(usize::from(count) * bytes_each as usize)?;
        // SAFETY: the mapping is page-aligned, holds `count` entries and is never unmapped.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                entries.start.as_ptr() as u64,
                count,
                GROUP,
                0,
            )?;
        }
        let mut buffers = Self {
            entries,
            memory,
            count,
            bytes_each,
            tail: 0,
            spare: (0..count).rev().collect(),
            offered: 0,
            offer: Offer::new(offered_min.min(count)),
        };
        buffers.publish();
        Ok(buffers)
    }

    /// A completion says that the kernel has filled buffer `id` with so many bytes.
    pub(super) fn lend(&mut self, id: u16, bytes: u32) -> Lent {
        self.offered = self.offered.saturating_sub(1);
        self.offer.lent += 1;
        self.offer.turn_lent += 1;
        Lent { id, bytes }
    }

    /// A receive found no buffer.
    pub(super) fn note_empty(&mut self) {
        self.offer.empty += 1;
    }

    /// A tick has passed: decides how many buffers are offered from now on. Those that are too many give their memory
    /// back.
    pub(super) fn end_tick(&mut self) {
        if self.offer.end_tick(self.count) {
            self.trim();
        }
    }

    /// Gives pages back on which nothing but spare buffers lie.
    fn trim(&mut self) {
        let mut is_spare = vec![false; usize::from(self.count)];
        self.spare.iter().for_each(|id| is_spare[usize::from(*id)] = true);
        let each = self.bytes_each as usize;
        for page in (0..self.memory.bytes).step_by(PAGE_BYTES) {
            let buffers = page / each..(page + PAGE_BYTES).min(self.memory.bytes).div_ceil(each);
            if is_spare[buffers].iter().all(|spare| *spare) {
                self.memory.give_back(page);
            }
        }
    }

    /// The bytes in a lent buffer.
    pub(super) fn bytes_of(&mut self, lent: &Lent) -> &mut [u8] {
        assert!(lent.id < self.count && lent.bytes <= self.bytes_each);
        let offset = usize::from(lent.id) * self.bytes_each as usize;
        debug_assert!(offset + lent.bytes as usize <= self.memory.bytes);
        // SAFETY: buffer `id` lies inside the mapping (above). The kernel does not touch it between the
        // completion that lent it and the `put` that gives it back; `Lent` is neither Clone nor Copy, and
        // `&mut self` keeps two of them from being looked at together.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.memory.start.as_ptr().add(offset),
                lent.bytes as usize,
            )
        }
    }

    /// Gives a buffer back; the kernel sees it after [`Self::publish`].
    pub(super) fn give_back(&mut self, lent: Lent) {
        self.spare.push(lent.id);
    }

    /// Offers as many buffers as are wanted. Once a turn.
    pub(super) fn publish(&mut self) {
        self.offer.end_turn();
        while self.offered < self.offer.buffers
            && let Some(id) = self.spare.pop()
        {
            self.put(id);
            self.offered += 1;
        }
        // SAFETY: the tail lies in the first entry of the mapped ring (its reserved field), is aligned for
        // u16, and is only ever accessed atomically from here on.
        let tail = unsafe {
            &*BufRingEntry::tail(self.entries.start.as_ptr().cast::<BufRingEntry>())
                .cast::<AtomicU16>()
        };
        // Pairs with the kernel's acquire load of the tail: the entries written before are visible with it.
        tail.store(self.tail, Ordering::Release);
    }

    fn put(&mut self, id: u16) {
        let at = usize::from(self.tail & (self.count - 1));
        debug_assert!((at + 1) * size_of::<BufRingEntry>() <= self.entries.bytes);
        // SAFETY: `at` is below `count` (a power of two), so the entry lies inside the mapping; the kernel
        // reads it only after the tail has moved past it. Offsets as in `bytes_of`.
        unsafe {
            let address =
                self.memory.start.as_ptr().add(usize::from(id) * self.bytes_each as usize);
            let entry = &mut *self.entries.start.as_ptr().cast::<BufRingEntry>().add(at);
            entry.set_addr(address as u64);
            entry.set_len(self.bytes_each);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offer_grows_when_receives_keep_running_out_and_not_for_a_moment() {
        let mut offer = Offer::new(OFFER_MIN);
        for tick in 0..SHORT_TICKS {
            assert_eq!(offer.buffers, OFFER_MIN, "tick {tick}");
            (offer.lent, offer.empty) = (1000, 100);
            offer.end_tick(4096);
        }
        assert_eq!(offer.buffers, 2 * OFFER_MIN);
        for _ in 0..3 {
            (offer.lent, offer.empty) = (1000, 100);
            offer.end_tick(4096);
            (offer.lent, offer.empty) = (1000, 10);
            offer.turn_lent_max = OFFER_MIN;
            offer.end_tick(4096);
        }
        assert_eq!(offer.buffers, 2 * OFFER_MIN);
        for _ in 0..100 {
            (offer.lent, offer.empty) = (1000, 1000);
            offer.end_tick(4096);
        }
        assert_eq!(offer.buffers, 4096);
    }

    #[test]
    fn the_offer_shrinks_when_a_quarter_would_do_for_long_but_not_below_its_minimum() {
        let mut offer = Offer::new(OFFER_MIN);
        offer.buffers = 1024;
        for _ in 0..AMPLE_TICKS - 1 {
            offer.end_tick(4096);
        }
        assert_eq!(offer.buffers, 1024);
        for _ in 0..10 * AMPLE_TICKS {
            offer.end_tick(4096);
        }
        assert_eq!(offer.buffers, OFFER_MIN);
    }

    #[test]
    fn spare_buffers_give_their_memory_back_and_the_others_keep_it() {
        let ring = IoUring::new(8).unwrap();
        let mut buffers = Buffers::register(&ring, 512, offered_min(512), 2048).unwrap();
        for id in 0..512 {
            let lent = Lent { id, bytes: 2048 };
            buffers.bytes_of(&lent).fill(1);
        }
        buffers.trim();
        let values: Vec<u8> =
            (0..512).map(|id| buffers.bytes_of(&Lent { id, bytes: 1 })[0]).collect();
        // The lowest are offered, the rest is spare.
        assert_eq!(values, [vec![1; OFFER_MIN_SMALL.into()], vec![0; 448]].concat());
    }

    #[test]
    fn a_ring_of_few_buffers_offers_them_all() {
        let ring = IoUring::new(8).unwrap();
        let buffers = Buffers::register(&ring, 4, offered_min(4), 2048).unwrap();
        assert_eq!((buffers.offered, buffers.spare.len()), (4, 0));
    }
}
