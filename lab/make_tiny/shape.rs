//! The shapes of the two checkpoints, and their `config.json`.
use super::tokenizer::VOCABULARY;
use downhill::models::{DecoderConfig, ExpertsConfig, LatentConfig};
use downhill::nn::{Routing, Score};
use serde_json::{Value, json};

/// A deepseek-llm in small.
pub fn dense() -> DecoderConfig {
    DecoderConfig {
        vocab_size: VOCABULARY as i64,
        hidden_size: 192,
        intermediate_size: 512,
        num_hidden_layers: 4,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 32,
        max_position_embeddings: 512,
        tie_word_embeddings: true,
        ..DecoderConfig::default()
    }
}

/// A DeepSeek-V2-Lite in small: as many layers and as wide as the dense one, but with
/// latent attention, and after the first layer with experts, of which a token uses
/// about as much as of the dense feed-forward part: 4 of 16 and 2 shared, of 80 each.
pub fn experts() -> DecoderConfig {
    let (nope, rope) = (32, 16);
    let routing = Routing {
        chosen: 4,
        groups: 1,
        kept_groups: 1,
        score: Score::Softmax,
        normalize: false,
        // The weights of the chosen add up to 1 as long as the router is undecided.
        scale: 4.,
    };
    DecoderConfig {
        num_key_value_heads: 6,
        head_dim: rope,
        latent: Some(LatentConfig {
            q_lora_rank: None,
            kv_lora_rank: 64,
            qk_nope_head_dim: nope,
            v_head_dim: 32,
            interleaved: true,
            turned_in_f32: true,
            scale: 1. / ((nope + rope) as f64).sqrt(),
        }),
        experts: Some(ExpertsConfig {
            routed: 16,
            shared: 2,
            intermediate_size: 80,
            first_dense: 1,
            every: 1,
            routing,
        }),
        ..dense()
    }
}

/// `config.json`, with the keys of the family. `ids` are those of BOS, EOS and padding.
pub fn json(c: &DecoderConfig, ids: [i64; 3]) -> Value {
    let mut keys = json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": c.attention_bias,
        "attention_dropout": 0.0,
        "bos_token_id": ids[0],
        "eos_token_id": ids[1],
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "hidden_size": c.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": c.intermediate_size,
        "max_position_embeddings": c.max_position_embeddings,
        "mlp_bias": c.mlp_bias,
        "model_type": "llama",
        "num_attention_heads": c.num_attention_heads,
        "num_hidden_layers": c.num_hidden_layers,
        "num_key_value_heads": c.num_key_value_heads,
        "pad_token_id": ids[2],
        "pretraining_tp": 1,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_scaling": null,
        "rope_theta": c.rope.theta,
        "tie_word_embeddings": c.tie_word_embeddings,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "vocab_size": c.vocab_size,
    });
    if let (Some(latent), Some(experts)) = (&c.latent, &c.experts) {
        let more = json!({
            "architectures": ["DeepseekV2ForCausalLM"],
            "aux_loss_alpha": super::balance::ALPHA,
            "first_k_dense_replace": experts.first_dense,
            "kv_lora_rank": latent.kv_lora_rank,
            "model_type": "deepseek_v2",
            "moe_intermediate_size": experts.intermediate_size,
            "moe_layer_freq": experts.every,
            "n_group": experts.routing.groups,
            "n_routed_experts": experts.routed,
            "n_shared_experts": experts.shared,
            "norm_topk_prob": experts.routing.normalize,
            "num_experts_per_tok": experts.routing.chosen,
            "q_lora_rank": latent.q_lora_rank,
            "qk_nope_head_dim": latent.qk_nope_head_dim,
            "qk_rope_head_dim": c.head_dim,
            "routed_scaling_factor": experts.routing.scale,
            "scoring_func": "softmax",
            "seq_aux": false,
            "topk_group": experts.routing.kept_groups,
            "topk_method": "greedy",
            "v_head_dim": latent.v_head_dim,
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            keys[key] = value.clone();
        }
        // What V2's heads are is told by the keys above.
        keys.as_object_mut().map(|keys| keys.shift_remove("head_dim"));
    }
    keys
}
