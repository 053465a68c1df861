//! Sends that the router has not answered yet, kept in the bytes in which they go over the link.
//!
//! After a link breaks they are sent again, oldest first; one that waited too long is told to its sender as
//! unavailable, and a late answer to it is dropped (the sender repeats it under the same client message id,
//! so nothing is stored twice). In the steady state blocks of bytes are used again: nothing is allocated.

use std::collections::VecDeque;

use arrayvec::ArrayString;
use hawser_proto::view::link::{EdgeMessage, Send};

use crate::conn::ConnKey;
use crate::limits;
use crate::timer::Tick;

/// Bytes a block; a longer message gets a block of its own.
const BLOCK_BYTES: usize = 256 * 1024;
/// Free blocks kept.
const SPARE_BLOCKS_MAX: usize = 4;
/// Sends of one shard that may wait.
const ENTRIES_MAX: usize = 64 * 1024;
/// Bytes of the blocks of one shard. Past it a client is told OVERLOADED.
pub const PENDING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A client message id by value.
pub type ClientMessageId = ArrayString<{ limits::CLIENT_MESSAGE_ID_BYTES_MAX }>;

/// No room for one more: a policy decides, see [`PENDING_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// Who waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The sender's connection; it may be gone.
    pub key: ConnKey,
    /// What the sender called the message.
    pub client_message_id: ClientMessageId,
}

struct Entry {
    key: ConnKey,
    deadline: Tick,
    start: u32,
    bytes: u32,
    id_bytes: u8,
    answered: bool,
}

struct Block {
    bytes: Vec<u8>,
    entries: u32,
}

/// See the module. Tickets count up from 1 and never repeat.
pub struct PendingSends {
    entries: VecDeque<Entry>,
    first_ticket: u64,
    blocks: VecDeque<Block>,
    /// Entries of the first block that are gone already.
    first_block_gone: u32,
    spare: Vec<Vec<u8>>,
    bytes: usize,
    /// Next ticket to send again, while that goes on; then its block and its place among the entries.
    resend: Option<u64>,
}

impl Default for PendingSends {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            first_ticket: 1,
            blocks: VecDeque::new(),
            first_block_gone: 0,
            spare: Vec::new(),
            bytes: 0,
            resend: None,
        }
    }
}

impl PendingSends {
    /// Sends that wait, answered ones behind an unanswered one included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes `send` in under a ticket of its own and returns its bytes for the link.
    ///
    /// # Errors
    /// [`Full`]; nothing is kept then.
    pub fn push(&mut self, key: ConnKey, deadline: Tick, send: Send<'_>) -> Result<&[u8], Full> {
        if self.entries.len() >= ENTRIES_MAX {
            return Err(Full);
        }
        let ticket = self.first_ticket + self.entries.len() as u64;
        let id = send.client_message_id;
        // Tags, lengths and numbers of a Send come to less than 128 bytes.
        let needed = send.payload.len()
            + send.from.len()
            + send.to_user.len()
            + send.to_group.len()
            + 2 * id.len()
            + 128;
        let fits = self.blocks.back().is_some_and(|b| b.bytes.capacity() - b.bytes.len() >= needed);
        if !fits {
            self.add_block(needed)?;
        }
        let Some(block) = self.blocks.back_mut() else { return Err(Full) };
        let start = block.bytes.len();
        EdgeMessage::Send(Send { ticket, ..send }).write(&mut block.bytes);
        let bytes = block.bytes.len() - start;
        block.bytes.extend_from_slice(id.as_bytes());
        block.entries += 1;
        self.entries.push_back(Entry {
            key,
            deadline,
            start: start as u32,
            bytes: bytes as u32,
            id_bytes: id.len() as u8,
            answered: false,
        });
        Ok(&block.bytes[start..start + bytes])
    }

    /// Takes the router's answer to `ticket`: who waits for it, or `None` when nobody does any more.
    pub fn answer(&mut self, ticket: u64) -> Option<Waiting> {
        let at = usize::try_from(ticket.checked_sub(self.first_ticket)?).ok()?;
        let entry = self.entries.get(at)?;
        if entry.answered {
            return None;
        }
        let waiting = self.waiting_at(at);
        self.entries[at].answered = true;
        while self.entries.front().is_some_and(|e| e.answered) {
            self.pop();
        }
        waiting
    }

    /// Takes the oldest send out if its deadline is at or before `now`.
    pub fn poll_expired(&mut self, now: Tick) -> Option<Waiting> {
        if self.next_deadline()? > now {
            return None;
        }
        let waiting = self.waiting_at(0);
        self.pop();
        while self.entries.front().is_some_and(|e| e.answered) {
            self.pop();
        }
        waiting
    }

    /// When the oldest send expires.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        self.entries.front().map(|e| e.deadline)
    }

    /// A new link is up: everything unanswered has to go out once more.
    pub fn start_resend(&mut self) {
        self.resend = (!self.entries.is_empty()).then_some(self.first_ticket);
    }

    /// Whether sends still have to go out once more; a new one must not overtake them, it is only pushed.
    #[must_use]
    pub fn resending(&self) -> bool {
        self.resend.is_some()
    }

    /// The bytes of the next send that has to go out once more. Those of connections that are not `here` any more
    /// do not: their clients repeat them elsewhere, and of a row of sends the first may have expired meanwhile,
    /// so that the later ones would come before it.
    pub fn next_resend(&mut self, here: impl Fn(ConnKey) -> bool) -> Option<&[u8]> {
        loop {
            let ticket = self.resend?.max(self.first_ticket);
            let at = (ticket - self.first_ticket) as usize;
            if at >= self.entries.len() {
                self.resend = None;
                return None;
            }
            self.resend = Some(ticket + 1);
            let entry = &self.entries[at];
            if !entry.answered && here(entry.key) {
                let (start, end) = (entry.start as usize, (entry.start + entry.bytes) as usize);
                let block = self.block_of(at)?;
                return self.blocks[block].bytes.get(start..end);
            }
        }
    }

    fn waiting_at(&self, at: usize) -> Option<Waiting> {
        let entry = self.entries.get(at)?;
        let id_start = (entry.start + entry.bytes) as usize;
        let block = &self.blocks[self.block_of(at)?];
        let id = block.bytes.get(id_start..id_start + usize::from(entry.id_bytes))?;
        let id = std::str::from_utf8(id).ok()?;
        Some(Waiting { key: entry.key, client_message_id: ClientMessageId::from(id).ok()? })
    }

    /// Which block holds entry `at`; there are few blocks, and answers come for the first ones.
    fn block_of(&self, at: usize) -> Option<usize> {
        let mut at = at + self.first_block_gone as usize;
        for (index, block) in self.blocks.iter().enumerate() {
            if at < block.entries as usize {
                return Some(index);
            }
            at -= block.entries as usize;
        }
        None
    }

    fn pop(&mut self) {
        if self.entries.pop_front().is_none() {
            return;
        }
        self.first_ticket += 1;
        self.first_block_gone += 1;
        if self.blocks.front().is_some_and(|b| b.entries == self.first_block_gone) {
            self.first_block_gone = 0;
            if let Some(mut block) = self.blocks.pop_front() {
                self.bytes -= block.bytes.capacity();
                if block.bytes.capacity() == BLOCK_BYTES && self.spare.len() < SPARE_BLOCKS_MAX {
                    block.bytes.clear();
                    self.spare.push(block.bytes);
                }
            }
        }
    }

    fn add_block(&mut self, needed: usize) -> Result<(), Full> {
        let wanted = needed.max(BLOCK_BYTES);
        if self.bytes + wanted > PENDING_BYTES_MAX {
            return Err(Full);
        }
        let spare = if wanted == BLOCK_BYTES { self.spare.pop() } else { None };
        let bytes = spare.unwrap_or_else(|| Vec::with_capacity(wanted));
        self.bytes += bytes.capacity();
        // An empty last block would make the count of entries ambiguous.
        if let Some(last) = self.blocks.pop_back_if(|b| b.entries == 0) {
            self.bytes -= last.bytes.capacity();
        }
        self.blocks.push_back(Block { bytes, entries: 0 });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_proto::view::link::Batch;

    fn key(slot: u64) -> ConnKey {
        ConnKey::from_bits(slot)
    }

    fn send<'a>(id: &'a str, payload: &'a [u8]) -> Send<'a> {
        Send { client_message_id: id, from: "alice", to_user: "bob", payload, ..Send::default() }
    }

    fn ticket_in(bytes: &[u8]) -> u64 {
        let message = Batch::new(bytes).next_message().unwrap().unwrap();
        let Ok(EdgeMessage::Send(send)) = EdgeMessage::read(message) else { panic!("not a Send") };
        send.ticket
    }

    #[test]
    fn answers_find_their_sender_in_any_order_and_only_once() {
        let mut pending = PendingSends::default();
        for n in 1..=3u64 {
            let bytes = pending.push(key(n), Tick(10), send(&format!("m{n}"), b"x")).unwrap();
            assert_eq!(ticket_in(bytes), n);
        }
        let waiting = pending.answer(2).unwrap();
        assert_eq!((waiting.key, waiting.client_message_id.as_str()), (key(2), "m2"));
        assert_eq!(pending.answer(2), None);
        assert_eq!(pending.len(), 3);
        assert!(pending.answer(1).is_some());
        assert_eq!(pending.len(), 1);
        assert!(pending.answer(3).is_some() && pending.is_empty());
        assert_eq!((pending.answer(3), pending.answer(4), pending.answer(0)), (None, None, None));
    }

    #[test]
    fn unanswered_sends_go_out_again_in_order_and_new_ones_behind_them() {
        let mut pending = PendingSends::default();
        for n in 1..=3u64 {
            pending.push(key(n), Tick(10), send("m", b"x")).unwrap();
        }
        pending.answer(2);
        pending.start_resend();
        assert_eq!(pending.next_resend(|_| true).map(ticket_in), Some(1));
        pending.push(key(4), Tick(10), send("m", b"x")).unwrap();
        assert!(pending.resending());
        assert_eq!(pending.next_resend(|_| true).map(ticket_in), Some(3));
        assert_eq!(pending.next_resend(|_| true).map(ticket_in), Some(4));
        assert_eq!(pending.next_resend(|_| true), None);
        assert!(!pending.resending());
    }

    #[test]
    fn sends_of_a_client_that_left_do_not_go_out_again() {
        let mut pending = PendingSends::default();
        for n in [1, 2, 1, 2] {
            pending.push(key(n), Tick(10), send("m", b"x")).unwrap();
        }
        pending.start_resend();
        let here = |known: ConnKey| known == key(2);
        assert_eq!(pending.next_resend(here).map(ticket_in), Some(2));
        assert_eq!(pending.next_resend(here).map(ticket_in), Some(4));
        assert_eq!(pending.next_resend(here), None);
    }

    #[test]
    fn sends_expire_oldest_first_and_late_answers_find_nobody() {
        let mut pending = PendingSends::default();
        pending.push(key(1), Tick(10), send("m1", b"x")).unwrap();
        pending.push(key(2), Tick(12), send("m2", b"x")).unwrap();
        assert_eq!(pending.poll_expired(Tick(9)), None);
        assert_eq!(pending.poll_expired(Tick(11)).map(|w| w.key), Some(key(1)));
        assert_eq!(pending.poll_expired(Tick(11)), None);
        assert_eq!(pending.answer(1), None);
        assert_eq!(pending.answer(2).map(|w| w.key), Some(key(2)));
    }

    #[test]
    fn past_its_bound_it_is_full_and_room_comes_back() {
        let mut pending = PendingSends::default();
        let payload = vec![7; 60 * 1024];
        let mut taken = 0;
        while pending.push(key(taken), Tick(1), send("m", &payload)).is_ok() {
            taken += 1;
        }
        assert!(pending.bytes <= PENDING_BYTES_MAX && taken > 400, "{taken}");
        for ticket in 1..=taken / 2 {
            assert!(pending.answer(ticket).is_some());
        }
        assert!(pending.push(key(0), Tick(1), send("m", &payload)).is_ok());
    }
}
