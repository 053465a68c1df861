//! What a peer can do wrong in framing, and the close code that answers it.

use std::error::Error;
use std::fmt;

/// Close code: the peer broke the protocol (RFC 6455 section 7.4.1).
pub const CLOSE_PROTOCOL_ERROR: u16 = 1002;
/// Close code: a payload does not fit the type of its message, such as text that is not UTF-8.
pub const CLOSE_INVALID_PAYLOAD: u16 = 1007;
/// Close code: a message is larger than the receiver takes.
pub const CLOSE_TOO_BIG: u16 = 1009;

/// A fault of the peer; the connection cannot go on. Answer with a Close frame that carries
/// [`close_code`](Self::close_code), then close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProtocolError {
    /// A reserved bit is set where no extension that was agreed on gives it a meaning (section 5.2).
    ReservedBits,
    /// An opcode that RFC 6455 leaves undefined: 3 to 7, 11 to 15 (section 5.2).
    ReservedOpcode,
    /// A control frame without FIN (section 5.5).
    ControlFrameFragmented,
    /// A control frame that announces more than 125 bytes (section 5.5).
    ControlFrameTooLong,
    /// A length in more bytes than it needs (section 5.2).
    LengthNotMinimal,
    /// A 64-bit length with the highest bit set (section 5.2).
    LengthOver63Bits,
    /// A client's frame that is not masked (section 5.1).
    MaskMissing,
    /// A server's frame that is masked (section 5.1).
    MaskForbidden,
    /// A continuation frame while no message is open (section 5.4).
    ContinuationUnexpected,
    /// A new text or binary frame inside a fragmented message (section 5.4).
    ContinuationMissing,
    /// A Close payload of one byte: too short for a code (section 5.5.1).
    ClosePayloadTooShort,
    /// A close code that must not be sent (section 7.4).
    CloseCodeInvalid,
    /// A close reason that is not UTF-8 (section 5.5.1).
    CloseReasonNotUtf8,
    /// A text message that is not UTF-8 (section 8.1).
    TextNotUtf8,
    /// A deflated message that cannot be inflated (RFC 7692 section 7.2.2).
    DeflateCorrupt,
    /// A message over `Settings::message_bytes_max`, in one frame, as the sum of its fragments, or inflated.
    MessageTooBig,
}

impl ProtocolError {
    /// The code for the Close frame that answers this fault: 1002, 1007 or 1009.
    #[must_use]
    pub const fn close_code(self) -> u16 {
        match self {
            Self::ReservedBits
            | Self::ReservedOpcode
            | Self::ControlFrameFragmented
            | Self::ControlFrameTooLong
            | Self::LengthNotMinimal
            | Self::LengthOver63Bits
            | Self::MaskMissing
            | Self::MaskForbidden
            | Self::ContinuationUnexpected
            | Self::ContinuationMissing
            | Self::ClosePayloadTooShort
            | Self::CloseCodeInvalid => CLOSE_PROTOCOL_ERROR,
            Self::CloseReasonNotUtf8 | Self::TextNotUtf8 | Self::DeflateCorrupt => {
                CLOSE_INVALID_PAYLOAD
            }
            Self::MessageTooBig => CLOSE_TOO_BIG,
        }
    }

    /// One short sentence for the peer, fit for the reason of a Close frame.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::ReservedBits => "reserved bits are set without an extension",
            Self::ReservedOpcode => "the opcode is reserved",
            Self::ControlFrameFragmented => "a control frame must not be fragmented",
            Self::ControlFrameTooLong => "a control frame carries at most 125 bytes",
            Self::LengthNotMinimal => "the length is not in its shortest form",
            Self::LengthOver63Bits => "the length does not fit 63 bits",
            Self::MaskMissing => "frames from a client must be masked",
            Self::MaskForbidden => "frames from a server must not be masked",
            Self::ContinuationUnexpected => "there is no message to continue",
            Self::ContinuationMissing => "the message before is not finished",
            Self::ClosePayloadTooShort => "a close code takes two bytes",
            Self::CloseCodeInvalid => "the close code must not be sent",
            Self::CloseReasonNotUtf8 => "the close reason is not UTF-8",
            Self::TextNotUtf8 => "the text is not UTF-8",
            Self::DeflateCorrupt => "the message cannot be inflated",
            Self::MessageTooBig => "the message is too big",
        }
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

impl Error for ProtocolError {}
