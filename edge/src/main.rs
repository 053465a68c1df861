//! Arguments -> [`Config`] -> start-up checks -> one shard per core -> signal -> leave.

use std::io::IsTerminal as _;

use hawser_edge::config::Config;
use hawser_edge::plan::Plan;
use hawser_edge::server::Edge;
use hawser_edge::{admin, driver, probe};
use hawser_proto::knobs::UsageError;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::prelude::*;

/// EX_SOFTWARE of sysexits.h: a shard ended by itself.
const SHARD_FAILED_EXIT_STATUS: i32 = 70;

fn main() {
    driver::settle_heap();
    let config = Config::from_process();
    start_logging(&config);
    if let Err(error) = run(config) {
        error.exit("hawser-edge");
    }
}

fn run(config: Config) -> Result<(), UsageError> {
    let kernel = probe::Kernel::read();
    for warning in probe::assess(&config, &kernel).map_err(UsageError)? {
        tracing::warn!("{warning}");
    }
    let plan = Plan::new(&config, &kernel).map_err(UsageError)?;
    let admin = admin::bind(config.admin).map_err(UsageError)?;
    // Before the shards' threads, which inherit what is set up for signals.
    let mut signals = Signals::new([SIGTERM, SIGINT])
        .map_err(|error| UsageError(format!("signals: cannot be listened for: {error}")))?;
    tracing::info!(?config, ?plan, "effective configuration");
    let edge = Edge::start(config, &plan)?;
    admin
        .serve(edge.state())
        .map_err(|error| UsageError(format!("--admin: no thread to answer it: {error}")))?;
    tracing::info!(listen = %edge.listen(), "accepting connections");
    signals.forever().next();
    tracing::info!("stopping: connections are closed with 1001");
    edge.stop();
    if let Err(error) = edge.join() {
        tracing::error!("a shard failed: {error}");
        std::process::exit(SHARD_FAILED_EXIT_STATUS);
    }
    Ok(())
}

fn start_logging(config: &Config) {
    let to_stderr = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(to_stderr.with_filter(config.log.clone())).init();
}
