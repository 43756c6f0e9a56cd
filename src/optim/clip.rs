//! Gradient clipping by the global norm.
use super::Param;
use tch::{Kind, Tensor, no_grad};

/// Scales all gradients so that their joint L2 norm is at most `max`, and returns the
/// norm before: `g ← g · min(1, max / (‖g‖ + 10⁻⁶))`.
///
/// A norm that is not finite is returned and nothing is scaled: a NaN would spread to
/// every gradient, and whoever stops for it wants to see the one at fault. Parameters
/// without a gradient do not count; with no gradient at all the norm is 0.
///
/// Source: Pascanu et al. 2013, arXiv 1211.5063; as `torch.nn.utils.clip_grad_norm_`.
pub fn clip_grad_norm(params: &[Param], max: f64) -> f64 {
    no_grad(|| {
        let grads: Vec<Tensor> =
            params.iter().map(|p| p.tensor.grad()).filter(Tensor::defined).collect();
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
