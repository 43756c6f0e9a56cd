//! Multi-head latent attention.
use super::attention::{Dropping, LayerCache, attend};
use super::{Linear, Mode, RmsNorm, Rotation, Rows};
use crate::{Error, Result};
use tch::Tensor;

/// Attention whose keys and values all come from one latent of R numbers per token,
/// which alone is kept for the tokens to come: with `c = norm(kv_a(x))`, the keys of
/// all heads are `[W_k c, turned k]` and the values `W_v c`, where W_k and W_v are the
/// rows of `kv_b`, and the key that positions turn is the same for all heads.
///
/// Source: DeepSeek-AI 2024, arXiv 2405.04434, §2.1; names as in DeepSeek's code.
/// Departure: keys and values are made from the cached latents for every new token,
/// instead of drawing W_k into the query and W_v into the output. That costs time for
/// long texts, and lets `kv_b` be in 4 bits and have an adapter.
#[derive(Debug)]
pub struct Mla {
    /// D to H·K.
    pub q: Query,
    /// D to R and the part of a key that positions turn.
    pub kv_a: Linear,
    /// Of the R.
    pub kv_norm: RmsNorm,
    /// R to the heads' keys (the part that positions do not turn) and values.
    pub kv_b: Linear,
    /// The heads' values to D.
    pub o: Linear,
    /// H.
    pub heads: i64,
    /// Size of the part of a head that positions turn.
    pub rope_dim: i64,
    /// Size of the part that they do not.
    pub nope_dim: i64,
    /// Whether positions turn neighbours (2i, 2i + 1).
    pub interleaved: bool,
    /// By what query-key products are multiplied.
    pub scale: f64,
    /// Of attention probabilities.
    pub dropping: Dropping,
}

/// How queries are made.
#[derive(Debug)]
pub enum Query {
    /// `q_proj`.
    Direct(Linear),
    /// `q_b_proj(q_a_layernorm(q_a_proj(x)))`: through a few numbers.
    Compressed(Linear, RmsNorm, Linear),
}

impl Mla {
    pub(super) fn forward(
        &self,
        x: &Tensor,
        rows: &Rows,
        rotation: &Rotation,
        cache: Option<&mut LayerCache>,
        mode: Mode,
    ) -> Result<Tensor> {
        let (nope, turned) = (self.nope_dim, self.rope_dim);
        let turn = |x: &Tensor| match self.interleaved {
            true => rotation.apply_to_neighbours(x),
            false => rotation.apply(x),
        };
        let q = self.q.forward(x, mode)?.unflatten(-1, [self.heads, -1]); // (N, H, K)
        let q = q.split_with_sizes([nope, turned], -1);
        let q = Tensor::cat(&[&q[0], &turn(&q[1])?], -1);
        let kv = self.kv_a.forward(x, mode)?; // (N, R + rope)
        let kv = kv.split_with_sizes([kv.size()[1] - turned, turned], -1);
        let latent = self.kv_norm.forward(&kv[0])?;
        let shared = turn(&kv[1].unsqueeze(1))?; // (N, 1, rope)
        let heads = |y: &Tensor| Ok::<_, Error>(rows.grid(y)?.transpose(1, 2));
        let split = |y: Tensor| y.unflatten(-1, [self.heads, -1]);
        let (kv, shared) = match cache {
            Some(cache) => {
                let latent = heads(&latent.unsqueeze(1))?;
                let (latent, shared) = cache.extend(latent, heads(&shared)?);
                let kv = self.kv_b.forward(&latent.squeeze_dim(1), mode)?;
                (split(kv).transpose(1, 2), shared)
            }
            None => {
                let kv = self.kv_b.forward(&latent, mode)?;
                (heads(&split(kv))?, heads(&shared)?)
            }
        };
        let value = kv.size()[3] - nope;
        let kv = kv.split_with_sizes([nope, value], -1); // (B, H, T', ..)
        let shared = shared.f_expand([-1, self.heads, -1, -1], false)?;
        let k = Tensor::cat(&[&kv[0], &shared], -1); // (B, H, T', K)
        let y = attend(&heads(&q)?, &k, &kv[1], self.scale, self.dropping, mode)?;
        let y = rows.line(&y.transpose(1, 2))?.flatten(1, 2);
        self.o.forward(&y, mode)
    }

    pub(super) fn linears(&self) -> Vec<(&'static str, &Linear)> {
        let mut all = match &self.q {
            Query::Direct(q) => vec![("q_proj", q)],
            Query::Compressed(a, _, b) => vec![("q_a_proj", a), ("q_b_proj", b)],
        };
        all.push(("kv_a_proj_with_mqa", &self.kv_a));
        all.push(("kv_b_proj", &self.kv_b));
        all.push(("o_proj", &self.o));
        all
    }

    pub(super) fn linears_mut(&mut self) -> Vec<(&'static str, &mut Linear)> {
        let mut all = match &mut self.q {
            Query::Direct(q) => vec![("q_proj", q)],
            Query::Compressed(a, _, b) => vec![("q_a_proj", a), ("q_b_proj", b)],
        };
        all.push(("kv_a_proj_with_mqa", &mut self.kv_a));
        all.push(("kv_b_proj", &mut self.kv_b));
        all.push(("o_proj", &mut self.o));
        all
    }

    pub(super) fn norms(&self) -> Vec<(&'static str, &RmsNorm)> {
        let kv = ("kv_a_layernorm", &self.kv_norm);
        match &self.q {
            Query::Direct(_) => vec![kv],
            Query::Compressed(_, norm, _) => vec![("q_a_layernorm", norm), kv],
        }
    }

    pub(super) fn shallow_clone(&self) -> Self {
        Self {
            q: self.q.shallow_clone(),
            kv_a: self.kv_a.shallow_clone(),
            kv_norm: self.kv_norm.shallow_clone(),
            kv_b: self.kv_b.shallow_clone(),
            o: self.o.shallow_clone(),
            ..*self
        }
    }
}

impl Query {
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        match self {
            Self::Direct(q) => q.forward(x, mode),
            Self::Compressed(a, norm, b) => {
                b.forward(&norm.forward(&a.forward(x, mode)?)?, mode)
            }
        }
    }

    fn shallow_clone(&self) -> Self {
        match self {
            Self::Direct(q) => Self::Direct(q.shallow_clone()),
            Self::Compressed(a, norm, b) => Self::Compressed(
                a.shallow_clone(),
                norm.shallow_clone(),
                b.shallow_clone(),
            ),
        }
    }
}
