//! Sends in flight: the buffers that the kernel reads from until it says that it is done.

use crate::conn::ConnKey;

/// One send.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) key: ConnKey,
    pub(super) socket: u32,
    pub(super) buffer: Vec<u8>,
    /// How much of it the kernel has taken.
    pub(super) sent: usize,
    /// Tells it from others that had its index.
    serial: u32,
    /// Nothing is said when all of it goes out at once.
    quiet: bool,
}

/// A quiet send of which nothing was heard yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quiet {
    index: u32,
    serial: u32,
}

/// See the module. At most one a connection, so bounded by the slab.
#[derive(Debug, Default)]
pub(super) struct Sends {
    slots: Vec<Option<InFlight>>,
    free: Vec<u32>,
    serial: u32,
}

impl Sends {
    /// Keeps a buffer until [`Self::take`] or, when it is quiet, [`Self::settle`]; returns the number for the ring's user
    /// data, what is kept, and the name for [`Self::settle`].
    pub(super) fn insert(
        &mut self,
        key: ConnKey,
        socket: u32,
        buffer: Vec<u8>,
        quiet: bool,
    ) -> (u32, &InFlight, Quiet) {
        self.serial = self.serial.wrapping_add(1);
        let serial = self.serial;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        let send = InFlight { key, socket, buffer, sent: 0, serial, quiet };
        (index, self.slots[index as usize].insert(send), Quiet { index, serial })
    }

    /// A quiet send could not go out at once, of which `sent` bytes did: from now on it speaks. `None` when it was not
    /// quiet, or has nothing left to send.
    pub(super) fn speak(&mut self, index: u32, sent: usize) -> Option<&InFlight> {
        let send = self.slots.get_mut(index as usize)?.as_mut().filter(|send| send.quiet)?;
        if send.sent + sent >= send.buffer.len() {
            return None;
        }
        send.sent += sent;
        send.quiet = false;
        Some(send)
    }

    /// A quiet send has gone out, unless it has spoken.
    pub(super) fn settle(&mut self, quiet: Quiet) -> Option<InFlight> {
        let slot = self.slots.get_mut(quiet.index as usize)?;
        let send = slot.take_if(|send| send.quiet && send.serial == quiet.serial)?;
        self.free.push(quiet.index);
        Some(send)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn key(slot: u64) -> ConnKey {
        ConnKey::from_bits(slot)
    }

    #[test]
    fn a_quiet_send_settles_once_and_not_after_it_has_spoken() {
        let mut sends = Sends::default();
        let (first, _, quiet) = sends.insert(key(1), 1, vec![0; 10], true);
        assert_eq!(sends.settle(quiet).map(|send| send.key), Some(key(1)));
        assert!(sends.settle(quiet).is_none() && sends.take(first).is_none());

        let (second, _, quiet) = sends.insert(key(2), 2, vec![0; 10], true);
        assert_eq!(sends.speak(second, 4).map(|send| send.sent), Some(4));
        assert!(sends.speak(second, 1).is_none(), "it has spoken already");
        assert!(sends.settle(quiet).is_none());
        assert_eq!(sends.take(second).map(|send| (send.key, send.sent)), Some((key(2), 4)));
    }

    #[test]
    fn an_old_name_does_not_settle_the_next_send_of_its_index() {
        let mut sends = Sends::default();
        let (first, _, old) = sends.insert(key(1), 1, vec![0; 10], true);
        assert!(sends.take(first).is_some());
        let (second, ..) = sends.insert(key(2), 2, vec![0; 10], true);
        assert_eq!(first, second);
        assert!(sends.settle(old).is_none());
        assert!(sends.take(second).is_some());
    }
}
