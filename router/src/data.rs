//! The data folder of a router: lock, store, and the engine that is embedded in it.

use std::fs::{File, TryLockError};
use std::sync::Arc;

use crate::config::Config;
use crate::engine::EngineKind;
use crate::hub::{Effects, Event, Hub, Now};
use crate::link::unix_ms;
use crate::queue::committer::replay;
use crate::queue::embedded::EmbeddedOpener;
use crate::queue::{Opener as _, Queue};
use crate::server::{StartError, usage};
use crate::store::Store;
use crate::store::disk::{DiskStore, OpenError};

/// The data folder, open and recovered.
#[derive(Debug)]
pub(crate) struct Data {
    /// Held as long as the process uses the folder.
    pub(crate) lock: File,
    /// What outlives checkpoints.
    pub(crate) store: Arc<DiskStore>,
    /// By owner.
    pub(crate) hubs: Vec<Vec<Hub>>,
    /// Absent where it is opened later, by an engine that routers share.
    pub(crate) queue: Option<OpenQueue>,
    /// Per partition, the offset after the last record that its Hub has.
    pub(crate) expected: Vec<Option<u64>>,
}

/// The open queue.
pub(crate) struct OpenQueue(pub(crate) Box<dyn Queue>);

impl std::fmt::Debug for OpenQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OpenQueue")
    }
}

impl Data {
    /// Locks and opens the folder, and replays the log of the engine that is in it.
    ///
    /// # Errors
    /// [`StartError`].
    pub(crate) fn open(config: &Config) -> Result<Self, StartError> {
        let folder = &config.data_dir;
        let shown = folder.display();
        let problem =
            |error: &dyn std::fmt::Display| usage("--data-dir", format!("{shown}: {error}"));
        std::fs::create_dir_all(folder).map_err(|error| problem(&error))?;
        let lock = File::create(folder.join("LOCK")).map_err(|error| problem(&error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(problem(&"another router uses it")),
            Err(TryLockError::Error(error)) => return Err(problem(&error)),
        }
        let (place, seed) = (folder.join("store"), fastrand::u64(..));
        let store = DiskStore::open(&place, config.partitions, seed, config.store_cache as u64)
            .map_err(|error| match error {
                OpenError::Partitions { stored } => usage(
                    "--partitions",
                    format!("{} given, but {shown} was made with {stored}", config.partitions),
                ),
                OpenError::Format { stored } => {
                    problem(&format!("written in format {stored}, by another release"))
                }
                OpenError::Failed(error) => problem(&error),
            })?;
        let store = Arc::new(store);
        if config.engine != EngineKind::Embedded {
            let hubs = (0..owner_count(config)).map(|_| Vec::new()).collect();
            let expected = vec![None; usize::from(config.partitions)];
            return Ok(Self { lock, store, hubs, queue: None, expected });
        }
        if (0..config.partitions).any(|partition| matches!(store.place(partition), Ok(Some(_)))) {
            return Err(problem(&"it was made with an engine that routers share (--engine)"));
        }
        let mut queue = queue_opener(config).open().map_err(|error| problem(&error))?;
        let hubs = recover(config, &store, &mut *queue).map_err(|error| problem(&error))?;
        let mut expected = vec![None; usize::from(config.partitions)];
        for hub in hubs.iter().flatten() {
            expected[usize::from(hub.partition())] = Some(queue.end(hub.partition()));
        }
        Ok(Self { lock, store, hubs, queue: Some(OpenQueue(queue)), expected })
    }
}

/// Opens the queue of the engine embedded.
pub(crate) fn queue_opener(config: &Config) -> EmbeddedOpener {
    EmbeddedOpener::new(&config.data_dir.join("queue"), config.partitions)
}

/// Builds every Hub from the store, and folds in what the log has since.
fn recover(
    config: &Config,
    store: &Arc<DiskStore>,
    queue: &mut dyn Queue,
) -> Result<Vec<Vec<Hub>>, String> {
    let mut hubs: Vec<Vec<Hub>> = (0..owner_count(config)).map(|_| Vec::new()).collect();
    let mut replayed = 0_u64;
    for partition in 0..config.partitions {
        let store: Arc<dyn Store> = Arc::<DiskStore>::clone(store);
        let mut hub =
            Hub::new(partition, config.hub(), store).map_err(|error| error.to_string())?;
        let now = Now { mono_ms: 0, unix_ms: unix_ms() };
        let mut effects = Effects::default();
        let from = hub.applied() + 1;
        let next = replay(queue, partition, from, |record| {
            hub.apply(now, Event::Replayed(record.offset, record.bytes), &mut effects);
            replayed += 1;
        })
        .map_err(|error| error.to_string())?;
        if hub.is_stalled() {
            return Err("the store could not be read while the log was replayed".to_owned());
        }
        queue.skip_to(partition, next).map_err(|error| error.to_string())?;
        let owner = usize::from(partition) % hubs.len();
        hubs[owner].push(hub);
    }
    tracing::info!(replayed, "recovered");
    Ok(hubs)
}

/// How many owners share the partitions.
fn owner_count(config: &Config) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = match config.owners {
        0 => (cores / 2).max(1),
        owners => usize::from(owners),
    };
    wanted.min(usize::from(config.partitions))
}
