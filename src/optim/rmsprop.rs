//! RMSprop.
use super::{Hyper, Rule};
use tch::Tensor;

/// RMSprop, as `torch.optim.RMSprop`.
///
/// ```text
/// g ← g + λ θ
/// v ← α v + (1 − α) g²
/// d = √v + ε,   if centered  √(v − a²) + ε  with  a ← α a + (1 − α) g
/// θ ← θ − η g / d,   with momentum  b ← μ b + g / d,  θ ← θ − η b
/// ```
///
/// Source: there is no paper. Tieleman & Hinton 2012, lecture 6.5 of the course
/// "Neural Networks for Machine Learning"; centered: Graves 2013, arXiv 1308.0850,
/// equations 38 to 45, which has ε inside the root.
#[derive(Clone, Copy, Debug)]
pub struct RmsProp {
    /// α, how slowly the mean of squares forgets; the lecture has 0.9, PyTorch 0.99.
    pub alpha: f64,
    /// ε, added to the root: in units of the gradient.
    pub eps: f64,
    /// Divide by the spread around the mean gradient, not by its size.
    pub centered: bool,
    /// μ; 0 for none.
    pub momentum: f64,
    /// Climb instead of descend.
    pub maximize: bool,
}

impl Default for RmsProp {
    fn default() -> Self {
        Self {
            alpha: 0.99,
            eps: 1e-8,
            centered: false,
            momentum: 0.,
            maximize: false,
        }
    }
}

// ANCHOR: rule
impl Rule<3> for RmsProp {
    const SLOTS: [&'static str; 3] = ["v", "a", "b"];

    /// What is not used is empty.
    fn init(&self, theta: &Tensor) -> [Tensor; 3] {
        let empty = theta.flatten(0, -1).narrow(0, 0, 0);
        let used = [true, self.centered, self.momentum > 0.];
        used.map(|used| if used { theta.zeros_like() } else { empty.zeros_like() })
    }

    fn update(
        &self,
        theta: &mut Tensor,
        g: &Tensor,
        [v, a, b]: [&mut Tensor; 3],
        Hyper { lr, wd, .. }: Hyper,
    ) {
        let Self { alpha, eps, centered, momentum: mu, maximize } = *self;
        let g = if maximize { -g } else { g.shallow_clone() };
        let g = if wd != 0. { g + wd * &*theta } else { g };
        *v *= alpha;
        *v += (1. - alpha) * g.square();
        let d = if centered {
            *a *= alpha;
            *a += (1. - alpha) * &g;
            (&*v - a.square()).sqrt() + eps
        } else {
            v.sqrt() + eps
        };
        if mu > 0. {
            *b *= mu;
            *b += g / d;
            *theta -= lr * &*b;
        } else {
            *theta -= lr * g / d;
        }
    }
}
// ANCHOR_END: rule
