//! How every ring of this crate hands its entries to the kernel.

use std::io;

use io_uring::{IoUring, squeue};

/// `IORING_ENTER_GETEVENTS` of io_uring_enter(2).
const ENTER_GETEVENTS: u32 = 1;

/// What a send that may wait asks for: all of it, and no signal (send(2)).
pub(super) const SEND_ALL: i32 = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;

/// Submits what was pushed, lets the kernel finish what it has waiting, and sleeps until there are so many completions;
/// with 0 it does not sleep.
///
/// # Errors
/// What the kernel says, but for what the next call mends.
pub(super) fn enter(ring: &mut IoUring, completions: u32) -> io::Result<()> {
    let submissions = ring.submission().len() as u32;
    // SAFETY: no argument is a pointer; for what the entries point to, whoever called `push` has vouched.
    let entered = unsafe {
        ring.submitter().enter::<libc::sigset_t>(submissions, completions, ENTER_GETEVENTS, None)
    };
    match entered {
        Ok(_) => Ok(()),
        // Completions have to be taken first, or a signal came: the next call submits the rest.
        Err(error) => match error.raw_os_error() {
            Some(libc::EBUSY | libc::EINTR | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        },
    }
}

/// Gathers entries for the next [`enter`]; a full queue is submitted at once. Linked entries have to come together: a
/// submission in between would tear them apart.
///
/// # Safety
/// What an entry points to lies still until its completion is taken, or as long as its operation's manual says.
pub(super) unsafe fn push(ring: &mut IoUring, entries: &[squeue::Entry]) {
    // SAFETY: the caller's.
    while unsafe { ring.submission().push_multiple(entries) }.is_err() {
        // Refused only while completions overflow; the kernel keeps those, and submission goes on.
        let _ = ring.submit();
    }
}
