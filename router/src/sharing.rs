//! What a router does beside serving where several share an engine: connect, claim, take over, let go.
//!
//! ```text
//!  engine ─► claims ─► keeper (task) ─► takers (threads): state log, messages log ─► Hubs for the owners
//! ```

use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::claims::Ends;
use crate::config::Config;
use crate::engine::Engine;
use crate::health::Health;
use crate::keeper::{Keeper, Notice, TakeRequest};
use crate::link::{Links, unix_ms};
use crate::queue::{Log, PartitionId};
use crate::server::{STOP_TIMEOUT, thread};
use crate::store::Store;
use crate::takeover::{NotTaken, Taken, Takeover};

/// How long the engine may take to let this router leave.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Threads that take partitions over: most of the time they wait for the engine.
const TAKERS: usize = 4;

/// What there is where routers share an engine.
pub(crate) struct Sharing {
    stop: oneshot::Sender<()>,
    keeper: tokio::task::JoinHandle<()>,
    claims: tokio::task::JoinHandle<Result<(), String>>,
}

impl Sharing {
    /// Connects, and serves what it is given to own.
    pub(crate) fn start(
        config: &Config,
        engine: Engine,
        store: Arc<dyn Store>,
        links: &Arc<Links>,
        health: &Arc<Health>,
        notices: mpsc::UnboundedReceiver<Notice>,
        address: String,
    ) -> Self {
        let (changes, changed) = mpsc::unbounded_channel();
        let (tell, told) = mpsc::unbounded_channel();
        let (takers, requests) = blocking::channel();
        let requests = Arc::new(Mutex::new(requests));
        for _ in 0..TAKERS {
            let taker = Taker {
                engine: engine.clone(),
                store: Arc::clone(&store),
                config: config.clone(),
                takeover: None,
            };
            let requests = Arc::clone(&requests);
            drop(thread("taker", move || taker.run(&requests)));
        }
        let (stop, stopped) = oneshot::channel();
        let keeper = Keeper::new(Arc::clone(links), Arc::clone(health), takers, tell);
        let stopped = async { drop(stopped.await) };
        let keeper = tokio::spawn(keeper.run(changed, notices, stopped));
        let (config, health) = (config.clone(), Arc::clone(health));
        let claims = tokio::spawn(async move {
            engine.connect(&config, &health).await;
            engine.claim(&config, address, Ends { changes, told }).await
        });
        Self { stop, keeper, claims }
    }

    /// Completes with a sentence when this router cannot take part.
    pub(crate) async fn failed(&mut self) -> String {
        match (&mut self.claims).await {
            Ok(Ok(())) => std::future::pending().await,
            Ok(Err(reason)) => reason,
            Err(error) => error.to_string(),
        }
    }

    /// Lets every partition go, saved, so that others take them over at once.
    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        let leave = async {
            let _ = self.keeper.await;
            if !self.claims.is_finished() {
                let _ = tokio::time::timeout(LEAVE_TIMEOUT, self.claims).await;
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, leave).await.is_err() {
            tracing::warn!("partitions were not let go in time; their logs have everything");
        }
    }
}

/// A thread that takes partitions over.
struct Taker {
    engine: Engine,
    store: Arc<dyn Store>,
    config: Config,
    takeover: Option<Takeover>,
}

impl Taker {
    fn run(mut self, requests: &Mutex<blocking::Receiver<TakeRequest>>) {
        loop {
            let request = requests.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((partition, answer)) = request else { return };
            let taken = self.take(partition);
            if taken.is_err() {
                self.takeover = None;
            }
            let _ = answer.send(taken);
        }
    }

    fn take(&mut self, partition: PartitionId) -> Result<Taken, NotTaken> {
        let takeover = match &mut self.takeover {
            Some(takeover) => takeover,
            empty => empty.insert(Takeover {
                store: Arc::clone(&self.store),
                messages: self.engine.opener(Log::Messages).open()?,
                state: self.engine.opener(Log::State).open()?,
                config: self.config.hub(),
                router_id: self.config.router_id.clone(),
            }),
        };
        takeover.take(partition, unix_ms(), fastrand::u64(..))
    }
}
