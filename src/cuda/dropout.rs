//! Dropout on a card: see `kernels/dropout.cu`, and `nn::dropout` for what it is.
use super::call::{Call, Kernels, Source, suffix};
use crate::Result;
use tch::Tensor;

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
    /// `x` times its mask. In one pass: nothing else is stored.
    pub fn dropout(&self, x: &Tensor, mask: Mask) -> Result<Tensor> {
        let x = x.contiguous();
        let (n, kind) = (x.numel() as i64, x.kind());
        self.served("dropout", kind)?;
        self.check("dropout", &x, n, kind)?;
        let y = Tensor::f_empty(x.size(), (kind, x.device()))?;
        let kernel = format!("dropout_{}", suffix(kind));
        let work = (n as u64).div_ceil(128) * 16;
        let blocks = work.div_ceil(THREADS.into()) as i64;
        let call = Call::new(SOURCE, kernel).over(blocks, 1, THREADS)?;
        let call = call.arg(&x).arg(&y).arg(n).arg(mask.seed).arg(mask.step);
        self.run(&call.arg(mask.place).arg(mask.below).arg(mask.kept))?;
        Ok(y)
    }
}
