//! Whether this Hub is the owner still, when a client knows more of its inbox than the Hub does.
//!
//! A router that stood still may be asked before it hears that others have its partitions: by an edge that has just started
//! and knows no later epoch. What it knows is old then, and a client that is told so would believe that messages are lost.
//! So the Hub first appends a record that says who it is: when that is in the log, it has seen all that stands before it, and
//! a client that is still ahead has outlived a log. The client is refused meanwhile, and comes again.

use ahash::AHashMap;
use hawser_proto::link::Register;

use super::{Appending, Effects, Hub};
use crate::inbox::Inbox;
use crate::record::{Kind, OwnerRecord, Record};

/// Users that are doubted at a time. Past it all begin anew.
const USERS_MAX: usize = 1_024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// By user: up to which sequence a proof holds, and which proof it is.
    users: AHashMap<Box<str>, (u64, u64)>,
    /// Proofs that the log was asked for, and that it has answered, in the same order.
    asked: u64,
    answered: u64,
}

impl Doubts {
    /// The oldest proof that was asked for is in the log.
    pub(super) fn note_proven(&mut self) {
        self.answered += 1;
    }

    /// The oldest proof that was asked for is not acknowledged by the log.
    pub(super) fn note_refused(&mut self) {
        self.answered += 1;
        self.users.clear();
    }
}

impl Hub {
    /// Whether a client that is ahead of its inbox has to come again. Asks the log then.
    pub(super) fn is_doubted(&mut self, register: &Register, out: &mut Effects) -> bool {
        let last = self.users.get(register.user.as_str()).map_or(0, Inbox::last);
        let cursor = register.cursor.unwrap_or(0);
        if self.epoch == 0 || cursor <= last {
            return false;
        }
        if self.is_stalled() {
            return true;
        }
        match self.doubts.users.get(register.user.as_str()) {
            // The record that the client knows stands in front of the proof.
            Some((sequence, proof)) if cursor <= *sequence => self.doubts.answered < *proof,
            Some(_) | None => {
                self.prove(&register.user, cursor, out);
                true
            }
        }
    }

    fn prove(&mut self, user: &str, cursor: u64, out: &mut Effects) {
        let owner = OwnerRecord { epoch: self.epoch, router_id: String::new() };
        let kind = Kind::Owner(owner);
        out.append.push(Record::from(kind.clone()).to_bytes());
        out.append_durable = true;
        self.appending.push_back(Appending { kind, replayed: self.replayed });
        let doubts = &mut self.doubts;
        if doubts.users.len() >= USERS_MAX {
            doubts.users.clear();
        }
        doubts.asked += 1;
        doubts.users.insert(user.into(), (cursor, doubts.asked));
    }
}
