//! Rotary positions on a card: see `kernels/rope.cu`, and `nn::Rotation` for what they
//! are.
use super::call::{Call, Kernels, Source, suffix};
use crate::Result;
use tch::{Kind, Tensor};

pub(super) const SOURCE: Source = super::source!("rope");
const THREADS: u32 = 256;

/// Where the two of a pair lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pairs {
    /// K/2 apart.
    Halves,
    /// Beside each other.
    Neighbours,
}

impl Kernels {
    /// Turns the pairs of `x` [N, H, K] by the angles of `cos` and `sin` [N, .., K], of
    /// the kind of `x` or f32, or back by as much; they lie as `from` says, and come to
    /// lie as `to` says.
    pub fn rotate(
        &self,
        x: &Tensor,
        (cos, sin): (&Tensor, &Tensor),
        (from, to): (Pairs, Pairs),
        back: bool,
    ) -> Result<Tensor> {
        let (n, h, k) = x.size3()?;
        // Parts of wider rows are read where they lie.
        let x = if x.stride()[2] == 1 { x.shallow_clone() } else { x.contiguous() };
        let angles = if cos.kind() == self.kind { self.kind } else { Kind::Float };
        for t in [cos, sin] {
            self.check("the rotation", t, n * k, angles)?;
        }
        let y = Tensor::f_empty([n, h, k], (self.kind, x.device()))?;
        let (half, stride) = (k / 2, x.stride());
        let work = (n * h) as u64 * (half as u64).div_ceil(4);
        let blocks = work.div_ceil(THREADS.into()) as i64;
        let kinds = [self.kind, angles].map(suffix).join("_");
        let call = Call::new(SOURCE, format!("rope_{kinds}"));
        let call = call.over(blocks, 1, THREADS)?;
        let call = call.arg(&x).arg(stride[0]).arg(stride[1]).arg(cos).arg(sin);
        let call = call.arg(&y).arg(n).arg(h).arg(half);
        let [from, to] = [from, to].map(|p| p == Pairs::Neighbours);
        let sign = if back { -1f32 } else { 1. };
        self.run(&call.arg(from).arg(to).arg(sign))?;
        Ok(y)
    }
}
