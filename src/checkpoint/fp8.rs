//! Weights in 8 bits: e4m3 numbers, and an f32 scale for every block of 128 × 128.
//!
//! Source: DeepSeek-AI 2024, arXiv 2412.19437, §3.3; `weight_dequant` in DeepSeek-V3's
//! `inference/kernel.py`. The scale lies beside `X.weight` as `X.weight_scale_inv`, and
//! multiplies, whatever its name.
use super::Checkpoint;
use crate::{Error, Result};
use tch::{Kind, Tensor, no_grad};

/// Rows and columns of a block; fewer at the edges.
const BLOCK: i64 = 128;

impl Checkpoint {
    /// Whether the tensor `name` is in 8 bits.
    pub fn is_fp8(&self, name: &str) -> bool {
        self.kind(name) == Some(Kind::Float8e4m3fn)
    }

    /// Name of the tensor that holds the scales of the weight `name`.
    pub fn fp8_scale_name(name: &str) -> String {
        format!("{name}_scale_inv")
    }

    /// The 8-bit weight `name` times its scales, in `kind`. At no time is more in
    /// memory than the weight, the result, and a row of blocks.
    ///
    /// # Errors
    /// No scales, or scales of another shape than the weight's blocks.
    pub fn fp8(&self, name: &str, kind: Kind) -> Result<Tensor> {
        let w = self.tensor(name)?;
        let file = self.file_of(name);
        let &[rows, columns] = w.size().as_slice() else {
            let what = format!(
                "F8_E4M3 of shape {:?}; 8-bit weights are matrices",
                w.size()
            );
            return Err(Error::tensor(file, name, what));
        };
        let scale_name = Self::fp8_scale_name(name);
        if !self.contains(&scale_name) {
            let what = format!(
                "8-bit (F8_E4M3), but its scales `{scale_name}` are missing"
            );
            return Err(Error::tensor(file, name, what));
        }
        let scale = self.tensor(&scale_name)?;
        let blocks = [rows, columns].map(|n| (n + BLOCK - 1) / BLOCK);
        if scale.size() != blocks || !scale.is_floating_point() {
            let (shape, dtype) = (scale.size(), scale.kind());
            let what = format!(
                "{dtype:?} {shape:?}; a float per block of {BLOCK} x {BLOCK} of \
                 `{name}` {:?} makes {blocks:?}",
                w.size()
            );
            return Err(Error::tensor(self.file_of(&scale_name), scale_name, what));
        }
        no_grad(|| {
            // ANCHOR: blocks
            let scale = scale.to_kind(Kind::Float);
            let y = Tensor::f_empty([rows, columns], (kind, w.device()))?;
            for i in 0..blocks[0] {
                let (first, n) = (i * BLOCK, BLOCK.min(rows - i * BLOCK));
                let scale = scale.get(i).repeat_interleave_self_int(BLOCK, 0, None);
                let part = w.narrow(0, first, n).f_to_kind(Kind::Float)?;
                let part = part.f_mul(&scale.narrow(0, 0, columns))?;
                y.narrow(0, first, n).f_copy_(&part)?;
            }
            Ok(y)
            // ANCHOR_END: blocks
        })
    }
}
