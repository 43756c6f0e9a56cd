//! The shapes of the published checkpoints, from their `config.json`: enough to
//! compute what they will take, without their files.
use super::config::{DecoderConfig, parse};
use crate::{Error, Result};
use serde_json::{Value, json};

/// D, F, layers, heads, key-value heads, V, and the longest text in tokens.
type Sizes = [i64; 7];

/// Name and architecture of those without experts.
const DENSE: [(&str, &str, Sizes); 12] = [
    ("deepseek-coder-1.3b", "Llama", [2048, 5504, 24, 16, 16, 32256, 16384]),
    ("R1-Distill-Qwen-1.5B", "Qwen2", [1536, 8960, 28, 12, 2, 151936, 131072]),
    ("deepseek-coder-6.7b", "Llama", [4096, 11008, 32, 32, 32, 32256, 16384]),
    ("deepseek-llm-7b", "Llama", [4096, 11008, 30, 32, 32, 102400, 4096]),
    ("R1-Distill-Qwen-7B", "Qwen2", [3584, 18944, 28, 28, 4, 152064, 131072]),
    ("R1-Distill-Llama-8B", "Llama", [4096, 14336, 32, 32, 8, 128256, 131072]),
    ("R1-0528-Qwen3-8B", "Qwen3", [4096, 12288, 36, 32, 8, 151936, 131072]),
    ("R1-Distill-Qwen-14B", "Qwen2", [5120, 13824, 48, 40, 8, 152064, 131072]),
    ("deepseek-coder-33b", "Llama", [7168, 19200, 62, 56, 8, 32256, 16384]),
    ("R1-Distill-Qwen-32B", "Qwen2", [5120, 27648, 64, 40, 8, 152064, 131072]),
    ("deepseek-llm-67b", "Llama", [8192, 22016, 95, 64, 8, 102400, 4096]),
    ("R1-Distill-Llama-70B", "Llama", [8192, 28672, 80, 64, 8, 128256, 131072]),
];

/// Name and shape of the checkpoints that [`DecoderConfig`] describes, smaller ones
/// first, the last too large for any one card. Positions are left at their defaults:
/// they take no memory.
///
/// # Errors
/// None in practice: each is read as its `config.json` would be.
pub fn published() -> Result<Vec<(&'static str, DecoderConfig)>> {
    let mut all = vec![];
    for (name, class, [d, f, layers, heads, kv, v, longest]) in DENSE {
        let json = json!({
            "architectures": [format!("{class}ForCausalLM")],
            "model_type": class.to_lowercase(),
            "hidden_size": d, "intermediate_size": f, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv,
            "vocab_size": v, "max_position_embeddings": longest,
        });
        all.push((name, json));
    }
    all.insert(7, ("DeepSeek-V2-Lite", v2_lite()));
    all.push(("DeepSeek-V3", v3()));
    let read = |(name, mut json): (&'static str, Value)| {
        json["hidden_act"] = json!("silu");
        json["rms_norm_eps"] = json!(1e-6);
        json["rope_theta"] = json!(10000.0);
        json["tie_word_embeddings"] = json!(false);
        let config = parse(json.to_string().as_bytes());
        Ok((name, config.map_err(|what| Error::file(name, what))?))
    };
    all.into_iter().map(read).collect()
}

fn v2_lite() -> Value {
    json!({
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
        "hidden_size": 2048, "intermediate_size": 10944, "num_hidden_layers": 27,
        "num_attention_heads": 16, "num_key_value_heads": 16,
        "vocab_size": 102400, "max_position_embeddings": 163840,
        "attention_bias": false,
        "kv_lora_rank": 512, "q_lora_rank": null, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
        "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1,
        "first_k_dense_replace": 1, "norm_topk_prob": false, "topk_group": 1,
        "routed_scaling_factor": 1.0, "scoring_func": "softmax",
        "topk_method": "greedy",
    })
}

fn v3() -> Value {
    json!({
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
        "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
        "num_attention_heads": 128, "num_key_value_heads": 128,
        "vocab_size": 129280, "max_position_embeddings": 163840,
        "attention_bias": false,
        "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8,
        "first_k_dense_replace": 3, "norm_topk_prob": true, "topk_group": 4,
        "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
        "topk_method": "noaux_tc", "num_nextn_predict_layers": 1,
    })
}
