//! Qwen2: R1-Distill-Qwen. Llama with biases in q, k and v.
use super::config::{Checked, DecoderConfig, Family, Shared, heads};
use serde::Deserialize;

/// As transformers' `Qwen2Config`, with its defaults.
#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    shared: Shared,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    #[serde(flatten)]
    window: Window,
}

impl Family for Config {
    fn into_decoder(self) -> Checked<DecoderConfig> {
        let mut c = self.shared.into_decoder(32_768)?;
        heads(&mut c, self.num_key_value_heads, self.head_dim)?;
        c.attention_bias = true;
        self.window.check(&c)?;
        Ok(c)
    }
}

/// The keys by which Qwen's later layers may see a window of the text only. No
/// DeepSeek checkpoint uses it, and neither do we.
#[derive(Deserialize)]
pub(super) struct Window {
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default = "window")]
    sliding_window: Option<i64>,
    max_window_layers: Option<i64>,
    layer_types: Option<Vec<String>>,
}

fn window() -> Option<i64> {
    Some(4096)
}

impl Window {
    /// Refuses a window that would cut something off.
    pub(super) fn check(&self, c: &DecoderConfig) -> Checked<()> {
        let layers = match &self.layer_types {
            Some(types) => types.iter().any(|t| t == "sliding_attention"),
            None => self.max_window_layers.unwrap_or(28) < c.num_hidden_layers,
        };
        match self.sliding_window.filter(|w| *w < c.max_position_embeddings) {
            Some(window) if self.use_sliding_window && layers => Err(format!(
                "use_sliding_window: attention within a window (of {window} tokens) \
                 is not known to this version; set it to false if no text will be \
                 longer than that"
            )),
            _ => Ok(()),
        }
    }
}
