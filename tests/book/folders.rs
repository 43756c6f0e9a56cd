//! Folders as they come in from elsewhere, and what others read of ours: heads beside
//! tied embeddings, keys of adapter files, embeddings in them, hostile descriptions.
use crate::common::{
    adapted, config_json, frozen, ids, lora, refused, write_checkpoint,
};
use crate::golden::same_bits;
use downhill::checkpoint::{read_safetensors, save_safetensors};
use downhill::lora::{
    self, LoraConfig, Modules, Named, attach, fused, load_adapter, load_for_use,
    save_adapter, unties,
};
use downhill::models::{
    self, Decoder, LoadOptions, QuantizeOptions, load, load_cached, quantize, survey,
};
use downhill::nn::Mode;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor, no_grad};
use tempfile::TempDir;

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
const EMBED: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

fn options(quantize: bool) -> LoadOptions {
    LoadOptions {
        quantize,
        blocksize: 64,
        double_quant: true,
        kind: Kind::Float,
        device: Device::Cpu,
    }
}

fn read(dir: &Path) -> downhill::Result<Decoder> {
    load(dir, &options(false), &mut |_, _| ())
}

fn logits(model: &Decoder) -> Tensor {
    let hidden = model.hidden(&ids(2, 9), Mode::Eval, None).unwrap();
    model.logits(&hidden).unwrap().detach()
}

fn close(a: &Tensor, b: &Tensor) -> bool {
    a.size() == b.size() && (a - b).abs().max().double_value(&[]) < 1e-5
}

fn set(path: PathBuf, key: &str, value: Value) {
    let mut all: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    all[key] = value;
    fs::write(path, all.to_string()).unwrap();
}

/// The tensors of a file, changed.
fn change(path: &Path, change: &dyn Fn(&mut Named)) {
    let mut all: Named = read_safetensors(path).unwrap().into_iter().collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    change(&mut all);
    save_safetensors(path, &all, &[("format", "pt")]).unwrap();
}

fn pipe(path: &Path) {
    let _ = fs::remove_file(path);
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.expect("mkfifo").success());
}

/// A checkpoint that says it is tied, with these tensors of its ends.
fn tied(ends: &dyn Fn(&mut Named)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path(), 3);
    set(dir.path().join("config.json"), "tie_word_embeddings", json!(true));
    change(&dir.path().join("model.safetensors"), ends);
    dir
}

fn without(all: &mut Named, name: &str) -> Tensor {
    let at = all.iter().position(|(n, _)| n == name).expect("there");
    all.remove(at).1
}

/// transformers 5.17's `tie_weights`: different, and both are used; equal, and they are
/// one; either alone is both.
#[test]
fn a_stored_head_beside_tied_embeddings() {
    let differs = tied(&|_| ());
    let untied = tempfile::tempdir().unwrap();
    let reference = write_checkpoint(untied.path(), 3);
    let model = read(differs.path()).unwrap();
    assert!(same_bits(&logits(&model), &logits(&reference)));
    assert!(!model.config.tie_word_embeddings);
    let note = "lm_head.weight is stored";
    assert!(model.notes.iter().any(|n| n.contains(note)), "{:?}", model.notes);
    let found = survey(differs.path()).unwrap();
    assert!(found.notes[0].contains(note));
    assert_eq!(found.parameters, survey(untied.path()).unwrap().parameters);

    // What is written of it says so to everybody, and is the same model.
    let out = tempfile::tempdir().unwrap();
    let to = out.path().join("q");
    let how = QuantizeOptions {
        blocksize: 64,
        double_quant: true,
        max_shard_size: 1 << 30,
        device: Device::Cpu,
    };
    quantize(differs.path(), &to, &how, &mut |_, _| ()).unwrap();
    let written: Value =
        serde_json::from_slice(&fs::read(to.join("config.json")).unwrap()).unwrap();
    assert_eq!(written["tie_word_embeddings"], json!(false));
    let in_4_bits = |dir: &Path| load(dir, &options(true), &mut |_, _| ()).unwrap();
    let expected = logits(&in_4_bits(differs.path()));
    assert!(same_bits(&logits(&in_4_bits(&to)), &expected));
    let kept = out.path().join("kept");
    for start in ["makes it", "reads it"] {
        let say = &mut |_: &str| ();
        let (from, options) = (differs.path(), options(true));
        let model =
            load_cached(from, Some(&kept), &options, say, &mut |_, _| ()).unwrap();
        assert!(same_bits(&logits(&model), &expected), "{start}");
    }

    let equal = tied(&|all| {
        let embed = all.iter().find(|(n, _)| n == EMBED).unwrap().1.copy();
        drop(without(all, HEAD));
        all.push((HEAD.into(), embed));
    });
    let alone = tied(&|all| drop(without(all, HEAD)));
    let other = tied(&|all| {
        let embed = without(all, EMBED);
        drop(without(all, HEAD));
        all.push((HEAD.into(), embed));
    });
    let expected = logits(&read(alone.path()).unwrap());
    for dir in [&equal, &other] {
        let model = read(dir.path()).unwrap();
        assert!(model.config.tie_word_embeddings && model.notes.is_empty());
        assert!(same_bits(&logits(&model), &expected));
        assert!(survey(dir.path()).unwrap().notes.is_empty());
    }
    // Not tied, one of them is missing.
    set(other.path().join("config.json"), "tie_word_embeddings", json!(false));
    refused(read(other.path()), &[EMBED, "missing"]);
}

fn saved(config: &LoraConfig) -> (TempDir, Tensor) {
    let (model, named) = adapted(1, config);
    let dir = tempfile::tempdir().unwrap();
    save_adapter(dir.path(), config, "base", &named).unwrap();
    (dir, logits(&model))
}

fn with(dir: &Path, fresh: &mut Decoder) -> downhill::Result<()> {
    let parameters = fresh.named_parameters();
    load_for_use(dir, (fresh.linears_mut(), parameters), Device::Cpu)
}

#[test]
fn keys_of_every_origin_are_one_adapter() {
    let dora = LoraConfig { use_dora: true, ..lora(&["q_proj", "up_proj"], 0.) };
    for config in [lora(&["q_proj", "o_proj"], 0.), dora] {
        let cases: [&dyn Fn(&str) -> String; 8] = [
            &|k| k.replace(".weight", ".default.weight"),
            &|k| k.replace("base_model.model.", ""),
            &|k| k.replace("base_model.model.model.", ""),
            &|k| format!("base_model.model.{k}"),
            &|k| k.replace("base_model.model.", "base_model.model.model."),
            &|k| format!("module.{k}"),
            &|k| k.replace("base_model.model.", "base_model.model._orig_mod."),
            &|k| k.replace("magnitude_vector", "magnitude_vector.mine.weight"),
        ];
        for (i, rename) in cases.iter().enumerate() {
            let (dir, expected) = saved(&config);
            change(&dir.path().join(WEIGHTS), &|all| {
                all.iter_mut().for_each(|(name, _)| *name = rename(name));
            });
            let mut model = frozen(1);
            with(dir.path(), &mut model).unwrap();
            assert!(same_bits(&logits(&model), &expected), "case {i}");
        }
    }
}

#[test]
fn what_is_no_adapter_folder_is_said() {
    let config = lora(&["q_proj"], 0.);
    let (dir, _) = saved(&config);
    let weights = dir.path().join(WEIGHTS);
    let first = |all: &mut Named, f: &dyn Fn(Tensor) -> Tensor| {
        all[0].1 = f(all[0].1.shallow_clone());
    };
    let refuses = |dir: &Path, parts: &[&str]| {
        refused(with(dir, &mut frozen(1)), parts);
        refused(
            load_adapter(dir, frozen(1).linears_mut(), Device::Cpu).map(|_| ()),
            parts,
        );
    };
    let whole = fs::read(&weights).unwrap();
    let again = || fs::write(&weights, &whole).unwrap();
    // Two adapters in one file.
    change(&weights, &|all| {
        for (name, _) in all.iter_mut() {
            let which = if name.contains("layers.0") { "a" } else { "b" };
            *name = name.replace(".weight", &format!(".{which}.weight"));
        }
    });
    refuses(dir.path(), &[WEIGHTS, "adapter `b`", "`a`", "save_pretrained"]);
    again();
    change(&weights, &|all| {
        let (name, t) = (all[0].0.replace(".weight", ".x.weight"), all[0].1.copy());
        all.push((name, t));
    });
    refuses(dir.path(), &["same place", "lora_A"]);
    again();
    // ZeRO-3.
    change(&weights, &|all| {
        first(all, &|_| Tensor::zeros([0], (Kind::Float, Device::Cpu)));
    });
    refuses(dir.path(), &["shape [0]", "ZeRO-3"]);
    save_safetensors(&weights, &[], &[]).unwrap();
    refuses(dir.path(), &[WEIGHTS, "missing"]);
    // A pickle.
    fs::remove_file(&weights).unwrap();
    fs::write(dir.path().join("adapter_model.bin"), "pickle").unwrap();
    let parts = ["adapter_model.bin", "pickle", "weights_only=True", "save_file"];
    refuses(dir.path(), &parts);
    // The folder of a named adapter, a checkpoint, a file.
    let outer = tempfile::tempdir().unwrap();
    fs::create_dir(outer.path().join("mine")).unwrap();
    fs::copy(dir.path().join(CONFIG), outer.path().join("mine").join(CONFIG))
        .unwrap();
    let inner = outer.path().join("mine");
    refuses(outer.path(), &["by name", inner.to_str().unwrap()]);
    refuses(&inner.join(CONFIG), &["a file", inner.to_str().unwrap()]);
    let checkpoint = tempfile::tempdir().unwrap();
    write_checkpoint(checkpoint.path(), 1);
    refuses(checkpoint.path(), &["checkpoint", "--model"]);
    pipe(&inner.join(CONFIG));
    refuses(&inner, &[CONFIG, "a pipe"]);
}

#[test]
fn other_kinds_are_said_by_name() {
    let (dir, _) = saved(&lora(&["q_proj"], 0.));
    let path = dir.path().join(CONFIG);
    let whole = fs::read(&path).unwrap();
    for (key, value, part) in [
        ("peft_type", json!("VERA"), "VERA"),
        ("trainable_token_indices", json!({"embed_tokens": [3]}), "embedding"),
        ("layer_replication", json!([[0, 2], [1, 2]]), "several times"),
        ("target_parameters", json!(["mlp.experts.down_proj"]), "experts"),
        ("use_qalora", json!(true), "QALoRA"),
        ("megatron_config", json!({"a": 1}), "Megatron"),
    ] {
        set(path.clone(), key, value);
        let text = refused(lora::read_config(dir.path()), &[CONFIG, key, part]);
        assert!(text.contains("merge_and_unload"), "{text}");
        fs::write(&path, &whole).unwrap();
    }
}

/// An untied model in f32 with LoRA on an end, as PEFT saves it: the base's own weight
/// stands beside it.
#[test]
fn updates_of_head_and_embedding_are_used() {
    let mut config = lora(&["q_proj", "lm_head", "embed_tokens"], 0.);
    (config.r, config.alpha) = (4, 8.);
    let (dir, _) = saved(&lora(&["q_proj"], 0.));
    set(
        dir.path().join(CONFIG),
        "target_modules",
        json!(["q_proj", "lm_head", "embed_tokens"]),
    );
    let base = frozen(1);
    let at = |name: &str| {
        let all = base.named_parameters();
        all.into_iter().find(|(n, _)| n == name).unwrap().1
    };
    let wave = |shape: [i64; 2]| {
        let n = Tensor::arange(shape[0] * shape[1], (Kind::Float, Device::Cpu));
        ((n * 0.37).sin() * 0.1).view(shape)
    };
    let (a, b) = (wave([4, 32]), wave([61, 4]));
    let (ea, eb) = (wave([4, 61]), wave([32, 4]));
    change(&dir.path().join(WEIGHTS), &|all| {
        let mut add = |name: &str, t: &Tensor| {
            all.push((format!("base_model.model.{name}"), t.copy()));
        };
        add("lm_head.lora_A.weight", &a);
        add("lm_head.lora_B.weight", &b);
        add("lm_head.base_layer.weight", &at(HEAD));
        add("model.embed_tokens.lora_embedding_A", &ea);
        add("model.embed_tokens.lora_embedding_B", &eb);
        add("model.embed_tokens.base_layer.weight", &at(EMBED));
    });
    assert!(unties(dir.path()).unwrap());
    let mut expected = frozen(1);
    no_grad(|| {
        for (name, mut t) in expected.named_parameters() {
            if name == HEAD {
                let _ = t.f_add_(&(b.matmul(&a) * 2.)).unwrap();
            } else if name == EMBED {
                let _ = t.f_add_(&(eb.matmul(&ea).tr() * 2.)).unwrap();
            }
        }
    });
    let (plain, _) = saved(&lora(&["q_proj"], 0.));
    with(plain.path(), &mut expected).unwrap();
    let mut model = frozen(1);
    with(dir.path(), &mut model).unwrap();
    assert!(close(&logits(&model), &logits(&expected)));
    assert!(!close(&logits(&model), &logits(&base)));
    // To train on, they would have to be saved again.
    let mut model = frozen(1);
    let parameters = model.named_parameters();
    let parts = (model.linears_mut(), parameters);
    let trained = load_adapter(dir.path(), parts, Device::Cpu).map(|_| ());
    refused(trained, &["LoRA update of the", "merge_and_unload"]);
    // Merged, it is the same model.
    let (from, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_checkpoint(from.path(), 1);
    let names = survey(from.path()).unwrap().linear_names();
    let to = out.path().join("merged");
    let onto = lora::Onto::Original;
    lora::merge(from.path(), dir.path(), &to, (&names, onto), &mut |_| ()).unwrap();
    assert!(close(&logits(&read(&to).unwrap()), &logits(&expected)));
}

#[test]
fn embeddings_in_an_adapter() {
    let config = lora(&["q_proj"], 0.);
    let base = frozen(1);
    let own = |name: &str| {
        let all = base.named_parameters();
        all.into_iter().find(|(n, _)| n == name).unwrap().1
    };
    let file = |f: &dyn Fn(&str) -> Tensor| {
        let (dir, expected) = saved(&config);
        change(&dir.path().join(WEIGHTS), &|all| {
            for name in [EMBED, HEAD] {
                all.push((format!("base_model.model.{name}"), f(name)));
            }
        });
        (dir, expected)
    };
    // save_embedding_layers: the base's own, here in bf16 besides.
    for kind in [Kind::Float, Kind::BFloat16] {
        let (dir, expected) = file(&|name| own(name).to_kind(kind));
        let mut model = frozen(1);
        with(dir.path(), &mut model).unwrap();
        assert!(same_bits(&logits(&model), &expected));
    }
    let (dir, _) = file(&|name| own(name) * 2.);
    refused(with(dir.path(), &mut frozen(1)), &["saved with the adapter", "Python"]);
    let more = |name: &str| {
        let more = Tensor::zeros([4, 32], (Kind::Float, Device::Cpu));
        Tensor::cat(&[own(name), more], 0)
    };
    let (dir, _) = file(&more);
    let parts = ["65 tokens", "base has 61", "resize_token_embeddings(65)"];
    refused(with(dir.path(), &mut frozen(1)), &parts);
    // Trained whole, of a model whose head is its embedding: PEFT gives it one each.
    let dir = tied(&|all| drop(without(all, HEAD)));
    let mut model = read(dir.path()).unwrap();
    let (adapter, _) = file(&|name| own(name) * 2.);
    set(
        adapter.path().join(CONFIG),
        "modules_to_save",
        json!(["embed_tokens", "lm_head"]),
    );
    assert!(unties(adapter.path()).unwrap());
    model.untie();
    with(adapter.path(), &mut model).unwrap();
    for (name, t) in model.named_parameters() {
        if name == EMBED || name == HEAD {
            assert!(same_bits(&t.detach(), &(own(&name) * 2.)), "{name}");
        }
    }
    let (plain, _) = saved(&config);
    assert!(!unties(plain.path()).unwrap());
}

/// The settings that PEFT 0.21 over transformers 5.17, and PEFT 0.18 over transformers
/// 4.57, were seen to load with our loss to the sixth digit.
#[test]
fn experts_for_transformers_5() {
    let tiny_moe = Path::new("examples/data/tiny_moe");
    let mut model = read(tiny_moe).unwrap();
    let mut config = lora(&["all-linear"], 0.05);
    let named = attach(model.linears_mut(), &config, 1, Device::Cpu).unwrap();
    assert_eq!(fused::obstacle(&config, &named), None);
    let peft = fused::for_peft(&config, &named).unwrap();
    let layers = r"model\.layers\.(0|1|2|3)\.self_attn\.";
    let experts = r"model\.layers\.(1|2|3)\.mlp\.experts\.([0-9]+\.)?";
    let mut expected: Vec<String> =
        ["kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_proj"]
            .map(|name| format!("{layers}{name}"))
            .to_vec();
    let fed = ["down_proj", "gate_proj", "up_proj"];
    expected.extend(fed.map(|name| format!("{experts}{name}")));
    let Modules::Pattern(found) = &peft.target_modules else {
        panic!("{:?}", peft.target_modules)
    };
    let mut parts: Vec<String> = vec![];
    for part in found.split("|model") {
        let begun = if part.starts_with("model") { "" } else { "model" };
        parts.push(format!("{begun}{part}"));
    }
    parts.sort();
    expected.sort();
    assert_eq!(parts, expected);
    let weights = |at: &str| fed.map(|name| format!("{at}.{name}.weight"));
    let all = [weights("mlp"), weights("shared_experts")].concat();
    assert_eq!(peft.target_parameters, all);
    assert_eq!((peft.dropout, peft.rank_pattern.len()), (0., 0));
    // Read again it is the same adapter.
    let dir = tempfile::tempdir().unwrap();
    save_adapter(dir.path(), &peft, "base", &named).unwrap();
    let mut again = read(tiny_moe).unwrap();
    let (_, found) =
        load_adapter(dir.path(), again.linears_mut(), Device::Cpu).unwrap();
    assert_eq!(found.len(), named.len());
    // One of them missing is seen, whoever names it.
    for part in ["shared_experts.up_proj", "experts.3.up_proj", "q_proj"] {
        change(&dir.path().join(WEIGHTS), &|all| {
            let at = all.iter().position(|(n, _)| n.contains(part)).unwrap();
            let other = all[at].0.replace("lora_A", "lora_X");
            let stem = other.split(".lora_").next().unwrap().to_string();
            all.retain(|(n, _)| !n.starts_with(&format!("{stem}.")));
        });
        let lost = load_adapter(dir.path(), again.linears_mut(), Device::Cpu);
        refused(lost.map(|_| ()), &[part, "missing"]);
        save_adapter(dir.path(), &peft, "base", &named).unwrap();
    }
    // gate and up are one tensor of twice the rank there, at the same scale.
    config.use_rslora = true;
    let peft = fused::for_peft(&config, &named).unwrap();
    let of = |end: &str| {
        let fits = |(p, _): &&(String, f64)| p.ends_with(end);
        let rank = peft.rank_pattern.iter().find(|(p, _)| p.ends_with(end));
        (rank.unwrap().1, peft.alpha_pattern.iter().find(fits).unwrap().1)
    };
    let (r, alpha) = of(r"layers\.1\.mlp\.experts\.gate_up_proj");
    assert_eq!(r, 8);
    assert!((alpha / 8f64.sqrt() - 8. / 4f64.sqrt()).abs() < 1e-12);
    let (r, alpha) = of(r"layers\.1\.mlp\.experts\.down_proj");
    assert!(r == 4 && (alpha - 8.).abs() < 1e-12);
    // Attention alone stays as it is.
    let mut model = read(tiny_moe).unwrap();
    let config = lora(&["q_proj"], 0.05);
    let named = attach(model.linears_mut(), &config, 1, Device::Cpu).unwrap();
    assert_eq!(fused::for_peft(&config, &named).unwrap(), config);
    // And in 4 bits transformers 5 does not read it at all.
    let note = survey(tiny_moe).unwrap().quantized_note();
    assert!(note.is_some_and(|note| note.contains("transformers 5")));
    let dense = survey(Path::new("examples/data/tiny")).unwrap();
    assert_eq!(dense.quantized_note(), None);
}

#[test]
fn descriptions_without_end_are_refused_at_once() {
    let huge = 1_000_000;
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path(), 1);
    let config = dir.path().join("config.json");
    let beside = tempfile::tempdir().unwrap();
    let out = beside.path().join("out");
    let how = QuantizeOptions {
        blocksize: 64,
        double_quant: true,
        max_shard_size: 1 << 30,
        device: Device::Cpu,
    };
    let started = std::time::Instant::now();
    let refuses = |parts: &[&str]| {
        refused(read(dir.path()), parts);
        refused(survey(dir.path()), parts);
        refused(quantize(dir.path(), &out, &how, &mut |_, _| ()), parts);
        let (kept, say) = (dir.path().join("kept"), &mut |_: &str| ());
        let options = options(true);
        let load =
            load_cached(dir.path(), Some(&kept), &options, say, &mut |_, _| ());
        refused(load, parts);
    };
    set(config.clone(), "num_hidden_layers", json!(huge));
    refuses(&["model.layers.2.", "missing"]);
    fs::write(&config, config_json().to_string()).unwrap();
    set(config.clone(), "vocab_size", json!(1 << 30));
    refuses(&[EMBED, "config.json implies"]);
    fs::write(&config, config_json().to_string()).unwrap();
    set(config.clone(), "num_hidden_layers", json!(-1));
    refuses(&["num_hidden_layers", "-1"]);
    // Many keys, and one of a wrong type.
    let mut many = config_json();
    for i in 0..20_000 {
        many[format!("k{i}")] = json!(i);
    }
    many["vocab_size"] = json!("many");
    fs::write(&config, many.to_string()).unwrap();
    refuses(&["config.json", "many"]);
    // A description of a terabyte, and one that never comes.
    fs::File::create(&config).unwrap().set_len(1 << 40).unwrap();
    refuses(&["config.json", "4 at most"]);
    pipe(&config);
    refuses(&["config.json", "a pipe"]);
    fs::remove_file(&config).unwrap();
    fs::write(&config, config_json().to_string()).unwrap();
    let weights = dir.path().join("model.safetensors");
    pipe(&weights);
    refuses(&["model.safetensors", "a pipe"]);
    fs::remove_file(&weights).unwrap();
    std::os::unix::fs::symlink("model.safetensors", &weights).unwrap();
    refuses(&["model.safetensors", "link"]);
    fs::remove_file(&weights).unwrap();
    pipe(&dir.path().join("model.safetensors.index.json"));
    refuses(&["index.json", "a pipe"]);
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

/// Found by names and shapes, with no weight at hand.
#[test]
fn targets_are_checked_without_weights() {
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path(), 1);
    let found = survey(dir.path()).unwrap();
    let others = ["lm_head.weight".to_string(), EMBED.to_string()];
    let check = |config: &LoraConfig, in_4bit| {
        lora::check(config, &found.linears, in_4bit, &others)
    };
    let names = |list: &[&str]| Modules::parse(list);
    let plain = lora(&["q_proj"], 0.);
    check(&plain, true).unwrap();
    let wrong = lora(&["q_porj"], 0.);
    refused(check(&wrong, true), &["target-modules", "q_porj", "q_proj"]);
    let wrong =
        LoraConfig { exclude_modules: names(&["k_porj"]), ..lora(&["q_proj"], 0.) };
    refused(check(&wrong, true), &["exclude-modules", "k_porj"]);
    let wrong = LoraConfig {
        rank_pattern: vec![("v_proj".into(), 2)],
        ..lora(&["q_proj"], 0.)
    };
    refused(check(&wrong, true), &["rank-pattern", "v_proj"]);
    let save = |m: &str| LoraConfig {
        modules_to_save: vec![m.into()],
        ..lora(&["q_proj"], 0.)
    };
    check(&save("lm_head"), true).unwrap();
    refused(check(&save("lm_haed"), true), &["modules-to-save", "lm_haed"]);
    check(&save("o_proj"), false).unwrap();
    refused(check(&save("o_proj"), true), &["modules-to-save", "4 bits"]);
    let pissa =
        LoraConfig { init: lora::Init::Pissa, r: 40, ..lora(&["q_proj"], 0.) };
    refused(check(&pissa, true), &["init-lora-weights", "4 bits"]);
    refused(check(&pissa, false), &["lora-r", "40", "32"]);
    let _ = models::read_config(dir.path()).unwrap();
}
