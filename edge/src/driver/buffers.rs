//! Receive buffers, lent by the ring for one event.
//!
//! A provided buffer ring (io_uring_register_buf_ring(3)): the kernel takes a free buffer when bytes have
//! arrived, the shard looks at them, and the buffer goes back at once. An idle connection owns none.

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

impl Lent {
    /// From a completion: `id` and `bytes` as the kernel said them.
    pub(super) fn new(id: u16, bytes: u32) -> Self {
        Self { id, bytes }
    }
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
}

/// See the module.
#[derive(Debug)]
pub(super) struct Buffers {
    entries: Mapping,
    memory: Mapping,
    count: u16,
    bytes_each: u32,
    tail: u16,
}

impl Buffers {
    /// Registers `count` buffers (a power of two, at most 32,768) of `bytes_each` with the ring.
    ///
    /// # Errors
    /// What mmap(2) or the registration says.
    pub(super) fn register(ring: &IoUring, count: u16, bytes_each: u32) -> io::Result<Self> {
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
        let mut buffers = Self { entries, memory, count, bytes_each, tail: 0 };
        for id in 0..count {
            buffers.put(id);
        }
        buffers.publish();
        Ok(buffers)
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
        self.put(lent.id);
    }

    /// Lets the kernel see what was given back. Once for many.
    pub(super) fn publish(&mut self) {
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
