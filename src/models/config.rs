//! `config.json`, in the spelling of transformers 4 and of 5: what all families share.
//! A small file per family adds its own keys.
use super::rope::RopeKeys;
use super::{deepseek_v2, deepseek_v3, llama, qwen2, qwen3};
use crate::nn::{Rope, RopeScaling, Routing, dropout::Rates};
use crate::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::Path;

/// What the decoder needs to know of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// V.
    pub vocab_size: i64,
    /// D.
    pub hidden_size: i64,
    /// F, of the layers that have no experts.
    pub intermediate_size: i64,
    /// Number of blocks.
    pub num_hidden_layers: i64,
    /// H.
    pub num_attention_heads: i64,
    /// G.
    pub num_key_value_heads: i64,
    /// K; with latent attention the part of it that positions turn.
    pub head_dim: i64,
    /// ε of the norms.
    pub rms_norm_eps: f64,
    /// Positions.
    pub rope: Rope,
    /// The longest text the model was made for, in tokens.
    pub max_position_embeddings: i64,
    /// The head is the embedding.
    pub tie_word_embeddings: bool,
    /// Biases in q, k and v.
    pub attention_bias: bool,
    /// Bias in o.
    pub output_bias: bool,
    /// A norm of each query's and each key's head, before positions.
    pub qk_norm: bool,
    /// Biases in the feed-forward layers.
    pub mlp_bias: bool,
    /// Latent attention, in place of grouped-query attention.
    pub latent: Option<LatentConfig>,
    /// Experts, in place of one feed-forward part.
    pub experts: Option<ExpertsConfig>,
    /// Layers behind the last that a checkpoint may carry, which are not read.
    pub extra_layers: i64,
    /// What is dropped in training; all 0 in DeepSeek's files.
    pub dropout: Rates,
}

impl Default for DecoderConfig {
    /// What a plain Llama does; the sizes, 0, are for whoever asks to fill in.
    fn default() -> Self {
        Self {
            vocab_size: 0,
            hidden_size: 0,
            intermediate_size: 0,
            num_hidden_layers: 0,
            num_attention_heads: 0,
            num_key_value_heads: 0,
            head_dim: 0,
            rms_norm_eps: 1e-6,
            rope: Rope { theta: 10_000., scaling: RopeScaling::Default },
            max_position_embeddings: 0,
            tie_word_embeddings: false,
            attention_bias: false,
            output_bias: false,
            qk_norm: false,
            mlp_bias: false,
            latent: None,
            experts: None,
            extra_layers: 0,
            dropout: Rates::default(),
        }
    }
}

/// Sizes of latent attention ([`crate::nn::Mla`]).
#[derive(Clone, Debug, PartialEq)]
pub struct LatentConfig {
    /// Rank of the queries, if they are compressed.
    pub q_lora_rank: Option<i64>,
    /// R, the size of the latent from which keys and values come.
    pub kv_lora_rank: i64,
    /// The part of a query's or key's head that positions do not turn.
    pub qk_nope_head_dim: i64,
    /// Size of a value's head.
    pub v_head_dim: i64,
    /// Whether positions turn neighbours (2i, 2i + 1) rather than halves (i, i + K/2).
    pub interleaved: bool,
    /// Whether they do so in f32 where the model computes in 16 bits.
    pub turned_in_f32: bool,
    /// By what a query-key product is multiplied.
    pub scale: f64,
}

/// Sizes and routing of a mixture of experts ([`crate::nn::Moe`]).
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsConfig {
    /// E, from which the router chooses.
    pub routed: i64,
    /// Those that see every token, as one layer of so many times the width.
    pub shared: i64,
    /// F of one expert.
    pub intermediate_size: i64,
    /// So many layers come first without experts.
    pub first_dense: i64,
    /// From there on every so-manieth layer has them.
    pub every: i64,
    /// See [`Routing`].
    pub routing: Routing,
}

impl DecoderConfig {
    /// The experts of a layer, if it has some.
    pub fn experts_of(&self, layer: i64) -> Option<&ExpertsConfig> {
        let here =
            |e: &&ExpertsConfig| layer >= e.first_dense && layer % e.every == 0;
        self.experts.as_ref().filter(here)
    }
}

/// Reads `config.json` in `dir`.
///
/// # Errors
/// No such file, no JSON, a family that we do not know, a missing or impossible
/// value: each names the key.
pub fn read_config(dir: &Path) -> Result<DecoderConfig> {
    let path = dir.join("config.json");
    let bytes = crate::files::text(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::file(
            &path,
            "not there; expected a checkpoint folder with config.json, \
             model.safetensors or its shards, and tokenizer.json",
        ),
        _ => Error::io(&path, e),
    })?;
    parse(&bytes).map_err(|what| Error::file(&path, what))
}

/// Parsed, or what is wrong with it.
pub(super) type Checked<T> = std::result::Result<T, String>;

/// The `config.json` of one family.
pub(super) trait Family: DeserializeOwned {
    /// As the decoder wants it.
    fn into_decoder(self) -> Checked<DecoderConfig>;
}

type Reader = fn(&Value) -> Checked<DecoderConfig>;

// ANCHOR: families
/// `model_type`, the class in `architectures`, and how to read it.
const FAMILIES: [(&str, &str, Reader); 5] = [
    ("llama", "LlamaForCausalLM", read::<llama::Config>),
    ("qwen2", "Qwen2ForCausalLM", read::<qwen2::Config>),
    ("qwen3", "Qwen3ForCausalLM", read::<qwen3::Config>),
    ("deepseek_v2", "DeepseekV2ForCausalLM", read::<deepseek_v2::Config>),
    ("deepseek_v3", "DeepseekV3ForCausalLM", read::<deepseek_v3::Config>),
];
// ANCHOR_END: families

/// The contents of a `config.json`.
pub(super) fn parse(bytes: &[u8]) -> Checked<DecoderConfig> {
    let json: Value =
        serde_json::from_slice(bytes).map_err(|e| format!("not JSON: {e}"))?;
    let family = json.get("model_type").and_then(Value::as_str);
    let class = json["architectures"][0].as_str();
    let fits = |(f, c, _): &&(&str, &str, Reader)| {
        (family, class) != (None, None)
            && family.is_none_or(|family| family == *f)
            && class.is_none_or(|class| class == *c)
    };
    let Some((_, _, read)) = FAMILIES.iter().find(fits) else {
        let found = |s: Option<&str>| s.unwrap_or("none").to_string();
        let known = FAMILIES.map(|(family, class, _)| format!("{family} / {class}"));
        return Err(format!(
            "model_type `{}`, architecture `{}`: not a family that this version \
             reads ({})",
            found(family),
            found(class),
            known.join(", ")
        ));
    };
    check_quantization(&json)?;
    read(&json)
}

fn read<T: Family>(json: &Value) -> Checked<DecoderConfig> {
    let keys = T::deserialize(json).map_err(|e| at_key::<T>(json, &e))?;
    let decoder = keys.into_decoder()?;
    super::rope::check(&decoder.rope, decoder.head_dim)?;
    Ok(decoder)
}

/// DeepSeek's fp8 is read; other quantized weights are not.
fn check_quantization(json: &Value) -> Checked<()> {
    let q = &json["quantization_config"];
    if q.is_null() {
        return Ok(());
    }
    if q["quant_method"] != "fp8" {
        return super::quantization::Bitsandbytes::of(json).map(|_| ());
    }
    let (format, block) = (&q["fmt"], &q["weight_block_size"]);
    match (format.is_null() || format == "e4m3")
        && *block == Value::from(vec![128; 2])
    {
        true => Ok(()),
        false => Err(format!(
            "quantization_config: fp8 of fmt {format} in blocks of {block}; only \
             e4m3 in blocks of [128, 128] is read"
        )),
    }
}

/// serde says what it found, but not under which key: the one without which it would
/// not complain, or not of this. Required keys, which are numbers, cannot be left out,
/// but be 1.
fn at_key<T: DeserializeOwned>(json: &Value, e: &serde_json::Error) -> String {
    let text = e.to_string();
    let complaint = |json: &Value| T::deserialize(json).err().map(|e| e.to_string());
    let blamed = |key: &&String| {
        let mut other = json.clone();
        let _ = other.as_object_mut().and_then(|map| map.shift_remove(*key));
        let mut without = complaint(&other);
        if without.as_ref().is_some_and(|e| e.starts_with("missing field")) {
            other[*key] = 1.into();
            without = complaint(&other);
        }
        without.as_ref() != Some(&text)
    };
    match json.as_object().and_then(|map| map.keys().find(blamed)) {
        Some(key) if !text.starts_with("missing field") => format!("{key}: {text}"),
        _ => text,
    }
}

/// The keys that every family has, with transformers' defaults where these agree.
#[derive(Deserialize)]
pub(super) struct Shared {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default = "eps")]
    rms_norm_eps: f64,
    max_position_embeddings: Option<i64>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_dropout: f64,
    #[serde(flatten)]
    pub(super) rope: RopeKeys,
}

fn silu() -> String {
    "silu".into()
}
fn eps() -> f64 {
    1e-6
}

impl Shared {
    /// A decoder without biases, whose heads are still to be set by [`heads`] or by
    /// latent attention. `context` is the default of `max_position_embeddings`.
    pub(super) fn into_decoder(self, context: i64) -> Checked<DecoderConfig> {
        let context = self.max_position_embeddings.unwrap_or(context);
        positive(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", context),
        ])?;
        if self.hidden_act != "silu" {
            let act = &self.hidden_act;
            return Err(format!("hidden_act: `{act}`; only `silu` is known"));
        }
        if !(self.rms_norm_eps >= 0. && self.rms_norm_eps.is_finite()) {
            let eps = self.rms_norm_eps;
            return Err(format!("rms_norm_eps: {eps}; a finite number from 0 up"));
        }
        let attention = self.attention_dropout;
        if !(0. ..1.).contains(&attention) {
            return Err(format!("attention_dropout: {attention} is not in [0, 1)"));
        }
        Ok(DecoderConfig {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_attention_heads,
            rms_norm_eps: self.rms_norm_eps,
            rope: self.rope.read(context)?,
            max_position_embeddings: context,
            tie_word_embeddings: self.tie_word_embeddings,
            dropout: Rates { attention, ..Rates::default() },
            ..DecoderConfig::default()
        })
    }
}

/// Refuses sizes below 1, and those whose products would not fit into i64.
pub(super) fn positive(sizes: &[(&str, i64)]) -> Checked<()> {
    match sizes.iter().find(|(_, n)| !(1..=1 << 30).contains(n)) {
        None => Ok(()),
        Some((key, n)) => Err(format!("{key}: {n} is not between 1 and 2^30")),
    }
}

/// Refuses counts below 0.
pub(super) fn not_negative(key: &str, n: i64) -> Checked<()> {
    match (0..=1 << 30).contains(&n) {
        true => Ok(()),
        false => Err(format!("{key}: {n} is not between 0 and 2^30")),
    }
}

/// Sets G (H if not given) and K (D / H if not given).
pub(super) fn heads(
    c: &mut DecoderConfig,
    kv_heads: Option<i64>,
    head_dim: Option<i64>,
) -> Checked<()> {
    positive(&[
        ("num_key_value_heads", kv_heads.unwrap_or(1)),
        ("head_dim", head_dim.unwrap_or(1)),
    ])?;
    let (heads, width) = (c.num_attention_heads, c.hidden_size);
    let kv_heads = kv_heads.unwrap_or(heads);
    if heads % kv_heads != 0 {
        return Err(format!(
            "num_attention_heads: {heads} is no multiple of num_key_value_heads \
             {kv_heads}"
        ));
    }
    if head_dim.is_none() && width % heads != 0 {
        return Err(format!(
            "hidden_size: {width} is no multiple of num_attention_heads {heads}, \
             and head_dim is not given"
        ));
    }
    let head_dim = head_dim.unwrap_or(width / heads);
    if head_dim % 2 != 0 {
        return Err(format!("head_dim: {head_dim} is odd; RoPE turns pairs"));
    }
    (c.num_key_value_heads, c.head_dim) = (kv_heads, head_dim);
    Ok(())
}
