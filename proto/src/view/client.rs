//! Views of `client.proto`: what a client says is read, what it is told is written.

use super::views;
use super::wire::{self, Fields, WireError};

views! {
    /// See `Connect` in client.proto.
    Connect ['a] {
        /// Who this is.
        1 token: string,
        /// Which of the user's devices.
        2 device_id: string,
        /// Highest sequence that the device has taken over.
        3 resume_cursor: optional_uint64,
        /// Name of the client program.
        4 client_kind: string,
        /// Version of the client program.
        5 client_version: string,
        /// Number of `Mode`.
        6 mode: enumeration,
    }
    /// See `Send` in client.proto. The last of `to_user` and `to_group` counts; empty is unset.
    Send ['a] {
        /// Chosen by the sender.
        1 client_message_id: string,
        /// Recipient.
        2 to_user: string,
        /// Recipients.
        3 to_group: string,
        /// Opaque.
        4 payload: bytes,
        /// Milliseconds from now.
        5 expires_after_ms: optional_uint64,
    }
    /// See `Ack` in client.proto.
    Ack [] {
        /// Highest sequence received in order.
        1 sequence: uint64,
        /// Highest sequence read.
        2 read_sequence: optional_uint64,
    }
    /// See `Signal` in client.proto.
    Signal ['a] {
        /// Recipient on the way in, sender on the way out.
        1 user: string,
        /// What kind of signal.
        2 kind: string,
        /// Opaque.
        3 payload: bytes,
    }
    /// See `SetMode` in client.proto.
    SetMode [] {
        /// Number of `Mode`.
        1 mode: enumeration,
    }
    /// See `Sync` in client.proto.
    Sync [] {
        /// Deliver again what comes after it.
        1 after_sequence: uint64,
    }
    /// See `Refresh` in client.proto.
    Refresh ['a] {
        /// The newer token.
        1 token: string,
    }
    /// See `Ping` in client.proto.
    Ping [] {
        /// Given back.
        1 nonce: fixed64,
    }
    /// See `Pong` in client.proto.
    Pong [] {
        /// From the Ping.
        1 nonce: fixed64,
        /// Server time.
        2 time_ms: int64,
    }
    /// See `Intervals` in client.proto.
    Intervals [] {
        /// In mode ACTIVE.
        1 active_ms: uint32,
        /// In mode IDLE.
        2 idle_ms: uint32,
        /// In mode BACKGROUND.
        3 background_ms: uint32,
    }
    /// See `Limits` in client.proto.
    Limits [] {
        /// Longest payload of a Send, in bytes.
        1 payload_bytes_max: uint32,
        /// Unacknowledged deliveries let out to one device.
        2 window_messages: uint32,
        /// Sends that may wait for their answer.
        3 sends_in_flight_max: uint32,
    }
    /// See `SendAck` in client.proto.
    SendAck ['a] {
        /// From the Send.
        1 client_message_id: string,
        /// Given by the router.
        2 message_id: uint64,
        /// When it was accepted.
        3 time_ms: int64,
        /// Set: not stored.
        4 error: message(Error),
    }
    /// See `Deliver` in client.proto.
    Deliver ['a] {
        /// Dense per inbox.
        1 sequence: fixed64,
        /// Given by the router.
        2 message_id: uint64,
        /// Sender.
        3 from: string,
        /// Empty: one to one.
        4 group: string,
        /// Opaque.
        5 payload: bytes,
        /// When it was accepted.
        6 time_ms: int64,
    }
    /// See `Gap` in client.proto.
    Gap [] {
        /// First that will never come.
        1 first_sequence: uint64,
        /// Last that will never come.
        2 last_sequence: uint64,
        /// Number of `Gap.Reason`.
        3 reason: enumeration,
    }
    /// See `Receipt` in client.proto.
    Receipt ['a] {
        /// Number of `Receipt.Kind`.
        1 kind: enumeration,
        /// The recipient.
        2 user: string,
        /// What was received or read.
        3 message_ids: packed,
        /// When.
        4 time_ms: int64,
    }
    /// See `GoAway` in client.proto.
    GoAway ['a] {
        /// For people.
        1 reason: string,
        /// Come back after it.
        2 reconnect_after_ms: uint32,
    }
    /// See `Error` in client.proto.
    Error ['a] {
        /// Number of `Error.Code`.
        1 code: enumeration,
        /// For people.
        2 message: string,
        /// Whether the same may work later.
        3 retryable: boolean,
    }
    /// See `Welcome` in client.proto. Has two messages inside.
    Welcome ['a] {
        /// For support and logs.
        1 connection_id: fixed64,
        /// Server time.
        2 time_ms: int64,
        /// What the client may let pass in silence.
        3 intervals: plain_message(Intervals),
        /// What the client may ask.
        4 limits: plain_message(Limits),
        /// Deliveries start after it.
        5 cursor: uint64,
        /// Nothing is missing before `cursor`.
        6 resumed: boolean,
        /// Who the token says this is.
        7 user: string,
        /// When the token expires; 0: never.
        8 token_expires_at_ms: int64,
    }
    /// See `Refreshed` in client.proto.
    Refreshed [] {
        /// As in `Welcome`.
        1 token_expires_at_ms: int64,
    }
}

/// What a client says, one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is documented at the view it holds")]
pub enum ClientFrame<'a> {
    Connect(Connect<'a>),
    Send(Send<'a>),
    Ack(Ack),
    Signal(Signal<'a>),
    SetMode(SetMode),
    Sync(Sync),
    Refresh(Refresh<'a>),
    Ping(Ping),
    /// No frame, or one of a kind that this release does not know.
    Unknown,
}

impl<'a> ClientFrame<'a> {
    /// Reads one `ClientFrame`. Where several frames stand in it, the last counts.
    ///
    /// # Errors
    /// [`WireError`] for bytes that are not a `ClientFrame`.
    #[inline]
    pub fn read(message: &'a [u8]) -> Result<Self, WireError> {
        let mut frame = Self::Unknown;
        let mut fields = Fields::new(message);
        while let Some((number, value)) = fields.next_field()? {
            frame = match number {
                1 => Self::Connect(Connect::read(value.bytes()?)?),
                2 => Self::Send(Send::read(value.bytes()?)?),
                3 => Self::Ack(Ack::read(value.bytes()?)?),
                4 => Self::Signal(Signal::read(value.bytes()?)?),
                5 => Self::SetMode(SetMode::read(value.bytes()?)?),
                6 => Self::Sync(Sync::read(value.bytes()?)?),
                7 => Self::Refresh(Refresh::read(value.bytes()?)?),
                8 => Self::Ping(Ping::read(value.bytes()?)?),
                _ => continue,
            };
        }
        Ok(frame)
    }

    /// Writes one `ClientFrame` at the end of `out`. `Unknown` writes nothing.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Connect(view) => wire::write_field(out, 1, view),
            Self::Send(view) => wire::write_field(out, 2, view),
            Self::Ack(view) => wire::write_field(out, 3, view),
            Self::Signal(view) => wire::write_field(out, 4, view),
            Self::SetMode(view) => wire::write_field(out, 5, view),
            Self::Sync(view) => wire::write_field(out, 6, view),
            Self::Refresh(view) => wire::write_field(out, 7, view),
            Self::Ping(view) => wire::write_field(out, 8, view),
            Self::Unknown => {}
        }
    }
}

/// What a client is told, one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is documented at the view it holds")]
pub enum ServerFrame<'a> {
    Welcome(Welcome<'a>),
    SendAck(SendAck<'a>),
    Deliver(Deliver<'a>),
    Receipt(Receipt<'a>),
    Signal(Signal<'a>),
    GoAway(GoAway<'a>),
    Error(Error<'a>),
    Pong(Pong),
    Gap(Gap),
    Refreshed(Refreshed),
    /// No frame, or one of a kind that this release does not know.
    Unknown,
}

impl<'a> ServerFrame<'a> {
    /// Reads one `ServerFrame`. Where several frames stand in it, the last counts.
    ///
    /// # Errors
    /// [`WireError`] for bytes that are not a `ServerFrame`.
    pub fn read(message: &'a [u8]) -> Result<Self, WireError> {
        let mut frame = Self::Unknown;
        let mut fields = Fields::new(message);
        while let Some((number, value)) = fields.next_field()? {
            frame = match number {
                1 => Self::Welcome(Welcome::read(value.bytes()?)?),
                2 => Self::SendAck(SendAck::read(value.bytes()?)?),
                3 => Self::Deliver(Deliver::read(value.bytes()?)?),
                4 => Self::Receipt(Receipt::read(value.bytes()?)?),
                5 => Self::Signal(Signal::read(value.bytes()?)?),
                6 => Self::GoAway(GoAway::read(value.bytes()?)?),
                7 => Self::Error(Error::read(value.bytes()?)?),
                8 => Self::Pong(Pong::read(value.bytes()?)?),
                9 => Self::Gap(Gap::read(value.bytes()?)?),
                10 => Self::Refreshed(Refreshed::read(value.bytes()?)?),
                _ => continue,
            };
        }
        Ok(frame)
    }

    /// Length of the encoding, in bytes.
    #[inline]
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        use wire::Message as _;
        let inner = match self {
            Self::Welcome(view) => view.encoded_bytes(),
            Self::SendAck(view) => view.encoded_bytes(),
            Self::Deliver(view) => view.encoded_bytes(),
            Self::Receipt(view) => view.encoded_bytes(),
            Self::Signal(view) => view.encoded_bytes(),
            Self::GoAway(view) => view.encoded_bytes(),
            Self::Error(view) => view.encoded_bytes(),
            Self::Pong(view) => view.encoded_bytes(),
            Self::Gap(view) => view.encoded_bytes(),
            Self::Refreshed(view) => view.encoded_bytes(),
            Self::Unknown => return 0,
        };
        1 + wire::varint_bytes(inner as u64) + inner
    }

    /// Writes one `ServerFrame` at the end of `out`. `Unknown` writes nothing.
    #[inline]
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Welcome(view) => wire::write_field(out, 1, view),
            Self::SendAck(view) => wire::write_field(out, 2, view),
            Self::Deliver(view) => wire::write_field(out, 3, view),
            Self::Receipt(view) => wire::write_field(out, 4, view),
            Self::Signal(view) => wire::write_field(out, 5, view),
            Self::GoAway(view) => wire::write_field(out, 6, view),
            Self::Error(view) => wire::write_field(out, 7, view),
            Self::Pong(view) => wire::write_field(out, 8, view),
            Self::Gap(view) => wire::write_field(out, 9, view),
            Self::Refreshed(view) => wire::write_field(out, 10, view),
            Self::Unknown => {}
        }
    }
}
