//! What connections ask for: register, acknowledge, sync, signal.

use std::sync::Arc;

use ahash::AHashMap;
use hawser_proto::client::{error, receipt};
use hawser_proto::link::disconnect::Reason;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::link::{
    Ack, Disconnect, Failure, Register, Registered, Signal, SignalOut, Sync, Unregister,
};

use super::journal::{DeviceMark, StepKind};
use super::sends::{failure, unavailable};
use super::{Effects, Hub, Now, Receipt};
use crate::delivery::Delivery;
use crate::inbox::{Inbox, ReceiptIds};
use crate::limits;
use crate::registry::view::{self, Change};
use crate::registry::{ClientProgram, ConnectionRef, EdgeId, Outcome, Registration, Session};
use crate::store::StoreError;

impl Hub {
    pub(super) fn handle_register(
        &mut self,
        now: Now,
        edge: EdgeId,
        session: Session,
        register: Register,
        out: &mut Effects,
    ) {
        let connection = ConnectionRef { edge, connection: register.connection };
        let within = |text: &str, bytes_max: usize| (1..=bytes_max).contains(&text.len());
        let refused = if !within(&register.user, limits::USER_BYTES_MAX)
            || !within(&register.device, limits::DEVICE_BYTES_MAX)
        {
            let text = "a user id has 1 to 64 bytes, a device id 1 to 40";
            Some(failure(error::Code::InvalidArgument, text, false))
        } else {
            None
        };
        let presence = match refused {
            Some(failure) => Err(failure),
            None => self.look_up(now, &register.user, &register.device).map_err(|error| {
                out.counts.store_errors += 1;
                unavailable(&error.0)
            }),
        };
        let presence = match presence {
            Ok(presence) => presence,
            Err(failure) => {
                // Told also where no answer was asked for: the edge believes that this client is delivered to.
                out.outbound.push(registered(connection, 0, false, Some(failure)));
                return;
            }
        };
        if self.is_doubted(&register, out) {
            let text = "another router may have the partition by now";
            out.outbound.push(registered(connection, 0, false, Some(unavailable(text))));
            return;
        }
        let registration = Registration {
            connection,
            session,
            user: &register.user,
            device: &register.device,
            connected_at_ms: register.connected_at_ms,
            kind: cut(&register.client_kind, limits::CLIENT_KIND_BYTES_MAX),
            version: cut(&register.client_version, limits::CLIENT_KIND_BYTES_MAX),
            snapshot: register.snapshot,
            unrecorded: presence == Presence::Blank,
        };
        match self.registry.register(&registration) {
            Outcome::Registered => {}
            Outcome::Replaced(before) => {
                out.counts.replaced += 1;
                out.outbound.push(disconnect_replaced(before));
            }
            Outcome::Outdated => {
                out.counts.replaced += 1;
                out.outbound.push(disconnect_replaced(connection));
                return;
            }
        }
        if self.config.tells_registry {
            out.registry.push(came(&registration));
        }
        self.note_connections(now);
        if presence == Presence::Blank {
            if register.answer {
                let resumed = register.cursor.unwrap_or(0) == 0;
                out.outbound.push(registered(connection, 0, resumed, None));
            }
            return;
        }
        self.start_delivery(now, connection, &register, out);
        if presence == Presence::FromStore {
            self.let_go_at_rest(&register.user);
        }
    }

    /// Finds out what there is of a user for a device that registers; brings the inbox into memory when
    /// there is one, or when there has to be one because this is the user's second device.
    fn look_up(&mut self, now: Now, user: &str, device: &str) -> Result<Presence, StoreError> {
        if let Some(inbox) = self.users.get_mut(user) {
            inbox.used_at_ms = now.mono_ms;
            return Ok(Presence::InMemory);
        }
        match self.registry.unrecorded(user) {
            Some(only) if only == device => Ok(Presence::Blank),
            Some(_) => self.load(now, user).map(|()| Presence::InMemory),
            None => match self.stored(user)? {
                None => Ok(Presence::Blank),
                Some(record) => {
                    self.take_in(now, user, Some(record));
                    Ok(Presence::FromStore)
                }
            },
        }
    }

    /// Forgets an inbox that was read for a registration alone and had nothing to deliver.
    fn let_go_at_rest(&mut self, user: &str) {
        if self.users.get(user).is_some_and(Inbox::is_evictable) {
            self.users.remove(user);
        }
    }

    /// Decides where delivery to a registered connection starts, says so and starts it.
    fn start_delivery(
        &mut self,
        now: Now,
        connection: ConnectionRef,
        register: &Register,
        out: &mut Effects,
    ) {
        let Some((user, _)) = self.users.get_key_value(register.user.as_str()) else { return };
        let user = Arc::clone(user);
        let Some(inbox) = self.users.get_mut(&user) else { return };
        let device = inbox.device(&register.device, now.unix_ms);
        let cursor = register.cursor.unwrap_or(inbox.devices()[device].cursor);
        // A client that is ahead of its inbox has outlived a store.
        let start = cursor.min(inbox.last());
        let resumed = start == cursor && start + 1 >= inbox.floor();
        if inbox.move_cursor(device, start) {
            let acknowledged = StepKind::Acknowledged(DeviceMark::of(&register.device));
            self.journal.note(now.unix_ms, &user, start, acknowledged);
        }
        inbox.devices_mut()[device].delivery = Some(Delivery::new(connection, start));
        self.saving.note_changed(&user, inbox);
        self.saving.note_moved(&user, inbox);
        self.log_devices(&user, out);
        if register.answer {
            out.outbound.push(registered(connection, start, resumed, None));
        }
        self.pump(now, &user, device, out);
    }

    pub(super) fn handle_unregister(
        &mut self,
        now: Now,
        edge: EdgeId,
        unregister: Unregister,
        out: &mut Effects,
    ) {
        let connection = ConnectionRef { edge, connection: unregister.connection };
        if self.registry.unregister(now.unix_ms, &unregister.user, connection) {
            detach(&mut self.users, &unregister.user, connection);
            if self.config.tells_registry {
                out.registry.push(Change::Left { user: unregister.user.into(), connection });
            }
        }
    }

    pub(super) fn handle_ack(&mut self, now: Now, edge: EdgeId, ack: &Ack, out: &mut Effects) {
        let connection = ConnectionRef { edge, connection: ack.connection };
        let Some((user, device)) = self.connected_device(now, &ack.user, connection, out) else {
            return;
        };
        let Some(inbox) = self.users.get_mut(&user) else { return };
        let last = inbox.last();
        let Some(delivery) = &mut inbox.devices_mut()[device].delivery else { return };
        let acked = delivery.acknowledge(ack.sequence, last);
        let moved = inbox.move_cursor(device, acked);
        let device_record = &mut inbox.devices_mut()[device];
        device_record.seen_at_ms = now.unix_ms;
        let cursor = device_record.cursor;
        let delivered = inbox.take_delivered(cursor);
        let read =
            ack.read_sequence.map_or_else(Vec::new, |read| inbox.take_read(read.min(cursor)));
        if moved {
            self.saving.note_changed(&user, inbox);
            self.saving.note_moved(&user, inbox);
            if self.journal.is_on() {
                let acknowledged =
                    StepKind::Acknowledged(DeviceMark::of(&inbox.devices()[device].id));
                self.journal.note(now.unix_ms, &user, cursor, acknowledged);
            }
        }
        out.counts.acknowledged += 1;
        tell_senders(now, &user, connection, receipt::Kind::Delivered, delivered, out);
        tell_senders(now, &user, connection, receipt::Kind::Read, read, out);
        self.pump(now, &user, device, out);
    }

    pub(super) fn handle_sync(&mut self, now: Now, edge: EdgeId, sync: &Sync, out: &mut Effects) {
        let connection = ConnectionRef { edge, connection: sync.connection };
        let Some((user, device)) = self.connected_device(now, &sync.user, connection, out) else {
            return;
        };
        let Some(inbox) = self.users.get_mut(&user) else { return };
        if let Some(delivery) = &mut inbox.devices_mut()[device].delivery {
            delivery.rewind(sync.after_sequence);
        }
        self.pump(now, &user, device, out);
    }

    pub(super) fn handle_signal(&mut self, signal: &Signal, out: &mut Effects) {
        let before = out.outbound.len();
        for known in self.registry.live(&signal.to) {
            let signal_out = SignalOut {
                connection: known.connection.connection,
                from: signal.from.clone(),
                kind: signal.kind.clone(),
                payload: signal.payload.clone(),
            };
            out.outbound.push((known.connection.edge, Outbound::Signal(signal_out)));
        }
        if out.outbound.len() == before {
            out.counts.signals_dropped += 1;
        } else {
            out.counts.signals += 1;
        }
    }

    pub(super) fn handle_receipt(&mut self, receipt: &Receipt, out: &mut Effects) {
        for known in self.registry.live(&receipt.to) {
            let message = hawser_proto::link::Receipt {
                connection: known.connection.connection,
                kind: receipt.kind,
                user: receipt.user.to_string(),
                message_ids: receipt.message_ids.clone(),
                time_ms: receipt.time_ms,
            };
            out.counts.receipts += 1;
            out.outbound.push((known.connection.edge, Outbound::Receipt(message)));
        }
    }

    /// The user and the device of a connection that may speak, with the inbox in memory.
    fn connected_device(
        &mut self,
        now: Now,
        user: &str,
        connection: ConnectionRef,
        out: &mut Effects,
    ) -> Option<(Arc<str>, usize)> {
        let is_blank = !self.users.contains_key(user) && self.registry.unrecorded(user).is_some();
        if is_blank || !self.registry.is_known(user, connection) {
            return None;
        }
        if self.load(now, user).is_err() {
            // The client says it again with its next acknowledgement.
            out.counts.store_errors += 1;
            return None;
        }
        let (user, inbox) = self.users.get_key_value(user)?;
        let of_connection = |delivery: &Delivery| delivery.connection() == connection;
        let device = inbox
            .devices()
            .iter()
            .position(|device| device.delivery.as_ref().is_some_and(of_connection))?;
        Some((Arc::clone(user), device))
    }

    /// Gives an inbox that comes back into memory the connections that the registry knows. It left memory
    /// with everything delivered and acknowledged.
    pub(super) fn attach_known(&self, user: &str, inbox: &mut Inbox) {
        for device in inbox.devices_mut() {
            let known = self.registry.of_device(user, &device.id);
            device.delivery = known.map(|connection| Delivery::new(connection, device.cursor));
        }
    }

    /// Lets go of some registrations whose edge is gone, or did not tell them again.
    pub(super) fn sweep_registry(&mut self, now: Now, out: &mut Effects) {
        let Self { registry, users, config, .. } = self;
        registry.sweep(now.unix_ms, limits::SWEEP_SLOTS, |user, connection| {
            detach(users, user, connection);
            if config.tells_registry {
                out.registry.push(Change::Left { user: user.into(), connection });
            }
        });
    }

    /// How many slots [`Hub::walk_registry`] has to look at.
    #[must_use]
    pub fn registry_slots(&self) -> usize {
        self.registry.slots()
    }

    /// Who is registered in up to `slots_max` slots below `left`, and where to go on; at 0 everything was told.
    #[must_use]
    pub fn walk_registry(&self, left: usize, slots_max: usize) -> (usize, Vec<Change>) {
        let mut changes = Vec::new();
        let rest = self.registry.walk(left, slots_max, |user, known| {
            changes.push(Change::Came(Box::new(view::Presence {
                user: user.into(),
                device: known.device.into(),
                connection: known.connection,
                connected_at_ms: known.connected_at_ms,
                program: known.program.clone(),
            })));
        });
        (rest, changes)
    }
}

/// What there is of a user when a device registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// The inbox is in memory.
    InMemory,
    /// The inbox has just been read from the store.
    FromStore,
    /// Nothing: no message ever came, and at most this device is known, to the registry alone.
    Blank,
}

fn came(registration: &Registration<'_>) -> Change {
    Change::Came(Box::new(view::Presence {
        user: registration.user.into(),
        device: registration.device.into(),
        connection: registration.connection,
        connected_at_ms: registration.connected_at_ms,
        program: ClientProgram {
            kind: registration.kind.to_owned(),
            version: registration.version.to_owned(),
        },
    }))
}

fn detach(users: &mut AHashMap<Arc<str>, Inbox>, user: &str, connection: ConnectionRef) {
    let Some(inbox) = users.get_mut(user) else { return };
    for device in inbox.devices_mut() {
        if device.delivery.as_ref().is_some_and(|known| known.connection() == connection) {
            device.delivery = None;
        }
    }
}

fn registered(
    connection: ConnectionRef,
    cursor: u64,
    resumed: bool,
    failure: Option<Failure>,
) -> (EdgeId, Outbound) {
    let ConnectionRef { edge, connection } = connection;
    (edge, Outbound::Registered(Registered { connection, cursor, resumed, failure }))
}

fn disconnect_replaced(connection: ConnectionRef) -> (EdgeId, Outbound) {
    let disconnect =
        Disconnect { connection: connection.connection, reason: Reason::Replaced as i32 };
    (connection.edge, Outbound::Disconnect(disconnect))
}

fn tell_senders(
    now: Now,
    user: &Arc<str>,
    via: ConnectionRef,
    kind: receipt::Kind,
    ids: ReceiptIds,
    out: &mut Effects,
) {
    for (to, ids) in ids {
        for message_ids in ids.chunks(limits::RECEIPT_IDS_MAX) {
            out.receipts.push(Receipt {
                to: Arc::clone(&to),
                kind: kind as u32,
                user: Arc::clone(user),
                message_ids: message_ids.to_vec(),
                time_ms: now.unix_ms,
                via: Some(via),
            });
        }
    }
}

/// The longest start of `text` that has at most `bytes_max` bytes.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}
