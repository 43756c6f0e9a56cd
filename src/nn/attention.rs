//! Grouped-query attention, and what latent attention shares with it.
use super::together::together;
use super::{
    LayerCache, Linear, Mla, Mode, RmsNorm, Rotation, Rows, dropout::dropout,
};
use crate::{Error, Result};
use tch::{Kind, Tensor};

/// The attention of one layer.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // one a layer
pub enum Attention {
    /// Llama, Qwen2, Qwen3.
    Gqa(Gqa),
    /// DeepSeek-V2 and V3.
    Mla(Mla),
}

impl Attention {
    /// Causal attention over `x` [N, D], within each of the `rows` alone, after the
    /// tokens in `cache` if given (rows of one length then).
    pub fn forward(
        &self,
        x: &Tensor,
        rows: &Rows,
        rotation: &Rotation,
        cache: Option<&mut LayerCache>,
        mode: Mode,
    ) -> Result<Tensor> {
        match self {
            Self::Gqa(a) => a.forward(x, rows, rotation, cache, mode),
            Self::Mla(a) => a.forward(x, rows, rotation, cache, mode),
        }
    }

    /// What is dropped of the attention probabilities, in training.
    pub fn set_dropout(&mut self, p: f64) {
        match self {
            Self::Gqa(a) => a.dropping.p = p,
            Self::Mla(a) => a.dropping.p = p,
        }
    }

    /// Its linear layers, by their last names.
    pub fn linears(&self) -> Vec<(&'static str, &Linear)> {
        match self {
            Self::Gqa(a) => vec![
                ("q_proj", &a.q),
                ("k_proj", &a.k),
                ("v_proj", &a.v),
                ("o_proj", &a.o),
            ],
            Self::Mla(a) => a.linears(),
        }
    }

    /// The same, to be changed.
    pub fn linears_mut(&mut self) -> Vec<(&'static str, &mut Linear)> {
        match self {
            Self::Gqa(a) => vec![
                ("q_proj", &mut a.q),
                ("k_proj", &mut a.k),
                ("v_proj", &mut a.v),
                ("o_proj", &mut a.o),
            ],
            Self::Mla(a) => a.linears_mut(),
        }
    }

    /// Its norms, by their last names.
    pub fn norms(&self) -> Vec<(&'static str, &RmsNorm)> {
        match self {
            Self::Gqa(a) => {
                let norms = a.norms.iter();
                norms.flat_map(|[q, k]| [("q_norm", q), ("k_norm", k)]).collect()
            }
            Self::Mla(a) => a.norms(),
        }
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        match self {
            Self::Gqa(a) => Self::Gqa(a.shallow_clone()),
            Self::Mla(a) => Self::Mla(a.shallow_clone()),
        }
    }
}

/// Attention in which each of G key-value heads serves H/G query heads.
///
/// Source: Vaswani et al. 2017, arXiv 1706.03762; Ainslie et al. 2023, 2305.13245.
#[derive(Debug)]
pub struct Gqa {
    /// D to H·K.
    pub q: Linear,
    /// D to G·K.
    pub k: Linear,
    /// D to G·K.
    pub v: Linear,
    /// H·K to D.
    pub o: Linear,
    /// Of each query's and each key's head, before positions (Qwen3).
    pub norms: Option<[RmsNorm; 2]>,
    /// K.
    pub head_dim: i64,
    /// Of attention probabilities.
    pub dropping: Dropping,
}

impl Gqa {
    fn forward(
        &self,
        x: &Tensor,
        rows: &Rows,
        rotation: &Rotation,
        cache: Option<&mut LayerCache>,
        mode: Mode,
    ) -> Result<Tensor> {
        // ANCHOR: gqa
        let split = |y: Tensor| y.unflatten(-1, [-1, self.head_dim]);
        let each = together([&self.q, &self.k, &self.v], x, mode)?;
        let [mut q, mut k, v] = each.map(split); // (N, H or G, K)
        if let Some([q_norm, k_norm]) = &self.norms {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let heads = |y: &Tensor| Ok::<_, Error>(rows.grid(y)?.transpose(1, 2));
        let [q, k, v] = match cache {
            Some(cache) => cache.turned([&q, &k, &v], rows, rotation)?,
            None => {
                let (q, k) = (rotation.apply(&q)?, rotation.apply(&k)?);
                [heads(&q)?, heads(&k)?, heads(&v)?]
            }
        }; // (B, H or G, T, K)
        let scale = 1. / (self.head_dim as f64).sqrt();
        let y = attend(&q, &k, &v, scale, self.dropping, mode)?; // (B, H, T, K)
        let y = rows.line(&y.transpose(1, 2))?.flatten(1, 2);
        self.o.forward(&y, mode)
        // ANCHOR_END: gqa
    }

    fn shallow_clone(&self) -> Self {
        let norms = self.norms.as_ref();
        Self {
            q: self.q.shallow_clone(),
            k: self.k.shallow_clone(),
            v: self.v.shallow_clone(),
            o: self.o.shallow_clone(),
            norms: norms.map(|n| n.each_ref().map(RmsNorm::shallow_clone)),
            ..*self
        }
    }
}

/// A dropout of the model.
#[derive(Clone, Copy, Debug)]
pub struct Dropping {
    /// Probability of dropping an element in training.
    pub p: f64,
    /// Which of the model's it is.
    pub place: u32,
}

/// `softmax(scale · q kᵀ) v`, where token t sees those up to t: queries [B, H, T, K],
/// keys [B, G, T', K] and values [B, G, T', K'] to [B, H, T, K'].
pub(super) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    dropping: Dropping,
    mode: Mode,
) -> Result<Tensor> {
    if dropping.p > 0. && mode != Mode::Eval {
        return attend_dropping(q, k, v, scale, dropping, mode);
    }
    let t = q.size()[2];
    let seen = k.size()[2] - t;
    // libtorch's own causal mask assumes that nothing came before.
    let mask = (seen > 0 && t > 1).then(|| {
        let all = [t, seen + t];
        Tensor::ones(all, (Kind::Bool, q.device())).tril(seen)
    });
    let (causal, grouped) = (seen == 0 && t > 1, q.size()[1] != k.size()[1]);
    Ok(Tensor::f_scaled_dot_product_attention(
        q, k, v, mask, 0., causal, scale, grouped,
    )?)
}

/// The same step by step, since libtorch's function would draw masks of its own.
fn attend_dropping(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    dropping: Dropping,
    mode: Mode,
) -> Result<Tensor> {
    let (t, all) = (q.size()[2], k.size()[2]);
    let later = Tensor::ones([t, all], (Kind::Bool, q.device())).triu(all - t + 1);
    let serve = q.size()[1] / k.size()[1];
    let each = |x: &Tensor| x.repeat_interleave_self_int(serve, 1, None); // G to H
    let scores = q.f_matmul(&each(k).transpose(2, 3))? * scale; // (B, H, T, T')
    let scores = scores.masked_fill(&later, f64::NEG_INFINITY);
    let p = dropout(&scores.softmax(-1, None), dropping.p, mode, dropping.place);
    Ok(p.f_matmul(&each(v))?)
}
