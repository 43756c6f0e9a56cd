//! Stochastic gradient descent, with momentum and Nesterov's form of it.
use super::{Hyper, Rule};
use tch::Tensor;

/// SGD with momentum, as `torch.optim.SGD`.
///
/// ```text
/// g ← g + λ θ
/// b ← μ b + (1 − τ) g          (b = g at the first step)
/// g ← g + μ b  if nesterov,  else  b
/// θ ← θ − η g
/// ```
///
/// Source: Polyak 1964; Nesterov 1983, in the form of Bengio et al. 2012, whose θ is
/// where Nesterov looks ahead to. Departure, as in PyTorch: η multiplies the whole
/// buffer at the end, where the velocity of Sutskever et al. 2013 has η inside, so a
/// change of η acts at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sgd {
    /// μ; 0 for plain gradient descent, which leaves the buffer unused.
    pub momentum: f64,
    /// τ, 0 in nearly all recipes.
    pub dampening: f64,
    /// Look ahead along the buffer.
    pub nesterov: bool,
    /// Climb instead of descend.
    pub maximize: bool,
}

// ANCHOR: rule
impl Rule<1> for Sgd {
    const SLOTS: [&'static str; 1] = ["b"];

    fn init(&self, theta: &Tensor) -> [Tensor; 1] {
        let b = if self.momentum == 0. {
            &theta.flatten(0, -1).narrow(0, 0, 0)
        } else {
            theta
        };
        [b.zeros_like()]
    }

    fn update(
        &self,
        theta: &mut Tensor,
        g: &Tensor,
        [b]: [&mut Tensor; 1],
        h: Hyper,
    ) {
        let Self { momentum: mu, dampening: tau, nesterov, maximize } = *self;
        let g = if maximize { -g } else { g.shallow_clone() };
        let g = if h.wd != 0. { g + h.wd * &*theta } else { g };
        if mu == 0. {
            // ANCHOR: plain
            *theta -= h.lr * g;
            // ANCHOR_END: plain
            return;
        }
        if h.t == 1 {
            b.copy_(&g);
        } else {
            *b *= mu;
            *b += (1. - tau) * &g;
        }
        let g = if nesterov { g + mu * &*b } else { b.shallow_clone() };
        *theta -= h.lr * g;
    }
}
// ANCHOR_END: rule
