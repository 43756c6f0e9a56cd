//! Adapter folders, and checkpoints to resume from.
use super::*;
use downhill::checkpoint::Manifest;

const SETTINGS: &str = "adapter/adapter_config.json";
const TENSORS: &str = "adapter/adapter_model.safetensors";

fn refuses_adapter(cases: &[Case]) {
    let mut wrong = Vec::new();
    for (name, spoil, expected) in cases {
        let bench = Bench::new();
        spoil(&bench);
        for command in [
            bench.finetune(&["--init-adapter=@/adapter"]),
            bench.generate(&["--adapter=@/adapter"]),
        ] {
            if let Some(what) = fault(&bench, command, expected) {
                wrong.push(format!("{name}: {what}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn adapter_folders() {
    let set = |key: &'static str, value: Value| {
        move |b: &Bench| b.set(SETTINGS, key, value.clone())
    };
    let (config, weights) = ("adapter_config.json", "adapter_model.safetensors");
    refuses_adapter(&[
        (
            "no folder",
            &|b| fs::remove_dir_all(b.at("adapter")).unwrap(),
            &["adapter"],
        ),
        ("no settings", &|b| b.remove(SETTINGS), &[config]),
        ("no weights", &|b| b.remove(TENSORS), &[weights]),
        ("settings cut", &|b| b.cut(SETTINGS, 30), &[config, "JSON"]),
        ("settings a list", &|b| b.put(SETTINGS, "[]"), &[config]),
        (
            "another kind",
            &set("peft_type", json!("IA3")),
            &[config, "peft_type", "IA3"],
        ),
        (
            "no lengths for DoRA",
            &set("use_dora", json!(true)),
            &[weights, "lora_magnitude_vector", "missing"],
        ),
        ("rsLoRA", &set("use_rslora", json!("yes")), &[config, "use_rslora"]),
        (
            "a module that was not saved",
            &set("modules_to_save", json!(["lm_head"])),
            &[weights, "lm_head.weight", "missing"],
        ),
        (
            "a pattern that is none",
            &set("target_modules", json!("*_proj")),
            &[config, "target-modules", "`*_proj`"],
        ),
        (
            "ranks by pattern",
            &set("rank_pattern", json!({"v_proj": 2})),
            &[weights, "v_proj", "[4, 32]", "[2, 32]"],
        ),
        ("no rank", &set("r", json!(0)), &[config, "r: 0"]),
        ("a huge rank", &set("r", json!(1u64 << 60)), &[config, "r: "]),
        ("another rank", &set("r", json!(8)), &[weights, "[4, 32]", "[8, 32]"]),
        ("alpha", &set("lora_alpha", json!("big")), &[config, "lora_alpha"]),
        ("weights cut", &|b| b.cut(TENSORS, 1000), &[weights, "truncated"]),
        ("weights of text", &|b| b.put(TENSORS, "no tensors here"), &[weights]),
        (
            "one missing",
            &|b| b.tensors(TENSORS, |t| drop(t.remove(1))),
            &[weights, "lora_B", "missing"],
        ),
        (
            "one too many",
            &|b| {
                b.tensors(TENSORS, |t| {
                    let extra = t[0].1.copy();
                    t.push(("base_model.model.lm_head.lora_A.weight".into(), extra));
                })
            },
            &[weights, "lm_head.lora_A"],
        ),
        (
            "of a deeper model",
            &|b| {
                b.tensors(TENSORS, |t| {
                    let more = t[0].0.replace("layers.0", "layers.30");
                    t.push((more, t[0].1.copy()));
                })
            },
            &[weights, "layers.30"],
        ),
        (
            "integers",
            &|b| b.tensors(TENSORS, |t| t[0].1 = t[0].1.to_kind(tch::Kind::Int64)),
            &[weights, "lora_A", "Int64"],
        ),
    ]);
}

/// A run of two steps, each saved, then one thing broken in the second checkpoint.
#[test]
fn checkpoints_to_resume_from() {
    let sound = Bench::new();
    let two = ["--max-steps=2", "--save-strategy=steps", "--save-steps=1"];
    let output = finish(sound.finetune(&two)).expect("ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let whole = sound.at("out/checkpoint-1");
    let cases: [(&str, &dyn Fn(&Bench), &[&str]); 8] = [
        ("no state", &|b| b.remove("c/trainer_state.json"), &["trainer_state.json"]),
        (
            "state cut",
            &|b| b.cut("c/trainer_state.json", 30),
            &["trainer_state.json"],
        ),
        (
            "another file",
            &|b| b.put("c/trainer_state.json", "{}"),
            &["trainer_state.json", "global_step"],
        ),
        (
            "no optimizer",
            &|b| b.remove("c/optimizer.safetensors"),
            &["optimizer.safetensors"],
        ),
        (
            "optimizer cut",
            &|b| b.cut("c/optimizer.safetensors", 2000),
            &["optimizer.safetensors"],
        ),
        (
            "a moment missing",
            &|b| {
                b.tensors("c/optimizer.safetensors", |t| {
                    t.retain(|(n, _)| {
                        !n.ends_with("layers.0.self_attn.q_proj.lora_A.weight.v")
                    });
                })
            },
            &["layers.0.self_attn.q_proj.lora_A.weight.v", "missing"],
        ),
        (
            "a moment of another shape",
            &|b| {
                b.tensors("c/optimizer.safetensors", |t| {
                    t[0].1 = t[0].1.reshape([-1])
                })
            },
            &["layers.0.self_attn.q_proj.lora_A.weight.m", "shape"],
        ),
        (
            "adapter cut",
            &|b| b.cut("c/adapter_model.safetensors", 1000),
            &["adapter_model.safetensors"],
        ),
    ];
    let mut wrong = Vec::new();
    for (name, spoil, expected) in cases {
        let bench = Bench::new();
        fs::create_dir(bench.at("c")).unwrap();
        for from in below(&whole) {
            fs::copy(&from, bench.at("c").join(from.file_name().unwrap())).unwrap();
        }
        spoil(&bench);
        // As if it had been written so: else its manifest would be what refuses it.
        Manifest::write(&bench.at("c")).unwrap();
        // The rows must be the same file, or that would be what is refused.
        let rows = format!("--train-file={}", sound.at("rows.jsonl").display());
        let model = format!("--model={}", sound.at("model").display());
        let command =
            bench.finetune(&["--resume=@/c", &rows, &model, "--max-steps=2"]);
        if let Some(what) = fault(&bench, command, expected) {
            wrong.push(format!("{name}: {what}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
