//! Looks whether every shard is alive: whether its loop still turns.
//!
//! A shard with nothing to do sleeps, and its loop does not turn. So whoever looks also rings: a sleeping shard wakes, turns once, and
//! has turned when it is looked at the next time. One that has not is stuck, wherever it stands.

use std::sync::Arc;
use std::time::Duration;

use crate::server::State;

/// Looks every `interval` on a thread of its own until the process ends, and reports the shards that are stuck; none is the usual.
///
/// # Errors
/// No thread to be had.
pub fn start(
    state: Arc<State>,
    interval: Duration,
    mut report: impl FnMut(&[u16]) + Send + 'static,
) -> std::io::Result<()> {
    let watching = move || {
        let mut watch = Watch::default();
        loop {
            #[expect(clippy::disallowed_methods, reason = "a thread of its own, which only looks")]
            std::thread::sleep(interval);
            let stuck = watch.look(state.running().map(|shard| (shard, state.turns(shard))));
            state.set_stuck(stuck.len());
            report(&stuck);
            state.running().for_each(|shard| state.wake(shard));
        }
    };
    std::thread::Builder::new().name("watch".into()).spawn(watching).map(drop)
}

/// What was seen the last time.
#[derive(Debug, Default)]
struct Watch {
    seen: Vec<(u16, u64)>,
}

impl Watch {
    /// Takes shards and how often each has turned, and returns those that have not turned since the last look.
    fn look(&mut self, turns: impl Iterator<Item = (u16, u64)>) -> Vec<u16> {
        let seen = std::mem::replace(&mut self.seen, turns.collect());
        let stuck = self.seen.iter().filter(|now| seen.contains(now));
        stuck.map(|(shard, _)| *shard).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_has_not_turned_since_the_last_look_is_stuck() {
        let mut watch = Watch::default();
        assert!(watch.look([(0, 7), (1, 7)].into_iter()).is_empty(), "nobody is at the first look");
        assert_eq!(watch.look([(0, 7), (1, 8)].into_iter()), [0]);
        assert_eq!(watch.look([(0, 7), (1, 8)].into_iter()), [0, 1]);
        assert_eq!(watch.look([(1, 9)].into_iter()), [0; 0], "one that has ended is not stuck");
    }
}
