//! What stands in the bucket: who is there, and who has which partition.

use std::time::Duration;

use ahash::AHashMap;
use async_nats::{HeaderMap, Message};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::queue::PartitionId;

/// A router, from its start to its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Owner {
    /// Its name.
    pub(super) router: String,
    /// Random: tells this start from the one before.
    pub(super) start: u64,
}

/// What a router says about itself, again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    #[serde(flatten)]
    pub(super) owner: Owner,
    /// Where edges reach it.
    pub(super) address: String,
}

/// A partition's place in the bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Claim {
    /// `None`: anybody may have it.
    pub(super) owner: Option<Owner>,
    /// Of the bucket; counts up with every change. 0: there never was one.
    pub(super) revision: u64,
}

/// A router that says that it is there.
#[derive(Debug, Clone)]
pub(super) struct Presence {
    pub(super) owner: Owner,
    pub(super) revision: u64,
    /// When the revision was seen first, by the clock of this machine: no other is trusted.
    pub(super) seen_at: Instant,
}

/// The bucket as far as it is known. Different servers may answer, each with what it knows: of two revisions the higher counts.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) claims: Vec<Claim>,
    /// By key.
    pub(super) members: AHashMap<String, Presence>,
}

impl Table {
    pub(super) fn new(partitions: u16) -> Self {
        Self { claims: vec![Claim::default(); usize::from(partitions)], members: AHashMap::new() }
    }

    /// Notes one entry. What is not understood is passed over: a newer release may have written it.
    pub(super) fn note(&mut self, now: Instant, entry: Entry) {
        match entry {
            Entry::Claim { partition, owner, revision } => {
                let claim = self.claims.get_mut(usize::from(partition));
                if let Some(claim) = claim.filter(|claim| claim.revision < revision) {
                    *claim = Claim { owner, revision };
                }
            }
            Entry::Member { key, member: Some(member), revision } => {
                let known = self.members.get(&key).map_or(0, |known| known.revision);
                if known < revision {
                    let presence = Presence { owner: member.owner, revision, seen_at: now };
                    self.members.insert(key, presence);
                }
            }
            Entry::Member { key, member: None, revision } => {
                self.members
                    .remove_entry(&key)
                    .filter(|(_, known)| known.revision > revision)
                    .map(|(key, known)| self.members.insert(key, known));
            }
        }
    }

    /// Nobody is dead for not having been heard of until now.
    pub(super) fn hear_of_all(&mut self, now: Instant) {
        self.members.values_mut().for_each(|known| known.seen_at = now);
    }

    /// Those who have been heard of within the lease.
    pub(super) fn live(&self, now: Instant, lease: Duration) -> impl Iterator<Item = &Owner> {
        self.members
            .values()
            .filter(move |known| now.duration_since(known.seen_at) <= lease)
            .map(|known| &known.owner)
    }
}

/// One key of the bucket and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Claim {
        partition: PartitionId,
        owner: Option<Owner>,
        revision: u64,
    },
    /// `None`: it has left.
    Member {
        key: String,
        member: Option<Member>,
        revision: u64,
    },
}

impl Entry {
    /// Reads an entry of the bucket whose subjects start with `prefix`.
    pub(super) fn read(prefix: &str, message: &Message, revision: u64) -> Option<Self> {
        let headers = message.headers.as_ref();
        let subject = headers
            .and_then(|headers| headers.get(async_nats::header::NATS_SUBJECT))
            .map_or(message.subject.as_str(), |subject| subject.as_str());
        let key = subject.strip_prefix(prefix)?;
        let is_gone = headers.is_some_and(is_removal);
        if let Some(partition) = key.strip_prefix(PARTITION_PREFIX) {
            let partition = partition.parse().ok()?;
            let owner =
                if is_gone { None } else { serde_json::from_slice(&message.payload).ok()? };
            return Some(Self::Claim { partition, owner, revision });
        }
        key.strip_prefix(MEMBER_PREFIX)?;
        let member =
            if is_gone { None } else { Some(serde_json::from_slice(&message.payload).ok()?) };
        Some(Self::Member { key: key.to_owned(), member, revision })
    }
}

/// Whether a message of the bucket takes its key away.
pub(super) fn is_removal(headers: &HeaderMap) -> bool {
    headers.get("KV-Operation").is_some() || headers.get("Nats-Marker-Reason").is_some()
}

/// Keys of partitions and of routers start with these.
pub(super) const PARTITION_PREFIX: &str = "partition.";
pub(super) const MEMBER_PREFIX: &str = "member.";

/// Key of a partition.
pub(super) fn partition_key(partition: PartitionId) -> String {
    format!("{PARTITION_PREFIX}{partition}")
}

/// Key of a router. A key has few characters: others are written as `=` and two hexadecimal digits.
pub(super) fn member_key(router: &str) -> String {
    let mut key = MEMBER_PREFIX.to_owned();
    for byte in router.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            key.push(char::from(byte));
        } else {
            key.push_str(&format!("={byte:02x}"));
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(router: &str) -> Owner {
        Owner { router: router.to_owned(), start: 7 }
    }

    #[test]
    fn every_name_has_a_key_of_its_own() {
        assert_eq!(member_key("router-1"), "member.router-1");
        assert_eq!(member_key("a.b c=ü"), "member.a=2eb=20c=3d=c3=bc");
        assert_ne!(member_key("a=2e"), member_key("a."));
    }

    #[tokio::test]
    async fn an_answer_from_a_server_that_is_behind_changes_nothing() {
        let now = Instant::now();
        let mut table = Table::new(1);
        let claim = |owner, revision| Entry::Claim { partition: 0, owner, revision };
        table.note(now, claim(Some(owner("a")), 9));
        table.note(now, claim(None, 8));
        assert_eq!(table.claims[0], Claim { owner: Some(owner("a")), revision: 9 });

        let member = Member { owner: owner("a"), address: "x:1".to_owned() };
        let entry =
            |member, revision| Entry::Member { key: "member.a".to_owned(), member, revision };
        table.note(now, entry(Some(member.clone()), 5));
        let later = now + Duration::from_secs(2);
        table.note(later, entry(Some(member.clone()), 5));
        table.note(later, entry(None, 4));
        assert_eq!(table.live(later, Duration::from_secs(1)).count(), 0);
        table.note(later, entry(Some(member), 6));
        assert_eq!(table.live(later, Duration::from_secs(1)).count(), 1);
        table.note(later, entry(None, 7));
        assert!(table.members.is_empty());
    }

    #[test]
    fn a_member_is_written_flat() {
        let member = Member { owner: owner("a"), address: "x:1".to_owned() };
        let text = serde_json::to_string(&member).unwrap();
        assert_eq!(text, r#"{"router":"a","start":7,"address":"x:1"}"#);
        assert_eq!(serde_json::from_str::<Member>(&text).unwrap(), member);
    }
}
