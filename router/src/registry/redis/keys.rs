//! What stands in Redis. Others read it: fields are added, and keep their meaning.
//!
//! | key | type | is |
//! |---|---|---|
//! | `PREFIX:{USER}` | hash: device to [`Entry`] | the connections of a user |
//! | `PREFIX:partition:N` | string: [`Owner`], expires | whose entries of a partition count |
//! | `PREFIX:edge:EPOCH:NAME` | string, expires | an edge that a router waits for |
//!
//! An entry counts when the partition that it names has its owner and a round that is not above its own, and the edge that it
//! names is there. So a router, an edge, or both may die without a word, and nobody has to write an entry again to keep it.

use serde::{Deserialize, Serialize};

use super::connection::Lua;

/// One connection of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Name of the edge.
    pub edge: String,
    /// Which start of the edge. Text, because many readers have numbers of 53 bits.
    #[serde(with = "as_text")]
    pub edge_epoch: u64,
    /// The edge's number for the connection.
    #[serde(with = "as_text")]
    pub connection: u64,
    pub connected_at_ms: i64,
    pub kind: String,
    pub version: String,
    pub partition: u16,
    #[serde(flatten)]
    pub owner: Owner,
}

impl Entry {
    /// Whether it counts where this is the owner of its partition.
    pub(super) fn counts_with(&self, owner: &Owner) -> bool {
        self.owner.owner == owner.owner && self.owner.round >= owner.round
    }
}

/// Who owns a partition, and since when entries count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    /// Another one for every router, every start of it, and every time it takes the partition over.
    pub owner: String,
    /// Epoch of the owner: a later one has a higher one, where several routers may be owners.
    pub term: u64,
    /// In an entry: in which round it was written. In a partition: the lowest that counts.
    pub round: u64,
}

/// The key of a user. In braces stands what decides on the slot.
pub(super) fn user_key(prefix: &str, user: &str) -> String {
    format!("{prefix}:{{{user}}}")
}

pub(super) fn partition_key(prefix: &str, partition: u16) -> String {
    format!("{prefix}:partition:{partition}")
}

pub(super) fn edge_key(prefix: &str, name: &str, epoch: u64) -> String {
    format!("{prefix}:edge:{epoch}:{name}")
}

/// JSON of it.
pub(super) fn json(value: &impl Serialize) -> String {
    // Text and numbers alone: it cannot fail.
    serde_json::to_string(value).unwrap_or_default()
}

/// The scripts: each on one key, so that they run anywhere in a cluster.
pub(super) struct Scripts {
    /// Key of a user; device, entry, term, owner, round, milliseconds until the key expires. Writes the entry, and takes out
    /// what earlier owners left. 0: a later owner, or a later round of this one, has written.
    pub register: Lua,
    /// Key of a user; edge, edge epoch, connection, term. Takes the entry of that connection out, if it is there.
    pub unregister: Lua,
    /// Key of a partition; JSON of [`Owner`], term, milliseconds. 0: a later owner is there; 1: there was nobody; 2: written.
    pub own: Lua,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self { register: Lua::new(REGISTER), unregister: Lua::new(UNREGISTER), own: Lua::new(OWN) }
    }
}

const REGISTER: &str = r"
local held, term, round = redis.call('HGETALL', KEYS[1]), tonumber(ARGV[3]), tonumber(ARGV[5])
local left = {}
for at = 1, #held, 2 do
    local read, known = pcall(cjson.decode, held[at + 1])
    if not read or type(known) ~= 'table' or type(known.term) ~= 'number' then
        left[#left + 1] = held[at]
    elseif known.term > term then
        return 0
    elseif known.owner ~= ARGV[4] then
        left[#left + 1] = held[at]
    elseif held[at] == ARGV[1] and known.round > round then
        return 0
    end
end
for _, device in ipairs(left) do redis.call('HDEL', KEYS[1], device) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
return 1";

const UNREGISTER: &str = r"
local held = redis.call('HGETALL', KEYS[1])
for at = 1, #held, 2 do
    local read, known = pcall(cjson.decode, held[at + 1])
    if read and type(known) == 'table' and known.edge == ARGV[1] and known.edge_epoch == ARGV[2]
        and known.connection == ARGV[3] and (tonumber(known.term) or 0) <= tonumber(ARGV[4]) then
        return redis.call('HDEL', KEYS[1], held[at])
    end
end
return 0";

const OWN: &str = r"
local held, answer = redis.call('GET', KEYS[1]), 1
if held then
    local read, known = pcall(cjson.decode, held)
    if read and type(known) == 'table' and (tonumber(known.term) or 0) > tonumber(ARGV[2]) then return 0 end
    answer = 2
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return answer";

mod as_text {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}
