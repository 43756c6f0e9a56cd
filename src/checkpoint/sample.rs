//! What tells the weights of one checkpoint from those of another, without reading all
//! of them.
use super::Checkpoint;
use crate::Result;
use twox_hash::XxHash3_128;

/// Bytes of a piece that is looked at, and pieces of a tensor: 32 KiB of each are a
/// moment's work in any checkpoint, and training, merging or quantizing changes all of
/// a tensor.
const PIECE: usize = 4096;
const PIECES: usize = 8;

impl Checkpoint {
    /// A hash of the tensors' names, kinds and shapes, and of pieces of their bytes: of
    /// small tensors all, of others the beginning, the end and six pieces between. So
    /// another model is told from this one, and the same in other files is not; a few
    /// damaged bytes in a large tensor may be missed.
    ///
    /// # Errors
    /// As [`Checkpoint::shape`].
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = XxHash3_128::new();
        for name in self.names() {
            let file = self.file(name)?;
            let (shape, bytes) = (file.shape(name)?, file.raw(name)?);
            let dtype = file.header.info(name).map(|info| info.dtype);
            hash.write(format!("{name} {dtype:?} {shape:?}\n").as_bytes());
            pieces(bytes).for_each(|piece| hash.write(piece));
            file.forget(name)?;
        }
        Ok(format!("{:032x}", hash.finish_128()))
    }
}

/// Evenly apart, the first and the last among them.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let n = PIECES.min(bytes.len().div_ceil(PIECE));
    let last = bytes.len().saturating_sub(PIECE);
    (0..n).map(move |i| {
        let start = last * i / (n - 1).max(1);
        &bytes[start..bytes.len().min(start + PIECE)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_tensors_are_seen_whole_and_large_ones_at_both_ends() {
        let bytes: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        for length in [0, 1, 4095, 4096, 4097, 20_000, 8 * 4096, 300_000] {
            let mut seen = vec![false; length];
            for piece in pieces(&bytes[..length]) {
                let start = piece.as_ptr() as usize - bytes.as_ptr() as usize;
                seen[start..start + piece.len()].fill(true);
            }
            let all = length <= PIECES * PIECE;
            assert_eq!(seen.iter().all(|s| *s), all, "{length} bytes");
            assert!(length == 0 || seen[0] && seen[length - 1], "{length} bytes");
        }
    }
}
