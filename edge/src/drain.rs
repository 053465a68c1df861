//! Leaving: who goes when, so that the clients of an edge come back to others evenly over a window and not all at once.
//!
//! Free of I/O; one [`Drain`] belongs to one shard and is told the time. It decides how many have to have been told by now, and
//! the shard walks its slots from the top and tells them, so it needs no memory per connection.
//!
//! The curve is a straight line over the window. Fewer than [`LEAVE_RATE_MIN`] a second are not worth a long window: it is cut to what
//! they need at that rate.

use std::time::Duration;

use crate::conn::Farewell;
use crate::timer::{TICK, Tick};

/// Connections a second and shard that leave at least, while there are any.
pub const LEAVE_RATE_MIN: u32 = 100;

/// Clients are told to come back within this time, each at a moment of its own.
pub const RECONNECT_SPREAD: Duration = Duration::from_secs(1);

/// What is asked of every shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Everybody goes, nobody new is let in, then the shard ends.
    Leave {
        /// Time over which they go.
        window: Duration,
    },
    /// So many of a thousand connections go, and the shard goes on; they find their way to the emptiest edge.
    Rebalance {
        /// Connections of every thousand that go, at most 1,000.
        per_mille: u16,
        /// Time over which they go.
        window: Duration,
    },
}

/// One shard on its way out, or sending a share of its clients to others.
#[derive(Debug)]
pub struct Drain {
    order: Order,
    began: Tick,
    window_ticks: u32,
    /// Connections there were at the beginning.
    total: u64,
    /// Of those, how many the walk has seen.
    seen: u64,
    /// Slots from here on have been seen.
    slot: u32,
    /// When that was.
    looked: Tick,
}

impl Drain {
    /// Begins with `connections` connections in slots below `slots`.
    #[must_use]
    pub fn new(order: Order, connections: usize, slots: u32, now: Tick) -> Self {
        let (Order::Leave { window } | Order::Rebalance { window, .. }) = order;
        let ticks = |time: Duration| (time.as_millis() / TICK.as_millis()) as u64;
        let total = connections as u64;
        let needed = (total * ticks(Duration::from_secs(1))).div_ceil(u64::from(LEAVE_RATE_MIN));
        let window_ticks = ticks(window).min(needed).try_into().unwrap_or(u32::MAX);
        Self { order, began: now, window_ticks, total, seen: 0, slot: slots, looked: now }
    }

    /// Whether the shard ends with it.
    #[must_use]
    pub fn leaves(&self) -> bool {
        matches!(self.order, Order::Leave { .. })
    }

    /// Why those who go have to.
    #[must_use]
    pub fn farewell(&self) -> Farewell {
        match self.order {
            Order::Leave { .. } => Farewell::Drain,
            Order::Rebalance { .. } => Farewell::Rebalance,
        }
    }

    /// When the window ends.
    #[must_use]
    pub fn until(&self) -> Tick {
        Tick(self.began.0.saturating_add(self.window_ticks))
    }

    /// The next slot to look at, while the curve is behind: at most once for every slot there was.
    pub fn poll_slot(&mut self, now: Tick) -> Option<u32> {
        self.looked = now;
        let elapsed = u64::from(now.0.saturating_sub(self.began.0).min(self.window_ticks));
        let due = match self.window_ticks {
            0 => self.total,
            window => (self.total * elapsed).div_ceil(u64::from(window)),
        };
        if self.seen >= due && now < self.until() {
            return None;
        }
        self.slot = self.slot.checked_sub(1)?;
        Some(self.slot)
    }

    /// There is a connection in that slot: says whether it goes. Of every thousand seen the wanted number goes, spread evenly.
    pub fn takes(&mut self) -> bool {
        let per_mille = match self.order {
            Order::Leave { .. } => 1000,
            Order::Rebalance { per_mille, .. } => u64::from(per_mille),
        };
        let before = self.seen * per_mille / 1000;
        self.seen += 1;
        self.seen * per_mille / 1000 > before
    }

    /// When to look again, `None` when all slots have been seen.
    #[must_use]
    pub fn next_tick(&self) -> Option<Tick> {
        (self.slot > 0).then_some(Tick(self.looked.0.saturating_add(1)))
    }
}

/// When the client in this slot is to come back, in milliseconds: no two neighbours at once.
#[must_use]
pub fn reconnect_after_ms(slot: u32) -> u32 {
    // Fibonacci hashing (Knuth, volume 3, section 6.4): consecutive numbers land far apart.
    let spread = u64::from(slot.wrapping_mul(2_654_435_769)) * RECONNECT_SPREAD.as_millis() as u64;
    (spread >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many go in each tick, when every slot is taken.
    fn curve(order: Order, connections: u32) -> Vec<u32> {
        let mut drain = Drain::new(order, connections as usize, connections, Tick(7));
        let (mut now, mut gone) = (Tick(7), Vec::new());
        loop {
            let mut in_tick = 0;
            while drain.poll_slot(now).is_some() {
                in_tick += u32::from(drain.takes());
            }
            gone.push(in_tick);
            match drain.next_tick() {
                Some(next) => now = next,
                None => return gone,
            }
        }
    }

    #[test]
    fn the_window_is_used_evenly_and_kept() {
        let gone = curve(Order::Leave { window: Duration::from_secs(30) }, 100_000);
        assert_eq!(gone.iter().sum::<u32>(), 100_000);
        assert_eq!(gone.len(), 301);
        assert!(gone.iter().all(|in_tick| *in_tick <= 334), "{gone:?}");
    }

    #[test]
    fn a_few_do_not_take_the_whole_window() {
        let gone = curve(Order::Leave { window: Duration::from_secs(30) }, 25);
        assert_eq!(gone.iter().sum::<u32>(), 25);
        assert!(gone.len() <= 4, "{gone:?}");
        assert_eq!(curve(Order::Leave { window: Duration::ZERO }, 5000), [5000]);
    }

    #[test]
    fn a_rebalance_takes_its_share_and_spreads_it() {
        let order = Order::Rebalance { per_mille: 125, window: Duration::from_secs(10) };
        let gone = curve(order, 8000);
        assert_eq!(gone.iter().sum::<u32>(), 1000);
        assert!(gone.iter().all(|in_tick| *in_tick <= 11), "{gone:?}");
    }

    #[test]
    fn neighbours_come_back_at_moments_of_their_own() {
        let mut after: Vec<_> = (0..1000).map(|slot| reconnect_after_ms(slot) / 100).collect();
        after.sort_unstable();
        let spread = |part: u32| after.iter().filter(|at| **at == part).count();
        assert!((0..10).all(|part| (90..=110).contains(&spread(part))), "{after:?}");
    }
}
