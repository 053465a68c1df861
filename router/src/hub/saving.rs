//! What a Hub does by the clock: cursors into the log, checkpoints into the store, and letting go of memory.
//!
//! A checkpoint is written while the Hub goes on. Until it is answered, everything in it stays in memory as
//! well; when it failed, everything in it counts as changed again.

use std::ops::Range;
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};
use prost::Message as _;

use super::{Appending, Effects, Hub, Now};
use crate::inbox::{Device, Inbox};
use crate::limits;
use crate::queue::Offset;
use crate::record::{CursorRecord, Kind, MessageRecord, Record, SendKey};
use crate::registry::{UnrecordedDevice, Until};
use crate::store::{Accepted, Checkpoint, InboxChange, StoreError};

/// A table of inboxes with room for no more than this is left alone.
const TABLE_ENTRIES_MIN: usize = 16;

/// What changed, and what is being written.
#[derive(Debug, Default)]
pub(super) struct Saving {
    /// Users whose inbox differs from the store's.
    changed: AHashSet<Arc<str>>,
    /// Users with a cursor that is not in the log.
    moved: AHashSet<Arc<str>>,
    /// Users whose delivery stopped because the store could not be read.
    hungry: AHashSet<Arc<str>>,
    /// Sends accepted since the last checkpoint was begun.
    sends: AHashMap<SendKey, Accepted>,
    /// Bytes of messages taken in since the last checkpoint was begun.
    bytes: usize,
    flushed_at_ms: u64,
    most: Most,
    /// When the last checkpoint was begun.
    begun_at_ms: u64,
    /// When the next checkpoint may begin.
    due_at_ms: u64,
    /// Not before this, since the last one failed.
    retry_at_ms: u64,
    in_progress: Option<InProgress>,
    /// The user up to whom the store was looked through for old messages.
    swept: String,
}

#[derive(Debug)]
struct InProgress {
    applied: Offset,
    inboxes: Vec<(Arc<str>, Range<u64>)>,
    /// Users whose only device it records.
    recorded: Vec<Box<str>>,
    sends: AHashMap<SendKey, Accepted>,
    bytes: usize,
}

/// The most connections of the last minute or two.
#[derive(Debug, Default)]
struct Most {
    now: usize,
    before: usize,
    turns_at_ms: u64,
}

impl Most {
    fn note(&mut self, mono_ms: u64, connections: usize) {
        if mono_ms >= self.turns_at_ms {
            self.before = std::mem::take(&mut self.now);
            self.turns_at_ms = mono_ms + limits::UNRECORDED_MS as u64;
        }
        self.now = self.now.max(connections);
    }

    fn get(&self) -> usize {
        self.now.max(self.before)
    }
}

impl Saving {
    pub(super) fn note_changed(&mut self, user: &Arc<str>, inbox: &Inbox) {
        if inbox.dirty && !self.changed.contains(user) {
            self.changed.insert(Arc::clone(user));
        }
    }

    pub(super) fn note_moved(&mut self, user: &Arc<str>, inbox: &Inbox) {
        if inbox.moved && !self.moved.contains(user) {
            self.moved.insert(Arc::clone(user));
        }
    }

    pub(super) fn note_hungry(&mut self, user: &Arc<str>) {
        self.hungry.insert(Arc::clone(user));
    }

    pub(super) fn note_send(&mut self, key: SendKey, accepted: Accepted) {
        self.sends.insert(key, accepted);
    }

    pub(super) fn note_bytes(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// Bytes of messages that are in no finished checkpoint.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.in_progress.as_ref().map_or(0, |saved| saved.bytes)
    }

    pub(super) fn is_in_progress(&self) -> bool {
        self.in_progress.is_some()
    }

    /// A send that the store does not have yet.
    pub(super) fn send(&self, key: &SendKey) -> Option<Accepted> {
        let saved = || self.in_progress.as_ref()?.sends.get(key);
        self.sends.get(key).or_else(saved).copied()
    }
}

impl Hub {
    pub(super) fn handle_tick(&mut self, now: Now, out: &mut Effects) {
        while let Some((offset, kind)) = self.stalled.pop_front() {
            match self.prepare(now, &kind, true) {
                Ok(known) => self.fold(now, offset, kind, known, out),
                Err(_) => {
                    self.stalled.push_front((offset, kind));
                    break;
                }
            }
        }
        for user in std::mem::take(&mut self.saving.hungry) {
            self.pump_all(now, &user, out);
        }
        if now.mono_ms >= self.saving.flushed_at_ms + limits::CURSOR_FLUSH_MS {
            self.saving.flushed_at_ms = now.mono_ms;
            self.flush_cursors(out);
        }
        self.sweep_registry(now, out);
        self.note_connections(now);
        if self.is_checkpoint_due(now) {
            self.save(now, Extent::Due, out);
        }
    }

    /// To be called when there may be more connections than before, and now and then.
    pub(super) fn note_connections(&mut self, now: Now) {
        self.saving.most.note(now.mono_ms, self.registry.connections());
    }

    fn is_checkpoint_due(&mut self, now: Now) -> bool {
        let saving = &mut self.saving;
        if saving.due_at_ms == 0 {
            // Spread over the interval, so that partitions do not all write at once.
            let spread = u64::from(self.partition) * 157 % limits::CHECKPOINT_INTERVAL_MS;
            saving.due_at_ms = now.mono_ms + limits::CHECKPOINT_INTERVAL_MS / 2 + spread;
        }
        let full = saving.bytes >= self.config.memory_bytes_max;
        let soon = now.mono_ms >= saving.begun_at_ms + limits::DEPARTED_INTERVAL_MS;
        let is_time = now.mono_ms >= saving.due_at_ms || full || soon && self.departed_over() > 0;
        now.mono_ms >= self.saving.retry_at_ms && is_time
    }

    /// How many more devices have left than may wait to be recorded.
    fn departed_over(&self) -> usize {
        let most = self.saving.most.get();
        let places = most + most / limits::DEPARTED_SHARE + limits::DEPARTED_MIN;
        let taken = self.registry.connections() + self.registry.departed();
        taken.saturating_sub(places).min(self.registry.departed())
    }

    /// Begins a checkpoint, unless one is on its way or nothing changed.
    pub(super) fn save(&mut self, now: Now, extent: Extent, out: &mut Effects) {
        self.saving.begun_at_ms = now.mono_ms;
        self.saving.due_at_ms = now.mono_ms + limits::CHECKPOINT_INTERVAL_MS;
        if self.saving.in_progress.is_some() {
            return;
        }
        let unrecorded = self.unrecorded(now, extent);
        let many_departed = self.registry.departed() > limits::DEPARTED_SOON;
        if many_departed && unrecorded.len() >= limits::DEPARTED_PER_CHECKPOINT {
            // There are more of them that are due.
            self.saving.due_at_ms = now.mono_ms + limits::DEPARTED_INTERVAL_MS;
        }
        let unchanged = self.saving.changed.is_empty() && self.saving.sends.is_empty();
        if unchanged && unrecorded.is_empty() {
            self.sweep(now, out);
            self.shed(now);
            return;
        }
        let mut inboxes = Vec::with_capacity(self.saving.changed.len());
        let mut changes = Vec::with_capacity(self.saving.changed.len() + unrecorded.len());
        changes.extend(unrecorded.iter().map(first_record));
        let recorded = unrecorded.into_iter().map(|device| device.user).collect();
        for user in std::mem::take(&mut self.saving.changed) {
            let Some(inbox) = self.users.get_mut(&user) else { continue };
            inbox.dirty = false;
            let (record, added, removed) = inbox.change();
            changes.push(InboxChange { user: user.to_string(), inbox: record, added, removed });
            inboxes.push((user, inbox.floor()..inbox.next()));
        }
        let sends = std::mem::take(&mut self.saving.sends);
        let bytes = std::mem::take(&mut self.saving.bytes);
        out.checkpoint = Some(Checkpoint {
            partition: self.partition,
            applied: self.applied,
            inboxes: changes,
            sends: sends.iter().map(|(key, accepted)| (*key, *accepted)).collect(),
            place: None,
        });
        let applied = self.applied;
        self.saving.in_progress = Some(InProgress { applied, inboxes, recorded, sends, bytes });
    }

    /// Devices that only the registry knows and that a checkpoint takes along: slowly, so that it costs little
    /// when a million come at once, and faster the more have left, because those take memory until then.
    fn unrecorded(&mut self, now: Now, extent: Extent) -> Vec<UnrecordedDevice> {
        match extent {
            Extent::All => self.registry.next_unrecorded(Until::EVER, usize::MAX),
            Extent::Due => {
                let count = if self.registry.departed() > limits::DEPARTED_SOON {
                    limits::DEPARTED_PER_CHECKPOINT.max(self.registry.departed() / 16)
                } else {
                    limits::RECORDED_PER_CHECKPOINT
                };
                let over = self.departed_over();
                let came_ms = now.unix_ms.saturating_sub(limits::UNRECORDED_MS);
                let until = Until { came_ms, left_ms: came_ms, others: over };
                self.registry.next_unrecorded(until, count)
            }
        }
    }

    pub(super) fn handle_saved(
        &mut self,
        now: Now,
        result: Result<(), StoreError>,
        out: &mut Effects,
    ) {
        let Some(saved) = self.saving.in_progress.take() else { return };
        if let Err(error) = result {
            tracing::warn!(partition = self.partition, %error, "a checkpoint failed");
            out.counts.store_errors += 1;
            for (user, _) in saved.inboxes {
                if let Some(inbox) = self.users.get_mut(&user) {
                    inbox.dirty = true;
                    self.saving.changed.insert(user);
                }
            }
            for (key, accepted) in saved.sends {
                self.saving.sends.entry(key).or_insert(accepted);
            }
            self.saving.bytes += saved.bytes;
            self.saving.retry_at_ms = now.mono_ms + limits::CHECKPOINT_RETRY_MS;
            self.saving.due_at_ms = self.saving.retry_at_ms;
            return;
        }
        for (user, held) in saved.inboxes {
            if let Some(inbox) = self.users.get_mut(&user) {
                inbox.note_stored(held);
            }
        }
        for user in saved.recorded {
            self.registry.note_recorded(&user);
        }
        out.trim_below = Some(saved.applied + 1);
        self.sweep(now, out);
        self.shed(now);
    }

    /// Looks through a few stored inboxes, each time the next, and lets go of messages over the age bound:
    /// those of users who never come back would stay for ever.
    fn sweep(&mut self, now: Now, out: &mut Effects) {
        let after = std::mem::take(&mut self.saving.swept);
        let users = self.store.users_after(self.partition, &after, limits::SWEEP_INBOXES);
        // On an error it begins anew; the next checkpoint will tell what is wrong with the store.
        let users = users.unwrap_or_default();
        for user in &users {
            let used_at_ms = self.users.get(user.as_str()).map_or(0, |inbox| inbox.used_at_ms);
            if !self.holds_messages(user) || self.load(now, user).is_err() {
                continue;
            }
            self.expire_stored(now, user, out);
            if let Some(inbox) = self.users.get_mut(user.as_str()) {
                // To look is not to use: it does not keep an inbox in memory.
                inbox.used_at_ms = used_at_ms;
            }
        }
        if users.len() == limits::SWEEP_INBOXES {
            self.saving.swept = users.into_iter().next_back().unwrap_or_default();
        }
    }

    /// Whether messages wait in an inbox, which is not brought into memory for that: most are empty.
    fn holds_messages(&self, user: &str) -> bool {
        match self.users.get(user) {
            Some(inbox) => inbox.floor() < inbox.next(),
            None => {
                let stored = self.stored(user);
                matches!(stored, Ok(Some(record)) if record.floor.max(1) < record.next)
            }
        }
    }

    fn expire_stored(&mut self, now: Now, user: &str, out: &mut Effects) {
        let Some((user, inbox)) = self.users.get_key_value(user) else { return };
        let user = Arc::clone(user);
        let range = inbox.floor()..inbox.recent_first();
        let page = limits::WINDOW_BYTES_MAX;
        let Ok(stored) = self.store.messages(self.partition, &user, range, page) else { return };
        let age_max_ms = self.config.inbox_age_max_ms;
        let is_old = |bytes: &bytes::Bytes| {
            let record = MessageRecord::decode(bytes.clone());
            record.is_ok_and(|record| record.accepted_at_ms + age_max_ms <= now.unix_ms)
        };
        let old = stored.iter().take_while(|(_, bytes)| is_old(bytes)).last();
        let Some((last_old, _)) = old else { return };
        let Some(inbox) = self.users.get_mut(&user) else { return };
        inbox.expire_through(*last_old);
        self.saving.note_changed(&user, inbox);
        self.pump_all(now, &user, out);
    }

    /// Lets go of what the store has and nobody is about to need.
    fn shed(&mut self, now: Now) {
        let mut bytes = 0;
        self.users.retain(|_, inbox| {
            let idle = now.mono_ms.saturating_sub(inbox.used_at_ms) >= limits::INBOX_IDLE_MS;
            inbox.shed(bytes >= self.config.memory_bytes_max);
            bytes += inbox.recent_bytes();
            !(idle && inbox.is_evictable())
        });
        let inboxes = self.users.len();
        if self.users.capacity() > TABLE_ENTRIES_MIN.max(4 * inboxes) {
            // The place of one inbox is as large as an idle connection may be.
            self.users.shrink_to(2 * inboxes);
        }
    }

    /// Hands out a record for every cursor that moved, up to a bound.
    fn flush_cursors(&mut self, out: &mut Effects) {
        let mut budget = limits::CURSORS_PER_APPEND_MAX;
        let mut left = AHashSet::new();
        for user in std::mem::take(&mut self.saving.moved) {
            let Some(inbox) = self.users.get_mut(&user) else { continue };
            if budget == 0 {
                left.insert(user);
                continue;
            }
            inbox.moved = false;
            for device in inbox.devices_mut() {
                if device.logged_cursor == Some(device.cursor) {
                    continue;
                }
                budget = budget.saturating_sub(1);
                let kind = log_cursor(&user, device, out);
                self.appending.push_back(Appending { kind, replayed: self.replayed });
            }
        }
        self.saving.moved = left;
    }

    /// Hands out a record for every device of `user` that may not outlive the process: when it comes for the first
    /// time, and in front of every message until it stands in the log. Otherwise, after a crash, the devices that
    /// are known would free messages that this one does not have.
    pub(super) fn log_devices(&mut self, user: &str, out: &mut Effects) {
        let Some(inbox) = self.users.get_mut(user) else { return };
        for device in inbox.devices_mut().iter_mut().filter(|device| !device.lasting) {
            let kind = log_cursor(user, device, out);
            self.appending.push_back(Appending { kind, replayed: self.replayed });
            out.append_durable = true;
        }
    }

    /// A cursor did not get into the log: it is tried again with the next flush.
    pub(super) fn unlog_cursor(&mut self, cursor: &CursorRecord) {
        let Some((user, _)) = self.users.get_key_value(cursor.user.as_str()) else { return };
        let user = Arc::clone(user);
        let Some(inbox) = self.users.get_mut(&user) else { return };
        for device in inbox.devices_mut().iter_mut().filter(|device| *device.id == cursor.device) {
            device.logged_cursor = None;
        }
        inbox.moved = true;
        self.saving.moved.insert(user);
    }

    pub(super) fn fold_cursor(&mut self, cursor: &CursorRecord) {
        let Some((user, _)) = self.users.get_key_value(cursor.user.as_str()) else { return };
        let user = Arc::clone(user);
        let Some(inbox) = self.users.get_mut(&user) else { return };
        let index = inbox.device(&cursor.device, cursor.seen_at_ms);
        let was_moved = inbox.moved;
        inbox.move_cursor(index, cursor.cursor);
        let device = &mut inbox.devices_mut()[index];
        device.logged_cursor = device.logged_cursor.max(Some(cursor.cursor));
        device.lasting = true;
        // What comes out of the log need not go in again.
        inbox.moved = was_moved;
        let cursor = cursor.cursor.min(inbox.last());
        let _ = inbox.take_delivered(cursor);
        self.saving.note_changed(&user, inbox);
    }
}

/// How much a checkpoint takes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// What is due.
    Due,
    /// Everything.
    All,
}

/// The inbox of a user who has one device, and to whom nobody has sent anything.
fn first_record(device: &UnrecordedDevice) -> InboxChange {
    let mut inbox = Inbox::default();
    inbox.device(&device.device, device.seen_at_ms);
    let (inbox, added, removed) = inbox.change();
    InboxChange { user: device.user.to_string(), inbox, added, removed }
}

/// Hands out a record with a device's cursor.
fn log_cursor(user: &str, device: &mut Device, out: &mut Effects) -> Kind {
    device.logged_cursor = Some(device.cursor);
    let kind = Kind::Cursor(CursorRecord {
        user: user.to_owned(),
        device: device.id.to_string(),
        cursor: device.cursor,
        seen_at_ms: device.seen_at_ms,
    });
    out.append.push(Record::from(kind.clone()).to_bytes());
    kind
}
