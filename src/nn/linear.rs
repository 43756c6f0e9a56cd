//! A linear layer: dense or 4-bit weight, with or without an adapter.
use super::{Adapter, Mode, dropout::dropout, together::by_kernel};
use crate::quant::Nf4Tensor;
use crate::{Result, autograd};
use tch::{Kind, Tensor};

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

    /// `x Wᵀ`.
    pub(super) fn product(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(w) => Ok(x.to_kind(w.kind()).f_linear(w, None::<Tensor>)?),
            Self::Nf4(q) => nf4_linear(x, q),
        }
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        match self {
            Self::Dense(w) => Self::Dense(w.shallow_clone()),
            Self::Nf4(q) => Self::Nf4(q.shallow_clone()),
        }
    }
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
        if let Some(mut y) = by_kernel(&[self], x, mode)? {
            return Ok(y.remove(0));
        }
        let y = match (&self.weight, &self.bias) {
            (Weight::Dense(w), bias) => dense_linear(x, w, bias.as_ref())?,
            (Weight::Nf4(q), None) => nf4_linear(x, q)?,
            (Weight::Nf4(q), Some(b)) => nf4_linear(x, q)? + b,
        };
        match &self.lora {
            None => Ok(y),
            Some(lora) if lora.dora.is_none() => lora.add_to(&y, x, mode),
            Some(lora) => self.add_dora(lora, &y, x, mode),
        }
    }

    /// What the layer multiplies by in evaluation, [out, in] in `kind`; none if it also
    /// adds a bias.
    pub(super) fn matrix(&self, kind: Kind) -> Result<Option<Tensor>> {
        let lora = self.lora.as_ref();
        if self.bias.is_some() || lora.is_some_and(|l| l.bias.is_some()) {
            return Ok(None);
        }
        let w = match &self.weight {
            Weight::Dense(w) => w.to_kind(kind),
            Weight::Nf4(q) => q.dequantize(kind),
        };
        let Some(lora) = lora else { return Ok(Some(w)) };
        let mut sum = w + lora.b.f_mm(&lora.a)? * lora.scale;
        if let Some(dora) = &lora.dora {
            let norm = lora.norm(dora, &self.weight)?; // [out]
            sum *= (&dora.magnitude / norm).unsqueeze(1);
        }
        Ok(Some(sum.to_kind(kind)))
    }

    fn add_dora(
        &self,
        lora: &Adapter,
        y: &Tensor,
        x: &Tensor,
        mode: Mode,
    ) -> Result<Tensor> {
        let Some(dora) = &lora.dora else { return lora.add_to(y, x, mode) };
        let norm = lora.norm(dora, &self.weight)?; // [out]
        match (lora.dropout > 0. && mode != Mode::Eval, &self.bias) {
            (true, _) => {
                let d = dropout(x, lora.dropout, mode, lora.place);
                lora.add_dora(dora, (y, &self.weight.product(&d)?, &d), norm)
            }
            (false, Some(b)) => lora.add_dora(dora, (y, &(y - b), x), norm),
            (false, None) => lora.add_dora(dora, (y, y, x), norm),
        }
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self {
            weight: self.weight.shallow_clone(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            lora: self.lora.as_ref().map(Adapter::shallow_clone),
        }
    }
}

/// `y = x Wᵀ + b`. Frozen, W goes to the faster library ([`autograd::Library`]).
fn dense_linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let learns = w.requires_grad() || bias.is_some_and(Tensor::requires_grad);
    if learns || autograd::Library::of(x) == autograd::Library::Libtorch {
        return Ok(x.f_linear(w, bias)?);
    }
    let kept = w.shallow_clone();
    let y = autograd::custom(
        &[x],
        || Ok(vec![times(x, &w.tr())?]),
        move |dy| {
            let dx = |dy: &Tensor| times(dy, &kept); // dL/dx = dL/dy W
            Ok(vec![dy[0].as_ref().map(dx).transpose()?])
        },
    )?
    .remove(0);
    Ok(match bias {
        Some(b) => y + b,
        None => y,
    })
}

/// `x` [.., n] times `w` [n, m].
fn times(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let mut shape = x.size();
    shape.pop();
    shape.push(w.size()[1]);
    let y = autograd::mm(&x.f_reshape([-1, w.size()[0]])?, w)?;
    Ok(y.f_view(shape.as_slice())?)
}

// ANCHOR: nf4_linear
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
// ANCHOR_END: nf4_linear
