//! The shapes of the published checkpoints, from their `config.json`: enough to
//! compute what they will take, without their files.
use super::config::{DecoderConfig, parse};
use crate::{Error, Result};
use serde_json::json;

/// D, F, layers, heads, key-value heads, V, and the longest text in tokens.
type Sizes = [i64; 7];

const SHAPES: [(&str, &str, &str, Sizes); 12] = [
    (
        "deepseek-coder-1.3b",
        "llama",
        "Llama",
        [2048, 5504, 24, 16, 16, 32256, 16384],
    ),
    (
        "R1-Distill-Qwen-1.5B",
        "qwen2",
        "Qwen2",
        [1536, 8960, 28, 12, 2, 151936, 131072],
    ),
    (
        "deepseek-coder-6.7b",
        "llama",
        "Llama",
        [4096, 11008, 32, 32, 32, 32256, 16384],
    ),
    ("deepseek-llm-7b", "llama", "Llama", [4096, 11008, 30, 32, 32, 102400, 4096]),
    (
        "R1-Distill-Qwen-7B",
        "qwen2",
        "Qwen2",
        [3584, 18944, 28, 28, 4, 152064, 131072],
    ),
    (
        "R1-Distill-Llama-8B",
        "llama",
        "Llama",
        [4096, 14336, 32, 32, 8, 128256, 131072],
    ),
    ("R1-0528-Qwen3-8B", "qwen3", "Qwen3", [4096, 12288, 36, 32, 8, 151936, 131072]),
    (
        "R1-Distill-Qwen-14B",
        "qwen2",
        "Qwen2",
        [5120, 13824, 48, 40, 8, 152064, 131072],
    ),
    ("deepseek-coder-33b", "llama", "Llama", [7168, 19200, 62, 56, 8, 32256, 16384]),
    (
        "R1-Distill-Qwen-32B",
        "qwen2",
        "Qwen2",
        [5120, 27648, 64, 40, 8, 152064, 131072],
    ),
    ("deepseek-llm-67b", "llama", "Llama", [8192, 22016, 95, 64, 8, 102400, 4096]),
    (
        "R1-Distill-Llama-70B",
        "llama",
        "Llama",
        [8192, 28672, 80, 64, 8, 128256, 131072],
    ),
];

/// Name and shape of the checkpoints of up to 70 billion parameters, smaller ones
/// first. Positions are left at their defaults: they take no memory.
///
/// # Errors
/// None in practice: each is read as its `config.json` would be.
pub fn published() -> Result<Vec<(&'static str, DecoderConfig)>> {
    let read = |name: &str, json: serde_json::Value| {
        parse(json.to_string().as_bytes()).map_err(|what| Error::file(name, what))
    };
    let mut all = SHAPES
        .iter()
        .map(|(name, family, class, [d, f, layers, heads, kv, v, longest])| {
            let json = json!({
                "architectures": [format!("{class}ForCausalLM")],
                "model_type": family, "hidden_act": "silu", "rms_norm_eps": 1e-6,
                "hidden_size": d, "intermediate_size": f,
                "num_hidden_layers": layers, "num_attention_heads": heads,
                "num_key_value_heads": kv, "vocab_size": v,
                "max_position_embeddings": longest, "rope_theta": 10000.0,
                "tie_word_embeddings": false,
            });
            Ok((*name, read(name, json)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let lite = "DeepSeek-V2-Lite";
    let json = json!({
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": false,
        "hidden_size": 2048, "intermediate_size": 10944, "vocab_size": 102400,
        "num_hidden_layers": 27, "num_attention_heads": 16,
        "num_key_value_heads": 16, "max_position_embeddings": 163840,
        "rope_theta": 10000, "tie_word_embeddings": false,
        "kv_lora_rank": 512, "q_lora_rank": null, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
        "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1,
        "first_k_dense_replace": 1, "norm_topk_prob": false, "topk_group": 1,
        "routed_scaling_factor": 1.0, "scoring_func": "softmax",
        "topk_method": "greedy",
    });
    all.insert(7, (lite, read(lite, json)?));
    Ok(all)
}
