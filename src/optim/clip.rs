//! Gradient clipping: by the global norm, by value, and relative to the weights.
use super::Param;
use crate::cuda;
use tch::{Kind, Tensor, no_grad};

/// Scales all gradients so that their joint L2 norm is at most `max`, and returns the
/// norm before: `g ← g · min(1, max / (‖g‖ + 10⁻⁶))`.
///
/// A norm that is not finite is returned and nothing is scaled: a NaN would spread to
/// every gradient, and whoever stops for it wants to see the one at fault. Parameters
/// without a gradient do not count; with no gradient at all the norm is 0.
///
/// Source: Pascanu et al. 2013, arXiv 1211.5063; as `torch.nn.utils.clip_grad_norm_`.
// ANCHOR: norm
pub fn clip_grad_norm(params: &[Param], max: f64) -> f64 {
    no_grad(|| {
        let grads = gradients(params);
        if grads.is_empty() {
            return 0.;
        }
        let norms: Vec<Tensor> =
            grads.iter().map(|g| g.norm().to_kind(Kind::Double)).collect();
        // One number crosses to the host, not one per parameter.
        let norm = Tensor::stack(&norms, 0).norm().double_value(&[]);
        let scale = max / (norm + 1e-6);
        if norm.is_finite() && scale < 1. {
            grads.into_iter().for_each(|mut g| g *= scale);
        }
        norm
    })
}
// ANCHOR_END: norm

/// As [`clip_grad_norm`], on the device alone: the norm is a tensor `[]` of f64 there,
/// which nobody has waited for.
///
/// Where the norm or `loss` is not finite all gradients become zero, so that a step
/// taken before anyone has read that moves nothing but by its momentum.
pub fn clip_grad_norm_late(params: &[Param], max: f64, loss: &Tensor) -> Tensor {
    no_grad(|| {
        let grads = gradients(params);
        if grads.is_empty() {
            return Tensor::zeros([], (Kind::Double, loss.device()));
        }
        // On a card a few launches for all of them, instead of four for each.
        let all = cuda::kernels(&grads.iter().collect::<Vec<_>>());
        let all = all.filter(|_| grads.iter().all(by_kernel));
        let norm = all.and_then(|kernels| kernels.norm(&grads).ok());
        let norm = norm.unwrap_or_else(|| {
            let norm = |g: &Tensor| g.norm().to_kind(Kind::Double);
            Tensor::stack(&grads.iter().map(norm).collect::<Vec<_>>(), 0).norm()
        });
        let spoilt = (&norm + loss).isfinite().logical_not();
        let scale = (max / (&norm + 1e-6)).clamp_max(1.);
        let factor = scale.masked_fill(&spoilt, 0.).to_kind(Kind::Float);
        if all.is_some_and(|kernels| kernels.scale(&grads, &factor).is_ok()) {
            return norm;
        }
        for mut g in grads {
            g *= &scale;
            let _ = g.masked_fill_(&spoilt, 0.);
        }
        norm
    })
}

fn by_kernel(g: &Tensor) -> bool {
    g.kind() == Kind::Float && g.is_contiguous()
}

/// Cuts every element of every gradient to `[−max, max]`. This turns the gradient:
/// large elements lose, small ones do not.
///
/// As `torch.nn.utils.clip_grad_value_`.
// ANCHOR: value
pub fn clip_grad_value(params: &[Param], max: f64) {
    no_grad(|| {
        for mut g in gradients(params) {
            let _ = g.clamp_(-max, max);
        }
    })
}
// ANCHOR_END: value

/// Adaptive clipping: for each unit, a row of a matrix or a whole vector, the norm of
/// the gradient is cut to `factor` times that of its weights,
/// `g_i ← g_i · min(1, factor · max(‖w_i‖, 10⁻³) / ‖g_i‖)`.
///
/// Source: Brock et al. 2021, arXiv 2102.06171, equation 3; as in the package timm.
// ANCHOR: adaptive
pub fn clip_grad_adaptive(params: &[Param], factor: f64) {
    let unit_norm = |x: &Tensor| match x.dim() {
        0 | 1 => x.norm(),
        n => {
            let inside: Vec<i64> = (1..n as i64).collect();
            x.norm_scalaropt_dim(2., inside.as_slice(), true)
        }
    };
    no_grad(|| {
        for p in params.iter().filter(|p| p.tensor.grad().defined()) {
            let mut g = p.tensor.grad();
            let max = unit_norm(&p.tensor).clamp_min(1e-3) * factor;
            let norm = unit_norm(&g).clamp_min(1e-6);
            g *= (max / norm).clamp_max(1.);
        }
    })
}
// ANCHOR_END: adaptive

fn gradients(params: &[Param]) -> Vec<Tensor> {
    params.iter().map(|p| p.tensor.grad()).filter(Tensor::defined).collect()
}
