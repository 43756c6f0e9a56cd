//! Dropout on a card: see `kernels/dropout.cu`, and `nn::dropout` for what it is.
use super::call::{Call, Kernels, Source, suffix};
use crate::{Error, Result};
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

/// Rows of several dropouts, sorted by them.
#[derive(Debug)]
pub struct MaskedRows<'a> {
    /// Whose each row is, [R], i64.
    pub owner: &'a Tensor,
    /// Where the rows of each end, i32.
    pub ends: &'a Tensor,
    /// So far is the place of each after that of the one before.
    pub apart: u32,
}

impl Kernels {
    /// `x` [R, width] times the masks of the rows' own dropouts, each counted from its
    /// own first row: `mask` is that of the first. The width is a multiple of 128.
    /// Computed in f32 and rounded once.
    pub fn dropout_rows(
        &self,
        x: &Tensor,
        rows: &MaskedRows,
        mask: Mask,
    ) -> Result<Tensor> {
        let x = x.contiguous();
        let (n, kind, size) = (x.numel() as i64, x.kind(), x.size());
        let [count, width] = size[..] else {
            return Err(Error::setting(
                "dropout",
                format!("{size:?}; not [R, width]"),
            ));
        };
        if width % 128 != 0 {
            let what =
                format!("rows of {width}; this kernel needs multiples of 128");
            return Err(Error::setting("dropout", what));
        }
        self.served("dropout", kind)?;
        self.check("dropout", &x, n, kind)?;
        self.check("owner", rows.owner, count, Kind::Int64)?;
        self.check("ends", rows.ends, rows.ends.numel() as i64, Kind::Int)?;
        let y = Tensor::f_empty(x.size(), (kind, x.device()))?;
        let blocks = (n as u64 / 8).div_ceil(THREADS.into()) as i64;
        let call = Call::new(SOURCE, format!("dropout_rows_{}", suffix(kind)));
        let call = call.over(blocks, 1, THREADS)?.arg(&x).arg(&y).arg(n);
        let call = call.arg(width / 8).arg(rows.owner).arg(rows.ends);
        let call = call.arg(mask.seed).arg(mask.step).arg(mask.place);
        self.run(&call.arg(rows.apart).arg(mask.below).arg(mask.kept))?;
        Ok(y)
    }

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
