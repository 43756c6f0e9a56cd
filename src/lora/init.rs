//! What an adapter starts from.
//!
//! - Default: A from U(−1/√in, 1/√in), B zero: training starts at the base model.
//!   Source: PEFT's `lora/layer.py`, Kaiming-uniform with a = √5.
//! - Gaussian: A from N(0, 1/r²), B zero.
//! - PiSSA (Meng et al. 2024, arXiv 2404.02948): the weight is split by its singular
//!   values, `W = U S Vᵀ`. The r largest become the adapter, `B = U √(S/s)` and
//!   `A = √(S/s) Vᵀ`, and what is left of W is frozen. The model computes the same at
//!   first, but the directions that matter most are the trained ones. An adapter of it
//!   fits only the weights that are left, so a finished one is saved as
//!   [`pissa_to_lora`] makes it.
use super::Named;
use super::config::{Init, LoraConfig};
use crate::nn::Linear;
use crate::nn::dropout::{normal, uniform};
use crate::{Error, Result};
use tch::{Device, Kind, Tensor, no_grad};

/// PiSSA's adapter as one of plain LoRA, at twice the rank and the same scale, for the
/// weights as they were: `W − s B₀ A₀ + s B A = W + s [B, −B₀] [A; A₀]`. `starts` are A₀
/// and B₀, under the names that A and B have in `named`.
///
/// Source: `subtract_mutated_init` in PEFT's `lora/model.py`.
pub fn pissa_to_lora(
    config: &LoraConfig,
    named: &Named,
    starts: &Named,
) -> (LoraConfig, Named) {
    let start = |name: &String| starts.iter().find(|(n, _)| n == name);
    let both = |(name, t): &(String, Tensor)| {
        let t = match start(name) {
            Some((_, t0)) if name.ends_with("lora_A.weight") => {
                Tensor::cat(&[t.detach(), t0.detach()], 0)
            }
            Some((_, t0)) => Tensor::cat(&[t.detach(), -t0.detach()], 1),
            None => t.shallow_clone(),
        };
        (name.clone(), t)
    };
    let times = if config.use_rslora { 2f64.sqrt() } else { 2. };
    let ranks = config.rank_pattern.iter().map(|(p, r)| (p.clone(), 2 * r));
    let alphas = config.alpha_pattern.iter().map(|(p, a)| (p.clone(), times * a));
    let config = LoraConfig {
        r: 2 * config.r,
        alpha: times * config.alpha,
        rank_pattern: ranks.collect(),
        alpha_pattern: alphas.collect(),
        init: Init::Default,
        ..config.clone()
    };
    (config, named.iter().map(both).collect())
}

/// A₀ and B₀ of the linears that PiSSA split.
pub fn pissa_starts(linears: Vec<(String, &mut Linear)>) -> Named {
    let starts = linears.into_iter().filter_map(|(name, linear)| {
        let [a, b] = linear.lora.as_ref()?.start.as_ref()?;
        let of = |half: &str| format!("{name}.lora_{half}.weight");
        Some([(of("A"), a.shallow_clone()), (of("B"), b.shallow_clone())])
    });
    starts.flatten().collect()
}

/// A [r, in] and B [out, r], in f32.
pub(super) type Pair = (Tensor, Tensor);

// ANCHOR: random
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
// ANCHOR_END: random

// ANCHOR: pissa
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
// ANCHOR_END: pissa
