//! Qwen2, Qwen3, DeepSeek-V2 and V3 as transformers saved them: the same logits, the
//! same text, the same gradients. See `tests/golden/ch13_families.py` and beside it
//! `ch13_rope.py` and `ch13_bf16.py`.
use crate::common::lora;
use crate::golden::{gap, same_bits, tensors};
use crate::parity_llama::{F32, logits, read, same_logits, same_text};
use downhill::lora::{LoraConfig, attach};
use downhill::models::{Decoder, LoadOptions};
use downhill::nn::{Mode, Weight};
use tch::{Device, Kind, Tensor};

const FOLDERS: [&str; 17] = [
    "llama_yarn",
    "qwen2_gqa",
    "qwen2_tied",
    "qwen3_gqa",
    "qwen3_yarn",
    "qwen3_bias",
    "v2_lite",
    "v2_limited",
    "v2_bias",
    "v2_yarn",
    "v2_mscale",
    "v3_yarn",
    "v3_flat",
    "v3_tied",
    "v3_fp8",
    "llama_dynamic",
    "qwen3_longrope",
];

#[test]
fn logits_are_transformers() {
    FOLDERS.iter().for_each(|folder| same_logits(folder));
}

#[test]
fn greedy_text_is_transformers() {
    FOLDERS.iter().for_each(|folder| same_text(folder));
}

/// In bf16 too, of which one unit in the last of its 8 bits is 2⁻⁷ of a number between
/// 1 and 2: no logit is further off than two of those of the largest logit. On the kind
/// of processor that made the file they are the same bits; where products are summed in
/// another order (libtorch held to AVX2), up to 2 units. Both sides must round at the
/// same places: with attention written out, transformers is 3 to 5 units from itself,
/// and where a token goes to another expert for that, 30 to 70.
#[test]
fn bf16_logits_are_transformers() {
    let options = LoadOptions { kind: Kind::BFloat16, ..F32 };
    let golden = tensors("ch13_bf16.safetensors");
    assert!(FOLDERS.iter().all(|f| golden.contains_key(*f)));
    assert_eq!(
        golden.len(),
        FOLDERS.len() + 10,
        "those of parity_llama, but for v5"
    );
    let mut failed = vec![];
    for (folder, expected) in golden {
        let ids = &tensors(&format!("{folder}/expected.safetensors"))["ids"];
        let found = logits(&read(&folder, &options), ids);
        assert_eq!(found.kind(), Kind::BFloat16);
        let [found, expected] = [found, expected].map(|t| t.to_kind(Kind::Double));
        let largest = expected.abs().max().double_value(&[]);
        let unit = (largest.log2().floor() - 7.).exp2();
        let far = (found - expected).abs().max().double_value(&[]) / unit;
        println!("{folder}: {far:.2} units");
        if far.is_nan() || far > 2. {
            failed.push((folder, far));
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// The mean cross-entropy of the ids from 1 on, given those before.
fn loss(model: &Decoder, ids: &Tensor, mode: Mode) -> Tensor {
    let hidden = model.hidden(ids, mode, None).expect("hidden");
    let t = ids.size()[1];
    let hidden = hidden.narrow(1, 0, t - 1).flatten(0, 1);
    let targets = ids.narrow(1, 1, t - 1).flatten(0, 1);
    let n = targets.numel() as f64;
    model.loss(&hidden, &targets).expect("loss") / n
}

/// Through routing weights, experts, latents and norms down to the embedding.
#[test]
fn gradients_are_transformers() {
    for folder in ["v2_limited", "v3_yarn"] {
        let golden = tensors(&format!("{folder}/expected.safetensors"));
        let model = read(folder, &F32);
        let parameters = model.named_parameters();
        for (name, t) in &parameters {
            if !name.ends_with("_bias") {
                let _ = t.set_requires_grad(true);
            }
        }
        let loss = loss(&model, &golden["ids"], Mode::Eval);
        assert!(gap(&loss.detach(), &golden["loss"]) < 1e-6, "{folder}");
        loss.backward();
        let mut compared = 0;
        for (name, t) in &parameters {
            if let Some(expected) = golden.get(&format!("grad.{name}")) {
                let far = gap(&t.grad(), expected);
                assert!(far < 1e-4, "{folder}, {name}: {far:e}");
                compared += 1;
            }
        }
        let given = golden.keys().filter(|k| k.starts_with("grad.")).count();
        assert_eq!(compared, given, "{folder}");
        assert!(given > 10, "{folder}: {given}");
    }
}

/// 8 bits on disk: the scales are used, and the layer behind the last is not read, of
/// which there is a word.
#[test]
fn multi_token_prediction_is_passed_over_aloud() {
    let model = read("v3_fp8", &F32);
    assert_eq!(model.config.extra_layers, 1);
    let [note] = model.notes.as_slice() else { panic!("{:?}", model.notes) };
    assert!(note.contains("layer 2, 3 tensors"), "{note}");
    assert!(read("v3_flat", &F32).notes.is_empty());
}

/// Experts in 4 bits, each with an adapter of its own; the router as it was, in no
/// list; and gradient checkpointing, which gives the same gradients to the bit.
#[test]
fn experts_are_linears_like_any_other() {
    let mut gradients: Vec<Vec<(String, Tensor)>> = vec![];
    for checkpointing in [false, true] {
        let options = LoadOptions { quantize: true, ..F32 };
        let mut model = read("v3_yarn", &options);
        model.checkpointing = checkpointing;
        let linears = model.linears_mut();
        assert!(linears.iter().all(|(_, l)| matches!(l.weight, Weight::Nf4(_))));
        let names: Vec<String> = linears.into_iter().map(|(name, _)| name).collect();
        assert!(!names.iter().any(|n| n.ends_with("mlp.gate")));
        for name in [
            "model.layers.0.self_attn.q_a_proj",
            "model.layers.0.self_attn.kv_a_proj_with_mqa",
            "model.layers.0.mlp.up_proj",
            "model.layers.1.self_attn.kv_b_proj",
            "model.layers.1.mlp.experts.3.gate_proj",
            "model.layers.1.mlp.experts.7.down_proj",
            "model.layers.1.mlp.shared_experts.up_proj",
        ] {
            assert!(names.iter().any(|n| n == name), "{name} in {names:?}");
        }
        let rest = model.named_parameters();
        let has = |name: &str| rest.iter().any(|(n, _)| n == name);
        assert!(has("model.layers.1.mlp.gate.weight"));
        assert!(has("model.layers.1.mlp.gate.e_score_correction_bias"));
        let config = lora(&["all-linear"], 0.1);
        let device = Device::Cpu;
        let named =
            attach(model.linears_mut(), &config, 3, device).expect("adapters");
        assert_eq!(named.len(), 2 * names.len());
        tch::no_grad(|| {
            for (_, t) in &named {
                let wave = Tensor::arange(t.numel() as i64, (Kind::Float, device));
                t.shallow_clone().copy_(&((wave.sin() * 0.1).view_as(t)));
            }
        });
        // Few tokens, so that some experts get none.
        let ids = Tensor::from_slice(&[5i64, 9, 11]).unsqueeze(0);
        loss(&model, &ids, Mode::Train { seed: 1, step: 1 }).backward();
        let grads = named.iter().filter(|(_, t)| t.grad().defined());
        gradients.push(grads.map(|(n, t)| (n.clone(), t.grad())).collect());
        let touched = gradients[0].len();
        assert!(
            touched > 30 && touched < named.len(),
            "{touched} of {}",
            named.len()
        );
    }
    assert_eq!(gradients[0].len(), gradients[1].len());
    for ((name, a), (_, b)) in gradients[0].iter().zip(&gradients[1]) {
        assert!(same_bits(a, b), "{name}");
    }
}

/// One new token draws `kv_b` into its query and its output instead of making keys and
/// values of all latents: the same numbers, with `kv_b` dense or in 4 bits, with every
/// kind of adapter (with a bias it does make them).
#[test]
fn a_new_token_sees_latents_as_keys_and_values() {
    let _no_grad = tch::no_grad_guard();
    let plain = lora(&["all-linear"], 0.);
    let dora = LoraConfig { use_dora: true, ..lora(&["kv_b_proj"], 0.) };
    let bias = LoraConfig { lora_bias: true, ..lora(&["kv_b_proj"], 0.) };
    for folder in ["v2_lite", "v2_yarn", "v3_yarn"] {
        for quantize in [false, true] {
            for adapter in [None, Some(&plain), Some(&dora), Some(&bias)] {
                let mut model = read(folder, &LoadOptions { quantize, ..F32 });
                if let Some(config) = adapter {
                    let linears = model.linears_mut();
                    let named = attach(linears, config, 3, Device::Cpu).unwrap();
                    for (_, t) in named {
                        let n = t.numel() as i64;
                        let wave = Tensor::arange(n, (Kind::Float, Device::Cpu));
                        let wave = (wave.sin() * 0.1).view_as(&t);
                        t.shallow_clone().copy_(&(&t + wave));
                    }
                }
                let golden = tensors(&format!("{folder}/expected.safetensors"));
                let ids = golden["ids"].narrow(1, 0, 16);
                let whole = logits(&model, &ids);
                let mut cache = model.cache();
                let mut start = 0;
                for size in [1, 1, 5, 1, 1, 1, 3, 1, 1, 1] {
                    let next = ids.narrow(1, start, size);
                    let hidden = model.hidden(&next, Mode::Eval, Some(&mut cache));
                    let found = model.logits(&hidden.unwrap()).unwrap();
                    let far = gap(&found, &whole.narrow(1, start, size));
                    assert!(far < 1e-5, "{folder} {quantize} {start}: {far:e}");
                    start += size;
                }
                assert_eq!((start, cache.len()), (16, 16));
            }
        }
    }
}
