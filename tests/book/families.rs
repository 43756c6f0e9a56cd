//! The real shapes of DeepSeek's checkpoints: their `config.json` is read, and makes as
//! many parameters as the published weights have.
use crate::common::{config_json, ids};
use downhill::models::{Decoder, DecoderConfig, read_config};
use downhill::nn::{Mode, RopeScaling, Score};
use serde_json::{Value, json};
use tch::Tensor;

/// `keys` on top of what nearly all files hold.
fn read(family: &str, class: &str, keys: Value) -> DecoderConfig {
    let mut json = json!({
        "architectures": [class], "model_type": family, "hidden_act": "silu",
        "attention_dropout": 0.0, "initializer_range": 0.02, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true,
        "rope_theta": 10000,
    });
    let map = json.as_object_mut().expect("an object");
    map.extend(keys.as_object().expect("an object").clone());
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("config.json"), json.to_string())
        .expect("written");
    read_config(dir.path()).expect(family)
}

fn v2_lite() -> Value {
    json!({
        "attention_bias": false, "aux_loss_alpha": 0.001, "first_k_dense_replace": 1,
        "hidden_size": 2048, "intermediate_size": 10944, "kv_lora_rank": 512,
        "max_position_embeddings": 163840, "moe_intermediate_size": 1408,
        "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64,
        "n_shared_experts": 2, "norm_topk_prob": false, "num_attention_heads": 16,
        "num_experts_per_tok": 6, "num_hidden_layers": 27,
        "num_key_value_heads": 16, "q_lora_rank": null, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "routed_scaling_factor": 1.0,
        "rope_scaling": {
            "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707,
            "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "scoring_func": "softmax", "topk_group": 1, "topk_method": "greedy",
        "v_head_dim": 128, "vocab_size": 102400,
    })
}

fn v3() -> Value {
    json!({
        "attention_bias": false, "ep_size": 1, "first_k_dense_replace": 3,
        "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512,
        "max_position_embeddings": 163840, "moe_intermediate_size": 2048,
        "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256,
        "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 61,
        "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
        "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "quantization_config": {
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
            "weight_block_size": [128, 128],
        },
        "rope_scaling": {
            "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
            "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_group": 4,
        "topk_method": "noaux_tc", "v_head_dim": 128, "vocab_size": 129280,
    })
}

fn r1_qwen3() -> Value {
    json!({
        "attention_bias": false, "head_dim": 128, "hidden_size": 4096,
        "intermediate_size": 12288, "max_position_embeddings": 131072,
        "max_window_layers": 36, "num_attention_heads": 32,
        "num_hidden_layers": 36, "num_key_value_heads": 8,
        "rope_scaling": {
            "attn_factor": 0.8782488562869419, "factor": 4.0,
            "original_max_position_embeddings": 32768, "rope_type": "yarn",
        },
        "rope_theta": 1000000, "sliding_window": null,
        "use_sliding_window": false, "vocab_size": 151936,
    })
}

#[test]
fn real_shapes_have_their_parameters() {
    let qwen2 = |keys: Value| {
        let mut json = json!({
            "max_position_embeddings": 131072, "max_window_layers": 21,
            "num_hidden_layers": 28, "sliding_window": 4096, "use_mrope": false,
            "use_sliding_window": false,
        });
        json.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        read("qwen2", "Qwen2ForCausalLM", json)
    };
    let llama = |keys| read("llama", "LlamaForCausalLM", keys);
    let v2 = |keys| read("deepseek_v2", "DeepseekV2ForCausalLM", keys);
    let mut whole = v2_lite();
    for (key, value) in [
        ("hidden_size", json!(5120)),
        ("intermediate_size", json!(12288)),
        ("moe_intermediate_size", json!(1536)),
        ("n_group", json!(8)),
        ("n_routed_experts", json!(160)),
        ("num_attention_heads", json!(128)),
        ("num_hidden_layers", json!(60)),
        ("num_key_value_heads", json!(128)),
        ("q_lora_rank", json!(1536)),
        ("routed_scaling_factor", json!(16.0)),
        ("topk_group", json!(3)),
        ("topk_method", json!("group_limited_greedy")),
    ] {
        whole[key] = value;
    }
    for (name, config, parameters) in [
        (
            "deepseek-llm-7b",
            llama(json!({
                "hidden_size": 4096, "intermediate_size": 11008,
                "max_position_embeddings": 4096, "num_attention_heads": 32,
                "num_hidden_layers": 30, "num_key_value_heads": 32,
                "vocab_size": 102400,
            })),
            6_910_365_696,
        ),
        (
            "R1-Distill-Qwen-1.5B",
            qwen2(json!({
                "hidden_size": 1536, "intermediate_size": 8960,
                "num_attention_heads": 12, "num_key_value_heads": 2,
                "vocab_size": 151936,
            })),
            1_777_088_000,
        ),
        (
            "R1-Distill-Qwen-7B",
            qwen2(json!({
                "hidden_size": 3584, "intermediate_size": 18944,
                "num_attention_heads": 28, "num_key_value_heads": 4,
                "vocab_size": 152064,
            })),
            7_615_616_512,
        ),
        (
            "R1-0528-Qwen3-8B",
            read("qwen3", "Qwen3ForCausalLM", r1_qwen3()),
            8_190_735_360,
        ),
        ("V2-Lite", v2(v2_lite()), 15_706_484_224),
        ("V2", v2(whole), 235_741_434_880),
        (
            "V3 and R1",
            read("deepseek_v3", "DeepseekV3ForCausalLM", v3()),
            671_026_419_200,
        ),
    ] {
        assert_eq!(config.parameters().unwrap(), parameters, "{name}");
    }
}

/// What the keys mean, against the numbers of the reports and of DeepSeek's code.
#[test]
fn real_shapes_mean_what_they_say() {
    let c = read("deepseek_v2", "DeepseekV2ForCausalLM", v2_lite());
    let latent = c.latent.as_ref().expect("latent attention");
    // (0.1 · 0.707 · ln 40 + 1)² / √192
    assert!((latent.scale - 1.589_626_165 / 192f64.sqrt()).abs() < 1e-8);
    let RopeScaling::Yarn { attention_factor, .. } = c.rope.scaling else {
        panic!()
    };
    assert_eq!((attention_factor, c.head_dim), (1., 64));
    let experts = c.experts.as_ref().expect("experts");
    let routing = experts.routing;
    assert_eq!((experts.routed, experts.shared, experts.first_dense), (64, 2, 1));
    assert_eq!((routing.chosen, routing.groups, routing.scale), (6, 1, 1.));
    assert_eq!((routing.score, routing.normalize), (Score::Softmax, false));

    let c = read("deepseek_v3", "DeepseekV3ForCausalLM", v3());
    let routing = c.experts.as_ref().expect("experts").routing;
    assert_eq!((routing.groups, routing.kept_groups), (8, 4));
    assert_eq!((routing.chosen, routing.scale), (8, 2.5));
    assert_eq!((routing.score, routing.normalize), (Score::Sigmoid, true));
    assert_eq!((c.extra_layers, c.latent.unwrap().q_lora_rank), (1, Some(1536)));

    // transformers' factor: `attn_factor`, by which vLLM multiplies it, is not read.
    let c = read("qwen3", "Qwen3ForCausalLM", r1_qwen3());
    let RopeScaling::Yarn { attention_factor, .. } = c.rope.scaling else {
        panic!()
    };
    assert!((attention_factor - (0.1 * 4f64.ln() + 1.)).abs() < 1e-12);
}

/// A window that cuts nothing off is none.
#[test]
fn windows_that_do_nothing_are_let_through() {
    let mut json = config_json();
    json["model_type"] = json!("qwen2");
    json["architectures"] = json!(["Qwen2ForCausalLM"]);
    let mut with = |keys: Value| {
        json.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("config.json");
        std::fs::write(file, json.to_string()).expect("written");
        read_config(dir.path())
    };
    let on = json!({"use_sliding_window": true, "max_window_layers": 2});
    with(on).expect("no layer has it");
    let later = json!({"max_window_layers": 0, "sliding_window": 128});
    with(later).expect("as long as the longest text");
    with(json!({"sliding_window": null})).expect("none");
    with(json!({"sliding_window": 64})).expect_err("it would cut");
    let full = json!({"layer_types": ["full_attention", "full_attention"]});
    with(full).expect("no layer has it");
}

/// Every part of a model with experts gets a gradient, but those that no token went to
/// and the bias of the router.
#[test]
fn a_random_model_with_experts_learns() {
    let mut json = v3();
    for (key, n) in [
        ("hidden_size", 16),
        ("intermediate_size", 20),
        ("kv_lora_rank", 6),
        ("moe_intermediate_size", 10),
        ("num_attention_heads", 2),
        ("num_hidden_layers", 1),
        ("first_k_dense_replace", 0),
        ("n_routed_experts", 16),
        ("num_experts_per_tok", 3),
        ("q_lora_rank", 6),
        ("qk_nope_head_dim", 4),
        ("qk_rope_head_dim", 4),
        ("v_head_dim", 4),
        ("vocab_size", 61),
    ] {
        json[key] = json!(n);
    }
    let config = read("deepseek_v3", "DeepseekV3ForCausalLM", json);
    let model = Decoder::random(config, 3).expect("a model");
    let names = model.named_parameters();
    let bias = names.iter().find(|(n, _)| n.ends_with("e_score_correction_bias"));
    assert!(!bias.expect("a bias").1.requires_grad(), "never trained");
    let hidden = model.hidden(&ids(2, 9), Mode::Eval, None).expect("hidden");
    assert!(bool::try_from(Tensor::isfinite(&hidden).all()).unwrap());
    model.logits(&hidden).unwrap().square().mean(tch::Kind::Float).backward();
    let touched = |part: &str| {
        let of = names.iter().filter(|(n, _)| n.contains(part));
        of.filter(|(_, t)| t.grad().defined()).count()
    };
    assert_eq!(touched("mlp.gate.weight"), 1, "the router learns");
    assert_eq!(touched("shared_experts"), 3);
    // 18 tokens to 3 of 16 experts each.
    assert!((3..=48).contains(&touched(".experts.")));
}
