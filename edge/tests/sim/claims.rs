//! Who shall have which partition: what consumer groups and leases decide, here left to chance.

use hawser_router::claims::Change;
use hawser_router::queue::PartitionId;

use crate::engine::PARTITIONS;
use crate::env::Env;
use crate::router::Router;

/// How long the next owner waits for one that shall let go.
const WAIT_MS: u64 = 2_000;
/// While all is calm, how often it is looked whether everything is where it belongs.
const LOOK_MS: u64 = 500;

/// See the module.
pub(crate) struct Claims {
    /// By partition.
    owners: Vec<usize>,
    /// What routers will be told: when, who, what.
    telling: Vec<(u64, usize, Change)>,
    /// Partitions that an owner shall let go: until when, who it is, who comes next.
    waiting: Vec<(PartitionId, u64, usize, usize)>,
    looks_at_ms: u64,
}

impl Claims {
    /// Partitions in turn.
    pub(crate) fn new(routers: usize) -> Self {
        let owners: Vec<usize> =
            (0..usize::from(PARTITIONS)).map(|partition| partition % routers).collect();
        let gained =
            |(partition, owner): (PartitionId, &usize)| (0, *owner, Change::Gained(partition));
        let telling = (0..).zip(&owners).map(gained).collect();
        Self { owners, telling, waiting: Vec::new(), looks_at_ms: LOOK_MS }
    }

    /// Tells what is due.
    pub(crate) fn turn(&mut self, env: &mut Env, routers: &mut [Option<Router>]) {
        for (index, router) in routers.iter_mut().enumerate() {
            let Some(router) = router else { continue };
            for partition in router.take_released() {
                self.note_released(env, index, partition);
            }
        }
        let (over, waiting): (Vec<_>, _) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(_, until_ms, ..)| *until_ms <= env.ms);
        self.waiting = waiting;
        for (partition, _, from, to) in over {
            self.telling.push((env.ms, from, Change::Lost(partition)));
            self.give(env, partition, to);
        }
        if env.calm && env.ms >= self.looks_at_ms {
            self.looks_at_ms = env.ms + LOOK_MS;
            self.put_right(env, routers);
        }
        let (due, telling): (Vec<_>, _) =
            std::mem::take(&mut self.telling).into_iter().partition(|(at, ..)| *at <= env.ms);
        self.telling = telling;
        for (_, index, change) in due {
            if let Some(router) = &mut routers[index] {
                router.change(change);
            }
        }
    }

    fn give(&mut self, env: &Env, partition: PartitionId, to: usize) {
        self.give_at(env.ms, partition, to);
    }

    fn give_at(&mut self, due_ms: u64, partition: PartitionId, to: usize) {
        self.owners[usize::from(partition)] = to;
        // What it has lost meanwhile it hears first: one that goes on under its old epoch is not listened to.
        let lost = (to, Change::Lost(partition));
        for (at_ms, ..) in self.telling.iter_mut().filter(|(_, who, what)| (*who, *what) == lost) {
            *at_ms = due_ms.min(*at_ms);
        }
        self.telling.push((due_ms, to, Change::Gained(partition)));
    }

    fn note_released(&mut self, env: &mut Env, index: usize, partition: PartitionId) {
        let waited =
            self.waiting.iter().position(|(of, _, from, _)| (*of, *from) == (partition, index));
        if let Some(place) = waited {
            let (_, _, _, to) = self.waiting.swap_remove(place);
            self.give(env, partition, to);
        } else if self.owners[usize::from(partition)] == index {
            // Given again, to the same router perhaps.
            let due_ms = env.ms + env.rng.u64(..500);
            self.telling.push((due_ms, index, Change::Gained(partition)));
        }
    }

    /// Moves a partition, in one of the ways in which it can be moved.
    pub(crate) fn move_one(&mut self, env: &mut Env, routers: usize) {
        let partition = env.rng.u16(..PARTITIONS);
        let (from, to) = (self.owners[usize::from(partition)], env.rng.usize(..routers));
        if self.waiting.iter().any(|(of, ..)| *of == partition) {
            return;
        }
        match env.rng.u8(..4) {
            0 => {
                env.history.count("partitions wanted");
                self.telling.push((env.ms, from, Change::Wanted(partition)));
                self.waiting.push((partition, env.ms + WAIT_MS, from, to));
            }
            // The former owner hears of it before, after, or when it should have found out long ago.
            1 => {
                env.history.count("partitions lost");
                let due_ms = env.ms + env.rng.u64(..3_000);
                self.telling.push((due_ms, from, Change::Lost(partition)));
                self.give(env, partition, to);
            }
            2 => {
                env.history.count("partitions lost first");
                self.telling.push((env.ms, from, Change::Lost(partition)));
                let due_ms = env.ms + env.rng.u64(..1_000);
                self.give_at(due_ms, partition, to);
            }
            _ => {
                env.history.count("partitions given twice");
                let due_ms = env.ms + env.rng.u64(3_000..20_000);
                self.telling.push((due_ms, from, Change::Lost(partition)));
                self.give(env, partition, to);
            }
        }
    }

    /// A router is gone, or does not answer: others get what it had, after a while.
    pub(crate) fn note_gone(&mut self, env: &mut Env, index: usize, routers: usize) {
        for partition in 0..PARTITIONS {
            if self.owners[usize::from(partition)] == index {
                let to = env.rng.usize(..routers);
                let due_ms = env.ms + env.rng.u64(..2_000);
                // One that only stands still hears of it when it goes on.
                self.telling.push((due_ms, index, Change::Lost(partition)));
                self.give_at(due_ms, partition, to);
            }
        }
    }

    /// Everybody who lives has what the table says, and nothing else.
    fn put_right(&mut self, env: &Env, routers: &[Option<Router>]) {
        for partition in 0..PARTITIONS {
            if self.waiting.iter().any(|(of, ..)| *of == partition) {
                continue;
            }
            let owner = self.owners[usize::from(partition)];
            for (index, router) in routers.iter().enumerate() {
                let Some(router) = router else { continue };
                let is_absent = router.is_absent(partition);
                if index == owner && is_absent {
                    self.telling.push((env.ms, index, Change::Gained(partition)));
                } else if index != owner && !is_absent {
                    self.telling.push((env.ms, index, Change::Lost(partition)));
                }
            }
        }
    }
}
