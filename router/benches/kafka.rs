//! What the engine `kafka` makes of the brokers, beside its own client alone.
//!
//! `cargo bench -p hawser-router --bench kafka -- HOST:PORT,.. REPLICAS ROUNDS SECONDS [BATCH]` appends batches of 1,000 (or
//! BATCH) records of 200 bytes over 64 partitions, one batch after the other, with acks=all. In every round each way has its
//! turn:
//!
//! - `engine`: [`Queue::append`];
//! - `client`: an idempotent rdkafka producer with its own defaults, which sends a batch and flushes;
//! - `stream`: the same producer without a pause between batches, at most 16 batches unreported.
//!
//! At last one partition is read back. A line a turn: records a second, and the CPU of this process (kernel included) for each.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use hawser_router::config::kafka::KafkaConfig;
use hawser_router::limits::REPLAY_BYTES_MAX;
use hawser_router::queue::kafka::KafkaEngine;
use hawser_router::queue::{Batch, Log, Opener as _, Queue};
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};

const PARTITIONS: u16 = 64;
const RECORD_BYTES: usize = 200;
const UNREPORTED_BATCHES_MAX: usize = 16;

#[derive(Parser)]
struct Arguments {
    brokers: String,
    replicas: u16,
    rounds: usize,
    seconds: u64,
    #[arg(default_value = "1000")]
    batch: usize,
    /// What Cargo says to every benchmark.
    #[arg(long)]
    bench: bool,
}

#[derive(Parser)]
struct Knobs {
    #[command(flatten)]
    kafka: KafkaConfig,
}

fn main() {
    let Ok(arguments) = Arguments::try_parse() else {
        println!(
            "give HOST:PORT,.. REPLICAS ROUNDS SECONDS [BATCH] of brokers that run, such as those of services/kafka"
        );
        return;
    };
    let mut config = Knobs::parse_from(["kafka"]).kafka;
    config.kafka_brokers = arguments.brokers.split(',').map(str::to_owned).collect();
    config.kafka_replicas = arguments.replicas;
    let cluster = format!("bench-{}", std::process::id());
    let engine = KafkaEngine::connect(&config, &cluster, PARTITIONS).unwrap();
    let mut queue = engine.opener(Log::Messages).open().unwrap();
    let client = Client::new(&arguments.brokers, format!("{cluster}.messages"));
    let batch = Batch { records: records(arguments.batch), durable: true };
    let mut offsets = Vec::new();
    let turn = Duration::from_secs(arguments.seconds);
    for round in 0..=arguments.rounds {
        // The first is for warming up.
        let name = |way| format!("{way}{}", if round == 0 { " (warm-up)" } else { "" });
        measure(&name("engine"), turn, &batch, || queue.append(&batch, &mut offsets).unwrap());
        measure(&name("client"), turn, &batch, || {
            client.send(&batch);
            client.0.flush(Duration::from_secs(30)).unwrap();
        });
        measure(&name("stream"), turn, &batch, || {
            client.send(&batch);
            while client.0.context().0.load(Ordering::Relaxed)
                > UNREPORTED_BATCHES_MAX * arguments.batch
            {
                std::thread::park_timeout(Duration::from_millis(1));
            }
        });
        client.0.flush(Duration::from_secs(30)).unwrap();
    }
    replay(&mut *queue);
}

/// Reads a partition from its first record on, as a takeover does.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures by the clock")]
fn replay(queue: &mut dyn Queue) {
    let (begun, cpu, mut from, mut records) = (Instant::now(), cpu(), 1, 0_u32);
    let mut page = Vec::new();
    loop {
        queue.read(0, from, REPLAY_BYTES_MAX, &mut page).unwrap();
        let Some(last) = page.last() else { break };
        from = last.offset + 1;
        records += u32::try_from(page.len()).unwrap();
        page.clear();
    }
    println!(
        "{records} records of one partition read in {:.2} s, {:.2} us CPU a record",
        begun.elapsed().as_secs_f64(),
        (self::cpu() - cpu).as_secs_f64() * 1e6 / f64::from(records)
    );
}

fn records(count: usize) -> Vec<(u16, Bytes)> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut record =
        || (random.u16(..PARTITIONS), (0..RECORD_BYTES).map(|_| random.u8(..)).collect());
    (0..count).map(|_| record()).collect()
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures by the clock")]
fn measure(name: &str, turn: Duration, batch: &Batch, mut append: impl FnMut()) {
    let (begun, cpu, mut batches, mut slowest) = (Instant::now(), cpu(), 0, Duration::ZERO);
    while begun.elapsed() < turn {
        let at = Instant::now();
        append();
        slowest = slowest.max(at.elapsed());
        batches += 1;
    }
    let records = f64::from(batches) * batch.records.len() as f64;
    println!(
        "{name:16} {:9.0} records/s {:6.2} us CPU a record, {:5.1} ms a batch, slowest {:6.1} ms",
        records / begun.elapsed().as_secs_f64(),
        (self::cpu() - cpu).as_secs_f64() * 1e6 / records,
        begun.elapsed().as_secs_f64() * 1e3 / f64::from(batches),
        slowest.as_secs_f64() * 1e3,
    );
}

fn cpu() -> Duration {
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(usage).unwrap()
}

/// rdkafka alone; counts what is not reported.
struct Client(ThreadedProducer<Unreported>, String);

#[derive(Default)]
struct Unreported(AtomicUsize);

impl ClientContext for Unreported {}

impl ProducerContext for Unreported {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        result.as_ref().map_err(|(error, _)| error.clone()).unwrap();
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Client {
    fn new(brokers: &str, topic: String) -> Self {
        let mut settings = ClientConfig::new();
        settings.set("bootstrap.servers", brokers);
        settings.set("acks", "all");
        settings.set("enable.idempotence", "true");
        settings.set("queue.buffering.max.messages", "0");
        Self(settings.create_with_context(Unreported::default()).unwrap(), topic)
    }

    fn send(&self, batch: &Batch) {
        self.0.context().0.fetch_add(batch.records.len(), Ordering::Relaxed);
        for (partition, bytes) in &batch.records {
            let record =
                BaseRecord::<(), [u8]>::to(&self.1).partition((*partition).into()).payload(bytes);
            self.0.send(record).map_err(|(error, _)| error).unwrap();
        }
    }
}
