//! This shard's users: user id to connections.
//!
//! Holds slot numbers alone; the ids they stand for are read from the slab. Finds an older connection of
//! the same device before the router does, and a user's connections for an operator. 5 to 9 bytes a connection.

use ahash::RandomState;
use hashbrown::HashTable;

use crate::conn::{ConnKey, ConnSlab};

/// See the module.
pub struct Registry {
    slots: HashTable<u32>,
    hasher: RandomState,
}

impl Default for Registry {
    fn default() -> Self {
        Self { slots: HashTable::new(), hasher: RandomState::new() }
    }
}

impl Registry {
    /// Connections registered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Notes the connection, whose phase holds a session.
    pub fn insert(&mut self, conns: &ConnSlab, key: ConnKey) {
        let Some(hash) = self.hash_at(conns, key.index()) else { return };
        let hasher = &self.hasher;
        self.slots.insert_unique(hash, key.index(), |slot| {
            user_at(conns, *slot).map_or(0, |user| hasher.hash_one(user))
        });
    }

    /// Forgets the connection; it still holds its session.
    pub fn remove(&mut self, conns: &ConnSlab, key: ConnKey) {
        let Some(hash) = self.hash_at(conns, key.index()) else { return };
        if let Ok(entry) = self.slots.find_entry(hash, |slot| *slot == key.index()) {
            entry.remove();
        }
    }

    /// The connection of this user's device, if it is here.
    #[must_use]
    pub fn find_device(&self, conns: &ConnSlab, user: &str, device: &str) -> Option<ConnKey> {
        self.keys_of(conns, user).find(|key| {
            conns.get(*key).and_then(|c| c.session()).is_some_and(|s| *s.device == *device)
        })
    }

    /// All connections of this user that are here.
    pub fn keys_of<'a>(
        &'a self,
        conns: &'a ConnSlab,
        user: &'a str,
    ) -> impl Iterator<Item = ConnKey> + 'a {
        self.slots.iter_hash(self.hasher.hash_one(user)).filter_map(move |slot| {
            let (key, connection) = conns.at(*slot)?;
            connection.session().is_some_and(|s| *s.user == *user).then_some(key)
        })
    }

    /// Gives memory back after many have left.
    pub fn shrink(&mut self, conns: &ConnSlab) {
        if self.slots.capacity() > 4 * self.slots.len() + 1024 {
            let hasher = &self.hasher;
            self.slots.shrink_to(2 * self.slots.len(), |slot| {
                user_at(conns, *slot).map_or(0, |user| hasher.hash_one(user))
            });
        }
    }

    fn hash_at(&self, conns: &ConnSlab, slot: u32) -> Option<u64> {
        user_at(conns, slot).map(|user| self.hasher.hash_one(user))
    }
}

fn user_at(conns: &ConnSlab, slot: u32) -> Option<&str> {
    Some(conns.at(slot)?.1.session()?.user.as_str())
}
