//! Why a connection ends: the one place where close codes are chosen.

use crate::tls::TlsError;
use crate::ws::ProtocolError;

/// What stands for a Close frame without a code; never sent (RFC 6455 section 7.4.1).
pub const NO_STATUS_RECEIVED: u16 = 1005;

/// Our own: the token has expired; get a new one, then come back (client.proto).
pub const TOKEN_EXPIRED: u16 = 4401;

/// Why a connection ends. Names are what metrics and logs call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The client sent a Close frame with this code, or none (1005).
    ClosedByPeer(u16),
    /// The client ended the TCP stream without a Close frame.
    Vanished,
    /// The socket failed.
    SocketFailed,
    /// The client broke RFC 6455.
    Protocol(ProtocolError),
    /// A text message where the subprotocol is binary, or the other way round.
    WrongMessageType,
    /// A message that is not a client frame in the chosen subprotocol.
    BadClientFrame,
    /// A frame came before Connect.
    NotConnected,
    /// No Connect came in time.
    ConnectMissing,
    /// The token was refused.
    Unauthenticated,
    /// The token cannot be checked at the moment.
    TokenUnchecked,
    /// The token has expired, and no newer one came.
    TokenExpired,
    /// Too much came while the token was being checked.
    EarlyFrames,
    /// Connect with a field that is missing or over its bound.
    BadConnect,
    /// A newer connection of the same device took over.
    Replaced,
    /// An operator asked.
    Operator,
    /// No sign of life within the interval that the client was told.
    PingMissing,
    /// The client does not read: its outbox reached its bound.
    SlowReader,
    /// No router registered the connection in time.
    RouterUnavailable,
    /// The request was answered with this HTTP status instead of an upgrade.
    Refused(u16),
    /// TLS ended it.
    Tls(TlsError),
    /// The TLS handshake did not come to its end in time.
    TlsTimeout,
    /// The PROXY header is missing, broken or late (haproxy's proxy-protocol.txt section 2: close without an answer).
    ProxyHeader,
    /// The user has as many connections, or connects as often, as one may.
    UserLimit,
    /// The edge stops.
    GoingAway,
    /// The edge is being drained: come back to another one.
    Drained,
    /// This edge has more than its share: come back to whichever the balancer chooses.
    Rebalanced,
}

impl CloseReason {
    /// The code for the Close frame (RFC 6455 section 7.4.1), or `None` where none is sent.
    #[must_use]
    pub fn code(self) -> Option<u16> {
        match self {
            Self::ClosedByPeer(code) => Some(code),
            Self::Protocol(error) => Some(error.close_code()),
            Self::WrongMessageType => Some(1003),
            Self::BadClientFrame => Some(1007),
            Self::NotConnected
            | Self::ConnectMissing
            | Self::Unauthenticated
            | Self::EarlyFrames
            | Self::BadConnect
            | Self::Replaced
            | Self::Operator
            | Self::PingMissing => Some(1008),
            Self::SlowReader | Self::RouterUnavailable | Self::UserLimit | Self::TokenUnchecked => {
                Some(1013)
            }
            Self::TokenExpired => Some(TOKEN_EXPIRED),
            Self::GoingAway => Some(1001),
            // Service restart (IANA registry of close codes): come back soon.
            Self::Drained | Self::Rebalanced => Some(1012),
            Self::Vanished
            | Self::SocketFailed
            | Self::Tls(_)
            | Self::TlsTimeout
            | Self::ProxyHeader
            | Self::Refused(_) => None,
        }
    }

    /// For the Close frame's reason text and for logs.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::ClosedByPeer(_) => "",
            Self::Vanished => "stream ended without a Close frame",
            Self::SocketFailed => "socket failed",
            Self::Protocol(error) => error.sentence(),
            Self::WrongMessageType => "text or binary, the subprotocol speaks the other",
            Self::BadClientFrame => "not a client frame",
            Self::NotConnected => "the first frame has to be Connect",
            Self::ConnectMissing => "no Connect in time",
            Self::Unauthenticated => "token refused",
            Self::TokenUnchecked => "tokens cannot be checked, try again",
            Self::TokenExpired => "token expired",
            Self::EarlyFrames => "too much before the token was checked",
            Self::BadConnect => "bad Connect",
            Self::Replaced => "replaced by a newer connection of this device",
            Self::Operator => "disconnected by an operator",
            Self::PingMissing => "no sign of life",
            Self::SlowReader => "too much unread",
            Self::RouterUnavailable => "no router, try again",
            Self::Refused(_) => "request refused",
            Self::Tls(error) => error.sentence(),
            Self::TlsTimeout => "TLS handshake not in time",
            Self::ProxyHeader => "no PROXY header",
            Self::UserLimit => "too many connections or connects of this user",
            Self::GoingAway => "going away",
            Self::Drained => "this edge is being drained",
            Self::Rebalanced => "this edge is sending clients to others",
        }
    }

    /// What the metric `edge_closed_total` calls it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::ClosedByPeer(_) => "closed_by_peer",
            Self::Vanished => "vanished",
            Self::SocketFailed => "socket_failed",
            Self::Protocol(_) => "protocol",
            Self::WrongMessageType => "wrong_message_type",
            Self::BadClientFrame => "bad_client_frame",
            Self::NotConnected => "not_connected",
            Self::ConnectMissing => "connect_missing",
            Self::Unauthenticated => "unauthenticated",
            Self::TokenUnchecked => "token_unchecked",
            Self::TokenExpired => "token_expired",
            Self::EarlyFrames => "early_frames",
            Self::BadConnect => "bad_connect",
            Self::Replaced => "replaced",
            Self::Operator => "operator",
            Self::PingMissing => "ping_missing",
            Self::SlowReader => "slow_reader",
            Self::RouterUnavailable => "router_unavailable",
            Self::Refused(_) => "refused",
            Self::Tls(_) => "tls",
            Self::TlsTimeout => "tls_timeout",
            Self::ProxyHeader => "proxy_header",
            Self::UserLimit => "user_limit",
            Self::GoingAway => "going_away",
            Self::Drained => "drained",
            Self::Rebalanced => "rebalanced",
        }
    }
}
