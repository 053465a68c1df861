//! What waits to be written to one link: encoded once, straight into frames.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use hawser_proto::framing::{LENGTH_BYTES, begin_frame, finish_frame};
use hawser_proto::link::RouterMessage;
use hawser_proto::link::router_message::Message as Outbound;
use tokio::sync::Notify;

use crate::limits;

/// Field `messages` of RouterBatch.
const MESSAGES_FIELD: u32 = 1;

/// Bytes from many owners to one link's writer.
#[derive(Debug, Default)]
pub struct Outgoing {
    frames: Mutex<Frames>,
    wake: Notify,
    closed: AtomicBool,
    close: Notify,
    edge: OnceLock<Box<str>>,
}

#[derive(Debug, Default)]
struct Frames {
    bytes: Vec<u8>,
    /// Where the frame that is being filled begins.
    open: Option<usize>,
}

/// More waits to be written than [`limits::LINK_OUT_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overflow;

impl Outgoing {
    /// Notes the name of the edge at the other end, once.
    pub fn set_edge(&self, name: &str) {
        let _ = self.edge.set(name.into());
    }

    /// The name of the edge at the other end, once it has said it.
    pub fn edge(&self) -> Option<&str> {
        self.edge.get().map(|name| &**name)
    }

    /// Adds messages in order. Call [`Outgoing::wake`] afterwards, once for many.
    ///
    /// # Errors
    /// [`Overflow`]: nothing more was added; the link is to be closed.
    pub fn push_all(&self, messages: impl IntoIterator<Item = Outbound>) -> Result<(), Overflow> {
        if self.is_closed() {
            return Ok(());
        }
        let mut frames = self.lock();
        for message in messages {
            if frames.bytes.len() > limits::LINK_OUT_BYTES_MAX {
                return Err(Overflow);
            }
            frames.push(message);
        }
        Ok(())
    }

    /// Lets the writer know.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until there is something to write, and swaps it for `empty`.
    pub async fn take(&self, empty: &mut Vec<u8>) {
        debug_assert!(empty.is_empty());
        loop {
            {
                let mut frames = self.lock();
                if !frames.bytes.is_empty() {
                    frames.seal();
                    std::mem::swap(&mut frames.bytes, empty);
                    return;
                }
            }
            self.wake.notified().await;
        }
    }

    /// Asks the link to end.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.close.notify_waiters();
    }

    /// Whether [`Outgoing::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Waits for [`Outgoing::close`].
    pub async fn closed(&self) {
        // Made before the look at the flag, so that a close in between is not missed.
        let notified = self.close.notified();
        if !self.is_closed() {
            notified.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Frames {
    fn push(&mut self, message: Outbound) {
        if self.open.is_some_and(|mark| self.bytes.len() - mark >= limits::BATCH_BYTES_MAX) {
            self.seal();
        }
        if self.open.is_none() {
            self.open = Some(begin_frame(&mut self.bytes));
        }
        let message = RouterMessage { message: Some(message) };
        prost::encoding::message::encode(MESSAGES_FIELD, &message, &mut self.bytes);
    }

    fn seal(&mut self) {
        if let Some(mark) = self.open.take() {
            debug_assert!(self.bytes.len() > mark + LENGTH_BYTES);
            finish_frame(&mut self.bytes, mark);
        }
    }
}

#[cfg(test)]
mod tests {
    use hawser_proto::framing::first_frame;
    use hawser_proto::link::{Heartbeat, RouterBatch, SignalOut};
    use prost::Message as _;

    use super::*;

    fn heartbeat(time_ms: i64) -> Outbound {
        Outbound::Heartbeat(Heartbeat { time_ms })
    }

    fn signal(payload_bytes: usize) -> Outbound {
        let payload = vec![7; payload_bytes].into();
        Outbound::Signal(SignalOut { connection: 1, from: "a".into(), kind: "k".into(), payload })
    }

    fn frames(mut bytes: &[u8]) -> Vec<RouterBatch> {
        let mut batches = Vec::new();
        while let Some(body) = first_frame(bytes).unwrap() {
            batches.push(RouterBatch::decode(body).unwrap());
            bytes = &bytes[LENGTH_BYTES + body.len()..];
        }
        assert!(bytes.is_empty());
        batches
    }

    #[tokio::test]
    async fn what_gathered_is_one_batch() {
        let outgoing = Outgoing::default();
        outgoing.push_all([heartbeat(1)]).unwrap();
        outgoing.push_all([heartbeat(2), heartbeat(3)]).unwrap();
        let mut bytes = Vec::new();
        outgoing.take(&mut bytes).await;
        let batches = frames(&bytes);
        assert_eq!(batches.len(), 1);
        assert_eq!(batches[0].messages[2].message, Some(heartbeat(3)));
    }

    #[tokio::test]
    async fn a_batch_is_closed_at_its_bound() {
        let outgoing = Outgoing::default();
        for _ in 0..20 {
            outgoing.push_all([signal(limits::BATCH_BYTES_MAX / 4)]).unwrap();
        }
        let mut bytes = Vec::new();
        outgoing.take(&mut bytes).await;
        let batches = frames(&bytes);
        assert_eq!(batches.iter().map(|batch| batch.messages.len()).sum::<usize>(), 20);
        assert!(batches.len() >= 5, "{}", batches.len());
    }

    #[tokio::test]
    async fn past_its_bound_nothing_more_is_taken() {
        let outgoing = Outgoing::default();
        let mut pushed = 0;
        while outgoing.push_all([signal(1024 * 1024)]).is_ok() {
            pushed += 1;
        }
        assert_eq!(pushed, limits::LINK_OUT_BYTES_MAX / (1024 * 1024));
    }
}
