//! Which edge holds a user's connections.
//!
//! Every partition owns the slice of its users. A registration is **live** while the link of its edge is
//! up and has told it in the current session; it is **suspended** while the link is down or has not told it
//! again yet; it is dropped when the edge says so, when its lease ends, or when the edge was started anew.
//!
//! ```text
//!   Register ─► live ─ link down ─► suspended ─ told again ─► live
//!                 │                     ├─ all shards told, this one not ─► dropped
//!                 └─ Unregister         └─ lease over, or a new epoch ────► dropped
//! ```
//!
//! One connection a device: a newer one takes the place of the older, whose edge is told to close it.

pub mod local;

use std::sync::Arc;

/// One start of one edge: an edge that was started anew is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeId(pub u32);

/// Counts the links of one [`EdgeId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Session(pub u32);

/// A connection, wherever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionRef {
    /// On which edge.
    pub edge: EdgeId,
    /// The edge's number for it.
    pub connection: u64,
}

/// Program and version of a client, shared by all that have the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientProgram {
    /// Name of the program.
    pub kind: String,
    /// Its version.
    pub version: String,
}

/// One connection of a user.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Where it is.
    pub connection: ConnectionRef,
    /// The session in which it was told last.
    pub session: Session,
    /// Which device.
    pub device: Box<str>,
    /// By the edge's clock, in milliseconds since the epoch.
    pub connected_at_ms: i64,
    /// What runs there.
    pub program: Arc<ClientProgram>,
}

/// What became of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is there.
    Registered,
    /// It is there, in the place of this one.
    Replaced(ConnectionRef),
    /// A snapshot told it, and a newer connection of the device is known: that one stays.
    Outdated,
}
