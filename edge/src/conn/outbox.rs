//! Bytes waiting to be sent to one client, and the buffers they wait in.
//!
//! A connection with nothing to send owns no buffer. When it has something, it borrows one from the shard's
//! pool; the driver takes the whole buffer away to send it (one send in flight a connection) and gives it
//! back to the pool afterwards. The buffer hangs by one pointer, because a million idle connections have it.

/// Capacity of a fresh buffer, in bytes.
const BUFFER_BYTES: usize = 1024;
/// A buffer that grew beyond this is freed instead of kept.
const BUFFER_KEPT_BYTES_MAX: usize = 16 * 1024;
/// A buffer behind one pointer: an idle connection pays 8 bytes for it, not 24.
type Boxed = Box<Vec<u8>>;

/// Free buffers of one shard.
#[derive(Debug)]
pub struct BufferPool {
    free: Vec<Boxed>,
    /// Boxes whose buffer is with the driver.
    hollow: Vec<Boxed>,
    bytes: usize,
    bytes_max: usize,
}

impl BufferPool {
    /// An empty pool that keeps at most `bytes_max` of memory.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { free: Vec::new(), hollow: Vec::new(), bytes: 0, bytes_max }
    }

    /// A free buffer, empty, with some capacity.
    fn take(&mut self) -> Boxed {
        match self.free.pop() {
            Some(buffer) => {
                self.bytes -= buffer.capacity();
                buffer
            }
            None => {
                let mut buffer = self.hollow.pop().unwrap_or_default();
                buffer.reserve(BUFFER_BYTES);
                buffer
            }
        }
    }

    /// A free buffer for what becomes of an outbox on its way to the driver.
    #[must_use]
    pub fn buffer(&mut self) -> Vec<u8> {
        let mut boxed = self.take();
        let buffer = std::mem::take(&mut *boxed);
        self.give_hollow(boxed);
        buffer
    }

    /// Takes a buffer back; frees it when it is large or the pool holds enough.
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        let wanted = (BUFFER_BYTES..=BUFFER_KEPT_BYTES_MAX).contains(&capacity);
        if wanted && self.bytes + capacity <= self.bytes_max {
            buffer.clear();
            self.bytes += capacity;
            let mut boxed = self.hollow.pop().unwrap_or_default();
            *boxed = buffer;
            self.free.push(boxed);
        }
    }

    fn give_hollow(&mut self, boxed: Boxed) {
        // As many as there can be buffers: beyond that they are freed with the burst that made them.
        if self.hollow.len() < self.bytes_max / BUFFER_BYTES {
            self.hollow.push(boxed);
        }
    }
}

/// What waits to be sent to one client. Bounded by whoever writes: see [`Outbox::bytes`].
#[derive(Debug, Default)]
pub struct Outbox {
    buffer: Option<Boxed>,
}

const _: () = assert!(size_of::<Outbox>() == 8);

impl Outbox {
    /// Bytes waiting, without those that the driver is sending.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.buffer.as_ref().map_or(0, |buffer| buffer.len())
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes() == 0
    }

    /// Where to write; what is written goes out behind what already waits.
    pub fn writer(&mut self, pool: &mut BufferPool) -> &mut Vec<u8> {
        self.buffer.get_or_insert_with(|| pool.take())
    }

    /// Takes all that waits away, to be sent.
    #[must_use]
    pub fn take(&mut self, pool: &mut BufferPool) -> Vec<u8> {
        let Some(mut boxed) = self.buffer.take() else { return Vec::new() };
        let buffer = std::mem::take(&mut *boxed);
        pool.give_hollow(boxed);
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drained_outbox_owns_no_memory_and_its_buffer_is_used_again() {
        let mut pool = BufferPool::new(1 << 20);
        let mut outbox = Outbox::default();
        outbox.writer(&mut pool).extend_from_slice(b"hello");
        let sent = outbox.take(&mut pool);
        let address = sent.as_ptr();
        assert!(outbox.buffer.is_none() && sent == b"hello");
        pool.give(sent);
        assert_eq!(outbox.writer(&mut pool).as_ptr(), address);
        assert!(outbox.is_empty());
    }

    #[test]
    fn the_pool_keeps_neither_large_buffers_nor_more_than_its_bound() {
        let bytes_max = 64 * 1024;
        let mut pool = BufferPool::new(bytes_max);
        pool.give(Vec::with_capacity(BUFFER_KEPT_BYTES_MAX + 1));
        assert_eq!(pool.bytes, 0);
        for _ in 0..2 * bytes_max / BUFFER_BYTES {
            pool.give(Vec::with_capacity(BUFFER_BYTES));
        }
        assert!(pool.bytes <= bytes_max);
        for _ in 0..2 * bytes_max / BUFFER_BYTES {
            pool.give_hollow(Box::default());
        }
        assert!(pool.hollow.len() <= bytes_max / BUFFER_BYTES);
    }
}
