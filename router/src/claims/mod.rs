//! Which partitions this router owns, as the engine decides it.
//!
//! ```text
//!              Gained                    Wanted
//!  another's ─────────► taken over, served ─────► saved, let go ─ Released ─► another's
//!                              └─ Lost: dropped at once; another may serve it already
//! ```
//!
//! A claim says who shall serve a partition, and no more: nothing is lost and nothing comes twice where two routers take
//! themselves for the owner for a while. What keeps them apart is the epoch that a takeover writes into the log
//! (`takeover`), behind which the log refuses the former owner or shows it that it is not alone.

#[cfg(feature = "kafka")]
pub mod kafka;
pub mod nats;

use tokio::sync::mpsc;

use crate::queue::PartitionId;

/// What the engine decides about a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// This router shall take it over and serve it.
    Gained(PartitionId),
    /// Another router shall have it: save it, let go, and say [`Told::Released`]. The next owner waits for that, within
    /// bounds.
    Wanted(PartitionId),
    /// Another router may have it already: drop it.
    Lost(PartitionId),
}

/// What the router tells its engine of claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// A partition that was wanted is saved and not served here any more; also one that could not be taken over, which
    /// somebody else may try, or this router a while later.
    Released(PartitionId),
    /// The router leaves, and has released all: give up what is left and end.
    Stop,
}

/// The engine's end of both channels.
#[derive(Debug)]
pub struct Ends {
    /// To the router.
    pub changes: mpsc::UnboundedSender<Change>,
    /// From the router.
    pub told: mpsc::UnboundedReceiver<Told>,
}
