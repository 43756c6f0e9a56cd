//! A linear layer: dense or 4-bit weight, with or without an adapter.
use super::{Mode, dropout::factors};
use crate::quant::Nf4Tensor;
use crate::{Result, autograd};
use tch::Tensor;

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

impl Adapter {
    /// `y + B h`, where `h = s A d` and `d = dropout(x)`.
    ///
    /// With `t = s · dL/dy B`, a token a row: `dL/dA = tᵀ d`, `dL/dB = dL/dyᵀ h`,
    /// `dL/dx = t A ⊙ factors`. By hand, because libtorch would take eight operations
    /// with a result each for this small update, and with them as long as for the
    /// large product beside it.
    fn add_to(&self, y: &Tensor, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let (scale, kind) = (self.scale, self.a.kind());
        let (shape, narrow, wanted) = (x.size(), x.kind(), x.requires_grad());
        let rows = move |t: &Tensor| t.flatten(0, -2).to_kind(kind);
        let (a, b) = (self.a.detach(), self.b.detach());
        let x2 = rows(&x.detach()); // [N, in]
        let factors = factors(&x2, self.dropout, mode, self.place);
        let dropped = move |x: Tensor| match &factors {
            Some(factors) => x * factors,
            None => x,
        };
        let d = dropped(x2);
        let h = d.f_mm(&a.tr())? * scale; // [N, r]
        let sum = || {
            let y2 = y.flatten(0, -2);
            let sum = match y.kind() == kind {
                true => y2.f_addmm(&h, &b.tr())?,
                false => (y2 + h.f_mm(&b.tr())?).to_kind(y.kind()),
            };
            Ok(vec![sum.view_as(y)])
        };
        let (b, h) = (b.shallow_clone(), h.shallow_clone());
        let mut y = autograd::custom(&[y, x, &self.a, &self.b], sum, move |dy| {
            let Some(dy) = &dy[0] else { return Ok(vec![None, None, None, None]) };
            let u = rows(dy); // [N, out]
            let t = u.f_mm(&b)? * scale; // [N, r]
            let dx = wanted.then(|| t.f_mm(&a)).transpose()?;
            let dx = dx.map(|dx| dropped(dx).to_kind(narrow).view(shape.as_slice()));
            let (da, db) = (t.tr().f_mm(&d)?, u.tr().f_mm(&h)?);
            Ok(vec![Some(dy.shallow_clone()), dx, Some(da), Some(db)])
        })?;
        Ok(y.remove(0))
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
        lora.add_to(&y, x, mode)
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
