//! Edges that leave in turn, are started again and take clients again, while others go on: what a deploy does.

use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::front::Front;
use crate::processes::Servers;

/// Between two looks at an edge that is on its way out or in.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// From the signal to the end of the process, beyond the window; and from its start to its being well.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module. Turned by the thread that runs the clients.
pub(super) struct Rotation {
    every: Duration,
    /// Longest that an edge may take to leave.
    leave_time_max: Duration,
    /// The edge whose turn it is.
    edge: usize,
    phase: Phase,
    look_at: Instant,
    /// Edges that have left and are back.
    pub(super) rounds: u64,
}

/// Where the edge whose turn it is stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving { until: Instant },
    Leaving { since: Instant },
    Starting { since: Instant },
}

impl Rotation {
    /// The first edge leaves `every` from `now` on, and each next one so long after the one before is back.
    pub(super) fn new(now: Instant, every: Duration, window: Duration) -> Self {
        Self {
            every,
            leave_time_max: window + PATIENCE,
            edge: 0,
            phase: Phase::Serving { until: now + every },
            look_at: now,
            rounds: 0,
        }
    }

    /// No edge is on its way out or in.
    pub(super) fn is_calm(&self) -> bool {
        matches!(self.phase, Phase::Serving { .. })
    }

    /// Moves on what is due.
    ///
    /// # Errors
    /// When an edge does not leave in time, not well, or does not come back.
    pub(super) fn turn(
        &mut self,
        now: Instant,
        servers: &mut Servers,
        front: &mut Front,
    ) -> Result<(), Failure> {
        if now < self.look_at {
            return Ok(());
        }
        self.look_at = now + LOOK_INTERVAL;
        let edge = &mut servers.edges[self.edge];
        match self.phase {
            Phase::Serving { until } if now >= until => {
                front.set_open(self.edge, false);
                edge.ask_to_leave()?;
                self.phase = Phase::Leaving { since: now };
            }
            Phase::Leaving { since } => match edge.ended()? {
                Some(status) if status.success() => {
                    edge.start()?;
                    self.phase = Phase::Starting { since: now };
                }
                Some(status) => return Err(edge.broken(format_args!("left with {status}"))),
                None if now > since + self.leave_time_max => {
                    return Err(edge.broken(format_args!("has not left after {:?}", now - since)));
                }
                None => {}
            },
            Phase::Starting { since } => {
                edge.check_alive()?;
                if edge.is_well() {
                    front.set_open(self.edge, true);
                    self.edge = (self.edge + 1) % servers.edges.len();
                    self.phase = Phase::Serving { until: now + self.every };
                    self.rounds += 1;
                } else if now > since + PATIENCE {
                    return Err(edge.broken(format_args!("is not well after {:?}", now - since)));
                }
            }
            Phase::Serving { .. } => {}
        }
        Ok(())
    }
}
