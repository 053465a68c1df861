//! The bucket, as its entries.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{Config, CreateErrorKind, Store, UpdateErrorKind};
use async_nats::jetstream::stream::StorageType;
use async_nats::{Message, Subscriber};
use bytes::Bytes;
use serde::Serialize;

use super::table::{Entry, Owner, Table, is_removal, partition_key};
use crate::queue::nats::{NatsEngine, direct_get, sequence_of};
use crate::queue::{PartitionId, QueueError};

/// What tells that an entry was removed goes after this long.
const TOMBSTONE_AGE: Duration = Duration::from_secs(60 * 60);

/// What stands in the bucket after a claim was written: partition, owner, revision.
pub(super) type Written = (PartitionId, Option<Owner>, u64);

/// See the module above for what is in it.
#[derive(Clone)]
pub(super) struct Bucket {
    store: Store,
    context: Context,
}

impl Bucket {
    /// Finds or makes `CLUSTER-claims`.
    pub(super) async fn open(engine: &NatsEngine) -> Result<Self, QueueError> {
        let (context, wanted) = (engine.context().clone(), engine.replicas());
        let name = format!("{}-claims", engine.cluster());
        let store = match context.get_key_value(&name).await {
            Ok(store) => store,
            Err(_) => {
                let config = Config {
                    bucket: name.clone(),
                    history: 1,
                    storage: StorageType::File,
                    num_replicas: wanted,
                    limit_markers: Some(TOMBSTONE_AGE),
                    ..Config::default()
                };
                // Where another router is faster, both have asked for the same, which is no error.
                let made = context.create_key_value(config).await;
                made.map_err(|error| QueueError(format!("bucket {name}: {error}")))?
            }
        };
        let has = store.stream.cached_info().config.num_replicas;
        if has < wanted {
            tracing::warn!(
                "bucket {name} has {has} replicas, and --nats-replicas asks for {wanted}: while the servers of those are away no \
                 partition changes hands (nats stream edit {} --replicas {wanted})",
                store.stream_name
            );
        }
        Ok(Self { store, context })
    }

    /// Every change from now on, as long as the connection holds.
    pub(super) async fn changes(&self, engine: &NatsEngine) -> Result<Subscriber, QueueError> {
        let changes = engine.client().subscribe(format!("{}>", self.store.prefix)).await;
        changes.map_err(|error| QueueError(format!("bucket {}: {error}", self.store.name)))
    }

    /// The entries whose keys start with `kind`, as some server has them.
    pub(super) async fn entries(&self, kind: &str) -> Result<Vec<Entry>, QueueError> {
        let prefix = &self.store.prefix;
        let request = format!(r#"{{"multi_last":["{prefix}{kind}>"]}}"#);
        let answers = direct_get(&self.context, &self.store.stream_name, request).await?;
        let read = |answer: &Message| Entry::read(prefix, answer, sequence_of(answer));
        Ok(answers.iter().filter_map(read).collect())
    }

    /// Writes over a revision, or where there is nothing. Gives the new revision; `None` when something else is there.
    pub(super) async fn write(
        &self,
        key: &str,
        value: &impl Serialize,
        over: Option<u64>,
    ) -> Result<Option<u64>, QueueError> {
        let told = |error: &dyn std::error::Error| QueueError(format!("{key}: {error}"));
        let value = serde_json::to_vec(value).map(Bytes::from).map_err(|error| told(&error))?;
        match over {
            Some(revision) => match self.store.update(key, value, revision).await {
                Ok(revision) => Ok(Some(revision)),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
                Err(error) => Err(told(&error)),
            },
            None => match self.store.create(key, value).await {
                Ok(revision) => Ok(Some(revision)),
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(None),
                Err(error) => Err(told(&error)),
            },
        }
    }

    /// Writes a claim over a revision (0: there never was one). `None` when it was not written.
    pub(super) async fn write_claim(
        self,
        partition: PartitionId,
        owner: Option<Owner>,
        over: u64,
    ) -> Option<Written> {
        match self.write(&partition_key(partition), &owner, Some(over)).await {
            Ok(revision) => Some((partition, owner, revision?)),
            Err(error) => {
                tracing::debug!(partition, %error, "a claim was not written");
                None
            }
        }
    }

    /// Removes an entry that still has this revision.
    pub(super) async fn remove(&self, key: &str, revision: u64) {
        let removed = self.store.purge_expect_revision_with_ttl(key, revision, TOMBSTONE_AGE).await;
        if let Err(error) = removed {
            tracing::debug!(key, %error, "an entry was not removed");
        }
    }
}

/// Whether a change of the bucket says more than that a known router is still there.
pub(super) fn is_news(table: &Table, change: &Message) -> bool {
    let is_gone = change.headers.as_ref().is_some_and(is_removal);
    is_gone || !table.members.keys().any(|key| change.subject.ends_with(key.as_str()))
}
