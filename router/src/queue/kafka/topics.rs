//! The topics: made with the right settings, or a sentence that says what is wrong with those that are there.

use std::time::Duration;

use futures_lite::future::block_on;
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::metadata::{Metadata, MetadataTopic};

use super::client::{Trouble, told};
use super::now;
use crate::config::kafka::KafkaConfig;
use crate::queue::QueueError;

/// Longest wait for the brokers to say or do something about a topic.
const TOPIC_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks at a topic that is being made.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// Largest batch of a topic that we make, in bytes.
const BATCH_BYTES_MAX: usize = 2 * 1024 * 1024;
/// What a record takes in a batch of its own beside its bytes, generously.
pub(super) const RECORD_OVERHEAD_BYTES: usize = 1024;
/// Size of a file of a log. Space comes back in these steps.
const SEGMENT_BYTES: &str = "67108864";

/// Settings without which a topic loses what was acknowledged.
const MUSTS: [(&str, &str); 4] = [
    ("cleanup.policy", "delete"),
    ("retention.ms", "-1"),
    ("retention.bytes", "-1"),
    ("unclean.leader.election.enable", "false"),
];

/// Makes the topic, or looks at the one that is there. Gives the bytes that one record may have.
///
/// # Errors
/// A sentence: what is wrong with the topic and how to mend it, or that the brokers do not answer.
pub(super) fn prepare(
    admin: &AdminClient<Trouble>,
    config: &KafkaConfig,
    topic: &str,
    partitions: u16,
) -> Result<usize, QueueError> {
    let metadata = metadata(admin)?;
    if find(&metadata, topic).is_none() {
        make(admin, config, topic, partitions, metadata.brokers().len())?;
    }
    let (metadata, settings) = wait_for(admin, topic, partitions)?;
    let found = find(&metadata, topic);
    let found = found.ok_or_else(|| QueueError(format!("topic {topic} is gone")))?;
    let faults = faults(config, partitions, found, &settings);
    if !faults.is_empty() {
        return Err(QueueError(format!("topic {topic} {}", faults.join("; it "))));
    }
    let batch_bytes: usize =
        value(&settings, "max.message.bytes").parse().unwrap_or(BATCH_BYTES_MAX);
    Ok(batch_bytes.saturating_sub(RECORD_OVERHEAD_BYTES))
}

fn metadata(admin: &AdminClient<Trouble>) -> Result<Metadata, QueueError> {
    // All topics: asking for one by name may make it, as the broker pleases.
    let metadata = admin.inner().fetch_metadata(None, TOPIC_TIMEOUT);
    metadata.map_err(|error| {
        admin.inner().context().explain(&format!("--kafka-brokers: no broker answers: {error}"))
    })
}

fn find<'a>(metadata: &'a Metadata, topic: &str) -> Option<&'a MetadataTopic> {
    metadata.topics().iter().find(|found| found.name() == topic)
}

fn make(
    admin: &AdminClient<Trouble>,
    config: &KafkaConfig,
    topic: &str,
    partitions: u16,
    brokers: usize,
) -> Result<(), QueueError> {
    let (replicas, min_insync) = (config.kafka_replicas, config.min_insync());
    if brokers < usize::from(replicas) {
        return Err(QueueError(format!(
            "--kafka-replicas: {replicas} copies want as many brokers, and there are {brokers}: start more, or ask for fewer copies"
        )));
    }
    if min_insync > replicas {
        return Err(QueueError(format!(
            "--kafka-min-insync: {min_insync} of {replicas} copies (--kafka-replicas) cannot be"
        )));
    }
    let (min_insync, batch_bytes) = (min_insync.to_string(), BATCH_BYTES_MAX.to_string());
    let replication = TopicReplication::Fixed(i32::from(replicas));
    let mut wanted = NewTopic::new(topic, i32::from(partitions), replication)
        .set("min.insync.replicas", &min_insync)
        .set("max.message.bytes", &batch_bytes)
        .set("segment.bytes", SEGMENT_BYTES);
    for (key, value) in MUSTS {
        wanted = wanted.set(key, value);
    }
    if min_insync == "1" {
        // Where one broker may be alone with a record, it has to be on its disk.
        wanted = wanted.set("flush.messages", "1");
    }
    let options = AdminOptions::new().operation_timeout(Some(TOPIC_TIMEOUT));
    let results =
        block_on(admin.create_topics([&wanted], &options)).map_err(told("making a topic"))?;
    for result in results {
        match result {
            Ok(_) => tracing::info!(topic, partitions, replicas, min_insync, "the topic is made"),
            // Another router was faster.
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => {
                return Err(QueueError(format!("topic {topic} could not be made: {code}")));
            }
        }
    }
    Ok(())
}

/// What the brokers say of the topic. One that was just made is known to all of them a moment later.
fn wait_for(
    admin: &AdminClient<Trouble>,
    topic: &str,
    partitions: u16,
) -> Result<(Metadata, ConfigResource), QueueError> {
    let begun = now();
    loop {
        let metadata = metadata(admin)?;
        let is_led = find(&metadata, topic).is_some_and(|found| {
            !found.partitions().is_empty()
                && found.partitions().iter().all(|part| part.leader() >= 0)
        });
        if is_led && let Some(settings) = settings(admin, topic)? {
            return Ok((metadata, settings));
        }
        if begun.elapsed() > TOPIC_TIMEOUT {
            return Err(QueueError(format!(
                "topic {topic}: not all of its {partitions} partitions have a leader: too few of the brokers that have them live"
            )));
        }
        std::thread::park_timeout(LOOK_PAUSE);
    }
}

/// Nothing where the broker that was asked does not know the topic yet.
fn settings(
    admin: &AdminClient<Trouble>,
    topic: &str,
) -> Result<Option<ConfigResource>, QueueError> {
    let options = AdminOptions::new().request_timeout(Some(TOPIC_TIMEOUT));
    let wanted = ResourceSpecifier::Topic(topic);
    let described = block_on(admin.describe_configs([&wanted], &options));
    let described = described.map_err(told("reading the settings of a topic"))?;
    match described.into_iter().next() {
        Some(Ok(settings)) => Ok((!settings.entries.is_empty()).then_some(settings)),
        None | Some(Err(RDKafkaErrorCode::UnknownTopicOrPartition)) => Ok(None),
        Some(Err(code)) => {
            Err(QueueError(format!("the settings of topic {topic} cannot be read: {code}")))
        }
    }
}

fn value<'a>(settings: &'a ConfigResource, key: &str) -> &'a str {
    settings.get(key).and_then(|entry| entry.value.as_deref()).unwrap_or_default()
}

/// What is wrong with a topic, each with what mends it.
fn faults(
    config: &KafkaConfig,
    partitions: u16,
    found: &MetadataTopic,
    settings: &ConfigResource,
) -> Vec<String> {
    let mut faults = Vec::new();
    let count = found.partitions().len();
    if count != usize::from(partitions) {
        faults.push(format!(
            "has {count} partitions and --partitions asks for {partitions}: they cannot be changed; give --partitions {count}, or another --cluster"
        ));
    }
    let fewest = found.partitions().iter().map(|part| part.replicas().len()).min().unwrap_or(0);
    let replicas = usize::from(config.kafka_replicas);
    if fewest < replicas {
        faults.push(format!(
            "has {fewest} copies and --kafka-replicas asks for {replicas}: add some with kafka-reassign-partitions, or give --kafka-replicas {fewest}"
        ));
    }
    let min_insync: usize = value(settings, "min.insync.replicas").parse().unwrap_or(0);
    if min_insync < usize::from(config.min_insync()) {
        faults.push(format!(
            "has min.insync.replicas={min_insync} and --kafka-min-insync asks for {}: {}",
            config.min_insync(),
            alter(found.name(), "min.insync.replicas", &config.min_insync().to_string())
        ));
    } else if min_insync > fewest {
        faults.push(format!(
            "has min.insync.replicas={min_insync} and {fewest} copies, so nothing can be written: {}",
            alter(found.name(), "min.insync.replicas", &config.min_insync().to_string())
        ));
    }
    for (key, wanted) in MUSTS {
        let got = value(settings, key);
        if got != wanted {
            let alter = alter(found.name(), key, wanted);
            faults.push(format!("has {key}={got} and would lose what was acknowledged: {alter}"));
        }
    }
    faults
}

fn alter(topic: &str, key: &str, value: &str) -> String {
    format!(
        "kafka-configs --alter --entity-type topics --entity-name {topic} --add-config {key}={value}"
    )
}
