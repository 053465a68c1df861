//! Moves messages between edges and the durable queue.
