//! What lately happened to messages, for whoever asks where one is: see [`queries`](super::queries).
//!
//! A ring of steps of one size, the oldest goes. It is written on the path of every message and read seldom: a step is
//! put down without being looked up, and a question reads the ring from end to end. It is memory of this
//! process alone; what has left it is told by inbox and cursors, without the times.

use std::collections::VecDeque;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::queue::Offset;
use crate::registry::ConnectionRef;

/// One step of one message, or of all up to one.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) at_ms: i64,
    /// Whose inbox.
    user: Arc<str>,
    pub(super) sequence: u64,
    pub(super) kind: StepKind,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepKind {
    /// The log has it, at this offset.
    Appended(Offset),
    /// It was let out to this connection.
    Delivered(ConnectionRef, DeviceMark),
    /// This device has acknowledged everything up to it.
    Acknowledged(DeviceMark),
}

/// Stands for a device id among the few of one user, in less space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeviceMark(u32);

impl DeviceMark {
    pub(super) fn of(device: &str) -> Self {
        Self(xxh3_64(device.as_bytes()) as u32)
    }
}

const _: () = assert!(size_of::<Step>() <= 56);

/// The last steps of a partition.
#[derive(Debug)]
pub(super) struct Journal {
    steps: VecDeque<Step>,
    steps_max: usize,
}

impl Journal {
    /// Remembers at most so many steps; none with 0. Takes memory as they come.
    pub(super) fn new(steps_max: usize) -> Self {
        Self { steps: VecDeque::new(), steps_max }
    }

    /// Whether anything is remembered at all.
    pub(super) fn is_on(&self) -> bool {
        self.steps_max > 0
    }

    /// Notes a step; past the bound the oldest is forgotten.
    pub(super) fn note(&mut self, at_ms: i64, user: &Arc<str>, sequence: u64, kind: StepKind) {
        if !self.is_on() {
            return;
        }
        if self.steps.len() >= self.steps_max {
            self.steps.pop_front();
        }
        self.steps.push_back(Step { at_ms, user: Arc::clone(user), sequence, kind });
    }

    /// User, sequence and time of the message at an offset of the log.
    pub(super) fn appended(&self, offset: Offset) -> Option<(&Arc<str>, u64, i64)> {
        let is_it = |step: &&Step| step.kind == StepKind::Appended(offset);
        self.steps.iter().rev().find(is_it).map(|step| (&step.user, step.sequence, step.at_ms))
    }

    /// What happened to a message after it was appended, oldest first.
    pub(super) fn of(&self, user: &str, sequence: u64) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(move |step| {
            let concerns = match step.kind {
                StepKind::Appended(_) => false,
                StepKind::Delivered(..) => step.sequence == sequence,
                StepKind::Acknowledged(_) => step.sequence >= sequence,
            };
            concerns && *step.user == *user
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::EdgeId;

    const CONNECTION: ConnectionRef = ConnectionRef { edge: EdgeId(1), connection: 7 };

    #[test]
    fn the_oldest_step_goes_and_none_is_kept_when_it_is_off() {
        let user: Arc<str> = "bob".into();
        let mut journal = Journal::new(3);
        for offset in 1..=5 {
            journal.note(offset as i64, &user, offset, StepKind::Appended(offset));
        }
        assert!(journal.appended(2).is_none());
        assert_eq!(journal.appended(3), Some((&user, 3, 3)));
        assert_eq!(journal.steps.len(), 3);
        let mut off = Journal::new(0);
        off.note(1, &user, 1, StepKind::Appended(1));
        assert!(off.appended(1).is_none() && off.steps.capacity() == 0);
    }

    #[test]
    fn an_acknowledgement_concerns_everything_up_to_it_and_a_delivery_one_message() {
        let (bob, eve): (Arc<str>, Arc<str>) = ("bob".into(), "eve".into());
        let phone = DeviceMark::of("phone");
        let mut journal = Journal::new(10);
        for sequence in 1..=3 {
            journal.note(5, &bob, sequence, StepKind::Delivered(CONNECTION, phone));
        }
        journal.note(6, &eve, 9, StepKind::Acknowledged(phone));
        journal.note(7, &bob, 2, StepKind::Acknowledged(phone));
        let times = |sequence| journal.of("bob", sequence).map(|s| s.at_ms).collect::<Vec<_>>();
        assert_eq!((times(1), times(2), times(3)), (vec![5, 7], vec![5, 7], vec![5]));
    }
}
