//! Why a connection's TLS ends, and the alert that tells the peer.

use std::error::Error;
use std::fmt;

use rustls::AlertDescription;

/// Why a connection's TLS is over. The alert that is due for it, if any, comes out of [`seal`](super::Tls::seal);
/// then the connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsError {
    /// The first byte is a letter, so the client speaks HTTP without TLS. No alert is due: answer in plain text.
    PlainHttp,
    /// The first bytes are no TLS record.
    NotTls,
    /// No version, cipher suite, group or application protocol that both ends know.
    NothingInCommon,
    /// The client's certificate is missing, or nobody trusted has signed it.
    ClientCertificate,
    /// Any other fault of the peer in the handshake.
    BadHandshake,
    /// Handshake messages over the bound.
    HandshakeTooLong,
    /// The peer gave up with this alert.
    PeerAlert(u8),
    /// A record over 2^14 bytes of content (RFC 8446 section 5.2), or its like in TLS 1.2.
    RecordOverflow,
    /// A record that was not sealed with our keys, or was changed on its way.
    BadRecord,
    /// A record or message that has no place here: `ChangeCipherSpec` or plain text after the handshake, a handshake
    /// message other than `KeyUpdate`, one that is cut by another record, nothing but padding.
    UnexpectedMessage,
    /// A message that does not have its form.
    Malformed,
    /// A field with a value that is not allowed.
    IllegalParameter,
    /// TLS 1.2: the client wants to renegotiate.
    Renegotiation,
    /// More than 32 records without content in a row.
    TooManyEmptyRecords,
    /// More than 32 key updates without data between them.
    TooManyKeyUpdates,
    /// TLS 1.2: more than 4 warnings.
    TooManyWarnings,
    /// TLS 1.2 has no key update, and the keys have sealed what they may. A `close_notify` is due.
    KeysExhausted,
    /// Our fault: the library refused what it has to do.
    Internal,
}

impl TlsError {
    /// The alert for the peer (RFC 8446 section 6), where this module is the one to send it; in the handshake
    /// rustls does.
    #[must_use]
    pub(super) fn alert(self) -> Option<AlertDescription> {
        match self {
            Self::PlainHttp
            | Self::NotTls
            | Self::NothingInCommon
            | Self::ClientCertificate
            | Self::BadHandshake
            | Self::HandshakeTooLong
            | Self::PeerAlert(_) => None,
            Self::RecordOverflow => Some(AlertDescription::RecordOverflow),
            Self::BadRecord => Some(AlertDescription::BadRecordMac),
            Self::UnexpectedMessage
            | Self::TooManyEmptyRecords
            | Self::TooManyKeyUpdates
            | Self::TooManyWarnings => Some(AlertDescription::UnexpectedMessage),
            Self::Malformed => Some(AlertDescription::DecodeError),
            Self::IllegalParameter => Some(AlertDescription::IllegalParameter),
            Self::Renegotiation => Some(AlertDescription::HandshakeFailure),
            Self::KeysExhausted => Some(AlertDescription::CloseNotify),
            Self::Internal => Some(AlertDescription::InternalError),
        }
    }

    /// What metrics call it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::PlainHttp => "plain_http",
            Self::NotTls => "not_tls",
            Self::NothingInCommon => "nothing_in_common",
            Self::ClientCertificate => "client_certificate",
            Self::BadHandshake => "bad_handshake",
            Self::HandshakeTooLong => "handshake_too_long",
            Self::PeerAlert(_) => "peer_alert",
            Self::RecordOverflow => "record_overflow",
            Self::BadRecord => "bad_record",
            Self::UnexpectedMessage => "unexpected_message",
            Self::Malformed => "malformed",
            Self::IllegalParameter => "illegal_parameter",
            Self::Renegotiation => "renegotiation",
            Self::TooManyEmptyRecords => "too_many_empty_records",
            Self::TooManyKeyUpdates => "too_many_key_updates",
            Self::TooManyWarnings => "too_many_warnings",
            Self::KeysExhausted => "keys_exhausted",
            Self::Internal => "internal",
        }
    }

    /// One short sentence for logs.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::PlainHttp => "plain HTTP on the TLS port",
            Self::NotTls => "not TLS",
            Self::NothingInCommon => "no version, cipher suite or protocol in common",
            Self::ClientCertificate => "the client's certificate is missing or not trusted",
            Self::BadHandshake => "the handshake failed",
            Self::HandshakeTooLong => "the handshake is too long",
            Self::PeerAlert(_) => "the client gave up with an alert",
            Self::RecordOverflow => "a record is too long",
            Self::BadRecord => "a record is not from this connection's peer",
            Self::UnexpectedMessage => "a record or message out of place",
            Self::Malformed => "a message does not have its form",
            Self::IllegalParameter => "a field has a value that is not allowed",
            Self::Renegotiation => "renegotiation is not offered",
            Self::TooManyEmptyRecords => "too many records without content",
            Self::TooManyKeyUpdates => "too many key updates without data",
            Self::TooManyWarnings => "too many warnings",
            Self::KeysExhausted => "the keys have sealed what they may",
            Self::Internal => "the TLS library failed",
        }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())?;
        if let Self::PeerAlert(alert) = self {
            write!(f, " ({alert})")?;
        }
        Ok(())
    }
}

impl Error for TlsError {}

/// What a refusal of rustls comes to.
impl From<&rustls::Error> for TlsError {
    fn from(error: &rustls::Error) -> Self {
        use rustls::{Error, InvalidMessage};
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "what rustls adds is a fault of the peer"
        )]
        match error {
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => Self::NotTls,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Self::NothingInCommon,
            Error::NoCertificatesPresented | Error::InvalidCertificate(_) => {
                Self::ClientCertificate
            }
            Error::AlertReceived(alert) => Self::PeerAlert(u8::from(*alert)),
            Error::DecryptError => Self::BadRecord,
            Error::PeerSentOversizedRecord => Self::RecordOverflow,
            Error::General(_)
            | Error::FailedToGetCurrentTime
            | Error::FailedToGetRandomBytes
            | Error::EncryptError
            | Error::HandshakeNotComplete
            | Error::BadMaxFragmentSize => Self::Internal,
            _ => Self::BadHandshake,
        }
    }
}
