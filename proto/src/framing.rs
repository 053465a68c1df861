//! Length-prefixed frames of a link: a little-endian `u32` length in bytes, then that many bytes of
//! one protobuf batch. Used by both ends.

/// Bytes of the length in front of every frame.
pub const LENGTH_BYTES: usize = 4;

/// Longest frame body, in bytes. A batch is cut before it gets there: a payload has at most
/// `payload_bytes_max` (1 MiB at the very most), and writers close a batch at 256 KiB.
pub const FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The other side announced a frame that is empty or longer than [`FRAME_BYTES_MAX`]; the link cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadFrameLength(pub u32);

impl std::fmt::Display for BadFrameLength {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "link frame of {} bytes, allowed are 1 to {FRAME_BYTES_MAX}", self.0)
    }
}

impl std::error::Error for BadFrameLength {}

/// Finds the first whole frame at the front of `input`.
///
/// Returns its body; the frame takes `LENGTH_BYTES + body.len()` bytes. `None` when `input` ends too
/// early. Copies nothing.
///
/// # Errors
/// [`BadFrameLength`] as soon as the length can be read, before the body has arrived.
pub fn first_frame(input: &[u8]) -> Result<Option<&[u8]>, BadFrameLength> {
    let Some((length, rest)) = input.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length);
    if length == 0 || length as usize > FRAME_BYTES_MAX {
        return Err(BadFrameLength(length));
    }
    Ok(rest.get(..length as usize))
}

/// Opens a frame at the end of `out` and returns the mark that [`finish_frame`] wants.
#[must_use]
pub fn begin_frame(out: &mut Vec<u8>) -> usize {
    let mark = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    mark
}

/// Closes the frame opened at `mark`: writes its length. An empty frame is taken back.
pub fn finish_frame(out: &mut Vec<u8>, mark: usize) {
    let length = out.len() - mark - LENGTH_BYTES;
    debug_assert!(length <= FRAME_BYTES_MAX);
    if length == 0 {
        out.truncate(mark);
        return;
    }
    out[mark..mark + LENGTH_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_found_only_when_its_last_byte_is_there() {
        let mut out = Vec::new();
        let mark = begin_frame(&mut out);
        out.extend_from_slice(b"hawser");
        finish_frame(&mut out, mark);
        for cut in 0..out.len() {
            assert_eq!(first_frame(&out[..cut]), Ok(None), "cut at {cut}");
        }
        out.extend_from_slice(b"next");
        assert_eq!(first_frame(&out), Ok(Some(&b"hawser"[..])));
    }

    #[test]
    fn an_empty_frame_is_not_written() {
        let mut out = vec![1, 2];
        let mark = begin_frame(&mut out);
        finish_frame(&mut out, mark);
        assert_eq!(out, [1, 2]);
    }

    #[test]
    fn lengths_of_zero_and_over_the_bound_are_refused_before_the_body_arrives() {
        assert_eq!(first_frame(&0u32.to_le_bytes()), Err(BadFrameLength(0)));
        let long = FRAME_BYTES_MAX as u32 + 1;
        assert_eq!(first_frame(&long.to_le_bytes()), Err(BadFrameLength(long)));
    }
}
