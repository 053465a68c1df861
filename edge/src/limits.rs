//! Every fixed bound of the edge, and compile-time checks that they fit together. What an operator may
//! change is in [`crate::config`]; the bounds here belong to the protocols or to the layout of memory.

use hawser_proto::framing;

// ---- Client protocol (client.proto)

/// Longest user or group id, in bytes. A slab slot holds it inline.
pub const USER_ID_BYTES_MAX: usize = 64;

/// Longest device id, in bytes.
pub const DEVICE_ID_BYTES_MAX: usize = 40;

/// Longest name of a client program and longest version of it, each, in bytes.
pub const CLIENT_KIND_BYTES_MAX: usize = 32;

/// Longest client message id, in bytes.
pub const CLIENT_MESSAGE_ID_BYTES_MAX: usize = 64;

/// Longest token of Connect and Refresh, in bytes.
pub const TOKEN_BYTES_MAX: usize = 4096;

/// Most entries of the list of origins; each request is held against all.
pub const ALLOWED_ORIGINS_MAX: usize = 256;

/// Most that a client may say while its token is being asked about, in bytes, before it is ended: what can be under way
/// when the edge stops reading from it.
pub const HELD_BYTES_MAX: usize = 256 * 1024;

/// Longest kind of a signal, in bytes.
pub const SIGNAL_KIND_BYTES_MAX: usize = 32;

/// Longest payload of a signal, in bytes.
pub const SIGNAL_PAYLOAD_BYTES_MAX: usize = 4096;

/// Most that `payload_bytes_max` can be set to, in bytes: sixteen times its default, and small enough
/// that a link frame holds several.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

// ---- Link (link.proto)

/// Longest edge id, in bytes.
pub const EDGE_ID_BYTES_MAX: usize = 64;

/// Longest region, in bytes.
pub const REGION_BYTES_MAX: usize = 32;

/// Most routers of one cluster, as an edge sees it. Each has a link of its own.
pub const ROUTERS_MAX: usize = 16;

/// Most shards of one edge.
pub const SHARDS_MAX: usize = 4096;

/// What the fields of a link message other than its payload take at most, in bytes.
pub const LINK_MESSAGE_OVERHEAD_BYTES_MAX: usize = 1024;

/// A batch to the router is closed when it has this many bytes: large enough to carry some thousand
/// small messages at the cost of one write, small enough to be decoded while the next one travels.
pub const LINK_BATCH_BYTES: usize = 256 * 1024;

// ---- Layout of a shard

/// A connection's slab slot, in bytes: identity, address, phase, timer, outbox and decoder handles. With the registry and
/// its part of what a shard costs in any case, a connection comes to less than 256.
pub const CONNECTION_BYTES_MAX: usize = 224;

/// Most connections of one edge, a ceiling against slips of the keyboard: sixteen times what has been
/// seen working (a million in one process).
pub const CONNECTIONS_CEILING: u64 = 16_000_000;

/// Most receive buffers of one shard: the kernel's limit of a provided buffer ring (io_uring_register_buf_ring(3)).
pub const RECEIVE_BUFFERS_CEILING: u64 = 32_768;

/// Direct descriptors a shard has beyond its share of connections: those being refused, and those being
/// closed while the slab is full.
pub const SOCKETS_SPARE: usize = 128;

const _: () = assert!(USER_ID_BYTES_MAX + DEVICE_ID_BYTES_MAX < CONNECTION_BYTES_MAX);
const _: () = assert!(
    2 * USER_ID_BYTES_MAX + CLIENT_MESSAGE_ID_BYTES_MAX + 128 <= LINK_MESSAGE_OVERHEAD_BYTES_MAX,
    "the longest Send of a link fits"
);
const _: () = assert!(
    EDGE_ID_BYTES_MAX + REGION_BYTES_MAX + 64 <= LINK_MESSAGE_OVERHEAD_BYTES_MAX,
    "a Hello fits"
);
const _: () = assert!(
    LINK_BATCH_BYTES + PAYLOAD_BYTES_MAX + LINK_MESSAGE_OVERHEAD_BYTES_MAX
        <= framing::FRAME_BYTES_MAX,
    "a batch that is closed by its longest message still fits a frame"
);
