//! Qwen3: R1-0528-Qwen3-8B. Llama with a norm of each query's and key's head.
use super::config::{Checked, DecoderConfig, Family, Shared, heads};
use super::qwen2::Window;
use serde::Deserialize;

/// As transformers' `Qwen3Config`, with its defaults.
#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    shared: Shared,
    num_key_value_heads: Option<i64>,
    #[serde(default = "head_dim")]
    head_dim: i64,
    #[serde(default)]
    attention_bias: bool,
    #[serde(flatten)]
    window: Window,
}

fn head_dim() -> i64 {
    128
}

// ANCHOR: qwen3
impl Family for Config {
    fn into_decoder(self) -> Checked<DecoderConfig> {
        let mut c = self.shared.into_decoder(32_768)?;
        heads(&mut c, self.num_key_value_heads, Some(self.head_dim))?;
        (c.attention_bias, c.output_bias) =
            (self.attention_bias, self.attention_bias);
        c.qk_norm = true;
        self.window.check(&c)?;
        Ok(c)
    }
}
// ANCHOR_END: qwen3
