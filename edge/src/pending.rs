//! Sends that no router has answered yet, kept in the bytes in which they go over the link.
//!
//! Each is *told* once it has been handed to the link of the router that has its partition. When the partition gets another
//! router, or its router another link, its sends are untold again, and go out oldest first before any new one; so do those
//! that found no router. One that waited too long is told to its sender as
//! unavailable, and a late answer to it is dropped (the sender repeats it under the same client message id,
//! so nothing is stored twice). In the steady state blocks of bytes are used again: nothing is allocated.

use std::collections::VecDeque;

use arrayvec::ArrayString;
use hawser_proto::partition::PartitionId;
use hawser_proto::view::link::{Batch, EdgeMessage, Send};

use crate::conn::ConnKey;
use crate::limits;
use crate::routes::PartitionSet;
use crate::timer::Tick;

/// Bytes a block; a longer message gets a block of its own.
const BLOCK_BYTES: usize = 256 * 1024;
/// Free blocks kept.
const SPARE_BLOCKS_MAX: usize = 4;
/// Sends of one shard that may wait.
const ENTRIES_MAX: usize = 64 * 1024;
/// Sends looked at in one call while those that have to be told are searched for.
const LOOKS_MAX: usize = 8 * 1024;
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
    partition: PartitionId,
    id_bytes: u8,
    answered: bool,
    told: bool,
}

const _: () = assert!(size_of::<Entry>() <= 28);

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
    /// Partitions that may have sends that are not told: a new one to them has to wait its turn.
    behind: PartitionSet,
    /// No send before this ticket has to be told.
    untold_from: u64,
    /// Next ticket to look at, while untold sends are searched for.
    search: Option<u64>,
    /// Partitions of which that search has passed an untold send over: what it has not passed over is told when it ends.
    passed_over: PartitionSet,
}

/// Where sends to a partition go at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way<T> {
    /// To this router.
    Open(T),
    /// Nowhere for now.
    Shut,
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
            behind: PartitionSet::EMPTY,
            untold_from: 0,
            search: None,
            passed_over: PartitionSet::EMPTY,
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

    /// Takes `send` in under a ticket of its own. Returns its bytes, to be told at once, when its partition's way is open and
    /// it overtakes nobody; `None` when [`Self::poll_untold`] gives it later.
    ///
    /// # Errors
    /// [`Full`]; nothing is kept then.
    pub fn push(
        &mut self,
        key: ConnKey,
        deadline: Tick,
        (partition, is_open): (PartitionId, bool),
        send: Send<'_>,
    ) -> Result<Option<&[u8]>, Full> {
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
        let told = is_open && !self.behind.contains(partition);
        if !told {
            self.behind.insert(partition);
        } else if self.behind.is_empty() {
            self.untold_from = ticket + 1;
        }
        self.entries.push_back(Entry {
            key,
            deadline,
            start: start as u32,
            bytes: bytes as u32,
            partition,
            id_bytes: id.len() as u8,
            answered: false,
            told,
        });
        Ok(told.then(|| &block.bytes[start..start + bytes]))
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

    /// These partitions have another router, or another link to it: what was told of them is untold.
    pub fn untell(&mut self, moved: &PartitionSet) {
        let mut untold = self.entries.iter_mut().filter(|entry| moved.contains(entry.partition));
        untold.by_ref().for_each(|entry| entry.told = false);
        self.behind.unite(moved);
        self.untold_from = self.first_ticket;
    }

    /// Ways have opened: [`Self::poll_untold`] has to be asked again, from the oldest that is not told on.
    pub fn start_search(&mut self) {
        let worth_it = !self.behind.is_empty();
        self.search = worth_it.then_some(self.untold_from);
        self.passed_over = PartitionSet::EMPTY;
    }

    /// Whether [`Self::poll_untold`] may have more to give.
    #[must_use]
    pub fn is_searching(&self) -> bool {
        self.search.is_some()
    }

    /// The next send that has to be told, with its way; it counts as told. What has no way is passed over, with all that is
    /// behind it to the same partition. `None` when there is none, or when so many have been looked at that others are to have
    /// their turn.
    ///
    /// Sends of connections that are not `here` any more are not told: their clients repeat them elsewhere, and of a row of
    /// sends the first may have expired meanwhile, so that the later ones would come before it.
    pub fn poll_untold<T>(
        &mut self,
        here: impl Fn(ConnKey) -> bool,
        way: impl Fn(PartitionId) -> Way<T>,
    ) -> Option<(T, &[u8])> {
        for _ in 0..LOOKS_MAX {
            let ticket = self.search?.max(self.first_ticket);
            let at = (ticket - self.first_ticket) as usize;
            let Some(entry) = self.entries.get_mut(at) else {
                self.search = None;
                self.behind = self.passed_over;
                return None;
            };
            self.search = Some(ticket + 1);
            let partition = entry.partition;
            let mut found = None;
            if !entry.told && !entry.answered && here(entry.key) {
                let is_behind = self.passed_over.contains(partition);
                let Way::Open(to) = (if is_behind { Way::Shut } else { way(partition) }) else {
                    self.passed_over.insert(partition);
                    continue;
                };
                entry.told = true;
                found = Some((to, entry.start as usize..(entry.start + entry.bytes) as usize));
            }
            if self.passed_over.is_empty() {
                self.untold_from = ticket + 1;
            }
            if let Some((to, range)) = found {
                let block = self.block_of(at)?;
                return self.blocks[block].bytes.get(range).map(|bytes| (to, bytes));
            }
        }
        None
    }

    /// There is another number of partitions: finds that of every send anew. All are untold.
    pub fn repartition(&mut self, partition_of: impl Fn(&str) -> PartitionId) {
        let mut behind = PartitionSet::EMPTY;
        for at in 0..self.entries.len() {
            let partition = self.send_at(at).map_or(0, |send| partition_of(send.to_user));
            behind.insert(partition);
            let entry = &mut self.entries[at];
            (entry.partition, entry.told) = (partition, false);
        }
        self.behind = behind;
        self.untold_from = self.first_ticket;
        self.start_search();
    }

    fn send_at(&self, at: usize) -> Option<Send<'_>> {
        let entry = self.entries.get(at)?;
        let block = &self.blocks[self.block_of(at)?];
        let bytes = block.bytes.get(entry.start as usize..(entry.start + entry.bytes) as usize)?;
        match EdgeMessage::read(Batch::new(bytes).next_message().ok()??) {
            Ok(EdgeMessage::Send(send)) => Some(send),
            Ok(_) | Err(_) => None,
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

    /// To the one partition that there is, whose way is open.
    const OPEN: (PartitionId, bool) = (0, true);

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
            let told = pending.push(key(n), Tick(10), OPEN, send(&format!("m{n}"), b"x")).unwrap();
            assert_eq!(told.map(ticket_in), Some(n));
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

    /// The tickets that are told now, with the router that the way to their partition leads to.
    fn told(pending: &mut PendingSends, way: impl Fn(PartitionId) -> Way<u8>) -> Vec<(u64, u8)> {
        let mut told = Vec::new();
        while let Some((to, bytes)) = pending.poll_untold(|_| true, &way) {
            told.push((ticket_in(bytes), to));
        }
        told
    }

    fn only(partition: PartitionId) -> PartitionSet {
        let mut set = PartitionSet::EMPTY;
        set.insert(partition);
        set
    }

    #[test]
    fn unanswered_sends_go_out_again_in_order_and_new_ones_behind_them() {
        let mut pending = PendingSends::default();
        for n in 1..=3u64 {
            pending.push(key(n), Tick(10), OPEN, send("m", b"x")).unwrap();
        }
        pending.answer(2);
        pending.untell(&only(0));
        pending.start_search();
        let to_a = |_| Way::Open(7u8);
        let mut next = || pending.poll_untold(|_| true, to_a).map(|(_, bytes)| ticket_in(bytes));
        assert_eq!(next(), Some(1));
        assert_eq!(pending.push(key(4), Tick(10), OPEN, send("m", b"x")), Ok(None));
        assert!(pending.is_searching());
        assert_eq!(told(&mut pending, to_a), [(3, 7), (4, 7)]);
        assert!(!pending.is_searching());
        assert!(pending.push(key(4), Tick(10), OPEN, send("m", b"x")).unwrap().is_some());
    }

    #[test]
    fn what_has_no_way_holds_up_its_own_partition_and_no_other() {
        let mut pending = PendingSends::default();
        for (n, to) in [(1, (3, false)), (2, (4, true)), (3, (3, true)), (4, (4, true))] {
            let told = pending.push(key(n), Tick(10), to, send("m", b"x")).unwrap();
            assert_eq!(told.is_some(), to.0 == 4, "send {n}");
        }
        pending.start_search();
        assert_eq!(told(&mut pending, |_| Way::Shut), []);
        // The way opens in the middle of a search that has passed the first send over.
        pending.start_search();
        let opened = std::cell::Cell::new(false);
        let way = |_| if opened.replace(true) { Way::Open(1) } else { Way::Shut };
        assert_eq!(told(&mut pending, way), []);
        assert_eq!(pending.push(key(5), Tick(10), (3, true), send("m", b"x")), Ok(None));
        pending.start_search();
        assert_eq!(told(&mut pending, |_| Way::Open(1)), [(1, 1), (3, 1), (5, 1)]);
        assert!(pending.push(key(6), Tick(10), (3, true), send("m", b"x")).unwrap().is_some());
        // Only what moved is said again.
        pending.untell(&only(4));
        pending.start_search();
        assert_eq!(told(&mut pending, |_| Way::Open(2)), [(2, 2), (4, 2)]);
    }

    #[test]
    fn with_another_number_of_partitions_all_sends_find_theirs_again() {
        let mut pending = PendingSends::default();
        for n in 1..=2 {
            pending.push(key(n), Tick(10), OPEN, send("m", b"x")).unwrap();
        }
        pending.repartition(|user| if user == "bob" { 9 } else { 1 });
        assert_eq!(told(&mut pending, |at| Way::Open(at as u8)), [(1, 9), (2, 9)]);
    }

    #[test]
    fn sends_of_a_client_that_left_do_not_go_out_again() {
        let mut pending = PendingSends::default();
        for n in [1, 2, 1, 2] {
            pending.push(key(n), Tick(10), OPEN, send("m", b"x")).unwrap();
        }
        pending.untell(&only(0));
        pending.start_search();
        let here = |known: ConnKey| known == key(2);
        let mut next =
            || pending.poll_untold(here, |_| Way::Open(())).map(|((), bytes)| ticket_in(bytes));
        assert_eq!([next(), next(), next()], [Some(2), Some(4), None]);
    }

    #[test]
    fn sends_expire_oldest_first_and_late_answers_find_nobody() {
        let mut pending = PendingSends::default();
        pending.push(key(1), Tick(10), OPEN, send("m1", b"x")).unwrap();
        pending.push(key(2), Tick(12), OPEN, send("m2", b"x")).unwrap();
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
        while pending.push(key(taken), Tick(1), OPEN, send("m", &payload)).is_ok() {
            taken += 1;
        }
        assert!(pending.bytes <= PENDING_BYTES_MAX && taken > 400, "{taken}");
        for ticket in 1..=taken / 2 {
            assert!(pending.answer(ticket).is_some());
        }
        assert!(pending.push(key(0), Tick(1), OPEN, send("m", &payload)).is_ok());
    }
}
