//! The stream of a log's partition: how it is made, and whether one that is there keeps what it is given.

use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, Info, PersistenceMode, RetentionPolicy, StorageType, Stream,
};
use async_nats::jetstream::{Context, ErrorCode};

use crate::queue::{Log, PartitionId, QueueError};

/// Nothing is told apart by message ids here: the shortest that a server takes, with room.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(1);

/// While a stream has no leader, what is asked about it is dropped. It is asked again after so long, so many times.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ASKED_MAX: usize = 5;

/// Name of the stream.
pub(super) fn name(cluster: &str, log: Log, partition: PartitionId) -> String {
    format!("{cluster}-{}-{partition}", log_name(log))
}

/// How the stream of a partition shall be.
pub(super) fn wanted(cluster: &str, log: Log, partition: PartitionId, replicas: usize) -> Config {
    Config {
        name: name(cluster, log, partition),
        subjects: vec![format!("hawser.{cluster}.{}.{partition}", log_name(log))],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        max_bytes: -1,
        max_messages: -1,
        max_messages_per_subject: -1,
        storage: StorageType::File,
        num_replicas: replicas,
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        ..Config::default()
    }
}

fn log_name(log: Log) -> &'static str {
    match log {
        Log::Messages => "messages",
        Log::State => "state",
    }
}

/// The stream as it is, made when it is not there.
///
/// # Errors
/// It would lose what it is given, or the servers did not say.
pub(super) async fn ensure(context: &Context, wanted: Config) -> Result<Stream, QueueError> {
    let stream = match find(context, &wanted.name).await? {
        Some(stream) => stream,
        None => create(context, &wanted).await?,
    };
    match unfit(&stream.cached_info().config, &wanted) {
        None => Ok(stream),
        Some(reason) => Err(QueueError(format!("stream {} {reason}", wanted.name))),
    }
}

/// What a stream's leader says about it.
pub(super) async fn info(stream: &Stream) -> Result<Info, QueueError> {
    let name = &stream.cached_info().config.name;
    let info = asked(name, || stream.get_info()).await?;
    info.map_err(|error| silent(name, &error))
}

async fn find(context: &Context, name: &str) -> Result<Option<Stream>, QueueError> {
    match asked(name, || context.get_stream(name)).await? {
        Ok(stream) => Ok(Some(stream)),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(told)
                if told.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                Ok(None)
            }
            GetStreamErrorKind::EmptyName
            | GetStreamErrorKind::InvalidStreamName
            | GetStreamErrorKind::Request
            | GetStreamErrorKind::JetStream(_) => Err(silent(name, &error)),
        },
    }
}

async fn create(context: &Context, wanted: &Config) -> Result<Stream, QueueError> {
    let Err(error) = context.create_stream(wanted).await else {
        return find(context, &wanted.name).await?.ok_or_else(|| gone(&wanted.name));
    };
    // Another router may have made it since, or somebody else, differently.
    if let CreateStreamErrorKind::JetStream(told) = error.kind()
        && told.error_code() == ErrorCode::STREAM_NAME_EXIST
    {
        return find(context, &wanted.name).await?.ok_or_else(|| gone(&wanted.name));
    }
    Err(QueueError(format!(
        "stream {} with {} replicas could not be made: {error}",
        wanted.name, wanted.num_replicas
    )))
}

/// Asks until there is an answer, whatever it is.
async fn asked<T, F: Future<Output = T>>(
    name: &str,
    question: impl Fn() -> F,
) -> Result<T, QueueError> {
    for _ in 0..ASKED_MAX {
        if let Ok(answer) = tokio::time::timeout(ASK_AGAIN, question()).await {
            return Ok(answer);
        }
    }
    Err(QueueError(format!("no NATS server answers for stream {name} at the moment")))
}

fn gone(name: &str) -> QueueError {
    QueueError(format!("stream {name} was removed as soon as it was made"))
}

fn silent(name: &str, error: &dyn std::error::Error) -> QueueError {
    QueueError(format!("the NATS servers say nothing about stream {name}: {error}"))
}

/// Why a stream must not be used, as the rest of a sentence that begins with its name; `None` when it may. More replicas, and
/// limits that refuse what is new, are the operator's own affair.
fn unfit(existing: &Config, wanted: &Config) -> Option<String> {
    let name = &existing.name;
    let drops = |limit: i64| limit > 0 && existing.discard != DiscardPolicy::New;
    let reason = if existing.storage != StorageType::File {
        "is held in memory: a restart of its servers loses it. Remove it, and it is made anew"
            .to_owned()
    } else if existing.num_replicas < wanted.num_replicas {
        format!(
            "has {} replicas, and --nats-replicas asks for {n}. Change one of them (nats stream edit {name} --replicas {n})",
            existing.num_replicas,
            n = wanted.num_replicas
        )
    } else if existing.retention != RetentionPolicy::Limits {
        "drops what consumers have acknowledged: its retention has to be limits. Remove it, and it is made anew".to_owned()
    } else if !existing.max_age.is_zero() {
        format!(
            "drops messages after {:?}. Take the limit away (nats stream edit {name} --max-age 0)",
            existing.max_age
        )
    } else if drops(existing.max_bytes)
        || drops(existing.max_messages)
        || drops(existing.max_messages_per_subject)
        || existing.max_messages_per_subject > 0 && !existing.discard_new_per_subject
    {
        format!(
            "drops old messages when it is full: its discard policy has to be new (nats stream edit {name} --discard new)"
        )
    } else if existing.no_ack || existing.persist_mode == Some(PersistenceMode::Async) {
        "acknowledges before it has stored. Remove it, and it is made anew".to_owned()
    } else if existing.sealed || existing.deny_purge || existing.mirror.is_some() {
        "cannot be written or purged. Remove it, and it is made anew".to_owned()
    } else if existing.subjects != wanted.subjects || existing.subject_transform.is_some() {
        format!("has not {:?} for its only subject", wanted.subjects)
    } else if !existing.allow_direct {
        format!("does not allow direct gets (nats stream edit {name} --allow-direct)")
    } else {
        return None;
    };
    Some(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(change: impl FnOnce(&mut Config)) -> Option<String> {
        let wanted = wanted("c", Log::State, 7, 3);
        let mut existing = wanted.clone();
        change(&mut existing);
        unfit(&existing, &wanted)
    }

    #[test]
    fn a_stream_has_the_name_of_its_cluster_log_and_partition() {
        assert_eq!(name("c", Log::Messages, 63), "c-messages-63");
        assert_eq!(wanted("c", Log::State, 0, 1).subjects, ["hawser.c.state.0"]);
    }

    #[test]
    fn more_replicas_and_limits_that_refuse_are_fine() {
        assert_eq!(reason(|_| ()), None);
        assert_eq!(reason(|config| config.num_replicas = 5), None);
        assert_eq!(reason(|config| config.max_bytes = 1 << 30), None);
    }

    #[test]
    fn a_stream_that_would_lose_something_is_refused_with_the_reason() {
        type Change = fn(&mut Config);
        let changes: [(Change, &str); 7] = [
            (|config| config.storage = StorageType::Memory, "memory"),
            (|config| config.num_replicas = 1, "has 1 replicas, and --nats-replicas asks for 3"),
            (|config| config.retention = RetentionPolicy::WorkQueue, "retention"),
            (|config| config.max_age = Duration::from_secs(60), "after 60s"),
            (|config| config.max_messages_per_subject = 1, "full"),
            (|config| config.persist_mode = Some(PersistenceMode::Async), "before it has stored"),
            (|config| config.subjects = vec![">".to_owned()], "subject"),
        ];
        for (change, word) in changes {
            let reason = reason(change).unwrap();
            assert!(reason.contains(word), "{reason}");
        }
        let old = reason(|config| {
            config.max_bytes = 1_000;
            config.discard = DiscardPolicy::Old;
        });
        assert!(old.unwrap().contains("discard policy"));
    }
}
