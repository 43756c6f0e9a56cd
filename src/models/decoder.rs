//! The one block stack that all families share, with the only `forward`.
use super::block::{Block, place};
use super::config::DecoderConfig;
use super::weights::{Random, Weights};
use crate::Result;
use crate::autograd::{self, Need};
use crate::nn::{
    KvCache, Linear, Mode, RmsNorm, Rotation, Rows, Weight, cross_entropy,
    dropout::{Rates, dropout},
};
use tch::{Kind, Tensor};

/// A decoder-only language model.
#[derive(Debug)]
pub struct Decoder {
    /// Its settings.
    pub config: DecoderConfig,
    /// Recompute each block in backward instead of keeping its inner results.
    pub checkpointing: bool,
    /// With it: keep each block's input in host memory until then.
    pub offload: bool,
    /// What a user should know of how it was read, a sentence each.
    pub notes: Vec<String>,
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
        let (checkpointing, offload, notes) = (false, false, vec![]);
        let mut decoder = Self {
            config,
            checkpointing,
            offload,
            notes,
            embed,
            blocks,
            norm,
            head,
        };
        decoder.set_dropout(rates);
        Ok(decoder)
    }

    /// What to drop in training from now on.
    pub fn set_dropout(&mut self, rates: Rates) {
        self.config.dropout = rates;
        for block in &mut self.blocks {
            block.attention.set_dropout(rates.attention);
            block.dropout = rates.residual;
        }
    }

    /// A random, trainable f32 model on the CPU: matrices from N(0, 0.02²), norms 1,
    /// biases 0, as transformers starts one. The same seed gives the same model.
    pub fn random(config: DecoderConfig, seed: u64) -> Result<Self> {
        Self::new(config, &mut Random { seed, std: 0.02 })
    }

    /// Dequantizes the linears of the blocks once and for all, where there is memory
    /// for that: products with them are what they were, and no step dequantizes them
    /// again.
    pub fn hold_dequantized(&mut self) {
        let kind = self.kind();
        for (_, linear) in self.linears_mut() {
            if let Weight::Nf4(q) = &linear.weight {
                linear.weight = Weight::Dense(q.dequantize(kind));
            }
        }
    }

    /// Gives a head that is the embedding numbers of its own, so that one can change
    /// without the other.
    pub fn untie(&mut self) {
        if self.config.tie_word_embeddings {
            self.config.tie_word_embeddings = false;
            self.head = self.embed.detach().copy();
        }
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
    /// is shown the result of every layer by name, and what goes into its feed-forward
    /// part as `post_attention_layernorm` (but not where the layer is recomputed).
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
        let device = self.device();
        let rows = Rows::new(lengths, device);
        let positions = rows.positions(start);
        let rope = &self.config.rope;
        let kind = match &self.config.latent {
            Some(latent) if latent.turned_in_f32 => Kind::Float,
            _ => self.kind(),
        };
        let rotation = rope.rotation(&positions, self.config.head_dim, kind, device);
        let geometry = (&rows, &rotation);
        let mut x = Tensor::f_embedding(&self.embed, ids, -1, false, false)?;
        see("model.embed_tokens", &x);
        if self.config.dropout.embedding > 0. {
            x = dropout(&x, self.config.dropout.embedding, mode, place(0) + 3);
        }
        for (i, block) in self.blocks.iter().enumerate() {
            let layer = cache.as_deref_mut().and_then(|c| c.layer(i));
            let at = format!("model.layers.{i}");
            let mut normed =
                |x: &Tensor| see(&format!("{at}.post_attention_layernorm"), x);
            x = match self.checkpointing && mode != Mode::Eval {
                true => recomputed(block, &x, geometry, mode, self.offload)?,
                false => {
                    let mode = (Need::Value, mode);
                    block.forward(&x, geometry, layer, mode, &mut normed)?
                }
            };
            see(&at, &x);
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
            b.linears_mut().map(name)
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
            for (part, norm) in b.attention.norms() {
                all.push((format!("{at}.self_attn.{part}.weight"), &norm.weight));
            }
            if let Some(router) = b.mlp.router() {
                all.push((format!("{at}.mlp.gate.weight"), &router.weight));
                let bias = format!("{at}.mlp.gate.e_score_correction_bias");
                all.extend(router.bias.as_ref().map(|b| (bias, b)));
            }
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
    offload: bool,
) -> Result<Tensor> {
    let block = block.shallow_clone();
    let adapters = block.linears().filter_map(|(_, l)| l.lora.as_ref());
    let adapters: Vec<Tensor> = adapters
        .flat_map(|l| l.tensors().into_iter().map(Tensor::shallow_clone))
        .collect();
    let inputs: Vec<&Tensor> = std::iter::once(x).chain(&adapters).collect();
    let (rows, rotation) = (rows.shallow_clone(), rotation.shallow_clone());
    autograd::checkpoint_kept(&inputs, offload, move |leaves, need| {
        let mut block = block.shallow_clone();
        let mut leaves = leaves.iter().map(Tensor::shallow_clone);
        let x = leaves.next().unwrap_or_else(Tensor::new);
        for (_, linear) in block.linears_mut() {
            for t in linear.lora.iter_mut().flat_map(|l| l.tensors_mut()) {
                *t = leaves.next().unwrap_or_else(Tensor::new);
            }
        }
        block.forward(&x, (&rows, &rotation), None, (need, mode), &mut |_| ())
    })
}
