//! A thread that looks at the files every few seconds, and at once when asked.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, SystemTime};

use hawser_proto::knobs::UsageError;

use super::{Loaded, Loader, now};
use crate::config::TlsKnobs;

/// How often the files are looked at. A change is taken when it has stood for one such time, because certificate and key
/// are two files and are not changed in the same instant.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Watches the files from another thread. Dropping it ends the thread.
#[derive(Debug)]
pub struct Watcher {
    orders: Sender<Box<TlsKnobs>>,
}

impl Watcher {
    /// Reads the files at once, changed or not, and by these knobs from now on: for SIGHUP. What comes of it is logged, and
    /// handed on if it is good.
    pub fn reload(&self, knobs: TlsKnobs) {
        // The thread lives as long as this end.
        let _ = self.orders.send(Box::new(knobs));
    }
}

/// Loads what `knobs` name, then watches it: `on_change` gets every new config, from a thread of its own. A change that
/// cannot be used is told in the log, once, and the config before stays.
///
/// # Errors
/// When the files cannot be used now; a sentence that names the knob and the file.
pub fn watch(
    knobs: TlsKnobs,
    on_change: impl FnMut(Loaded) + Send + 'static,
) -> Result<(Watcher, Loaded), UsageError> {
    watch_every(LOOK_EVERY, knobs, on_change)
}

pub(super) fn watch_every(
    look_every: Duration,
    knobs: TlsKnobs,
    on_change: impl FnMut(Loaded) + Send + 'static,
) -> Result<(Watcher, Loaded), UsageError> {
    let mut loader = Loader::new()?;
    // Before the files are read: a change in between is then seen as one.
    let seen = Fingerprint::of(&knobs);
    let loaded = loader.load(&knobs, now())?;
    let (orders, received) = channel();
    let watched = Watched { loader, knobs, dealt_with: seen.clone(), last: seen, on_change };
    thread::Builder::new()
        .name("certs".to_owned())
        .spawn(move || watched.run(look_every, &received))
        .map_err(|error| UsageError(format!("--tls-cert: no thread to watch it: {error}")))?;
    Ok((Watcher { orders }, loaded))
}

struct Watched<F> {
    loader: Loader,
    knobs: TlsKnobs,
    /// What was loaded, or found to be of no use.
    dealt_with: Fingerprint,
    /// As of the last look.
    last: Fingerprint,
    on_change: F,
}

impl<F: FnMut(Loaded)> Watched<F> {
    fn run(mut self, look_every: Duration, orders: &Receiver<Box<TlsKnobs>>) {
        loop {
            match orders.recv_timeout(look_every) {
                Ok(knobs) => {
                    self.knobs = *knobs;
                    self.load(Fingerprint::of(&self.knobs));
                }
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn look(&mut self) {
        let seen = Fingerprint::of(&self.knobs);
        if seen == self.last && seen != self.dealt_with {
            self.load(seen);
        } else {
            self.last = seen;
        }
    }

    fn load(&mut self, seen: Fingerprint) {
        self.dealt_with = seen.clone();
        self.last = seen;
        match self.knobs.check_together().and_then(|()| self.loader.load(&self.knobs, now())) {
            Ok(loaded) => {
                tracing::info!("certificates are loaded anew");
                (self.on_change)(loaded);
            }
            Err(error) => tracing::error!("{error}; the certificates before stay in use"),
        }
    }
}

/// What tells a changed file, following links: a renewal tool may write anew, replace, or turn a link.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fingerprint(Vec<Option<(SystemTime, u64, u64)>>);

impl Fingerprint {
    fn of(knobs: &TlsKnobs) -> Self {
        let TlsKnobs { tls_cert, tls_key, tls_ticket_keys, tls_client_ca, .. } = knobs;
        let files = tls_cert.iter().chain(tls_key).chain(tls_ticket_keys).chain(tls_client_ca);
        let tell = |path: &PathBuf| {
            let found = fs::metadata(path).ok()?;
            Some((found.modified().ok()?, found.len(), found.ino()))
        };
        Self(files.map(tell).collect())
    }
}
