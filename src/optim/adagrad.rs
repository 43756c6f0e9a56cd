//! Adagrad.
use super::{Hyper, Rule};
use tch::Tensor;

/// Adagrad, as `torch.optim.Adagrad`.
///
/// ```text
/// g ← g + λ θ
/// s ← s + g²                          (s = the initial value before the first step)
/// θ ← θ − η / (1 + (t − 1) δ) · g / (√s + ε)
/// ```
///
/// Source: Duchi, Hazan & Singer 2011, JMLR 12, Figure 1 in its diagonal form.
/// ε is the paper's δ. Departure, as in PyTorch: the decay of the rate, here δ.
#[derive(Clone, Copy, Debug)]
pub struct Adagrad {
    /// δ; 0 in the paper.
    pub lr_decay: f64,
    /// Before the first step: 0 in the paper, 0.1 in TensorFlow.
    pub initial_accumulator_value: f64,
    /// ε, added to the root: in units of the gradient.
    pub eps: f64,
    /// Climb instead of descend.
    pub maximize: bool,
}

impl Default for Adagrad {
    fn default() -> Self {
        Self {
            lr_decay: 0.,
            initial_accumulator_value: 0.,
            eps: 1e-10,
            maximize: false,
        }
    }
}

// ANCHOR: rule
impl Rule<1> for Adagrad {
    const SLOTS: [&'static str; 1] = ["s"];

    fn init(&self, theta: &Tensor) -> [Tensor; 1] {
        [theta.full_like(self.initial_accumulator_value)]
    }

    fn update(
        &self,
        theta: &mut Tensor,
        g: &Tensor,
        [s]: [&mut Tensor; 1],
        Hyper { t, lr, wd }: Hyper,
    ) {
        let g = if self.maximize { -g } else { g.shallow_clone() };
        let g = if wd != 0. { g + wd * &*theta } else { g };
        let eta = lr / (1. + f64::from(t - 1) * self.lr_decay);
        *s += g.square();
        *theta -= eta * g / (s.sqrt() + self.eps);
    }
}
// ANCHOR_END: rule
