//! Adam, AMSGrad and AdamW.
use super::{Hyper, Rule};
use tch::Tensor;

/// Adam, as `torch.optim.Adam`.
///
/// ```text
/// m ← β₁ m + (1 − β₁) g          m̂ = m / (1 − β₁ᵗ)
/// v ← β₂ v + (1 − β₂) g²         v̂ = v / (1 − β₂ᵗ)
/// θ ← θ − η m̂ / (√v̂ + ε)
/// ```
///
/// A weight decay is added to the gradient first, `g ← g + λ θ` (L2, coupled), as in
/// PyTorch; see [`AdamW`]. Source: Kingma & Ba 2015, arXiv 1412.6980, Algorithm 1.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    /// β₁, how slowly the mean of the gradient forgets.
    pub beta1: f64,
    /// β₂, how slowly the mean of its square forgets.
    pub beta2: f64,
    /// ε, added to the root: in units of the gradient.
    pub eps: f64,
    /// Climb instead of descend.
    pub maximize: bool,
}

impl Default for Adam {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, maximize: false }
    }
}

// ANCHOR: rule
impl Rule<2> for Adam {
    const SLOTS: [&'static str; 2] = ["m", "v"];

    fn update(
        &self,
        theta: &mut Tensor,
        g: &Tensor,
        [m, v]: [&mut Tensor; 2],
        Hyper { t, lr, wd }: Hyper,
    ) {
        let Self { beta1, beta2, eps, maximize } = *self;
        let g = &coupled(theta, g, wd, maximize);
        *m *= beta1;
        *m += (1. - beta1) * g;
        *v *= beta2;
        *v += (1. - beta2) * g.square();
        let m_hat = &*m / (1. - beta1.powi(t));
        let v_hat = &*v / (1. - beta2.powi(t));
        *theta -= lr * m_hat / (v_hat.sqrt() + eps);
    }
}
// ANCHOR_END: rule

/// The gradient with its sign and, if any, L2 decay: `±g + λ θ`.
fn coupled(theta: &Tensor, g: &Tensor, wd: f64, maximize: bool) -> Tensor {
    let g = if maximize { -g } else { g.shallow_clone() };
    if wd != 0. { g + wd * theta } else { g }
}

/// AMSGrad: Adam that divides by the largest mean of squares so far,
/// `v_max ← max(v_max, v)`.
///
/// Source: Reddi, Kale & Kumar 2018, arXiv 1904.09237, Algorithm 2. Departure, as in
/// PyTorch's `amsgrad=True`: the bias of both moments is corrected, so that the divisor
/// can shrink while the correction fades, which it cannot in the paper.
#[derive(Clone, Copy, Debug, Default)]
pub struct AmsGrad(pub Adam);

// ANCHOR: amsgrad
impl Rule<3> for AmsGrad {
    const SLOTS: [&'static str; 3] = ["m", "v", "v_max"];

    fn update(
        &self,
        theta: &mut Tensor,
        g: &Tensor,
        [m, v, v_max]: [&mut Tensor; 3],
        Hyper { t, lr, wd }: Hyper,
    ) {
        let Adam { beta1, beta2, eps, maximize } = self.0;
        let g = &coupled(theta, g, wd, maximize);
        *m *= beta1;
        *m += (1. - beta1) * g;
        *v *= beta2;
        *v += (1. - beta2) * g.square();
        *v_max = v_max.maximum(v);
        let m_hat = &*m / (1. - beta1.powi(t));
        let v_hat = &*v_max / (1. - beta2.powi(t));
        *theta -= lr * m_hat / (v_hat.sqrt() + eps);
    }
}
// ANCHOR_END: amsgrad

/// AdamW, as `torch.optim.AdamW`: Adam with decoupled weight decay.
///
/// ```text
/// θ ← θ − η λ θ,  then Adam's step on the plain gradient
/// ```
///
/// Source: Loshchilov & Hutter 2019, arXiv 1711.05101, Algorithm 2. Departure, as in
/// PyTorch: the decay is multiplied by the learning rate η as well, not only by the
/// schedule's factor.
///
/// The rule inside is another where that is wanted: `AdamW(AmsGrad::default())` is
/// PyTorch's `amsgrad=True`.
#[derive(Clone, Copy, Debug)]
pub struct AdamW<R = Adam>(pub R);

impl Default for AdamW {
    fn default() -> Self {
        Self(Adam::default())
    }
}

// ANCHOR: adamw
impl<R: Rule<N>, const N: usize> Rule<N> for AdamW<R> {
    const SLOTS: [&'static str; N] = R::SLOTS;

    fn init(&self, theta: &Tensor) -> [Tensor; N] {
        self.0.init(theta)
    }

    fn update(
        &self,
        theta: &mut Tensor,
        g: &Tensor,
        slots: [&mut Tensor; N],
        h: Hyper,
    ) {
        if h.wd != 0. {
            *theta *= 1. - h.lr * h.wd;
        }
        self.0.update(theta, g, slots, Hyper { wd: 0., ..h });
    }
}
// ANCHOR_END: adamw
