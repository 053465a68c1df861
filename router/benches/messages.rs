//! What a durable one-to-one message costs a router with the engine taken out: link, owner, Hub, committer, on a log in memory,
//! with a store that takes checkpoints and keeps nothing.
//!
//! `cargo bench -p hawser-router --bench messages -- [ROUNDS [SECONDS [PAYLOAD_BYTES]]]` runs the parts that the process runs, on one
//! runtime thread, and a client thread that plays the edge over a Unix socket: `Send`, its `SendAck`, `Deliver` to the registered
//! recipient, `Ack`. Prints messages per CPU second of everything but the client's thread, kernel included.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hawser_proto::framing::{LENGTH_BYTES, begin_frame, finish_frame, first_frame};
use hawser_proto::view::link::{
    Ack, Batch, EdgeMessage, Hello, Register, RouterMessage, Send, SnapshotEnd,
};
use hawser_router::edges::Edges;
use hawser_router::health::Health;
use hawser_router::hub::{Hub, HubConfig};
use hawser_router::link::Links;
use hawser_router::metrics::Metrics;
use hawser_router::owner::{Answer, Owner, SaveRequest, Ways};
use hawser_router::queue::Opener as _;
use hawser_router::queue::committer::Committer;
use hawser_router::queue::memory::MemoryLog;
use hawser_router::queue::{Offset, PartitionId};
use hawser_router::record::SendKey;
use hawser_router::store::{Accepted, Checkpoint, Dumped, StatePlace, Store, StoreError};
use rustix::time::ClockId;
use tokio::sync::mpsc;

const PARTITIONS: u16 = 64;
const USERS: u64 = 1_000;
/// Sends without an answer at a time: what a few hundred busy connections have together.
const IN_FLIGHT: u64 = 1_000;

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let rounds = numbers.next().unwrap_or(5);
    let seconds = Duration::from_secs(numbers.next().unwrap_or(4));
    let payload = vec![7; numbers.next().unwrap_or(200) as usize];
    let mut client = Client::new(start_router(), payload);
    client.register_all();
    client.run(Duration::from_secs(1));
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let (cpu, messages) = (others_cpu(), client.acknowledged);
        client.run(seconds);
        let (cpu, messages) = (others_cpu() - cpu, client.acknowledged - messages);
        let rate = messages as f64 / cpu.as_secs_f64();
        println!("{messages:>9} messages {:>7.2} us each {rate:>9.0} a CPU second", 1e6 / rate);
        rates.push(rate);
    }
    rates.sort_by(f64::total_cmp);
    println!("median {:.0} messages a CPU second", rates[rates.len() / 2]);
    // The router's threads end with the process.
    std::process::exit(0);
}

/// Starts the parts of a router; answers the edge's end of a link to them.
fn start_router() -> UnixStream {
    let store: Arc<dyn Store> = Arc::new(Nowhere);
    let config = HubConfig {
        window_messages: 64,
        inbox_messages_max: 10_000,
        inbox_age_max_ms: 1_000_000_000,
        memory_bytes_max: 4 * 1024 * 1024,
        record_bytes_max: usize::MAX,
        trace_steps_max: 0,
        tells_registry: false,
    };
    let hub = |partition| Hub::new(partition, config.clone(), Arc::clone(&store)).unwrap();
    let hubs: Vec<Hub> = (0..PARTITIONS).map(hub).collect();
    let (committer, requests) = blocking::channel();
    let (saver, saves) = blocking::channel();
    let (owner, inbox) = mpsc::channel(64);
    let (answers, answered) = mpsc::unbounded_channel();
    let ways = Ways {
        owners: vec![owner],
        committer,
        saver,
        keeper: mpsc::unbounded_channel().0,
        view: None,
        metrics: Arc::new(Metrics::new(1)),
        partitions: PARTITIONS,
    };
    let queue_answers = answers.clone();
    let mut log = MemoryLog::new(PARTITIONS);
    let committing = Committer {
        queue: Some(log.open().unwrap()),
        opener: Box::new(log),
        expected: vec![Some(1); usize::from(PARTITIONS)],
        owners: 1,
        is_shared: false,
        replies: Box::new(move |_, reply| drop(queue_answers.send(Answer::Queue(reply)))),
        free_bytes: Box::new(|| None),
        disk_free_min: 0,
        commit_interval: Duration::ZERO,
        health: Arc::new(Health::default()),
        metrics: Arc::new(Metrics::new(1)),
        clock: Box::new(now),
    };
    std::thread::spawn(move || committing.run(&requests));
    std::thread::spawn(move || {
        while let Ok(SaveRequest::Write(_, checkpoint)) = saves.recv() {
            let saved: Result<(), StoreError> = store.commit(&checkpoint);
            let _ = answers.send(Answer::Saved(checkpoint.partition, saved));
        }
    });
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let links = Arc::new(Links {
                ways: ways.clone(),
                edges: Edges::default(),
                router_id: "router-1".to_owned(),
                epoch: 1,
                lease: Duration::from_secs(600),
                window_messages: 64,
                ownership: None,
            });
            let owning = tokio::spawn(Owner::new(0, hubs, ways).run(inbox, answered));
            let (reader, writer) = tokio::net::UnixStream::from_std(theirs).unwrap().into_split();
            links.serve(Box::new(reader), Box::new(writer), "bench".to_owned()).await;
            owning.abort();
        });
    });
    ours
}

/// A store that forgets: users of this benchmark stay in memory.
struct Nowhere;

impl Store for Nowhere {
    fn seed(&self, _: PartitionId) -> u64 {
        7
    }

    fn place(&self, _: PartitionId) -> Result<Option<StatePlace>, StoreError> {
        Ok(None)
    }

    fn applied(&self, _: PartitionId) -> Result<Offset, StoreError> {
        Ok(0)
    }

    fn inbox(&self, _: PartitionId, _: &str) -> Result<Option<Bytes>, StoreError> {
        Ok(None)
    }

    fn users_after(&self, _: PartitionId, _: &str, _: usize) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    fn messages(
        &self,
        _: PartitionId,
        _: &str,
        _: Range<u64>,
        _: usize,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        Ok(Vec::new())
    }

    fn send(&self, _: PartitionId, _: &SendKey, _: i64) -> Result<Option<Accepted>, StoreError> {
        Ok(None)
    }

    fn commit(&self, _: &Checkpoint) -> Result<(), StoreError> {
        Ok(())
    }

    fn forget_sends(&self, _: i64) -> Result<(), StoreError> {
        Ok(())
    }

    fn wipe(&self, _: PartitionId) -> Result<(), StoreError> {
        Ok(())
    }

    fn dump(
        &self,
        _: PartitionId,
        _: usize,
        _: &mut dyn FnMut(Dumped) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        Ok(())
    }
}

/// CPU time of the process but for this thread.
fn others_cpu() -> Duration {
    let cpu = |clock| {
        let time = rustix::time::clock_gettime(clock);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    cpu(ClockId::ProcessCPUTime) - cpu(ClockId::ThreadCPUTime)
}

/// Plays an edge whose users send to each other.
struct Client {
    stream: UnixStream,
    payload: Vec<u8>,
    input: Vec<u8>,
    sent: u64,
    answered: u64,
    acknowledged: u64,
    registered: u64,
}

impl Client {
    fn new(stream: UnixStream, payload: Vec<u8>) -> Self {
        let input = Vec::new();
        Self { stream, payload, input, sent: 0, answered: 0, acknowledged: 0, registered: 0 }
    }

    fn register_all(&mut self) {
        let hello =
            Hello { edge_id: "bench", epoch: 1, protocol: 1, shards: 1, ..Hello::default() };
        self.say(|out| {
            EdgeMessage::Hello(hello).write(out);
            EdgeMessage::SnapshotEnd(SnapshotEnd { shard: 0 }).write(out);
            for connection in 0..USERS {
                let user = user(connection);
                let register = Register {
                    connection,
                    user: &user,
                    device: "d",
                    answer: true,
                    ..Register::default()
                };
                EdgeMessage::Register(register).write(out);
            }
        });
        while self.registered < USERS {
            self.turn(false);
        }
    }

    /// Keeps sends in flight for so long, then waits until all are delivered and acknowledged.
    fn run(&mut self, time: Duration) {
        let end = now() + time;
        self.turn(true);
        while now() < end {
            self.turn(true);
        }
        while self.acknowledged < self.sent {
            self.turn(false);
        }
    }

    /// Sends what is allowed to, reads what has come, acknowledges it.
    fn turn(&mut self, send: bool) {
        let mut output = Vec::with_capacity(256 * 1024);
        let mark = begin_frame(&mut output);
        let head = output.len();
        while send && self.sent - self.answered < IN_FLIGHT {
            self.sent += 1;
            let (from, to) = (user(self.sent % USERS), user((self.sent * 7 + 1) % USERS));
            let id = self.sent.to_string();
            let send = Send {
                connection: self.sent % USERS,
                ticket: self.sent,
                from: &from,
                to_user: &to,
                client_message_id: &id,
                payload: &self.payload,
                ..Send::default()
            };
            EdgeMessage::Send(send).write(&mut output);
        }
        if output.len() > head {
            finish_frame(&mut output, mark);
            self.stream.write_all(&output).unwrap();
        }
        if self.acknowledged < self.sent || self.registered < USERS {
            self.read();
        }
    }

    fn read(&mut self) {
        let mut bytes = vec![0; 256 * 1024];
        let count = self.stream.read(&mut bytes).unwrap();
        assert!(count > 0, "the router closed the link");
        self.input.extend_from_slice(&bytes[..count]);
        let input = std::mem::take(&mut self.input);
        let mut taken = 0;
        let mut acks = Vec::new();
        while let Some(body) = first_frame(&input[taken..]).unwrap() {
            let mut batch = Batch::new(body);
            while let Some(message) = batch.next_message().unwrap() {
                match RouterMessage::read(message).unwrap() {
                    RouterMessage::SendAck(ack) => {
                        assert!(ack.failure.is_none(), "{ack:?}");
                        self.answered += 1;
                    }
                    RouterMessage::Registered(_) => self.registered += 1,
                    RouterMessage::Deliver(deliver) => {
                        acks.push((deliver.connection, deliver.sequence));
                    }
                    RouterMessage::HelloAck(_)
                    | RouterMessage::Receipt(_)
                    | RouterMessage::Signal(_)
                    | RouterMessage::Gap(_)
                    | RouterMessage::Disconnect(_)
                    | RouterMessage::Heartbeat(_)
                    | RouterMessage::Ownership(_)
                    | RouterMessage::Relay(_)
                    | RouterMessage::Unknown => {}
                }
            }
            taken += LENGTH_BYTES + body.len();
        }
        self.input = input[taken..].to_vec();
        self.acknowledged += acks.len() as u64;
        if !acks.is_empty() {
            self.say(|out| {
                for (connection, sequence) in acks {
                    let user = user(connection);
                    let ack = Ack { connection, user: &user, sequence, ..Ack::default() };
                    EdgeMessage::Ack(ack).write(out);
                }
            });
        }
    }

    fn say(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut output = Vec::new();
        let mark = begin_frame(&mut output);
        write(&mut output);
        finish_frame(&mut output, mark);
        self.stream.write_all(&output).unwrap();
    }
}

fn user(number: u64) -> String {
    format!("user-{number}")
}

#[expect(clippy::disallowed_methods, reason = "a benchmark is the rim")]
fn now() -> Instant {
    Instant::now()
}
