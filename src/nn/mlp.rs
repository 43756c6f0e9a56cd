//! The gated feed-forward layer.
use super::{Linear, Mode, together};
use crate::autograd::{self, Need};
use crate::{Result, cuda};
use tch::Tensor;

/// `down(silu(gate(x)) ⊙ up(x))`.
///
/// Source: Shazeer 2020, arXiv 2002.05202 (SwiGLU).
#[derive(Debug)]
pub struct SwiGlu {
    /// D to F, through SiLU.
    pub gate: Linear,
    /// D to F.
    pub up: Linear,
    /// F to D.
    pub down: Linear,
}

impl SwiGlu {
    /// [B, T, D] to [B, T, D].
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.forward_for(Need::Value, x, mode)
    }

    /// The same; see [`Linear::forward_for`].
    pub fn forward_for(&self, need: Need, x: &Tensor, mode: Mode) -> Result<Tensor> {
        if let Some(y) = together::gated(&self.gate, &self.up, x, mode)? {
            return self.down.forward_for(need, &y, mode);
        }
        let gate = self.gate.forward(x, mode)?; // [B, T, F]
        let up = self.up.forward(x, mode)?;
        self.down.forward_for(need, &gated(gate, up)?, mode)
    }

    /// Its linear layers, by their last names.
    pub fn linears(&self) -> [(&'static str, &Linear); 3] {
        [("gate_proj", &self.gate), ("up_proj", &self.up), ("down_proj", &self.down)]
    }

    /// The same, to be changed.
    pub fn linears_mut(&mut self) -> [(&'static str, &mut Linear); 3] {
        [
            ("gate_proj", &mut self.gate),
            ("up_proj", &mut self.up),
            ("down_proj", &mut self.down),
        ]
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self {
            gate: self.gate.shallow_clone(),
            up: self.up.shallow_clone(),
            down: self.down.shallow_clone(),
        }
    }
}

/// `silu(gate) ⊙ up`. On a card a kernel, which keeps `gate` and `up` for backward, but
/// not `silu(gate)`.
pub(super) fn gated(gate: Tensor, up: Tensor) -> Result<Tensor> {
    let Some(kernels) = cuda::kernels(&[&gate, &up]) else {
        return Ok(gate.silu() * up);
    };
    let (g, u) = (gate.detach(), up.detach());
    let forward = || Ok(vec![kernels.swiglu(&gate, &up)?]);
    let mut y = autograd::custom(&[&gate, &up], forward, move |dy| {
        let Some(dy) = &dy[0] else { return Ok(vec![None, None]) };
        Ok(kernels.swiglu_backward(dy, &g, &u)?.map(Some).into())
    })?;
    Ok(y.remove(0))
}
