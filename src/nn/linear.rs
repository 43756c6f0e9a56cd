//! A linear layer: dense or 4-bit weight, with or without an adapter.
use super::{Adapter, Dora, Mode, dropout::dropout, together::by_kernel};
use crate::Result;
use crate::autograd::{self, Library, Need};
use crate::quant::Nf4Tensor;
use tch::{Kind, Tensor, no_grad};

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

    /// The shape of `x Wᵀ` for an `x` [.., in].
    pub(super) fn output(&self, x: &Tensor) -> Vec<i64> {
        let mut shape = x.size();
        shape.pop();
        shape.push(self.shape()[0]);
        shape
    }

    /// `x Wᵀ`.
    pub(super) fn product(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(w) => Ok(x.to_kind(w.kind()).f_linear(w, None::<Tensor>)?),
            Self::Nf4(_) => frozen_linear(x, self, None, Need::Value),
        }
    }

    /// `x Wᵀ + b`, W dense by the faster library ([`Library`]). Records nothing.
    pub(super) fn forward(&self, x: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
        no_grad(|| {
            let mut y = match self {
                Self::Dense(w) if Library::of(x) == Library::Libtorch => {
                    return Ok(x.f_linear(w, b)?);
                }
                Self::Dense(w) => times(x, &w.tr())?,
                Self::Nf4(q) => q.matmul_t(x)?,
            };
            b.map(|b| y.f_add_(b)).transpose()?;
            Ok(y)
        })
    }

    /// `dL/dx = dL/dy W`. Records nothing.
    pub(super) fn back(&self, dy: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(w) => times(dy, w),
            Self::Nf4(q) => q.matmul(dy),
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
        self.forward_for(Need::Value, x, mode)
    }

    /// The same. Where only the graph is asked for, what is frozen is not multiplied
    /// by, unless by DoRA, whose backward reads the product.
    pub fn forward_for(&self, need: Need, x: &Tensor, mode: Mode) -> Result<Tensor> {
        if let Some(mut y) = by_kernel(&[self], x, mode)? {
            return Ok(y.remove(0));
        }
        let Some(lora) = &self.lora else { return self.base(x, need) };
        match &lora.dora {
            None if self.learns() => Ok(self.base(x, need)? + lora.update(x, mode)?),
            None => lora.add_to(self, x, mode, need),
            Some(dora) => {
                self.add_dora((lora, dora), &self.base(x, Need::Value)?, x, mode)
            }
        }
    }

    /// Without its adapter.
    fn base(&self, x: &Tensor, need: Need) -> Result<Tensor> {
        match (&self.weight, &self.bias) {
            (Weight::Dense(w), b) if self.learns() => Ok(x.f_linear(w, b.as_ref())?),
            (w, Some(b)) if self.learns() => {
                Ok(frozen_linear(x, w, None, need)? + b)
            }
            (w, b) => frozen_linear(x, w, b.as_ref(), need),
        }
    }

    /// Whether W or b does.
    fn learns(&self) -> bool {
        let w = matches!(&self.weight, Weight::Dense(w) if w.requires_grad());
        w || self.bias.as_ref().is_some_and(Tensor::requires_grad)
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
        (lora, dora): (&Adapter, &Dora),
        y: &Tensor,
        x: &Tensor,
        mode: Mode,
    ) -> Result<Tensor> {
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

/// `x` [.., n] times `w` [n, m].
fn times(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let mut shape = x.size();
    shape.pop();
    shape.push(w.size()[1]);
    let y = autograd::mm(&x.f_reshape([-1, w.size()[0]])?, w)?;
    Ok(y.f_view(shape.as_slice())?)
}

// ANCHOR: frozen_linear
/// `y = x Wᵀ + b`, with W and b frozen. Backward needs only W, and of a W in 4 bits it
/// dequantizes it again: recorded as a plain operation, libtorch would keep every
/// dequantized weight until backward, and 4 bits would save nothing.
fn frozen_linear(
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    need: Need,
) -> Result<Tensor> {
    let y = need.of(&weight.output(x), x, || weight.forward(x, bias))?;
    let kept = weight.shallow_clone();
    let mut y = autograd::custom(
        &[x],
        || Ok(vec![y]),
        move |dy| {
            let dx = |dy: &Tensor| kept.back(dy); // dL/dx = dL/dy W
            Ok(vec![dy[0].as_ref().map(dx).transpose()?])
        },
    )?;
    Ok(y.remove(0))
}
// ANCHOR_END: frozen_linear
