//! What the engine `nats` appends and reads in a second, beside what its client does alone, on real servers.
//!
//! `services/nats start FOLDER --nodes 3`, then `cargo bench -p hawser-router --bench nats -- FOLDER 5 4 1000` takes 5 rounds of 4 s
//! of each. In turns: batches of 1,000 records of 200 bytes over 64 partitions through the engine; the same 200 bytes published as
//! messages of their own to 64 streams, 1,000 of them on their way at any time. CPU is that of this process and of the servers.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]
#![allow(clippy::disallowed_methods, reason = "it measures time")]

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::context::PublishAckFuture;
use bytes::Bytes;
use clap::Parser as _;
use hawser_router::config::nats::NatsConfig;
use hawser_router::queue::nats::NatsEngine;
use hawser_router::queue::{Batch, Log, Opener as _, PartitionId, Queue};
use tokio::runtime::Runtime;

const PARTITIONS: u16 = 64;
const RECORD_BYTES: usize = 200;

#[derive(clap::Parser)]
struct Knobs {
    #[command(flatten)]
    nats: NatsConfig,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let Some(folder) = arguments.first().map(PathBuf::from) else {
        println!(
            "usage: cargo bench -p hawser-router --bench nats -- FOLDER [ROUNDS] [SECONDS] [RECORDS]"
        );
        return;
    };
    let rounds = arguments.get(1).map_or(5, |rounds| rounds.parse().unwrap());
    let length = Duration::from_secs(arguments.get(2).map_or(4, |length| length.parse().unwrap()));
    let batch_records = arguments.get(3).map_or(1_000, |records| records.parse().unwrap());
    let address = std::fs::read_to_string(folder.join("address")).unwrap();
    let servers = address.trim().split(',');
    let replicas = if servers.clone().count() >= 3 { "3" } else { "1" };
    let mut words = vec!["bench", "--nats-replicas", replicas];
    servers.clone().for_each(|server| words.extend(["--nats-url", server]));
    let config = Knobs::parse_from(words).nats;
    let mut bench = Bench::start(folder, config, address.trim(), batch_records);
    println!("{replicas} replicas; per record: CPU us of this process, CPU us of all servers");
    for round in 1..=rounds {
        bench.measure(round, "engine", length, Bench::append);
        bench.measure(round, "client", length, Bench::publish);
    }
    bench.measure(0, "read back", Duration::MAX, Bench::read);
}

struct Bench {
    folder: PathBuf,
    runtime: Runtime,
    context: jetstream::Context,
    engine: NatsEngine,
    cluster: String,
    queue: Box<dyn Queue>,
    record: Bytes,
    batch_records: usize,
}

impl Bench {
    fn start(folder: PathBuf, config: NatsConfig, address: &str, batch_records: usize) -> Self {
        let runtime = Runtime::new().unwrap();
        // Streams of its own for every run: what the client alone publishes is no log.
        let cluster = format!("bench-{}", std::process::id());
        let engine = NatsEngine::connect(&config, &cluster, PARTITIONS);
        let engine = runtime.block_on(engine).unwrap();
        let started = Instant::now();
        let queue = engine.opener(Log::Messages).open().unwrap();
        // The client alone writes to the streams of the other log.
        engine.opener(Log::State).open().unwrap();
        println!("streams made in {:.1} s", started.elapsed().as_secs_f64());
        let context = runtime.block_on(async {
            let servers: Vec<&str> = address.split(',').collect();
            // Beyond its bound the client would wait for answers that nobody takes yet.
            jetstream::ContextBuilder::new()
                .max_ack_inflight(batch_records)
                .build(async_nats::connect(servers).await.unwrap())
        });
        let record = Bytes::from(vec![b'x'; RECORD_BYTES]);
        Self { folder, runtime, context, engine, cluster, queue, record, batch_records }
    }

    fn measure(
        &mut self,
        round: usize,
        what: &str,
        length: Duration,
        work: impl FnOnce(&mut Self, Duration) -> (usize, Vec<Duration>),
    ) {
        let (own, servers, started) =
            (cpu(Path::new("/proc/self")), self.servers(), Instant::now());
        let (records, mut latencies) = work(self, length);
        let seconds = started.elapsed().as_secs_f64();
        let each = |spent: Duration| spent.as_secs_f64() * 1e6 / records as f64;
        latencies.sort_unstable();
        let quantile = |share: usize| {
            let index = latencies.len().saturating_sub(1) * share / 100;
            latencies.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
        };
        println!(
            "{round} {what:10} {:>9.0}/s  own {:>6.2}  servers {:>7.2}  p50 {:>7.1} ms  p99 {:>7.1} ms",
            records as f64 / seconds,
            each(cpu(Path::new("/proc/self")) - own),
            each(self.servers() - servers),
            quantile(50),
            quantile(99),
        );
    }

    /// CPU of all servers so far.
    fn servers(&self) -> Duration {
        let nodes = (1..).map(|node| self.folder.join(node.to_string()).join("pid"));
        nodes
            .map_while(|file| std::fs::read_to_string(file).ok())
            .map(|pid| cpu(&Path::new("/proc").join(pid.trim())))
            .sum()
    }

    fn append(&mut self, length: Duration) -> (usize, Vec<Duration>) {
        let records = (0..self.batch_records)
            .map(|record| ((record % usize::from(PARTITIONS)) as PartitionId, self.record.clone()));
        let batch = Batch { records: records.collect(), durable: true };
        let (mut offsets, mut latencies) = (Vec::new(), Vec::new());
        let started = Instant::now();
        while started.elapsed() < length {
            let begun = Instant::now();
            self.queue.append(&batch, &mut offsets).unwrap();
            latencies.push(begun.elapsed());
        }
        (latencies.len() * self.batch_records, latencies)
    }

    fn publish(&mut self, length: Duration) -> (usize, Vec<Duration>) {
        let (context, record, batch_records) = (&self.context, &self.record, self.batch_records);
        let cluster = &self.cluster;
        self.runtime.block_on(async {
            let mut flying: VecDeque<(Instant, PublishAckFuture)> = VecDeque::new();
            let mut latencies = Vec::new();
            let started = Instant::now();
            for number in 0_u64.. {
                if started.elapsed() >= length {
                    break;
                }
                if flying.len() >= batch_records
                    && let Some((begun, answer)) = flying.pop_front()
                {
                    answer.await.unwrap();
                    latencies.push(begun.elapsed());
                }
                let subject = format!("hawser.{cluster}.state.{}", number % u64::from(PARTITIONS));
                let begun = Instant::now();
                let answer = context.publish(subject, record.clone()).await.unwrap();
                flying.push_back((begun, answer));
            }
            for (begun, answer) in flying {
                answer.await.unwrap();
                latencies.push(begun.elapsed());
            }
            (latencies.len(), latencies)
        })
    }

    /// All of the engine's records, as a takeover does.
    fn read(&mut self, _: Duration) -> (usize, Vec<Duration>) {
        let mut queue = self.engine.opener(Log::Messages).open().unwrap();
        let (mut count, mut latencies, mut found) = (0, Vec::new(), Vec::new());
        for partition in 0..PARTITIONS {
            let mut from = 1;
            loop {
                let begun = Instant::now();
                queue.read(partition, from, 4 * 1024 * 1024, &mut found).unwrap();
                latencies.push(begun.elapsed());
                let Some(last) = found.last() else { break };
                from = last.offset + 1;
                count += found.len();
                found.clear();
            }
        }
        (count, latencies)
    }
}

/// CPU of a process so far, kernel included.
fn cpu(process: &Path) -> Duration {
    let text = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    // Behind the name, which may have anything in it: fields 14 and 15 of all.
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}
