//! Root-mean-square normalization.
use tch::{Kind, Tensor};

/// `y = x / √(mean(x²) + ε) · w`, over the last dimension.
///
/// Source: Zhang & Sennrich 2019, arXiv 1910.07467. As in transformers the mean is
/// taken in f32 whatever the kind of `x`, and the result has the kind of `x`.
#[derive(Debug)]
pub struct RmsNorm {
    /// w, [D].
    pub weight: Tensor,
    /// ε, beside the mean square.
    pub eps: f64,
}

impl RmsNorm {
    /// Normalizes `x` [.., D].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        let x =
            if reduced(kind) { x.to_kind(Kind::Float) } else { x.shallow_clone() };
        let mean = x.square().mean_dim([-1].as_slice(), true, x.kind());
        &self.weight * (x * (mean + self.eps).rsqrt()).to_kind(kind)
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), eps: self.eps }
    }
}

fn reduced(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16)
}
