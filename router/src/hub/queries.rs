//! What the server API asks: who is online, how long an inbox is, where a message is; and the one thing that it
//! does, closing connections.
//!
//! A question changes nothing: an inbox that is not in memory is looked at where the store has it, and stays there.

use hawser_proto::client::error;
use hawser_proto::link::disconnect::Reason;
use hawser_proto::link::query::Kind as Asked;
use hawser_proto::link::query_answer::Kind as Answered;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::link::trace_step::Kind as StepName;
use hawser_proto::link::{
    DeviceState, Disconnect, DisconnectQuery, Disconnected, Failure, InboxState, Online,
    OnlineConnection, OnlineQuery, Query, QueryAnswer, Trace, TraceStep,
};
use hawser_proto::partition::partition_of;

use super::journal::{DeviceMark, Step, StepKind};
use super::sends::{failure, unavailable};
use super::{Effects, Hub};
use crate::inbox::Inbox;
use crate::limits;
use crate::queue::PartitionId;
use crate::record::{MessageRecord, offset_of, partition_of_id};
use crate::registry::EdgeId;
use crate::store::StoreError;
use prost::Message as _;

/// The partition that a query is about: its user's, or that of the message it asks for. The latter may be none of the
/// cluster's.
#[must_use]
pub fn partition_of_query(query: &Query, partitions: u16) -> PartitionId {
    match &query.kind {
        Some(Asked::Trace(trace)) if query.user.is_empty() => partition_of_id(trace.message_id),
        _ => partition_of(&query.user, partitions),
    }
}

/// Puts the names of edges into an answer, where there is one: a Hub knows their numbers.
pub fn name_edges<'a>(answer: &mut QueryAnswer, name: impl Fn(EdgeId) -> Option<&'a str>) {
    let name = |number: u32| name(EdgeId(number)).unwrap_or_default().to_owned();
    match &mut answer.kind {
        Some(Answered::Online(online)) => {
            for connection in &mut online.connections {
                connection.edge = name(connection.edge_number);
            }
        }
        Some(Answered::Trace(trace)) => {
            let delivered = |step: &&mut TraceStep| step.kind() == StepName::Delivered;
            for step in trace.steps.iter_mut().filter(delivered) {
                step.edge = name(step.edge_number);
            }
        }
        Some(Answered::Inbox(_) | Answered::Disconnected(_) | Answered::Failure(_)) | None => {}
    }
}

impl Hub {
    pub(super) fn handle_query(&mut self, edge: EdgeId, query: &Query, out: &mut Effects) {
        let kind = self.answer(query, out).unwrap_or_else(Answered::Failure);
        out.answers.push((edge, QueryAnswer { ticket: query.ticket, kind: Some(kind) }));
    }

    fn answer(&self, query: &Query, out: &mut Effects) -> Result<Answered, Failure> {
        let user = query.user.as_str();
        let may_be_empty = matches!(query.kind, Some(Asked::Trace(_)));
        if user.len() > limits::USER_BYTES_MAX || (user.is_empty() && !may_be_empty) {
            return Err(failure(
                error::Code::InvalidArgument,
                "a user id has 1 to 64 bytes",
                false,
            ));
        }
        let answer = match &query.kind {
            Some(Asked::Online(online)) => self.online(user, online).map(Answered::Online),
            Some(Asked::Inbox(_)) => self.inbox_state(user).map(Answered::Inbox),
            Some(Asked::Disconnect(disconnect)) => {
                Ok(Answered::Disconnected(self.disconnect(user, disconnect, out)))
            }
            Some(Asked::Trace(trace)) => match self.trace(user, trace.message_id) {
                Ok(Some(trace)) => Ok(Answered::Trace(trace)),
                Ok(None) => return Err(not_traced(user)),
                Err(error) => Err(error),
            },
            None => {
                let text = "this router does not know the question";
                return Err(failure(error::Code::Unsupported, text, false));
            }
        };
        answer.map_err(|error| {
            out.counts.store_errors += 1;
            unavailable(&error.0)
        })
    }

    fn online(&self, user: &str, query: &OnlineQuery) -> Result<Online, StoreError> {
        let connections = self.registry.live(user).map(|known| OnlineConnection {
            device: known.device.to_owned(),
            edge: String::new(),
            edge_number: known.connection.edge.0,
            connection: known.connection.connection,
            client_kind: known.program.kind.clone(),
            client_version: known.program.version.clone(),
            connected_at_ms: known.connected_at_ms,
        });
        let connections = connections.collect();
        let devices = if query.devices {
            self.look_at(user, |inbox| self.devices(user, inbox))?
        } else {
            Vec::new()
        };
        Ok(Online { connections, devices })
    }

    fn inbox_state(&self, user: &str) -> Result<InboxState, StoreError> {
        self.look_at(user, |inbox| {
            let (floor, next) = inbox.map_or((1, 1), |inbox| (inbox.floor(), inbox.next()));
            InboxState { floor, next, devices: self.devices(user, inbox) }
        })
    }

    /// Tells the edges of a user's connections, or of one device's, to close them.
    fn disconnect(&self, user: &str, query: &DisconnectQuery, out: &mut Effects) -> Disconnected {
        let mut connections = 0;
        for known in self.registry.live(user) {
            if query.device.is_empty() || query.device == known.device {
                let reason = Reason::Operator as i32;
                let disconnect = Disconnect { connection: known.connection.connection, reason };
                out.outbound.push((known.connection.edge, Outbound::Disconnect(disconnect)));
                connections += 1;
            }
        }
        Disconnected { connections }
    }

    /// Shows an inbox as it is in memory, or else as the store has it with the connections of now.
    fn look_at<R>(
        &self,
        user: &str,
        see: impl FnOnce(Option<&Inbox>) -> R,
    ) -> Result<R, StoreError> {
        if let Some(inbox) = self.users.get(user) {
            return Ok(see(Some(inbox)));
        }
        Ok(match self.stored(user)? {
            None => see(None),
            Some(record) => {
                let mut inbox = Inbox::from_record(record);
                self.attach_known(user, &mut inbox);
                see(Some(&inbox))
            }
        })
    }

    /// The user's devices, also the one that only the registry knows.
    fn devices(&self, user: &str, inbox: Option<&Inbox>) -> Vec<DeviceState> {
        let only = self.registry.unrecorded(user).map(|device| DeviceState {
            device: device.to_owned(),
            cursor: 0,
            seen_at_ms: self.registry.unrecorded_at_ms(user),
            connected: self.registry.live(user).next().is_some(),
            in_flight: 0,
        });
        let known = inbox.map_or(&[][..], Inbox::devices);
        let known = known.iter().map(|device| {
            let delivery = device.delivery.as_ref();
            DeviceState {
                device: device.id.to_string(),
                cursor: device.cursor,
                seen_at_ms: device.seen_at_ms,
                connected: delivery.is_some_and(|it| self.registry.is_live(user, it.connection())),
                in_flight: delivery.map_or(0, |delivery| delivery.in_flight() as u32),
            }
        });
        known.chain(only).collect()
    }

    /// Where a message is. `None`: it has left the journal, and the inbox does not hold it (or nobody says whose that is).
    fn trace(&self, user: &str, message_id: u64) -> Result<Option<Trace>, StoreError> {
        let offset = offset_of(message_id);
        if partition_of_id(message_id) != self.partition {
            return Ok(None);
        }
        let noted = self.journal.appended(offset);
        let user = match noted {
            Some((noted, ..)) if user.is_empty() || user == &**noted => &**noted,
            Some(_) => return Ok(None),
            None if user.is_empty() => return Ok(None),
            None => user,
        };
        self.look_at(user, |inbox| {
            let found = match (noted, inbox) {
                (Some((_, sequence, at_ms)), _) => Some((sequence, at_ms)),
                (None, Some(inbox)) => self.find_held(user, inbox, message_id)?,
                (None, None) => None,
            };
            Ok(found.map(|(sequence, accepted_at_ms)| Trace {
                message_id,
                user: user.to_owned(),
                sequence,
                offset,
                accepted_at_ms,
                held: inbox.is_some_and(|inbox| inbox.holds(sequence)),
                steps: self.steps(user, sequence, inbox),
            }))
        })?
    }

    /// Sequence and time of a message that the inbox holds: the ids rise with the sequences.
    fn find_held(
        &self,
        user: &str,
        inbox: &Inbox,
        message_id: u64,
    ) -> Result<Option<(u64, i64)>, StoreError> {
        let (mut first, mut end) = (inbox.floor(), inbox.next());
        while first < end {
            let middle = first + (end - first) / 2;
            let Some((id, at_ms)) = self.held(user, inbox, middle)? else { return Ok(None) };
            match id.cmp(&message_id) {
                std::cmp::Ordering::Equal => return Ok(Some((middle, at_ms))),
                std::cmp::Ordering::Less => first = middle + 1,
                std::cmp::Ordering::Greater => end = middle,
            }
        }
        Ok(None)
    }

    fn held(
        &self,
        user: &str,
        inbox: &Inbox,
        sequence: u64,
    ) -> Result<Option<(u64, i64)>, StoreError> {
        if sequence >= inbox.recent_first() {
            let entry = inbox.recent(sequence);
            return Ok(entry.map(|entry| (entry.message_id, entry.accepted_at_ms)));
        }
        let stored = self.store.messages(self.partition, user, sequence..sequence + 1, 1)?;
        let record = stored.into_iter().find_map(|(_, bytes)| MessageRecord::decode(bytes).ok());
        Ok(record.map(|record| (record.message_id, record.accepted_at_ms)))
    }

    /// What the journal has, and where it has nothing what inbox and cursors say: that without a time.
    fn steps(&self, user: &str, sequence: u64, inbox: Option<&Inbox>) -> Vec<TraceStep> {
        let devices = inbox.map_or(&[][..], Inbox::devices);
        let mut steps: Vec<TraceStep> = Vec::new();
        for step in self.journal.of(user, sequence) {
            let told = trace_step(step, |mark| {
                let known = devices.iter().map(|device| &*device.id);
                let known = known.chain(self.registry.unrecorded(user));
                known.into_iter().find(|device| DeviceMark::of(device) == mark)
            });
            // What comes after the first acknowledgement of a device acknowledges other messages.
            let is_acknowledgement = told.kind() == StepName::Acknowledged;
            if !(is_acknowledgement && has(&steps, StepName::Acknowledged, &told.device)) {
                steps.push(told);
            }
        }
        // A device that came when the message was gone stands behind it, and never had it.
        let is_held = inbox.is_some_and(|inbox| inbox.holds(sequence));
        for device in devices.iter().filter(|_| is_held) {
            let untimed = |kind: StepName| TraceStep {
                kind: kind as i32,
                device: device.id.to_string(),
                ..TraceStep::default()
            };
            let delivery =
                device.delivery.as_ref().filter(|delivery| delivery.is_in_flight(sequence));
            if let Some(delivery) = delivery
                && !has(&steps, StepName::Delivered, &device.id)
            {
                steps.push(TraceStep {
                    edge_number: delivery.connection().edge.0,
                    connection: delivery.connection().connection,
                    ..untimed(StepName::Delivered)
                });
            }
            let acknowledged = device.cursor >= sequence;
            if acknowledged && !has(&steps, StepName::Acknowledged, &device.id) {
                steps.push(untimed(StepName::Acknowledged));
            }
        }
        steps
    }
}

fn has(steps: &[TraceStep], kind: StepName, device: &str) -> bool {
    steps.iter().any(|step| step.kind() == kind && step.device == device)
}

fn trace_step<'a>(step: &Step, device: impl Fn(DeviceMark) -> Option<&'a str>) -> TraceStep {
    let device = |mark: DeviceMark| device(mark).unwrap_or_default().to_owned();
    match step.kind {
        StepKind::Delivered(connection, mark) => TraceStep {
            kind: StepName::Delivered as i32,
            device: device(mark),
            at_ms: step.at_ms,
            edge: String::new(),
            edge_number: connection.edge.0,
            connection: connection.connection,
        },
        StepKind::Acknowledged(mark) => TraceStep {
            kind: StepName::Acknowledged as i32,
            device: device(mark),
            at_ms: step.at_ms,
            ..TraceStep::default()
        },
        StepKind::Appended(_) => TraceStep::default(),
    }
}

fn not_traced(user: &str) -> Failure {
    let text = if user.is_empty() {
        "the message is not among the last that this router remembers; with ?user= the user's inbox is looked through"
    } else {
        "the message is not among the last that this router remembers, and the user's inbox does not hold it: it was \
         acknowledged by all devices, expired, or never was"
    };
    failure(error::Code::NotFound, text, false)
}
