//! Starts routers, and speaks to them as an edge does.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hawser_proto::framing::{LENGTH_BYTES, begin_frame, finish_frame, first_frame};
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::link::*;
use prost::Message as _;

/// How long anything that must happen may take.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A router process on a folder. It is killed when dropped.
pub struct Router {
    child: Child,
    socket: PathBuf,
    /// All places that it listens at.
    listen: String,
    admin: String,
    /// Of the server API; empty where it is not served.
    pub api: String,
}

impl Router {
    /// Starts a router on `folder` and waits until it serves.
    pub fn start(folder: &Path, arguments: &[&str]) -> Self {
        let socket = folder.join("link.sock");
        let mut child = command(folder, &socket, arguments).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (to_us, from_it) = mpsc::channel();
        // Reads on until the process ends, so that it never blocks on its log.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                eprintln!("  router: {line}");
                let _ = to_us.send(line);
            }
        });
        let deadline = Instant::now() + DEADLINE;
        loop {
            let line = from_it
                .recv_timeout(deadline - Instant::now())
                .expect("the router ended, or did not say that it serves");
            if line.contains("serving") {
                let value = |key: &str| line.split_once(key)?.1.split('"').nth(1);
                let (listen, admin) = (value("listen=").unwrap(), value("admin=").unwrap());
                let api = value("api=").unwrap_or_default().to_owned();
                return Self {
                    child,
                    socket,
                    listen: listen.to_owned(),
                    admin: admin.to_owned(),
                    api,
                };
            }
        }
    }

    /// Starts a router that is not expected to serve; gives its exit status and what it said.
    pub fn run(folder: &Path, arguments: &[&str]) -> (ExitStatus, String) {
        let output = command(folder, &folder.join("link.sock"), arguments).output().unwrap();
        (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Asks it to stop, and waits until it has.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the router does not stop");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// A new link that said Hello and told that it has no connections.
    pub fn edge(&self, name: &str, epoch: u64) -> Edge {
        self.link().joined(name, epoch)
    }

    /// The same over TCP, where the router was told to listen there too.
    pub fn tcp_edge(&self, name: &str, epoch: u64) -> Edge {
        let stream = TcpStream::connect(self.tcp_address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Edge { stream: Box::new(stream), received: Vec::new() }.joined(name, epoch)
    }

    /// Where it listens over TCP.
    pub fn tcp_address(&self) -> &str {
        let mut addresses = self.listen.split(',');
        addresses.find(|address| !address.starts_with("unix:")).unwrap()
    }

    /// A new link that has said nothing.
    pub fn link(&self) -> Edge {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Edge { stream: Box::new(stream), received: Vec::new() }
    }

    /// Answers a GET on the admin address: status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, body.to_owned())
    }

    /// The value of a metric.
    pub fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no metric {name} in {text}")).parse().unwrap()
    }

    /// Waits until `holds`.
    pub fn wait_until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "did not happen: {what}");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(folder: &Path, socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hawser-router"));
    command
        .arg("--listen")
        .arg(format!("unix:{}", socket.display()))
        .args(["--admin", "127.0.0.1:0", "--data-dir"])
        .arg(folder.join("data"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

pub fn hello(name: &str, epoch: u64) -> Hello {
    Hello {
        edge_id: name.to_owned(),
        epoch,
        region: String::new(),
        version: "test".to_owned(),
        protocol: 1,
        shards: 1,
    }
}

pub fn register(connection: u64, user: &str, device: &str, cursor: Option<u64>) -> Register {
    Register {
        connection,
        user: user.to_owned(),
        device: device.to_owned(),
        cursor,
        connected_at_ms: 1,
        client_kind: "test".to_owned(),
        client_version: "1".to_owned(),
        answer: true,
        snapshot: false,
    }
}

pub fn message(ticket: u64, from: &str, to: &str, id: &str, text: &str) -> Send {
    Send {
        connection: 1,
        ticket,
        from: from.to_owned(),
        client_message_id: id.to_owned(),
        to_user: to.to_owned(),
        to_group: String::new(),
        payload: text.as_bytes().to_vec().into(),
        expires_at_ms: 0,
    }
}

/// One link, seen from the edge.
pub struct Edge {
    stream: Box<dyn Stream>,
    received: Vec<Outbound>,
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

impl Edge {
    fn joined(mut self, name: &str, epoch: u64) -> Self {
        self.say(Inbound::Hello(hello(name, epoch)));
        self.say(Inbound::SnapshotEnd(SnapshotEnd { shard: 0 }));
        let Outbound::HelloAck(ack) = self.hear() else { panic!("no HelloAck") };
        assert_eq!(ack.refused, "");
        self
    }

    pub fn say(&mut self, message: Inbound) {
        self.say_all([message]);
    }

    pub fn say_all(&mut self, messages: impl IntoIterator<Item = Inbound>) {
        let messages = messages.into_iter().map(|message| EdgeMessage { message: Some(message) });
        let batch = EdgeBatch { messages: messages.collect() };
        let mut bytes = Vec::new();
        let mark = begin_frame(&mut bytes);
        batch.encode(&mut bytes).unwrap();
        finish_frame(&mut bytes, mark);
        self.say_bytes(&bytes);
    }

    pub fn say_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next message, heartbeats left out.
    pub fn hear(&mut self) -> Outbound {
        self.try_hear().expect("the link ended")
    }

    /// The next message, heartbeats left out; `None` when the link has ended.
    pub fn try_hear(&mut self) -> Option<Outbound> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if !self.received.is_empty() {
                match self.received.remove(0) {
                    Outbound::Heartbeat(_) => continue,
                    message => return Some(message),
                }
            }
            assert!(Instant::now() < deadline, "nothing came");
            self.received = self.read_frame()?;
        }
    }

    fn read_frame(&mut self) -> Option<Vec<Outbound>> {
        let mut frame = vec![0; LENGTH_BYTES];
        match self.stream.read_exact(&mut frame) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("nothing came"),
            Err(_) => return None,
        }
        let length = u32::from_le_bytes(*frame.first_chunk().unwrap());
        frame.resize(LENGTH_BYTES + length as usize, 0);
        self.stream.read_exact(&mut frame[LENGTH_BYTES..]).ok()?;
        let body = first_frame(&frame).unwrap().unwrap();
        let batch = RouterBatch::decode(body).unwrap();
        Some(batch.messages.into_iter().filter_map(|message| message.message).collect())
    }

    pub fn hear_send_ack(&mut self) -> SendAck {
        match self.hear() {
            Outbound::SendAck(ack) => ack,
            other => panic!("wanted SendAck, got {other:?}"),
        }
    }

    pub fn hear_registered(&mut self) -> Registered {
        match self.hear() {
            Outbound::Registered(registered) => registered,
            other => panic!("wanted Registered, got {other:?}"),
        }
    }

    pub fn hear_deliver(&mut self) -> Deliver {
        match self.hear() {
            Outbound::Deliver(deliver) => deliver,
            other => panic!("wanted Deliver, got {other:?}"),
        }
    }

    /// Sends one message and waits for its answer.
    pub fn send(&mut self, send: Send) -> SendAck {
        let ticket = send.ticket;
        self.say(Inbound::Send(send));
        let ack = self.hear_send_ack();
        assert_eq!(ack.ticket, ticket);
        ack
    }

    pub fn register(&mut self, register: Register) -> Registered {
        self.say(Inbound::Register(register));
        self.hear_registered()
    }

    pub fn ack(&mut self, connection: u64, user: &str, sequence: u64) {
        let user = user.to_owned();
        self.say(Inbound::Ack(Ack { connection, user, sequence, read_sequence: None }));
    }
}
