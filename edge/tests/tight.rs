//! An edge whose ring, buffers and tables are far too small for what comes: slower, and nothing else. Real sockets on a
//! real ring.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::pin::pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use hawser_edge::command::Command;
use hawser_edge::config::Config;
use hawser_edge::plan::{Plan, Ring};
use hawser_edge::probe::Kernel;
use hawser_edge::server::Edge;
use hawser_edge::watch;
use tokio::sync::oneshot;

/// Longest that any single thing may take; all of them take milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running edge, stopped at the end of its test.
struct Running(Option<Edge>);

impl Running {
    fn start(config: Config, change: impl FnOnce(&mut Plan)) -> Self {
        let config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            echo_path: Some("/echo".to_owned()),
            dev_auth: true,
            ..config
        };
        let mut plan = Plan::new(&config, &Kernel::read()).unwrap();
        change(&mut plan);
        Self(Some(Edge::start(config, &plan, None).unwrap()))
    }

    fn edge(&self) -> &Edge {
        self.0.as_ref().unwrap()
    }

    fn connect(&self) -> Client {
        Client::connect(self.edge().listen())
    }

    /// The value of a metric, by its whole name with labels.
    fn metric(&self, name: &str) -> u64 {
        let mut text = String::new();
        self.edge().state().render(&mut text);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Waits until a metric is what it should be.
    fn await_metric(&self, name: &str, is_right: impl Fn(u64) -> bool) {
        #[expect(clippy::disallowed_methods, reason = "a test waits for a real edge, with a bound")]
        for _ in 0..2000 {
            if is_right(self.metric(name)) {
                return;
            }
            std::thread::sleep(PATIENCE / 2000);
        }
        panic!("{name} stays at {}", self.metric(name));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(edge) = self.0.take() {
            edge.state().stop();
            let ended = edge.join();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

/// A blocking WebSocket client of the echo path.
struct Client(TcpStream);

impl Client {
    /// Connects and asks for the upgrade, without waiting for it.
    fn connect(address: SocketAddr) -> Self {
        Self::connect_to(address, "/echo")
    }

    fn connect_to(address: SocketAddr, path: &str) -> Self {
        // The executors of this process interrupt its system calls; what can, tries again by itself.
        let mut stream = loop {
            match TcpStream::connect(address) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                outcome => break outcome.unwrap(),
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: edge\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        Self(stream)
    }

    /// The whole head of the answer.
    fn answer(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            head.extend_from_slice(&byte);
        }
        String::from_utf8(head).unwrap()
    }

    fn upgraded(mut self) -> Self {
        let answer = self.answer();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        self
    }

    /// Sends a binary message of up to 125 bytes, masked with zeros (RFC 6455 section 5.2).
    fn say(&mut self, payload: &[u8]) {
        let mut frame = vec![0x82, 0x80 | payload.len() as u8, 0, 0, 0, 0];
        frame.extend_from_slice(payload);
        self.0.write_all(&frame).unwrap();
    }

    fn hears(&mut self, payload: &[u8]) {
        let mut frame = vec![0; 2 + payload.len()];
        self.0.read_exact(&mut frame).unwrap();
        assert_eq!(frame[..2], [0x82, payload.len() as u8]);
        assert_eq!(frame[2..], *payload);
    }
}

#[test]
fn with_four_buffers_and_a_queue_of_sixteen_every_message_of_hundreds_comes_back() {
    let edge = Running::start(Config::default(), |plan| {
        plan.shards = 1;
        plan.ring = Ring { submissions: 8, completions: 16, receive_buffers: 4, accepts: 2 };
    });
    let clients: Vec<Client> = (0..300).map(|_| edge.connect()).collect();
    let mut clients: Vec<Client> = clients.into_iter().map(Client::upgraded).collect();
    for round in 0..20u8 {
        // All of them before the first is heard: far more completions than fit the queue.
        clients.iter_mut().for_each(|client| client.say(&[round; 100]));
        clients.iter_mut().for_each(|client| client.hears(&[round; 100]));
    }
    assert!(edge.metric("edge_receive_buffers_empty_total") > 0, "the buffers never ran out");
    assert_eq!(edge.metric("edge_connections"), 300);
    assert_eq!(edge.metric("edge_closed_total{reason=\"socket_failed\"}"), 0);
}

#[test]
fn a_full_descriptor_table_keeps_clients_waiting_until_one_leaves() {
    let edge = Running::start(Config::default(), |plan| {
        plan.shards = 1;
        plan.sockets_a_shard = 10;
    });
    let mut here: Vec<Client> = (0..10).map(|_| edge.connect().upgraded()).collect();
    let waiting: Vec<Client> = (0..10).map(|_| edge.connect()).collect();
    here[0].say(b"still served");
    here[0].hears(b"still served");
    here.clear();
    for mut client in waiting.into_iter().map(Client::upgraded) {
        client.say(b"late");
        client.hears(b"late");
    }
    assert_eq!(edge.metric("edge_accept_failures_total"), 0);
}

#[test]
fn more_clients_than_connections_max_are_told_503_and_when_to_come_back() {
    let config = Config { connections_max: 40, ..Config::default() };
    let edge = Running::start(config, |plan| {
        plan.shards = 2;
        plan.connections_a_shard = 20;
    });
    let mut here: Vec<Client> = (0..40).map(|_| edge.connect().upgraded()).collect();
    for refused in 1..=10 {
        let answer = edge.connect().answer();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("\r\nRetry-After: "), "{answer}");
        assert_eq!(edge.metric("edge_refused_total{status=\"503\"}"), refused);
    }
    for client in &mut here {
        client.say(b"not in the way");
        client.hears(b"not in the way");
    }
    drop(here.pop());
    edge.await_metric("edge_connections", |held| held < 40);
    edge.connect().upgraded().say(b"room again");
}

/// Each takes the descriptor of one who has just left, whose stream may still be being shut on a thread of the kernel's.
#[test]
fn clients_who_are_refused_and_leave_at_once_take_nobodys_answer_with_them() {
    let edge = Running::start(Config { shards: Some(1), ..Config::default() }, |_| {});
    let listen = edge.edge().listen();
    let clients: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                for _ in 0..250 {
                    let mut client = Client::connect_to(listen, "/nowhere");
                    let answer = client.answer();
                    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
}

/// Connects `clients`, hears each of them, and returns what each of eight shards holds.
fn spread(edge: &Running, clients: usize) -> Vec<u64> {
    let mut clients: Vec<Client> = (0..clients).map(|_| edge.connect().upgraded()).collect();
    for client in &mut clients {
        client.say(b"here");
        client.hears(b"here");
    }
    let held: Vec<u64> = (0..8)
        .map(|shard| edge.metric(&format!("edge_shard_connections{{shard=\"{shard}\"}}")))
        .collect();
    assert_eq!(held.iter().sum::<u64>(), clients.len() as u64);
    held
}

fn range(held: &[u64]) -> u64 {
    held.iter().max().unwrap() - held.iter().min().unwrap()
}

#[test]
fn shards_that_share_a_core_take_turns_and_stay_even() {
    let edge = Running::start(Config::default(), |plan| {
        (plan.shards, plan.cores) = (8, 1);
        // Those in the ring when a turn ends are still taken.
        plan.ring.accepts = 8;
    });
    let held = spread(&edge, 800);
    assert!(range(&held) <= 40, "{held:?}");
    assert_eq!(edge.metric("edge_passed_total"), 0);
}

#[test]
fn shards_that_the_kernel_fills_unevenly_pass_sockets_on_and_those_work() {
    // By chance the kernel is even enough that nobody passes anything: one time in some twenty.
    let passed = (0..4).find_map(|_| {
        let edge = Running::start(Config::default(), |plan| (plan.shards, plan.cores) = (8, 8));
        let held = spread(&edge, 4000);
        assert!(range(&held) <= 64, "{held:?}");
        Some(edge.metric("edge_passed_total")).filter(|passed| *passed > 0)
    });
    assert!(passed.is_some(), "the kernel alone was this even four times");
}

#[test]
fn a_flood_of_pings_that_nobody_reads_the_answers_of_is_bounded_and_answered_when_somebody_does() {
    let edge = Running::start(Config::default(), |plan| plan.shards = 1);
    let (mut flood, mut other) = (edge.connect().upgraded(), edge.connect().upgraded());
    let ping = |number: u32| {
        let mut frame = vec![0x89, 0x80 | 125, 0, 0, 0, 0];
        frame.extend_from_slice(&number.to_be_bytes());
        frame.resize(6 + 125, 0x55);
        frame
    };
    flood.0.set_nonblocking(true).unwrap();
    let (mut waiting, mut pings, mut sent_bytes) = (Vec::new(), 0, 0);
    // Until the edge has stopped reading for long: its answers fill every buffer on their way.
    let mut refused = 0;
    while refused < 200 {
        if waiting.is_empty() {
            waiting = ping(pings);
            pings += 1;
        }
        match flood.0.write(&waiting) {
            Ok(bytes) => {
                waiting.drain(..bytes);
                (sent_bytes, refused) = (sent_bytes + bytes, 0);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                refused += 1;
                other.say(b"not in the way");
                other.hears(b"not in the way");
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("{error} after {sent_bytes} bytes"),
        }
    }
    assert_eq!(edge.metric("edge_connections"), 2);
    flood.0.set_nonblocking(false).unwrap();
    for number in 0..pings - 1 {
        let mut pong = [0; 2 + 125];
        flood.0.read_exact(&mut pong).unwrap();
        assert_eq!((pong[0], &pong[2..6]), (0x8A, &number.to_be_bytes()[..]));
    }
}

#[test]
fn everybody_leaving_at_once_leaves_nobody_behind() {
    let edge = Running::start(Config::default(), |plan| plan.shards = 2);
    for _ in 0..3 {
        let clients: Vec<Client> = (0..1000).map(|_| edge.connect().upgraded()).collect();
        assert_eq!(edge.metric("edge_connections"), 1000);
        drop(clients);
        edge.await_metric("edge_connections", |held| held == 0);
    }
    assert_eq!(edge.metric("edge_closed_total{reason=\"vanished\"}"), 3000);
}

/// Whoever is woken by it stands still until the test lets him go.
struct Trap {
    caught: mpsc::Sender<()>,
    release: Mutex<mpsc::Receiver<()>>,
}

impl Wake for Trap {
    fn wake(self: Arc<Self>) {
        self.caught.send(()).unwrap();
        // An error lets go, too: the test has ended.
        let _ = self.release.lock().unwrap().recv();
    }
}

#[test]
fn a_shard_that_stands_still_is_noticed_and_one_that_sleeps_is_not() {
    let config = Config { shards: Some(3), ..Config::default() };
    let edge = Running::start(config, |_| {});
    let (reports, reported) = mpsc::channel();
    watch::start(edge.edge().state(), Duration::from_secs(1), move |stuck: &[u16]| {
        // The thread outlives the test.
        let _ = reports.send(stuck.to_vec());
    })
    .unwrap();
    let report = || reported.recv_timeout(PATIENCE).unwrap();
    for _ in 0..3 {
        assert_eq!(report(), [0; 0], "nobody is stuck who sleeps");
    }

    let ((caught, is_caught), (release, released)) = (mpsc::channel(), mpsc::channel());
    let trap = Waker::from(Arc::new(Trap { caught, release: Mutex::new(released) }));
    let (answer, answered) = oneshot::channel();
    let mut answered = pin!(answered);
    let pending = answered.as_mut().poll(&mut Context::from_waker(&trap));
    assert!(pending.is_pending());
    edge.edge().state().command(1, Command::List { first: 0, answer }).unwrap();
    is_caught.recv_timeout(PATIENCE).unwrap();
    let noticed = (0..4).map(|_| report()).find(|stuck| !stuck.is_empty());
    assert_eq!(noticed, Some(vec![1]));
    assert_eq!(edge.metric("edge_shards_stuck"), 1);

    release.send(()).unwrap();
    assert!((0..4).any(|_| report().is_empty()), "it turns again");
}
