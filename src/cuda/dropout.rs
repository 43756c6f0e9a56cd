//! Dropout on a card: see `kernels/dropout.cu`, and `nn::dropout` for what it is.
use super::call::{Call, Kernels, Source, suffix};
use crate::Result;
use half::bf16;
use tch::{Kind, Tensor};

pub(super) const SOURCE: Source = super::source!("dropout");
const THREADS: u32 = 256;

/// Which mask, and what it does.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// Seed of the run.
    pub seed: u64,
    /// Step of the run.
    pub step: u64,
    /// Which dropout of the step.
    pub place: u32,
    /// An element falls if its draw of 16 bits is below.
    pub below: u32,
    /// By what the others are multiplied.
    pub kept: f32,
}

impl Kernels {
    /// `x`, as the kind `to`, times its mask. In one pass: nothing else is stored.
    pub fn dropout(&self, x: &Tensor, to: Kind, mask: Mask) -> Result<Tensor> {
        let x = x.contiguous();
        let (n, from) = (x.numel() as i64, x.kind());
        self.served("dropout", from)?;
        self.served("dropout", to)?;
        self.check("dropout", &x, n, from)?;
        let y = Tensor::f_empty(x.size(), (to, x.device()))?;
        // As a factor has the kind that is computed in, so here.
        let narrow = (from, to) == (Kind::BFloat16, Kind::BFloat16);
        let kept = if narrow { bf16::from_f32(mask.kept).into() } else { mask.kept };
        let kernel = format!("dropout_{}_{}", suffix(from), suffix(to));
        let work = (n as u64).div_ceil(128) * 16;
        let blocks = work.div_ceil(THREADS.into()) as i64;
        let call = Call::new(SOURCE, kernel).over(blocks, 1, THREADS)?;
        let call = call.arg(&x).arg(&y).arg(n).arg(mask.seed).arg(mask.step);
        self.run(&call.arg(mask.place).arg(mask.below).arg(kept))?;
        Ok(y)
    }
}
