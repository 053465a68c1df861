//! The edges that this router knows: which link each has, and until when it is waited for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ahash::AHashMap;

use crate::limits;
use crate::outgoing::Outgoing;
use crate::registry::{EdgeId, Session};

/// All edges, by name. Shared by the links; touched when one begins or ends.
#[derive(Debug, Default)]
pub struct Edges(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    edges: AHashMap<String, Edge>,
    ids_given: u32,
}

#[derive(Debug)]
struct Edge {
    id: EdgeId,
    epoch: u64,
    session: Session,
    link: Option<Arc<Outgoing>>,
}

/// What a Hello leads to.
#[derive(Debug)]
pub struct Joined {
    /// The edge.
    pub id: EdgeId,
    /// Its new session.
    pub session: Session,
    /// An earlier start of the same edge, which is gone.
    pub gone: Option<EdgeId>,
}

impl Edges {
    /// An edge has said Hello on a new link. An older link of it is closed.
    ///
    /// # Errors
    /// A sentence for the edge: there are too many.
    pub fn join(&self, name: &str, epoch: u64, link: &Arc<Outgoing>) -> Result<Joined, String> {
        let mut state = self.lock();
        if let Some(edge) = state.edges.get_mut(name)
            && let Some(older) = edge.link.take()
        {
            older.close();
        }
        if let Some(edge) = state.edges.get_mut(name).filter(|edge| edge.epoch == epoch) {
            edge.session = Session(edge.session.0 + 1);
            edge.link = Some(Arc::clone(link));
            return Ok(Joined { id: edge.id, session: edge.session, gone: None });
        }
        if state.edges.len() >= limits::EDGES_MAX && !state.edges.contains_key(name) {
            return Err(format!("this router knows {} edges already", limits::EDGES_MAX));
        }
        let id = EdgeId(state.ids_given);
        state.ids_given += 1;
        let edge = Edge { id, epoch, session: Session(1), link: Some(Arc::clone(link)) };
        let gone = state.edges.insert(name.to_owned(), edge).map(|edge| edge.id);
        Ok(Joined { id, session: Session(1), gone })
    }

    /// A link has ended. Answers whether its edge has no newer one.
    pub fn leave(&self, name: &str, id: EdgeId, session: Session) -> bool {
        let mut state = self.lock();
        let edge = state.edges.get_mut(name);
        let Some(edge) = edge.filter(|edge| edge.id == id && edge.session == session) else {
            return false;
        };
        edge.link = None;
        true
    }

    /// The lease of an edge has ended. Answers whether it did not come back; then it is forgotten.
    pub fn expire(&self, name: &str, id: EdgeId, session: Session) -> bool {
        let mut state = self.lock();
        let same = |edge: &Edge| edge.id == id && edge.session == session && edge.link.is_none();
        if state.edges.get(name).is_some_and(same) {
            state.edges.remove(name);
            return true;
        }
        false
    }

    /// The edges that are waited for: number, name and epoch.
    #[must_use]
    pub fn known(&self) -> Vec<(EdgeId, String, u64)> {
        let state = self.lock();
        state.edges.iter().map(|(name, edge)| (edge.id, name.clone(), edge.epoch)).collect()
    }

    /// Every link there is.
    #[must_use]
    pub fn links(&self) -> Vec<Arc<Outgoing>> {
        self.lock().edges.values().filter_map(|edge| edge.link.clone()).collect()
    }

    /// Closes every link: the process is about to end.
    pub fn close_all(&self) {
        for edge in self.lock().edges.values() {
            if let Some(link) = &edge.link {
                link.close();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_epoch_is_the_same_edge_and_its_older_link_is_closed() {
        let edges = Edges::default();
        let (one, two) = (Arc::new(Outgoing::default()), Arc::new(Outgoing::default()));
        let first = edges.join("edge-1", 7, &one).unwrap();
        let second = edges.join("edge-1", 7, &two).unwrap();
        assert_eq!((first.id, first.session), (second.id, Session(1)));
        assert_eq!(second.session, Session(2));
        assert!(one.is_closed() && !two.is_closed());
        assert!(!edges.leave("edge-1", first.id, first.session));
    }

    #[test]
    fn another_epoch_is_another_edge_and_the_first_is_gone() {
        let edges = Edges::default();
        let link = Arc::new(Outgoing::default());
        let first = edges.join("edge-1", 7, &link).unwrap();
        let second = edges.join("edge-1", 8, &link).unwrap();
        assert_eq!(second.gone, Some(first.id));
        assert_ne!(second.id, first.id);
    }

    #[test]
    fn a_lease_ends_only_when_no_link_came_back() {
        let edges = Edges::default();
        let link = Arc::new(Outgoing::default());
        let first = edges.join("edge-1", 7, &link).unwrap();
        assert!(!edges.expire("edge-1", first.id, first.session));
        assert!(edges.leave("edge-1", first.id, first.session));
        let second = edges.join("edge-1", 7, &link).unwrap();
        assert!(!edges.expire("edge-1", first.id, first.session));
        assert!(edges.leave("edge-1", second.id, second.session));
        assert!(edges.expire("edge-1", second.id, second.session));
        assert!(edges.join("edge-1", 7, &link).unwrap().session == Session(1));
    }
}
