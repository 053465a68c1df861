//! Arguments -> [`Config`] -> start-up checks -> one shard per core -> signal -> leave.

use std::io::IsTerminal as _;
use std::sync::{Arc, OnceLock};

use hawser_edge::certs::{self, Loaded, Watcher};
use hawser_edge::config::{Config, OperateKnobs, TlsKnobs};
use hawser_edge::drain::Order;
use hawser_edge::plan::Plan;
use hawser_edge::server::{Edge, State};
use hawser_edge::{admin, driver, probe};
use hawser_proto::knobs::UsageError;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
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
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGHUP])
        .map_err(|error| UsageError(format!("signals: cannot be listened for: {error}")))?;
    tracing::info!(?config, ?plan, "effective configuration");
    let (operate, tls) = (config.operate.clone(), config.tls.clone());
    let started = Arc::new(OnceLock::new());
    let certificates = if tls.is_on() { Some(watch_certificates(&tls, &started)?) } else { None };
    let (watcher, loaded) = certificates.unzip();
    let edge = Edge::start(config, &plan, loaded.as_ref().map(|loaded| loaded.config.clone()))?;
    admin
        .serve(edge.state())
        .map_err(|error| UsageError(format!("--admin: no thread to answer it: {error}")))?;
    tracing::info!(listen = %edge.listen(), "accepting connections");
    let state = edge.state();
    if let Some(loaded) = &loaded {
        state.note_expiry(loaded.expires);
    }
    let _first = started.set(state.clone());
    // It ends with the process.
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                match &watcher {
                    Some(watcher) if signal == SIGHUP => watcher.reload(tls.clone()),
                    None if signal == SIGHUP => {}
                    Some(_) | None => handle_signal(signal, &state, &operate),
                }
            }
        })
        .map_err(|error| UsageError(format!("signals: no thread to wait for them: {error}")))?;
    if let Err(error) = edge.join() {
        tracing::error!("a shard failed: {error}");
        std::process::exit(SHARD_FAILED_EXIT_STATUS);
    }
    Ok(())
}

/// Loads the certificates, and hands new ones to the edge when their files change.
fn watch_certificates(
    knobs: &TlsKnobs,
    edge: &Arc<OnceLock<Arc<State>>>,
) -> Result<(Watcher, Loaded), UsageError> {
    let edge = Arc::clone(edge);
    certs::watch(knobs.clone(), move |loaded| {
        // Files that change while the edge starts are seen by the next look.
        let Some(state) = edge.get() else { return };
        if state.set_certificates(&loaded).is_err() {
            tracing::warn!(
                "a shard has too many commands waiting and keeps the old certificates: send SIGHUP again"
            );
        }
    })
}

/// SIGTERM and SIGUSR1 drain, SIGINT or a second of them ends at once.
fn handle_signal(signal: i32, state: &Arc<State>, operate: &OperateKnobs) {
    if signal == SIGINT || !state.begin_draining() {
        tracing::info!("stopping: connections are closed with 1001");
        return state.stop();
    }
    let (state, window, delay) = (state.clone(), operate.drain_window, operate.drain_delay);
    tracing::info!(?window, ?delay, "draining: clients are sent to other edges");
    // On a thread of its own, so that the next signal is heard.
    std::thread::spawn(move || {
        #[expect(clippy::disallowed_methods, reason = "waits for the load balancers")]
        std::thread::sleep(delay);
        if state.drain(Order::Leave { window }).is_err() {
            tracing::warn!("a shard has too many commands waiting and cannot be drained: stopping");
            state.stop();
        }
    });
}

fn start_logging(config: &Config) {
    let to_stderr = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(to_stderr.with_filter(config.log.clone())).init();
}
