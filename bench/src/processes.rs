//! Edges and a router of our own: started from the binaries beside this one, on free ports, in a temporary
//! folder; killed and started again; ended when the guard goes, also in a panic.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::clock;
use crate::disk::Disk;
use crate::failure::Failure;
use crate::front::Front;
use crate::host;
use crate::scenario::Stop;
use crate::services::{Engine, Service};
use crate::stepped::{self, SteppedClock};
use crate::target::Target;
use crate::tls::{Issued, TlsClients};
use crate::wire::Wire;

/// Partitions of routers that are told nothing else.
const PARTITIONS: u16 = 64;
/// From the start of a server to a healthy answer.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at /healthz.
const READY_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// For one request to /healthz.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);
/// For one request to /metrics, which a busy machine may keep waiting.
const METRICS_TIMEOUT: Duration = Duration::from_secs(10);
const METRICS_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Shown of a log when its server died.
const LOG_TAIL_BYTES: usize = 2_000;
/// Ports are drawn from here up to where the kernel's own begin: a client's socket must not sit on a server's port
/// while the server is down.
const PORT_MIN: u16 = 15_000;
const PORT_DRAWS_MAX: u32 = 1_000;

/// What to start.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// How many routers, of which each edge is told; 0: none, for edges that only echo.
    pub routers: usize,
    /// What keeps the messages.
    pub engine: Engine,
    /// Servers of an engine that routers share.
    pub engine_nodes: usize,
    /// Edges reach routers over wires that can be cut.
    pub wires: bool,
    /// The first router's data lies on a disk that can be filled, where that is allowed.
    pub disk: bool,
    /// The last router has a clock that can be stepped, where that is possible.
    pub stepped_clock: bool,
    /// How many edges, at least one.
    pub edges: usize,
    /// Of each edge.
    pub connections_max: usize,
    /// Over which an edge sends its clients away when it is told to leave; absent: its default.
    pub drain_window: Option<Duration>,
    /// The edges speak TLS; of a hundred connects of their clients so many resume a session.
    pub tls_resume_percent: Option<u32>,
    pub shards: Option<usize>,
    pub echo_path: Option<&'static str>,
    /// Where the temporary folder is made.
    pub folder: PathBuf,
    /// Leave the folder there.
    pub keep: bool,
}

impl Plan {
    /// What the flags of this plan mean for an edge.
    fn configure(&self, edge: &mut Server) {
        edge.set_flag("--connections-max", self.connections_max);
        edge.command_line.push("--dev-auth".to_owned());
        if let Some(shards) = self.shards {
            edge.set_flag("--shards", shards);
        }
        if let Some(path) = self.echo_path {
            edge.set_flag("--echo-path", path);
        }
        if let Some(window) = self.drain_window {
            edge.set_flag("--drain-window", humantime::format_duration(window));
        }
    }
}

/// The servers of one run. Dropping it kills them and removes their folder.
#[derive(Debug)]
pub(crate) struct Servers {
    /// At least one.
    pub edges: Vec<Server>,
    pub routers: Vec<Server>,
    /// One a router, or none at all.
    pub wires: Vec<Wire>,
    /// The servers of the engine, where routers share one. After the routers, so that it goes after them.
    pub service: Option<Arc<Service>>,
    /// Of the first router.
    pub disk: Option<Disk>,
    /// Of the last router.
    pub clock: Option<SteppedClock>,
    /// Of disk and clock, what this machine does not allow, in sentences.
    pub left_out: Vec<String>,
    tls: Option<Arc<TlsClients>>,
    /// Type of the filesystem that holds the router's data.
    pub data_filesystem: String,
    /// Last, so that it goes after the processes that write to it.
    _folder: Option<TempDir>,
}

impl Servers {
    /// Starts them and waits until /healthz of each says that it is well.
    ///
    /// # Errors
    /// When a binary is missing, or a server does not come up.
    pub(crate) fn start(plan: &Plan, seed: u64, stop: &Stop) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new()
            .prefix("hawser-bench-")
            .tempdir_in(&plan.folder)
            .map_err(|error| Failure::Usage(format!("--folder: {error}")))?;
        let mut random = fastrand::Rng::with_seed(seed);
        let mut taken = Vec::new();
        let mut port = || free_port(&mut random, &mut taken);
        let mut edges = Vec::new();
        for _ in 0..plan.edges {
            let (listen, admin) = (port()?, port()?);
            let mut edge = Server::new("hawser-edge", folder.path(), listen, admin)?;
            plan.configure(&mut edge);
            edges.push(edge);
        }
        let tls = plan.tls_resume_percent.map(|percent| -> Result<_, Failure> {
            let issued = Issued::new(folder.path())?;
            for edge in &mut edges {
                edge.set_flag("--tls-cert", issued.cert.display());
                edge.set_flag("--tls-key", issued.key.display());
                // What one sealed another one opens, and the same one after a restart.
                edge.set_flag("--tls-ticket-keys", issued.ticket_keys.display());
            }
            TlsClients::trusting([issued.authority], percent)
                .map_err(|error| Failure::Broken(format!("TLS: {error}")))
        });
        let tls = tls.transpose()?;
        let service = Service::start(plan.engine, plan.engine_nodes, folder.path())?.map(Arc::new);
        let mut left_out = Vec::new();
        let mut or_left_out = |sentence| left_out.push(sentence);
        let disk = plan.disk.then(|| Disk::mount(folder.path().join("disk")));
        let disk = disk.and_then(|disk| disk.map_err(&mut or_left_out).ok());
        let clock = plan.stepped_clock.then(|| SteppedClock::new(folder.path()));
        let clock = clock.and_then(|clock| clock.map_err(&mut or_left_out).ok());
        let (mut routers, mut wires) = (Vec::new(), Vec::new());
        for number in 1..=plan.routers {
            let (listen, admin) = (port()?, port()?);
            let mut router = Server::new("hawser-router", folder.path(), listen, admin)?;
            let disk = disk.as_ref().filter(|_| number == 1);
            let place = disk.map_or(folder.path(), Disk::folder);
            let data = place.join(format!("data-{number}"));
            if let Some(clock) = clock.as_ref().filter(|_| number == plan.routers) {
                router.environment = clock.environment();
            }
            router.set_flag("--data-dir", data.display());
            router.set_flag("--router-id", format_args!("router-{number}"));
            if let Some(service) = &service {
                router.command_line.extend(service.router_flags()?);
            }
            router.data = Some(data);
            let mut place = listen;
            if plan.wires {
                let wire = Wire::new(listen)?;
                place = wire.address();
                wires.push(wire);
            }
            edges.iter_mut().for_each(|edge| edge.set_flag("--router", place));
            router.start()?;
            routers.push(router);
        }
        for router in &mut routers {
            router.wait_ready(stop, |status| status == 200)?;
        }
        if service.is_some() {
            wait_until_all_is_served(&routers, stop)?;
        }
        for edge in &mut edges {
            edge.start()?;
            // Without a router the edge is up but not well; for echoing that will do.
            edge.wait_ready(stop, |status| status == 200 || plan.routers == 0)?;
        }
        let folder = if plan.keep {
            eprintln!("the servers' folder is kept: {}", folder.keep().display());
            None
        } else {
            Some(folder)
        };
        let data_filesystem = host::filesystem_of(&plan.folder);
        Ok(Self {
            edges,
            routers,
            wires,
            service,
            disk,
            clock,
            left_out,
            tls,
            data_filesystem,
            _folder: folder,
        })
    }

    /// Where clients connect to: the edges in order.
    pub(crate) fn front(&self, path: &str) -> Front {
        let target =
            |edge: &Server| Target { tls: self.tls.clone(), ..Target::local(edge.listen, path) };
        Front::new(self.edges.iter().map(target))
    }

    /// The processes that run, the edges first.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.edges.iter().chain(&self.routers).filter_map(Server::pid).collect()
    }

    /// Fails when a server ended that nobody killed; shows the end of its log.
    pub(crate) fn check_alive(&mut self) -> Result<(), Failure> {
        self.edges.iter_mut().chain(&mut self.routers).try_for_each(Server::check_alive)
    }
}

/// One server process, and how to start it.
#[derive(Debug)]
pub(crate) struct Server {
    name: &'static str,
    program: PathBuf,
    command_line: Vec<String>,
    /// Of a process with a stepped clock; else empty.
    environment: Vec<(&'static str, String)>,
    listen: SocketAddr,
    admin: SocketAddr,
    log: PathBuf,
    /// Its data folder, of a router.
    data: Option<PathBuf>,
    child: Option<Child>,
    /// It was asked to leave.
    leaving: bool,
}

impl Server {
    fn new(
        name: &'static str,
        folder: &Path,
        listen: SocketAddr,
        admin: SocketAddr,
    ) -> Result<Self, Failure> {
        let program = std::env::current_exe()?.with_file_name(name);
        if !program.is_file() {
            let folder = program.parent().unwrap_or(Path::new(".")).display();
            return Err(Failure::Broken(format!(
                "{name} is not in {folder}, beside this binary: build the workspace, or name a running server with --target"
            )));
        }
        let log = folder.join(format!("{name}-{}.log", listen.port()));
        let command_line = Vec::new();
        let mut server = Self {
            name,
            program,
            command_line,
            environment: Vec::new(),
            listen,
            admin,
            log,
            data: None,
            child: None,
            leaving: false,
        };
        server.set_flag("--listen", listen);
        server.set_flag("--admin", admin);
        Ok(server)
    }

    fn set_flag(&mut self, name: &str, value: impl std::fmt::Display) {
        self.command_line.extend([name.to_owned(), value.to_string()]);
    }

    /// Starts the process; it may not be ready yet. Its stderr goes on in the same log.
    ///
    /// # Errors
    /// When the operating system cannot start it.
    pub(crate) fn start(&mut self) -> io::Result<()> {
        debug_assert!(self.child.is_none(), "{} runs", self.name);
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child = Command::new(&self.program)
            .args(&self.command_line)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C on the terminal is for the bench alone; it ends its servers itself.
            .process_group(0)
            .spawn()?;
        self.child = Some(child);
        self.leaving = false;
        Ok(())
    }

    /// Ends the process with SIGKILL and waits for its end.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only for a process that has ended, which is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
            if !self.environment.is_empty() {
                stepped::clean_up_after(child.id());
            }
        }
    }

    /// Stops the process where it is, with SIGSTOP, or lets it go on.
    pub(crate) fn set_stopped(&self, stopped: bool) {
        let signal = if stopped { Signal::STOP } else { Signal::CONT };
        if let Some(child) = &self.child {
            // It can only have ended, which `check_alive` tells.
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    /// Removes the data folder of a process that does not run.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn lose_data(&self) -> io::Result<()> {
        debug_assert!(self.child.is_none(), "{} runs", self.name);
        match &self.data {
            Some(data) if data.exists() => fs::remove_dir_all(data),
            Some(_) | None => Ok(()),
        }
    }

    /// Asks the process to leave in order, with SIGTERM. [`Self::ended`] says when it has.
    ///
    /// # Errors
    /// When it is not there.
    pub(crate) fn ask_to_leave(&mut self) -> io::Result<()> {
        let child = self.child.as_ref().ok_or(io::ErrorKind::NotFound)?;
        self.leaving = true;
        Ok(kill_process(Pid::from_child(child), Signal::TERM)?)
    }

    /// How the process ended, once it has ended by itself; then it can be started again.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// Whether it says that it is well.
    pub(crate) fn is_well(&self) -> bool {
        healthz(self.admin).is_ok_and(|status| status == 200)
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What its admin address shows.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) fn metrics(&self) -> io::Result<String> {
        metrics(self.admin)
    }

    /// Whether the process runs; false also when it has ended by itself.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Fails when the process ended by itself, without being asked to leave.
    pub(crate) fn check_alive(&mut self) -> Result<(), Failure> {
        let ended: Option<ExitStatus> =
            self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        match ended {
            Some(status) if !self.leaving => {
                Err(self.broken(format_args!("ended by itself ({status})")))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// What is wrong with it, and the end of its log.
    pub(crate) fn broken(&self, what: impl std::fmt::Display) -> Failure {
        Failure::Broken(format!("{} {what}; the end of its log:\n{}", self.name, self.log_tail()))
    }

    fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(LOG_TAIL_BYTES)..];
        String::from_utf8_lossy(tail).into_owned()
    }

    fn wait_ready(&mut self, stop: &Stop, ready: impl Fn(u16) -> bool) -> Result<(), Failure> {
        let deadline = clock::now() + READY_TIMEOUT;
        loop {
            self.check_alive()?;
            if healthz(self.admin).is_ok_and(&ready) {
                return Ok(());
            }
            if stop.is_asked() {
                return Err(Failure::Broken("interrupted before the servers were up".to_owned()));
            }
            if clock::now() > deadline {
                return Err(self.broken(format_args!("was not ready within {READY_TIMEOUT:?}")));
            }
            stop.pause(READY_POLL_INTERVAL);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until routers that share an engine have all partitions between them.
fn wait_until_all_is_served(routers: &[Server], stop: &Stop) -> Result<(), Failure> {
    let deadline = clock::now() + READY_TIMEOUT;
    loop {
        let metrics: Vec<_> = routers.iter().filter_map(|router| router.metrics().ok()).collect();
        let of_state = |state: &str| -> f64 {
            let all = metrics.iter().flat_map(|text| values_of(text, "router_partitions"));
            all.filter(|(labels, _)| labels.contains(state)).map(|(_, count)| count).sum()
        };
        if metrics.len() == routers.len()
            && of_state("here") > 0.0
            && of_state("coming") + of_state("going") == 0.0
            && of_state("here") == f64::from(PARTITIONS)
        {
            return Ok(());
        }
        if stop.is_asked() || clock::now() > deadline {
            let here = of_state("here");
            return Err(routers[0]
                .broken(format_args!("and others serve {here} of {PARTITIONS} partitions")));
        }
        stop.pause(READY_POLL_INTERVAL);
    }
}

/// What `GET /metrics` says.
fn metrics(admin: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, HEALTH_TIMEOUT)?;
    stream.set_read_timeout(Some(METRICS_TIMEOUT))?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(METRICS_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

/// The values of a metric in the text format of Prometheus, each with what stands between its braces.
pub(crate) fn values_of<'a>(
    metrics: &'a str,
    name: &'a str,
) -> impl Iterator<Item = (&'a str, f64)> {
    metrics.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_once('}')?,
            None => ("", rest.strip_prefix(' ')?),
        };
        Some((labels, value.trim().parse().ok()?))
    })
}

/// Asks `GET /healthz` and returns the HTTP status.
fn healthz(admin: SocketAddr) -> io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&admin, HEALTH_TIMEOUT)?;
    stream.set_read_timeout(Some(HEALTH_TIMEOUT))?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut head = [0; b"HTTP/1.1 200".len()];
    stream.read_exact(&mut head)?;
    let status = std::str::from_utf8(&head).ok().and_then(|head| head.split(' ').nth(1));
    status.and_then(|status| status.parse().ok()).ok_or_else(|| io::Error::other("no HTTP status"))
}

/// A loopback address that nobody listens on, outside the kernel's own range and not in `taken`, where it is added.
fn free_port(random: &mut fastrand::Rng, taken: &mut Vec<SocketAddr>) -> io::Result<SocketAddr> {
    let (kernel_first, _) = host::ephemeral_ports();
    let last = kernel_first.saturating_sub(1).max(PORT_MIN);
    for _ in 0..PORT_DRAWS_MAX {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, random.u16(PORT_MIN..=last)));
        if !taken.contains(&address) && TcpListener::bind(address).is_ok() {
            taken.push(address);
            return Ok(address);
        }
    }
    Err(io::Error::other(format!("no free port between {PORT_MIN} and {last}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_lie_outside_the_kernels_range_and_can_be_bound() {
        let mut taken = Vec::new();
        let mut draw = || free_port(&mut fastrand::Rng::with_seed(7), &mut taken).unwrap();
        let (first, second) = (draw(), draw());
        assert_ne!(first, second, "the same draw twice");
        assert!(first.port() < host::ephemeral_ports().0.max(PORT_MIN + 1));
        TcpListener::bind(first).unwrap();
    }

    #[test]
    fn the_status_of_healthz_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").unwrap();
        });
        assert_eq!(healthz(admin).unwrap(), 503);
        server.join().unwrap();
    }

    #[test]
    fn the_values_of_a_metric_are_read_with_their_labels() {
        let text = "# HELP x_total y\nx_total{shard=\"0\"} 3\nx_total{shard=\"1\"} 4.5\nx_total_more 1\nplain 7\n";
        let all: Vec<_> = values_of(text, "x_total").collect();
        assert_eq!(all, [("shard=\"0\"", 3.0), ("shard=\"1\"", 4.5)]);
        assert_eq!(values_of(text, "plain").collect::<Vec<_>>(), [("", 7.0)]);
    }

    #[test]
    fn a_missing_binary_is_told_by_name() {
        let address = "127.0.0.1:1".parse().unwrap();
        let error = Server::new("hawser-nothing", Path::new("."), address, address);
        assert!(error.unwrap_err().to_string().starts_with("hawser-nothing is not in"));
    }
}
