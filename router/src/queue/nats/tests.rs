//! Against real servers.

use std::str::FromStr as _;
use std::time::Instant;

use async_nats::jetstream::stream::{Config, StorageType};
use bytes::Bytes;
use futures_lite::future;

use super::*;
use crate::config::nats::ServerUrl;
use crate::queue::{Batch, Offset, contract};
use crate::services::Service;

/// Longest wait for servers to elect a leader anew: 9 s, and the same once more where the vote was split.
const ELECTION_DEADLINE: Duration = Duration::from_secs(25);

/// The knobs for servers that a test has started.
pub(crate) fn config(service: &Service, replicas: u8) -> NatsConfig {
    let url = |place: &str| ServerUrl(async_nats::ServerAddr::from_str(place).unwrap());
    NatsConfig {
        nats_url: service.address().split(',').map(url).collect(),
        nats_replicas: replicas,
        nats_credentials: None,
        nats_ca: None,
        nats_monitor: Vec::new(),
        claim_lease: Duration::from_secs(1),
    }
}

fn connect(service: &Service, replicas: u8) -> NatsEngine {
    let config = config(service, replicas);
    future::block_on(NatsEngine::connect(&config, "test", contract::PARTITIONS)).unwrap()
}

/// Does something with the client, on its runtime.
fn on<T>(engine: &NatsEngine, work: impl Future<Output = T>) -> T {
    engine.handle().block_on(work)
}

#[expect(clippy::disallowed_methods, reason = "servers of another process are watched")]
fn now() -> Instant {
    Instant::now()
}

/// Tries again, a moment later each time, until it works.
fn eventually<T, E: std::fmt::Debug>(
    engine: &NatsEngine,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = now() + ELECTION_DEADLINE;
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(error) => assert!(now() < deadline, "{error:?}"),
        }
        on(engine, async { tokio::time::sleep(Duration::from_millis(50)).await });
    }
}

fn refused(queue: &mut dyn Queue, partition: u16, bytes: Bytes) -> String {
    let batch = Batch { records: vec![(partition, bytes)], durable: true };
    queue.append(&batch, &mut Vec::new()).unwrap_err().0
}

#[test]
fn the_contract_holds_on_one_server() {
    let service = Service::start("nats", &[]);
    contract::holds(&mut connect(&service, 1).opener(Log::Messages));
}

#[test]
fn the_contract_holds_on_three_servers() {
    let service = Service::start("nats", &["--nodes", "3"]);
    contract::holds(&mut connect(&service, 3).opener(Log::State));
}

#[test]
fn the_two_logs_of_a_partition_are_two() {
    let service = Service::start("nats", &[]);
    let engine = connect(&service, 1);
    let mut messages = engine.opener(Log::Messages).open().unwrap();
    let mut state = engine.opener(Log::State).open().unwrap();
    assert_eq!(contract::append(&mut *messages, &[(0, "a"), (0, "b")]), [1, 2]);
    assert_eq!(contract::append(&mut *state, &[(0, "c")]), [1]);
    assert_eq!(contract::read(&mut *state, 0, 0)[0].bytes, "c");
}

#[test]
fn a_former_owner_is_fenced_and_the_new_one_has_all_of_it() {
    let service = Service::start("nats", &[]);
    let mut former = connect(&service, 1).opener(Log::Messages).open().unwrap();
    let mut opener = connect(&service, 1).opener(Log::Messages);
    let mut new = opener.open().unwrap();
    assert_eq!(contract::append(&mut *former, &[(1, "a"), (2, "b"), (1, "c")]), [1, 1, 2]);
    // It was opened before, and appends without looking.
    assert!(refused(&mut *new, 1, contract::text("x")).contains("another owner"));
    let mut new = opener.open().unwrap();
    assert_eq!(contract::append(&mut *former, &[(1, "d")]), [3]);
    assert_eq!(new.refresh(1).unwrap(), 4);
    assert_eq!(contract::append(&mut *new, &[(1, "e")]), [4]);
    assert!(refused(&mut *former, 1, contract::text("x")).contains("another owner"));
    let texts: Vec<_> =
        contract::read(&mut *new, 1, 1).into_iter().map(|record| record.bytes).collect();
    assert_eq!(texts, ["a", "c", "d", "e"]);
}

#[test]
fn a_record_that_no_message_holds_is_refused_and_the_longest_is_taken() {
    let service = Service::start("nats", &[]);
    let mut queue = connect(&service, 1).opener(Log::Messages).open().unwrap();
    let longest = queue.record_bytes_max();
    let sentence = refused(&mut *queue, 0, vec![b'x'; longest + 1].into());
    assert!(sentence.contains("max_payload"), "{sentence}");
    let records = vec![(0, Bytes::from(vec![b'x'; longest])), (0, Bytes::new())];
    let mut offsets = Vec::new();
    queue.append(&Batch { records, durable: true }, &mut offsets).unwrap();
    assert_eq!(offsets, [1, 2]);
    let read = contract::read(&mut *queue, 0, 1);
    assert_eq!((read[0].bytes.len(), read[1].bytes.len()), (longest, 0));
}

#[test]
fn a_long_log_is_read_from_anywhere_and_trimmed_up_to_a_message() {
    const RECORDS: u64 = 9_000;
    let service = Service::start("nats", &[]);
    let engine = connect(&service, 1);
    let mut opener = engine.opener(Log::Messages);
    let mut queue = opener.open().unwrap();
    let bytes = Bytes::from(vec![b'x'; 1_000]);
    for _ in 0..RECORDS / 30 {
        let records = vec![(3, bytes.clone()); 30];
        queue.append(&Batch { records, durable: true }, &mut Vec::new()).unwrap();
    }
    // Without what it remembers from writing.
    let mut queue = opener.open().unwrap();
    for from in [4_321, 1, RECORDS, 8_999, 77] {
        let mut page = Vec::new();
        queue.read(3, from, 5_000, &mut page).unwrap();
        assert_eq!(page[0].offset, from);
        assert_eq!(page.len() as u64, (RECORDS - from + 1).min(5));
    }
    let offsets: Vec<_> =
        contract::read(&mut *queue, 3, 0).iter().map(|record| record.offset).collect();
    assert_eq!(offsets, (1..=RECORDS).collect::<Vec<_>>());

    queue.trim(&[(3, 3_005), (0, 5)]).unwrap();
    eventually(&engine, || {
        let stream = on(&engine, engine.context().get_stream("test-messages-3")).unwrap();
        let first = stream.cached_info().state.first_sequence;
        if first == 101 { Ok(()) } else { Err(first) }
    });
    let mut queue = opener.open().unwrap();
    assert_eq!(contract::read(&mut *queue, 3, 1)[0].offset, 3_001);
    queue.trim(&[(3, RECORDS + 1)]).unwrap();
    assert_eq!(queue.refresh(3).unwrap(), RECORDS + 1);
}

#[test]
fn a_full_stream_refuses_and_keeps_what_it_has() {
    let service = Service::start("nats", &[]);
    let engine = connect(&service, 1);
    let full = Config { max_bytes: 10_000, ..streams::wanted("test", Log::Messages, 0, 1) };
    on(&engine, engine.context().create_stream(full)).unwrap();
    let mut opener = engine.opener(Log::Messages);
    let mut queue = opener.open().unwrap();
    let record = "x".repeat(2_000);
    let mut appended = 0;
    let sentence = loop {
        let batch = Batch { records: vec![(0, contract::text(&record))], durable: true };
        match queue.append(&batch, &mut Vec::new()) {
            Ok(()) => appended += 1,
            Err(error) => break error.0,
        }
        assert!(appended < 10);
    };
    assert!(sentence.contains("maximum bytes exceeded"), "{sentence}");
    let mut queue = opener.open().unwrap();
    assert_eq!(contract::read(&mut *queue, 0, 1).len(), appended);
    assert!(appended > 0);
    // With what is trimmed there is room again.
    queue.trim(&[(0, appended as Offset)]).unwrap();
    eventually(&engine, || {
        let mut queue = opener.open()?;
        let batch = Batch { records: vec![(0, contract::text("y"))], durable: true };
        queue.append(&batch, &mut Vec::new())
    });
}

#[test]
fn a_stream_that_somebody_made_differently_is_refused_with_the_reason() {
    let service = Service::start("nats", &[]);
    let engine = connect(&service, 1);
    let mut opener = engine.opener(Log::Messages);
    let memory =
        Config { storage: StorageType::Memory, ..streams::wanted("test", Log::Messages, 1, 1) };
    on(&engine, engine.context().create_stream(memory)).unwrap();
    let error = opener.open().err().unwrap().0;
    assert!(error.contains("stream test-messages-1 is held in memory"), "{error}");
    on(&engine, engine.context().delete_stream("test-messages-1")).unwrap();
    opener.open().unwrap();
    let error = connect(&service, 3).opener(Log::Messages).open().err().unwrap().0;
    assert!(error.contains("--nats-replicas"), "{error}");
}

#[test]
fn servers_that_are_not_there_are_named_soon_and_found_once_they_are() {
    let service = Service::start("nats", &[]);
    let engine = connect(&service, 1);
    let mut opener = engine.opener(Log::Messages);
    opener.open().unwrap();
    service.kill_node(1);
    let begun = now();
    let error = future::block_on(NatsEngine::connect(&config(&service, 1), "test", 4));
    let error = error.unwrap_err().0;
    assert!(error.contains(&service.address()), "{error}");
    eventually(&engine, || match opener.open() {
        Err(error) if error.0.contains("can be reached") => Ok(()),
        other => Err(other.err()),
    });
    assert!(now() - begun < Duration::from_secs(10));
    service.start_node(1);
    let mut queue = eventually(&engine, || opener.open());
    assert_eq!(contract::append(&mut *queue, &[(0, "a")]), [1]);
}

#[test]
fn servers_that_may_lose_something_are_spoken_of() {
    let sleepy = Service::start("nats", &["--sync", "2m"]);
    let unknown = connect(&sleepy, 1);
    assert_eq!(unknown.warnings().len(), 2, "{:?}", unknown.warnings());
    let warnings = |service: &Service| {
        let nats_monitor = vec![format!("http://{}", service.monitor())];
        let config = NatsConfig { nats_monitor, ..config(service, 1) };
        future::block_on(NatsEngine::connect(&config, "test", 4)).unwrap().warnings().to_vec()
    };
    let told = warnings(&sleepy);
    assert!(told[0].contains("syncs only every 120s"), "{told:?}");
    let diligent = Service::start("nats", &[]);
    assert_eq!(warnings(&diligent).len(), 1, "only that there is one replica");
}

/// Appends one record after the other to every partition, whatever happens to the servers.
struct Writer {
    engine: NatsEngine,
    queue: Option<Box<dyn Queue>>,
    /// What was acknowledged: partition, offset, number.
    acknowledged: Vec<(u16, Offset, usize)>,
    tried: usize,
}

impl Writer {
    fn append(&mut self) -> Result<(), QueueError> {
        let queue = match &mut self.queue {
            Some(queue) => queue,
            closed => closed.insert(self.engine.opener(Log::Messages).open()?),
        };
        self.tried += 1;
        let record = contract::text(&self.tried.to_string());
        let records = (0..contract::PARTITIONS).map(|partition| (partition, record.clone()));
        let mut offsets = Vec::new();
        let batch = Batch { records: records.collect(), durable: true };
        if let Err(error) = queue.append(&batch, &mut offsets) {
            self.queue = None;
            return Err(error);
        }
        for ((partition, _), offset) in batch.records.iter().zip(offsets) {
            self.acknowledged.push((*partition, offset, self.tried));
        }
        Ok(())
    }

    fn append_some(&mut self) {
        let engine = self.engine.clone();
        for _ in 0..20 {
            eventually(&engine, || self.append());
        }
    }

    fn check(&mut self) {
        let engine = self.engine.clone();
        let mut queue = eventually(&engine, || engine.opener(Log::Messages).open());
        for partition in 0..contract::PARTITIONS {
            let records = contract::read(&mut *queue, partition, 1);
            let offsets: Vec<_> = records.iter().map(|record| record.offset).collect();
            assert_eq!(offsets, (1..=records.len() as u64).collect::<Vec<_>>());
            let mut texts: Vec<_> = records.iter().map(|record| &record.bytes).collect();
            texts.sort_unstable();
            texts.dedup();
            assert_eq!(texts.len(), records.len(), "nothing is stored twice");
            for (_, offset, number) in
                self.acknowledged.iter().filter(|(place, ..)| *place == partition)
            {
                assert_eq!(records[*offset as usize - 1].bytes, number.to_string());
            }
        }
    }
}

#[test]
fn what_a_silent_server_was_sent_is_refused_in_time_and_stored_once_or_never() {
    let service = Service::start("nats", &[]);
    let engine = connect(&service, 1);
    let mut writer = Writer { engine, queue: None, acknowledged: Vec::new(), tried: 0 };
    writer.append_some();
    service.pause_node(1);
    let begun = now();
    assert!(writer.append().is_err());
    let took = now() - begun;
    assert!(took < APPEND_DEADLINE + Duration::from_secs(1), "{took:?}");
    service.resume_node(1);
    writer.append_some();
    writer.check();
}

#[test]
fn nothing_acknowledged_is_lost_when_a_server_is_killed_and_when_all_are() {
    let service = Service::start("nats", &["--nodes", "3"]);
    let engine = connect(&service, 3);
    let mut writer = Writer { engine, queue: None, acknowledged: Vec::new(), tried: 0 };
    writer.append_some();
    let stream = on(&writer.engine, writer.engine.context().get_stream("test-messages-0"));
    let leader = stream.unwrap().cached_info().cluster.as_ref().unwrap().leader.clone().unwrap();
    let leader = leader.trim_start_matches("nats-").parse().unwrap();
    service.kill_node(leader);
    writer.append_some();
    service.start_node(leader);
    writer.append_some();
    for node in 1..=3 {
        service.kill_node(node);
    }
    assert!(writer.append().is_err());
    for node in 1..=3 {
        service.start_node(node);
    }
    writer.append_some();
    writer.check();
    assert_eq!(writer.acknowledged.len(), 4 * 20 * usize::from(contract::PARTITIONS));
}
