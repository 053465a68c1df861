//! What an operator, or another thread of the edge, asks of one shard.
//!
//! A command travels through the shard's lane in the mesh ([`crate::mesh::Mesh::try_command`]) and is dealt with between two rounds of
//! completions. Where an answer is wanted, the command carries the way back. What one command may cost is bounded, so that
//! no shard stands still for an operator: what is longer is asked for in parts.

use std::net::SocketAddr;
use std::sync::Arc;

use arrayvec::ArrayString;
use tokio::sync::oneshot;

use crate::auth::UserId;
use crate::auth::ask::Verdict;
use crate::config::Config;
use crate::conn::{CloseReason, Codec, ConnKey, Mode};
use crate::drain;
use crate::limits;

/// Slots that one [`Command::List`] looks at.
pub const LIST_SLOTS_MAX: u32 = 256;
/// Connections of one user that one command tells about or closes. A user has one a device; more is somebody's mistake.
pub const USER_CONNECTIONS_MAX: usize = 256;

/// The way back. Whoever asked may have given up: then the answer is thrown away.
pub type Answer<T> = oneshot::Sender<T>;

/// See the module.
#[derive(Debug)]
pub enum Command {
    /// Live by these knobs from now on. Only knobs that may change while the edge runs differ from those before
    /// ([`crate::config::change`]).
    Reload(Arc<Config>),
    /// Shake hands by these certificates and tickets from now on; whoever is connected stays. Only for an edge that was started with TLS.
    Certificates(Arc<rustls::ServerConfig>),
    /// Send all clients away, or a share of them, over a window of time.
    Drain(drain::Order),
    /// Whose token a connection has brought, as the auth thread says.
    Verdict(Box<Verdict>),
    /// Tell about the connections in [`LIST_SLOTS_MAX`] slots.
    List {
        /// The first slot.
        first: u32,
        /// What is in them.
        answer: Answer<Listed>,
    },
    /// Tell about this user's connections, [`USER_CONNECTIONS_MAX`] of them at most.
    Find {
        /// Who.
        user: UserId,
        /// What was found.
        answer: Answer<Vec<Shown>>,
    },
    /// Close this user's connections, [`USER_CONNECTIONS_MAX`] of them at most.
    CloseUser {
        /// Who.
        user: UserId,
        /// How many were closed. As many as are closed at most: there may be more.
        answer: Answer<usize>,
    },
    /// Close one connection.
    Close {
        /// Which.
        key: ConnKey,
        /// Whether it was there.
        answer: Answer<bool>,
    },
}

/// Answer to [`Command::List`].
#[derive(Debug, Default)]
pub struct Listed {
    /// The connections, in the order of their slots.
    pub connections: Vec<Shown>,
    /// Where to go on; `None` behind the last slot.
    pub next: Option<u32>,
}

/// One connection as an operator sees it.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The connection id, as in the client's Welcome.
    pub id: u64,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Where it is in its life.
    pub stage: Stage,
    /// How long it has said nothing, in milliseconds; exact to a tick.
    pub silent_ms: u64,
    /// What waits to be sent to it.
    pub outbox_bytes: usize,
    /// Who it is, when that is known.
    pub session: Option<ShownSession>,
}

/// Where a connection is in its life: [`crate::conn::Phase`] without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its request is awaited.
    Head,
    /// It talks to `--echo-path`.
    Echo,
    /// Its Connect is awaited.
    Connecting,
    /// The router has not answered yet.
    Registering,
    /// It has its Welcome.
    Open,
    /// It ends.
    Closing(CloseReason),
}

/// What is known of a client with a name.
#[derive(Debug, Clone)]
pub struct ShownSession {
    /// User id.
    pub user: UserId,
    /// Device id.
    pub device: ArrayString<{ limits::DEVICE_ID_BYTES_MAX }>,
    /// When it connected, in milliseconds since the Unix epoch.
    pub connected_at_ms: i64,
    /// Name of the client program and its version.
    pub client: Arc<(Box<str>, Box<str>)>,
    /// How attentive it is.
    pub mode: Mode,
    /// How it wants its frames.
    pub codec: Codec,
    /// Sends that wait for the router's answer.
    pub sends_in_flight: u16,
    /// How far it has acknowledged.
    pub acked: Option<u64>,
}
