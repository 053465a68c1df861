//! A crowd that is there while something else is measured: on a thread of its own, where its rings live.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};

use super::crowded::connect_all;
use super::{Stop, TURN_MAX};
use crate::clock;
use crate::crowd::{Crowd, CrowdPlan};
use crate::failure::Failure;

/// See the module. It goes when this is dropped.
pub(super) struct Background {
    stop: Stop,
    thread: Option<JoinHandle<Result<Crowding, Failure>>>,
}

/// How the crowd was in the end.
#[derive(Debug)]
pub(super) struct Crowding {
    pub live: usize,
    pub errors: u64,
    pub first_error: Option<String>,
}

impl Background {
    /// Connects the crowd, and returns when all are in.
    ///
    /// # Errors
    /// When they do not get in, or `stop` is asked.
    pub(super) fn start(plan: CrowdPlan, stop: &Stop) -> Result<Self, Failure> {
        let own_stop = Stop::default();
        let (all_in, are_all_in) = channel();
        let stop_of_thread = own_stop.clone();
        let thread = thread::spawn(move || {
            let mut crowd = Crowd::new(&plan)?;
            connect_all(&mut crowd, plan.sessions, &stop_of_thread, |_, _| {})?;
            // The receiver is gone when the run was interrupted.
            let _ = all_in.send(());
            while !stop_of_thread.is_asked() {
                crowd.turn(clock::now() + TURN_MAX)?;
            }
            let Crowd { live, errors, ref mut first_error, .. } = crowd;
            Ok(Crowding { live, errors, first_error: first_error.take() })
        });
        let background = Self { stop: own_stop, thread: Some(thread) };
        loop {
            match are_all_in.recv_timeout(TURN_MAX) {
                Ok(()) => return Ok(background),
                Err(RecvTimeoutError::Timeout) if !stop.is_asked() => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Failure::Broken("interrupted before all were in".to_owned()));
                }
                // The thread has ended before all were in.
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(match background.end() {
                        Err(failure) => failure,
                        Ok(crowding) => Failure::Broken(format!("{crowding:?}")),
                    });
                }
            }
        }
    }

    /// Ends the crowd, and tells how it was.
    ///
    /// # Errors
    /// What ended it before.
    pub(super) fn end(mut self) -> Result<Crowding, Failure> {
        self.stop.ask();
        let ended = self.thread.take().map(JoinHandle::join);
        ended.and_then(Result::ok).unwrap_or_else(|| {
            Err(Failure::Broken("the thread of the idle connections panicked".to_owned()))
        })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.ask();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
