//! The linears of one name of all experts, as one product, with their adapters.
use super::dropout::{PART, mask};
use super::grouped::{Groups, MOST_BYTES, MOST_EXPERTS, aligned, scratch};
use super::{Adapter, Linear, Mode, Weight};
use crate::Result;
use crate::autograd::{custom, filled};
use crate::cuda::{self, Kernels, Mask, MaskedRows};
use crate::quant::Nf4Tensor;
use tch::{Device, Kind, Tensor};

/// The linears of one name, one of each expert.
pub(super) struct Stack<'a> {
    weights: Vec<&'a Weight>,
    adapters: Option<Adapters<'a>>,
}

impl<'a> Stack<'a> {
    /// None where they have to go in turn: see [`super::grouped::Grouped::of`].
    pub(super) fn of(
        linears: Vec<&'a Linear>,
        (kind, device): (Kind, Device),
        mode: Mode,
    ) -> Option<Self> {
        let weights: Vec<_> = linears.iter().map(|l| &l.weight).collect();
        let first = weights.first()?;
        let (shape, quantized) = (first.shape(), matches!(first, Weight::Nf4(_)));
        let alike = |w: &&Weight| match w {
            Weight::Dense(t) => !quantized && !t.requires_grad() && t.kind() == kind,
            Weight::Nf4(_) => quantized,
        };
        let size = kind.elt_size_in_bytes() as i64;
        let fits = linears.len() <= MOST_EXPERTS
            && scratch(linears.len() as i64, shape, size) <= MOST_BYTES
            && shape.iter().all(|n| aligned(*n, kind))
            && linears.iter().all(|l| l.bias.is_none())
            && weights.iter().all(|w| w.shape() == shape && alike(w));
        if !fits {
            return None;
        }
        let lora: Vec<_> = linears.iter().filter_map(|l| l.lora.as_ref()).collect();
        if lora.is_empty() {
            return Some(Self { weights, adapters: None });
        }
        let adapters = Adapters::of(&lora, kind)?;
        let draws = match Kernels::at(device, kind) {
            // The kernel begins a row with a whole group of draws.
            Some(_) => shape[1] % 128 == 0,
            None => true, // on the CPU
        };
        let all = lora.len() == linears.len();
        (all && (draws || adapters.mask(mode).is_none()))
            .then_some(Self { weights, adapters: Some(adapters) })
    }

    /// `y = W x + s B A dropout(x)`, with W, A and B of a row's expert.
    /// As with an [`Adapter`] by itself, A and B are rounded to the kind of `x` and
    /// multiply in it, and the masks are the same; s is drawn into B before it is
    /// rounded, there into h.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        groups: &Groups,
        mode: Mode,
    ) -> Result<Tensor> {
        let (x2, wanted) = (x.detach(), x.requires_grad());
        let low = self.adapters.as_ref();
        let pass = Pass {
            weights: self.weights.iter().map(|w| w.shallow_clone()).collect(),
            groups: groups.shallow_clone(),
            kind: x.kind(),
            low: low.map(|a| Low::new(a, &x2, groups, mode)).transpose()?,
        };
        let y = pass.forward(&x2)?;
        let pairs = low.into_iter().flat_map(|a| a.a.iter().chain(&a.b));
        let inputs: Vec<_> = std::iter::once(x).chain(pairs.copied()).collect();
        let inputs = inputs.as_slice();
        let count = inputs.len();
        let mut y = custom(
            inputs,
            || Ok(vec![y]),
            move |dy| match &dy[0] {
                Some(dy) => pass.backward(&dy.contiguous(), wanted),
                None => Ok((0..count).map(|_| None).collect()),
            },
        )?;
        Ok(y.remove(0))
    }
}

/// The adapters of a stack, alike in all but A, B and place.
struct Adapters<'a> {
    a: Vec<&'a Tensor>,
    b: Vec<&'a Tensor>,
    scale: f64,
    dropout: f64,
    /// Of the first; that of each other is `apart` after the one before.
    place: u32,
    apart: u32,
}

impl<'a> Adapters<'a> {
    fn of(lora: &[&'a Adapter], kind: Kind) -> Option<Self> {
        let first = lora.first()?;
        let next = lora.get(1).unwrap_or(first);
        let apart = next.place.wrapping_sub(first.place);
        let form = |l: &Adapter| (l.a.size(), l.b.size(), l.a.kind(), l.b.kind());
        let alike = |(i, l): (u32, &&Adapter)| {
            l.dora.is_none()
                && l.bias.is_none()
                && (l.scale, l.dropout) == (first.scale, first.dropout)
                && form(l) == form(first)
                && l.place == first.place.wrapping_add(i.wrapping_mul(apart))
        };
        let all = aligned(first.a.size()[0], kind) && (0..).zip(lora).all(alike);
        all.then(|| Self {
            a: lora.iter().map(|l| &l.a).collect(),
            b: lora.iter().map(|l| &l.b).collect(),
            scale: first.scale,
            dropout: first.dropout,
            place: first.place,
            apart,
        })
    }

    /// The first one's.
    fn mask(&self, mode: Mode) -> Option<Mask> {
        mask(self.dropout, mode, self.place)
    }
}

/// A stack's pass forward and back. It keeps no weight unpacked, nor copies of A and B.
struct Pass {
    weights: Vec<Weight>,
    groups: Groups,
    kind: Kind,
    low: Option<Low>,
}

impl Pass {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let w = unpacked(&self.weights, self.kind)?;
        let mut y = self.groups.product(x, &w.transpose(1, 2))?;
        drop(w);
        if let Some(low) = &self.low {
            let b = low.b(self.kind)?.transpose(1, 2);
            let _ = y.f_add_(&self.groups.product(&low.h, &b)?)?;
        }
        Ok(y)
    }

    /// The gradients of x, all A and all B. With `t = s · dL/dy B`, an expert's rows
    /// at a time: `dL/dA = tᵀ d`, `dL/dB = s · dL/dyᵀ h`, `dL/dx = dL/dy W + t A ⊙
    /// factors`.
    fn backward(&self, dy: &Tensor, wanted: bool) -> Result<Vec<Option<Tensor>>> {
        let (groups, kind) = (&self.groups, self.kind);
        let dx = || groups.product(dy, &unpacked(&self.weights, kind)?);
        let mut dx = wanted.then(dx).transpose()?;
        let Some(low) = &self.low else { return Ok(vec![dx]) };
        let t = groups.product(dy, &low.b(kind)?)?; // [R, r]
        if let Some(dx) = &mut dx {
            let more = groups.product(&t, &stacked(&low.a)?.to_kind(kind))?;
            let _ = dx.f_add_(&low.dropped.apply(&more, groups)?)?;
        }
        let d = match &low.dropped {
            Dropped::Kept(_) => low.kept.shallow_clone(),
            again => again.apply(&low.kept, groups)?,
        };
        let narrow = low.a[0].kind();
        let da = groups.sums(&t, &d)?.to_kind(narrow); // [E, r, in]
        let db = groups.sums(dy, &low.h)?.to_kind(narrow) * low.scale; // [E, out, r]
        let pairs = da.f_unbind(0)?.into_iter().chain(db.f_unbind(0)?);
        Ok(std::iter::once(dx).chain(pairs.map(Some)).collect())
    }
}

/// What a pass needs of the adapters.
struct Low {
    a: Vec<Tensor>,
    b: Vec<Tensor>,
    scale: f64,
    dropped: Dropped,
    /// `d = dropout(x)`, or x where it can be dropped again.
    kept: Tensor,
    /// `h = A d`, [R, r].
    h: Tensor,
}

impl Low {
    /// `x`: [R, in], which records nothing.
    fn new(
        adapters: &Adapters,
        x: &Tensor,
        groups: &Groups,
        mode: Mode,
    ) -> Result<Self> {
        let own = |all: &[&Tensor]| all.iter().map(|t| t.detach()).collect();
        let (a, b): (Vec<_>, Vec<_>) = (own(&adapters.a), own(&adapters.b));
        let dropped = Dropped::new(adapters, x, groups, mode)?;
        let d = dropped.apply(x, groups)?;
        let h = stacked(&a)?.to_kind(x.kind()).transpose(1, 2);
        let h = groups.product(&d, &h)?;
        let kept = match dropped {
            Dropped::Kept(_) => d,
            _ => x.shallow_clone(),
        };
        Ok(Self { a, b, scale: adapters.scale, dropped, kept, h })
    }

    /// `s B`, [E, out, r].
    fn b(&self, kind: Kind) -> Result<Tensor> {
        Ok((stacked(&self.b)? * self.scale).to_kind(kind))
    }
}

/// A dropout of each expert's own, applied to all rows: to an input, and to its
/// gradient. Computed in f32, rounded once.
enum Dropped {
    /// Nothing falls.
    Not,
    /// Factors, f32, kept from one time to the other.
    Kept(Tensor),
    /// Drawn again: the first one's mask, and how far apart their places are.
    Drawn(Kernels, Mask, u32),
}

impl Dropped {
    fn new(
        adapters: &Adapters,
        x: &Tensor,
        groups: &Groups,
        mode: Mode,
    ) -> Result<Self> {
        let apart = adapters.apart;
        let Some(mask) = adapters.mask(mode) else { return Ok(Self::Not) };
        match cuda::kernels(&[x]) {
            Some(kernels) => Ok(Self::Drawn(kernels, mask, apart)),
            None => Ok(Self::Kept(factors(groups, x.size()[1], mask, apart)?)),
        }
    }

    fn apply(&self, x: &Tensor, groups: &Groups) -> Result<Tensor> {
        match self {
            Self::Not => Ok(x.shallow_clone()),
            Self::Kept(factors) => {
                Ok((x.to_kind(Kind::Float) * factors).to_kind(x.kind()))
            }
            Self::Drawn(kernels, mask, apart) => {
                let Groups { owner, ends } = groups;
                let rows = MaskedRows { owner, ends, apart: *apart };
                kernels.dropout_rows(x, &rows, *mask)
            }
        }
    }
}

/// The kernel's twin, where the host may know how many rows each expert has: on a CPU.
fn factors(groups: &Groups, width: i64, mask: Mask, apart: u32) -> Result<Tensor> {
    let ends = Vec::<i32>::try_from(&groups.ends)?;
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let rows = ends.iter().zip(starts).map(|(end, start)| i64::from(end - start));
    let each = (0..).zip(rows).map(|(i, rows)| {
        let place = mask.place.wrapping_add(apart.wrapping_mul(i));
        filled((rows * width) as usize, PART, &Mask { place, ..mask })
    });
    Ok(Tensor::f_cat(&each.collect::<Vec<_>>(), 0)?.view([-1, width]))
}

/// Matrices of one shape as one tensor, [E, n, m].
fn stacked(matrices: &[Tensor]) -> Result<Tensor> {
    let [n, m] = matrices.first().map_or([0; 2], |t| [t.size()[0], t.size()[1]]);
    Ok(Tensor::f_cat(matrices, 0)?.f_view([-1, n, m])?)
}

/// [E, out, in], as `kind`.
fn unpacked(weights: &[Weight], kind: Kind) -> Result<Tensor> {
    let (mut packed, mut dense) = (vec![], vec![]);
    for w in weights {
        match w {
            Weight::Nf4(q) => packed.push(q),
            Weight::Dense(w) => dense.push(w.shallow_clone()),
        }
    }
    let Some(first) = packed.first() else { return stacked(&dense) };
    let [n, m] = first.shape();
    let size = [packed.len() as i64, n, m];
    let out = Tensor::f_empty(size, (kind, first.device()))?;
    Nf4Tensor::dequantize_all(&packed, &out)?;
    Ok(out)
}
