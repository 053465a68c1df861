//! Every fixed bound of the router, and compile-time checks that they fit together.

use std::time::Duration;

pub use hawser_proto::partition::PARTITIONS_MAX;

/// Longest user id, in bytes (link.proto).
pub const USER_BYTES_MAX: usize = 64;
/// Longest device id, in bytes (link.proto).
pub const DEVICE_BYTES_MAX: usize = 40;
/// Longest client message id, in bytes (link.proto).
pub const CLIENT_MESSAGE_ID_BYTES_MAX: usize = 64;
/// Longest edge id, in bytes (link.proto).
pub const EDGE_ID_BYTES_MAX: usize = 64;
/// Longest client kind and version that the registry keeps; longer ones are cut.
pub const CLIENT_KIND_BYTES_MAX: usize = 32;
/// Longest payload, in bytes: the most that `payload_bytes_max` of an edge may be.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;
/// What a record of a message has beside its payload, at most: three ids, numbers and lengths.
pub const RECORD_HEAD_BYTES_MAX: usize = 2 * USER_BYTES_MAX + CLIENT_MESSAGE_ID_BYTES_MAX + 64;
/// Shards that one edge may announce (link.proto).
pub const EDGE_SHARDS_MAX: u32 = 4_096;

/// Edges that one router remembers at a time. Past it a new edge is refused with a sentence.
pub const EDGES_MAX: usize = 4_096;
/// Devices that are remembered for a user. Past it the one seen least recently is forgotten.
pub const DEVICES_MAX: usize = 16;
/// Message ids in one receipt (client.proto).
pub const RECEIPT_IDS_MAX: usize = 256;
/// How long receipts are held for something else that goes out to edges, once some have gone out; an owner at rest looks ten times
/// a second.
pub const RECEIPTS_HELD_MS: u64 = 20;
/// Acknowledged but unread messages of an inbox whose senders are remembered for a READ receipt.
/// Past it the oldest gets none: receipts are best effort.
pub const UNREAD_MAX: usize = 256;
/// Sends that may wait for one append of the same client message id; the oldest waiter is let go.
pub const WAITERS_MAX: usize = 4;

/// Unacknowledged payload bytes that are let out to one device. At least one message is.
pub const WINDOW_BYTES_MAX: usize = 256 * 1024;
/// Messages read from the store at a time for a device that is behind.
pub const PAGE_MESSAGES_MAX: usize = 64;

/// A batch on a link is closed when it reaches this size, in bytes.
pub const BATCH_BYTES_MAX: usize = 256 * 1024;
/// Bytes that may wait to be written to one link. Past it the link is closed; the edge comes back and
/// everything unacknowledged is sent again.
pub const LINK_OUT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Batches from links that may wait for one owner task. Past it the links are not read. A batch of registrations
/// takes 5 times its bytes while it waits, and an edge that tells a million again fills the queue.
pub const OWNER_QUEUE_BATCHES_MAX: usize = 64;
/// How long a new link may take to say Hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Links that are open at a time.
pub const LINKS_MAX: usize = 8_192;

/// Connections to the server API at a time. Past it the next wait to be accepted.
pub const API_CONNECTIONS_MAX: usize = 1_024;
/// Keys in the file of `--api-keys`. Past it the file is refused.
pub const API_KEYS_MAX: usize = 1_024;
/// Recipients of one request to the server API, and users looked up with one. Past it the request is refused.
pub const API_USERS_MAX: usize = 1_000;
/// Body of a request to the server API, in bytes: a payload in base64 and the names around it. Past it the request is refused.
pub const API_BODY_BYTES_MAX: usize = 2 * 1024 * 1024;
/// What waits for an answer in the server API, in bytes: payloads, once a recipient, and 512 bytes for each. Past it requests are refused,
/// to be repeated.
pub const API_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Payload times recipients of one request to the server API, in bytes. Past it the request is refused.
pub const API_FANOUT_BYTES_MAX: usize = API_BYTES_MAX / 4;
/// How much longer than for its answer a request to the server API may take, for its body to arrive.
pub const API_BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Shortest lease that the server API believes a router.
pub const API_LEASE_MIN: Duration = Duration::from_millis(100);

/// Longest `--commit-interval`.
pub const COMMIT_INTERVAL_MAX: Duration = Duration::from_millis(100);
/// Bytes of one group commit: past it the committer starts another.
pub const COMMIT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes that one owner may have with the committer. Past it the owner takes no events from links.
pub const APPENDING_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Cursors that one append carries at most; the rest follow with the next.
pub const CURSORS_PER_APPEND_MAX: usize = 1_024;
/// Bytes read from the log at a time while replaying.
pub const REPLAY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of one record of a state log: engines take no more than about a mebibyte at a time.
pub const STATE_RECORD_BYTES: usize = 256 * 1024;
/// Bytes of changes, beside twice what a partition holds, after which its state log is shortened.
pub const STATE_BYTES_MIN: usize = 8 * 1024 * 1024;
/// How often the saver looks for one that is due while nobody asks it for anything.
pub const DUMP_INTERVAL: Duration = Duration::from_secs(1);
/// First and longest pause between two tries to open a broken queue.
pub const REOPEN_BACKOFF: (Duration, Duration) =
    (Duration::from_millis(200), Duration::from_secs(5));
/// Where a log does not refuse former owners: how often the committer looks for what they appended.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// And where it does: one partition each time.
pub const FENCED_WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// At how many partitions, where it does not.
pub const WATCHED_AT_ONCE: usize = 2;
/// How old the last look at the free space may be.
pub const DISK_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// A cursor that moved is in the log after this long.
pub const CURSOR_FLUSH_MS: u64 = 1_000;
/// A partition that changed is written to the store after this long.
pub const CHECKPOINT_INTERVAL_MS: u64 = 10_000;
/// Messages that are in no checkpoint may take this many times the memory after which one is begun. Past it
/// sends are refused: the store does not work.
pub const UNSAVED_FACTOR_MAX: usize = 4;
/// Stored inboxes that are looked through for messages over the age bound, with every checkpoint.
pub const SWEEP_INBOXES: usize = 16;
/// A failed checkpoint is tried again after this long.
pub const CHECKPOINT_RETRY_MS: u64 = 2_000;
/// Registrations of a partition that are looked at in one go when an edge is gone: deliveries of others wait
/// that long.
pub const SWEEP_SLOTS: usize = 256;
/// A device that only the registry knows is recorded when it has been connected, or gone, for this long: most
/// that leave come back before.
pub const UNRECORDED_MS: i64 = 60_000;
/// Such devices that one checkpoint takes along.
pub const RECORDED_PER_CHECKPOINT: usize = 256;
/// From this many devices of a partition that have left and are not recorded, checkpoints come sooner while
/// some are due.
pub const DEPARTED_SOON: usize = 1_024;
/// The interval of checkpoints then.
pub const DEPARTED_INTERVAL_MS: u64 = 1_000;
/// And how many they take along; a sixteenth of all when that is more, so that it keeps up with any rate.
pub const DEPARTED_PER_CHECKPOINT: usize = 1_024;
/// Devices of a partition that have left and are not recorded may take the place of connections that were there in
/// the last minute or two, and this share of those more: past it they are recorded at once, every
/// [`DEPARTED_INTERVAL_MS`].
pub const DEPARTED_SHARE: usize = 32;
/// And so many more where there are few.
pub const DEPARTED_MIN: usize = 16;
/// Changes of registries that may wait to be written to Redis. Past it they are dropped, and everything is written again later.
pub const VIEW_NOTICES_MAX: usize = 16_384;
/// Registrations that an owner looks at in one tick when everything is written again: ten thousand a second.
pub const VIEW_WALK_SLOTS: usize = 1_024;
/// Changes that are with Redis at a time, each of another user.
pub const VIEW_BATCH_MAX: usize = 512;
/// Users looked up in Redis at a time.
pub const VIEW_LOOK_UP_MAX: usize = 512;
/// How long a connection to Redis may take to begin, and a command to be answered.
pub const VIEW_TIMEOUT: Duration = Duration::from_secs(1);
/// And with all its repetitions and redirections.
pub const VIEW_COMMAND_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest time between two renewals of what is kept alive in Redis.
pub const VIEW_RENEW_INTERVAL: Duration = Duration::from_secs(1);

/// How long a user's inbox stays in memory after the last use, when nothing of it is on its way.
pub const INBOX_IDLE_MS: u64 = 30_000;

const _: () = assert!(WINDOW_BYTES_MAX <= LINK_OUT_BYTES_MAX);
const _: () = assert!(PAYLOAD_BYTES_MAX + 1024 < hawser_proto::framing::FRAME_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX + PAYLOAD_BYTES_MAX < hawser_proto::framing::FRAME_BYTES_MAX);
const _: () = assert!(COMMIT_BYTES_MAX + PAYLOAD_BYTES_MAX <= APPENDING_BYTES_MAX);
const _: () = assert!(VIEW_WALK_SLOTS <= VIEW_NOTICES_MAX / 2);
const _: () = assert!(CURSOR_FLUSH_MS < CHECKPOINT_INTERVAL_MS);
const _: () =
    assert!(API_BODY_BYTES_MAX > PAYLOAD_BYTES_MAX / 3 * 4 + API_USERS_MAX * (USER_BYTES_MAX + 8));
const _: () = assert!(API_BYTES_MAX <= LINK_OUT_BYTES_MAX);
const _: () = assert!(DEPARTED_INTERVAL_MS < CHECKPOINT_INTERVAL_MS);
