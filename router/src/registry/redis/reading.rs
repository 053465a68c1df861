//! Asking Redis who is online, as any service may.

use ahash::AHashMap;
use futures_util::future::try_join_all;
use redis::{FromRedisValue as _, RedisResult, from_redis_value};

use super::connection::Connection;
use super::keys::{Entry, Owner, edge_key, partition_key, user_key};
use crate::limits;

/// One connection of a user who is online.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Online {
    /// Which device.
    pub device: String,
    /// Name of the edge that holds the connection.
    pub edge: String,
    /// Which start of the edge.
    pub edge_epoch: u64,
    /// The edge's number for the connection.
    pub connection: u64,
    /// By the edge's clock, in milliseconds since the epoch.
    pub connected_at_ms: i64,
    /// Program of the client.
    pub kind: String,
    /// Its version.
    pub version: String,
}

/// The connections of each user, in the order of `users`; none for who is away.
///
/// # Errors
/// Redis could not be asked about all of them.
pub async fn look_up(
    connection: &Connection,
    prefix: &str,
    users: &[&str],
) -> RedisResult<Vec<Vec<Online>>> {
    let mut found = Vec::with_capacity(users.len());
    for users in users.chunks(limits::VIEW_LOOK_UP_MAX) {
        let (mut online, outdated) = look_up_some(connection, prefix, users).await?;
        // A round, or an owner, may have ended between the two reads; then the entries of before have been written again.
        let again: Vec<&str> = outdated.iter().map(|at| users[*at]).collect();
        let (again, _) = look_up_some(connection, prefix, &again).await?;
        for (at, again) in outdated.into_iter().zip(again) {
            online[at] = again;
        }
        found.append(&mut online);
    }
    Ok(found)
}

/// The same, with the places of those who have an entry of another owner or an earlier round.
async fn look_up_some(
    connection: &Connection,
    prefix: &str,
    users: &[&str],
) -> RedisResult<(Vec<Vec<Online>>, Vec<usize>)> {
    let entries = users.iter().map(|user| read_entries(connection, prefix, user));
    let entries = try_join_all(entries).await?;
    let all = || entries.iter().flatten().map(|(_, entry)| entry);
    let owners: AHashMap<u16, Option<Owner>> = all().map(|entry| (entry.partition, None)).collect();
    let owners = owners.into_keys().map(|partition| read_owner(connection, prefix, partition));
    let edges: AHashMap<(&str, u64), ()> =
        all().map(|entry| ((&*entry.edge, entry.edge_epoch), ())).collect();
    let edges = edges.into_keys().map(|edge| read_edge(connection, prefix, edge));
    let owners: AHashMap<u16, Option<Owner>> = try_join_all(owners).await?.into_iter().collect();
    let edges: AHashMap<(&str, u64), bool> = try_join_all(edges).await?.into_iter().collect();

    let mut outdated = Vec::new();
    let mut online = Vec::with_capacity(users.len());
    for (at, entries) in entries.iter().enumerate() {
        let mut counting = Vec::new();
        for (device, entry) in entries {
            let owner = owners.get(&entry.partition).and_then(Option::as_ref);
            match owner.map(|owner| entry.counts_with(owner)) {
                Some(false) => outdated.push(at),
                Some(true) if edges.get(&(&*entry.edge, entry.edge_epoch)) == Some(&true) => {
                    counting.push(Online::new(device, entry));
                }
                Some(true) | None => {}
            }
        }
        online.push(counting);
    }
    outdated.dedup();
    Ok((online, outdated))
}

impl Online {
    fn new(device: &str, entry: &Entry) -> Self {
        Self {
            device: device.to_owned(),
            edge: entry.edge.clone(),
            edge_epoch: entry.edge_epoch,
            connection: entry.connection,
            connected_at_ms: entry.connected_at_ms,
            kind: entry.kind.clone(),
            version: entry.version.clone(),
        }
    }
}

async fn read_entries(
    connection: &Connection,
    prefix: &str,
    user: &str,
) -> RedisResult<Vec<(String, Entry)>> {
    let mut command = redis::cmd("HGETALL");
    command.arg(user_key(prefix, user));
    let fields: Vec<(String, String)> = from_redis_value(connection.ask(&command).await?)?;
    let read = fields.into_iter().filter_map(|(device, entry)| {
        // What somebody else wrote there is nobody's connection.
        serde_json::from_str(&entry).ok().map(|entry| (device, entry))
    });
    Ok(read.collect())
}

async fn read_owner(
    connection: &Connection,
    prefix: &str,
    partition: u16,
) -> RedisResult<(u16, Option<Owner>)> {
    let mut command = redis::cmd("GET");
    command.arg(partition_key(prefix, partition));
    let text = Option::<String>::from_redis_value(connection.ask(&command).await?)?;
    Ok((partition, text.and_then(|text| serde_json::from_str(&text).ok())))
}

async fn read_edge<'a>(
    connection: &Connection,
    prefix: &str,
    edge: (&'a str, u64),
) -> RedisResult<((&'a str, u64), bool)> {
    let mut command = redis::cmd("EXISTS");
    command.arg(edge_key(prefix, edge.0, edge.1));
    Ok((edge, from_redis_value(connection.ask(&command).await?)?))
}
