//! The real router process, spoken to over real sockets in link.proto.
#![forbid(unsafe_code)]

#[expect(unreachable_pub, reason = "helpers of the other modules")]
mod harness;

mod faults;
mod inboxes;
mod links;
mod restart;
mod start;
mod traffic;
