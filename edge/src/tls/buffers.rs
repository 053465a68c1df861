//! Buffers for what is cut: part of a record, part of a handshake, and handshake bytes that wait to be sent.

/// Buffers that a shard keeps for reuse.
const KEPT_MAX: usize = 256;
/// Capacity that they may have together, in bytes.
const KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes that wait. Boxed, so that who has none pays a pointer.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    pub(super) bytes: Vec<u8>,
}

/// Where the connections of one shard get their buffers, and give them back.
///
/// Keeps at most 256 with 4 MiB in all and frees what is over, so the steady state allocates nothing.
#[derive(Debug)]
pub(super) struct Buffers {
    #[expect(clippy::vec_box, reason = "boxes move between here and connections as they are")]
    free: Vec<Box<Buffer>>,
    kept_bytes: usize,
    #[cfg(test)]
    lent: usize,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self {
            free: Vec::with_capacity(KEPT_MAX),
            kept_bytes: 0,
            #[cfg(test)]
            lent: 0,
        }
    }

    /// An empty buffer.
    pub(super) fn take(&mut self) -> Box<Buffer> {
        #[cfg(test)]
        {
            self.lent += 1;
        }
        let Some(buffer) = self.free.pop() else { return Box::default() };
        self.kept_bytes -= buffer.bytes.capacity();
        buffer
    }

    /// Keeps `buffer` for the next who wants one, or frees it.
    pub(super) fn give_back(&mut self, mut buffer: Box<Buffer>) {
        #[cfg(test)]
        {
            self.lent -= 1;
        }
        let kept_bytes = self.kept_bytes + buffer.bytes.capacity();
        if self.free.len() < KEPT_MAX && kept_bytes <= KEPT_BYTES_MAX {
            buffer.bytes.clear();
            self.free.push(buffer);
            self.kept_bytes = kept_bytes;
        }
    }
}

#[cfg(test)]
impl Buffers {
    pub(super) fn all_are_back(&self) -> bool {
        self.lent == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_over_the_bounds_are_freed() {
        let mut buffers = Buffers::new();
        let taken: Vec<_> = (0..KEPT_MAX + 5).map(|_| buffers.take()).collect();
        taken.into_iter().for_each(|buffer| buffers.give_back(buffer));
        assert_eq!(buffers.free.len(), KEPT_MAX);

        let mut buffers = Buffers::new();
        let (mut large, mut small) = (buffers.take(), buffers.take());
        large.bytes.reserve_exact(KEPT_BYTES_MAX);
        small.bytes.reserve_exact(1);
        buffers.give_back(large);
        buffers.give_back(small);
        assert_eq!((buffers.free.len(), buffers.kept_bytes), (1, KEPT_BYTES_MAX));
        buffers.take();
        assert_eq!(buffers.kept_bytes, 0);
    }
}
