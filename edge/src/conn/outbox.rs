//! Bytes waiting to be sent to one client, and the buffers they wait in.
//!
//! A connection with nothing to send owns no buffer. When it has something, it borrows one from the shard's
//! pool; the driver takes the whole buffer away to send it (one send in flight a connection) and gives it
//! back to the pool afterwards.

/// Capacity of a fresh buffer, in bytes.
const BUFFER_BYTES: usize = 1024;
/// A buffer that grew beyond this is freed instead of kept.
const BUFFER_KEPT_BYTES_MAX: usize = 16 * 1024;
/// Memory that the pool of a shard keeps, in bytes.
const POOL_BYTES_MAX: usize = 1024 * 1024;

/// Free buffers of one shard.
#[derive(Debug, Default)]
pub struct BufferPool {
    free: Vec<Vec<u8>>,
    bytes: usize,
}

impl BufferPool {
    /// A free buffer, empty, with some capacity.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        match self.free.pop() {
            Some(buffer) => {
                self.bytes -= buffer.capacity();
                buffer
            }
            None => Vec::with_capacity(BUFFER_BYTES),
        }
    }

    /// Takes a buffer back; frees it when it is large or the pool holds enough.
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        let wanted = (BUFFER_BYTES..=BUFFER_KEPT_BYTES_MAX).contains(&capacity);
        if wanted && self.bytes + capacity <= POOL_BYTES_MAX {
            buffer.clear();
            self.bytes += capacity;
            self.free.push(buffer);
        }
    }
}

/// What waits to be sent to one client. Bounded by whoever writes: see [`Outbox::bytes`].
#[derive(Debug, Default)]
pub struct Outbox {
    buffer: Vec<u8>,
}

impl Outbox {
    /// Bytes waiting, without those that the driver is sending.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Where to write; what is written goes out behind what already waits.
    pub fn writer(&mut self, pool: &mut BufferPool) -> &mut Vec<u8> {
        if self.buffer.capacity() == 0 {
            self.buffer = pool.take();
        }
        &mut self.buffer
    }

    /// Takes all that waits away, to be sent.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drained_outbox_owns_no_memory_and_its_buffer_is_used_again() {
        let mut pool = BufferPool::default();
        let mut outbox = Outbox::default();
        outbox.writer(&mut pool).extend_from_slice(b"hello");
        let sent = outbox.take();
        let address = sent.as_ptr();
        assert_eq!(outbox.buffer.capacity(), 0);
        pool.give(sent);
        assert_eq!(outbox.writer(&mut pool).as_ptr(), address);
        assert!(outbox.is_empty());
    }

    #[test]
    fn the_pool_keeps_neither_large_buffers_nor_more_than_its_bound() {
        let mut pool = BufferPool::default();
        pool.give(Vec::with_capacity(BUFFER_KEPT_BYTES_MAX + 1));
        assert_eq!(pool.bytes, 0);
        for _ in 0..2 * POOL_BYTES_MAX / BUFFER_BYTES {
            pool.give(Vec::with_capacity(BUFFER_BYTES));
        }
        assert!(pool.bytes <= POOL_BYTES_MAX);
    }
}
