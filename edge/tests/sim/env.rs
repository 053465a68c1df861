//! What every actor of a run shares: clock, chance, network, and the record of what happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use hawser_edge::timer;
use hawser_router::hub;
use hawser_router::metrics::Metrics;

use crate::history::History;
use crate::net::Net;

/// When runs begin, in milliseconds since the Unix epoch.
pub(crate) const START_UNIX_MS: i64 = 1_790_000_000_000;

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
    /// The same time for those who look for themselves.
    pub(crate) clock: Arc<AtomicU64>,
    /// Nobody looks at it.
    pub(crate) metrics: Arc<Metrics>,
    /// Routers that were started.
    pub(crate) starts: u64,
    /// Messages that routers have let out.
    pub(crate) delivers: u32,
    /// Claims that were told under false epochs.
    pub(crate) epochs_told: u64,
}

/// The time as a Hub sees it.
pub(crate) fn hub_now(ms: u64) -> hub::Now {
    hub::Now { mono_ms: ms, unix_ms: START_UNIX_MS + ms as i64 }
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
    /// A takeover does not read the last change of the state log.
    SkipLastChange,
    /// An edge believes whoever says last that a partition is its own.
    AnyEpoch,
    /// The messages log is trimmed before the state log has the checkpoint.
    TrimEarly,
    /// Owners do not hear of what others appended.
    IgnoreHoles,
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
            clock: Arc::default(),
            metrics: Arc::new(Metrics::new(2)),
            starts: 0,
            delivers: 0,
            epochs_told: 0,
        }
    }

    /// The time as an edge sees it whose wall clock is off by so much.
    pub(crate) fn edge_now(&self, skew_ms: i64) -> timer::Now {
        let tick = timer::Tick((self.ms / timer::TICK.as_millis() as u64) as u32);
        timer::Now { tick, unix_ms: START_UNIX_MS + self.ms as i64 + skew_ms }
    }

    /// The time as the router sees it.
    pub(crate) fn router_now(&self) -> hub::Now {
        hub_now(self.ms)
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, ms: u64) {
        self.ms += ms;
        self.clock.store(self.ms, Ordering::Relaxed);
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
