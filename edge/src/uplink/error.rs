//! Why links end.

use std::fmt;
use std::io;

use hawser_proto::view::wire::WireError;

/// Why a link ended; for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkError {
    /// The attempt failed or the stream ended, with the system's error number.
    Socket(i32),
    /// The router closed the stream.
    Closed,
    /// Nothing came in time.
    Silent,
    /// The router has not read for as long as a lease.
    Stuck,
    /// Bytes that are not link frames.
    BadFrame(String),
    /// The router does not want this edge, and says why.
    Refused(String),
    /// There is no TLS with the router; a sentence that says why.
    Tls(String),
    /// The router does not belong to the others; a sentence that says why.
    Misfit(String),
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(errno) => write!(f, "{}", io::Error::from_raw_os_error(*errno)),
            Self::Closed => f.write_str("closed by the router"),
            Self::Silent => f.write_str("no answer in time"),
            Self::Stuck => f.write_str("the router does not read what it is sent"),
            Self::BadFrame(what) => write!(f, "not a link frame: {what}"),
            Self::Refused(why) => write!(f, "refused by the router: {why}"),
            Self::Tls(why) | Self::Misfit(why) => f.write_str(why),
        }
    }
}

impl From<WireError> for LinkError {
    fn from(error: WireError) -> Self {
        Self::BadFrame(error.to_string())
    }
}
