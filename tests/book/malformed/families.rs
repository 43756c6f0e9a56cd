//! `config.json` of Qwen and DeepSeek, and weights in 8 bits.
use super::*;

/// Makes `config.json` one of a family, with these keys changed or, by null, removed.
fn family(name: &'static str, class: &'static str, keys: Value) -> impl Fn(&Bench) {
    move |b: &Bench| {
        let experts = json!({
            "model_type": name, "architectures": [class],
            "q_lora_rank": 4, "kv_lora_rank": 8, "qk_nope_head_dim": 4,
            "qk_rope_head_dim": 4, "v_head_dim": 4, "n_routed_experts": 8,
            "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 4,
            "topk_group": 2,
        });
        b.json("model/config.json", |config| {
            let map = config.as_object_mut().expect("an object");
            map.extend(experts.as_object().expect("an object").clone());
            for (key, value) in keys.as_object().expect("an object") {
                match value {
                    Value::Null => drop(map.shift_remove(key)),
                    value => drop(map.insert(key.clone(), value.clone())),
                }
            }
        });
    }
}

#[test]
fn configs_of_other_families() {
    let qwen2 = |keys| family("qwen2", "Qwen2ForCausalLM", keys);
    let qwen3 = |keys| family("qwen3", "Qwen3ForCausalLM", keys);
    let v2 = |keys| family("deepseek_v2", "DeepseekV2ForCausalLM", keys);
    let v3 = |keys| family("deepseek_v3", "DeepseekV3ForCausalLM", keys);
    let yarn = |key: &str, value: Value| {
        let mut yarn = json!({"type": "yarn", "factor": 4.0});
        yarn[key] = value;
        json!({"rope_scaling": yarn})
    };
    let window = json!({"use_sliding_window": true, "max_window_layers": 1,
        "sliding_window": 64});
    refuses(&[
        (
            "another's class",
            &family("qwen2", "Qwen3ForCausalLM", json!({})),
            &["config.json", "qwen2", "Qwen3ForCausalLM"],
        ),
        ("a window", &qwen2(window), &["config.json", "use_sliding_window", "64"]),
        ("no biases", &qwen2(json!({})), &["q_proj.bias", "missing"]),
        ("no norms", &qwen3(json!({"head_dim": 8})), &["q_norm", "missing"]),
        (
            "yarn's factor",
            &qwen3(yarn("factor", json!(-1))),
            &["rope_scaling.factor"],
        ),
        (
            "yarn's ramp",
            &qwen3(yarn("beta_fast", json!(0.5))),
            &["rope_scaling.beta_fast", "beta_slow"],
        ),
        (
            "yarn's base",
            &qwen2(json!({"rope_theta": 1.0,
                "rope_scaling": {"type": "yarn", "factor": 4.0}})),
            &["rope_theta", "yarn"],
        ),
        (
            "no rank",
            &v2(json!({"kv_lora_rank": null})),
            &["config.json", "missing field `kv_lora_rank`"],
        ),
        (
            "rank 0",
            &v3(json!({"kv_lora_rank": 0})),
            &["config.json", "kv_lora_rank"],
        ),
        ("text", &v3(json!({"v_head_dim": "4"})), &["config.json", "v_head_dim: "]),
        ("odd", &v2(json!({"qk_rope_head_dim": 5})), &["qk_rope_head_dim", "odd"]),
        (
            "no query rank",
            &v2(json!({"q_lora_rank": null})),
            &["config.json", "missing field `q_lora_rank`"],
        ),
        (
            "no width",
            &v3(json!({"moe_intermediate_size": null})),
            &["config.json", "moe_intermediate_size"],
        ),
        (
            "too many chosen",
            &v3(json!({"num_experts_per_tok": 5})),
            &["num_experts_per_tok: 5 of 4"],
        ),
        (
            "groups",
            &v3(json!({"n_group": 3})),
            &["n_group: 3", "n_routed_experts 8"],
        ),
        (
            "groups of one",
            &v3(json!({"n_group": 8, "topk_group": 4})),
            &["n_group: 8", "two"],
        ),
        (
            "too many groups",
            &v3(json!({"topk_group": 5})),
            &["topk_group: 5 of n_group 4"],
        ),
        (
            "method",
            &v2(json!({"topk_method": "noaux_tc"})),
            &["topk_method: `noaux_tc`"],
        ),
        (
            "scores",
            &v3(json!({"scoring_func": "softmax"})),
            &["scoring_func: `softmax`"],
        ),
        ("normalized", &v2(json!({"norm_topk_prob": true})), &["norm_topk_prob"]),
        ("other weights", &v3(json!({})), &["self_attn.q_a_proj.weight", "missing"]),
    ]);
}

/// 8-bit weights: without their scales, and with scales of another shape.
#[test]
fn eight_bit_weights() {
    let weight = "model.layers.0.mlp.up_proj.weight";
    let scales = |scale: Option<Tensor>| {
        move |b: &Bench| {
            let mut all = golden::tensors("v3_fp8/model.safetensors");
            all.remove("model.layers.0.mlp.up_proj.weight_scale_inv");
            if let Some(scale) = &scale {
                let name = format!("{weight}_scale_inv");
                all.insert(name, scale.shallow_clone());
            }
            let all: Vec<_> = all.into_iter().collect();
            save_safetensors(&b.at(WEIGHTS), &all, &[]).expect("weights");
            let config = golden::path("v3_fp8/config.json");
            fs::copy(config, b.at("model/config.json")).expect("config");
            b.set("model/config.json", "vocab_size", json!(64));
            b.put(
                "rows.jsonl",
                "{\"input_ids\": [1, 5, 9], \"labels\": [1, 5, 9]}\n",
            );
            b.remove("model/tokenizer.json");
            b.remove("model/tokenizer_config.json");
        }
    };
    let cpu = (tch::Kind::Float, tch::Device::Cpu);
    // The classic targets are not in this family.
    refuses_with(
        &["--target-modules=all-linear"],
        &[
            ("no scales", &scales(None), &[weight, "weight_scale_inv", "missing"]),
            (
                "scales of another shape",
                &scales(Some(Tensor::ones([2, 1], cpu))),
                &["weight_scale_inv", "[2, 1]", "[2, 2]"],
            ),
            (
                "whole scales",
                &scales(Some(Tensor::ones([2, 2], (tch::Kind::Int64, cpu.1)))),
                &["weight_scale_inv", "Int64"],
            ),
        ],
    );
}
