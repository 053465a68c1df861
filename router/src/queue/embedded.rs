//! The embedded engine: raft-engine, many logs in one file sequence. ARCHITECTURE.md has the choice.
//!
//! A partition is a Raft group of its own number plus one, a record an entry whose index is the offset.
//! raft-engine panics where a sync fails; `files` and `guarded` turn that into an error, after which the
//! caller opens the engine again. It forgets where an emptied group ended, so the last record of a
//! partition is never trimmed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use protobuf::well_known_types::BytesValue;
use raft_engine::env::{DefaultFileSystem, FileSystem};
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};

use super::files::{NotedFiles, SyncFailure};
use super::{Batch, Offset, Opener, PartitionId, Queue, QueueError, Record};

/// Size at which a log file is closed and the next one begun. Space comes back in these steps.
const FILE_BYTES: u64 = 32 * 1024 * 1024;
/// Log size from which on files without living records are given back. Several checkpoints' worth at full speed: a
/// file that still has living records is given back by writing them again, and appends wait for that.
const PURGE_BYTES: u64 = 16 * FILE_BYTES;

/// Opens the log in a folder.
#[derive(Debug)]
pub struct EmbeddedOpener<F = DefaultFileSystem> {
    folder: PathBuf,
    partitions: u16,
    files: Arc<F>,
}

impl EmbeddedOpener {
    /// A log of `partitions` partitions in `folder`, which is made when it is not there.
    #[must_use]
    pub fn new(folder: &Path, partitions: u16) -> Self {
        Self::with_files(folder, partitions, Arc::new(DefaultFileSystem))
    }
}

impl<F: FileSystem> EmbeddedOpener<F> {
    /// The same on files that may fail at will, for tests.
    pub fn with_files(folder: &Path, partitions: u16, files: Arc<F>) -> Self {
        Self { folder: folder.to_owned(), partitions, files }
    }
}

impl<F: FileSystem + 'static> Opener for EmbeddedOpener<F> {
    fn open(&mut self) -> Result<Box<dyn Queue>, QueueError> {
        let config = Config {
            dir: self.folder.to_string_lossy().into_owned(),
            recovery_mode: RecoveryMode::TolerateTailCorruption,
            // Payloads are often encrypted or compressed already; what is left to gain is not worth the CPU.
            batch_compression_threshold: ReadableSize(0),
            target_file_size: ReadableSize(FILE_BYTES),
            purge_threshold: ReadableSize(PURGE_BYTES),
            recovery_threads: 2,
            ..Config::default()
        };
        let failure = SyncFailure::default();
        let files = NotedFiles { inner: Arc::clone(&self.files), failure: failure.clone() };
        let engine =
            guarded("open", &failure, || Engine::open_with_file_system(config, Arc::new(files)))?;
        let next = (0..self.partitions)
            .map(|partition| engine.last_index(group(partition)).unwrap_or(0) + 1)
            .collect();
        Ok(Box::new(Embedded { engine: Some(engine), failure, next }))
    }
}

struct Embedded<F: FileSystem> {
    /// Taken out only to be dropped.
    engine: Option<Engine<NotedFiles<F>>>,
    failure: SyncFailure,
    /// Per partition, the offset of the next record.
    next: Vec<Offset>,
}

impl<F: FileSystem> Embedded<F> {
    fn engine(&self) -> Result<&Engine<NotedFiles<F>>, QueueError> {
        self.engine.as_ref().ok_or_else(|| QueueError("the log is closed".to_owned()))
    }
}

impl<F: FileSystem> Queue for Embedded<F> {
    fn append(&mut self, batch: &Batch, offsets: &mut Vec<Offset>) -> Result<(), QueueError> {
        offsets.clear();
        let mut entries: Vec<(PartitionId, BytesValue)> = Vec::with_capacity(batch.records.len());
        for (partition, bytes) in &batch.records {
            let Some(next) = self.next.get_mut(usize::from(*partition)) else {
                return Err(QueueError::no_partition(*partition));
            };
            offsets.push(*next);
            entries.push((*partition, entry(*next, bytes)));
            *next += 1;
        }
        // Stable: the order within a partition stays.
        entries.sort_by_key(|(partition, _)| *partition);
        let mut log_batch = LogBatch::with_capacity(self.next.len());
        let mut run = Vec::new();
        let mut entries = entries.into_iter().peekable();
        while let Some((partition, first)) = entries.next() {
            run.push(first);
            while let Some((_, next)) = entries.next_if(|(other, _)| *other == partition) {
                run.push(next);
            }
            log_batch.add_entries::<Indexed>(group(partition), &run).map_err(told("append"))?;
            run.clear();
        }
        let engine = self.engine()?;
        guarded("append", &self.failure, || engine.write(&mut log_batch, batch.durable)).map(drop)
    }

    fn read(
        &mut self,
        partition: PartitionId,
        from: Offset,
        bytes_max: usize,
        out: &mut Vec<Record>,
    ) -> Result<(), QueueError> {
        let engine = self.engine()?;
        let group = group(partition);
        let (Some(first), Some(last)) = (engine.first_index(group), engine.last_index(group))
        else {
            return Ok(());
        };
        let from = from.max(first);
        if from > last {
            return Ok(());
        }
        let mut entries = Vec::new();
        guarded("read", &self.failure, || {
            engine.fetch_entries_to::<Indexed>(group, from, last + 1, Some(bytes_max), &mut entries)
        })?;
        out.extend(entries.into_iter().map(|entry| {
            let offset = Indexed::index(&entry);
            Record { offset, bytes: Bytes::from(entry.value).slice(INDEX_BYTES..) }
        }));
        Ok(())
    }

    fn end(&self, partition: PartitionId) -> Offset {
        self.next.get(usize::from(partition)).copied().unwrap_or(1)
    }

    fn skip_to(&mut self, partition: PartitionId, next: Offset) -> Result<(), QueueError> {
        if self.end(partition) >= next {
            return Ok(());
        }
        // raft-engine takes no holes, but an emptied group may begin anywhere.
        let mut log_batch = LogBatch::default();
        log_batch.add_command(group(partition), Command::Clean);
        let engine = self.engine()?;
        guarded("skip", &self.failure, || engine.write(&mut log_batch, true))?;
        self.next[usize::from(partition)] = next;
        Ok(())
    }

    fn trim(&mut self, below: &[(PartitionId, Offset)]) -> Result<(), QueueError> {
        let engine = self.engine()?;
        for (partition, below) in below {
            let last = self.end(*partition).saturating_sub(1);
            guarded("trim", &self.failure, || {
                Ok(engine.compact_to(group(*partition), (*below).min(last)))
            })?;
        }
        guarded("trim", &self.failure, || engine.purge_expired_files()).map(drop)
    }
}

impl<F: FileSystem> Drop for Embedded<F> {
    fn drop(&mut self) {
        // Closing writes and syncs, and panics where that fails; all that was acknowledged is safe already.
        if let Some(engine) = self.engine.take() {
            let _ = catch_unwind(AssertUnwindSafe(move || drop(engine)));
        }
    }
}

const INDEX_BYTES: usize = size_of::<Offset>();

/// An entry is the offset, big-endian, and the record.
fn entry(offset: Offset, record: &[u8]) -> BytesValue {
    let mut value = Vec::with_capacity(INDEX_BYTES + record.len());
    value.extend_from_slice(&offset.to_be_bytes());
    value.extend_from_slice(record);
    let mut entry = BytesValue::new();
    entry.value = value;
    entry
}

/// Tells raft-engine the index of an entry.
#[derive(Clone)]
struct Indexed;

impl MessageExt for Indexed {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        entry.value.first_chunk::<INDEX_BYTES>().map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }
}

/// raft-engine keeps group 0 for itself in places; ours begin at 1.
fn group(partition: PartitionId) -> u64 {
    u64::from(partition) + 1
}

fn told(doing: &'static str) -> impl Fn(raft_engine::Error) -> QueueError {
    move |error| QueueError(format!("the log could not {doing}: {error}"))
}

/// Runs a call of the engine and turns failed syncs, told or panicked about, into errors.
fn guarded<T>(
    doing: &'static str,
    failure: &SyncFailure,
    call: impl FnOnce() -> raft_engine::Result<T>,
) -> Result<T, QueueError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => match failure.get() {
            None => result.map_err(told(doing)),
            Some(error) => Err(QueueError(format!("the log could not {doing}: {error}"))),
        },
        Err(_) => Err(QueueError(format!("the log could not {doing}: the disk refused to sync"))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind, Result as IoResult, Seek, SeekFrom, Write};
    use std::sync::atomic::{AtomicBool, Ordering};

    use raft_engine::env::{Handle, Permission, WriteExt};
    use tempfile::TempDir;

    use super::super::contract;
    use super::*;

    fn opener(folder: &TempDir) -> EmbeddedOpener {
        EmbeddedOpener::new(folder.path(), contract::PARTITIONS)
    }

    #[test]
    fn the_contract_holds() {
        let folder = TempDir::new().unwrap();
        contract::holds(&mut opener(&folder));
    }

    #[test]
    fn a_log_cut_off_anywhere_opens_with_whole_records_in_order() {
        let folder = TempDir::new().unwrap();
        let mut queue = opener(&folder).open().unwrap();
        let mut ends = Vec::new();
        let file = folder.path().join("0000000000000001.raftlog");
        for number in 0..60 {
            let record = format!("record {number} {}", "x".repeat(number));
            contract::append(&mut *queue, &[(0, &record), (1, &record)]);
            // What follows the last record is space taken in advance, all zero.
            let written = std::fs::read(&file).unwrap();
            ends.push(written.iter().rposition(|byte| *byte != 0).unwrap() + 1);
        }
        drop(queue);
        let whole = std::fs::read(&file).unwrap();
        let length = *ends.last().unwrap();
        for cut in (ends[0]..=length).step_by(97).chain(ends[50] - 3..ends[50] + 3) {
            let acknowledged = ends.iter().filter(|end| **end <= cut).count() as u64;
            for filling in [0, 1] {
                let copy = TempDir::new().unwrap();
                let mut bytes = whole[..cut].to_vec();
                bytes.resize(cut + filling * 500, 0);
                let name = file.file_name().unwrap();
                std::fs::write(copy.path().join(name), bytes).unwrap();
                let mut queue = opener(&copy).open().unwrap();
                for partition in [0, 1] {
                    let records = contract::read(&mut *queue, partition, 1);
                    let offsets: Vec<_> = records.iter().map(|record| record.offset).collect();
                    assert!(offsets.len() as u64 >= acknowledged, "cut at {cut}");
                    assert_eq!(offsets, (1..=offsets.len() as u64).collect::<Vec<_>>());
                }
                let next = queue.end(0);
                assert_eq!(contract::append(&mut *queue, &[(0, "after")]), [next]);
            }
        }
    }

    #[test]
    fn space_comes_back_when_everything_is_trimmed() {
        let folder = TempDir::new().unwrap();
        let mut queue = opener(&folder).open().unwrap();
        let record = "x".repeat(1024 * 1024);
        let bytes_used = || -> u64 {
            std::fs::read_dir(folder.path())
                .unwrap()
                .map(|file| file.unwrap().metadata().unwrap().len())
                .sum()
        };
        for round in 0..6 {
            for _ in 0..20 {
                contract::append(&mut *queue, &[(0, &record), (1, "small")]);
            }
            queue.trim(&[(0, queue.end(0)), (1, queue.end(1))]).unwrap();
            assert!(bytes_used() < 4 * FILE_BYTES, "round {round}: {} bytes", bytes_used());
        }
        assert_eq!(contract::read(&mut *queue, 1, 120).len(), 1);
    }

    /// Files on a disk that can be told to be full, or to fail to sync.
    #[derive(Default)]
    struct FaultyFiles {
        is_full: Arc<AtomicBool>,
        sync_fails: Arc<AtomicBool>,
    }

    struct FaultyHandle {
        inner: Arc<<DefaultFileSystem as FileSystem>::Handle>,
        sync_fails: Arc<AtomicBool>,
    }

    struct FaultyWriter {
        inner: <DefaultFileSystem as FileSystem>::Writer,
        is_full: Arc<AtomicBool>,
    }

    impl FaultyFiles {
        fn handle(&self, inner: <DefaultFileSystem as FileSystem>::Handle) -> FaultyHandle {
            FaultyHandle { inner: Arc::new(inner), sync_fails: Arc::clone(&self.sync_fails) }
        }

        fn check_space(&self) -> IoResult<()> {
            full(&self.is_full)
        }
    }

    fn full(is_full: &AtomicBool) -> IoResult<()> {
        if is_full.load(Ordering::Relaxed) { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    impl Handle for FaultyHandle {
        fn truncate(&self, offset: usize) -> IoResult<()> {
            self.inner.truncate(offset)
        }

        fn file_size(&self) -> IoResult<usize> {
            self.inner.file_size()
        }

        fn sync(&self) -> IoResult<()> {
            if self.sync_fails.load(Ordering::Relaxed) {
                return Err(Error::other("the disk is broken"));
            }
            self.inner.sync()
        }
    }

    impl Write for FaultyWriter {
        fn write(&mut self, bytes: &[u8]) -> IoResult<usize> {
            full(&self.is_full)?;
            self.inner.write(bytes)
        }

        fn flush(&mut self) -> IoResult<()> {
            self.inner.flush()
        }
    }

    impl Seek for FaultyWriter {
        fn seek(&mut self, to: SeekFrom) -> IoResult<u64> {
            self.inner.seek(to)
        }
    }

    impl WriteExt for FaultyWriter {
        fn truncate(&mut self, offset: usize) -> IoResult<()> {
            self.inner.truncate(offset)
        }

        fn allocate(&mut self, offset: usize, size: usize) -> IoResult<()> {
            full(&self.is_full)?;
            self.inner.allocate(offset, size)
        }
    }

    impl FileSystem for FaultyFiles {
        type Handle = FaultyHandle;
        type Reader = <DefaultFileSystem as FileSystem>::Reader;
        type Writer = FaultyWriter;

        fn create<P: AsRef<Path>>(&self, path: P) -> IoResult<FaultyHandle> {
            self.check_space()?;
            Ok(self.handle(DefaultFileSystem.create(path)?))
        }

        fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> IoResult<FaultyHandle> {
            Ok(self.handle(DefaultFileSystem.open(path, permission)?))
        }

        fn delete<P: AsRef<Path>>(&self, path: P) -> IoResult<()> {
            DefaultFileSystem.delete(path)
        }

        fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> IoResult<()> {
            DefaultFileSystem.rename(from, to)
        }

        fn new_reader(&self, handle: Arc<FaultyHandle>) -> IoResult<Self::Reader> {
            DefaultFileSystem.new_reader(Arc::clone(&handle.inner))
        }

        fn new_writer(&self, handle: Arc<FaultyHandle>) -> IoResult<FaultyWriter> {
            let inner = DefaultFileSystem.new_writer(Arc::clone(&handle.inner))?;
            Ok(FaultyWriter { inner, is_full: Arc::clone(&self.is_full) })
        }
    }

    /// Appends once while `fault` is set, then opens the log again without it.
    fn fail_once(fault: impl Fn(&FaultyFiles) -> &Arc<AtomicBool>) {
        let folder = TempDir::new().unwrap();
        let files = Arc::new(FaultyFiles::default());
        let mut opener =
            EmbeddedOpener::with_files(folder.path(), contract::PARTITIONS, Arc::clone(&files));
        let mut queue = opener.open().unwrap();
        contract::append(&mut *queue, &[(0, "before")]);
        fault(&files).store(true, Ordering::Relaxed);
        let batch = Batch { records: vec![(0, contract::text("lost?"))], durable: true };
        assert!(queue.append(&batch, &mut Vec::new()).is_err());
        drop(queue);
        fault(&files).store(false, Ordering::Relaxed);
        let mut queue = opener.open().unwrap();
        let records = contract::read(&mut *queue, 0, 1);
        assert_eq!(records[0].bytes, contract::text("before"));
        assert!(records.len() <= 2);
        let next = queue.end(0);
        assert_eq!(contract::append(&mut *queue, &[(0, "after")]), [next]);
    }

    #[test]
    fn a_full_disk_is_an_error_and_the_log_opens_again() {
        fail_once(|files| &files.is_full);
    }

    #[test]
    fn a_failed_sync_is_an_error_and_the_log_opens_again() {
        fail_once(|files| &files.sync_fails);
    }
}
