//! The gated feed-forward layer.
use super::{Linear, Mode};
use crate::Result;
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
        let gate = self.gate.forward(x, mode)?.silu(); // [B, T, F]
        self.down.forward(&(gate * self.up.forward(x, mode)?), mode)
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
