//! Files for raft-engine whose failed sync is noted instead of told.
//!
//! raft-engine panics when a sync fails, also while it is being dropped, and two panics at once abort the
//! process. So a failed sync is hidden from it and kept here; the engine's caller asks after every call,
//! and opens the log again.

use std::io::{Error, Result};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use raft_engine::env::{FileSystem, Handle, Permission};

/// The first sync that failed.
#[derive(Debug, Clone, Default)]
pub(super) struct SyncFailure(Arc<Mutex<Option<String>>>);

impl SyncFailure {
    /// Why a sync failed, if one did.
    pub(super) fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, error: &Error) {
        let mut failure = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| error.to_string());
    }
}

/// `F` with syncs that do not fail in raft-engine's eyes.
pub(super) struct NotedFiles<F> {
    pub(super) inner: Arc<F>,
    pub(super) failure: SyncFailure,
}

impl<F: FileSystem> NotedFiles<F> {
    fn handle(&self, inner: F::Handle) -> NotedHandle<F> {
        NotedHandle { inner: Arc::new(inner), failure: self.failure.clone() }
    }
}

/// An open file.
pub(super) struct NotedHandle<F: FileSystem> {
    inner: Arc<F::Handle>,
    failure: SyncFailure,
}

impl<F: FileSystem> Handle for NotedHandle<F> {
    fn truncate(&self, offset: usize) -> Result<()> {
        self.inner.truncate(offset)
    }

    fn file_size(&self) -> Result<usize> {
        self.inner.file_size()
    }

    fn sync(&self) -> Result<()> {
        if let Err(error) = self.inner.sync() {
            self.failure.note(&error);
        }
        Ok(())
    }
}

impl<F: FileSystem> FileSystem for NotedFiles<F> {
    type Handle = NotedHandle<F>;
    type Reader = F::Reader;
    type Writer = F::Writer;

    fn create<P: AsRef<Path>>(&self, path: P) -> Result<Self::Handle> {
        Ok(self.handle(self.inner.create(path)?))
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> Result<Self::Handle> {
        Ok(self.handle(self.inner.open(path, permission)?))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        self.inner.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> Result<()> {
        self.inner.rename(from, to)
    }

    fn new_reader(&self, handle: Arc<Self::Handle>) -> Result<Self::Reader> {
        self.inner.new_reader(Arc::clone(&handle.inner))
    }

    fn new_writer(&self, handle: Arc<Self::Handle>) -> Result<Self::Writer> {
        self.inner.new_writer(Arc::clone(&handle.inner))
    }
}
