//! Shapes of published checkpoints.

// ANCHOR: published
/// Of a published `config.json`: layers, heads, key-value heads, the width of a key and
/// of a value; and with latent attention the sizes of the latent and of the turned key.
#[derive(Debug)]
pub struct Shape(pub &'static str, [i64; 5], Option<[i64; 2]>);

/// As their `config.json` on the hub says.
pub const SHAPES: [Shape; 7] = [
    Shape("deepseek-llm-7b", [30, 32, 32, 128, 128], None),
    Shape("deepseek-llm-67b", [95, 64, 8, 128, 128], None),
    Shape("R1-Distill-Llama-8B", [32, 32, 8, 128, 128], None),
    Shape("R1-Distill-Qwen-7B", [28, 28, 4, 128, 128], None),
    Shape("R1-0528-Qwen3-8B", [36, 32, 8, 128, 128], None),
    Shape("DeepSeek-V2-Lite", [27, 16, 16, 192, 128], Some([512, 64])),
    Shape("DeepSeek-V3", [61, 128, 128, 192, 128], Some([512, 64])),
];

impl Shape {
    /// Bytes in 16 bits that a token leaves in the cache; and that it would, if every
    /// head kept its own key and value.
    pub fn bytes(&self) -> [f64; 2] {
        let [layers, heads, kv_heads, key, value] = self.1;
        let per_head = key + value;
        let kept = self.2.map_or(kv_heads * per_head, |[latent, key]| latent + key);
        [kept, heads * per_head].map(|n| (2 * layers * n) as f64)
    }
}
// ANCHOR_END: published
