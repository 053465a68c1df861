//! Arguments -> [`Config`] -> start-up checks -> one shard per core -> signals -> leave.

use std::ffi::OsString;
use std::sync::{Arc, OnceLock};

use hawser_edge::certs::{self, Loaded, Watcher};
use hawser_edge::config::{Config, TlsKnobs, files};
use hawser_edge::logging::LogFilter;
use hawser_edge::operator::Operator;
use hawser_edge::plan::Plan;
use hawser_edge::server::{Edge, State};
use hawser_edge::{admin, driver, logging, probe, systemd, watch};
use hawser_proto::knobs::{Effective, Knobs, Source, UsageError, to_toml};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

const NAME: &str = "hawser-edge";
/// EX_SOFTWARE of sysexits.h: a shard ended by itself.
const SHARD_FAILED_EXIT_STATUS: i32 = 70;

/// What the process is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    /// Be an edge.
    Run,
    /// `config check`: say whether an edge could start so.
    Check,
    /// `config show`: say by what it would live.
    Show,
}

fn main() {
    driver::settle_heap();
    let mut args: Vec<_> = std::env::args_os().collect();
    let task = take_task(&mut args).unwrap_or_else(|error| error.exit(NAME));
    let source = Config::source(args);
    let knobs = Config::read_from(&source).unwrap_or_else(|unread| unread.exit(NAME));
    let outcome = match task {
        Task::Run => {
            let log = logging::start(knobs.values.operate.log_format, knobs.values.log.clone());
            run(source, knobs, log)
        }
        Task::Check => check(&knobs),
        Task::Show => {
            print!("{}", to_toml(&knobs.effective));
            Ok(())
        }
    };
    if let Err(error) = outcome {
        error.exit(NAME);
    }
}

/// Takes the words in front of the flags, if there are any.
fn take_task(args: &mut Vec<OsString>) -> Result<Task, UsageError> {
    if args.get(1).is_none_or(|word| word != "config") {
        return Ok(Task::Run);
    }
    let task = match args.get(2).and_then(|word| word.to_str()) {
        Some("check") => Task::Check,
        Some("show") => Task::Show,
        Some(_) | None => {
            return Err(UsageError("config: is followed by check or by show".to_owned()));
        }
    };
    args.drain(1..3);
    Ok(task)
}

/// Looks at all that a start looks at, except whether the ports are free: an edge may be running.
fn check(knobs: &Knobs<Config>) -> Result<(), UsageError> {
    files::check(&knobs.values)?;
    let kernel = probe::Kernel::read();
    for warning in probe::assess(&knobs.values, &kernel).map_err(UsageError)? {
        eprintln!("{NAME}: {warning}");
    }
    Plan::new(&knobs.values, &kernel).map_err(UsageError)?;
    print!("# ok\n{}", to_toml(&knobs.effective));
    Ok(())
}

fn run(source: Source, knobs: Knobs<Config>, log: LogFilter) -> Result<(), UsageError> {
    let config = knobs.values.clone();
    files::check(&config)?;
    let kernel = probe::Kernel::read();
    for warning in probe::assess(&config, &kernel).map_err(UsageError)? {
        tracing::warn!("{warning}");
    }
    let plan = Plan::new(&config, &kernel).map_err(UsageError)?;
    let admin = admin::bind(config.admin).map_err(UsageError)?;
    // Before the shards' threads, which inherit what is set up for signals.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGHUP])
        .map_err(|error| UsageError(format!("signals: cannot be listened for: {error}")))?;
    let in_force: Vec<_> = knobs.effective.iter().filter_map(written).collect();
    tracing::info!(knobs = in_force.join(" "), ?plan, "effective configuration");
    let started = Arc::new(OnceLock::new());
    let tls = config.tls.is_on().then(|| watch_certificates(&config.tls, &started)).transpose()?;
    let (watcher, loaded) = tls.unzip();
    let edge = Edge::start(config, &plan, loaded.as_ref().map(|loaded| loaded.config.clone()))?;
    let state = edge.state();
    if let Some(loaded) = &loaded {
        state.note_expiry(loaded.expires);
    }
    let _first = started.set(state.clone());
    let operator = Arc::new(Operator::new(state, source, knobs, log, watcher)?);
    let admin_address = admin.address();
    admin
        .serve(operator.clone())
        .map_err(|error| UsageError(format!("--admin: no thread to answer it: {error}")))?;
    watch_shards(&edge)
        .map_err(|error| UsageError(format!("--shards: no thread to watch them: {error}")))?;
    match admin_address {
        Ok(admin) => tracing::info!(listen = %edge.listen(), %admin, "accepting connections"),
        Err(_) => tracing::info!(listen = %edge.listen(), "accepting connections"),
    }
    systemd::ready();
    // It ends with the process.
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                handle_signal(signal, &operator);
            }
        })
        .map_err(|error| UsageError(format!("signals: no thread to wait for them: {error}")))?;
    if let Err(error) = edge.join() {
        tracing::error!("a shard failed: {error}");
        std::process::exit(SHARD_FAILED_EXIT_STATUS);
    }
    Ok(())
}

/// A knob and its value in a word.
fn written(knob: &Effective) -> Option<String> {
    let shown: Vec<_> = knob.shown().collect();
    (!shown.is_empty()).then(|| format!("{}={}", knob.knob, shown.join(",")))
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

/// SIGHUP reads the knobs again, SIGTERM and SIGUSR1 drain, SIGINT or a second of them ends at once.
fn handle_signal(signal: i32, operator: &Arc<Operator>) {
    if signal == SIGHUP {
        // What it comes to is in the log.
        let _ = operator.reload();
    } else if signal == SIGINT || !operator.drain() {
        operator.stop();
    }
}

/// Tells systemd that the shards are alive, as long as they are.
fn watch_shards(edge: &Edge) -> std::io::Result<()> {
    let (state, mut known) = (edge.state(), Vec::new());
    watch::start(edge.state(), systemd::look_interval(), move |stuck| {
        if stuck != known {
            tracing::error!(?stuck, "shards do not turn; without any, all turn again");
            known = stuck.to_vec();
        }
        let summary = state.summary();
        if stuck.is_empty() {
            systemd::alive(&summary);
        } else {
            systemd::stuck(&format!("{summary}; stuck: {stuck:?}"));
        }
    })
}
