//! How many connections each shard holds, and who takes the next ones.
//!
//! Each core has a listener (SO_REUSEPORT), which the shards of that core share. They accept by **turns**, the emptiest
//! next: so they fill evenly, and in a storm the shards that work at one time are as many as there are cores,
//! each with much to do when it wakes, instead of all of them with little.
//!
//! The kernel spreads connections over listeners by a hash, which is lumpy: a shard that still holds more than its share
//! **passes** fresh sockets to the emptiest of all. That is the ring's work (`IORING_OP_MSG_RING`); where a client comes
//! from, which the ring does not carry, travels in a bounded queue beside it.
//!
//! With [`mesh`](crate::mesh) and the counters, all that two cores share.

use std::sync::atomic::{AtomicI32, AtomicU16, AtomicU32, Ordering};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use crate::conn::Peer;

/// A shard passes sockets on while it holds more than the emptiest one by this many and by [`SLACK_PART`] of what that
/// one holds: below that, evening out costs more than it gains. A turn goes less far.
const SLACK_MIN: u32 = 48;
/// See [`SLACK_MIN`]: a sixteenth, 6 percent.
const SLACK_PART: u32 = 16;
/// A shard gives its turn away when it has accepted this many, or [`TURN_PART`] of what it holds.
const TURN_MIN: u32 = 16;
/// See [`TURN_MIN`]: a thirty-second, 3 percent.
const TURN_PART: u32 = 32;
/// Sockets on their way to one shard; more are kept by those who accepted them.
const ARRIVALS_MAX: usize = 256;
/// No ring yet.
const NO_RING: i32 = -1;

/// A socket on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The shard that accepted it.
    pub from: u16,
    /// Its direct descriptor there.
    pub socket: u32,
    /// Where its client connects from.
    pub peer: Peer,
}

#[derive(Debug)]
struct Share {
    held: AtomicU32,
    /// Passed to this shard and not yet there.
    coming: AtomicU32,
    ring: AtomicI32,
    arrivals: ArrayQueue<Arrival>,
}

impl Share {
    fn load(&self) -> u32 {
        self.held.load(Ordering::Relaxed).saturating_add(self.coming.load(Ordering::Relaxed))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Shares {
    shards: Box<[CachePadded<Share>]>,
    /// By core: the shard that accepts.
    turns: Box<[CachePadded<AtomicU16>]>,
    connections_a_shard: u32,
}

impl Shares {
    /// Of so many shards on so many cores, each of which may hold so many connections. Shard n runs on core n modulo
    /// cores.
    #[must_use]
    pub fn new(shards: usize, cores: usize, connections_a_shard: usize) -> Self {
        let share = || Share {
            held: AtomicU32::new(0),
            coming: AtomicU32::new(0),
            ring: AtomicI32::new(NO_RING),
            arrivals: ArrayQueue::new(ARRIVALS_MAX),
        };
        let connections_a_shard = u32::try_from(connections_a_shard).unwrap_or(u32::MAX);
        Self {
            shards: (0..shards).map(|_| CachePadded::new(share())).collect(),
            turns: (0..cores.min(shards) as u16).map(|t| CachePadded::new(t.into())).collect(),
            connections_a_shard,
        }
    }

    /// From now on sockets can be passed to this shard's ring. `ring` is its descriptor, open until the process ends.
    pub fn open(&self, shard: u16, ring: i32) {
        self.shards[usize::from(shard)].ring.store(ring, Ordering::Release);
    }

    /// This shard holds so many connections now.
    pub fn set_held(&self, shard: u16, connections: usize) {
        let connections = u32::try_from(connections).unwrap_or(u32::MAX);
        self.shards[usize::from(shard)].held.store(connections, Ordering::Relaxed);
    }

    /// Connections that all shards hold.
    #[must_use]
    pub fn held(&self) -> usize {
        self.shards.iter().map(|shard| shard.held.load(Ordering::Relaxed) as usize).sum()
    }

    /// Whether it is this shard that accepts on its core.
    #[must_use]
    pub fn has_turn(&self, shard: u16) -> bool {
        // Acquire pairs with the release in `end_turn`; whoever parks looks once more after its fence.
        self.turns[usize::from(shard) % self.turns.len()].load(Ordering::Acquire) == shard
    }

    /// The shard has accepted `accepted` since its turn began, and holds `held`: when that is enough, the emptiest shard
    /// of its core has the turn, and has to be woken.
    #[must_use]
    pub fn end_turn(&self, shard: u16, accepted: u32, held: usize) -> Option<u16> {
        let held = u32::try_from(held).unwrap_or(u32::MAX);
        let is_full = held >= self.connections_a_shard;
        let cores = self.turns.len();
        if !is_full && accepted < TURN_MIN.max(held / TURN_PART) || !self.has_turn(shard) {
            return None;
        }
        let of_core = (0u16..).zip(&self.shards).skip(usize::from(shard) % cores).step_by(cores);
        let others = of_core.filter(|(other, _)| *other != shard);
        let (next, emptiest) = others.min_by_key(|(_, share)| share.load())?;
        if emptiest.load() >= held {
            return None;
        }
        self.turns[usize::from(shard) % cores].store(next, Ordering::Release);
        Some(next)
    }

    /// Notes a fresh socket of `arrival.from`, which holds `held` connections, as passed on, when that shard is above its
    /// share: returns who gets it, and the descriptor of that one's ring. Costs a look at every shard.
    #[must_use]
    pub fn pass(&self, held: usize, arrival: Arrival) -> Option<(u16, i32)> {
        let others = (0u16..).zip(&self.shards).filter(|(shard, _)| *shard != arrival.from);
        let (shard, emptiest) = others.min_by_key(|(_, share)| share.load())?;
        let (least, held) = (emptiest.load(), u32::try_from(held).unwrap_or(u32::MAX));
        let is_full = held >= self.connections_a_shard && least < self.connections_a_shard;
        let is_above = held > least.saturating_add(SLACK_MIN.max(least / SLACK_PART));
        let ring = emptiest.ring.load(Ordering::Acquire);
        if ring == NO_RING || !(is_full || is_above) {
            return None;
        }
        emptiest.arrivals.push(arrival).ok()?;
        emptiest.coming.fetch_add(1, Ordering::Relaxed);
        Some((shard, ring))
    }

    /// The ring could not pass what was noted for `shard`.
    pub fn pass_failed(&self, shard: u16) {
        self.shards[usize::from(shard)].coming.fetch_sub(1, Ordering::Relaxed);
    }

    /// The ring has brought a socket that `from` accepted as `socket`: where it comes from. `waiting` is the shard's own
    /// and holds what arrived ahead of its socket, or for a socket that will never come.
    pub fn arrived(
        &self,
        shard: u16,
        from: u16,
        socket: u32,
        waiting: &mut Vec<Arrival>,
    ) -> Option<Peer> {
        let share = &self.shards[usize::from(shard)];
        share.coming.fetch_sub(1, Ordering::Relaxed);
        while let Some(arrival) = share.arrivals.pop() {
            // The oldest are of sockets whose passing failed: their shards kept them.
            if waiting.len() >= 2 * ARRIVALS_MAX {
                waiting.remove(0);
            }
            waiting.push(arrival);
        }
        let at = waiting.iter().position(|a| (a.from, a.socket) == (from, socket))?;
        Some(waiting.remove(at).peer)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn arrival(socket: u32) -> Arrival {
        Arrival { from: 0, socket, peer: SocketAddr::from(([10, 0, 0, 1], socket as u16)).into() }
    }

    fn opened(shards: u16, connections_a_shard: usize) -> Shares {
        let shares = Shares::new(shards.into(), shards.into(), connections_a_shard);
        (0..shards).for_each(|shard| shares.open(shard, 100 + i32::from(shard)));
        shares
    }

    #[test]
    fn shards_of_a_core_take_turns_and_stay_even() {
        let shares = Shares::new(7, 2, 10_000);
        let (mut held, mut accepted) = ([0usize; 7], [0u32; 7]);
        let mut largest = 0;
        for client in 0..20_000 {
            let core = client % 2;
            let shard = (core..7).step_by(2).find(|shard| shares.has_turn(*shard)).unwrap();
            let at = usize::from(shard);
            held[at] += 1;
            accepted[at] += 1;
            shares.set_held(shard, held[at]);
            if let Some(next) = shares.end_turn(shard, accepted[at], held[at]) {
                assert_eq!(next % 2, core);
                accepted[at] = 0;
                largest = largest.max(held[at]);
            }
        }
        for core in 0..2 {
            let of_core: Vec<_> = held.iter().skip(core).step_by(2).copied().collect();
            let (most, least) = (of_core.iter().max().unwrap(), of_core.iter().min().unwrap());
            assert!(*most as f64 / *least as f64 <= 1.08, "{of_core:?}");
        }
        assert!(largest > 0);
    }

    #[test]
    fn a_full_shard_gives_its_turn_away_and_the_emptiest_keeps_it() {
        let shares = Shares::new(2, 1, 100);
        shares.set_held(1, 50);
        assert_eq!(shares.end_turn(1, 1000, 50), None, "it is not its turn");
        assert_eq!(shares.end_turn(0, 1, 40), None, "too early");
        assert_eq!(shares.end_turn(0, 20, 40), None, "nobody is emptier");
        assert_eq!(shares.end_turn(0, 0, 100), Some(1));
        assert!(shares.has_turn(1) && !shares.has_turn(0));
        assert_eq!(Shares::new(1, 1, 10).end_turn(0, 1000, 10), None);
    }

    #[test]
    fn a_shard_above_its_share_passes_sockets_to_the_emptiest_until_it_is_not() {
        let shares = opened(3, 1000);
        shares.set_held(0, 200);
        shares.set_held(1, 148);
        shares.set_held(2, 138);
        let mut passed = [0; 3];
        for socket in 0..100 {
            let Some((shard, ring)) = shares.pass(200, arrival(socket)) else { break };
            assert_eq!(ring, 100 + i32::from(shard));
            passed[usize::from(shard)] += 1;
        }
        // 152 and its slack of 48 are not below 200 any more.
        assert_eq!(passed, [0, 4, 14]);
    }

    #[test]
    fn a_full_shard_passes_to_any_that_has_room_and_to_none_that_has_not() {
        let shares = opened(2, 100);
        shares.set_held(1, 99);
        assert!(shares.pass(99, arrival(1)).is_none());
        assert!(shares.pass(100, arrival(1)).is_some());
        assert!(shares.pass(100, arrival(2)).is_none());
        shares.pass_failed(1);
        assert!(shares.pass(100, arrival(3)).is_some());
    }

    #[test]
    fn an_address_finds_its_socket_whatever_came_before() {
        let shares = opened(2, 1000);
        let mut waiting = Vec::new();
        for socket in 0..50 {
            assert_eq!(shares.pass(500, arrival(socket)).map(|(shard, _)| shard), Some(1));
        }
        for socket in (0..50).rev() {
            let peer = shares.arrived(1, 0, socket, &mut waiting);
            assert_eq!(peer, Some(arrival(socket).peer));
        }
        assert!(waiting.is_empty());
        assert!(shares.pass(500, arrival(7)).is_some());
        assert_eq!(shares.arrived(1, 0, 8, &mut waiting), None);
    }

    #[test]
    fn more_than_the_queue_holds_is_kept_and_alone_nobody_passes() {
        let shares = opened(2, 10_000);
        let passed = (0..5000).filter(|s| shares.pass(9000, arrival(*s)).is_some()).count();
        assert_eq!(passed, ARRIVALS_MAX);
        assert!(opened(1, 10).pass(10, arrival(1)).is_none());
        assert!(Shares::new(2, 2, 10).pass(10, arrival(1)).is_none());
    }
}
