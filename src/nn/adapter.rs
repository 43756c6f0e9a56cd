//! A low-rank update beside a frozen weight: LoRA, and DoRA.
use super::dropout::{Mode, Twice, dropout};
use super::{Linear, Weight};
use crate::Result;
use crate::autograd::{self, Need};
use tch::{Kind, Tensor, no_grad};

/// A low-rank update beside a frozen weight: `s · (B A dropout(x) + bias)`.
#[derive(Debug)]
pub struct Adapter {
    /// A, [r, in].
    pub a: Tensor,
    /// B, [out, r].
    pub b: Tensor,
    /// [out].
    pub bias: Option<Tensor>,
    /// The lengths of the rows, where they are trained apart.
    pub dora: Option<Dora>,
    /// A and B as PiSSA took them out of W.
    pub start: Option<[Tensor; 2]>,
    /// s = α / r.
    pub scale: f64,
    /// Probability of dropping an input element in training.
    pub dropout: f64,
    /// Which dropout of the model this is.
    pub place: u32,
}

/// DoRA: each row of the adapted weight in its direction, at a length m of its own,
///
/// `y = m / ‖W + s B A‖ · (W + s B A) x`.
///
/// The norm, one for each row, counts as a constant in backward, so that neither it
/// nor a dense `W + s B A` has to be kept: the gradients are those of LoRA, times
/// `m / ‖W + s B A‖`.
///
/// Source: Liu et al. 2024, arXiv 2402.09353, eq. 5, and §4.3 for the constant norm.
#[derive(Debug)]
pub struct Dora {
    /// m, [out].
    pub magnitude: Tensor,
    /// Where the norm comes from.
    pub length: Length,
}

/// What is known of the lengths of rows, [out] in f32.
#[derive(Debug)]
pub enum Length {
    /// `‖W‖²`; the rest of the norm changes with A and B.
    Squares(Tensor),
    /// `‖W + s B A‖`, where these stay as they are: see [`Adapter::keep_norm`].
    Norm(Tensor),
}

impl Length {
    fn shallow_clone(&self) -> Self {
        match self {
            Self::Squares(t) => Self::Squares(t.shallow_clone()),
            Self::Norm(t) => Self::Norm(t.shallow_clone()),
        }
    }
}

impl Dora {
    /// With the given lengths beside W.
    pub fn with(weight: &Weight, magnitude: Tensor) -> Self {
        let squares = no_grad(|| {
            let w = match weight {
                Weight::Dense(w) => w.detach().to_kind(Kind::Float),
                Weight::Nf4(q) => q.dequantize(Kind::Float),
            };
            w.square().sum_dim_intlist(1, false, Kind::Float)
        });
        let magnitude = magnitude.set_requires_grad(true);
        Self { magnitude, length: Length::Squares(squares) }
    }

    /// With the lengths that the rows of W + s B A have, so that nothing changes yet.
    pub fn new(weight: &Weight, adapter: &Adapter) -> Result<Self> {
        let mut dora = Self::with(weight, adapter.b.detach());
        dora.magnitude = adapter.norm(&dora, weight)?.set_requires_grad(true);
        Ok(dora)
    }
}

impl Adapter {
    /// LoRA: A, B and s, without dropout.
    pub fn new(a: Tensor, b: Tensor, scale: f64) -> Self {
        Self {
            a,
            b,
            bias: None,
            dora: None,
            start: None,
            scale,
            dropout: 0.,
            place: 0,
        }
    }

    /// What is trained, in a fixed order.
    pub fn tensors(&self) -> Vec<&Tensor> {
        let magnitude = self.dora.as_ref().map(|d| &d.magnitude);
        [&self.a, &self.b].into_iter().chain(&self.bias).chain(magnitude).collect()
    }

    /// The same, to be replaced.
    pub fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        let magnitude = self.dora.as_mut().map(|d| &mut d.magnitude);
        let pair = [&mut self.a, &mut self.b].into_iter();
        pair.chain(&mut self.bias).chain(magnitude).collect()
    }

    // ANCHOR: add_to
    /// `y + B h` for `y = W x + b` of a frozen base, where `h = s A d` and
    /// `d = dropout(x)`.
    ///
    /// With `u = dL/dy`, a token a row, and `t = s u B`: `dL/dA = tᵀ d`, `dL/dB = uᵀ h`,
    /// `dL/dx = u W + t A ⊙ factors`. By hand, because libtorch would take eight
    /// operations with a result each for this small update, and with them as long as
    /// for the large product beside it. A and B are kept in f32, and multiply in the
    /// kind of x, as W does.
    pub(super) fn add_to(
        &self,
        base: &Linear,
        x: &Tensor,
        mode: Mode,
        need: Need,
    ) -> Result<Tensor> {
        let (scale, learned, kind) = (self.scale, self.a.kind(), x.kind());
        let [a, b] = [&self.a, &self.b].map(|t| t.detach().to_kind(kind));
        let rows = |t: &Tensor| t.flatten(0, -2);
        let x2 = rows(&x.detach()); // [N, in]
        let dropped = Twice::new(&x2, self.dropout, mode, self.place);
        let d = dropped.apply(&x2)?;
        let h = d.f_mm(&a.tr())? * scale; // [N, r]
        let y = need.of(&base.weight.output(x), x, || {
            let y = base.weight.forward(x, base.bias.as_ref())?;
            let _ = y.f_view([-1, b.size()[0]])?.f_addmm_(&h, &b.tr())?;
            Ok(y)
        })?;
        // For backward d is kept, or made again from x, which is there anyway.
        let kept = if dropped.is_cheap() { x2 } else { d };
        let (w, wanted) = (base.weight.shallow_clone(), x.requires_grad());
        // In 16 bits t A is added to u W here, if no dropout lies between. Else autograd
        // adds the two: x stands there twice, and in f32 sums keep their old order.
        let joined = dropped.is_none() && kind.elt_size_in_bytes() == 2;
        let (inputs, forward) = ([x, x, &self.a, &self.b], || Ok(vec![y]));
        let mut y = autograd::custom(&inputs, forward, move |dy| {
            let Some(dy) = &dy[0] else { return Ok(vec![None, None, None, None]) };
            let u = rows(dy); // [N, out]
            let t = u.f_mm(&b)? * scale; // [N, r]
            let d = match dropped.is_cheap() {
                true => dropped.apply(&kept)?,
                false => kept.shallow_clone(),
            };
            let grads = [t.tr().f_mm(&d)?, u.tr().f_mm(&h)?];
            let [da, db] = grads.map(|g| Some(g.to_kind(learned)));
            if !wanted {
                return Ok(vec![None, None, da, db]);
            }
            let dx = w.back(dy)?;
            if joined {
                let _ = dx.f_view_as(&d)?.f_addmm_(&t, &a)?;
                return Ok(vec![None, Some(dx), da, db]);
            }
            let own = dropped.apply(&t.f_mm(&a)?)?.f_view_as(&dx)?;
            Ok(vec![Some(own), Some(dx), da, db])
        })?;
        self.with_bias(y.remove(0))
    }
    // ANCHOR_END: add_to

    /// `s (B A dropout(x) + bias)`, each operation recorded: beside a base that learns.
    pub(super) fn update(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let [a, b] = [&self.a, &self.b].map(|t| t.to_kind(x.kind()));
        let d = dropout(x, self.dropout, mode, self.place);
        let h = d.f_linear(&a, None::<Tensor>)? * self.scale;
        self.with_bias(h.f_linear(&b, None::<Tensor>)?)
    }

    fn with_bias(&self, y: Tensor) -> Result<Tensor> {
        let Some(bias) = &self.bias else { return Ok(y) };
        let kind = y.kind();
        Ok((y + bias * self.scale).to_kind(kind))
    }

    /// DoRA: `y + (c − 1) z + c ⊙ B h`, where `z = W d`, `h = s A d`, and
    /// `c = m / ‖W + s B A‖`. Without dropout `y` is `z` and the layer's bias; with
    /// it, as in PEFT, the base's own output sees all of x, and the correction does
    /// not.
    ///
    /// With `u = dL/dy`, a token a row, and `t = s (u ⊙ c) B`: `dL/dz = u ⊙ (c − 1)`,
    /// `dL/dd = t A`, `dL/dA = tᵀ d`, `dL/dB = (u ⊙ c)ᵀ h`, and
    /// `dL/dm = Σ u ⊙ (z + B h) / ‖W + s B A‖`.
    pub(super) fn add_dora(
        &self,
        dora: &Dora,
        (y, z, d): (&Tensor, &Tensor, &Tensor),
        norm: Tensor,
    ) -> Result<Tensor> {
        let (scale, kind) = (self.scale, self.a.kind());
        let (narrow, shape, wanted) = (d.kind(), d.size(), d.requires_grad());
        let (of_z, z_kind) = (z.size(), z.kind());
        let rows = move |t: &Tensor| t.flatten(0, -2).to_kind(kind);
        let (a, b) = (self.a.detach(), self.b.detach());
        let (z2, d2) = (rows(&z.detach()), rows(&d.detach())); // [N, out], [N, in]
        let c = dora.magnitude.detach() / &norm; // [out]
        let h = d2.f_mm(&a.tr())? * scale; // [N, r]
        let sum = || {
            let own = &z2 * (&c - 1) + h.f_mm(&b.tr())? * &c;
            Ok(vec![(y.flatten(0, -2) + own).to_kind(y.kind()).view_as(y)])
        };
        let [z3, b2, c2, h2] = [&z2, &b, &c, &h].map(Tensor::shallow_clone);
        let inputs = [y, z, d, &self.a, &self.b, &dora.magnitude];
        let mut y = autograd::custom(&inputs, sum, move |dy| {
            let Some(dy) = &dy[0] else { return Ok((0..6).map(|_| None).collect()) };
            let u = rows(dy); // [N, out]
            let uc = &u * &c2;
            let t = uc.f_mm(&b2)? * scale; // [N, r]
            let dz = (&uc - &u).to_kind(z_kind).view(of_z.as_slice());
            let dd = wanted.then(|| t.f_mm(&a)).transpose()?;
            let dd = dd.map(|dd| dd.to_kind(narrow).view(shape.as_slice()));
            let (da, db) = (t.tr().f_mm(&d2)?, uc.tr().f_mm(&h2)?);
            let whole = &z3 + h2.f_mm(&b2.tr())?;
            let dm = (u * whole).sum_dim_intlist(0, false, kind) / &norm;
            let dy = dy.shallow_clone();
            Ok(vec![Some(dy), Some(dz), dd, Some(da), Some(db), Some(dm)])
        })?;
        self.with_bias(y.remove(0))
    }

    // ANCHOR: norm
    /// `‖W + s B A‖` by row, by way of `W Aᵀ` [out, r] and never of a dense `B A`:
    /// for the rows w of W and b of B, `‖w + s Aᵀ b‖² = ‖w‖² + 2 s b·A w + s² b·A Aᵀ b`.
    pub(super) fn norm(&self, dora: &Dora, weight: &Weight) -> Result<Tensor> {
        let squares = match &dora.length {
            Length::Squares(squares) => squares,
            Length::Norm(norm) => return Ok(norm.shallow_clone()),
        };
        no_grad(|| {
            let (a, b) = (&self.a, &self.b);
            let by_row = |t: Tensor| t.sum_dim_intlist(1, false, Kind::Float);
            let wa = weight.product(a)?.tr().to_kind(a.kind()); // [out, r]
            let cross = by_row(b * wa) * (2. * self.scale);
            let own = by_row(b.f_mm(&a.f_mm(&a.tr())?)? * b) * self.scale.powi(2);
            // A row of zeros has no direction; any divisor will do.
            let least = f64::from(f32::MIN_POSITIVE);
            Ok((squares + cross + own).clamp_min(least).sqrt())
        })
    }
    // ANCHOR_END: norm

    /// Computes DoRA's norm once and for all: for an adapter that is only used. One
    /// token costs as much arithmetic as its norm, which needs all of W.
    pub fn keep_norm(&mut self, weight: &Weight) -> Result<()> {
        let norm = self.dora.as_ref().map(|dora| self.norm(dora, weight));
        if let (Some(norm), Some(dora)) = (norm.transpose()?, &mut self.dora) {
            dora.length = Length::Norm(norm);
        }
        Ok(())
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        let dora = self.dora.as_ref().map(|d| Dora {
            magnitude: d.magnitude.shallow_clone(),
            length: d.length.shallow_clone(),
        });
        Self {
            a: self.a.shallow_clone(),
            b: self.b.shallow_clone(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            dora,
            start: self
                .start
                .as_ref()
                .map(|s| s.each_ref().map(Tensor::shallow_clone)),
            ..*self
        }
    }
}
