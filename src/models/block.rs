//! One layer of the stack, from the tensors of a checkpoint.
use super::config::{DecoderConfig, ExpertsConfig, LatentConfig};
use super::weights::Weights;
use crate::Result;
use crate::autograd::{self, Need};
use crate::nn::{
    Attention, Dropping, FeedForward, Gqa, LayerCache, Linear, Mla, Mode, Moe,
    Query, RmsNorm, Rotation, Router, Rows, Score, SwiGlu, dropout::dropout,
};
use tch::Tensor;

/// One layer: attention and feed-forward, each after a norm, each added to its input.
#[derive(Debug)]
pub struct Block {
    /// Before attention.
    pub input_norm: RmsNorm,
    /// See [`Attention`].
    pub attention: Attention,
    /// Before the feed-forward part.
    pub post_norm: RmsNorm,
    /// See [`FeedForward`].
    pub mlp: FeedForward,
    /// Probability of dropping an element of what either part adds, in training.
    pub dropout: f64,
    /// Its dropouts are this one and the next.
    pub place: u32,
}

/// The places of the decoder's own dropouts, away from those of the adapters: four to
/// a layer, of which attention takes the first and the residual ones the next two. The
/// fourth of the first layer is the embedding's.
pub(super) fn place(layer: i64) -> u32 {
    (1 << 31) + 4 * layer as u32
}

impl Block {
    pub(super) fn new(
        w: &mut dyn Weights,
        layer: i64,
        c: &DecoderConfig,
    ) -> Result<Self> {
        let name = format!("model.layers.{layer}");
        let mut norm = |part: &str| {
            self::norm(w, &format!("{name}.{part}"), c.hidden_size, c.rms_norm_eps)
        };
        let input_norm = norm("input_layernorm")?;
        let post_norm = norm("post_attention_layernorm")?;
        let dropping = Dropping { p: 0., place: place(layer) };
        let at = format!("{name}.self_attn");
        let attention = match &c.latent {
            None => Attention::Gqa(grouped(w, &at, c, dropping)?),
            Some(latent) => {
                Attention::Mla(self::latent(w, &at, c, latent, dropping)?)
            }
        };
        let at = format!("{name}.mlp");
        let mlp = match c.experts_of(layer) {
            None => FeedForward::Dense(mlp(w, &at, c, c.intermediate_size)?),
            Some(e) => FeedForward::Moe(experts(w, &at, c, e)?),
        };
        let place = place(layer) + 1;
        Ok(Self { input_norm, attention, post_norm, mlp, dropout: 0., place })
    }

    pub(super) fn forward(
        &self,
        x: &Tensor,
        (rows, rotation): (&Rows, &Rotation),
        cache: Option<&mut LayerCache>,
        (need, mode): (Need, Mode),
        see: &mut dyn FnMut(&Tensor),
    ) -> Result<Tensor> {
        let drop = |y: Tensor, nth: u32| match self.dropout > 0. {
            true => dropout(&y, self.dropout, mode, self.place + nth),
            false => y,
        };
        // ANCHOR: block
        let (x, normed) = self.input_norm.join(x, None)?;
        let y = self.attention.forward(&normed, rows, rotation, cache, mode)?;
        let (x, normed) = self.post_norm.join(&x, Some(&drop(y, 0)))?;
        see(&normed);
        let y = self.feed(&normed, need, mode)?;
        added(&x, &drop(y, 1), need)
        // ANCHOR_END: block
    }

    /// The feed-forward part. With experts all of it: their results are multiplied by
    /// weights that depend on x, and for these backward reads them.
    fn feed(&self, x: &Tensor, need: Need, mode: Mode) -> Result<Tensor> {
        match &self.mlp {
            FeedForward::Dense(mlp) => mlp.forward_for(need, x, mode),
            experts => experts.forward(x, mode),
        }
    }

    /// Its linear layers by their names below the layer's.
    pub(super) fn linears(&self) -> impl Iterator<Item = (String, &Linear)> {
        let attention = self.attention.linears().into_iter();
        let attention = attention.map(|(n, l)| (format!("self_attn.{n}"), l));
        let mlp = self.mlp.linears().into_iter();
        attention.chain(mlp.map(|(n, l)| (format!("mlp.{n}"), l)))
    }

    /// The same, to be changed.
    pub(super) fn linears_mut(
        &mut self,
    ) -> impl Iterator<Item = (String, &mut Linear)> {
        let attention = self.attention.linears_mut().into_iter();
        let attention = attention.map(|(n, l)| (format!("self_attn.{n}"), l));
        let mlp = self.mlp.linears_mut().into_iter();
        attention.chain(mlp.map(|(n, l)| (format!("mlp.{n}"), l)))
    }

    pub(super) fn shallow_clone(&self) -> Self {
        Self {
            input_norm: self.input_norm.shallow_clone(),
            attention: self.attention.shallow_clone(),
            post_norm: self.post_norm.shallow_clone(),
            mlp: self.mlp.shallow_clone(),
            ..*self
        }
    }
}

/// `x + y`.
fn added(x: &Tensor, y: &Tensor, need: Need) -> Result<Tensor> {
    let sum = || Ok(vec![need.of(&x.size(), x, || Ok(x.f_add(y)?))?]);
    let mut sum = autograd::custom(&[x, y], sum, |dy| {
        let dy = || dy[0].as_ref().map(Tensor::shallow_clone);
        Ok(vec![dy(), dy()])
    })?;
    Ok(sum.remove(0))
}

fn norm(w: &mut dyn Weights, name: &str, size: i64, eps: f64) -> Result<RmsNorm> {
    Ok(RmsNorm { weight: w.tensor(&format!("{name}.weight"), &[size])?, eps })
}

fn grouped(
    w: &mut dyn Weights,
    at: &str,
    c: &DecoderConfig,
    dropping: Dropping,
) -> Result<Gqa> {
    let (d, k) = (c.hidden_size, c.head_dim);
    let (q, kv) = (c.num_attention_heads * k, c.num_key_value_heads * k);
    let mut linear = |part: &str, shape: [i64; 2], bias: bool| {
        w.linear(&format!("{at}.{part}"), shape, bias)
    };
    let (q, k, v, o) = (
        linear("q_proj", [q, d], c.attention_bias)?,
        linear("k_proj", [kv, d], c.attention_bias)?,
        linear("v_proj", [kv, d], c.attention_bias)?,
        linear("o_proj", [d, q], c.output_bias)?,
    );
    let mut norm =
        |part| self::norm(w, &format!("{at}.{part}"), c.head_dim, c.rms_norm_eps);
    let norms = match c.qk_norm {
        true => Some([norm("q_norm")?, norm("k_norm")?]),
        false => None,
    };
    Ok(Gqa { q, k, v, o, norms, head_dim: c.head_dim, dropping })
}

/// ε of the norms within latent attention, in all implementations, whatever
/// `rms_norm_eps` says.
const LATENT_EPS: f64 = 1e-6;

fn latent(
    w: &mut dyn Weights,
    at: &str,
    c: &DecoderConfig,
    l: &LatentConfig,
    dropping: Dropping,
) -> Result<Mla> {
    let (d, heads, rope) = (c.hidden_size, c.num_attention_heads, c.head_dim);
    let (nope, rank) = (l.qk_nope_head_dim, l.kv_lora_rank);
    let queries = heads * (nope + rope);
    let q = match l.q_lora_rank {
        None => {
            Query::Direct(w.linear(&format!("{at}.q_proj"), [queries, d], false)?)
        }
        Some(r) => Query::Compressed(
            w.linear(&format!("{at}.q_a_proj"), [r, d], c.attention_bias)?,
            norm(w, &format!("{at}.q_a_layernorm"), r, LATENT_EPS)?,
            w.linear(&format!("{at}.q_b_proj"), [queries, r], false)?,
        ),
    };
    let kv_a = format!("{at}.kv_a_proj_with_mqa");
    let kv_b = [heads * (nope + l.v_head_dim), rank];
    let o = [d, heads * l.v_head_dim];
    Ok(Mla {
        q,
        kv_a: w.linear(&kv_a, [rank + rope, d], c.attention_bias)?,
        kv_norm: norm(w, &format!("{at}.kv_a_layernorm"), rank, LATENT_EPS)?,
        kv_b: w.linear(&format!("{at}.kv_b_proj"), kv_b, false)?,
        o: w.linear(&format!("{at}.o_proj"), o, c.output_bias)?,
        heads,
        rope_dim: rope,
        nope_dim: nope,
        interleaved: l.interleaved,
        scale: l.scale,
        dropping,
    })
}

fn mlp(
    w: &mut dyn Weights,
    at: &str,
    c: &DecoderConfig,
    width: i64,
) -> Result<SwiGlu> {
    let (d, f) = (c.hidden_size, width);
    let mut linear = |part: &str, shape: [i64; 2]| {
        w.linear(&format!("{at}.{part}"), shape, c.mlp_bias)
    };
    Ok(SwiGlu {
        gate: linear("gate_proj", [f, d])?,
        up: linear("up_proj", [f, d])?,
        down: linear("down_proj", [d, f])?,
    })
}

fn experts(
    w: &mut dyn Weights,
    at: &str,
    c: &DecoderConfig,
    e: &ExpertsConfig,
) -> Result<Moe> {
    let weight =
        w.tensor(&format!("{at}.gate.weight"), &[e.routed, c.hidden_size])?;
    let bias = match e.routing.score {
        Score::Softmax => None,
        Score::Sigmoid => {
            let name = format!("{at}.gate.e_score_correction_bias");
            Some(w.buffer(&name, &[e.routed])?)
        }
    };
    let width = e.intermediate_size;
    let each = (0..e.routed).map(|i| mlp(w, &format!("{at}.experts.{i}"), c, width));
    let experts = each.collect::<Result<_>>()?;
    let shared = match e.shared {
        0 => None,
        n => Some(mlp(w, &format!("{at}.shared_experts"), c, n * width)?),
    };
    let router = Router { weight, bias, routing: e.routing };
    Ok(Moe { router, experts, shared })
}
