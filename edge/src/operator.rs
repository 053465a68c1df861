//! What an operator does to a running edge, by signal or at the admin address: new knobs, the log, leaving.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hawser_proto::knobs::{Effective, Knobs, Source, UsageError};
use tracing_subscriber::filter::Targets;

use crate::admin::Token;
use crate::certs::Watcher;
use crate::command::Command;
use crate::config::change::Reloaded;
use crate::config::{Config, OperateKnobs};
use crate::drain::Order;
use crate::logging::LogFilter;
use crate::metrics;
use crate::server::State;
use crate::systemd;

/// How long shards with full lanes are waited for, all together, when they have to be told of a reload.
const LANES_TIMEOUT: Duration = Duration::from_secs(2);
const LANES_INTERVAL: Duration = Duration::from_millis(10);
/// What the end takes beside the window of a drain: the last clients' farewells, and threads that end.
const LEAVE_TIME: Duration = Duration::from_secs(15);

/// See the module. Shared by the threads of the signals and of the admin address.
#[derive(Debug)]
pub struct Operator {
    state: Arc<State>,
    source: Source,
    /// The knobs to live by.
    running: Mutex<Knobs<Config>>,
    /// Held throughout a reload: two at one time would mix.
    reloading: Mutex<()>,
    log: LogFilter,
    token: ArcSwapOption<Token>,
    /// Only with TLS.
    certificates: Option<Watcher>,
    /// Done, and refused.
    reloads: [AtomicU64; 2],
    /// The last one was refused.
    refused: AtomicBool,
}

impl Operator {
    /// Of an edge that was started with `running`, which came from `source`.
    ///
    /// # Errors
    /// No token in `--admin-token-file`, in a sentence.
    pub fn new(
        state: Arc<State>,
        source: Source,
        running: Knobs<Config>,
        log: LogFilter,
        certificates: Option<Watcher>,
    ) -> Result<Self, UsageError> {
        let token = ArcSwapOption::from(read_token(&running.values)?);
        let (reloads, refused) = Default::default();
        Ok(Self {
            state,
            source,
            running: Mutex::new(running),
            reloading: Mutex::default(),
            log,
            token,
            certificates,
            reloads,
            refused,
        })
    }

    /// The edge.
    #[must_use]
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// What the admin address wants to see, if it does anything for anybody.
    #[must_use]
    pub fn token(&self) -> Option<Arc<Token>> {
        self.token.load_full()
    }

    /// The knobs in force.
    #[must_use]
    pub fn knobs(&self) -> Vec<Effective> {
        self.running().effective.clone()
    }

    fn running(&self) -> MutexGuard<'_, Knobs<Config>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs by another filter, until the next reload brings back that of the knobs.
    pub fn set_log(&self, filter: Targets) {
        tracing::info!(%filter, "logging by another filter");
        self.log.set(filter);
    }

    /// Reads the knobs again, and the files that they name, and lets those take effect that can. Returns what has changed, and what
    /// waits for the next start. Waits for shards that have no room for a command.
    ///
    /// # Errors
    /// A sentence with what is wrong; then nothing has changed.
    pub fn reload(&self) -> Result<Summary, UsageError> {
        let _one_at_a_time = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is leaving is not ready again afterwards.
        let tells = !self.state.is_draining();
        if tells {
            systemd::reloading();
        }
        let outcome = self.try_reload();
        self.refused.store(outcome.is_err(), Ordering::Relaxed);
        match &outcome {
            Ok(Summary { changed, waiting }) => {
                self.reloads[0].fetch_add(1, Ordering::Relaxed);
                tracing::info!(changed = changed.join(","), "knobs were read again");
                if !waiting.is_empty() {
                    let waiting = waiting.join(", ");
                    tracing::warn!("new values wait for the next start: {waiting}");
                }
            }
            Err(error) => {
                self.reloads[1].fetch_add(1, Ordering::Relaxed);
                tracing::warn!("nothing is changed: {error}");
            }
        }
        if tells {
            systemd::ready();
        }
        outcome
    }

    fn try_reload(&self) -> Result<Summary, UsageError> {
        let before = self.running().clone();
        let Reloaded { knobs, changed, waiting } = Config::reload(&self.source, &before)?;
        let token = read_token(&knobs.values)?;
        self.state.reload_tokens(&knobs.values)?;
        // From here on nothing fails but a shard that is stuck.
        self.token.store(token);
        self.log.set(knobs.values.log.clone());
        if let Some(certificates) = &self.certificates {
            certificates.reload(knobs.values.tls.clone());
        }
        let config = Arc::new(knobs.values.clone());
        *self.running() = knobs;
        self.tell_shards(|| Command::Reload(config.clone()));
        Ok(Summary { changed, waiting })
    }

    /// Gives every shard a command that it must not miss.
    fn tell_shards(&self, command: impl Fn() -> Command) {
        let mut left: Vec<_> = self.state.running().collect();
        for _ in 0..LANES_TIMEOUT.as_millis() / LANES_INTERVAL.as_millis() {
            left.retain(|shard| self.state.command(*shard, command()).is_err());
            if left.is_empty() {
                return;
            }
            #[expect(clippy::disallowed_methods, reason = "waits beside the shards, not in one")]
            std::thread::sleep(LANES_INTERVAL);
        }
        tracing::error!(shards = ?left, "take no commands, and go on with the knobs that they have");
    }

    /// Sends all clients to other edges over `--drain-window`, after `--drain-delay`; then the process ends. Does not wait for that.
    ///
    /// Returns whether this is the first time.
    pub fn drain(self: &Arc<Self>) -> bool {
        if !self.state.begin_draining() {
            return false;
        }
        let OperateKnobs { drain_window: window, drain_delay: delay, .. } =
            self.running().values.operate.clone();
        tracing::info!(?window, ?delay, "draining: clients are sent to other edges");
        systemd::stopping(delay + window + LEAVE_TIME);
        let state = self.state.clone();
        // On a thread of its own, so that the next signal is heard.
        std::thread::spawn(move || {
            #[expect(clippy::disallowed_methods, reason = "waits for the load balancers")]
            std::thread::sleep(delay);
            if state.drain(Order::Leave { window }).is_err() {
                tracing::warn!(
                    "a shard has too many commands waiting and cannot be drained: stopping"
                );
                state.stop();
            }
        });
        true
    }

    /// Ends at once: connections are closed with 1001.
    pub fn stop(&self) {
        tracing::info!("stopping: connections are closed with 1001");
        systemd::stopping(LEAVE_TIME);
        self.state.stop();
    }

    /// Appends what it counts in Prometheus' text format.
    pub fn render(&self, out: &mut String) {
        let name = "edge_reloads_total";
        metrics::header(out, name, "counter", "times that the knobs were read again");
        for (outcome, count) in ["done", "refused"].into_iter().zip(&self.reloads) {
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}{{outcome=\"{outcome}\"}} {count}");
        }
        let is_refused = u64::from(self.refused.load(Ordering::Relaxed));
        let help = "1 while the knobs, as they are written, are not those in force";
        metrics::gauge(out, "edge_reload_refused", help, is_refused);
    }
}

/// What a reload came to.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Knobs that changed.
    pub changed: Vec<String>,
    /// Knobs whose new value waits for the next start.
    pub waiting: Vec<String>,
}

fn read_token(config: &Config) -> Result<Option<Arc<Token>>, UsageError> {
    let path = config.operate.admin_token_file.as_ref();
    path.map(|path| Token::read(path).map(Arc::new)).transpose()
}
