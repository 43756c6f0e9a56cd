//! `config.json`, in the spelling of transformers 4 (`rope_theta`, `rope_scaling`,
//! `torch_dtype`) and of 5 (`rope_parameters`, `dtype`).
use crate::nn::{Rope, RopeScaling, dropout::Rates};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// What the decoder needs to know of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// V.
    pub vocab_size: i64,
    /// D.
    pub hidden_size: i64,
    /// F.
    pub intermediate_size: i64,
    /// Number of blocks.
    pub num_hidden_layers: i64,
    /// H.
    pub num_attention_heads: i64,
    /// G.
    pub num_key_value_heads: i64,
    /// K.
    pub head_dim: i64,
    /// ε of the norms.
    pub rms_norm_eps: f64,
    /// Positions.
    pub rope: Rope,
    /// The longest text the model was made for, in tokens.
    pub max_position_embeddings: i64,
    /// The head is the embedding.
    pub tie_word_embeddings: bool,
    /// Biases in q, k, v and o.
    pub attention_bias: bool,
    /// Biases in the feed-forward layers.
    pub mlp_bias: bool,
    /// What is dropped in training; all 0 in DeepSeek's files.
    pub dropout: Rates,
}

/// `config.json` of a Llama-type model (deepseek-llm, -coder, -math,
/// R1-Distill-Llama), as transformers' `LlamaConfig`, with its defaults.
#[derive(Deserialize)]
struct LlamaConfig {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default = "eps")]
    rms_norm_eps: f64,
    #[serde(default = "context")]
    max_position_embeddings: i64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    attention_dropout: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
}

fn silu() -> String {
    "silu".into()
}
fn eps() -> f64 {
    1e-6
}
fn context() -> i64 {
    2048
}

#[derive(Clone, Deserialize)]
struct RopeParameters {
    /// `type` in older files; what transformers loaded and saved again has both.
    rope_type: Option<String>,
    #[serde(rename = "type")]
    older_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<i64>,
}

/// Reads `config.json` in `dir`.
///
/// # Errors
/// No such file, no JSON, a family that we do not know, a missing or impossible
/// value: each names the key.
pub fn read_config(dir: &Path) -> Result<DecoderConfig> {
    let path = dir.join("config.json");
    let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    parse(&bytes).map_err(|what| Error::file(&path, what))
}

/// Parsed, or what is wrong with it.
type Checked<T> = std::result::Result<T, String>;

fn parse(bytes: &[u8]) -> Checked<DecoderConfig> {
    let json: Value =
        serde_json::from_slice(bytes).map_err(|e| format!("not JSON: {e}"))?;
    let family = json.get("model_type").and_then(Value::as_str);
    let class = json["architectures"][0].as_str();
    match (family, class) {
        (Some("llama"), None | Some("LlamaForCausalLM")) => {}
        (None, Some("LlamaForCausalLM")) => {}
        _ => {
            let found = |s: Option<&str>| s.unwrap_or("none").to_string();
            return Err(format!(
                "model_type `{}`, architecture `{}`: not a family that this \
                 version reads (llama / LlamaForCausalLM)",
                found(family),
                found(class)
            ));
        }
    }
    super::quantization::Bitsandbytes::of(&json)?;
    let c = LlamaConfig::deserialize(&json).map_err(|e| at_key(&json, &e))?;
    c.into_decoder()
}

/// serde says what it found, but not under which key: the one without which it would
/// not complain, or not of this.
fn at_key(json: &Value, e: &serde_json::Error) -> String {
    let text = e.to_string();
    let blamed = |key: &&String| {
        let mut rest = json.clone();
        let _ = rest.as_object_mut().and_then(|map| map.shift_remove(*key));
        LlamaConfig::deserialize(&rest).err().is_none_or(|e| e.to_string() != text)
    };
    match json.as_object().and_then(|map| map.keys().find(blamed)) {
        Some(key) if !text.starts_with("missing field") => format!("{key}: {text}"),
        _ => text,
    }
}

impl LlamaConfig {
    fn into_decoder(self) -> Checked<DecoderConfig> {
        let positive = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads.unwrap_or(1)),
            ("head_dim", self.head_dim.unwrap_or(1)),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        // The upper bound keeps every product of two of them inside i64.
        let limit = 1 << 31;
        if let Some((key, n)) =
            positive.into_iter().find(|(_, n)| !(1..limit).contains(n))
        {
            return Err(format!("{key}: {n} is not between 1 and 2^31"));
        }
        let (heads, width) = (self.num_attention_heads, self.hidden_size);
        let kv_heads = self.num_key_value_heads.unwrap_or(heads);
        if heads % kv_heads != 0 {
            return Err(format!(
                "num_attention_heads: {heads} is no multiple of \
                 num_key_value_heads {kv_heads}"
            ));
        }
        if self.head_dim.is_none() && width % heads != 0 {
            return Err(format!(
                "hidden_size: {width} is no multiple of num_attention_heads \
                 {heads}, and head_dim is not given"
            ));
        }
        let head_dim = self.head_dim.unwrap_or(width / heads);
        if head_dim % 2 != 0 {
            return Err(format!("head_dim: {head_dim} is odd; RoPE turns pairs"));
        }
        if self.hidden_act != "silu" {
            let act = &self.hidden_act;
            return Err(format!("hidden_act: `{act}`; only `silu` is known"));
        }
        if !(self.rms_norm_eps >= 0. && self.rms_norm_eps.is_finite()) {
            return Err(format!("rms_norm_eps: {}", self.rms_norm_eps));
        }
        let attention = self.attention_dropout;
        if !(0. ..1.).contains(&attention) {
            return Err(format!("attention_dropout: {attention} is not in [0, 1)"));
        }
        let rope = self.rope()?;
        Ok(DecoderConfig {
            vocab_size: self.vocab_size,
            hidden_size: width,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rms_norm_eps: self.rms_norm_eps,
            rope,
            max_position_embeddings: self.max_position_embeddings,
            tie_word_embeddings: self.tie_word_embeddings,
            attention_bias: self.attention_bias,
            mlp_bias: self.mlp_bias,
            dropout: Rates { attention, ..Rates::default() },
        })
    }

    fn rope(&self) -> Checked<Rope> {
        let given = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let key = match self.rope_parameters {
            Some(_) => "rope_parameters",
            None => "rope_scaling",
        };
        let theta = given.and_then(|r| r.rope_theta).or(self.rope_theta);
        let theta = theta.unwrap_or(10_000.);
        if !(theta.is_finite() && theta > 0.) {
            return Err(format!("rope_theta: {theta} is not a positive number"));
        }
        let Some(r) = given else {
            return Ok(Rope { theta, scaling: RopeScaling::Default });
        };
        let need = |name: &str, value: Option<f64>| match value {
            Some(x) if x.is_finite() && x > 0. => Ok(x),
            Some(x) => Err(format!("{key}.{name}: {x} is not a positive number")),
            None => Err(format!("{key}.{name}: missing")),
        };
        let kind = r.rope_type.as_deref().or(r.older_type.as_deref());
        let scaling = match kind.unwrap_or("default") {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: need("factor", r.factor)? },
            "llama3" => {
                let trained = r.original_max_position_embeddings;
                let low = need("low_freq_factor", r.low_freq_factor)?;
                let high = need("high_freq_factor", r.high_freq_factor)?;
                if high <= low {
                    return Err(format!(
                        "{key}.high_freq_factor: {high} is not above \
                         low_freq_factor {low}"
                    ));
                }
                RopeScaling::Llama3 {
                    factor: need("factor", r.factor)?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_position_embeddings: trained
                        .filter(|n| *n > 0)
                        .unwrap_or(self.max_position_embeddings),
                }
            }
            other => {
                return Err(format!(
                    "{key}: type `{other}` is not known (default, linear, llama3)"
                ));
            }
        };
        Ok(Rope { theta, scaling })
    }
}
