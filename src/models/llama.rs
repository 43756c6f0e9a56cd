//! Llama: deepseek-llm, -coder, -math, R1-Distill-Llama.
use super::config::{Checked, DecoderConfig, Family, Shared, heads};
use serde::Deserialize;

/// As transformers' `LlamaConfig`, with its defaults.
#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    shared: Shared,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

impl Family for Config {
    fn into_decoder(self) -> Checked<DecoderConfig> {
        let mut c = self.shared.into_decoder(2048)?;
        heads(&mut c, self.num_key_value_heads, self.head_dim)?;
        (c.attention_bias, c.output_bias) =
            (self.attention_bias, self.attention_bias);
        c.mlp_bias = self.mlp_bias;
        Ok(c)
    }
}
