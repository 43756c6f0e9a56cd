//! Models from folders: both spellings of `config.json`, and what does not fit.
//! (`parity_llama` compares the numbers with transformers.)
use crate::common::{self, config, config_json, ids, refused, write_checkpoint};
use crate::golden::{gap, same_bits};
use downhill::checkpoint::{read_safetensors, save_safetensors};
use downhill::models::{Decoder, LoadOptions, load, read_config};
use downhill::nn::{Mode, Rope, RopeScaling, Weight};
use serde_json::{Value, json};
use std::path::Path;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

const F32: LoadOptions = LoadOptions {
    quantize: false,
    blocksize: 64,
    double_quant: true,
    kind: Kind::Float,
    device: Device::Cpu,
};

fn open(dir: &Path, options: &LoadOptions) -> downhill::Result<Decoder> {
    load(dir, options, &mut |_, _| ())
}

fn folder() -> (TempDir, Decoder) {
    let dir = tempfile::tempdir().expect("a folder");
    let model = write_checkpoint(dir.path(), 7);
    (dir, model)
}

fn logits(model: &Decoder) -> Tensor {
    tch::no_grad(|| {
        let hidden = model.hidden(&ids(2, 9), Mode::Eval, None).unwrap();
        model.logits(&hidden).unwrap()
    })
}

/// What `read_config` makes of `config.json` after this change to it.
fn read(
    change: impl FnOnce(&mut Value),
) -> downhill::Result<downhill::models::DecoderConfig> {
    let dir = tempfile::tempdir().expect("a folder");
    let mut json = config_json();
    change(&mut json);
    std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    read_config(dir.path())
}

fn remove(json: &mut Value, key: &str) {
    json.as_object_mut().unwrap().remove(key);
}

#[test]
fn both_spellings_say_the_same() {
    assert_eq!(read(|_| ()).unwrap(), config());
    let five = |scaling: Value| {
        read(move |c| {
            remove(c, "rope_theta");
            remove(c, "torch_dtype");
            c["dtype"] = json!("float32");
            c["rope_parameters"] = scaling;
        })
        .unwrap()
    };
    let v5 = five(json!({"rope_type": "default", "rope_theta": 10000.0}));
    assert_eq!(v5, config());

    // The key is `type` in old files, and null means none.
    assert_eq!(read(|c| c["rope_scaling"] = Value::Null).unwrap(), config());
    for key in ["type", "rope_type"] {
        let old = read(|c| {
            c["rope_scaling"] = json!({"factor": 4.0});
            c["rope_scaling"][key] = json!("linear");
        });
        let both = read(|c| {
            c["rope_scaling"] =
                json!({"factor": 4.0, "type": "linear", "rope_type": "linear"});
        });
        assert_eq!(both.unwrap(), old.as_ref().unwrap().clone());
        let new = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4});
        let linear = RopeScaling::Linear { factor: 4. };
        assert_eq!(old.unwrap().rope.scaling, linear);
        assert_eq!(five(new).rope, Rope { theta: 1e4, scaling: linear });
    }
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    });
    let mut with_theta = llama3.clone();
    with_theta["rope_theta"] = json!(500_000.0);
    let old = read(|c| {
        c["rope_scaling"] = llama3;
        c["rope_theta"] = json!(500_000.0);
    });
    assert_eq!(old.unwrap(), five(with_theta));
}

#[test]
fn defaults_are_those_of_transformers() {
    let c = read(|c| {
        for key in [
            "num_key_value_heads",
            "rms_norm_eps",
            "rope_theta",
            "max_position_embeddings",
            "tie_word_embeddings",
            "hidden_act",
            "torch_dtype",
        ] {
            remove(c, key);
        }
    })
    .unwrap();
    assert_eq!((c.num_key_value_heads, c.head_dim), (4, 8));
    assert_eq!((c.rms_norm_eps, c.rope.theta), (1e-6, 10_000.));
    assert_eq!((c.max_position_embeddings, c.tie_word_embeddings), (2048, false));
    assert!(!c.attention_bias && !c.mlp_bias);
    // Either of the two that name the family is enough; unknown keys are ignored.
    read(|c| remove(c, "model_type")).unwrap();
    read(|c| remove(c, "architectures")).unwrap();
    read(|c| c["pretraining_tp"] = json!(1)).unwrap();
}

#[test]
fn every_wrong_setting_names_its_key() {
    let faults: &[(&str, &str, Value)] = &[
        ("model_type", "mamba", json!("mamba")),
        (
            "architectures",
            "LlamaForSequenceClassification",
            json!(["LlamaForSequenceClassification"]),
        ),
        ("vocab_size", "vocab_size", json!(0)),
        ("hidden_size", "hidden_size", json!(-32)),
        ("hidden_size", "hidden_size", json!(30)),
        ("hidden_size", "hidden_size", json!(1i64 << 62)),
        ("intermediate_size", "intermediate_size", json!(0)),
        ("num_hidden_layers", "num_hidden_layers", json!(0)),
        ("num_attention_heads", "num_attention_heads", json!(0)),
        ("num_key_value_heads", "num_key_value_heads", json!(3)),
        ("num_key_value_heads", "num_key_value_heads", json!(0)),
        ("head_dim", "head_dim", json!(7)),
        ("head_dim", "head_dim", json!(0)),
        ("hidden_act", "hidden_act", json!("gelu")),
        ("rms_norm_eps", "rms_norm_eps", json!(-1.)),
        ("max_position_embeddings", "max_position_embeddings", json!(0)),
        ("rope_theta", "rope_theta", json!(0)),
        ("rope_theta", "rope_theta", json!(-1e4)),
        ("rope_scaling", "ntk", json!({"type": "ntk", "factor": 4.})),
        ("rope_scaling", "rope_scaling.factor", json!({"type": "dynamic"})),
        (
            "rope_scaling",
            "rope_scaling.long_factor",
            json!({"type": "longrope", "factor": 4., "short_factor": [1., 1., 1., 1.]}),
        ),
        (
            "rope_scaling",
            "short_factor: 3 numbers for 4 pairs",
            json!({"type": "longrope", "factor": 4., "short_factor": [1., 1., 1.],
                "long_factor": [1., 1., 1., 1.]}),
        ),
        (
            "rope_scaling",
            "rope_scaling.long_factor",
            json!({"type": "longrope", "factor": 4., "short_factor": [1., 1., 1., 1.],
                "long_factor": [1., 0., 1., 1.]}),
        ),
        ("rope_scaling", "rope_scaling.factor", json!({"type": "linear"})),
        (
            "rope_scaling",
            "rope_scaling.factor",
            json!({"type": "linear", "factor": 0}),
        ),
        (
            "rope_parameters",
            "rope_parameters.low_freq_factor",
            json!({"rope_type": "llama3", "factor": 8.}),
        ),
        (
            "rope_scaling",
            "rope_scaling.high_freq_factor",
            json!({"type": "llama3", "factor": 8., "low_freq_factor": 4., "high_freq_factor": 1.}),
        ),
        (
            "quantization_config",
            "quantization_config",
            json!({"quant_method": "gptq"}),
        ),
    ];
    for (key, named, value) in faults {
        refused(read(|c| c[*key] = value.clone()), &["config.json", named]);
    }
    for key in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    ] {
        let said = format!("config.json: missing field `{key}`");
        refused(read(|c| remove(c, key)), &[&said]);
    }
    refused(
        read(|c| {
            remove(c, "model_type");
            remove(c, "architectures");
        }),
        &["config.json", "none"],
    );
}

/// A value of the wrong type: the file is named, and what was found.
#[test]
fn wrong_types_are_refused() {
    for (key, value) in [
        ("vocab_size", json!("61")),
        ("hidden_size", json!(32.5)),
        ("num_hidden_layers", json!(null)),
        ("rope_theta", json!("high")),
        ("rope_scaling", json!([1, 2])),
        ("tie_word_embeddings", json!("yes")),
        ("mlp_bias", json!(3)),
    ] {
        refused(read(|c| c[key] = value.clone()), &["config.json", key]);
    }
}

#[test]
fn a_loaded_model_is_the_one_that_was_saved() {
    let (dir, model) = folder();
    let mut seen = Vec::new();
    let loaded = load(dir.path(), &F32, &mut |i, n| seen.push((i, n))).unwrap();
    assert_eq!(loaded.config, model.config);
    assert!(same_bits(&logits(&loaded), &logits(&model)));
    let n = model.named_parameters().len();
    assert_eq!(seen, (1..=n).map(|i| (i, n)).collect::<Vec<_>>());
    // Frozen, as a base model is.
    assert!(loaded.named_parameters().iter().all(|(_, t)| !t.requires_grad()));
    assert_eq!(loaded.bytes(), model.bytes());
}

#[test]
fn sixteen_bits_on_disk_are_read_in_the_kind_asked_for() {
    let (dir, model) = folder();
    for kind in [Kind::Half, Kind::BFloat16] {
        let weights = model.named_parameters();
        let weights: Vec<_> =
            weights.iter().map(|(n, t)| (n.clone(), t.to_kind(kind))).collect();
        let path = dir.path().join("model.safetensors");
        save_safetensors(&path, &weights, &[]).unwrap();
        let loaded = open(dir.path(), &F32).unwrap();
        assert_eq!(loaded.kind(), Kind::Float);
        for ((_, ours), (name, disk)) in
            loaded.named_parameters().iter().zip(&weights)
        {
            assert!(same_bits(ours, &disk.to_kind(Kind::Float)), "{name}");
        }
        let options = LoadOptions { kind: Kind::BFloat16, ..F32 };
        assert_eq!(
            logits(&open(dir.path(), &options).unwrap()).kind(),
            Kind::BFloat16
        );
    }
}

#[test]
fn in_4_bits_only_the_blocks_linears_are() {
    let (dir, model) = folder();
    let mut dense = open(dir.path(), &F32).unwrap();
    for double_quant in [false, true] {
        let options = LoadOptions { quantize: true, double_quant, ..F32 };
        let mut loaded = open(dir.path(), &options).unwrap();
        assert!(loaded.bytes() < model.bytes());
        let pairs = loaded.linears_mut().into_iter().zip(dense.linears_mut());
        for ((name, q), (_, d)) in pairs {
            let (Weight::Nf4(q), Weight::Dense(d)) = (&q.weight, &d.weight) else {
                panic!("{name} is not in 4 bits");
            };
            assert!(gap(&q.dequantize(Kind::Float), d) < 0.2, "{name}");
        }
        let rest: Vec<_> =
            loaded.named_parameters().into_iter().map(|(n, _)| n).collect();
        assert!(rest.iter().any(|n| n == "lm_head.weight"));
        assert!(rest.iter().all(|n| !n.contains("_proj")), "{rest:?}");
        // Coarser, and yet the same model.
        let far = gap(&logits(&loaded), &logits(&dense));
        assert!((1e-4..0.5).contains(&far), "{far}");
    }
}

#[test]
fn what_does_not_fit_config_json_is_named() {
    let (dir, model) = folder();
    let path = dir.path().join("model.safetensors");
    let broken = |change: &dyn Fn(&mut Vec<(String, Tensor)>)| {
        let mut weights = model.named_parameters();
        change(&mut weights);
        save_safetensors(&path, &weights, &[]).unwrap();
        open(dir.path(), &F32)
    };
    let q = "model.layers.1.self_attn.q_proj.weight";
    let at = |w: &[(String, Tensor)], name: &str| {
        w.iter().position(|(n, _)| n == name).expect("there")
    };
    let zeros = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));

    let missing = broken(&|w| drop(w.remove(at(w, q))));
    refused(missing, &[q, "missing"]);
    let extra =
        broken(&|w| w.push(("model.layers.2.x".into(), zeros(&[1], Kind::Float))));
    refused(extra, &["model.layers.2.x", "model.safetensors", "config.json"]);
    let shape = broken(&|w| {
        let i = at(w, q);
        w[i].1 = zeros(&[32, 31], Kind::Float);
    });
    refused(shape, &[q, "[32, 31]", "[32, 32]", "model.safetensors"]);
    for kind in [Kind::Int64, Kind::Double, Kind::Uint8] {
        let dtype = broken(&|w| {
            let i = at(w, q);
            w[i].1 = zeros(&[32, 32], kind);
        });
        refused(dtype, &[q, &format!("{kind:?}"), "F32, F16 or BF16"]);
    }
    // Biases that config.json does not speak of.
    let bias = "model.layers.0.self_attn.q_proj.bias";
    let extra = broken(&|w| w.push((bias.into(), zeros(&[32], Kind::Float))));
    refused(extra, &[bias]);
    // What old exports carry beside the weights does no harm.
    let inv = "model.layers.0.self_attn.rotary_emb.inv_freq";
    broken(&|w| w.push((inv.into(), zeros(&[4], Kind::Float)))).unwrap();
    // A weight that is not finite cannot be quantized: said by name.
    broken(&|w| {
        let i = at(w, q);
        let bad = w[i].1.copy();
        let _ = bad.get(3).get(5).fill_(f64::NAN);
        w[i].1 = bad;
    })
    .unwrap();
    let quantized = open(dir.path(), &LoadOptions { quantize: true, ..F32 });
    refused(quantized, &[q, "[3, 5]", "NaN"]);
}

#[test]
fn a_tied_head_may_be_stored_twice() {
    let (dir, model) = folder();
    let mut json = config_json();
    json["tie_word_embeddings"] = json!(true);
    std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    let names = |model: &Decoder| -> Vec<String> {
        model.named_parameters().into_iter().map(|(name, _)| name).collect()
    };
    // Another head than the embedding is used, as transformers 5 does.
    let loaded = open(dir.path(), &F32).unwrap();
    assert!(names(&loaded).contains(&"lm_head.weight".to_string()));
    assert!(gap(&logits(&loaded), &logits(&model)) < 1e-6, "the head is used");
    // The same one is the embedding.
    let file = dir.path().join("model.safetensors");
    let mut all = read_safetensors(&file).unwrap();
    let embedding = all["model.embed_tokens.weight"].shallow_clone();
    all.insert("lm_head.weight".into(), embedding);
    let all: Vec<_> = all.into_iter().collect();
    save_safetensors(&file, &all, &[]).unwrap();
    let loaded = open(dir.path(), &F32).unwrap();
    assert!(!names(&loaded).contains(&"lm_head.weight".to_string()));
    assert!(gap(&logits(&loaded), &logits(&model)) > 1e-3, "the embedding is used");
}

#[test]
fn a_folder_without_config_is_said() {
    let (dir, _) = folder();
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    refused(open(dir.path(), &F32), &["config.json"]);
    let nowhere = dir.path().join("nowhere");
    refused(open(&nowhere, &F32), &["nowhere"]);
}

#[test]
fn seeds_make_models() {
    let numbers = |seed| logits(&common::frozen(seed));
    assert!(same_bits(&numbers(1), &numbers(1)));
    assert!(!same_bits(&numbers(1), &numbers(2)));
    let model = Decoder::random(config(), 1).unwrap();
    for (name, t) in model.named_parameters() {
        assert!(t.requires_grad() && t.is_leaf(), "{name}");
        let (mean, std) = (t.mean(Kind::Double), t.std(false));
        if t.dim() == 1 {
            assert!(bool::try_from(t.eq(1.).all()).unwrap(), "{name}: a norm");
        } else {
            assert!(mean.double_value(&[]).abs() < 3e-3, "{name}");
            assert!((std.double_value(&[]) - 0.02).abs() < 2e-3, "{name}");
        }
    }
}

/// A dense model trains: each of its parameters gets a gradient.
#[test]
fn every_parameter_of_a_random_model_gets_a_gradient() {
    let model = Decoder::random(config(), 1).unwrap();
    let hidden = model.hidden(&ids(2, 9), Mode::Eval, None).unwrap();
    model.logits(&hidden).unwrap().square().mean(Kind::Float).backward();
    for (name, t) in model.named_parameters() {
        assert!(t.grad().defined(), "{name}");
        assert!(t.grad().abs().max().double_value(&[]) > 0., "{name}");
    }
}
