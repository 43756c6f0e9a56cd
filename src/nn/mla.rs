//! Multi-head latent attention.
use super::attention::{Dropping, attend};
use super::together::together;
use super::{LayerCache, Linear, Mode, RmsNorm, Rotation, Rows};
use crate::{Error, Result};
use tch::Tensor;

/// Attention whose keys and values all come from one latent of R numbers per token,
/// which alone is kept for the tokens to come: with `c = norm(kv_a(x))`, the keys of
/// all heads are `[W_k c, turned k]` and the values `W_v c`, where W_k and W_v are the
/// rows of `kv_b`, and the key that positions turn is the same for all heads.
///
/// Source: DeepSeek-AI 2024, arXiv 2405.04434, §2.1; names as in DeepSeek's code.
/// A new token alone does not even make keys and values from the cached latents: it
/// draws W_k into its query, `q·(W_k c) = (W_kᵀ q)·c`, and W_v into its output,
/// `Σ p W_v c = W_v Σ p c` ("absorbed", ibid.).
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
        // ANCHOR: latent
        let [q, kv] = together([self.q.first(), &self.kv_a], x, mode)?; // (N, ..)
        let kv = kv.split_with_sizes([kv.size()[1] - turned, turned], -1);
        let latent = self.kv_norm.forward(&kv[0])?;
        let shared = turn(&kv[1].unsqueeze(1))?; // (N, 1, rope)
        // ANCHOR_END: latent
        let q = self.q.rest(q, mode)?.unflatten(-1, [self.heads, -1]); // (N, H, K)
        let q = q.split_with_sizes([nope, turned], -1);
        let q = Tensor::cat(&[&q[0], &turn(&q[1])?], -1);
        let heads = |y: &Tensor| Ok::<_, Error>(rows.grid(y)?.transpose(1, 2));
        let split = |y: Tensor| y.unflatten(-1, [self.heads, -1]);
        let (q, shared) = (heads(&q)?, heads(&shared)?); // (B, H or 1, T, ..)
        let y = match cache {
            None => {
                let kv = heads(&split(self.kv_b.forward(&latent, mode)?))?;
                self.expanded(&q, &kv, &shared, mode)?
            }
            Some(cache) => {
                let latent = heads(&latent.unsqueeze(1))?;
                let all = cache.extend(&latent, &shared)?; // (B, 1, T', R + rope)
                let alone = q.size()[2] == 1 && mode == Mode::Eval;
                let w = alone.then(|| self.kv_b.matrix(q.kind())).transpose()?;
                match w.flatten() {
                    Some(w) => self.absorbed(&q, &all, &w)?,
                    None => {
                        let rank = all.size()[3] - turned;
                        let parts = all.split_with_sizes([rank, turned], -1);
                        let (latent, shared) = (parts[0].squeeze_dim(1), &parts[1]);
                        let kv = self.kv_b.forward(&latent, mode)?;
                        self.expanded(&q, &split(kv).transpose(1, 2), shared, mode)?
                    }
                }
            }
        };
        let y = rows.line(&y.transpose(1, 2))?.flatten(1, 2);
        self.o.forward(&y, mode)
    }

    /// Queries (B, H, T, K) on keys and values `kv` (B, H, T', ..) and the turned keys
    /// (B, 1, T', rope).
    fn expanded(
        &self,
        q: &Tensor,
        kv: &Tensor,
        shared: &Tensor,
        mode: Mode,
    ) -> Result<Tensor> {
        let value = kv.size()[3] - self.nope_dim;
        let kv = kv.split_with_sizes([self.nope_dim, value], -1);
        let shared = shared.f_expand([-1, self.heads, -1, -1], false)?;
        let k = Tensor::cat(&[&kv[0], &shared], -1); // (B, H, T', K)
        attend(q, &k, &kv[1], self.scale, self.dropping, mode)
    }

    // ANCHOR: absorbed
    /// Queries (B, H, 1, K) on what the cache has, (B, 1, T', R + rope): the latents
    /// themselves, where `w` (H·(nope + V), R) would have made keys and values of them,
    /// and the turned keys.
    fn absorbed(&self, q: &Tensor, seen: &Tensor, w: &Tensor) -> Result<Tensor> {
        let w = w.f_unflatten(0, [self.heads, -1])?;
        let value = w.size()[1] - self.nope_dim;
        let w = w.split_with_sizes([self.nope_dim, value], 1);
        let q = q.split_with_sizes([self.nope_dim, self.rope_dim], -1);
        let q = Tensor::cat(&[q[0].f_matmul(&w[0])?, q[1].shallow_clone()], -1);
        let latent = seen.f_narrow(-1, 0, w[0].size()[2])?;
        // All heads see the same: they stand where tokens do elsewhere.
        let y = Tensor::f_scaled_dot_product_attention(
            &q.transpose(1, 2), // (B, 1, H, R + rope)
            seen,
            &latent,
            None::<Tensor>,
            0.,
            false,
            self.scale,
            false,
        )?;
        Ok(y.transpose(1, 2).f_matmul(&w[1].transpose(1, 2))?) // (B, H, 1, V)
    }
    // ANCHOR_END: absorbed

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
    /// What sees x.
    fn first(&self) -> &Linear {
        match self {
            Self::Direct(first) | Self::Compressed(first, ..) => first,
        }
    }

    /// Queries, of what that gives.
    fn rest(&self, x: Tensor, mode: Mode) -> Result<Tensor> {
        match self {
            Self::Direct(_) => Ok(x),
            Self::Compressed(_, norm, b) => b.forward(&norm.forward(&x)?, mode),
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
