//! Adapters beside PEFT: its folders load here, ours hold what PEFT expects.
use crate::golden::{gap, json, metadata, path, same_bits, tensors};
use crate::parity_llama::{F32, logits, read};
use downhill::lora::{LoraConfig, attach, load_adapter, save_adapter};
use serde_json::Value;
use tch::Device;

#[test]
fn adapters_of_peft_give_pefts_logits() {
    for (name, count) in [("qv", 4), ("all", 14)] {
        let folder = format!("lora_{name}");
        let file = format!("{folder}/expected.safetensors");
        let (golden, about) = (tensors(&file), metadata(&file));
        let base = about["base"].as_str().expect("base");
        let mut model = read(base, &F32);
        let far = gap(&logits(&model, &golden["ids"]), &golden["base_logits"]);
        assert!(far < 1e-5, "{name}: base logits {far:e} from PEFT's");
        let loaded = load_adapter(&path(&folder), model.linears_mut(), Device::Cpu);
        let (config, named) = loaded.expect(name);
        assert_eq!(named.len(), 2 * count, "{name}");
        let far = gap(&logits(&model, &golden["ids"]), &golden["logits"]);
        println!("{name}: {far:.1e}");
        assert!(far < 1e-5, "{name}: logits {far:e} from PEFT's");

        // Written again, it is the folder that PEFT wrote: keys, bits, settings.
        let out = tempfile::tempdir().expect("a folder");
        save_adapter(out.path(), &config, base, &named).expect("saved");
        let weights = "adapter_model.safetensors";
        let ours = downhill::checkpoint::read_safetensors(&out.path().join(weights));
        let (ours, theirs) =
            (ours.expect(name), tensors(&format!("{folder}/{weights}")));
        assert_eq!(ours.len(), theirs.len(), "{name}");
        for (key, t) in &theirs {
            assert!(same_bits(&ours[key], t), "{name}: {key}");
        }
        let text =
            std::fs::read(out.path().join("adapter_config.json")).expect("config");
        let ours: Value = serde_json::from_slice(&text).expect("JSON");
        let theirs = json(&format!("{folder}/adapter_config.json"));
        for key in
            ["peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "bias"]
        {
            assert_eq!(ours[key], theirs[key], "{name}: {key}");
        }
        // The lists may be spelled otherwise (PEFT writes out `all-linear` in full),
        // but must mean the same modules.
        for (linear, _) in model.linears_mut() {
            assert_eq!(
                means(&ours, &linear),
                means(&theirs, &linear),
                "{name}: {linear}"
            );
        }
    }
}

/// Whether PEFT puts an adapter beside the module `name`: one of `target_modules` is
/// its name or the last parts of it.
fn means(config: &Value, name: &str) -> bool {
    let targets = config["target_modules"].as_array().expect("target_modules");
    targets.iter().filter_map(|t| t.as_str()).any(|t| {
        name == t || name.strip_suffix(t).is_some_and(|rest| rest.ends_with('.'))
    })
}

#[test]
fn what_we_do_not_compute_is_refused_by_name() {
    let mut model = read("llama_mha", &F32);
    let refused =
        load_adapter(&path("lora_rslora"), model.linears_mut(), Device::Cpu);
    let text = refused.expect_err("rsLoRA scales otherwise").to_string();
    assert!(text.contains("adapter_config.json"), "{text}");
    assert!(text.contains("use_rslora"), "{text}");
}

/// An adapter on one layer only must say which, or PEFT would look for the others.
#[test]
fn one_layers_adapter_names_its_layer() {
    let mut model = read("llama_gqa", &F32);
    let config = LoraConfig {
        r: 2,
        alpha: 4.,
        dropout: 0.,
        target_modules: vec!["layers.1.self_attn.q_proj".into()],
        ..LoraConfig::default()
    };
    let named =
        attach(model.linears_mut(), &config, 1, Device::Cpu).expect("attached");
    assert_eq!(named.len(), 2);
    let out = tempfile::tempdir().expect("a folder");
    save_adapter(out.path(), &config, "base", &named).expect("saved");
    let text =
        std::fs::read(out.path().join("adapter_config.json")).expect("config");
    let config: Value = serde_json::from_slice(&text).expect("JSON");
    let names =
        ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"];
    assert_eq!(names.map(|n| means(&config, n)), [false, true], "{config}");
}
