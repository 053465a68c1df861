//! One user's inbox: dense sequences, devices with their cursors, and the messages that are in memory.
//!
//! ```text
//!            floor                     recent_first                next
//!  freed │ only in the store │ in memory (and in the store below stored.end) │
//! ```
//!
//! What is held is `floor..next`. A message is freed when every known device has acknowledged it, or when
//! the inbox is over its bound. An inbox without devices keeps everything within its bound.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use hawser_proto::client::gap;
use prost::Message as _;

use crate::delivery::Delivery;
use crate::limits;
use crate::record::{DeviceRecord, InboxRecord, MessageRecord};

/// A message in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub message_id: u64,
    /// Sender.
    pub from: Arc<str>,
    /// Opaque.
    pub payload: Bytes,
    /// When it was accepted, in milliseconds since the epoch.
    pub accepted_at_ms: i64,
    /// Not worth delivering from then on; 0: only the inbox's bound counts.
    pub expires_at_ms: i64,
}

impl Entry {
    /// Whether it is too old to be delivered.
    #[must_use]
    pub fn is_expired(&self, unix_ms: i64, age_max_ms: i64) -> bool {
        let expires_by_itself = self.expires_at_ms != 0 && unix_ms >= self.expires_at_ms;
        expires_by_itself || unix_ms >= self.accepted_at_ms.saturating_add(age_max_ms)
    }

    /// The entry of a stored message.
    #[must_use]
    pub fn from_record(record: MessageRecord) -> Self {
        Self {
            message_id: record.message_id,
            from: record.from.into(),
            payload: record.payload,
            accepted_at_ms: record.accepted_at_ms,
            expires_at_ms: record.expires_at_ms,
        }
    }

    /// What the store keeps: the key says whose it is, and repetitions are found elsewhere.
    fn to_stored(&self) -> Bytes {
        let record = MessageRecord {
            to: String::new(),
            from: self.from.to_string(),
            client_message_id: String::new(),
            payload: self.payload.clone(),
            accepted_at_ms: self.accepted_at_ms,
            expires_at_ms: self.expires_at_ms,
            message_id: self.message_id,
        };
        Bytes::from(record.encode_to_vec())
    }

    /// Memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.payload.len()
    }
}

/// One device of the user.
#[derive(Debug)]
pub struct Device {
    /// Its id.
    pub id: Box<str>,
    /// Highest sequence that it has taken over; it never moves back.
    pub cursor: u64,
    /// The cursor that is on its way to the log or there already; `None` when none is.
    pub logged_cursor: Option<u64>,
    /// It stands in the log or in the store, and so outlives the process.
    pub lasting: bool,
    /// When it was last seen, in milliseconds since the epoch.
    pub seen_at_ms: i64,
    /// Present while it is connected.
    pub delivery: Option<Delivery>,
}

/// A message that was told to a device, until somebody has read it: what a receipt needs.
#[derive(Debug)]
struct Told {
    sequence: u64,
    message_id: u64,
    from: Arc<str>,
}

/// Message ids by sender, for one receipt a sender.
pub type ReceiptIds = Vec<(Arc<str>, Vec<u64>)>;

/// The state of one inbox.
#[derive(Debug)]
pub struct Inbox {
    floor: u64,
    next: u64,
    lost_through: u64,
    lost_reason: gap::Reason,
    devices: Vec<Device>,
    recent: VecDeque<Entry>,
    recent_bytes: usize,
    told: VecDeque<Told>,
    /// Highest sequence that any device has acknowledged: the first to do so leads to the receipt.
    delivered_through: u64,
    /// What the store holds.
    stored: Range<u64>,
    /// Sends on their way to the log for this inbox. While there are some it stays in memory.
    pub appending: u32,
    /// Differs from what the store has.
    pub dirty: bool,
    /// A cursor moved that is not in the log.
    pub moved: bool,
    /// When it was last used, on the monotonic clock.
    pub used_at_ms: u64,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            floor: 1,
            next: 1,
            lost_through: 0,
            lost_reason: gap::Reason::Unspecified,
            devices: Vec::new(),
            recent: VecDeque::new(),
            recent_bytes: 0,
            told: VecDeque::new(),
            delivered_through: 0,
            stored: 1..1,
            appending: 0,
            dirty: false,
            moved: false,
            used_at_ms: 0,
        }
    }
}

impl Inbox {
    /// The inbox as the last checkpoint wrote it. Its messages stay in the store.
    #[must_use]
    pub fn from_record(record: InboxRecord) -> Self {
        let devices: Vec<_> = record.devices.into_iter().map(device_from_record).collect();
        let delivered_through = devices.iter().map(|device| device.cursor).max().unwrap_or(0);
        let (floor, next) = (record.floor.max(1), record.next.max(1));
        Self {
            floor,
            next,
            lost_through: record.lost_through,
            lost_reason: gap::Reason::try_from(record.lost_reason as i32).unwrap_or_default(),
            devices,
            delivered_through,
            stored: floor..next,
            ..Self::default()
        }
    }

    /// Lowest sequence that is held; equals [`Inbox::next`] when nothing is.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// Whether a message is kept, here or in the store.
    #[must_use]
    pub fn holds(&self, sequence: u64) -> bool {
        (self.floor..self.next).contains(&sequence)
    }

    /// Sequence that the next message gets.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Highest sequence given so far; 0 before the first.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.next - 1
    }

    /// Lowest sequence that is in memory; below it the store has to be read.
    #[must_use]
    pub fn recent_first(&self) -> u64 {
        self.next - self.recent.len() as u64
    }

    /// The message in memory with this sequence.
    #[must_use]
    pub fn recent(&self, sequence: u64) -> Option<&Entry> {
        let index = sequence.checked_sub(self.recent_first())?;
        self.recent.get(usize::try_from(index).ok()?)
    }

    /// Bytes of messages in memory.
    #[must_use]
    pub fn recent_bytes(&self) -> usize {
        self.recent_bytes
    }

    /// The devices.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// The devices, to change what is delivered to them.
    pub fn devices_mut(&mut self) -> &mut [Device] {
        &mut self.devices
    }

    /// Why `first..=last` is not held.
    #[must_use]
    pub fn gap_reason(&self, last: u64) -> gap::Reason {
        if last <= self.lost_through { self.lost_reason } else { gap::Reason::NotHeld }
    }

    /// Takes a message in and gives it its sequence. Past `messages_max` the oldest goes.
    pub fn append(&mut self, entry: Entry, messages_max: u64) -> u64 {
        let sequence = self.next;
        self.recent_bytes += entry.bytes();
        self.recent.push_back(entry);
        self.next += 1;
        self.dirty = true;
        let floor = self.next.saturating_sub(messages_max);
        if floor > self.floor {
            self.lost_through = floor - 1;
            self.lost_reason = gap::Reason::InboxFull;
            self.raise_floor(floor);
        }
        sequence
    }

    /// The place of a device in [`Inbox::devices`]. A new one starts at the floor; past the bound on devices
    /// the one seen least recently, that is not connected, is forgotten.
    pub fn device(&mut self, id: &str, seen_at_ms: i64) -> usize {
        if let Some(index) = self.devices.iter().position(|device| &*device.id == id) {
            self.devices[index].seen_at_ms = self.devices[index].seen_at_ms.max(seen_at_ms);
            return index;
        }
        if self.devices.len() >= limits::DEVICES_MAX {
            let idle = |device: &Device| (device.delivery.is_some(), device.seen_at_ms);
            let oldest = (0..self.devices.len()).min_by_key(|index| idle(&self.devices[*index]));
            self.devices.swap_remove(oldest.unwrap_or(0));
        }
        self.dirty = true;
        self.moved = true;
        // Most users have one device; a Vec would begin with room for four.
        self.devices.reserve_exact(1);
        self.devices.push(Device {
            id: id.into(),
            cursor: self.floor - 1,
            logged_cursor: None,
            lasting: false,
            seen_at_ms,
            delivery: None,
        });
        self.devices.len() - 1
    }

    /// Moves a device's cursor forward and frees what all devices have. Answers whether it moved.
    pub fn move_cursor(&mut self, index: usize, cursor: u64) -> bool {
        let cursor = cursor.min(self.last());
        let device = &mut self.devices[index];
        if cursor <= device.cursor {
            return false;
        }
        device.cursor = cursor;
        self.dirty = true;
        self.moved = true;
        let all_have = self.devices.iter().map(|device| device.cursor).min().unwrap_or(0);
        if all_have >= self.floor {
            self.raise_floor(all_have + 1);
        }
        true
    }

    /// Lets go of everything up to `sequence`: it has expired for everybody.
    pub fn expire_through(&mut self, sequence: u64) {
        if sequence >= self.floor && sequence < self.next {
            self.lost_through = sequence;
            self.lost_reason = gap::Reason::Expired;
            self.dirty = true;
            self.raise_floor(sequence + 1);
        }
    }

    /// Notes that a message was let out to a device.
    pub fn note_told(&mut self, sequence: u64, message_id: u64, from: &Arc<str>) {
        if self.told.back().is_some_and(|told| told.sequence >= sequence) {
            return;
        }
        if self.told.len() >= limits::UNREAD_MAX {
            self.told.pop_front();
        }
        self.told.push_back(Told { sequence, message_id, from: Arc::clone(from) });
    }

    /// The messages up to `sequence` that are acknowledged for the first time.
    pub fn take_delivered(&mut self, sequence: u64) -> ReceiptIds {
        let before = self.delivered_through;
        self.delivered_through = before.max(sequence);
        let newly = |told: &&Told| told.sequence > before && told.sequence <= sequence;
        ids_by_sender(self.told.iter().filter(newly))
    }

    /// The messages up to `sequence` that are read for the first time.
    pub fn take_read(&mut self, sequence: u64) -> ReceiptIds {
        let read = self.told.partition_point(|told| told.sequence <= sequence);
        let ids = ids_by_sender(self.told.range(..read));
        self.told.drain(..read);
        ids
    }

    /// What a checkpoint writes: record, messages the store lacks, messages it shall forget.
    #[must_use]
    pub fn change(&self) -> (Vec<u8>, Vec<(u64, Bytes)>, Range<u64>) {
        let record = InboxRecord {
            floor: self.floor,
            next: self.next,
            lost_through: self.lost_through,
            lost_reason: self.lost_reason as u32,
            devices: self.devices.iter().map(device_to_record).collect(),
        };
        let first_added = self.stored.end.max(self.floor);
        let added = (first_added..self.next)
            .filter_map(|sequence| Some((sequence, self.recent(sequence)?.to_stored())))
            .collect();
        let removed = self.stored.start..self.stored.end.min(self.floor);
        (record.encode_to_vec(), added, removed)
    }

    /// Notes that a checkpoint is written which held `held`.
    pub fn note_stored(&mut self, held: Range<u64>) {
        self.stored = held;
    }

    /// Lets go of messages that the store has and no connected device is about to need; all that the store
    /// has when memory is short.
    pub fn shed(&mut self, memory_is_short: bool) {
        let sent = self.devices.iter().filter_map(|device| Some(device.delivery.as_ref()?.sent()));
        let needed =
            if memory_is_short { u64::MAX } else { sent.min().map_or(u64::MAX, |s| s + 1) };
        let keep_from = self.stored.end.min(needed);
        while self.recent_first() < keep_from && !self.recent.is_empty() {
            self.pop_recent();
        }
    }

    /// Whether forgetting it loses nothing: the store has the same, and nothing is on its way.
    #[must_use]
    pub fn is_evictable(&self) -> bool {
        let at_rest = |device: &Device| {
            device.delivery.as_ref().is_none_or(|delivery| {
                delivery.acked() == self.last() && device.cursor == self.last()
            })
        };
        !self.dirty
            && !self.moved
            && self.appending == 0
            && self.stored.start <= self.floor
            && self.stored.end == self.next
            && self.devices.iter().all(at_rest)
    }

    fn raise_floor(&mut self, floor: u64) {
        self.floor = floor;
        while self.recent_first() < floor && !self.recent.is_empty() {
            self.pop_recent();
        }
    }

    fn pop_recent(&mut self) {
        if let Some(entry) = self.recent.pop_front() {
            self.recent_bytes -= entry.bytes();
        }
        if self.recent.is_empty() {
            // An inbox at rest owns no buffer.
            self.recent = VecDeque::new();
        }
    }
}

fn ids_by_sender<'a>(told: impl Iterator<Item = &'a Told>) -> ReceiptIds {
    let mut ids: ReceiptIds = Vec::new();
    for told in told {
        match ids.iter_mut().find(|(from, _)| *from == told.from) {
            Some((_, ids)) => ids.push(told.message_id),
            None => ids.push((Arc::clone(&told.from), vec![told.message_id])),
        }
    }
    ids
}

fn device_from_record(record: DeviceRecord) -> Device {
    Device {
        id: record.device.into(),
        cursor: record.cursor,
        logged_cursor: Some(record.cursor),
        lasting: true,
        seen_at_ms: record.seen_at_ms,
        delivery: None,
    }
}

fn device_to_record(device: &Device) -> DeviceRecord {
    DeviceRecord {
        device: device.id.to_string(),
        cursor: device.cursor,
        seen_at_ms: device.seen_at_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: u64 = 1_000;

    fn entry(text: &'static str) -> Entry {
        Entry {
            message_id: 7,
            from: "alice".into(),
            payload: Bytes::from_static(text.as_bytes()),
            accepted_at_ms: 1_000,
            expires_at_ms: 0,
        }
    }

    #[test]
    fn sequences_are_dense_from_one() {
        let mut inbox = Inbox::default();
        assert_eq!([1, 2, 3].map(|_| inbox.append(entry("x"), MANY)), [1, 2, 3]);
        assert_eq!((inbox.floor(), inbox.last(), inbox.recent_first()), (1, 3, 1));
    }

    #[test]
    fn a_message_is_freed_when_the_last_device_has_it() {
        let mut inbox = Inbox::default();
        let (phone, desk) = (inbox.device("phone", 0), inbox.device("desk", 0));
        for _ in 0..3 {
            inbox.append(entry("x"), MANY);
        }
        assert!(inbox.move_cursor(phone, 3));
        assert_eq!(inbox.floor(), 1);
        assert!(inbox.move_cursor(desk, 2));
        assert_eq!(inbox.floor(), 3);
        assert!(inbox.recent(2).is_none());
        assert!(inbox.recent(3).is_some());
    }

    #[test]
    fn a_cursor_moves_neither_back_nor_past_the_last_message() {
        let mut inbox = Inbox::default();
        let phone = inbox.device("phone", 0);
        inbox.append(entry("x"), MANY);
        inbox.append(entry("x"), MANY);
        assert!(inbox.move_cursor(phone, 99));
        assert_eq!(inbox.devices()[phone].cursor, 2);
        assert!(!inbox.move_cursor(phone, 1));
        assert_eq!(inbox.devices()[phone].cursor, 2);
    }

    #[test]
    fn past_the_bound_the_oldest_goes_and_the_gap_has_its_reason() {
        let mut inbox = Inbox::default();
        for _ in 0..5 {
            inbox.append(entry("x"), 3);
        }
        assert_eq!((inbox.floor(), inbox.next()), (3, 6));
        assert_eq!(inbox.gap_reason(2), gap::Reason::InboxFull);
        let phone = inbox.device("phone", 0);
        inbox.move_cursor(phone, 4);
        assert_eq!(inbox.gap_reason(4), gap::Reason::NotHeld);
    }

    #[test]
    fn the_seventeenth_device_replaces_the_one_seen_least_recently() {
        let mut inbox = Inbox::default();
        for number in 0..limits::DEVICES_MAX {
            inbox.device(&format!("device-{number}"), 100 - number as i64);
        }
        inbox.device("one more", 200);
        assert_eq!(inbox.devices().len(), limits::DEVICES_MAX);
        let ids: Vec<_> = inbox.devices().iter().map(|device| &*device.id).collect();
        assert!(!ids.contains(&"device-15"), "{ids:?}");
        assert!(ids.contains(&"one more"));
    }

    #[test]
    fn a_checkpoint_adds_and_removes_only_what_changed() {
        let mut inbox = Inbox::default();
        let phone = inbox.device("phone", 0);
        for _ in 0..4 {
            inbox.append(entry("x"), MANY);
        }
        inbox.move_cursor(phone, 1);
        let (_, added, removed) = inbox.change();
        assert_eq!(added.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), [2, 3, 4]);
        assert!(removed.is_empty());

        inbox.note_stored(2..5);
        inbox.append(entry("x"), MANY);
        inbox.move_cursor(phone, 3);
        let (record, added, removed) = inbox.change();
        assert_eq!(added.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), [5]);
        assert_eq!(removed, 2..4);

        let again = Inbox::from_record(InboxRecord::decode(&*record).unwrap());
        assert_eq!((again.floor(), again.next(), again.recent_first()), (4, 6, 6));
        assert_eq!(again.devices()[0].cursor, 3);
    }

    #[test]
    fn receipts_are_given_once_for_delivery_and_once_for_reading() {
        let mut inbox = Inbox::default();
        inbox.note_told(1, 10, &"alice".into());
        inbox.note_told(2, 20, &"carol".into());
        inbox.note_told(3, 30, &"alice".into());
        inbox.note_told(2, 20, &"carol".into());
        assert_eq!(
            inbox.take_delivered(3),
            [("alice".into(), vec![10, 30]), ("carol".into(), vec![20])]
        );
        assert!(inbox.take_delivered(3).is_empty());
        assert_eq!(inbox.take_read(1), [("alice".into(), vec![10])]);
        assert_eq!(inbox.take_read(2), [("carol".into(), vec![20])]);
    }

    #[test]
    fn receipts_reach_back_a_bounded_number_of_messages() {
        let mut inbox = Inbox::default();
        for sequence in 1..=limits::UNREAD_MAX as u64 + 10 {
            inbox.note_told(sequence, sequence, &"alice".into());
        }
        let ids = &inbox.take_read(u64::MAX)[0].1;
        assert_eq!((ids.len(), ids[0]), (limits::UNREAD_MAX, 11));
    }

    #[test]
    fn an_entry_expires_by_itself_or_by_age() {
        let mut message = entry("x");
        assert!(!message.is_expired(1_999, 1_000));
        assert!(message.is_expired(2_000, 1_000));
        message.expires_at_ms = 1_500;
        assert!(!message.is_expired(1_499, 1_000));
        assert!(message.is_expired(1_500, 1_000));
    }
}
