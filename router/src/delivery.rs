//! From an inbox to one connected device: the window, what was let out, and what is told as a gap.
//!
//! ```text
//!    acked ≤ sent ≤ last          in flight: sequences acked+1 ..= sent that were delivered
//! ```
//!
//! A device has at most a window of messages and of bytes in flight; an acknowledgement makes room. Where
//! sequences are missing (freed, over the bound, expired) the device is told a gap in their place.

use std::collections::VecDeque;

use hawser_proto::client::gap;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::link::{Deliver, Gap};
use prost::Message as _;

use crate::hub::Counts;
use crate::inbox::{Entry, Inbox};
use crate::limits;
use crate::queue::PartitionId;
use crate::record::MessageRecord;
use crate::registry::{ConnectionRef, EdgeId};
use crate::store::{Store, StoreError};

/// What is on its way to one connection.
#[derive(Debug)]
pub struct Delivery {
    connection: ConnectionRef,
    acked: u64,
    sent: u64,
    /// Sequence and payload bytes of what was delivered and is not acknowledged.
    in_flight: VecDeque<(u64, u32)>,
    in_flight_bytes: usize,
}

impl Delivery {
    /// Delivery to `connection` of what comes after `cursor`.
    #[must_use]
    pub fn new(connection: ConnectionRef, cursor: u64) -> Self {
        Self {
            connection,
            acked: cursor,
            sent: cursor,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
        }
    }

    /// Where it goes.
    #[must_use]
    pub fn connection(&self) -> ConnectionRef {
        self.connection
    }

    /// Highest sequence that this connection has acknowledged or started after.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Highest sequence that was delivered or told as missing.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Messages that were let out and are not acknowledged.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether this message is one of them.
    #[must_use]
    pub fn is_in_flight(&self, sequence: u64) -> bool {
        self.in_flight.binary_search_by_key(&sequence, |(sequence, _)| *sequence).is_ok()
    }

    /// Takes an acknowledgement; `last` is the highest sequence given so far. It may be of more than was sent
    /// here: the device has it from an earlier session, and will not acknowledge it twice. One of a sequence that
    /// was never given is a mistake, and counts only as far as was sent. Answers the sequence that counts.
    pub fn acknowledge(&mut self, sequence: u64, last: u64) -> u64 {
        let counts = if sequence <= last { sequence } else { self.sent };
        self.acked = self.acked.max(counts);
        self.sent = self.sent.max(self.acked);
        while let Some((_, bytes)) = self.in_flight.pop_front_if(|(first, _)| *first <= self.acked)
        {
            self.in_flight_bytes -= bytes as usize;
        }
        if self.in_flight.is_empty() {
            // A connection at rest owns no buffer.
            self.in_flight = VecDeque::new();
        }
        self.acked
    }

    /// Goes back, so that everything after `sequence` that is not acknowledged is delivered again.
    pub fn rewind(&mut self, sequence: u64) {
        self.sent = self.sent.min(sequence.max(self.acked));
        while let Some((_, bytes)) = self.in_flight.pop_back_if(|(last, _)| *last > self.sent) {
            self.in_flight_bytes -= bytes as usize;
        }
    }

    fn has_room(&self, window_messages: usize) -> bool {
        self.in_flight.is_empty()
            || (self.in_flight.len() < window_messages
                && self.in_flight_bytes < limits::WINDOW_BYTES_MAX)
    }

    fn note_sent(&mut self, sequence: u64, payload_bytes: usize) {
        self.sent = sequence;
        self.in_flight.push_back((sequence, payload_bytes as u32));
        self.in_flight_bytes += payload_bytes;
    }
}

/// What [`pump`] needs to know beside the inbox.
pub struct Pump<'a> {
    /// Wall clock, in milliseconds since the epoch.
    pub unix_ms: i64,
    /// Oldest message that is delivered, in milliseconds.
    pub age_max_ms: i64,
    /// Unacknowledged messages let out to a device.
    pub window_messages: usize,
    /// Holds what is not in memory.
    pub store: &'a dyn Store,
    /// Where the inbox is in the store.
    pub partition: PartitionId,
    /// Whose inbox it is.
    pub user: &'a str,
}

/// Lets out to one connected device what its window takes.
///
/// # Errors
/// The store could not be read. What had been let out before stays so; pumping again goes on there.
pub fn pump(
    inbox: &mut Inbox,
    device: usize,
    context: &Pump<'_>,
    out: &mut Vec<(EdgeId, Outbound)>,
    counts: &mut Counts,
) -> Result<(), StoreError> {
    let Some(mut delivery) = inbox.devices_mut()[device].delivery.take() else { return Ok(()) };
    let before = out.len();
    let result = pump_all(inbox, &mut delivery, context, out);
    inbox.devices_mut()[device].delivery = Some(delivery);
    for (_, message) in out.iter().skip(before) {
        if matches!(message, Outbound::Deliver(_)) {
            counts.delivered += 1;
        } else {
            counts.gaps += 1;
        }
    }
    result
}

fn pump_all(
    inbox: &mut Inbox,
    delivery: &mut Delivery,
    context: &Pump<'_>,
    out: &mut Vec<(EdgeId, Outbound)>,
) -> Result<(), StoreError> {
    loop {
        let next = delivery.sent + 1;
        if next >= inbox.next() {
            return Ok(());
        }
        // A gap waits for room like a message: a device that takes nothing is told nothing.
        if !delivery.has_room(context.window_messages) {
            return Ok(());
        }
        if next < inbox.floor() {
            let last = inbox.floor() - 1;
            tell_gap(delivery, last, inbox.gap_reason(last), out);
            continue;
        }
        if next < inbox.recent_first() {
            pump_page(inbox, delivery, context, out)?;
            continue;
        }
        let Some(entry) = inbox.recent(next) else { return Ok(()) };
        let entry = entry.clone();
        tell(inbox, delivery, next, &entry, context, out);
    }
}

/// Delivers a page that is only in the store. Always gets on: what the store lacks is a gap.
fn pump_page(
    inbox: &mut Inbox,
    delivery: &mut Delivery,
    context: &Pump<'_>,
    out: &mut Vec<(EdgeId, Outbound)>,
) -> Result<(), StoreError> {
    let first = delivery.sent + 1;
    let room = context.window_messages.saturating_sub(delivery.in_flight.len());
    let messages = room.clamp(1, limits::PAGE_MESSAGES_MAX) as u64;
    let end = inbox.recent_first().min(first + messages);
    let page = context.store.messages(
        context.partition,
        context.user,
        first..end,
        limits::WINDOW_BYTES_MAX,
    )?;
    if page.is_empty() {
        tell_gap(delivery, end - 1, gap::Reason::NotHeld, out);
        return Ok(());
    }
    for (sequence, bytes) in page {
        if sequence > delivery.sent + 1 {
            tell_gap(delivery, sequence - 1, gap::Reason::NotHeld, out);
        }
        if !delivery.has_room(context.window_messages) {
            return Ok(());
        }
        match MessageRecord::decode(bytes) {
            Ok(record) => {
                let entry = Entry::from_record(record);
                tell(inbox, delivery, sequence, &entry, context, out);
            }
            Err(_) => tell_gap(delivery, sequence, gap::Reason::NotHeld, out),
        }
    }
    Ok(())
}

/// Delivers one message, or tells that it has expired.
fn tell(
    inbox: &mut Inbox,
    delivery: &mut Delivery,
    sequence: u64,
    entry: &Entry,
    context: &Pump<'_>,
    out: &mut Vec<(EdgeId, Outbound)>,
) {
    if entry.is_expired(context.unix_ms, context.age_max_ms) {
        tell_gap(delivery, sequence, gap::Reason::Expired, out);
        return;
    }
    inbox.note_told(sequence, entry.message_id, &entry.from);
    delivery.note_sent(sequence, entry.payload.len());
    let deliver = Deliver {
        connection: delivery.connection.connection,
        sequence,
        message_id: entry.message_id,
        from: String::from(&*entry.from),
        group: String::new(),
        payload: entry.payload.clone(),
        time_ms: entry.accepted_at_ms,
    };
    out.push((delivery.connection.edge, Outbound::Deliver(deliver)));
}

/// Tells that everything after what was sent, up to `last`, will not come. Adjacent gaps become one.
fn tell_gap(
    delivery: &mut Delivery,
    last: u64,
    reason: gap::Reason,
    out: &mut Vec<(EdgeId, Outbound)>,
) {
    let first = delivery.sent + 1;
    delivery.sent = last;
    let ConnectionRef { edge, connection } = delivery.connection;
    if let Some((before_edge, Outbound::Gap(before))) = out.last_mut()
        && (*before_edge, before.connection) == (edge, connection)
        && before.last_sequence + 1 == first
        && before.reason == reason as u32
    {
        before.last_sequence = last;
        return;
    }
    let reason = reason as u32;
    let gap = Gap { connection, first_sequence: first, last_sequence: last, reason };
    out.push((edge, Outbound::Gap(gap)));
}
