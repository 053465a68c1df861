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
//!
//! What ends an edge counts at once, for all its registrations; their memory comes back in steps.
//!
//! The registry also stands in for the store, for devices of users who never got a message: those are
//! **unrecorded**. They cost neither log nor store while they come and go, and are written when somebody needs
//! to know them (`hub::saving`). Until then one that has left is remembered here, **departed**.

pub mod local;
mod programs;
pub mod redis;
mod slots;
pub mod view;

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

/// A connection, as an edge tells it.
#[derive(Debug, Clone, Copy)]
pub struct Registration<'a> {
    /// Where it is.
    pub connection: ConnectionRef,
    /// The session in which it is told.
    pub session: Session,
    /// Whose, at most [`USER_BYTES_MAX`](crate::limits::USER_BYTES_MAX) long.
    pub user: &'a str,
    /// Which device.
    pub device: &'a str,
    /// By the edge's clock, in milliseconds since the epoch.
    pub connected_at_ms: i64,
    /// Program of the client.
    pub kind: &'a str,
    /// Its version.
    pub version: &'a str,
    /// It may have been told before, and is not necessarily news.
    pub snapshot: bool,
    /// Only the registry knows the device so far.
    pub unrecorded: bool,
}

/// One connection of a user, as the registry knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known<'a> {
    /// Where it is.
    pub connection: ConnectionRef,
    /// Which device.
    pub device: &'a str,
    /// By the edge's clock, in milliseconds since the epoch.
    pub connected_at_ms: i64,
    /// What runs there.
    pub program: &'a ClientProgram,
}

/// A device that only the registry knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnrecordedDevice {
    /// Whose.
    pub user: Box<str>,
    /// Its id.
    pub device: Box<str>,
    /// When it connected or left, in milliseconds since the epoch.
    pub seen_at_ms: i64,
}

/// Which unrecorded devices are due, in milliseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Until {
    /// Connected ones, when they came before this.
    pub came_ms: i64,
    /// Departed ones, when they left before this.
    pub left_ms: i64,
    /// So many other departed ones, whenever they left.
    pub others: usize,
}

impl Until {
    /// All of them.
    pub const EVER: Self = Self { came_ms: i64::MAX, left_ms: i64::MAX, others: 0 };
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
