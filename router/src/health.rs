//! What is wrong at the moment, for `/healthz`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// A part of the router that can be out of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The queue takes no appends.
    Queue,
    /// The disk is nearly full.
    Disk,
    /// The store takes no checkpoints.
    Store,
    /// A partition that belongs here could not be taken over.
    Takeover,
    /// Others cannot read who is online. Messages are delivered all the same.
    Registry,
    /// The process is on its way up or down.
    Serving,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Queue, Self::Disk, Self::Store, Self::Takeover, Self::Registry, Self::Serving];

    /// What the metric `router_degraded` calls it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Disk => "disk",
            Self::Store => "store",
            Self::Takeover => "takeover",
            Self::Registry => "registry",
            Self::Serving => "serving",
        }
    }
}

/// The parts that are out of order, each with a sentence for the operator.
#[derive(Debug, Default)]
pub struct Health(Mutex<BTreeMap<Part, String>>);

impl Health {
    /// Says what is wrong with a part, or that it works. Logs the change.
    pub fn set(&self, part: Part, reason: Option<String>) {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match reason {
            Some(reason) => {
                if parts.insert(part, reason.clone()).is_none() {
                    tracing::warn!(?part, reason, "degraded");
                }
            }
            None => {
                if parts.remove(&part).is_some() {
                    tracing::info!(?part, "works again");
                }
            }
        }
    }

    /// What is wrong with a part.
    #[must_use]
    pub fn of(&self, part: Part) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&part).cloned()
    }

    /// Whether messages wait, or are refused, because of what is wrong.
    #[must_use]
    pub fn holds_messages_up(&self) -> bool {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.keys().any(|part| *part != Part::Registry)
    }

    /// One line a part that is out of order; empty when all is well.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
