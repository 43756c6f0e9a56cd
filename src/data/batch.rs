//! Rows end to end in one tensor, and the order in which an epoch takes them.
use super::{Example, IGNORED};
use crate::autograd::upload;
use tch::{Device, Tensor};

/// A few rows, end to end. None is padded: rows of unequal length cost what their
/// tokens cost.
#[derive(Debug)]
pub struct Batch {
    /// Token ids of all rows, `[N]` i64.
    pub ids: Tensor,
    /// Tokens of each row; their sum is N.
    pub lengths: Vec<i64>,
    /// Where in `ids` a token stands whose successor is learned, `[S]` i64.
    pub learned: Tensor,
    /// That successor's id, `[S]` i64.
    pub targets: Tensor,
    /// The line of the file behind each row.
    pub lines: Vec<usize>,
}

impl Batch {
    // ANCHOR: collate
    /// Puts rows end to end. A label other than [`IGNORED`] is learned, from a row's
    /// second position on: by position, never by token id, so that where the pad token
    /// is the EOS, as in most DeepSeek checkpoints, the EOS that ends a row is learned.
    pub fn collate(examples: &[&Example]) -> Self {
        let (mut ids, mut lengths) = (Vec::<i64>::new(), vec![]);
        let (mut learned, mut targets) = (Vec::<i64>::new(), Vec::<i64>::new());
        for example in examples {
            for (i, &label) in example.labels.iter().enumerate().skip(1) {
                if label != IGNORED {
                    learned.push((ids.len() + i - 1) as i64);
                    targets.push(label);
                }
            }
            ids.extend(&example.ids);
            lengths.push(example.ids.len() as i64);
        }
        Self {
            ids: Tensor::from_slice(&ids),
            lengths,
            learned: Tensor::from_slice(&learned),
            targets: Tensor::from_slice(&targets),
            lines: examples.iter().map(|e| e.line).collect(),
        }
    }
    // ANCHOR_END: collate

    /// Input tokens.
    pub fn tokens(&self) -> i64 {
        self.lengths.iter().sum()
    }

    /// Learned tokens.
    pub fn supervised(&self) -> i64 {
        self.targets.numel() as i64
    }

    /// The same batch on `device`, which may still be fetching it.
    pub fn to(&self, device: Device) -> Self {
        Self {
            ids: upload(&self.ids, device),
            learned: upload(&self.learned, device),
            targets: upload(&self.targets, device),
            lengths: self.lengths.clone(),
            lines: self.lines.clone(),
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
