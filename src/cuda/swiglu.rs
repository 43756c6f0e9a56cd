//! SwiGLU on a card: see `kernels/swiglu.cu`.
use super::call::{Call, Kernels, Source, suffix};
use crate::Result;
use tch::Tensor;

pub(super) const SOURCE: Source = super::source!("swiglu");
const THREADS: u32 = 256;

impl Kernels {
    /// `silu(gate) ⊙ up`.
    pub fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let [gate, up] = [gate, up].map(Tensor::contiguous);
        let n = gate.numel() as i64;
        for t in [&gate, &up] {
            self.check("SwiGLU", t, n, self.kind)?;
        }
        let y = gate.empty_like();
        let call = self.elementwise("swiglu", n)?;
        self.run(&call.arg(&gate).arg(&up).arg(&y).arg(n))?;
        Ok(y)
    }

    /// `dL/dgate` and `dL/dup`, given `dL/dy`.
    pub fn swiglu_backward(
        &self,
        dy: &Tensor,
        gate: &Tensor,
        up: &Tensor,
    ) -> Result<[Tensor; 2]> {
        let [dy, gate, up] = [dy, gate, up].map(Tensor::contiguous);
        let n = gate.numel() as i64;
        for t in [&dy, &gate, &up] {
            self.check("SwiGLU's backward", t, n, self.kind)?;
        }
        let (dgate, dup) = (gate.empty_like(), up.empty_like());
        let call = self.elementwise("swiglu_backward", n)?;
        let call = call.arg(&dy).arg(&gate).arg(&up);
        self.run(&call.arg(&dgate).arg(&dup).arg(n))?;
        Ok([dgate, dup])
    }

    fn elementwise(&self, kernel: &str, n: i64) -> Result<Call> {
        let blocks = (n as u64).div_ceil(4 * u64::from(THREADS)) as i64;
        let call = Call::new(SOURCE, format!("{kernel}_{}", suffix(self.kind)));
        call.over(blocks, 1, THREADS)
    }
}
