//! What published checkpoints take, by their shapes.
use downhill::models::{DecoderConfig, published};
use downhill::{Error, Result};

/// Those whose caches chapter 13 compares.
pub const COMPARED: [&str; 7] = [
    "deepseek-llm-7b",
    "deepseek-llm-67b",
    "R1-Distill-Llama-8B",
    "R1-Distill-Qwen-7B",
    "R1-0528-Qwen3-8B",
    "DeepSeek-V2-Lite",
    "DeepSeek-V3",
];

/// The shape of the published checkpoint `name`.
///
/// # Errors
/// None of this name.
pub fn shape_of(name: &str) -> Result<DecoderConfig> {
    let found = published()?.into_iter().find(|(n, _)| *n == name);
    let none = || Error::setting("name", format!("no published shape of `{name}`"));
    Ok(found.ok_or_else(none)?.1)
}

// ANCHOR: published
/// Bytes in 16 bits that a token leaves in the cache of a model of this shape; and that
/// it would, if every head kept its own key and value.
pub fn cached(c: &DecoderConfig) -> [f64; 2] {
    let heads = c.num_attention_heads;
    let numbers = match &c.latent {
        None => [2 * c.num_key_value_heads * c.head_dim, 2 * heads * c.head_dim],
        // The latent and the turned key, which all heads share.
        Some(l) => [
            l.kv_lora_rank + c.head_dim,
            heads * (l.qk_nope_head_dim + c.head_dim + l.v_head_dim),
        ],
    };
    numbers.map(|n| (2 * c.num_hidden_layers * n) as f64)
}
// ANCHOR_END: published
