//! Grouped-query attention with a key-value cache.
use super::{Linear, Mode, Rotation, Rows, dropout::dropout};
use crate::{Error, Result};
use tch::{Kind, Tensor};

/// Keys and values of the tokens seen so far, one entry per layer.
#[derive(Debug, Default)]
pub struct KvCache {
    layers: Vec<LayerCache>,
}

/// Keys and values of one layer.
#[derive(Debug, Default)]
pub struct LayerCache(Option<(Tensor, Tensor)>); // each (B, G, T, K)

impl KvCache {
    /// An empty cache for so many layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: (0..layers).map(|_| LayerCache::default()).collect() }
    }

    /// Tokens seen so far: the position of the next one.
    pub fn len(&self) -> i64 {
        let first = self.layers.first().and_then(|l| l.0.as_ref());
        first.map_or(0, |(k, _)| k.size()[2])
    }

    /// Whether no token has been seen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn layer(&mut self, i: usize) -> Option<&mut LayerCache> {
        self.layers.get_mut(i)
    }
}

impl LayerCache {
    /// Appends, and returns all keys and values.
    fn extend(&mut self, k: Tensor, v: Tensor) -> (Tensor, Tensor) {
        let (k, v) = match self.0.take() {
            Some((old_k, old_v)) => {
                (Tensor::cat(&[old_k, k], 2), Tensor::cat(&[old_v, v], 2))
            }
            None => (k, v),
        };
        self.0 = Some((k.shallow_clone(), v.shallow_clone()));
        (k, v)
    }
}

/// Attention in which each of G key-value heads serves H/G query heads.
///
/// Source: Vaswani et al. 2017, arXiv 1706.03762; Ainslie et al. 2023, 2305.13245.
#[derive(Debug)]
pub struct Attention {
    /// D to H·K.
    pub q: Linear,
    /// D to G·K.
    pub k: Linear,
    /// D to G·K.
    pub v: Linear,
    /// H·K to D.
    pub o: Linear,
    /// H.
    pub heads: i64,
    /// G.
    pub kv_heads: i64,
    /// K.
    pub head_dim: i64,
    /// Probability of dropping an attention probability in training.
    pub dropout: f64,
    /// Which dropout of the model this is.
    pub place: u32,
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
        let split = |y: Tensor| y.unflatten(-1, [-1, self.head_dim]);
        let q = rotation.apply(&split(self.q.forward(x, mode)?))?; // (N, H, K)
        let k = rotation.apply(&split(self.k.forward(x, mode)?))?; // (N, G, K)
        let v = split(self.v.forward(x, mode)?);
        let heads = |y: &Tensor| Ok::<_, Error>(rows.grid(y)?.transpose(1, 2));
        let (q, k, v) = (heads(&q)?, heads(&k)?, heads(&v)?); // (B, H or G, T, K)
        let (k, v) = match cache {
            Some(cache) => cache.extend(k, v),
            None => (k, v),
        };
        let y = self.attend(&q, &k, &v, mode)?.transpose(1, 2); // (B, T, H, K)
        self.o.forward(&rows.line(&y)?.flatten(1, 2), mode)
    }

    /// `softmax(q kᵀ / √K) v`, where token t sees those up to t: [B, H, T, K].
    fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mode: Mode,
    ) -> Result<Tensor> {
        if self.dropout > 0. && mode != Mode::Eval {
            return self.attend_dropping(q, k, v, mode);
        }
        let t = q.size()[2];
        let seen = k.size()[2] - t;
        // libtorch's own causal mask assumes that nothing came before.
        let mask = (seen > 0 && t > 1).then(|| {
            let all = [t, seen + t];
            Tensor::ones(all, (Kind::Bool, q.device())).tril(seen)
        });
        let (causal, grouped) = (seen == 0 && t > 1, self.heads != self.kv_heads);
        Ok(Tensor::f_scaled_dot_product_attention(
            q, k, v, mask, 0., causal, None, grouped,
        )?)
    }

    /// The same step by step, since libtorch's function would draw masks of its own.
    fn attend_dropping(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mode: Mode,
    ) -> Result<Tensor> {
        let (t, all) = (q.size()[2], k.size()[2]);
        let later =
            Tensor::ones([t, all], (Kind::Bool, q.device())).triu(all - t + 1);
        let serve = self.heads / self.kv_heads;
        let each = |x: &Tensor| x.repeat_interleave_self_int(serve, 1, None); // G to H
        let scale = (self.head_dim as f64).sqrt();
        let scores = q.f_matmul(&each(k).transpose(2, 3))? / scale; // (B, H, T, T)
        let scores = scores.masked_fill(&later, f64::NEG_INFINITY);
        let p = dropout(&scores.softmax(-1, None), self.dropout, mode, self.place);
        Ok(p.f_matmul(&each(v))?)
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self {
            q: self.q.shallow_clone(),
            k: self.k.shallow_clone(),
            v: self.v.shallow_clone(),
            o: self.o.shallow_clone(),
            ..*self
        }
    }
}
