//! Chapter 16's recipes, each for two steps on a random checkpoint of its family: flags
//! that contradict each other, or do not fit the family, end a run.
use crate::ch16_finetune::commands;
use crate::train::ok;
use downhill::checkpoint::save_safetensors;
use downhill::models::{Decoder, read_config};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Writes a model as small as can be, whose config.json says what that of the recipe's
/// checkpoint says, sizes apart; with a tokenizer of its kind.
fn checkpoint(name: &str, dir: &Path) {
    let (family, longest, tokenizer) = match name {
        n if n.contains("coder") => ("Llama", 16_384, "examples/data/tiny"),
        n if n.contains("Qwen") => ("Qwen2", 131_072, "tests/golden/ch12_r1"),
        n if n.contains("llm-7b") => ("Llama", 4096, "examples/data/tiny"),
        n if n.contains("V2-Lite") => {
            ("DeepseekV2", 163_840, "examples/data/tiny_moe")
        }
        other => panic!("a recipe for `{other}`: say here of which family it is"),
    };
    let mut config = json!({
        "architectures": [format!("{family}ForCausalLM")],
        "model_type": family.to_lowercase().replace("deepseekv2", "deepseek_v2"),
        "hidden_act": "silu", "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": 128_815,
        "max_position_embeddings": longest, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
    });
    match family {
        "Qwen2" => config["num_key_value_heads"] = json!(1),
        "DeepseekV2" => {
            let more = json!({
                "attention_bias": false, "kv_lora_rank": 8, "q_lora_rank": null,
                "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
                "n_routed_experts": 8, "n_shared_experts": 2,
                "num_experts_per_tok": 3, "moe_intermediate_size": 16,
                "moe_layer_freq": 1, "first_k_dense_replace": 1, "n_group": 1,
                "topk_group": 1, "topk_method": "greedy", "norm_topk_prob": false,
                "routed_scaling_factor": 1.0, "scoring_func": "softmax",
            });
            let all = config.as_object_mut().unwrap();
            all.extend(more.as_object().unwrap().clone());
        }
        _ => {}
    }
    if !tokenizer.starts_with("tests") {
        config["vocab_size"] = json!(2048);
    }
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(Path::new(tokenizer).join(file), dir.join(file)).unwrap();
    }
    let model = Decoder::random(read_config(dir).unwrap(), 1).unwrap();
    let weights = model.named_parameters();
    let path = dir.join("model.safetensors");
    save_safetensors(&path, &weights, &[("format", "pt")]).unwrap();
}

/// Rows of the kind that the recipe's file holds by its name.
fn rows(file: &str, at: &Path) {
    let row = |i: usize| match file {
        "chats.jsonl" => json!({ "messages": [
            { "role": "user", "content": format!("One and {i}?") },
            { "role": "assistant",
              "content": format!("<think>One more.</think>{}", i + 1) },
        ] }),
        "code.jsonl" | "rows.jsonl" | "held_out.jsonl" => json!({
            "prompt": format!("One fox, {i}"), "completion": " foxes.",
        }),
        other => panic!("a recipe with `{other}`: say here what its rows are"),
    };
    let lines = (0..40).map(|i| format!("{}\n", row(i)));
    fs::write(at, lines.collect::<String>()).unwrap();
}

/// The recipe as it stands, but for files and folders.
fn run(recipe: &[String]) {
    let dir = TempDir::new().unwrap();
    let mut words = recipe.to_vec();
    for i in 1..recipe.len() {
        let at = dir.path().join(recipe[i].replace('/', "-"));
        match recipe[i - 1].as_str() {
            "--model" => {
                fs::create_dir(&at).unwrap();
                checkpoint(&recipe[i], &at);
            }
            "--train-file" | "--eval-file" => rows(&recipe[i], &at),
            "--output-dir" | "--quantized-cache" => {}
            _ => continue,
        }
        words[i] = at.display().to_string();
    }
    let out = dir.path().join("out");
    if let Some(i) = words.iter().position(|w| w == "--output-dir") {
        words.drain(i..i + 2);
    }
    let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
    c.args(&words).args(["--max-steps", "2", "--device", "cpu"]);
    c.arg("--output-dir").arg(&out).arg("--logging-dir").arg(dir.path().join("l"));
    let output = c.env("OMP_NUM_THREADS", "1").stdin(Stdio::null()).output();
    let said = ok(output.unwrap());
    let state = fs::read(out.join("trainer_state.json")).expect(&said);
    let state: Value = serde_json::from_slice(&state).unwrap();
    let log = state["log_history"].as_array().unwrap();
    let losses: Vec<f64> = log.iter().filter_map(|e| e["loss"].as_f64()).collect();
    assert_eq!(losses.len(), 2, "{recipe:?}\n{said}");
    assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    assert!(out.join("adapter_model.safetensors").is_file());
}

#[test]
fn every_recipe_runs() {
    let page = include_str!("../../chapters/ch16_finetune.md");
    let (_, recipes) = page.split_once("\n## Recipes\n").expect("the section");
    let recipes = commands(recipes).into_iter().filter(|c| c[0] == "finetune");
    let recipes: Vec<_> = recipes.collect();
    assert_eq!(recipes.len(), 5);
    std::thread::scope(|threads| {
        for recipe in &recipes {
            threads.spawn(move || run(recipe));
        }
    });
}
