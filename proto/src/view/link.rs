//! Views of `link.proto`: what an edge says is written, what the router says is read. Both ways exist for
//! all of them, so that tests and tools can stand on either side.

use super::views;
use super::wire::{self, Fields, WireError};

views! {
    /// See `Hello` in link.proto.
    Hello ['a] {
        /// Stable name of the edge.
        1 edge_id: string,
        /// Drawn at every start.
        2 epoch: fixed64,
        /// Where the edge stands.
        3 region: string,
        /// Release.
        4 version: string,
        /// Link protocol.
        5 protocol: uint32,
        /// How many SnapshotEnd will come.
        6 shards: uint32,
    }
    /// See `HelloAck` in link.proto.
    HelloAck ['a] {
        /// Name of the router.
        1 router_id: string,
        /// Drawn at every start.
        2 epoch: fixed64,
        /// Release.
        3 version: string,
        /// Link protocol.
        4 protocol: uint32,
        /// Silence after which the edge's registrations go.
        5 lease_ms: uint32,
        /// Not empty: refused.
        6 refused: string,
        /// Told to clients.
        7 window_messages: uint32,
        /// Of the cluster; 0 from a router that owns every user and says no Ownership.
        8 partitions: uint32,
    }
    /// See `Register` in link.proto.
    Register ['a] {
        /// The edge's name for the connection.
        1 connection: fixed64,
        /// Whose.
        2 user: string,
        /// Which device.
        3 device: string,
        /// Highest sequence acknowledged, where known.
        4 cursor: optional_uint64,
        /// Since when.
        5 connected_at_ms: int64,
        /// Client program.
        6 client_kind: string,
        /// Its version.
        7 client_version: string,
        /// Registered is wanted.
        8 answer: boolean,
        /// Part of a snapshot.
        9 snapshot: boolean,
    }
    /// See `SnapshotEnd` in link.proto.
    SnapshotEnd [] {
        /// Whose connections have all been told.
        1 shard: uint32,
    }
    /// See `Failure` in link.proto.
    Failure ['a] {
        /// Number of the client protocol's `Error.Code`.
        1 code: uint32,
        /// For people.
        2 message: string,
        /// Whether the same may work later.
        3 retryable: boolean,
    }
    /// See `Registered` in link.proto.
    Registered ['a] {
        /// Which.
        1 connection: fixed64,
        /// Deliveries start after it.
        2 cursor: uint64,
        /// Nothing is missing before it.
        3 resumed: boolean,
        /// Set: not registered.
        4 failure: message(Failure),
    }
    /// See `Unregister` in link.proto.
    Unregister ['a] {
        /// Which.
        1 connection: fixed64,
        /// Whose.
        2 user: string,
    }
    /// See `Send` in link.proto.
    Send ['a] {
        /// Where the answer goes.
        1 connection: fixed64,
        /// Given back.
        2 ticket: fixed64,
        /// Sender.
        3 from: string,
        /// Chosen by the sender.
        4 client_message_id: string,
        /// Recipient.
        5 to_user: string,
        /// Recipients.
        6 to_group: string,
        /// Opaque.
        7 payload: bytes,
        /// 0: the inbox's own bound.
        8 expires_at_ms: int64,
    }
    /// See `SendAck` in link.proto.
    SendAck ['a] {
        /// From the Send.
        1 connection: fixed64,
        /// From the Send.
        2 ticket: fixed64,
        /// Given by the router.
        3 message_id: uint64,
        /// When it was accepted.
        4 time_ms: int64,
        /// Set: not stored.
        5 failure: message(Failure),
    }
    /// See `Deliver` in link.proto.
    Deliver ['a] {
        /// To which.
        1 connection: fixed64,
        /// Dense per inbox.
        2 sequence: fixed64,
        /// Given by the router.
        3 message_id: uint64,
        /// Sender.
        4 from: string,
        /// Empty: one to one.
        5 group: string,
        /// Opaque.
        6 payload: bytes,
        /// When it was accepted.
        7 time_ms: int64,
    }
    /// See `Ack` in link.proto.
    Ack ['a] {
        /// From which.
        1 connection: fixed64,
        /// Whose.
        2 user: string,
        /// Highest received in order.
        3 sequence: uint64,
        /// Highest read.
        4 read_sequence: optional_uint64,
    }
    /// See `Relay` in link.proto.
    Relay ['a] {
        /// Of the recipient.
        1 connection: fixed64,
        /// The sender of the messages.
        2 to: string,
        /// Delivered or read.
        3 kind: uint32,
        /// The recipient.
        4 user: string,
        /// Which messages.
        5 message_ids: packed,
        /// When.
        6 time_ms: int64,
    }
    /// See `Receipt` in link.proto.
    Receipt ['a] {
        /// To which.
        1 connection: fixed64,
        /// Number of the client protocol's `Receipt.Kind`.
        2 kind: uint32,
        /// The recipient.
        3 user: string,
        /// What was received or read.
        4 message_ids: packed,
        /// When.
        5 time_ms: int64,
    }
    /// See `Signal` in link.proto.
    Signal ['a] {
        /// From which.
        1 connection: fixed64,
        /// Sender.
        2 from: string,
        /// Recipient.
        3 to: string,
        /// What kind of signal.
        4 kind: string,
        /// Opaque.
        5 payload: bytes,
    }
    /// See `SignalOut` in link.proto.
    SignalOut ['a] {
        /// To which.
        1 connection: fixed64,
        /// Sender.
        2 from: string,
        /// What kind of signal.
        3 kind: string,
        /// Opaque.
        4 payload: bytes,
    }
    /// See `Sync` in link.proto.
    Sync ['a] {
        /// From which.
        1 connection: fixed64,
        /// Whose.
        2 user: string,
        /// Deliver again what comes after it.
        3 after_sequence: uint64,
    }
    /// See `Gap` in link.proto.
    Gap [] {
        /// To which.
        1 connection: fixed64,
        /// First that will never come.
        2 first_sequence: uint64,
        /// Last that will never come.
        3 last_sequence: uint64,
        /// Number of the client protocol's `Gap.Reason`.
        4 reason: uint32,
    }
    /// See `Disconnect` in link.proto.
    Disconnect [] {
        /// Which.
        1 connection: fixed64,
        /// Number of `Disconnect.Reason`.
        2 reason: enumeration,
    }
    /// See `Heartbeat` in link.proto.
    Heartbeat [] {
        /// The speaker's clock.
        1 time_ms: int64,
    }
}

/// A message that is rare, kept as the bytes of its fields: the generated types of [`crate::link`] read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded<'a>(pub &'a [u8]);

impl<'a> Encoded<'a> {
    /// Takes the bytes as they are.
    ///
    /// # Errors
    /// None: whoever decodes them finds out.
    pub fn read(message: &'a [u8]) -> Result<Self, WireError> {
        Ok(Self(message))
    }
}

impl wire::Message for Encoded<'_> {
    fn put<S: wire::Sink>(&self, sink: &mut S) {
        sink.raw(self.0);
    }
}

/// Declares one direction: an enum of views, reading of a message of the batch, writing into a batch.
macro_rules! direction {
    ($(#[$doc:meta])* $name:ident, $batch:literal { $( $number:literal $variant:ident ( $($view:tt)+ ) ),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each is documented at the view it holds")]
        pub enum $name<'a> {
            $( $variant($($view)+), )*
            /// No message, or one of a kind that this release does not know: passed over.
            Unknown,
        }

        impl<'a> $name<'a> {
            /// Reads one message of a batch. Where several stand in it, the last counts.
            ///
            /// # Errors
            /// [`WireError`] for bytes that are not such a message.
            pub fn read(message: &'a [u8]) -> Result<Self, WireError> {
                let mut read = Self::Unknown;
                let mut fields = Fields::new(message);
                while let Some((number, value)) = fields.next_field()? {
                    read = match number {
                        $( $number => Self::$variant(<$($view)+>::read(value.bytes()?)?), )*
                        _ => continue,
                    };
                }
                Ok(read)
            }

            /// Writes this message as the next one of the batch that stands at the end of `out`: the
            #[doc = concat!("messages of a `", $batch, "` one after the other are the batch.")]
            #[inline]
            pub fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $( Self::$variant(view) => wire::write_field_in_field(out, 1, $number, view), )*
                    Self::Unknown => {}
                }
            }
        }
    };
}

direction! {
    /// Edge to router.
    EdgeMessage, "EdgeBatch" {
        1 Hello(Hello<'a>), 2 Register(Register<'a>), 3 SnapshotEnd(SnapshotEnd),
        4 Unregister(Unregister<'a>), 5 Send(Send<'a>), 6 Ack(Ack<'a>), 7 Signal(Signal<'a>),
        8 Sync(Sync<'a>), 9 Heartbeat(Heartbeat), 11 Relay(Relay<'a>),
    }
}
direction! {
    /// Router to edge.
    RouterMessage, "RouterBatch" {
        1 HelloAck(HelloAck<'a>), 2 Registered(Registered<'a>), 3 Deliver(Deliver<'a>),
        4 SendAck(SendAck<'a>), 5 Receipt(Receipt<'a>), 6 Signal(SignalOut<'a>), 7 Gap(Gap),
        8 Disconnect(Disconnect), 9 Heartbeat(Heartbeat), 10 Ownership(Encoded<'a>),
        12 Relay(Relay<'a>),
    }
}

/// The messages of one `EdgeBatch` or `RouterBatch`, each as its encoded bytes.
#[derive(Debug, Clone)]
pub struct Batch<'a>(Fields<'a>);

impl<'a> Batch<'a> {
    /// Reads the body of one link frame.
    #[must_use]
    pub fn new(body: &'a [u8]) -> Self {
        Self(Fields::new(body))
    }

    /// The next message's bytes, for [`EdgeMessage::read`] or [`RouterMessage::read`].
    ///
    /// # Errors
    /// [`WireError`] where the batch itself is not protobuf; the rest of it is lost.
    pub fn next_message(&mut self) -> Result<Option<&'a [u8]>, WireError> {
        while let Some((number, value)) = self.0.next_field()? {
            if number == 1 {
                return value.bytes().map(Some);
            }
        }
        Ok(None)
    }
}

/// The connection that an encoded router message is about, without reading the rest: every message that
/// goes to one connection has it as its first field. `None` for messages to the edge itself.
///
/// # Errors
/// [`WireError`] for bytes that are not a `RouterMessage`.
#[inline]
pub fn connection_of(message: &[u8]) -> Result<Option<u64>, WireError> {
    let mut fields = Fields::new(message);
    let Some((number, value)) = fields.next_field()? else { return Ok(None) };
    if !matches!(number, 2..=8 | 12) {
        return Ok(None);
    }
    let mut inner = Fields::new(value.bytes()?);
    while let Some((number, value)) = inner.next_field()? {
        if number == 1 {
            return value.fixed64().map(Some);
        }
    }
    Ok(Some(0))
}

/// Writes an encoded message as the next one of the batch that stands at the end of `out`, unread.
pub fn write_encoded(out: &mut Vec<u8>, message: &[u8]) {
    use wire::Sink as _;
    let mut writer = wire::Writer(out);
    writer.varint(0x0a);
    writer.varint(message.len() as u64);
    writer.raw(message);
}
