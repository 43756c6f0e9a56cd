//! Linears that see the same rows. Where these are few, as in generation, a card spends
//! longer on being asked than on the arithmetic of a bias or an adapter: one kernel does
//! all of them then, with what their layers add, and for a gated pair the gate as well.
use super::{Linear, Mode, Weight};
use crate::cuda::{Kernels, Nf4Matrix};
use crate::{Error, Result, autograd};
use tch::{Kind, Tensor};

/// Each of `linears` on `x` [.., in].
pub(super) fn together<const N: usize>(
    linears: [&Linear; N],
    x: &Tensor,
    mode: Mode,
) -> Result<[Tensor; N]> {
    let all = match by_kernel(&linears, x, mode)? {
        Some(all) => all,
        None => {
            let each = linears.iter().map(|l| l.forward(x, mode));
            each.collect::<Result<_>>()?
        }
    };
    all.try_into().map_err(|all: Vec<_>| {
        Error::setting("linears", format!("{} results; expected {N}", all.len()))
    })
}

/// The same by one kernel, where there is one for them.
pub(super) fn by_kernel(
    linears: &[&Linear],
    x: &Tensor,
    mode: Mode,
) -> Result<Option<Vec<Tensor>>> {
    let Some((kernels, all)) = served(linears, x, mode) else { return Ok(None) };
    kernels.nf4_products(x, &all)
}

/// `silu(gate x) ⊙ up x` by one kernel, where there is one for them.
pub(super) fn gated(
    gate: &Linear,
    up: &Linear,
    x: &Tensor,
    mode: Mode,
) -> Result<Option<Tensor>> {
    let Some((kernels, all)) = served(&[gate, up], x, mode) else { return Ok(None) };
    kernels.nf4_swiglu(x, &all)
}

/// Nothing is recorded, and nothing dropped: what is left are products and sums.
fn served<'a>(
    linears: &[&'a Linear],
    x: &Tensor,
    mode: Mode,
) -> Option<(Kernels, Vec<Nf4Matrix<'a>>)> {
    if mode != Mode::Eval || autograd::recording() {
        return None;
    }
    let kernels = Kernels::at(x.device(), x.kind())?;
    let all = linears.iter().map(|l| matrix(l, x.kind()));
    Some((kernels, all.collect::<Option<_>>()?))
}

/// What the kernel takes, if it can.
fn matrix(linear: &Linear, kind: Kind) -> Option<Nf4Matrix<'_>> {
    let Weight::Nf4(q) = &linear.weight else { return None };
    let plain = |t: &Tensor, kind| t.kind() == kind && t.is_contiguous();
    let bias = linear.bias.as_ref();
    let low_rank = match &linear.lora {
        None => None,
        Some(l) if l.dora.is_some() || l.bias.is_some() => return None,
        Some(l) => Some((&l.a, &l.b, l.scale)),
    };
    let floats = low_rank
        .is_none_or(|(a, b, _)| plain(a, Kind::Float) && plain(b, Kind::Float));
    let fits = floats && bias.is_none_or(|b| plain(b, kind));
    fits.then(|| Nf4Matrix { bias, low_rank, ..q.matrix() })
}
