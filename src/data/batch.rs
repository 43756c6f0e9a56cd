//! Rows side by side in one tensor, and the order in which an epoch takes them.
use super::{Example, IGNORED};
use tch::{Device, Tensor};

/// A few rows, padded on the right to the longest of them.
#[derive(Debug)]
pub struct Batch {
    /// Token ids, `[B, T]` i64.
    pub ids: Tensor,
    /// Labels, `[B, T]` i64, not shifted; padding is [`IGNORED`].
    pub labels: Tensor,
    /// The line of the file behind each row.
    pub lines: Vec<usize>,
    /// Input tokens without the padding.
    pub tokens: i64,
    /// Learned tokens: labels other than [`IGNORED`] from the second position on.
    pub supervised: i64,
}

impl Batch {
    /// Pads by position, never by token id: where `pad_id` is the EOS, as in most
    /// DeepSeek checkpoints, the EOS that ends a row is still learned. Causal
    /// attention never looks right, so that padding changes no other position.
    pub fn collate(examples: &[&Example], pad_id: i64) -> Self {
        let longest = examples.iter().map(|e| e.ids.len()).max().unwrap_or(0);
        let padded = |row: fn(&Example) -> &Vec<i64>, fill: i64| {
            let mut flat = Vec::with_capacity(examples.len() * longest);
            for example in examples {
                flat.extend(row(example));
                flat.resize(flat.len() + longest - row(example).len(), fill);
            }
            Tensor::from_slice(&flat).view([examples.len() as i64, longest as i64])
        };
        Self {
            ids: padded(|e| &e.ids, pad_id),
            labels: padded(|e| &e.labels, IGNORED),
            lines: examples.iter().map(|e| e.line).collect(),
            tokens: examples.iter().map(|e| e.ids.len() as i64).sum(),
            supervised: examples.iter().map(|e| e.supervised() as i64).sum(),
        }
    }

    /// The same batch on `device`.
    pub fn to(&self, device: Device) -> Self {
        Self {
            ids: self.ids.to_device(device),
            labels: self.labels.to_device(device),
            lines: self.lines.clone(),
            ..*self
        }
    }
}

/// The order in which an epoch takes `n` rows: as they stand in the file, or shuffled
/// (Fisher and Yates; Durstenfeld, CACM 7(7), 1964). It depends on nothing but the
/// arguments, so that a resumed run meets the same rows.
pub fn order(n: usize, seed: u64, epoch: u64, shuffle: bool) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..n).collect();
    if shuffle {
        let key = splitmix64(splitmix64(seed).wrapping_add(epoch));
        for i in (1..n).rev() {
            let bits = splitmix64(key.wrapping_add((i as u64).wrapping_mul(GOLDEN)));
            // The high half of a 128-bit product: uniform in 0..=i, without division.
            let j = (u128::from(bits) * (i as u128 + 1)) >> 64;
            rows.swap(i, j as usize);
        }
    }
    rows
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A counter in, 64 random bits out (Steele, Lea and Flood, OOPSLA 2014).
fn splitmix64(counter: u64) -> u64 {
    let mut z = counter.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
