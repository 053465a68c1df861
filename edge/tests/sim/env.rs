//! What every actor of a run shares: clock, chance, network, and the record of what happened.

use fastrand::Rng;
use hawser_edge::timer;
use hawser_router::hub;

use crate::history::History;
use crate::net::Net;

/// When runs begin, in milliseconds since the Unix epoch.
const START_UNIX_MS: i64 = 1_790_000_000_000;

/// See the module.
#[derive(Debug)]
pub(crate) struct Env {
    /// Milliseconds since the run began.
    pub(crate) ms: u64,
    /// Everything that is left to chance; a run is a function of its seed.
    pub(crate) rng: Rng,
    /// All streams.
    pub(crate) net: Net,
    /// What happened.
    pub(crate) history: History,
    /// Nothing is broken any more, and nobody dawdles.
    pub(crate) calm: bool,
    traced: bool,
    /// What is wrong on purpose.
    pub(crate) sabotage: Sabotage,
}

/// A fault that is planted to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// None.
    Nothing,
    /// The router forgets one message to an edge after it counted as sent: this one of all Delivers.
    DropDeliver(u32),
    /// The router takes every repetition for a new message.
    ForgetIdempotency,
    /// The log loses what was durable when the router dies.
    LoseDurable,
    /// The window that the router keeps is larger than the one it tells.
    WideWindow,
}

impl Env {
    /// The beginning of the run with this seed.
    pub(crate) fn new(seed: u64, sabotage: Sabotage) -> Self {
        Self {
            ms: 0,
            rng: Rng::with_seed(seed),
            net: Net::default(),
            history: History::default(),
            calm: false,
            traced: std::env::var_os("HAWSER_SIM_TRACE").is_some(),
            sabotage,
        }
    }

    /// The time as an edge sees it whose wall clock is off by so much.
    pub(crate) fn edge_now(&self, skew_ms: i64) -> timer::Now {
        let tick = timer::Tick((self.ms / timer::TICK.as_millis() as u64) as u32);
        timer::Now { tick, unix_ms: START_UNIX_MS + self.ms as i64 + skew_ms }
    }

    /// The time as the router sees it.
    pub(crate) fn router_now(&self) -> hub::Now {
        hub::Now { mono_ms: self.ms, unix_ms: START_UNIX_MS + self.ms as i64 }
    }

    /// Tells what happens, when the run is of one seed and shall be looked at (`HAWSER_SIM_TRACE`).
    pub(crate) fn trace(&self, sentence: impl FnOnce() -> String) {
        if self.traced {
            println!("{:>6} ms: {}", self.ms, sentence());
        }
    }

    /// True once in so many times.
    pub(crate) fn once_in(&mut self, times: u32) -> bool {
        self.rng.u32(..times) == 0
    }
}
