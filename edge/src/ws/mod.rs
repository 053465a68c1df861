//! RFC 6455 framing on the standard library alone: bytes to messages and back, without I/O.
//!
//! [`Decoder`] takes received bytes and lends out messages, in place wherever a frame came whole;
//! [`encoder`] appends frames to a buffer. Both know framing only: when to answer a ping or a close,
//! and when a connection ends, is the connection's business. Extensions are not spoken.
#![forbid(unsafe_code)]

pub mod decoder;
pub mod encoder;
pub mod error;
pub mod frame;
pub mod mask;
mod partial;

pub use self::decoder::{Decoder, Item, Pool, Settings};
pub use self::encoder::{
    write_close, write_empty_close, write_header, write_masked_message, write_message, write_pong,
};
pub use self::error::ProtocolError;
pub use self::frame::{Header, Opcode, Role};
