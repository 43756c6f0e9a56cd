//! Grouped-query attention with a key-value cache.
use super::{Linear, Mode, Rotation};
use crate::Result;
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
}

impl Attention {
    /// Causal attention over `x` [B, T, D], after the tokens in `cache` if given.
    ///
    /// Rows of unequal length are padded on the right, where a causal mask already
    /// hides the padding from every real token: no second mask is needed, and what
    /// padding positions compute is never read.
    pub fn forward(
        &self,
        x: &Tensor,
        rotation: &Rotation,
        cache: Option<&mut LayerCache>,
        mode: Mode,
    ) -> Result<Tensor> {
        let (b, t, _) = x.size3()?;
        let split = |y: Tensor, heads: i64| {
            y.view([b, t, heads, self.head_dim]).transpose(1, 2)
        };
        let q = rotation.apply(&split(self.q.forward(x, mode)?, self.heads))?; // (B, H, T, K)
        let k = rotation.apply(&split(self.k.forward(x, mode)?, self.kv_heads))?; // (B, G, T, K)
        let v = split(self.v.forward(x, mode)?, self.kv_heads);
        let (k, v) = match cache {
            Some(cache) => cache.extend(k, v),
            None => (k, v),
        };
        let seen = k.size()[2] - t;
        // libtorch's own causal mask assumes that nothing came before.
        let mask = (seen > 0 && t > 1).then(|| {
            let all = [t, seen + t];
            Tensor::ones(all, (Kind::Bool, x.device())).tril(seen)
        });
        let (causal, grouped) = (seen == 0 && t > 1, self.heads != self.kv_heads);
        let y = Tensor::f_scaled_dot_product_attention(
            &q, &k, &v, mask, 0., causal, None, grouped,
        )?; // (B, H, T, K)
        let y = y.transpose(1, 2).reshape([b, t, self.heads * self.head_dim]);
        self.o.forward(&y, mode)
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
