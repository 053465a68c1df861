//! One edge: a shard on each core it is given, the uplink beside the first, the admin address on a thread of its own.

use std::fmt::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use std::{fmt, io};

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use hawser_proto::knobs::UsageError;

use crate::auth::Auth;
use crate::auth::service::{Health, Service};
use crate::certs::{self, Loaded};
use crate::command::Command;
use crate::config::{Config, RouterAddress};
use crate::drain::Order;
use crate::driver::{self, Clock, Driver, LinkAddress, LinkEnds, RouterEnd, RouterSeen, Settings};
use crate::mesh::{Full, Mesh, UPLINK_SHARD};
use crate::metrics::{self, Counters};
use crate::plan::Plan;
use crate::quotas::Quotas;
use crate::shard::{Given, Shard, Share};
use crate::shares::Shares;
use crate::uplink::EdgeIdentity;
use crate::uplinks::Uplinks;

/// What an executor may pin for I/O of its own, in bytes: it reads one eventfd.
const EXECUTOR_IO_BYTES: usize = 64 * 1024;
/// Entries of each of an executor's own rings, which do nothing in the steady state.
const EXECUTOR_RING_DEPTH: usize = 8;

/// A running edge.
pub struct Edge {
    listen: SocketAddr,
    state: Arc<State>,
    shards: Vec<ExecutorJoinHandle<io::Result<()>>>,
}

/// What the admin address shows, and what an operator can ask for.
pub struct State {
    counters: Vec<Arc<Counters>>,
    routers: Arc<[RouterSeen]>,
    draining: AtomicBool,
    /// When the first certificate runs out, in seconds since the Unix epoch; 0: there is none.
    certificates_expire: AtomicU64,
    stop: Arc<AtomicBool>,
    mesh: Arc<Mesh>,
    auth: Auth,
    auth_health: Option<Arc<Health>>,
    connections_max: usize,
    started_unix: Duration,
    /// By shard: its thread, 0 before it has started and when it has ended.
    threads: Box<[AtomicI32]>,
    stuck: AtomicU64,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("shards", &self.shards()).finish_non_exhaustive()
    }
}

impl State {
    /// How many shards there are, those that have ended included.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.mesh.shards()
    }

    /// The shards that run.
    pub fn running(&self) -> impl Iterator<Item = u16> {
        let running = |(_, thread): &(u16, &AtomicI32)| thread.load(Ordering::Relaxed) != 0;
        (0u16..).zip(&self.threads).filter(running).map(|(shard, _)| shard)
    }

    /// Gives a shard a command.
    ///
    /// # Errors
    /// [`Full`] with the command.
    pub fn command(&self, shard: u16, command: Command) -> Result<(), Full<Command>> {
        self.mesh.try_command(shard, command)
    }

    /// How often this shard's loop has turned.
    #[must_use]
    pub fn turns(&self, shard: u16) -> u64 {
        self.counters[usize::from(shard)].turn.count()
    }

    /// Lets a shard turn once, when it sleeps.
    pub fn wake(&self, shard: u16) {
        self.mesh.waker(shard).wake();
    }

    /// Notes how many shards are stuck ([`crate::watch`]).
    pub fn set_stuck(&self, shards: usize) {
        self.stuck.store(shards as u64, Ordering::Relaxed);
    }

    /// How it is, in a line for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let connections: u64 = self.counters.iter().map(|c| c.connections.get()).sum();
        let link = self.links();
        let draining = if self.is_draining() { ", draining" } else { "" };
        let (shards, max) = (self.shards(), self.connections_max);
        format!("{connections} of {max} connections on {shards} shards, {link}{draining}")
    }

    /// Whether the edge is on its way out.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Fails the health check from now on. [`Self::drain`] follows.
    ///
    /// Returns whether this is the first time.
    pub fn begin_draining(&self) -> bool {
        !self.draining.swap(true, Ordering::Relaxed)
    }

    /// Lets every shard send its clients away as `order` says. Shards that leave end when the last has gone.
    ///
    /// # Errors
    /// [`Full`] when a shard's lane of commands is full; those before it have the order.
    pub fn drain(&self, order: Order) -> Result<(), Full<Command>> {
        self.command_all(|| Command::Drain(order))
    }

    /// Lets every shard shake hands by these certificates from now on.
    ///
    /// # Errors
    /// [`Full`] when a shard's lane of commands is full; those before it have them.
    pub fn set_certificates(&self, loaded: &Loaded) -> Result<(), Full<Command>> {
        self.note_expiry(loaded.expires);
        self.command_all(|| Command::Certificates(Arc::clone(&loaded.config)))
    }

    /// Tells the metrics when the first of the certificates in use runs out.
    pub fn note_expiry(&self, expires: SystemTime) {
        let seconds = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.certificates_expire.store(seconds, Ordering::Relaxed);
    }

    fn command_all(&self, command: impl Fn() -> Command) -> Result<(), Full<Command>> {
        self.running().try_for_each(|shard| self.mesh.try_command(shard, command()))
    }

    /// Tells every shard to close its connections with 1001 and to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        for shard in 0..self.mesh.shards() {
            self.mesh.waker(shard).wake();
        }
    }

    /// `link up`, `link down`, or how many of several are up.
    fn links(&self) -> String {
        let up = self.routers.len() - self.unlinked().count();
        match (self.routers.len(), up) {
            (1, 1) => "link up".to_owned(),
            (1, _) => "link down".to_owned(),
            (all, up) => format!("{up} of {all} links up"),
        }
    }

    /// The routers to which there is no link.
    fn unlinked(&self) -> impl Iterator<Item = &str> {
        let down = self.routers.iter().filter(|router| !router.is_up.load(Ordering::Relaxed));
        down.map(|router| router.name.as_str())
    }

    /// Partitions that no router serves, and partitions.
    fn unrouted(&self) -> (u64, u64) {
        let counters = &self.counters[usize::from(UPLINK_SHARD)];
        (counters.partitions_unrouted.get(), counters.partitions.get())
    }

    /// Why no new clients should come here, if they should not: what the health check answers.
    #[must_use]
    pub fn ailment(&self) -> Option<String> {
        let auth = self.auth_health.as_ref().filter(|auth| auth.is_closed());
        if self.is_draining() {
            Some("draining: clients are sent to other edges".into())
        } else if self.unlinked().count() == self.routers.len() {
            Some("degraded: no link to a router, new clients cannot be registered".into())
        } else if self.unrouted().0 >= self.unrouted().1 {
            let told = "degraded: no router that is linked serves anybody, new clients cannot be registered";
            Some(told.into())
        } else {
            auth.and_then(|auth| auth.told()).map(|trouble| format!("degraded: {trouble}"))
        }
    }

    /// What does not work though new clients can come, so that balancers are to go on with this edge: with the keys that it
    /// knows it goes on, and where some users have no router, they have none at any edge.
    #[must_use]
    pub fn infirmity(&self) -> Option<String> {
        let mut troubles = Vec::new();
        let (unrouted, partitions) = self.unrouted();
        if unrouted > 0 {
            troubles.push(format!("no router serves {unrouted} of {partitions} partitions"));
        }
        let unlinked: Vec<_> = self.unlinked().collect();
        if !unlinked.is_empty() {
            troubles.push(format!("no link to {}", unlinked.join(", ")));
        }
        troubles.extend(
            self.auth_health.as_ref().and_then(|auth| auth.told()).map(|told| told.to_string()),
        );
        (!troubles.is_empty()).then(|| format!("degraded: {}", troubles.join("; ")))
    }

    /// Reads the files of keys again; all shards check tokens with them, and by these knobs, from then on.
    ///
    /// # Errors
    /// A sentence that names the knob and the file; all stays as it was.
    pub fn reload_tokens(&self, config: &Config) -> Result<(), UsageError> {
        self.auth.reload(config)
    }

    /// Appends all metrics in Prometheus' text format.
    pub fn render(&self, out: &mut String) {
        metrics::render(&self.counters, out);
        metrics::header(out, "edge_link_up", "gauge", "1 while the router has answered the hello");
        for router in self.routers.iter() {
            let up = u8::from(router.is_up.load(Ordering::Relaxed));
            let _ =
                writeln!(out, "edge_link_up{{router=\"{}\"}} {up}", router.name.escape_default());
        }
        if let Some(health) = &self.auth_health {
            health.render(out);
        }
        let expire = self.certificates_expire.load(Ordering::Relaxed);
        if expire > 0 {
            metrics::gauge(
                out,
                "edge_tls_certificate_expiry_seconds",
                "when the first certificate runs out, in seconds since the Unix epoch",
                expire,
            );
        }
        for (name, help, value) in [
            (
                "edge_healthy",
                "1 while the health check answers 200",
                self.ailment().is_none().into(),
            ),
            ("edge_connections_max", "most connections", self.connections_max as u64),
            ("edge_shards", "shards", self.shards().into()),
            (
                "edge_shards_stuck",
                "shards whose loop does not turn",
                self.stuck.load(Ordering::Relaxed),
            ),
        ] {
            metrics::gauge(out, name, help, value);
        }
        metrics::process::render(out, self.started_unix, &self.threads);
    }
}

impl Edge {
    /// Starts every shard, speaking TLS to clients when there is a configuration for it. Returns when all of them listen.
    ///
    /// # Errors
    /// A sentence that names the knob: port taken, router's name unknown, no ring to be had.
    pub fn start(
        config: Config,
        plan: &Plan,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Result<Self, UsageError> {
        let shards = plan.shards;
        let config = Arc::new(config);
        let (auth, service) = Auth::load(&config)?;
        let auth_health = service.as_ref().map(Service::health);
        let listen = driver::reserve(config.listen)
            .map_err(|error| UsageError(format!("--listen: {}: {error}", config.listen)))?;
        let end = |router: &RouterAddress| {
            let address = resolve(router)?;
            Ok(RouterEnd { address, tls: certs::router(&config.link_tls, router)? })
        };
        let ends = config.router.iter().map(end).collect::<Result<Vec<_>, UsageError>>()?;
        let seen = |router: &RouterAddress| RouterSeen {
            name: router.to_string(),
            is_up: AtomicBool::new(false),
        };
        let routers: Arc<[_]> = config.router.iter().map(seen).collect();
        let mesh = Mesh::new(shards)
            .map_err(|error| UsageError(format!("--shards: no eventfd for each: {error}")))?;
        let (mesh, stop) = (Arc::new(mesh), Arc::new(AtomicBool::new(false)));
        let shares = Arc::new(Shares::new(shards, plan.cores, plan.connections_a_shard));
        let counters: Vec<_> = (0..shards).map(|_| Arc::new(Counters::default())).collect();
        let quotas = Arc::new(Quotas::default());
        let handshakes_max = plan.handshakes_a_shard(config.limit.handshakes_max);
        let identity = EdgeIdentity {
            edge_id: config.edge_id.clone(),
            epoch: fastrand::u64(1..),
            region: config.region.clone(),
        };
        let cpus = allowed_cpus();
        let clock = Clock::start();
        let state = Arc::new(State {
            counters: counters.clone(),
            routers: routers.clone(),
            draining: AtomicBool::new(false),
            certificates_expire: AtomicU64::new(0),
            stop: stop.clone(),
            mesh: mesh.clone(),
            auth: auth.clone(),
            auth_health,
            connections_max: config.connections_max,
            started_unix: started_unix(),
            threads: (0..shards).map(|_| AtomicI32::new(0)).collect(),
            stuck: AtomicU64::new(0),
        });
        if let Some(service) = service {
            service.start(mesh.clone())?;
        }
        let mut edge = Self { listen, state, shards: Vec::with_capacity(shards) };
        let listeners = (0..plan.cores)
            .map(|_| driver::listen(listen))
            .collect::<io::Result<Vec<_>>>()
            .map_err(|error| UsageError(format!("--listen: {listen}: {error}")))?;
        let uplinks = Uplinks::new(&identity, ends.len() as u8, mesh.shards(), identity.epoch);
        let mut links = Some(LinkEnds { uplinks, routers: ends, seen: routers });
        let (started, starts) = crossbeam::channel::bounded(shards);
        for (index, counters) in (0u16..).zip(&counters) {
            let listener = listeners[usize::from(index) % plan.cores]
                .try_clone()
                .map_err(|error| UsageError(format!("--listen: {listen}: {error}")))?;
            let links = links.take_if(|_| index == UPLINK_SHARD);
            let given = Given {
                auth: auth.clone(),
                counters: counters.clone(),
                quotas: quotas.clone(),
                tls: tls.clone(),
            };
            let config = config.clone();
            let (mesh, shares) = (mesh.clone(), shares.clone());
            let (stop, started, state) = (stop.clone(), started.clone(), edge.state.clone());
            let settings = Settings {
                shard: index,
                sockets: plan.sockets_a_shard,
                ring: plan.ring,
                receive_buffer_bytes: config.receive_buffer_bytes as u32,
            };
            let share = Share {
                connections_max: plan.connections_a_shard,
                pool_bytes_max: plan.pool_bytes_max,
                handshakes_max,
            };
            let cpu = cpus[usize::from(index) % plan.cores % cpus.len()];
            let handle = LocalExecutorBuilder::new(Placement::Fixed(cpu))
                .name(&format!("shard-{index}"))
                .io_memory(EXECUTOR_IO_BYTES)
                .ring_depth(EXECUTOR_RING_DEPTH)
                .spawn(move || async move {
                    let thread = &state.threads[usize::from(index)];
                    thread
                        .store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
                    let shard = Shard::new(index, config, share, given, clock.now());
                    let driver =
                        Driver::new(settings, clock, shard, (mesh, shares), listener, links, stop);
                    let outcome = driver.as_ref().map(|_| ()).map_err(io::Error::kind);
                    // The receiver waits for every shard; it cannot be gone.
                    let _ = started.send((index, outcome));
                    let ended = match driver {
                        Ok(driver) => driver.run().await,
                        Err(error) => Err(error),
                    };
                    thread.store(0, Ordering::Relaxed);
                    ended
                })
                .map_err(|error| UsageError(format!("--shards: executor {index}: {error}")))?;
            edge.shards.push(handle);
        }
        // So that a shard that ends before it says anything is noticed.
        drop(started);
        for _ in 0..shards {
            match starts.recv() {
                Ok((_, Ok(()))) => {}
                Ok((index, Err(error))) => {
                    edge.state.stop();
                    return Err(UsageError(no_ring(index, plan, &error)));
                }
                Err(_) => {
                    edge.state.stop();
                    let error = edge.join().err().map_or_else(String::new, |e| format!(": {e}"));
                    return Err(UsageError(format!(
                        "--shards: an executor could not start{error}"
                    )));
                }
            }
        }
        Ok(edge)
    }

    /// Where clients connect; the port is the real one when the kernel chose it.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// What the admin address shows.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.state.clone()
    }

    /// Waits until every shard has ended.
    ///
    /// # Errors
    /// The first shard's that failed.
    pub fn join(self) -> io::Result<()> {
        let mut outcome = Ok(());
        for shard in self.shards {
            let ended =
                shard.join().map_err(|e| io::Error::other(e.to_string())).and_then(|ended| ended);
            outcome = outcome.and(ended);
        }
        outcome
    }
}

#[expect(clippy::disallowed_methods, reason = "told once, at the start")]
fn started_unix() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Why a shard has no ring, in a sentence.
fn no_ring(shard: u16, plan: &Plan, error: &io::ErrorKind) -> String {
    if *error == io::ErrorKind::OutOfMemory {
        return format!(
            "--shards: {} need about {} KiB of locked memory, and shard {shard} got no more; others of this user may \
             hold the rest; raise memlock (ulimit -l) or run fewer; see tuning/",
            plan.shards,
            plan.ring.locked_bytes() * plan.shards as u64 / 1024
        );
    }
    format!("--shards: io_uring of shard {shard}: {error}; see tuning/")
}

/// The cores that this process may run on; every shard is pinned to one of them.
fn allowed_cpus() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None).unwrap_or_default();
    let cpus: Vec<_> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect();
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// Names are looked up once, at the start: the ring's thread must not wait for a name server.
fn resolve(router: &RouterAddress) -> Result<LinkAddress, UsageError> {
    match router {
        RouterAddress::Unix(path) => Ok(LinkAddress::Unix(path.clone())),
        RouterAddress::Tcp(name) => {
            let addresses: Vec<_> = name
                .to_socket_addrs()
                .map_err(|error| UsageError(format!("--router: {name}: {error}")))?
                .collect();
            Ok(LinkAddress::Tcp(addresses))
        }
    }
}
