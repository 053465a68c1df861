//! How the edge is run: drain, logs, the admin address.

use std::ops::RangeInclusive;
use std::time::Duration;

use clap::Args;
use hawser_proto::knobs::duration;

/// Longer than an hour is no deploy any more.
const WINDOWS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);

/// The knobs; each stands beside its like in [`super::Config`].
#[derive(Args, Clone, Debug)]
pub struct OperateKnobs {
    /// Time over which clients are sent away when the edge is drained (SIGTERM, SIGUSR1, admin call), evenly. The default lets
    /// 100,000 come back to other edges at 3,333 a second; a few do not take all of it
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration(WINDOWS))]
    pub drain_window: Duration,

    /// Time from the failing health check to the beginning of the drain: new clients are still let in, until the load balancers
    /// have seen it. Set it to what they need (interval times failures of their check)
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration(WINDOWS))]
    pub drain_delay: Duration,
}
