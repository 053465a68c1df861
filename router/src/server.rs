//! The I/O of the router: opens and recovers the data folder, binds, runs owners, links and threads, and
//! stops in order.
//!
//! ```text
//!  links ─► owners (tasks) ─► committer (thread) ─► queue
//!    ▲         │  ▲   └─────► saver (thread) ─────► store, and the state log where routers share an engine
//!    └─────────┘  └──────────────┘ answers
//! ```
//!
//! Where several routers share an engine, `sharing` brings and takes the Hubs.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use ahash::AHashMap;
use hawser_proto::link::Ownership;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::admin;
use crate::api::Api;
use crate::config::{Config, Listen};
use crate::data::{Data, queue_opener};
use crate::edges::Edges;
use crate::engine::{Engine, EngineKind};
use crate::health::{Health, Part};
use crate::keeper::Notice;
use crate::limits;
use crate::link::{Links, Reader, Writer, unix_ms};
use crate::link_tls::LinkTls;
use crate::metrics::Metrics;
use crate::owner::{Answer, Owner, SaveRequest, Ways};
use crate::queue::Log;
use crate::queue::committer::{self, Committer, Request};
use crate::registry::redis;
use crate::registry::view::View;
use crate::saver::{Saver, StateLog};
use crate::sharing::Sharing;
use crate::store::Store;
use crate::store::disk::DiskStore;

/// How long links and owners may take to end.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Why the router did not start.
#[derive(Debug)]
pub enum StartError {
    /// The operator can mend it: a sentence with the knob's name.
    Usage(String),
    /// Something failed.
    Failed(String),
}

/// A sentence about a knob.
pub(crate) fn usage(knob: &str, problem: impl std::fmt::Display) -> StartError {
    StartError::Usage(format!("{knob}: {problem}"))
}

/// A router that is bound and recovered, and not serving yet.
#[derive(Debug)]
pub struct Server {
    config: Config,
    listeners: Vec<Listener>,
    link_tls: Option<LinkTls>,
    admin: TcpListener,
    api: Option<Api>,
    data: Data,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, std::path::PathBuf),
}

impl Server {
    /// Reads the certificates of links, binds every address, locks and opens the data folder and replays the log.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let link_tls = LinkTls::load(&config).map_err(StartError::Usage)?;
        let mut listeners = Vec::new();
        for listen in &config.listen {
            listeners.push(Listener::bind(listen).await?);
        }
        let admin = TcpListener::bind(config.admin)
            .await
            .map_err(|error| usage("--admin", format_args!("{}: {error}", config.admin)))?;
        let api = Api::bind(&config).await.map_err(StartError::Usage)?;
        let opening = config.clone();
        let data = tokio::task::spawn_blocking(move || Data::open(&opening))
            .await
            .map_err(|error| StartError::Failed(format!("opening the data folder: {error}")))??;
        Ok(Self { config, listeners, link_tls, admin, api, data })
    }

    /// Addresses that edges can connect to, with the ports that were chosen for port 0.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.listeners.iter().map(Listener::address).collect()
    }

    /// Address of the admin server.
    #[must_use]
    pub fn admin_address(&self) -> String {
        self.admin.local_addr().map_or_else(|error| error.to_string(), |a| a.to_string())
    }

    /// Address of the server API, where it is served.
    #[must_use]
    pub fn api_address(&self) -> Option<String> {
        self.api.as_ref().map(Api::address)
    }

    /// Serves until `stop` completes, then saves everything.
    ///
    /// # Errors
    /// [`StartError::Failed`]: the engine does not let this router take part.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), StartError> {
        let owners = self.data.hubs.len();
        let metrics = Arc::new(Metrics::new(owners));
        let health = Arc::new(Health::default());
        let engine = (self.config.engine != EngineKind::Embedded).then(Engine::default);
        let (notices, noticed) = mpsc::unbounded_channel();
        let store: Arc<dyn Store> = Arc::<DiskStore>::clone(&self.data.store);
        let shared = engine.as_ref().map(|engine| (engine, notices));
        let (view, told) = redis::view(&self.config, &metrics).unzip();
        let threads = Threads::start(&self.config, self.data, shared, view, &metrics, &health);
        let links = Arc::new(Links {
            ways: threads.ways.clone(),
            edges: Edges::default(),
            router_id: self.config.router_id.clone(),
            epoch: fastrand::u64(..),
            lease: self.config.lease,
            window_messages: self.config.window,
            ownership: engine.as_ref().map(|_| {
                Mutex::new(Ownership {
                    partitions: u32::from(self.config.partitions),
                    claims: Vec::new(),
                })
            }),
        });
        let publisher = told.and_then(|told| redis::publish(&self.config, &links, &health, told));
        let (stopping, stopped) = watch::channel(false);
        let admin =
            tokio::spawn(admin::serve(self.admin, Arc::clone(&metrics), Arc::clone(&health)));
        let sharing = engine.map(|engine| {
            let address = self.listeners.first().map_or_else(String::new, Listener::address);
            Sharing::start(&self.config, engine, store, &links, &health, noticed, address)
        });
        let mut accepting = JoinSet::new();
        for listener in self.listeners {
            let tls = self.link_tls.clone();
            accepting.spawn(accept(listener, tls, Arc::clone(&links), stopped.clone()));
        }
        let api = self.api.map(|api| api.serve(&links));
        let (sharing, refused) = match sharing {
            None => {
                stop.await;
                (None, None)
            }
            Some(mut sharing) => tokio::select! {
                () = stop => (Some(sharing), None),
                reason = sharing.failed() => (None, Some(reason)),
            },
        };
        tracing::info!("stopping");
        health.set(Part::Serving, Some("the router is stopping".to_owned()));
        if let Some(api) = api {
            api.stop().await;
        }
        let _ = stopping.send(true);
        let all_ended = async { while accepting.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, all_ended).await.is_err() {
            tracing::warn!("links did not end in time");
        }
        if let Some(sharing) = sharing {
            sharing.stop().await;
        }
        threads.stop().await;
        if let Some(publisher) = publisher {
            publisher.abort();
        }
        admin.abort();
        refused.map_or(Ok(()), |reason| Err(StartError::Failed(reason)))
    }
}

impl Listener {
    async fn bind(listen: &Listen) -> Result<Self, StartError> {
        let problem = |error: std::io::Error| usage("--listen", format!("{listen}: {error}"));
        match listen {
            Listen::Tcp(address) => {
                Ok(Self::Tcp(TcpListener::bind(address).await.map_err(problem)?))
            }
            Listen::Unix(path) => {
                // A socket that nobody listens at is left over from a router that was killed.
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    return Err(usage("--listen", format!("{listen}: is in use")));
                }
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(problem(error));
                    }
                    Ok(()) | Err(_) => {}
                }
                Ok(Self::Unix(UnixListener::bind(path).map_err(problem)?, path.clone()))
            }
        }
    }

    fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map_or_else(|e| e.to_string(), |a| a.to_string())
            }
            Self::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    async fn accept(&self) -> std::io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Batches are built here; the kernel shall not wait for more.
                let _ = stream.set_nodelay(true);
                Ok(Accepted::Tcp(stream, peer.to_string()))
            }
            Self::Unix(listener, _) => Ok(Accepted::Unix(listener.accept().await?.0)),
        }
    }
}

/// A link of which nothing has been heard.
enum Accepted {
    Tcp(TcpStream, String),
    Unix(UnixStream),
}

impl Accepted {
    /// Its halves and its name for the log, when the handshake is done where there is one.
    async fn open(self, tls: Option<&LinkTls>) -> Option<(Reader, Writer, String)> {
        match (self, tls) {
            (Self::Tcp(stream, peer), Some(tls)) => match tls.accept(stream).await {
                Ok(stream) => {
                    let (reader, writer) = tokio::io::split(stream);
                    Some((Box::new(reader), Box::new(writer), peer))
                }
                Err(reason) => {
                    tracing::warn!(peer, "no TLS with an edge: {reason}");
                    None
                }
            },
            (Self::Tcp(stream, peer), None) => {
                let (reader, writer) = stream.into_split();
                Some((Box::new(reader), Box::new(writer), peer))
            }
            (Self::Unix(stream), _) => {
                let (reader, writer) = stream.into_split();
                Some((Box::new(reader), Box::new(writer), "unix".to_owned()))
            }
        }
    }
}

/// Accepts links until it is time to stop, then ends them.
async fn accept(
    listener: Listener,
    tls: Option<LinkTls>,
    links: Arc<Links>,
    mut stopped: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(limits::LINKS_MAX));
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => {
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                    links.ways.metrics.links_accepted.inc();
                    let (links, tls) = (Arc::clone(&links), tls.clone());
                    serving.spawn(async move {
                        match accepted.open(tls.as_ref()).await {
                            Some((reader, writer, peer)) => links.serve(reader, writer, peer).await,
                            None => drop(links.ways.metrics.links_ended.inc()),
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: others may give some back.
                    tracing::warn!(%error, "accepting a link failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = serving.join_next() => {}
            _ = stopped.changed() => break,
        }
    }
    links.edges.close_all();
    // Links that never said Hello have nothing to lose.
    let grace = tokio::time::sleep(Duration::from_secs(2));
    tokio::pin!(grace);
    loop {
        tokio::select! {
            ended = serving.join_next() => if ended.is_none() { break },
            () = &mut grace => { serving.shutdown().await; break; }
        }
    }
    if let Listener::Unix(_, path) = &listener {
        let _ = std::fs::remove_file(path);
    }
}

/// The owners and the two threads that may block.
struct Threads {
    ways: Ways,
    answers: Vec<mpsc::UnboundedSender<Answer>>,
    owners: JoinSet<()>,
    committer: JoinHandle<()>,
    saver: JoinHandle<()>,
    _lock: File,
}

impl Threads {
    fn start(
        config: &Config,
        data: Data,
        shared: Option<(&Engine, mpsc::UnboundedSender<Notice>)>,
        view: Option<Arc<View>>,
        metrics: &Arc<Metrics>,
        health: &Arc<Health>,
    ) -> Self {
        let keeper = shared.as_ref().map(|(_, keeper)| keeper.clone());
        let (to_committer, committer_requests) = blocking::channel();
        let (to_saver, save_requests) = blocking::channel();
        let (to_owners, inboxes): (Vec<_>, Vec<_>) =
            data.hubs.iter().map(|_| mpsc::channel(limits::OWNER_QUEUE_BATCHES_MAX)).unzip();
        let (answers, answer_inboxes): (Vec<_>, Vec<_>) =
            data.hubs.iter().map(|_| mpsc::unbounded_channel()).unzip();
        let ways = Ways {
            owners: to_owners,
            committer: to_committer,
            saver: to_saver,
            keeper: keeper.unwrap_or_else(|| mpsc::unbounded_channel().0),
            view,
            metrics: Arc::clone(metrics),
            partitions: config.partitions,
        };
        let mut owners = JoinSet::new();
        let tasks = data.hubs.into_iter().zip(inboxes).zip(answer_inboxes);
        for (index, ((hubs, inbox), answers)) in tasks.enumerate() {
            owners.spawn(Owner::new(index, hubs, ways.clone()).run(inbox, answers));
        }
        let queue_answers = answers.clone();
        let committer = Committer {
            opener: match &shared {
                Some((engine, _)) => engine.opener(Log::Messages),
                None => Box::new(queue_opener(config)),
            },
            queue: data.queue.map(|open| open.0),
            expected: data.expected,
            owners: answers.len(),
            is_shared: shared.is_some(),
            replies: Box::new(move |owner, reply| {
                let _ = queue_answers[owner].send(Answer::Queue(reply));
            }),
            free_bytes: free_bytes(&config.data_dir),
            disk_free_min: config.disk_free_min as u64,
            commit_interval: config.commit_interval,
            health: Arc::clone(health),
            metrics: Arc::clone(metrics),
            clock: Box::new(committer::now),
        };
        let saver = Saver {
            store: data.store,
            log: shared.map(|(engine, keeper)| StateLog {
                opener: engine.opener(Log::State),
                queue: None,
                keeper,
                tails: AHashMap::new(),
                bytes_min: limits::STATE_BYTES_MIN,
            }),
            answers: answers.clone(),
            health: Arc::clone(health),
            metrics: Arc::clone(metrics),
            unix_ms,
            forgot_on: 0,
        };
        Self {
            ways,
            answers,
            owners,
            committer: thread("committer", move || committer.run(&committer_requests)),
            saver: thread("saver", move || saver.run(&save_requests)),
            _lock: data.lock,
        }
    }

    /// Ends owners, committer and saver, in this order.
    async fn stop(mut self) {
        for answers in &self.answers {
            let _ = answers.send(Answer::Stop);
        }
        let all_ended = async { while self.owners.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, all_ended).await.is_err() {
            self.owners.abort_all();
        }
        // Not by dropping the ways: a lease that still runs holds some.
        let _ = self.ways.committer.send(Request::Stop);
        let _ = self.ways.saver.send(SaveRequest::Stop);
        let threads = [self.committer, self.saver];
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().for_each(|thread| drop(thread.join()));
        });
        let _ = joined.await;
        tracing::info!("stopped");
    }
}

/// Starts a thread with a name.
pub(crate) fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    match std::thread::Builder::new().name(name.to_owned()).spawn(body) {
        Ok(handle) => handle,
        Err(error) => panic!("the kernel refuses a thread: {error}"),
    }
}

fn free_bytes(folder: &Path) -> crate::queue::committer::FreeBytes {
    let folder = folder.to_owned();
    Box::new(move || {
        let statistics = rustix::fs::statvfs(&folder).ok()?;
        Some(statistics.f_bavail.saturating_mul(statistics.f_frsize))
    })
}
