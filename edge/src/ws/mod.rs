//! RFC 6455 framing: bytes to messages and back, without I/O.
//!
//! [`Decoder`] takes received bytes and lends out messages, in place wherever a frame came whole;
//! [`encoder`] appends frames to a buffer. Both know framing only: when to answer a ping or a close,
//! and when a connection ends, is the connection's business. Of extensions permessage-deflate is spoken
//! ([`deflate`], RFC 7692), by one compressor and one decompressor for all connections of a shard.
#![forbid(unsafe_code)]

pub mod decoder;
pub mod deflate;
pub mod encoder;
pub mod error;
pub mod frame;
pub mod mask;
mod partial;

pub use self::decoder::{Decoder, Item, Pool, Settings};
pub use self::deflate::{Deflater, Inflater, WindowBits};
pub use self::encoder::{
    write_close, write_empty_close, write_header, write_masked_message, write_message, write_pong,
};
pub use self::error::ProtocolError;
pub use self::frame::{Header, Opcode, Role};
