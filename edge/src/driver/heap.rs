//! How the C library's allocator is to behave (mallopt(3)).

/// Blocks of this size and above are mapped and unmapped by themselves, in bytes; the library's own first value.
const MMAP_THRESHOLD_BYTES: i32 = 128 * 1024;

/// Keeps the sizes that are mapped by themselves as they are. Left alone the library raises the threshold to the largest
/// block that was ever freed, up to 32 MiB, and later pages of a slab would lie in its heap, where one small
/// neighbour keeps them from going back to the system.
pub fn settle_heap() {
    // SAFETY: mallopt has no preconditions but its argument types. Where it is refused, the library is as it always was.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES) };
}
