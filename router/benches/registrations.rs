//! What a registered connection costs a router in CPU and memory, measured on the real process.
//!
//! `cargo bench -p hawser-router --bench registrations -- 200000` starts a router, speaks to it as an edge
//! does over a Unix socket, and prints a line a stage: CPU of the router's process (kernel included) and its
//! anonymous memory over what it had before the first connection, both divided by the connections.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hawser_proto::framing::{LENGTH_BYTES, begin_frame, finish_frame};
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::link::{
    EdgeBatch, EdgeMessage, Hello, Register, RouterBatch, Send, SnapshotEnd, Unregister,
};
use prost::Message as _;

/// Messages in a frame, about what a shard gathers in a storm.
const FRAME_MESSAGES: u64 = 500;
/// Registers without an answer at a time.
const UNANSWERED_MAX: u64 = 20_000;
const STEP: Duration = Duration::from_millis(10);
const DEADLINE: Duration = Duration::from_secs(300);

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let connections: u64 = numbers.next().unwrap_or(100_000);
    let settle = Duration::from_secs(numbers.next().unwrap_or(45));
    let folder = tempfile::tempdir().unwrap();
    let mut router = Router::start(folder.path());
    let mut bench = Bench { connections, base_bytes: router.anonymous_bytes() };
    println!("{connections} connections; {} KiB anonymous before", bench.base_bytes / 1024);
    println!("stage                          seconds  CPU us each  bytes each");

    let mut edge = router.edge("edge-1", 1);
    bench.stage(&router, "connect, new devices", || edge.register_all(connections, true));
    bench.stage(&router, "rest", || rest(settle));
    bench.stage(&router, "leave", || {
        edge.unregister_all(connections);
        router.wait_for_connections(0);
    });
    bench.stage(&router, "connect again, unrecorded", || edge.register_all(connections, true));
    edge.unregister_all(connections);
    router.wait_for_connections(0);
    bench.stage(&router, "rest until all are recorded", || {
        router.wait_for("router_devices_departed", 0);
    });
    bench.stage(&router, "connect again, recorded", || edge.register_all(connections, true));

    drop(router);
    drop(edge);
    router = Router::start(folder.path());
    edge = router.edge("edge-1", 1);
    bench.stage(&router, "snapshot after SIGKILL", || {
        edge.register_all(connections, false);
        router.wait_for_connections(connections);
    });
    bench.stage(&router, "rest", || rest(settle));
    let mut slowest = Duration::ZERO;
    let mut next = router.edge("other", 1);
    bench.stage(&router, "edge gone, another epoch", || {
        let again = router.edge("edge-1", 2);
        slowest = next.deliver_until(|| router.connections() <= 1);
        drop(again);
    });
    println!("slowest delivery meanwhile: {:.1} ms", slowest.as_secs_f64() * 1e3);
    bench.stage(&router, "rest", || rest(settle));

    edge = router.edge("edge-2", 1);
    bench.stage(&router, "connect, new devices", || edge.register_all(connections, true));
    let started = now();
    router.stop();
    println!("stopped, everything recorded, after {:.1} s", started.elapsed().as_secs_f64());
}

struct Bench {
    connections: u64,
    base_bytes: u64,
}

impl Bench {
    fn stage(&mut self, router: &Router, name: &str, mut run: impl FnMut()) {
        let (cpu, started) = (router.cpu(), now());
        run();
        let (cpu, seconds) = (router.cpu() - cpu, started.elapsed().as_secs_f64());
        let each = self.connections as f64;
        let bytes = router.anonymous_bytes().saturating_sub(self.base_bytes);
        println!(
            "{name:<30} {seconds:>7.1} {:>12.2} {:>11.0}",
            cpu.as_secs_f64() * 1e6 / each,
            bytes as f64 / each
        );
    }
}

/// A router process. It is killed when dropped.
struct Router {
    child: Child,
    socket: PathBuf,
    admin: String,
}

impl Router {
    fn start(folder: &Path) -> Self {
        let socket = folder.join("link.sock");
        let mut child = Command::new(env!("CARGO_BIN_EXE_hawser-router"))
            .arg("--listen")
            .arg(format!("unix:{}", socket.display()))
            .args(["--admin", "127.0.0.1:0", "--lease", "10m", "--data-dir"])
            .arg(folder.join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let serving = lines.by_ref().map_while(Result::ok).find(|line| line.contains("serving"));
        let serving = serving.expect("the router ended, or did not say that it serves");
        let admin = serving.split_once("admin=").unwrap().1.split('"').nth(1).unwrap().to_owned();
        // Reads on until the process ends, so that it never blocks on its log.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, socket, admin }
    }

    /// Asks it to stop, and waits until it has.
    fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    fn edge(&self, name: &str, epoch: u64) -> Edge {
        let mut edge =
            Edge { stream: UnixStream::connect(&self.socket).unwrap(), users: name.to_owned() };
        edge.stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let hello =
            Hello { edge_id: name.to_owned(), epoch, protocol: 1, shards: 1, ..Hello::default() };
        edge.say([Inbound::Hello(hello)].into_iter());
        edge.hear();
        edge
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }

    fn cpu(&self) -> Duration {
        let stat = self.proc("stat");
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }

    fn anonymous_bytes(&self) -> u64 {
        let rollup = self.proc("smaps_rollup");
        let line = rollup.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    fn connections(&self) -> u64 {
        self.metric("router_connections")
    }

    fn metric(&self, name: &str) -> u64 {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let line = answer.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
        line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn wait_for_connections(&self, count: u64) {
        self.wait_for("router_connections", count);
    }

    fn wait_for(&self, metric: &str, value: u64) {
        let started = now();
        while self.metric(metric) != value {
            assert!(started.elapsed() < DEADLINE, "{metric} {}", self.metric(metric));
            std::thread::park_timeout(STEP);
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One link, seen from the edge.
struct Edge {
    stream: UnixStream,
    /// What the ids of its users begin with.
    users: String,
}

impl Edge {
    /// Registers everybody: as they come, or as a snapshot that nobody answers.
    fn register_all(&mut self, connections: u64, answer: bool) {
        let (mut heard, users) = (0, self.users.clone());
        for first in (0..connections).step_by(FRAME_MESSAGES as usize) {
            let end = connections.min(first + FRAME_MESSAGES);
            self.say(
                (first..end).map(|number| Inbound::Register(register(&users, number, answer))),
            );
            while answer && end - heard > UNANSWERED_MAX {
                heard += self.hear_registered();
            }
        }
        while answer && heard < connections {
            heard += self.hear_registered();
        }
        if !answer {
            self.say([Inbound::SnapshotEnd(SnapshotEnd { shard: 0 })].into_iter());
        }
    }

    fn unregister_all(&mut self, connections: u64) {
        let users = self.users.clone();
        for first in (0..connections).step_by(FRAME_MESSAGES as usize) {
            let end = connections.min(first + FRAME_MESSAGES);
            self.say((first..end).map(|number| {
                Inbound::Unregister(Unregister { connection: number, user: user(&users, number) })
            }));
        }
    }

    /// Sends messages to a user on this link, one by one, until `done`. Answers the longest time from Send to
    /// Deliver.
    fn deliver_until(&mut self, done: impl Fn() -> bool) -> Duration {
        let me = Register {
            connection: 1,
            user: "me".into(),
            device: "d".into(),
            ..Register::default()
        };
        self.say([Inbound::Register(me)].into_iter());
        let (mut slowest, mut ticket) = (Duration::ZERO, 0);
        let mut looked_at = now();
        loop {
            ticket += 1;
            let send = Send {
                connection: 1,
                ticket,
                from: "me".into(),
                client_message_id: ticket.to_string(),
                to_user: "me".into(),
                ..Send::default()
            };
            let sent = now();
            self.say([Inbound::Send(send)].into_iter());
            let delivered = |message: &Outbound| matches!(message, Outbound::Deliver(_));
            while !self.hear().iter().any(delivered) {}
            slowest = slowest.max(sent.elapsed());
            let ack = hawser_proto::link::Ack {
                connection: 1,
                user: "me".into(),
                sequence: ticket,
                read_sequence: None,
            };
            self.say([Inbound::Ack(ack)].into_iter());
            if looked_at.elapsed() > STEP {
                looked_at = now();
                if done() {
                    return slowest;
                }
            }
        }
    }

    fn say(&mut self, messages: impl Iterator<Item = Inbound>) {
        let messages = messages.map(|message| EdgeMessage { message: Some(message) });
        let batch = EdgeBatch { messages: messages.collect() };
        let mut bytes = Vec::new();
        let mark = begin_frame(&mut bytes);
        batch.encode(&mut bytes).unwrap();
        finish_frame(&mut bytes, mark);
        self.stream.write_all(&bytes).unwrap();
    }

    fn hear(&mut self) -> Vec<Outbound> {
        let mut length = [0; LENGTH_BYTES];
        self.stream.read_exact(&mut length).unwrap();
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        self.stream.read_exact(&mut body).unwrap();
        let batch = RouterBatch::decode(&*body).unwrap();
        batch.messages.into_iter().filter_map(|message| message.message).collect()
    }

    fn hear_registered(&mut self) -> u64 {
        let heard = self.hear();
        heard.iter().filter(|message| matches!(message, Outbound::Registered(_))).count() as u64
    }
}

fn user(users: &str, number: u64) -> String {
    format!("{users}-{number:08}")
}

fn register(users: &str, number: u64, answer: bool) -> Register {
    Register {
        connection: number,
        user: user(users, number),
        device: format!("device-{number:08}"),
        cursor: (!answer).then_some(0),
        connected_at_ms: unix_ms(),
        client_kind: "hawser-bench".to_owned(),
        client_version: "0.1.0".to_owned(),
        answer,
        snapshot: !answer,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "nothing is awaited: memory and CPU at rest are measured"
)]
fn rest(duration: Duration) {
    std::thread::sleep(duration);
}

#[expect(clippy::disallowed_methods, reason = "a benchmark stands in for an edge")]
fn unix_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_millis() as i64
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn now() -> Instant {
    Instant::now()
}
