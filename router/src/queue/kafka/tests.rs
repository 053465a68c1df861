//! The contract on real brokers, and what becomes of it when they die.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};

use futures_lite::future::block_on;
use rdkafka::admin::{AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};

use super::super::contract::{PARTITIONS, append, holds, read, text};
use super::*;
use crate::config::kafka::KafkaOption;
use crate::services::Service;

/// Longest wait for brokers to get over what was done to them.
const DEADLINE: Duration = Duration::from_secs(40);

fn config(brokers: &str, replicas: u16) -> KafkaConfig {
    KafkaConfig {
        kafka_brokers: brokers.split(',').map(str::to_owned).collect(),
        kafka_replicas: replicas,
        kafka_min_insync: None,
        kafka_session_timeout: Duration::from_secs(2),
        kafka_option: Vec::new(),
    }
}

fn engine(brokers: &str, replicas: u16, cluster: &str) -> KafkaEngine {
    KafkaEngine::connect(&config(brokers, replicas), cluster, PARTITIONS).unwrap()
}

#[test]
fn one_broker_holds_the_contract_and_what_is_wrong_with_topics_is_told() {
    let broker = Service::start("kafka", &[]);
    let brokers = broker.address();
    holds(&mut engine(&brokers, 1, "contract").opener(Log::Messages));
    what_is_trimmed_is_gone_in_the_end(&brokers);
    a_record_that_is_too_long_fails_its_batch(&brokers);
    two_writers_find_that_they_are_not_alone(&brokers);
    a_refused_record_ends_its_writer_and_the_log_goes_on(&brokers);
    a_log_that_has_lost_records_says_so(&brokers);
    wrong_settings_are_told(&brokers);
}

#[test]
fn three_brokers_hold_the_contract_and_lose_nothing_when_they_are_killed() {
    let brokers = Service::start("kafka", &["--nodes", "3"]);
    holds(&mut engine(&brokers.address(), 3, "contract").opener(Log::State));
    nothing_acknowledged_is_lost_when_brokers_are_killed(&brokers);
}

fn what_is_trimmed_is_gone_in_the_end(brokers: &str) {
    let mut queue = engine(brokers, 1, "trimmed").opener(Log::Messages).open().unwrap();
    append(&mut *queue, &[(0, "a"), (0, "b"), (0, "c")]);
    let begun = now();
    while read(&mut *queue, 0, 1).len() > 1 {
        queue.trim(&[(0, 3)]).unwrap();
        assert!(begun.elapsed() < DEADLINE);
    }
    assert_eq!(read(&mut *queue, 0, 0)[0].offset, 3);
}

fn a_record_that_is_too_long_fails_its_batch(brokers: &str) {
    let mut opener = engine(brokers, 1, "long").opener(Log::Messages);
    let mut queue = opener.open().unwrap();
    let longest = queue.record_bytes_max();
    assert!(longest > crate::limits::PAYLOAD_BYTES_MAX + 64 * 1024, "{longest}");
    let long = "x".repeat(longest);
    assert_eq!(append(&mut *queue, &[(0, "a"), (1, &long)]), [1, 1]);
    let records = vec![(0, text("b")), (1, text(&(long.clone() + "x")))];
    let refused = queue.append(&Batch { records, durable: true }, &mut Vec::new()).unwrap_err();
    assert!(refused.0.contains("max.message.bytes"), "{refused}");
    drop(queue);
    let mut queue = opener.open().unwrap();
    assert_eq!(read(&mut *queue, 0, 1).len(), 1);
    assert_eq!(read(&mut *queue, 1, 1)[0].bytes, long);
}

fn two_writers_find_that_they_are_not_alone(brokers: &str) {
    let engine = engine(brokers, 1, "two");
    let mut one = engine.opener(Log::Messages).open().unwrap();
    let mut other = engine.opener(Log::Messages).open().unwrap();
    assert_eq!(append(&mut *one, &[(2, "a")]), [1]);
    assert_eq!((one.end(2), other.end(2)), (2, 1));
    assert_eq!(other.refresh(2).unwrap(), 2);
    assert_eq!(append(&mut *other, &[(2, "b")]), [2]);
    assert_eq!(append(&mut *one, &[(2, "c")]), [3]);
    let all: Vec<_> = read(&mut *one, 2, 2).into_iter().map(|record| record.bytes).collect();
    assert_eq!(all, ["b", "c"]);
}

fn a_refused_record_ends_its_writer_and_the_log_goes_on(brokers: &str) {
    let engine = engine(brokers, 1, "refused");
    let mut opener = engine.opener(Log::Messages);
    let mut queue = opener.open().unwrap();
    append(&mut *queue, &[(0, "a")]);
    set(&engine, "refused.messages", "max.message.bytes", "1000");
    let records = vec![(0, text(&"x".repeat(2_000))), (0, text("behind it")), (1, text("b"))];
    let refused = queue.append(&Batch { records, durable: true }, &mut Vec::new()).unwrap_err();
    assert!(refused.0.contains("refused"), "{refused}");
    drop(queue);
    let mut queue = opener.open().unwrap();
    assert_eq!(read(&mut *queue, 0, 1).len(), 1, "a later record came without the earlier");
    assert_eq!(append(&mut *queue, &[(0, "c")]), [2]);
}

fn a_log_that_has_lost_records_says_so(brokers: &str) {
    let mut queue = engine(brokers, 1, "lost").opener(Log::Messages).open().unwrap();
    append(&mut *queue, &[(0, "a")]);
    queue.skip_to(0, 2).unwrap();
    let lost = queue.skip_to(0, 3).unwrap_err();
    assert!(lost.0.contains("has lost records"), "{lost}");
}

fn wrong_settings_are_told(brokers: &str) {
    let told = |config: &KafkaConfig, cluster: &str, partitions| {
        KafkaEngine::connect(config, cluster, partitions).unwrap_err().0
    };
    let (one, mut two) = (config(brokers, 1), config(brokers, 2));
    assert!(told(&two, "none", 4).contains("there are 1"), "{}", told(&two, "none", 4));
    two.kafka_min_insync = Some(2);
    let engine = engine(brokers, 1, "wrong");
    for (wanted, partitions, sentence) in [
        (&one, 8, "has 4 partitions and --partitions asks for 8"),
        (&two, 4, "has 1 copies and --kafka-replicas asks for 2"),
        (&two, 4, "has min.insync.replicas=1 and --kafka-min-insync asks for 2"),
    ] {
        let told = told(wanted, "wrong", partitions);
        assert!(told.contains(sentence), "{told}");
    }
    // Somebody else made the topic, as brokers would.
    let plain = NewTopic::new("plain.messages", 4, TopicReplication::Fixed(1));
    block_on(engine.0.admin.create_topics([&plain], &Default::default())).unwrap();
    let told = told(&one, "plain", 4);
    assert!(told.contains("--entity-name plain.messages --add-config retention.ms=-1"), "{told}");
    let mut nowhere = config("127.0.0.1:1", 1);
    nowhere.kafka_option.push(option("no.such", "1"));
    let told = KafkaEngine::connect(&nowhere, "c", 4).unwrap_err().0;
    assert!(told.contains("--kafka-option") && told.contains("no.such"), "{told}");
}

fn option(key: &str, value: &str) -> KafkaOption {
    KafkaOption { key: key.to_owned(), value: value.to_owned() }
}

fn set(engine: &KafkaEngine, topic: &str, key: &str, value: &str) {
    let wanted = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(key, value);
    block_on(engine.0.admin.alter_configs([&wanted], &Default::default())).unwrap();
}

/// One of three stands still, one of three dies, then all at once, while batches are appended without a pause.
fn nothing_acknowledged_is_lost_when_brokers_are_killed(brokers: &Service) {
    let mut config = config(&brokers.address(), 3);
    config.kafka_option.push(option("socket.timeout.ms", "2000"));
    let engine = KafkaEngine::connect(&config, "killed", PARTITIONS).unwrap();
    let (mut appending, mut reading) = (engine.opener(Log::Messages), engine.opener(Log::Messages));
    let ended = AtomicBool::new(false);
    let (to_us, outcomes) = channel();
    let acknowledged = std::thread::scope(|scope| {
        let appender = scope.spawn(|| append_until(&ended, &mut appending, &to_us));
        expect(&outcomes, true, 20);
        // It has requests, and answers them when others lead its partitions.
        brokers.pause_node(1);
        expect(&outcomes, true, 20);
        brokers.resume_node(1);
        expect(&outcomes, true, 20);
        brokers.kill_node(2);
        expect(&outcomes, true, 20);
        brokers.kill_node(1);
        brokers.kill_node(3);
        expect(&outcomes, false, 1);
        std::thread::scope(|scope| {
            for node in 1..=3 {
                scope.spawn(move || brokers.start_node(node));
            }
        });
        expect(&outcomes, true, 20);
        ended.store(true, Ordering::Relaxed);
        appender.join().unwrap()
    });
    let mut queue = reading.open().unwrap();
    for partition in 0..PARTITIONS {
        let log = read(&mut *queue, partition, 1);
        let number =
            |record: &Record| String::from_utf8_lossy(&record.bytes).parse::<u64>().unwrap();
        assert!(log.is_sorted_by(|a, b| number(a) < number(b)), "partition {partition}");
        for (_, offset, wanted) in acknowledged.iter().filter(|(place, ..)| *place == partition) {
            let found = &log[usize::try_from(offset - 1).unwrap()];
            assert_eq!((found.offset, number(found)), (*offset, *wanted));
        }
    }
}

/// Appends numbers that count up, and opens the log again where that fails. Tells of every batch whether it went well, and
/// gives what was acknowledged.
fn append_until(
    ended: &AtomicBool,
    opener: &mut KafkaOpener,
    outcomes: &std::sync::mpsc::Sender<bool>,
) -> Vec<(PartitionId, Offset, u64)> {
    let mut queue = None;
    let (mut number, mut acknowledged, mut offsets) = (0, Vec::new(), Vec::new());
    while !ended.load(Ordering::Relaxed) {
        let Some(open) = &mut queue else {
            queue = opener.open().ok();
            continue;
        };
        let numbers = number..number + 40;
        number = numbers.end;
        let place = |number: u64| (number % u64::from(PARTITIONS)) as PartitionId;
        let records = numbers.clone().map(|number| (place(number), text(&number.to_string())));
        let batch = Batch { records: records.collect(), durable: true };
        let done = open.append(&batch, &mut offsets);
        if done.is_ok() {
            acknowledged.extend(
                numbers.zip(&offsets).map(|(number, offset)| (place(number), *offset, number)),
            );
        } else {
            queue = None;
        }
        outcomes.send(done.is_ok()).unwrap();
    }
    acknowledged
}

/// Waits for so many more batches that went well, or did not; what came before does not count.
fn expect(outcomes: &Receiver<bool>, wanted: bool, mut count: usize) {
    outcomes.try_iter().for_each(drop);
    let begun = now();
    while count > 0 {
        let left = DEADLINE.saturating_sub(begun.elapsed());
        if outcomes.recv_timeout(left).unwrap() == wanted {
            count -= 1;
        }
    }
}
