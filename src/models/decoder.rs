//! The one block stack that all families share, with the only `forward`.
use super::config::DecoderConfig;
use super::weights::{Random, Weights};
use crate::nn::{
    Attention, KvCache, LayerCache, Linear, Mode, RmsNorm, Rotation, Rows, SwiGlu,
    Weight, cross_entropy,
    dropout::{Rates, dropout},
};
use crate::{Result, autograd};
use tch::{Kind, Tensor};

/// One layer: attention and feed-forward, each after a norm, each added to its input.
#[derive(Debug)]
pub struct Block {
    /// Before attention.
    pub input_norm: RmsNorm,
    /// See [`Attention`].
    pub attention: Attention,
    /// Before the feed-forward part.
    pub post_norm: RmsNorm,
    /// See [`SwiGlu`].
    pub mlp: SwiGlu,
    /// Probability of dropping an element of what either part adds, in training.
    pub dropout: f64,
    /// Its dropouts are this one and the next.
    pub place: u32,
}

/// The places of the decoder's own dropouts, away from those of the adapters: four to
/// a layer, of which attention takes the first and the residual ones the next two. The
/// fourth of the first layer is the embedding's.
fn place(layer: i64) -> u32 {
    (1 << 31) + 4 * layer as u32
}

impl Block {
    fn new(w: &mut dyn Weights, layer: i64, c: &DecoderConfig) -> Result<Self> {
        let name = format!("model.layers.{layer}");
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let (q, kv) =
            (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let mut norm = |part: &str| -> Result<RmsNorm> {
            let weight = w.tensor(&format!("{name}.{part}.weight"), &[d])?;
            Ok(RmsNorm { weight, eps: c.rms_norm_eps })
        };
        let input_norm = norm("input_layernorm")?;
        let post_norm = norm("post_attention_layernorm")?;
        let mut linear = |part: &str, shape: [i64; 2], bias: bool| {
            w.linear(&format!("{name}.{part}"), shape, bias)
        };
        let attention = Attention {
            q: linear("self_attn.q_proj", [q, d], c.attention_bias)?,
            k: linear("self_attn.k_proj", [kv, d], c.attention_bias)?,
            v: linear("self_attn.v_proj", [kv, d], c.attention_bias)?,
            o: linear("self_attn.o_proj", [d, q], c.attention_bias)?,
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            dropout: 0.,
            place: place(layer),
        };
        let mlp = SwiGlu {
            gate: linear("mlp.gate_proj", [f, d], c.mlp_bias)?,
            up: linear("mlp.up_proj", [f, d], c.mlp_bias)?,
            down: linear("mlp.down_proj", [d, f], c.mlp_bias)?,
        };
        let place = place(layer) + 1;
        Ok(Self { input_norm, attention, post_norm, mlp, dropout: 0., place })
    }

    fn forward(
        &self,
        x: &Tensor,
        (rows, rotation): (&Rows, &Rotation),
        cache: Option<&mut LayerCache>,
        mode: Mode,
    ) -> Result<Tensor> {
        let drop = |y: Tensor, nth: u32| match self.dropout > 0. {
            true => dropout(&y, self.dropout, mode, self.place + nth),
            false => y,
        };
        let normed = self.input_norm.forward(x)?;
        let y = self.attention.forward(&normed, rows, rotation, cache, mode)?;
        let x = x + drop(y, 0);
        let normed = self.post_norm.forward(&x)?;
        Ok(&x + drop(self.mlp.forward(&normed, mode)?, 1))
    }

    fn linears_mut(&mut self) -> [(&'static str, &mut Linear); 7] {
        [
            ("self_attn.q_proj", &mut self.attention.q),
            ("self_attn.k_proj", &mut self.attention.k),
            ("self_attn.v_proj", &mut self.attention.v),
            ("self_attn.o_proj", &mut self.attention.o),
            ("mlp.gate_proj", &mut self.mlp.gate),
            ("mlp.up_proj", &mut self.mlp.up),
            ("mlp.down_proj", &mut self.mlp.down),
        ]
    }

    fn linears(&self) -> [(&'static str, &Linear); 7] {
        [
            ("self_attn.q_proj", &self.attention.q),
            ("self_attn.k_proj", &self.attention.k),
            ("self_attn.v_proj", &self.attention.v),
            ("self_attn.o_proj", &self.attention.o),
            ("mlp.gate_proj", &self.mlp.gate),
            ("mlp.up_proj", &self.mlp.up),
            ("mlp.down_proj", &self.mlp.down),
        ]
    }

    fn shallow_clone(&self) -> Self {
        Self {
            input_norm: self.input_norm.shallow_clone(),
            attention: self.attention.shallow_clone(),
            post_norm: self.post_norm.shallow_clone(),
            mlp: self.mlp.shallow_clone(),
            ..*self
        }
    }
}

/// A decoder-only language model.
#[derive(Debug)]
pub struct Decoder {
    /// Its settings.
    pub config: DecoderConfig,
    /// Recompute each block in backward instead of keeping its inner results.
    pub checkpointing: bool,
    embed: Tensor, // (V, D)
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Tensor, // (V, D)
}

impl Decoder {
    /// Builds the stack from named tensors.
    pub fn new(config: DecoderConfig, w: &mut dyn Weights) -> Result<Self> {
        let c = &config;
        let vocabulary = [c.vocab_size, c.hidden_size];
        let embed = w.tensor("model.embed_tokens.weight", &vocabulary)?;
        let blocks = (0..c.num_hidden_layers)
            .map(|layer| Block::new(w, layer, c))
            .collect::<Result<Vec<_>>>()?;
        let weight = w.tensor("model.norm.weight", &[c.hidden_size])?;
        let norm = RmsNorm { weight, eps: c.rms_norm_eps };
        let head = match c.tie_word_embeddings {
            true => embed.shallow_clone(),
            false => w.tensor("lm_head.weight", &vocabulary)?,
        };
        let rates = config.dropout;
        let mut decoder =
            Self { config, checkpointing: false, embed, blocks, norm, head };
        decoder.set_dropout(rates);
        Ok(decoder)
    }

    /// What to drop in training from now on.
    pub fn set_dropout(&mut self, rates: Rates) {
        self.config.dropout = rates;
        for block in &mut self.blocks {
            block.attention.dropout = rates.attention;
            block.dropout = rates.residual;
        }
    }

    /// A random, trainable f32 model on the CPU: matrices from N(0, 0.02²), norms 1,
    /// biases 0, as transformers starts one. The same seed gives the same model.
    pub fn random(config: DecoderConfig, seed: u64) -> Result<Self> {
        Self::new(config, &mut Random { seed, std: 0.02 })
    }

    /// Kind in which the model computes.
    pub fn kind(&self) -> Kind {
        self.embed.kind()
    }

    /// Device of the model.
    pub fn device(&self) -> tch::Device {
        self.embed.device()
    }

    /// Final hidden states [B, T, D] of token ids [B, T]. With a cache, the ids follow
    /// the tokens that are in it.
    pub fn hidden(
        &self,
        ids: &Tensor,
        mode: Mode,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let (b, t) = ids.size2()?;
        let lengths = vec![t; b as usize];
        let x =
            self.stack(&ids.reshape([-1]), &lengths, mode, cache, &mut |_, _| ())?;
        Ok(x.view([b, t, -1]))
    }

    /// Final hidden states [N, D] of rows of unequal `lengths`, their token ids [N] end
    /// to end. No token sees another row, and nothing is computed for padding. `see`
    /// is shown the result of every layer by name.
    pub fn hidden_rows(
        &self,
        ids: &Tensor,
        lengths: &[i64],
        mode: Mode,
        see: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        self.stack(ids, lengths, mode, None, see)
    }

    fn stack(
        &self,
        ids: &Tensor,
        lengths: &[i64],
        mode: Mode,
        mut cache: Option<&mut KvCache>,
        see: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let start = cache.as_ref().map_or(0, |c| c.len());
        let (kind, device) = (self.kind(), self.device());
        let rows = Rows::new(lengths, device);
        let positions = Tensor::from_slice(&rows.positions(start)).to_device(device);
        let rope = &self.config.rope;
        let rotation = rope.rotation(&positions, self.config.head_dim, kind, device);
        let geometry = (&rows, &rotation);
        let mut x = Tensor::f_embedding(&self.embed, ids, -1, false, false)?;
        see("model.embed_tokens", &x);
        if self.config.dropout.embedding > 0. {
            x = dropout(&x, self.config.dropout.embedding, mode, place(0) + 3);
        }
        for (i, block) in self.blocks.iter().enumerate() {
            let layer = cache.as_deref_mut().and_then(|c| c.layer(i));
            x = match self.checkpointing && mode != Mode::Eval {
                true => recomputed(block, &x, geometry, mode)?,
                false => block.forward(&x, geometry, layer, mode)?,
            };
            see(&format!("model.layers.{i}"), &x);
        }
        let x = self.norm.forward(&x)?;
        see("model.norm", &x);
        Ok(x)
    }

    /// Scores over the vocabulary, [.., D] to [.., V].
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.f_linear(&self.head, None::<Tensor>)?)
    }

    /// Cross-entropy of the [`Decoder::logits`] of `hidden` [S, D] against the ids
    /// that follow, `targets` [S]: a sum, in f32.
    pub fn loss(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
        cross_entropy(hidden, &self.head, targets)
    }

    /// A cache for generation.
    pub fn cache(&self) -> KvCache {
        KvCache::new(self.blocks.len())
    }

    /// Every linear layer by its name in the checkpoint, head excluded, in order.
    pub fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let blocks = self.blocks.iter_mut().enumerate();
        let named = blocks.flat_map(|(i, b)| {
            let name = move |(part, l)| (format!("model.layers.{i}.{part}"), l);
            b.linears_mut().into_iter().map(name)
        });
        named.collect()
    }

    /// All tensors by their checkpoint names; 4-bit weights are not among them.
    pub fn named_parameters(&self) -> Vec<(String, Tensor)> {
        let mut all = vec![("model.embed_tokens.weight".into(), &self.embed)];
        for (i, b) in self.blocks.iter().enumerate() {
            let at = format!("model.layers.{i}");
            all.push((format!("{at}.input_layernorm.weight"), &b.input_norm.weight));
            let post = format!("{at}.post_attention_layernorm.weight");
            all.push((post, &b.post_norm.weight));
            for (part, linear) in b.linears() {
                if let Weight::Dense(w) = &linear.weight {
                    all.push((format!("{at}.{part}.weight"), w));
                }
                if let Some(bias) = &linear.bias {
                    all.push((format!("{at}.{part}.bias"), bias));
                }
            }
        }
        all.push(("model.norm.weight".into(), &self.norm.weight));
        if !self.config.tie_word_embeddings {
            all.push(("lm_head.weight".into(), &self.head));
        }
        all.into_iter().map(|(name, t)| (name, t.shallow_clone())).collect()
    }

    /// Bytes of all weights as they lie in memory, adapters not counted.
    pub fn bytes(&self) -> usize {
        let dense = self.named_parameters();
        let dense =
            dense.iter().map(|(_, t)| t.numel() * t.kind().elt_size_in_bytes());
        let quantized = self.blocks.iter().flat_map(|b| b.linears());
        let quantized = quantized.map(|(_, l)| match &l.weight {
            Weight::Nf4(q) => q.bytes(),
            Weight::Dense(_) => 0,
        });
        dense.sum::<usize>() + quantized.sum::<usize>()
    }
}

/// One block under gradient checkpointing: its input and its adapters go in by name,
/// everything else is frozen and captured.
fn recomputed(
    block: &Block,
    x: &Tensor,
    (rows, rotation): (&Rows, &Rotation),
    mode: Mode,
) -> Result<Tensor> {
    let block = block.shallow_clone();
    let adapters = block.linears();
    let adapters = adapters.iter().filter_map(|(_, l)| l.lora.as_ref());
    let adapters: Vec<Tensor> = adapters
        .flat_map(|l| l.tensors().into_iter().map(Tensor::shallow_clone))
        .collect();
    let inputs: Vec<&Tensor> = std::iter::once(x).chain(&adapters).collect();
    let (rows, rotation) = (rows.shallow_clone(), rotation.shallow_clone());
    autograd::checkpoint(&inputs, move |leaves| {
        let mut block = block.shallow_clone();
        let mut leaves = leaves.iter().map(Tensor::shallow_clone);
        let x = leaves.next().unwrap_or_else(Tensor::new);
        for (_, linear) in block.linears_mut() {
            for t in linear.lora.iter_mut().flat_map(|l| l.tensors_mut()) {
                *t = leaves.next().unwrap_or_else(Tensor::new);
            }
        }
        block.forward(&x, (&rows, &rotation), None, mode)
    })
}
