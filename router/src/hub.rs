//! Hub owns the state of one partition: inboxes, registry, sends on their way. Free of I/O.
//!
//! ```text
//!  Send ─► known? ─► answered again              Effects: append, outbound, routed, checkpoint, trim
//!            └─ no ─► append ─► durable ─► fold: sequence, SendAck, Deliver
//!  Ack ──► cursor ─► free, Receipt, Deliver
//! ```
//!
//! The state is a fold of the partition's log: [`Event::Committed`] and [`Event::Replayed`] bring its records
//! in the order of their offsets, each at most once. What a record does depends on the records before it
//! alone, so that replaying from the last checkpoint gives the same sequences and message ids. A send that
//! stands in the log twice (its first append was answered with an error, and was there all the same) is
//! found by its key, and counts once.
//!
//! `sends` holds messages on their way to the log, `clients` what else connections ask for, `doubts` whether this is the
//! owner still, `saving`
//! cursors, checkpoints and what runs by the clock, `queries` what the server API asks.

mod clients;
mod doubts;
mod journal;
pub mod queries;
mod rows;
mod saving;
mod sends;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test looks for the messages it is about")]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use ahash::AHashMap;
use bytes::Bytes;
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::link::{QueryAnswer, Relay};
use prost::Message as _;

use self::doubts::Doubts;
use self::journal::{DeviceMark, Journal, StepKind};
use self::sends::answer_send;
use crate::delivery::{Pump, pump};
use crate::inbox::{Entry, Inbox};
use crate::queue::{Offset, PartitionId};
use crate::record::{InboxRecord, Kind, MessageRecord, Record, SendKey, message_id};
use crate::registry::local::Registry;
use crate::registry::view::Change;
use crate::registry::{ConnectionRef, EdgeId, Session};
use crate::store::{Accepted, Checkpoint, DAY_MS, Store, StoreError};

/// The time, told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// A clock that only goes forward, in milliseconds.
    pub mono_ms: u64,
    /// Milliseconds since the epoch, UTC.
    pub unix_ms: i64,
}

/// What a Hub is told.
#[derive(Debug)]
pub enum Event {
    /// A message of an edge, about a user of this partition.
    Link {
        /// From which edge.
        edge: EdgeId,
        /// On which of its links.
        session: Session,
        /// What it says.
        message: Inbound,
    },
    /// A link said Hello.
    EdgeUp(EdgeId, Session),
    /// A link ended.
    EdgeDown(EdgeId, Session),
    /// An edge has told all its connections on this link.
    EdgeTold(EdgeId, Session),
    /// An edge's lease ended, or it was started anew.
    EdgeGone(EdgeId, Session),
    /// Another partition's user has received or read messages of `to`, who is one of ours.
    Receipt(Receipt),
    /// The oldest record that was handed out in [`Effects::append`] is in the log.
    Committed(Offset),
    /// The oldest record that was handed out in [`Effects::append`] was not acknowledged by the log.
    Refused(Arc<str>),
    /// A record of the log that was not handed out by this Hub, or was refused before.
    Replayed(Offset, Bytes),
    /// The last checkpoint is written, or is not.
    Saved(Result<(), StoreError>),
    /// Time has passed. Told about ten times a second.
    Tick,
    /// Write everything that changed, now: the process is about to end.
    Save,
    /// Go on with what was left for later: see [`Hub::has_work`].
    GoOn,
}

/// A receipt on its way to the partition of the sender.
#[derive(Debug)]
pub struct Receipt {
    /// The sender of the messages.
    pub to: Arc<str>,
    /// Numbers of hawser.client.v1.Receipt.Kind.
    pub kind: u32,
    /// The recipient of the messages.
    pub user: Arc<str>,
    /// Which messages, at most [`RECEIPT_IDS_MAX`](crate::limits::RECEIPT_IDS_MAX).
    pub message_ids: Vec<u64>,
    /// When, in milliseconds since the epoch.
    pub time_ms: i64,
    /// The connection that received or read them, whose edge knows the router of the sender; absent when it came from there.
    pub via: Option<ConnectionRef>,
}

impl From<Relay> for Receipt {
    fn from(relay: Relay) -> Self {
        let Relay { connection: _, to, kind, user, message_ids, time_ms } = relay;
        Self { to: to.into(), kind, user: user.into(), message_ids, time_ms, via: None }
    }
}

impl Receipt {
    /// Itself for an edge that says it on, where it did not come from one.
    #[must_use]
    pub fn into_relay(self) -> Option<(EdgeId, Outbound)> {
        let Self { to, kind, user, message_ids, time_ms, via } = self;
        let ConnectionRef { edge, connection } = via?;
        let (to, user) = (to.to_string(), user.to_string());
        let relay = Relay { connection, to, kind, user, message_ids, time_ms };
        Some((edge, Outbound::Relay(relay)))
    }
}

/// What a Hub wants done, in this order. The caller empties it.
#[derive(Debug, Default)]
pub struct Effects {
    /// Records for the log, in order. Each is answered by one Committed or Refused.
    pub append: Vec<Bytes>,
    /// Somebody waits for one of them: the append has to be durable.
    pub append_durable: bool,
    /// Messages to edges, in order for each.
    pub outbound: Vec<(EdgeId, Outbound)>,
    /// Answers to queries; the caller puts the names of edges in ([`queries::name_edges`]) and sends them.
    pub answers: Vec<(EdgeId, QueryAnswer)>,
    /// Receipts to the partitions of these users. Best effort.
    pub receipts: Vec<Receipt>,
    /// To be written to the store; answered by [`Event::Saved`].
    pub checkpoint: Option<Checkpoint>,
    /// The log below this offset is not needed any more.
    pub trim_below: Option<Offset>,
    /// Who came and who left, in order, where [`HubConfig::tells_registry`] asks for it.
    pub registry: Vec<Change>,
    /// The log says that another router has taken the partition over: this Hub is to be dropped.
    pub deposed: bool,
    /// What happened, to be added up.
    pub counts: Counts,
}

/// Counters of what a Hub did since they were last taken.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it, and the metrics describe them")]
pub struct Counts {
    pub accepted: u64,
    pub repeated: u64,
    pub refused: u64,
    pub delivered: u64,
    pub acknowledged: u64,
    pub cursors: u64,
    pub gaps: u64,
    pub signals: u64,
    pub signals_dropped: u64,
    pub receipts: u64,
    pub replaced: u64,
    pub store_errors: u64,
    pub unreadable: u64,
}

/// The knobs that a Hub knows.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Unacknowledged deliveries let out to a device.
    pub window_messages: usize,
    /// Undelivered messages kept for a user.
    pub inbox_messages_max: u64,
    /// Oldest message that is delivered, in milliseconds.
    pub inbox_age_max_ms: i64,
    /// Bytes of messages that a partition takes in before it writes a checkpoint, and keeps in memory after.
    pub memory_bytes_max: usize,
    /// Longest record that the log takes.
    pub record_bytes_max: usize,
    /// Steps of messages that are remembered for traces; 0: none.
    pub trace_steps_max: usize,
    /// Fill [`Effects::registry`].
    pub tells_registry: bool,
}

/// One partition.
pub struct Hub {
    partition: PartitionId,
    /// Of this owner; 0 where there is never another.
    epoch: u64,
    config: HubConfig,
    store: Arc<dyn Store>,
    seed: u64,
    users: AHashMap<Arc<str>, Inbox>,
    registry: Registry,
    /// Offset of the last record that was folded in.
    applied: Offset,
    /// Records handed out and not answered yet, oldest first.
    appending: VecDeque<Appending>,
    /// Who waits for the messages among them.
    waiting: AHashMap<SendKey, Vec<Waiter>>,
    /// Records that could not be folded because the store could not be read; tried again at every tick.
    stalled: VecDeque<(Offset, Kind)>,
    /// Counts records that were replayed while the router ran: a repetition may hide among them.
    replayed: u64,
    doubts: Doubts,
    saving: saving::Saving,
    rows: rows::Rows,
    journal: Journal,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("partition", &self.partition)
            .field("applied", &self.applied)
            .field("users", &self.users.len())
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Appending {
    kind: Kind,
    /// [`Hub::replayed`] when it was handed out.
    replayed: u64,
}

#[derive(Debug, Clone, Copy)]
struct Waiter {
    connection: ConnectionRef,
    ticket: u64,
}

impl Hub {
    /// The partition as its last checkpoint left it. Then come the later records, as [`Event::Replayed`].
    ///
    /// # Errors
    /// The store could not be read.
    pub fn new(
        partition: PartitionId,
        config: HubConfig,
        store: Arc<dyn Store>,
    ) -> Result<Self, StoreError> {
        let applied = store.applied(partition)?;
        let seed = store.seed(partition);
        Ok(Self {
            partition,
            epoch: 0,
            journal: Journal::new(config.trace_steps_max),
            config,
            store,
            seed,
            users: AHashMap::new(),
            registry: Registry::default(),
            applied,
            appending: VecDeque::new(),
            waiting: AHashMap::new(),
            stalled: VecDeque::new(),
            replayed: 0,
            doubts: Doubts::default(),
            saving: saving::Saving::default(),
            rows: rows::Rows::default(),
        })
    }

    /// The same for an owner among several, who has this epoch.
    #[must_use]
    pub fn with_epoch(self, epoch: u64) -> Self {
        Self { epoch, ..self }
    }

    /// Which partition it is.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// Under which epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Records that were handed out and not answered yet.
    #[must_use]
    pub fn appending(&self) -> usize {
        self.appending.len()
    }

    /// Whether a checkpoint was handed out and is not answered yet.
    #[must_use]
    pub fn is_saving(&self) -> bool {
        self.saving.is_in_progress()
    }

    /// Offset of the last record that the state holds.
    #[must_use]
    pub fn applied(&self) -> Offset {
        self.applied
    }

    /// Whether records wait because the store cannot be read.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    /// Connections registered in this partition, suspended ones included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.registry.connections()
    }

    /// Whether something was left for later, to be told [`Event::GoOn`] when there is time. It goes on with
    /// every [`Event::Tick`] too.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.registry.is_sweeping()
    }

    /// Inboxes in memory.
    #[must_use]
    pub fn inboxes(&self) -> usize {
        self.users.len()
    }

    /// Devices that have left and are not in the store yet.
    #[must_use]
    pub fn departed(&self) -> usize {
        self.registry.departed()
    }

    /// Takes an event and adds to `out` what has to be done about it.
    pub fn apply(&mut self, now: Now, event: Event, out: &mut Effects) {
        match event {
            Event::Link { edge, session, message } => {
                if self.registry.is_current(edge, session) {
                    self.handle_link(now, edge, session, message, out);
                }
            }
            Event::EdgeUp(edge, session) => self.registry.edge_up(edge, session),
            Event::EdgeDown(edge, session) => self.registry.edge_down(edge, session),
            Event::EdgeTold(edge, session) => self.registry.edge_told(edge, session),
            Event::EdgeGone(edge, session) => self.registry.edge_gone(edge, session),
            Event::GoOn => self.sweep_registry(now, out),
            Event::Receipt(receipt) => self.handle_receipt(&receipt, out),
            Event::Committed(offset) => self.handle_committed(now, offset, out),
            Event::Refused(reason) => self.handle_refused(now, &reason, out),
            Event::Replayed(offset, bytes) => self.handle_replayed(now, offset, bytes, out),
            Event::Saved(result) => self.handle_saved(now, result, out),
            Event::Tick => self.handle_tick(now, out),
            Event::Save => self.save(now, saving::Extent::All, out),
        }
    }

    fn handle_link(
        &mut self,
        now: Now,
        edge: EdgeId,
        session: Session,
        message: Inbound,
        out: &mut Effects,
    ) {
        match message {
            Inbound::Send(send) => self.handle_send(now, edge, send, out),
            Inbound::Ack(ack) => self.handle_ack(now, edge, &ack, out),
            Inbound::Register(register) => self.handle_register(now, edge, session, register, out),
            Inbound::Unregister(unregister) => self.handle_unregister(now, edge, unregister, out),
            Inbound::Signal(signal) => self.handle_signal(&signal, out),
            Inbound::Sync(sync) => self.handle_sync(now, edge, &sync, out),
            Inbound::Query(query) => self.handle_query(edge, &query, out),
            Inbound::Relay(relay) => self.handle_receipt(&relay.into(), out),
            // These concern the link, not a user; the link handles them.
            Inbound::Hello(_) | Inbound::SnapshotEnd(_) | Inbound::Heartbeat(_) => {}
        }
    }

    fn handle_committed(&mut self, now: Now, offset: Offset, out: &mut Effects) {
        let Some(appending) = self.appending.pop_front() else {
            debug_assert!(false, "the log acknowledged a record that nobody handed out");
            return;
        };
        if matches!(appending.kind, Kind::Cursor(_)) {
            out.counts.cursors += 1;
        }
        if matches!(appending.kind, Kind::Owner(_)) {
            self.doubts.note_proven();
        }
        let look_in_store = appending.replayed != self.replayed;
        self.fold_or_stall(now, offset, appending.kind, look_in_store, out);
    }

    fn handle_replayed(&mut self, now: Now, offset: Offset, bytes: Bytes, out: &mut Effects) {
        if offset <= self.applied {
            return;
        }
        self.replayed += 1;
        match Record::decode(bytes) {
            Ok(Record { kind: Some(kind) }) => self.fold_or_stall(now, offset, kind, true, out),
            Ok(Record { kind: None }) | Err(_) => {
                out.counts.unreadable += 1;
                self.applied = offset;
            }
        }
    }

    fn fold_or_stall(
        &mut self,
        now: Now,
        offset: Offset,
        kind: Kind,
        look_in_store: bool,
        out: &mut Effects,
    ) {
        if !self.stalled.is_empty() {
            self.stalled.push_back((offset, kind));
            return;
        }
        match self.prepare(now, &kind, look_in_store) {
            Ok(known) => self.fold(now, offset, kind, known, out),
            Err(error) => {
                tracing::warn!(partition = self.partition, %error, "a record waits for the store");
                out.counts.store_errors += 1;
                self.stalled.push_back((offset, kind));
            }
        }
    }

    /// Brings into memory what a record needs, and finds out whether its message was accepted before.
    fn prepare(
        &mut self,
        now: Now,
        kind: &Kind,
        look_in_store: bool,
    ) -> Result<Option<Accepted>, StoreError> {
        match kind {
            Kind::Cursor(cursor) => self.load(now, &cursor.user).map(|()| None),
            Kind::Owner(_) => Ok(None),
            Kind::Message(message) => {
                self.load(now, &message.to)?;
                let key = self.key(&message.from, &message.to, &message.client_message_id);
                if look_in_store { self.accepted(&key, now) } else { Ok(self.saving.send(&key)) }
            }
        }
    }

    /// Lets one record of the log count, after [`Hub::prepare`].
    fn fold(
        &mut self,
        now: Now,
        offset: Offset,
        kind: Kind,
        known: Option<Accepted>,
        out: &mut Effects,
    ) {
        debug_assert!(offset > self.applied);
        self.applied = offset;
        match kind {
            Kind::Cursor(cursor) => self.fold_cursor(&cursor),
            Kind::Owner(owner) => out.deposed |= owner.epoch > self.epoch,
            Kind::Message(message) => self.fold_message(now, offset, message, known, out),
        }
    }

    fn fold_message(
        &mut self,
        now: Now,
        offset: Offset,
        message: MessageRecord,
        known: Option<Accepted>,
        out: &mut Effects,
    ) {
        let key = self.key(&message.from, &message.to, &message.client_message_id);
        if !self.rows.is_empty() {
            self.rows.note_stored(self.key(&message.from, &message.to, ""), key);
        }
        let waiters = self.waiting.remove(&key);
        let Some((user, _)) = self.users.get_key_value(message.to.as_str()) else { return };
        let user = Arc::clone(user);
        let Some(inbox) = self.users.get_mut(&user) else { return };
        if waiters.is_some() {
            inbox.appending = inbox.appending.saturating_sub(1);
        }
        let accepted = known.unwrap_or_else(|| {
            let message_id = message_id(self.partition, offset);
            let accepted = Accepted { message_id, accepted_at_ms: message.accepted_at_ms };
            let entry = Entry::from_record(MessageRecord { message_id, ..message });
            self.saving.note_bytes(entry.bytes());
            let sequence = inbox.append(entry, self.config.inbox_messages_max);
            let appended = StepKind::Appended(offset);
            self.journal.note(accepted.accepted_at_ms, &user, sequence, appended);
            self.saving.note_changed(&user, inbox);
            self.saving.note_send(key, accepted);
            accepted
        });
        for waiter in waiters.into_iter().flatten() {
            out.counts.accepted += 1;
            answer_send(waiter, Ok(accepted), out);
        }
        if known.is_none() {
            self.pump_all(now, &user, out);
        }
    }

    /// Lets out to every connected device of a user what its window takes.
    fn pump_all(&mut self, now: Now, user: &Arc<str>, out: &mut Effects) {
        let devices = self.users.get(user).map_or(0, |inbox| inbox.devices().len());
        for device in 0..devices {
            self.pump(now, user, device, out);
        }
    }

    fn pump(&mut self, now: Now, user: &Arc<str>, device: usize, out: &mut Effects) {
        let Some(inbox) = self.users.get_mut(user) else { return };
        let Some(delivery) = &inbox.devices()[device].delivery else { return };
        if !self.registry.is_live(user, delivery.connection()) {
            return;
        }
        let context = Pump {
            unix_ms: now.unix_ms,
            age_max_ms: self.config.inbox_age_max_ms,
            window_messages: self.config.window_messages,
            store: &*self.store,
            partition: self.partition,
            user,
        };
        let before = out.outbound.len();
        if pump(inbox, device, &context, &mut out.outbound, &mut out.counts).is_err() {
            out.counts.store_errors += 1;
            self.saving.note_hungry(user);
        }
        if self.journal.is_on() && out.outbound.len() > before {
            let device = DeviceMark::of(&inbox.devices()[device].id);
            for (edge, message) in out.outbound.iter().skip(before) {
                if let Outbound::Deliver(deliver) = message {
                    let place = ConnectionRef { edge: *edge, connection: deliver.connection };
                    let delivered = StepKind::Delivered(place, device);
                    self.journal.note(now.unix_ms, user, deliver.sequence, delivered);
                }
            }
        }
    }

    /// Whether a send was accepted before.
    fn accepted(&self, key: &SendKey, now: Now) -> Result<Option<Accepted>, StoreError> {
        match self.saving.send(key) {
            None => self.store.send(self.partition, key, now.unix_ms.div_euclid(DAY_MS)),
            known => Ok(known),
        }
    }

    /// Brings a user's inbox into memory.
    fn load(&mut self, now: Now, user: &str) -> Result<(), StoreError> {
        if let Some(inbox) = self.users.get_mut(user) {
            inbox.used_at_ms = now.mono_ms;
            return Ok(());
        }
        let stored = self.stored(user)?;
        self.take_in(now, user, stored);
        Ok(())
    }

    /// What the last checkpoint wrote of a user's inbox.
    fn stored(&self, user: &str) -> Result<Option<InboxRecord>, StoreError> {
        let stored = self.store.inbox(self.partition, user)?;
        let record = stored.map(InboxRecord::decode).transpose();
        record.map_err(|error| StoreError(format!("an inbox is unreadable: {error}")))
    }

    /// Puts an inbox into memory, with the connections and the device that only the registry knows.
    fn take_in(&mut self, now: Now, user: &str, stored: Option<InboxRecord>) {
        let mut inbox = stored.map_or_else(Inbox::default, Inbox::from_record);
        inbox.used_at_ms = now.mono_ms;
        let user: Arc<str> = user.into();
        if let Some(device) = self.registry.unrecorded(&user) {
            inbox.device(device, now.unix_ms);
            self.saving.note_changed(&user, &inbox);
            self.saving.note_moved(&user, &inbox);
        }
        self.attach_known(&user, &mut inbox);
        self.registry.note_recorded(&user);
        self.users.insert(user, inbox);
    }

    fn key(&self, from: &str, to: &str, client_message_id: &str) -> SendKey {
        SendKey::new(self.seed, from, to, client_message_id)
    }
}
