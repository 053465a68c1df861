//! Purging in the background: appends do not wait for it.

use std::sync::{Arc, Mutex, PoisonError};

use ahash::AHashMap;
use async_nats::jetstream::stream::Stream;
use tokio::runtime::Handle;

/// What shall go, by stream: at most one mark each.
#[derive(Default)]
pub(super) struct Trimming(Arc<Mutex<Marks>>);

#[derive(Default)]
struct Marks {
    wanted: AHashMap<String, (Stream, u64)>,
    is_running: bool,
}

impl Trimming {
    /// Messages of a stream below a sequence shall go.
    pub(super) fn want(&self, stream: Stream, sequence: u64) {
        let name = stream.cached_info().config.name.clone();
        self.lock().wanted.insert(name, (stream, sequence));
    }

    /// Sees to it, unless that is being done already.
    pub(super) fn run(&self, runtime: &Handle) {
        let mut marks = self.lock();
        if marks.is_running || marks.wanted.is_empty() {
            return;
        }
        marks.is_running = true;
        let trimming = Self(Arc::clone(&self.0));
        runtime.spawn(async move {
            while let Some((name, stream, sequence)) = trimming.next() {
                // A mark that failed is overtaken by the next one of its partition.
                if let Err(error) = stream.purge().sequence(sequence).await {
                    tracing::warn!(stream = name, %error, "a stream was not trimmed");
                }
            }
        });
    }

    fn next(&self) -> Option<(String, Stream, u64)> {
        let mut marks = self.lock();
        let name = marks.wanted.keys().next().cloned();
        let next = name.and_then(|name| {
            let (stream, sequence) = marks.wanted.remove(&name)?;
            Some((name, stream, sequence))
        });
        marks.is_running = next.is_some();
        next
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Marks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
