//! What an adapter starts from.
//!
//! - Default: A from U(−1/√in, 1/√in), B zero: training starts at the base model.
//!   Source: PEFT's `lora/layer.py`, Kaiming-uniform with a = √5.
//! - Gaussian: A from N(0, 1/r²), B zero.
//! - PiSSA (Meng et al. 2024, arXiv 2404.02948): the weight is split by its singular
//!   values, `W = U S Vᵀ`. The r largest become the adapter, `B = U √(S/s)` and
//!   `A = √(S/s) Vᵀ`, and what is left of W is frozen. The model computes the same at
//!   first, but the directions that matter most are the trained ones.
use super::config::Init;
use crate::nn::dropout::{normal, uniform};
use crate::{Error, Result};
use tch::{Device, Kind, Tensor, no_grad};

/// A [r, in] and B [out, r], in f32.
pub(super) type Pair = (Tensor, Tensor);

/// A from `init`, and B zero. A function of (seed, place).
pub(super) fn random(
    init: Init,
    [out, input]: [i64; 2],
    r: i64,
    (seed, place): (u64, u32),
    device: Device,
) -> Pair {
    let n = (r * input) as usize;
    let a = match init {
        Init::Gaussian => {
            let a = normal(n, seed, place);
            Tensor::from_slice(&a) / r as f64
        }
        _ => {
            let bound = 1. / (input as f64).sqrt();
            Tensor::from_slice(&uniform(n, bound, seed, place))
        }
    };
    let b = Tensor::zeros([out, r], (Kind::Float, device));
    (a.view_([r, input]).to_device(device), b)
}

/// PiSSA's A and B, and the weight that is left, in its kind.
///
/// # Errors
/// A rank above the weight's; libtorch's, where the decomposition does not converge.
pub(super) fn pissa(w: &Tensor, r: i64, scale: f64) -> Result<(Pair, Tensor)> {
    no_grad(|| {
        let largest = w.size()[0].min(w.size()[1]);
        if r > largest {
            let what = format!(
                "{r}, but a weight of shape {:?} has {largest} singular values",
                w.size()
            );
            return Err(Error::setting("lora-r", what));
        }
        let full = w.detach().to_kind(Kind::Float);
        let (u, s, v) = full.f_svd(true, true)?;
        let root = (s.narrow(0, 0, r) / scale).sqrt(); // [r]
        let a = (v.narrow(1, 0, r) * &root).tr();
        let b = u.narrow(1, 0, r) * root;
        let left = full - b.f_mm(&a)? * scale;
        Ok(((a.contiguous(), b.contiguous()), left.to_kind(w.kind())))
    })
}
