//! Adapters: attached by name, saved as PEFT saves them, and what does not fit refused.
//! (`parity_lora` has PEFT's own folders.)
use crate::common::{adapted, config, frozen, ids, lora, refused};
use crate::golden::same_bits;
use downhill::checkpoint::{read_safetensors, save_safetensors};
use downhill::lora::{
    Init, LoraConfig, Modules, Named, attach, load_adapter, read_config,
    save_adapter,
};
use downhill::models::Decoder;
use downhill::nn::{Linear, Mode};
use serde_json::{Value, json};
use std::path::Path;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

fn put(model: &mut Decoder, config: &LoraConfig) -> downhill::Result<Named> {
    attach(model.linears_mut(), config, 1, Device::Cpu)
}

fn logits(model: &Decoder) -> Tensor {
    let hidden = model.hidden(&ids(2, 9), Mode::Eval, None).unwrap();
    model.logits(&hidden).unwrap().detach()
}

fn names(named: &Named) -> Vec<&str> {
    named.iter().map(|(n, _)| n.as_str()).collect()
}

#[test]
fn patterns_choose_linears() {
    let count = |targets: &[&str]| {
        let mut model = frozen(1);
        let named = put(&mut model, &lora(targets, 0.)).unwrap();
        let with =
            model.linears_mut().iter().filter(|(_, l)| l.lora.is_some()).count();
        assert_eq!(named.len(), 2 * with);
        with
    };
    assert_eq!(count(&["q_proj"]), 2);
    assert_eq!(count(&["q_proj", "v_proj"]), 4);
    assert_eq!(count(&["all-linear"]), 14, "the head is none of them");
    assert_eq!(count(&["mlp.down_proj"]), 2);
    assert_eq!(count(&["model.layers.1.self_attn.o_proj"]), 1);
    assert_eq!(count(&["all-linear", "q_proj"]), 14);
    let mut model = frozen(1);
    let named = put(&mut model, &lora(&["v_proj"], 0.)).unwrap();
    assert_eq!(
        names(&named),
        [
            "model.layers.0.self_attn.v_proj.lora_A.weight",
            "model.layers.0.self_attn.v_proj.lora_B.weight",
            "model.layers.1.self_attn.v_proj.lora_A.weight",
            "model.layers.1.self_attn.v_proj.lora_B.weight",
        ]
    );
}

#[test]
fn a_fresh_adapter_changes_nothing_and_trains() {
    let mut model = frozen(1);
    let before = logits(&model);
    let named = put(&mut model, &lora(&["all-linear"], 0.1)).unwrap();
    assert!(same_bits(&logits(&model), &before), "B is zero");
    let hidden = model.hidden(&ids(2, 9), Mode::Eval, None).unwrap();
    model.logits(&hidden).unwrap().square().sum(Kind::Float).backward();
    for (name, t) in &named {
        assert!(t.requires_grad() && t.is_leaf() && t.kind() == Kind::Float);
        let zero = t.grad().abs().max().double_value(&[]) == 0.;
        assert_eq!(zero, name.ends_with("lora_A.weight"), "{name}: B trains first");
    }
    assert!(model.named_parameters().iter().all(|(_, t)| !t.grad().defined()));
}

/// PEFT: `kaiming_uniform_(A, a=√5)`, that is U(-1/√in, 1/√in); B zero.
#[test]
fn initial_values_are_pefts() {
    let mut model = frozen(1);
    let named = put(&mut model, &lora(&["q_proj", "down_proj"], 0.)).unwrap();
    for (name, t) in &named {
        let largest = t.abs().max().double_value(&[]);
        if name.ends_with("lora_B.weight") {
            assert_eq!(largest, 0., "{name}");
            continue;
        }
        let bound = 1. / (t.size()[1] as f64).sqrt();
        assert!(largest <= bound && largest > 0.9 * bound, "{name}: {largest}");
        let std = t.std(false).double_value(&[]);
        assert!((std / (bound / 3f64.sqrt()) - 1.).abs() < 0.15, "{name}: {std}");
    }
    assert!(!same_bits(&named[0].1, &named[4].1), "layers start differently");
    // The seed decides, and nothing else.
    let again = put(&mut frozen(9), &lora(&["q_proj", "down_proj"], 0.)).unwrap();
    assert!(same_bits(&named[0].1, &again[0].1));
    let mut other = frozen(1);
    let other =
        attach(other.linears_mut(), &lora(&["q_proj"], 0.), 2, Device::Cpu).unwrap();
    assert!(!same_bits(&named[0].1, &other[0].1));
}

fn saved(config: &LoraConfig) -> (TempDir, Decoder, Named) {
    let dir = tempfile::tempdir().unwrap();
    let (model, named) = adapted(3, config);
    save_adapter(dir.path(), config, "base/model", &named).unwrap();
    (dir, model, named)
}

fn load(dir: &Path, model: &mut Decoder) -> downhill::Result<(LoraConfig, Named)> {
    load_adapter(dir, model.linears_mut(), Device::Cpu)
}

#[test]
fn saved_and_loaded_is_the_same_to_the_bit() {
    for targets in [&["q_proj", "v_proj"][..], &["all-linear"]] {
        let config = LoraConfig { alpha: 12.5, ..lora(targets, 0.25) };
        let (dir, model, named) = saved(&config);
        let mut fresh = frozen(3);
        let (found, loaded) = load(dir.path(), &mut fresh).unwrap();
        assert_eq!((found.r, found.alpha, found.dropout), (4, 12.5, 0.25));
        assert!(same_bits(&logits(&fresh), &logits(&model)));
        assert_eq!(names(&loaded), names(&named));
        for ((name, a), (_, b)) in named.iter().zip(&loaded) {
            assert!(same_bits(a, b) && b.requires_grad(), "{name}");
        }
        // The very file again.
        let again = tempfile::tempdir().unwrap();
        save_adapter(again.path(), &found, "base/model", &loaded).unwrap();
        for file in ["adapter_model.safetensors", "adapter_config.json"] {
            let read = |d: &TempDir| std::fs::read(d.path().join(file)).unwrap();
            assert!(read(&dir) == read(&again), "{file}");
        }
    }
}

#[test]
fn the_folder_is_pefts() {
    let (dir, ..) = saved(&lora(&["q_proj"], 0.05));
    let mut files: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["adapter_config.json", "adapter_model.safetensors"]);

    let bytes = std::fs::read(dir.path().join("adapter_model.safetensors")).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    let mut keys: Vec<_> = header.as_object().unwrap().keys().cloned().collect();
    keys.sort();
    let key = |layer, half| {
        format!(
            "base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{half}.weight"
        )
    };
    let expected =
        ["__metadata__".into(), key(0, "A"), key(0, "B"), key(1, "A"), key(1, "B")];
    assert_eq!(keys, expected);
    assert_eq!(header["__metadata__"], json!({"format": "pt"}));
    assert_eq!(header[key(0, "A")]["shape"], json!([4, 32]));
    assert_eq!(header[key(0, "B")]["shape"], json!([32, 4]));
    assert_eq!(header[key(0, "B")]["dtype"], "F32");

    let text = std::fs::read(dir.path().join("adapter_config.json")).unwrap();
    let json: Value = serde_json::from_slice(&text).unwrap();
    for (key, value) in [
        ("peft_type", json!("LORA")),
        ("task_type", json!("CAUSAL_LM")),
        ("base_model_name_or_path", json!("base/model")),
        ("r", json!(4)),
        ("lora_alpha", json!(8)),
        ("lora_dropout", json!(0.05)),
        ("target_modules", json!(["q_proj"])),
        ("bias", json!("none")),
        ("inference_mode", json!(true)),
        ("use_dora", json!(false)),
        ("use_rslora", json!(false)),
        ("fan_in_fan_out", json!(false)),
        ("modules_to_save", Value::Null),
        ("init_lora_weights", json!(true)),
    ] {
        assert_eq!(json[key], value, "{key}");
    }
}

#[test]
fn a_setting_out_of_range_names_its_flag() {
    let good = lora(&["q_proj"], 0.);
    let with = |change: &dyn Fn(&mut LoraConfig)| {
        let mut config = good.clone();
        change(&mut config);
        put(&mut frozen(1), &config)
    };
    refused(with(&|c| c.r = 0), &["lora-r", "0"]);
    refused(with(&|c| c.r = -3), &["lora-r", "-3"]);
    refused(with(&|c| c.dropout = 1.), &["lora-dropout", "1"]);
    refused(with(&|c| c.dropout = -0.1), &["lora-dropout", "-0.1"]);
    refused(with(&|c| c.dropout = f64::NAN), &["lora-dropout", "NaN"]);
    refused(with(&|c| c.alpha = f64::INFINITY), &["lora-alpha", "inf"]);
    refused(
        with(&|c| c.target_modules = Modules::parse(&[""; 0])),
        &["target-modules", "empty"],
    );
}

#[test]
fn a_pattern_that_matches_nothing_is_an_error() {
    let with = |targets: &[&str]| put(&mut frozen(1), &lora(targets, 0.));
    let parts = ["target-modules", "`c_attn`", "down_proj", "q_proj", "all-linear"];
    refused(with(&["c_attn"]), &parts);
    refused(with(&["q_proj", "c_attn"]), &parts);
    // The end of a name is not a name.
    refused(with(&["proj"]), &["`proj`"]);
    refused(with(&["lm_head"]), &["`lm_head`"]);
    refused(with(&[""]), &["target-modules"]);
}

/// The saved folder after a change to its tensors.
fn with_tensors(change: impl FnOnce(&mut Vec<(String, Tensor)>)) -> String {
    let (dir, ..) = saved(&lora(&["q_proj"], 0.));
    let path = dir.path().join("adapter_model.safetensors");
    let mut all: Vec<_> = read_safetensors(&path).unwrap().into_iter().collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    change(&mut all);
    save_safetensors(&path, &all, &[]).unwrap();
    refused(load(dir.path(), &mut frozen(3)), &["adapter_model.safetensors"])
}

const FIRST: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";

#[test]
fn tensors_that_do_not_fit_are_named() {
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let text = with_tensors(|t| drop(t.remove(0)));
    assert!(text.contains(FIRST) && text.contains("missing"), "{text}");
    // A whole layer that config.json promises.
    let text = with_tensors(|t| drop(t.drain(..2)));
    assert!(text.contains(FIRST) && text.contains("missing"), "{text}");
    let text = with_tensors(|t| t[0].1 = zeros(&[5, 32]));
    let said = [FIRST, "[5, 32]", "[4, 32]", "r = 4"];
    assert!(said.iter().all(|s| text.contains(s)), "{text}");
    let text = with_tensors(|t| t[0].1 = zeros(&[4, 33]));
    assert!(text.contains(FIRST) && text.contains("[4, 33]"), "{text}");
    let text = with_tensors(|t| t[0].1 = t[0].1.to_kind(Kind::Int64));
    assert!(text.contains(FIRST) && text.contains("Int64"), "{text}");
    let strange = "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight";
    let text = with_tensors(|t| t.push((strange.into(), zeros(&[4, 32]))));
    assert!(text.contains(strange) && text.contains("another base"), "{text}");
    let text = with_tensors(|t| t.push(("x".into(), zeros(&[1]))));
    assert!(text.contains("`x`"), "{text}");
}

#[test]
fn settings_that_do_not_fit_are_named() {
    let (dir, ..) = saved(&lora(&["q_proj"], 0.));
    let path = dir.path().join("adapter_config.json");
    let good: Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let with = |key: &str, value: Value| {
        let mut json = good.clone();
        json[key] = value;
        std::fs::write(&path, json.to_string()).unwrap();
        let text = refused(load(dir.path(), &mut frozen(3)), &[]);
        // By its key, or by our flag of that name.
        assert!(text.replace('-', "_").contains(key), "no {key} in: {text}");
        assert!(text.contains("adapter"), "{text}");
    };
    for (key, value) in [
        // Without its tensors.
        ("use_dora", json!("yes")),
        ("use_rslora", json!(1)),
        ("lora_bias", json!("true")),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("fan_in_fan_out", json!(true)),
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!({"q_proj": 2.5})),
        ("rank_pattern", json!({"q_proj": "2"})),
        ("rank_pattern", json!(["q_proj"])),
        ("rank_pattern", json!({"q_(proj": 2})),
        ("alpha_pattern", json!({"q_proj": null})),
        ("alpha_pattern", json!({"[": 1})),
        ("modules_to_save", json!([7])),
        ("modules_to_save", json!({"lm_head": true})),
        ("exclude_modules", json!(7)),
        ("exclude_modules", json!("(")),
        ("target_modules", json!("*q_proj")),
        ("target_modules", json!([])),
        ("target_modules", json!(["q_proj", 1])),
        ("layers_to_transform", json!("0")),
        ("layers_to_transform", json!([0.5])),
        ("layers_pattern", json!(["layers"])),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
        ("layer_replication", json!([[0, 2]])),
        ("trainable_token_indices", json!([1])),
        ("use_qalora", json!(true)),
        ("alora_invocation_tokens", json!([1, 2])),
        ("kasa_config", json!({"beta": 0.1})),
        ("peft_type", json!("IA3")),
        ("peft_type", Value::Null),
        ("r", json!(0)),
        ("r", json!(2.5)),
        ("r", json!("four")),
        ("lora_alpha", json!("big")),
        ("lora_dropout", json!("some")),
        ("target_modules", Value::Null),
        ("target_modules", json!(7)),
    ] {
        with(key, value);
    }
    // Another rank than the tensors have.
    let mut json = good.clone();
    json["r"] = json!(8);
    std::fs::write(&path, json.to_string()).unwrap();
    refused(load(dir.path(), &mut frozen(3)), &["[4, 32]", "[8, 32]", "r = 8"]);

    for text in ["", "{", "[]", "null", "\"LORA\"", "{\"r\": 4,}"] {
        std::fs::write(&path, text).unwrap();
        refused(read_config(dir.path()), &["adapter_config.json", "JSON"]);
    }
    std::fs::remove_file(&path).unwrap();
    refused(read_config(dir.path()), &["adapter_config.json"]);
    std::fs::write(&path, good.to_string()).unwrap();
    std::fs::remove_file(dir.path().join("adapter_model.safetensors")).unwrap();
    refused(load(dir.path(), &mut frozen(3)), &["adapter_model.safetensors"]);
}

#[test]
fn an_empty_adapter_is_refused() {
    let (dir, ..) = saved(&lora(&["q_proj"], 0.));
    let path = dir.path().join("adapter_model.safetensors");
    save_safetensors(&path, &[], &[]).unwrap();
    let config = dir.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    json["target_modules"] = json!("nothing");
    std::fs::write(&config, json.to_string()).unwrap();
    refused(load(dir.path(), &mut frozen(3)), &["no adapter tensor"]);
}

#[test]
fn a_smaller_model_refuses_a_larger_ones_adapter() {
    let (dir, ..) = saved(&lora(&["q_proj"], 0.));
    let small = downhill::models::DecoderConfig { num_hidden_layers: 1, ..config() };
    let mut small = Decoder::random(small, 1).unwrap();
    refused(load(dir.path(), &mut small), &["model.layers.1", "another base"]);
}

/// PEFT's own answers, on the names of a Llama and of a DeepSeek-V2 with experts.
#[test]
fn settings_mean_the_modules_that_they_mean_in_peft() {
    let golden = crate::golden::json("lora_rules.json");
    let names = golden["names"].as_array().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let text = case["config"].to_string();
        std::fs::write(dir.path().join("adapter_config.json"), &text).unwrap();
        let config = read_config(dir.path()).expect(&text);
        for (name, answer) in names.iter().zip(case["answers"].as_array().unwrap()) {
            let name = name.as_str().unwrap();
            let ours = config.adapter_for(name).expect(&text);
            let theirs = answer.as_array().map(|a| {
                let r = a[0].as_i64().unwrap();
                (r, a[1].as_f64().unwrap() / r as f64)
            });
            assert_eq!(ours, theirs, "{name} under {text}");
        }
    }
}

/// A linear [3, 2] for each name, as a mixture of experts lists them.
fn linears(names: &[String]) -> Vec<(String, Linear)> {
    let weight = || Tensor::ones([3, 2], (Kind::Float, Device::Cpu));
    names.iter().map(|n| (n.clone(), Linear::dense(weight(), None))).collect()
}

fn borrowed(linears: &mut [(String, Linear)]) -> Vec<(String, &mut Linear)> {
    linears.iter_mut().map(|(n, l)| (n.clone(), l)).collect()
}

#[test]
fn experts_are_adapted_by_name() {
    let expert =
        |e: usize, part: &str| format!("model.layers.1.mlp.experts.{e}.{part}");
    let names: Vec<String> = (0..3)
        .flat_map(|e| ["gate_proj", "down_proj"].map(|part| expert(e, part)))
        .chain(["model.layers.1.mlp.shared_experts.down_proj".into()])
        .collect();
    let mut model = linears(&names);
    let config = LoraConfig {
        rank_pattern: vec![(r"experts\.\d+\.down_proj".into(), 1)],
        ..lora(&["down_proj"], 0.)
    };
    let named = attach(borrowed(&mut model), &config, 1, Device::Cpu).unwrap();
    assert_eq!(named.len(), 2 * 4);
    let ranks: Vec<i64> =
        named.iter().step_by(2).map(|(_, a)| a.size()[0]).collect();
    assert_eq!(ranks, [1, 1, 1, 4], "the shared one keeps r");
    let dir = tempfile::tempdir().unwrap();
    save_adapter(dir.path(), &config, "base", &named).unwrap();
    let file = dir.path().join("adapter_model.safetensors");
    let key = format!("base_model.model.{}.lora_B.weight", expert(2, "down_proj"));
    assert!(read_safetensors(&file).unwrap().contains_key(&key));
    let mut fresh = linears(&names);
    let (found, loaded) =
        load_adapter(dir.path(), borrowed(&mut fresh), Device::Cpu)
            .expect("its own folder");
    assert_eq!((found, loaded.len()), (config, 8));
    // An expert fewer is another model.
    let mut fewer = linears(&names[2..]);
    let text = refused(
        load_adapter(dir.path(), borrowed(&mut fewer), Device::Cpu),
        &["another base"],
    );
    assert!(text.contains("experts.0"), "{text}");
}

#[test]
fn patterns_that_do_nothing_are_errors() {
    let with = |change: &dyn Fn(&mut LoraConfig)| {
        let mut config = lora(&["q_proj", "v_proj"], 0.);
        change(&mut config);
        put(&mut frozen(1), &config)
    };
    let rank = |text: &str, r| vec![(text.to_string(), r)];
    let parts = ["rank-pattern", "`k_proj`", "self_attn.q_proj"];
    refused(with(&|c| c.rank_pattern = rank("k_proj", 2)), &parts);
    refused(with(&|c| c.rank_pattern = rank("q_proj", 0)), &["rank-pattern", "0"]);
    refused(with(&|c| c.rank_pattern = rank("q_(", 1)), &["rank-pattern", "`q_(`"]);
    refused(
        with(&|c| c.rank_pattern = rank("q)(q", 1)),
        &["rank-pattern", "`q)(q`"],
    );
    refused(
        with(&|c| c.alpha_pattern = vec![("layers.7".into(), 1.)]),
        &["alpha-pattern", "`layers.7`"],
    );
    let all = Modules::parse(&[".*_proj"]);
    refused(with(&|c| c.exclude_modules = all.clone()), &["nothing is left"]);
    refused(
        with(&|c| c.target_modules = Modules::parse(&["q_(proj"])),
        &["q_(proj"],
    );
    refused(
        with(&|c| c.target_modules = Modules::parse(&["q_proj", ".*v_proj"])),
        &["`q_proj,.*v_proj`", "matches no linear"],
    );
    refused(
        with(&|c| {
            c.target_modules = Modules::parse(&["all-linear"]);
            c.layers_to_transform = Some(vec![0]);
        }),
        &["layers-to-transform", "list of names"],
    );
    refused(with(&|c| c.layers_to_transform = Some(vec![7])), &["nothing is left"]);
    refused(
        with(&|c| (c.lora_bias, c.use_dora) = (true, true)),
        &["lora-bias", "use-dora"],
    );
    refused(
        with(&|c| (c.lora_bias, c.init) = (true, Init::Gaussian)),
        &["lora-bias", "init-lora-weights"],
    );
}

fn whole(model: &mut Decoder, config: &LoraConfig) -> downhill::Result<Named> {
    let parameters = model.named_parameters();
    attach((model.linears_mut(), parameters), config, 1, Device::Cpu)
}

#[test]
fn modules_to_save_are_trained_whole_and_come_back() {
    let config = LoraConfig {
        modules_to_save: vec!["lm_head".into(), "model.norm".into()],
        ..lora(&["v_proj"], 0.)
    };
    let mut model = frozen(3);
    let named = whole(&mut model, &config).unwrap();
    assert_eq!(names(&named)[4..], ["model.norm.weight", "lm_head.weight"]);
    let tokens = ids(2, 9);
    let loss = |model: &Decoder| {
        let hidden = model.hidden(&tokens, Mode::Eval, None).unwrap();
        model.loss(&hidden.flatten(0, 1), &tokens.flatten(0, 1)).unwrap()
    };
    loss(&model).backward();
    for (name, t) in &named {
        assert!(t.requires_grad() && t.grad().defined(), "{name}");
    }
    let trained: Vec<_> = model
        .named_parameters()
        .into_iter()
        .filter(|(_, t)| t.requires_grad())
        .collect();
    assert_eq!(trained.len(), 2, "and nothing else");
    tch::no_grad(|| {
        for (_, t) in &named {
            let _ = t.shallow_clone().f_sub_(&(t.grad() * 0.5)).unwrap();
        }
    });
    let dir = tempfile::tempdir().unwrap();
    save_adapter(dir.path(), &config, "base", &named).unwrap();
    let mut fresh = frozen(3);
    let parameters = fresh.named_parameters();
    let parts = (fresh.linears_mut(), parameters);
    let (found, loaded) = load_adapter(dir.path(), parts, Device::Cpu).unwrap();
    assert_eq!(found, config);
    assert_eq!(names(&loaded), names(&named));
    assert!(same_bits(&logits(&fresh), &logits(&model)));

    // Without the model's parameters there is no place for them.
    refused(
        load(dir.path(), &mut frozen(3)),
        &["lm_head.weight", "modules_to_save"],
    );
    let file = dir.path().join("adapter_model.safetensors");
    let mut all: Vec<_> = read_safetensors(&file).unwrap().into_iter().collect();
    let head = "base_model.model.lm_head.weight";
    all.retain(|(name, _)| name != head);
    save_safetensors(&file, &all, &[]).unwrap();
    let again = |t: Option<Tensor>| {
        let mut all: Vec<_> =
            all.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
        all.extend(t.map(|t| (head.to_string(), t)));
        save_safetensors(&file, &all, &[]).unwrap();
        let mut fresh = frozen(3);
        let parameters = fresh.named_parameters();
        load_adapter(dir.path(), (fresh.linears_mut(), parameters), Device::Cpu)
    };
    refused(again(None), &[head, "missing"]);
    let short = Tensor::zeros([60, 32], (Kind::Float, Device::Cpu));
    let text = refused(again(Some(short)), &[head, "[60, 32]", "[61, 32]"]);
    assert!(!text.contains("r ="), "{text}");
    let ints = Tensor::zeros([61, 32], (Kind::Int64, Device::Cpu));
    refused(again(Some(ints)), &[head, "Int64"]);
}

#[test]
fn modules_to_save_must_be_there() {
    let with = |module: &str| {
        let modules_to_save = vec![module.to_string()];
        let config = LoraConfig { modules_to_save, ..lora(&["q_proj"], 0.) };
        whole(&mut frozen(1), &config)
    };
    refused(
        with("score"),
        &["modules-to-save", "`score`", "lm_head", "embed_tokens"],
    );
    refused(with(""), &["modules-to-save", "empty"]);
    refused(with("q_proj"), &["target-modules", "nothing is left"]);
    let config = LoraConfig {
        modules_to_save: vec!["lm_head".into()],
        ..lora(&["q_proj"], 0.)
    };
    refused(put(&mut frozen(1), &config), &["modules-to-save", "`lm_head`"]);
    let tied = downhill::models::DecoderConfig {
        tie_word_embeddings: true,
        ..crate::common::config()
    };
    let mut tied = Decoder::random(tied, 1).unwrap();
    let config =
        LoraConfig { modules_to_save: vec!["embed_tokens".into()], ..config };
    refused(whole(&mut tied, &config), &["tie_word_embeddings"]);
}
