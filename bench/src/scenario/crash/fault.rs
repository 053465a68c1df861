//! The kinds of faults: how often each comes, how long it lasts, whom it takes, how it is done and mended.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;

use crate::disk::NEARLY_FULL_BYTES;
use crate::failure::Failure;
use crate::processes::Servers;
use crate::services::{Engine, Service};
use crate::wire::State;

/// Shortest and longest time that a killed process stays away, and the longest where others can take over.
const AWAY_MAX: Duration = Duration::from_millis(150);
const AWAY_LONG_MAX: Duration = Duration::from_secs(5);
/// Of ten kills of a router, how many last until others have taken over.
const LONG_OF_TEN: u8 = 3;
/// A clock goes at most so far ahead or behind.
const CLOCK_STEP_SECONDS_MAX: i64 = 600;

/// What is done to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    /// An edge is killed, and started again.
    EdgeKill,
    /// A router is killed, and started again.
    RouterKill,
    /// An edge and a router are killed in the same instant.
    BothKill,
    /// An edge is stopped, and goes on.
    EdgeStop,
    /// A router is stopped, and goes on as if nothing had happened.
    RouterStop,
    /// The links to a router are closed, and new ones too for a while.
    LinkCut,
    /// Nothing gets through to a router for a while, and nobody is told.
    LinkBlock,
    /// A router is killed, and started with an empty data folder.
    DiskLost,
    /// The disk of a router gets full, or nearly, and has room again.
    DiskFull,
    /// The wall clock of a router is stepped ahead or behind, and back.
    ClockStep,
    /// A server of the engine is killed, and started again.
    BrokerKill,
    /// A server of the engine is stopped, and goes on.
    BrokerStop,
    /// All servers of the engine are killed, and started again.
    BrokersKill,
}

/// A fault that was done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Struck {
    pub fault: Fault,
    pub struck_at: Instant,
    pub mended_at: Instant,
}

/// Whom a fault hits; what it does not concern means nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub edge: usize,
    pub router: usize,
    /// Counted from 1.
    pub node: usize,
}

impl Fault {
    /// Of all faults that happen so many are of this kind.
    pub(super) fn weight(self) -> u32 {
        match self {
            Self::EdgeKill | Self::RouterKill => 8,
            Self::RouterStop | Self::LinkCut | Self::LinkBlock | Self::DiskLost => 4,
            Self::BothKill
            | Self::EdgeStop
            | Self::BrokerKill
            | Self::DiskFull
            | Self::ClockStep => 2,
            Self::BrokerStop | Self::BrokersKill => 1,
        }
    }

    /// Whether it needs an engine that routers share.
    pub(super) fn needs_servers(self) -> bool {
        self == Self::DiskLost || self.takes_nodes()
    }

    pub(super) fn takes_edge(self) -> bool {
        matches!(self, Self::EdgeKill | Self::EdgeStop | Self::BothKill)
    }

    pub(super) fn takes_nodes(self) -> bool {
        matches!(self, Self::BrokerKill | Self::BrokerStop | Self::BrokersKill)
    }

    pub(super) fn takes_router(self) -> bool {
        !self.takes_nodes() && !matches!(self, Self::EdgeKill | Self::EdgeStop)
    }

    /// The one router that it can hit, of so many; `None`: any.
    pub(super) fn router_of(self, routers: usize) -> Option<usize> {
        let bound = [(Self::DiskFull, 0), (Self::ClockStep, routers - 1)];
        bound.into_iter().find(|(fault, _)| *fault == self).map(|(_, router)| router)
    }

    /// From the blow to the beginning of the mending.
    pub(super) fn lasts(self, engine: Engine, random: &mut fastrand::Rng) -> Duration {
        let (shortest_ms, longest) = match self {
            Self::RouterKill | Self::DiskLost
                if engine != Engine::Embedded && random.u8(0..10) < LONG_OF_TEN =>
            {
                (0, AWAY_LONG_MAX)
            }
            Self::EdgeKill | Self::RouterKill | Self::BothKill | Self::DiskLost => (0, AWAY_MAX),
            Self::LinkCut | Self::BrokerKill | Self::BrokersKill => (0, Duration::from_secs(1)),
            Self::EdgeStop | Self::BrokerStop => (200, Duration::from_secs(3)),
            Self::DiskFull => (500, Duration::from_secs(2)),
            // The process looks at its clock's offset once a second.
            Self::ClockStep => (1_500, Duration::from_secs(3)),
            // Longer than a lease of claims: others take over, and it wakes up.
            Self::RouterStop | Self::LinkBlock => (200, Duration::from_secs(8)),
        };
        Duration::from_millis(shortest_ms).max(longest.mul_f64(random.f64()))
    }

    /// Does the harm.
    pub(super) fn harm(
        self,
        servers: &mut Servers,
        Target { edge, router, node }: Target,
        random: &mut fastrand::Rng,
    ) -> Result<(), Failure> {
        let Servers { edges, routers, wires, service, disk, clock, .. } = servers;
        match self {
            Self::EdgeKill => edges[edge].kill(),
            Self::RouterKill => routers[router].kill(),
            Self::BothKill => {
                edges[edge].kill();
                routers[router].kill();
            }
            Self::EdgeStop => edges[edge].set_stopped(true),
            Self::RouterStop => routers[router].set_stopped(true),
            Self::LinkCut => wires[router].set(State::Cut),
            Self::LinkBlock => wires[router].set(State::Blocked),
            Self::DiskLost => {
                routers[router].kill();
                routers[router].lose_data()?;
            }
            Self::DiskFull => {
                let left = if random.bool() { NEARLY_FULL_BYTES } else { 0 };
                disk.as_ref().map_or(Ok(()), |disk| disk.fill(left))?;
            }
            Self::ClockStep => {
                let seconds = random.i64(-CLOCK_STEP_SECONDS_MAX..=CLOCK_STEP_SECONDS_MAX);
                clock.as_ref().map_or(Ok(()), |clock| clock.step(seconds))?;
            }
            Self::BrokerKill => service.as_ref().map_or(Ok(()), |service| service.kill(node))?,
            Self::BrokerStop => service.iter().for_each(|all| all.set_stopped(node, true)),
            Self::BrokersKill => {
                let mut all =
                    service.iter().flat_map(|all| (1..=all.nodes()).map(move |n| (all, n)));
                all.try_for_each(|(service, node)| service.kill(node))?;
            }
        }
        Ok(())
    }

    /// Mends it. What takes long goes on in threads, which are given back.
    pub(super) fn mend(
        self,
        servers: &mut Servers,
        Target { edge, router, node }: Target,
        random: &mut fastrand::Rng,
    ) -> Result<Vec<Mending>, Failure> {
        let Servers { edges, routers, wires, service, disk, clock, .. } = servers;
        match self {
            Self::EdgeKill => edges[edge].start()?,
            Self::RouterKill | Self::DiskLost => routers[router].start()?,
            Self::BothKill if random.bool() => {
                edges[edge].start()?;
                routers[router].start()?;
            }
            Self::BothKill => {
                routers[router].start()?;
                edges[edge].start()?;
            }
            Self::EdgeStop => edges[edge].set_stopped(false),
            Self::RouterStop => routers[router].set_stopped(false),
            Self::LinkCut | Self::LinkBlock => wires[router].set(State::Whole),
            Self::DiskFull => disk.as_ref().map_or(Ok(()), |disk| disk.free())?,
            Self::ClockStep => clock.as_ref().map_or(Ok(()), |clock| clock.step(0))?,
            Self::BrokerKill => return Ok(service.iter().map(|all| starting(all, node)).collect()),
            Self::BrokerStop => service.iter().for_each(|all| all.set_stopped(node, false)),
            Self::BrokersKill => {
                // At once: no majority, no answer.
                let all = service.iter().flat_map(|all| (1..=all.nodes()).map(move |n| (all, n)));
                return Ok(all.map(|(service, node)| starting(service, node)).collect());
            }
        }
        Ok(Vec::new())
    }
}

/// A server of the engine on its way up.
pub(super) type Mending = JoinHandle<Result<(), Failure>>;

fn starting(service: &Arc<Service>, node: usize) -> Mending {
    let service = Arc::clone(service);
    thread::spawn(move || service.start_node(node))
}
