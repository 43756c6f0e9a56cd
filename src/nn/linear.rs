//! A linear layer: dense or 4-bit weight, with or without an adapter.
use super::{Mode, dropout::dropout};
use crate::quant::Nf4Tensor;
use crate::{Result, autograd};
use tch::Tensor;

/// tch wants the type of an absent bias.
const NONE: Option<&Tensor> = None;

/// The weight [out, in] of a [`Linear`].
#[derive(Debug)]
pub enum Weight {
    /// As it is; trainable if it requires a gradient.
    Dense(Tensor),
    /// In 4-bit blocks; frozen.
    Nf4(Nf4Tensor),
}

impl Weight {
    /// [out, in].
    pub fn shape(&self) -> [i64; 2] {
        match self {
            Self::Dense(w) => [w.size()[0], w.size()[1]],
            Self::Nf4(q) => q.shape(),
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(w) => w.numel() * w.kind().elt_size_in_bytes(),
            Self::Nf4(q) => q.bytes(),
        }
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        match self {
            Self::Dense(w) => Self::Dense(w.shallow_clone()),
            Self::Nf4(q) => Self::Nf4(q.shallow_clone()),
        }
    }
}

/// A low-rank update beside a frozen weight: `s · B A dropout(x)`.
#[derive(Debug)]
pub struct Adapter {
    /// A, [r, in].
    pub a: Tensor,
    /// B, [out, r].
    pub b: Tensor,
    /// s = α / r.
    pub scale: f64,
    /// Probability of dropping an input element in training.
    pub dropout: f64,
    /// Which dropout of the model this is.
    pub place: u32,
}

/// `y = W x + b`, plus the adapter's update if there is one.
#[derive(Debug)]
pub struct Linear {
    /// W.
    pub weight: Weight,
    /// b, [out].
    pub bias: Option<Tensor>,
    /// LoRA.
    pub lora: Option<Adapter>,
}

impl Linear {
    /// A dense layer without adapter.
    pub fn dense(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Weight::Dense(weight), bias, lora: None }
    }

    /// [.., in] to [.., out].
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let y = match &self.weight {
            Weight::Dense(w) => x.linear(w, self.bias.as_ref()),
            Weight::Nf4(q) => {
                let y = nf4_linear(x, q)?;
                match &self.bias {
                    Some(b) => y + b,
                    None => y,
                }
            }
        };
        let Some(lora) = &self.lora else { return Ok(y) };
        let x = dropout(&x.to_kind(lora.a.kind()), lora.dropout, mode, lora.place);
        let update = x.linear(&lora.a, NONE).linear(&lora.b, NONE) * lora.scale;
        Ok(&y + update.to_kind(y.kind()))
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        let lora = self.lora.as_ref().map(|l| Adapter {
            a: l.a.shallow_clone(),
            b: l.b.shallow_clone(),
            ..*l
        });
        Self {
            weight: self.weight.shallow_clone(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            lora,
        }
    }
}

/// `y = x Wᵀ` with W in 4 bits. Backward needs only W, and dequantizes it again:
/// recorded as a plain operation, libtorch would keep every dequantized weight until
/// backward, and 4 bits would save nothing.
fn nf4_linear(x: &Tensor, q: &Nf4Tensor) -> Result<Tensor> {
    let kept = q.shallow_clone();
    let mut y = autograd::custom(
        &[x],
        || Ok(vec![q.matmul_t(x)?]),
        move |dy| {
            let dx = |dy: &Tensor| kept.matmul(dy); // dL/dx = dL/dy W
            Ok(vec![dy[0].as_ref().map(dx).transpose()?])
        },
    )?;
    Ok(y.remove(0))
}
