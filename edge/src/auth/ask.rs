//! Questions of the shards to the auth thread, and the answers' way back.

use std::fmt;
use std::net::IpAddr;

use tokio::sync::mpsc;

use super::{Identity, Refused};
use crate::conn::ConnKey;

/// Questions of all shards that wait for the auth thread; one more is refused, and its client asked to come back.
pub const ASKS_MAX: usize = 4096;

/// Whose token this is, asks a shard for one of its connections.
pub struct Ask {
    /// Which shard.
    pub shard: u16,
    /// Which of its connections. It may be gone when the answer comes, which then hits nobody.
    pub key: ConnKey,
    /// At most [`crate::limits::TOKEN_BYTES_MAX`] bytes.
    pub token: Box<str>,
    /// From Connect; empty when the token came with the request, before the device is known.
    pub device: Box<str>,
    /// Where the client connects from.
    pub address: IpAddr,
    /// When it was asked, in milliseconds since the Unix epoch.
    pub asked_at_ms: i64,
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shard, key, device, address, .. } = self;
        write!(f, "Ask by shard {shard} for {key:?}, device {device:?} at {address}")
    }
}

/// The answer to an [`Ask`].
#[derive(Debug)]
pub struct Verdict {
    /// For which connection.
    pub key: ConnKey,
    /// Who it is.
    pub outcome: Result<Identity, Refused>,
}

/// The shards' end.
#[derive(Clone)]
pub struct Asks(mpsc::Sender<Ask>);

/// The other end, and the shards' own.
#[must_use]
pub fn channel() -> (Asks, mpsc::Receiver<Ask>) {
    let (sender, receiver) = mpsc::channel(ASKS_MAX);
    (Asks(sender), receiver)
}

impl Asks {
    pub(super) fn try_ask(&self, ask: Ask) -> Result<(), Refused> {
        self.0.try_send(ask).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refused::Overloaded,
            mpsc::error::TrySendError::Closed(_) => Refused::Unavailable,
        })
    }
}
