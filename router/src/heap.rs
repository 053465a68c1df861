//! How the C library's allocator is to behave (mallopt(3)).
#![expect(unsafe_code, reason = "mallopt is the C library's")]

/// Keeps the C library's allocator to one heap. Left alone it gives each thread one of its own, up to eight a core, and
/// here they are filled by one thread and emptied by another (owners, saver, the store's worker): what one has free none
/// of the others can use. To be called before the first thread is started.
pub(crate) fn settle() {
    // SAFETY: mallopt has no preconditions but its argument types. Where it is refused, the library is as it always was.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
