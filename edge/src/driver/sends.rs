//! Sends in flight: the buffers that the kernel reads from until it says that it is done.

use crate::conn::ConnKey;

/// One send.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) key: ConnKey,
    pub(super) buffer: Vec<u8>,
}

/// See the module. At most one a connection, so bounded by the slab.
#[derive(Debug, Default)]
pub(super) struct Sends {
    slots: Vec<Option<InFlight>>,
    free: Vec<u32>,
}

impl Sends {
    /// Keeps a buffer until [`Self::take`] and returns the number for the ring's user data.
    pub(super) fn insert(&mut self, send: InFlight) -> u32 {
        match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = Some(send);
                index
            }
            None => {
                self.slots.push(Some(send));
                (self.slots.len() - 1) as u32
            }
        }
    }

    /// The send whose completion has come.
    pub(super) fn take(&mut self, index: u32) -> Option<InFlight> {
        let send = self.slots.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(send)
    }
}

impl Drop for Sends {
    fn drop(&mut self) {
        // The ring goes asynchronously: the kernel may still read from what is in flight.
        for send in self.slots.drain(..).flatten() {
            std::mem::forget(send.buffer);
        }
    }
}
