//! Masking (RFC 6455 section 5.3): an exclusive or with a key of four bytes, over and over.
//!
//! The loops are written in shapes that the compiler turns into SIMD on every target.

/// Bytes per turn of the wide loop: four registers of 16 bytes, so that loads and stores overlap.
const BLOCK_BYTES: usize = 64;

/// Unmasks `bytes` in place; masking is the same operation. `phase` is how many bytes of the payload
/// came before these (modulo 4 is enough), for a payload that arrives in pieces.
#[inline]
pub fn unmask(bytes: &mut [u8], key: [u8; 4], phase: usize) {
    let key = u32::from_le_bytes(key).rotate_right(8 * (phase as u32 % 4));
    let word = u64::from(key) << 32 | u64::from(key);

    let (blocks, rest) = bytes.as_chunks_mut::<BLOCK_BYTES>();
    for block in blocks {
        xor_words(block, word);
    }
    // Each step leaves a multiple of four bytes behind it, so the key stays in phase.
    let (pairs, rest) = rest.as_chunks_mut::<16>();
    for pair in pairs {
        xor_words(pair, word);
    }
    let (words, rest) = rest.as_chunks_mut::<8>();
    for bytes in words {
        xor_words(bytes, word);
    }
    let (halves, rest) = rest.as_chunks_mut::<4>();
    for half in halves {
        *half = (u32::from_le_bytes(*half) ^ key).to_le_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.to_le_bytes()) {
        *byte ^= key;
    }
}

#[inline(always)]
fn xor_words<const N: usize>(bytes: &mut [u8; N], word: u64) {
    let (words, _none) = bytes.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_le_bytes(*bytes) ^ word).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    #[test]
    fn every_length_phase_and_alignment_agrees_with_the_formula_of_the_rfc() {
        let masked: Vec<u8> = (0..300).map(|at| (at * 7 % 251) as u8).collect();
        for start in 0..8 {
            for length in 0..masked.len() - start {
                for phase in 0..4 {
                    let mut bytes = masked.clone();
                    unmask(&mut bytes[start..start + length], KEY, phase);
                    for (at, (&got, &was)) in bytes.iter().zip(&masked).enumerate() {
                        let inside = (start..start + length).contains(&at);
                        let key = if inside { KEY[(at - start + phase) % 4] } else { 0 };
                        assert_eq!(got, was ^ key, "byte {at} of {start}+{length}, phase {phase}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_payload_in_two_pieces_comes_out_as_in_one() {
        let whole: Vec<u8> = (0..=255).collect();
        for cut in 0..=whole.len() {
            let mut pieces = whole.clone();
            unmask(&mut pieces, KEY, 0);
            let (left, right) = pieces.split_at_mut(cut);
            unmask(left, KEY, 0);
            unmask(right, KEY, cut);
            assert_eq!(pieces, whole, "cut at {cut}");
        }
    }
}
