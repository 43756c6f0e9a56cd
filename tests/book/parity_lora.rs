//! Adapters beside PEFT: its folders load here, ours hold what PEFT expects.
use crate::golden::{gap, json, metadata, path, same_bits, tensors};
use crate::parity_llama::{F32, logits, read};
use downhill::autograd::vjp;
use downhill::lora::{LoraConfig, Modules, attach, load_adapter, save_adapter};
use downhill::models::{Decoder, LoadOptions};
use downhill::nn::{Adapter, Linear, Mode};
use serde_json::Value;
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};

/// Every folder `lora_<name>`: its base, how that is held, and the adapters in it. See
/// `tests/golden/ch15_lora.py` and `ch15_kinds.py`.
const CASES: [(&str, usize); 16] = [
    ("qv", 4),
    ("all", 14),
    ("rslora", 4),
    ("dora", 6),
    ("dora_rs", 14),
    ("dora_nf4", 14),
    ("dora_drop", 6),
    ("save", 2),
    ("bias", 4),
    ("gaussian", 2),
    ("pissa", 4),
    ("pissa_plain", 4),
    ("pissa_dora", 4),
    ("regex", 3),
    ("v2_experts", 38),
    ("v2_experts_dora", 38),
];

/// The folder's golden tensors, its base with the adapter on, and what was loaded.
fn adapted(
    name: &str,
) -> (HashMap<String, Tensor>, Decoder, LoraConfig, downhill::lora::Named) {
    let folder = format!("lora_{name}");
    let file = format!("{folder}/expected.safetensors");
    let (golden, about) = (tensors(&file), metadata(&file));
    let base = about["base"].as_str().expect("base");
    let options = LoadOptions { quantize: name.contains("nf4"), ..F32 };
    let mut model = read(base, &options);
    if let Some(plain) = golden.get("base_logits") {
        let far = gap(&logits(&model, &golden["ids"]), plain);
        assert!(far < 1e-5, "{name}: base logits {far:e} from PEFT's");
    }
    let parameters = model.named_parameters();
    let parts = (model.linears_mut(), parameters);
    let loaded = load_adapter(&path(&folder), parts, Device::Cpu);
    let (config, named) = loaded.expect(name);
    (golden, model, config, named)
}

#[test]
fn adapters_of_peft_give_pefts_logits() {
    for (name, count) in CASES.into_iter().chain([("layers", 1)]) {
        let (golden, mut model, config, named) = adapted(name);
        let adapters = named.iter().filter(|(n, _)| n.ends_with("lora_A.weight"));
        assert_eq!(adapters.count(), count, "{name}");
        if name != "dora_drop" {
            let far = gap(&logits(&model, &golden["ids"]), &golden["logits"]);
            println!("{name}: {far:.1e}");
            assert!(far < 1e-5, "{name}: logits {far:e} from PEFT's");
        }

        // Written again, it is the folder that PEFT wrote: keys, bits, settings.
        let folder = format!("lora_{name}");
        let out = tempfile::tempdir().expect("a folder");
        save_adapter(out.path(), &config, "base", &named).expect("saved");
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
        let lists = ["target_modules", "layers_pattern", "layers_to_transform"];
        for (key, value) in ours.as_object().expect("an object") {
            if key != "base_model_name_or_path" && !lists.contains(&key.as_str()) {
                assert_eq!(value, &theirs[key], "{name}: {key}");
            }
        }
        // The lists may be spelled otherwise (PEFT writes out `all-linear` in full),
        // but must mean the same modules.
        if theirs["target_modules"].is_string() {
            assert_eq!(ours["target_modules"], theirs["target_modules"]);
            continue;
        }
        for (linear, _) in model.linears_mut() {
            assert_eq!(
                means(&ours, &linear),
                means(&theirs, &linear),
                "{name}: {linear}"
            );
        }
    }
}

/// Whether `target_modules` mean the module `name`: one of them is its name or the
/// last parts of it.
fn means(config: &Value, name: &str) -> bool {
    let targets = config["target_modules"].as_array().expect("target_modules");
    targets.iter().filter_map(|t| t.as_str()).any(|t| {
        name == t || name.strip_suffix(t).is_some_and(|rest| rest.ends_with('.'))
    })
}

/// Beside a base in bf16, A and B kept in f32, under `torch.autocast`: see
/// `tests/golden/ch15_autocast.py`. Both sides round to bf16, whose numbers have 8 bits,
/// at the same places but one: where s is multiplied by.
#[test]
fn a_layer_in_bf16_is_pefts_under_autocast() {
    let golden = tensors("ch15_autocast.safetensors");
    let leaf = |name: &str| golden[name].detach().set_requires_grad(true);
    let (a, b, x) = (leaf("a"), leaf("b"), leaf("x"));
    let bias = Some(golden["bias"].shallow_clone());
    let mut linear = Linear::dense(golden["w"].shallow_clone(), bias);
    let adapter = Adapter::new(a.shallow_clone(), b.shallow_clone(), 1.5);
    linear.lora = Some(adapter);
    let y = linear.forward(&x, Mode::Eval).expect("a layer");
    let grads = vjp(&y, &golden["dy"], &[&x, &a, &b]).expect("gradients");
    let found = grads.into_iter().flatten().chain([y.detach()]);
    for (name, found) in ["dx", "da", "db", "y"].iter().zip(found) {
        let expected = &golden[*name];
        assert_eq!(found.kind(), expected.kind(), "{name}");
        let far = gap(&found, expected);
        println!("{name}: {far:.1e}");
        assert!(far < 2f64.powi(-7), "{name}: {far:e} from PEFT's");
    }
}

/// DoRA over NF4, and in training under the same masks as PEFT: its logits and every
/// gradient.
#[test]
fn gradients_of_dora_are_pefts() {
    for name in ["dora_nf4", "dora_drop"] {
        for checkpointing in [false, true] {
            let (golden, mut model, _, named) = adapted(name);
            model.checkpointing = checkpointing;
            let about = metadata(&format!("lora_{name}/expected.safetensors"));
            let number =
                |key: &str| about[key].as_str().unwrap().parse::<u64>().unwrap();
            let mode = match name {
                "dora_drop" => {
                    Mode::Train { seed: number("seed"), step: number("step") }
                }
                // Not `Eval`, where nothing is checkpointed; without dropout it is the same.
                _ => Mode::Train { seed: 0, step: 0 },
            };
            let hidden = model.hidden(&golden["ids"], mode, None).expect("hidden");
            let logits = model.logits(&hidden).expect("logits");
            let far = gap(&logits.detach(), &golden["logits"]);
            assert!(far < 1e-5, "{name}: logits {far:e} from PEFT's");
            logits.square().mean(Kind::Float).backward();
            for (tensor, t) in &named {
                let far = gap(&t.grad(), &golden[&format!("grad.{tensor}")]);
                assert!(far < 1e-4, "{name}: gradient of {tensor}: {far:e}");
            }
        }
    }
}

/// An adapter on one layer only must say which, or PEFT would look for the others.
#[test]
fn one_layers_adapter_names_its_layer() {
    let mut model = read("llama_gqa", &F32);
    let config = LoraConfig {
        r: 2,
        alpha: 4.,
        dropout: 0.,
        target_modules: Modules::parse(&["layers.1.self_attn.q_proj"]),
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
