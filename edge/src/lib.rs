//! The WebSocket server: one shard per core.
