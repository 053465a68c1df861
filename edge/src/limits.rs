//! Every fixed bound of the edge, and compile-time checks that they fit together. What an operator may
//! change is in [`crate::config`]; what the client protocol fixes stands in client.proto as well.

/// A connection's slab slot, in bytes: identity, phase, timer, outbox and decoder handles.
pub const CONNECTION_BYTES_MAX: usize = 256;

/// User id, in bytes (client.proto).
pub const USER_ID_BYTES_MAX: usize = 64;
/// Device id, in bytes (client.proto).
pub const DEVICE_ID_BYTES_MAX: usize = 40;
/// Client message id, in bytes (client.proto).
pub const CLIENT_MESSAGE_ID_BYTES_MAX: usize = 64;
/// Client kind and client version, each, in bytes (client.proto).
pub const CLIENT_KIND_BYTES_MAX: usize = 32;
/// Token, in bytes (client.proto).
pub const TOKEN_BYTES_MAX: usize = 4096;
/// Kind of a signal, in bytes (client.proto).
pub const SIGNAL_KIND_BYTES_MAX: usize = 32;
/// Payload of a signal, in bytes (client.proto).
pub const SIGNAL_PAYLOAD_BYTES_MAX: usize = 4096;
/// The most that `--payload-bytes-max` may be set to, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

const _: () = assert!(USER_ID_BYTES_MAX + DEVICE_ID_BYTES_MAX < CONNECTION_BYTES_MAX);
// A link frame is closed at 256 KiB and takes one more message after that.
const _: () =
    assert!(256 * 1024 + PAYLOAD_BYTES_MAX + 1024 <= hawser_proto::framing::FRAME_BYTES_MAX);
