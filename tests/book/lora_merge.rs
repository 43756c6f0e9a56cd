//! Merging: the merged checkpoint computes what model and adapter computed.
use crate::common::{lora, refused, write_checkpoint};
use crate::golden::{gap, metadata, path, same_bits, tensors};
use crate::parity_llama::{F32, logits, read};
use downhill::checkpoint::{Checkpoint, read_safetensors, save_safetensors};
use downhill::lora::{
    LoraConfig, MergeReport, Named, Onto, attach, load_adapter, merge, save_adapter,
};
use downhill::models::{Decoder, LoadOptions, load, survey};
use downhill::quant::Nf4Tensor;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

const NF4: Onto = Onto::Dequantized { blocksize: 64, double_quant: true };

fn merged(
    model: &Path,
    adapter: &Path,
    out: &Path,
    onto: Onto,
) -> downhill::Result<MergeReport> {
    let linears = survey(model)?.linear_names();
    merge(model, adapter, out, (&linears, onto), &mut |_| ())
}

fn model_of(dir: &Path, options: &LoadOptions) -> Decoder {
    load(dir, options, &mut |_, _| ()).expect("a checkpoint")
}

/// A golden base with its weights in this kind.
fn base_in(kind: Kind, name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(path(name).join("config.json"), dir.path().join("config.json"))
        .unwrap();
    let all = tensors(&format!("{name}/model.safetensors"));
    let all: Vec<_> = all.into_iter().map(|(n, t)| (n, t.to_kind(kind))).collect();
    let file = dir.path().join("model.safetensors");
    save_safetensors(&file, &all, &[("format", "pt")]).unwrap();
    dir
}

/// Every kind that PEFT wrote, against the logits that it computed unmerged.
#[test]
fn merged_is_unmerged() {
    for name in [
        "qv",
        "all",
        "rslora",
        "dora",
        "dora_rs",
        "save",
        "bias",
        "gaussian",
        "pissa",
        "pissa_plain",
        "pissa_dora",
        "regex",
        "layers",
        "dora_nf4",
        "v2_experts",
        "v2_experts_dora",
    ] {
        let file = format!("lora_{name}/expected.safetensors");
        let (golden, about) = (tensors(&file), metadata(&file));
        let base = about["base"].as_str().unwrap();
        let onto = if name == "dora_nf4" { NF4 } else { Onto::Original };
        for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, 0.05)] {
            let model = base_in(kind, base);
            let out = model.path().with_extension("merged");
            let adapter = path(&format!("lora_{name}"));
            let report = merged(model.path(), &adapter, &out, onto).expect(name);
            let got = logits(&model_of(&out, &F32), &golden["ids"]);
            fs::remove_dir_all(&out).unwrap();
            let far = gap(&got, &golden["logits"]);
            println!("{name} in {kind:?}: {far:.1e}");
            assert!(far < bound, "{name} in {kind:?}: {far:e}");
            let lost = report.layers.iter().map(|l| l.rounding / l.weight);
            let lost = lost.fold(0., f64::max);
            assert!(lost < 4e-3, "{name}: {lost}");
            assert_eq!(lost > 0., kind == Kind::BFloat16, "{name}: {lost}");
        }
    }
}

/// A model of ours in f32, its adapter on four linears of two layers, and the folders.
struct Bench {
    dir: TempDir,
    model: PathBuf,
    adapter: PathBuf,
    named: Named,
}

fn bench(config: &LoraConfig) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let (model, adapter) = (dir.path().join("model"), dir.path().join("adapter"));
    fs::create_dir_all(&model).unwrap();
    fs::create_dir_all(&adapter).unwrap();
    let mut ours = write_checkpoint(&model, 5);
    fs::write(model.join("tokenizer.json"), "{\"kept\": true}").unwrap();
    fs::write(model.join("pytorch_model.bin"), "a pickle").unwrap();
    let parameters = ours.named_parameters();
    let parts = (ours.linears_mut(), parameters);
    let named = attach(parts, config, 1, Device::Cpu).unwrap();
    tch::no_grad(|| {
        for (name, t) in &named {
            if name.contains("lora_B") {
                let wave =
                    Tensor::arange(t.numel() as i64, (Kind::Float, Device::Cpu));
                t.shallow_clone().copy_(&(wave.sin() * 0.02).view_as(t));
            }
        }
    });
    save_adapter(&adapter, config, "model", &named).unwrap();
    Bench { dir, model, adapter, named }
}

impl Bench {
    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn merge(&self, onto: Onto) -> downhill::Result<MergeReport> {
        merged(&self.model, &self.adapter, &self.out(), onto)
    }

    /// Refused, and nothing left behind.
    #[track_caller]
    fn refuses(&self, parts: &[&str]) {
        refused(self.merge(Onto::Original), parts);
        assert!(!self.out().exists());
        let left: Vec<_> =
            fs::read_dir(self.dir.path()).unwrap().flatten().collect();
        assert!(
            left.iter()
                .all(|e| !e.file_name().to_string_lossy().contains("partial"))
        );
    }

    fn spoil(&self, change: impl FnOnce(&mut Vec<(String, Tensor)>)) {
        let file = self.adapter.join("adapter_model.safetensors");
        let mut all: Vec<_> = read_safetensors(&file).unwrap().into_iter().collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        change(&mut all);
        save_safetensors(&file, &all, &[]).unwrap();
    }

    fn set(&self, file: &str, key: &str, value: Value) {
        let file = self.dir.path().join(file);
        let mut json: Value =
            serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        json[key] = value;
        fs::write(&file, json.to_string()).unwrap();
    }
}

#[test]
fn into_dequantized_is_what_was_trained() {
    let bench = bench(&lora(&["q_proj", "down_proj"], 0.));
    let tokens = crate::common::ids(2, 9);
    let mut exact = vec![];
    for (blocksize, double_quant) in
        [(64, true), (64, false), (32, true), (256, false)]
    {
        let options = LoadOptions { quantize: true, blocksize, double_quant, ..F32 };
        let mut trained = model_of(&bench.model, &options);
        load_adapter(&bench.adapter, trained.linears_mut(), Device::Cpu).unwrap();
        let expected = logits(&trained, &tokens);
        let report =
            bench.merge(Onto::Dequantized { blocksize, double_quant }).unwrap();
        let got = logits(&model_of(&bench.out(), &F32), &tokens);
        fs::remove_dir_all(bench.out()).unwrap();
        let far = gap(&got, &expected);
        assert!(far < 1e-5, "{far:e}");
        exact.push(expected);

        // The report's numbers, computed otherwise.
        let weights = tensors_of(&bench.model);
        assert_eq!(report.layers.len(), 4);
        for layer in &report.layers {
            let w = &weights[&format!("{}.weight", layer.name)];
            let q = Nf4Tensor::quantize(w, blocksize, double_quant).unwrap();
            let of = |half: &str| {
                let name = format!("{}.lora_{half}.weight", layer.name);
                bench.named.iter().find(|(n, _)| *n == name).unwrap().1.detach()
            };
            let update = of("B").mm(&of("A")) * (8. / 4.);
            let norm = |t: &Tensor| t.norm().double_value(&[]);
            for (found, expected) in [
                (layer.weight, norm(w)),
                (layer.noise, norm(&(w - q.dequantize(Kind::Float)))),
                (layer.delta, norm(&update)),
            ] {
                let far = (found / expected - 1.).abs();
                assert!(far < 1e-3, "{}: {found} and {expected}", layer.name);
            }
            assert!(layer.noise > 0. && layer.rounding < 1e-6 * layer.weight);
        }
    }
    // Into the original it is another model: that is the point of the report.
    bench.merge(Onto::Original).unwrap();
    let got = logits(&model_of(&bench.out(), &F32), &tokens);
    assert!(gap(&got, &exact[0]) > 1e-3);
}

fn tensors_of(dir: &Path) -> std::collections::HashMap<String, Tensor> {
    read_safetensors(&dir.join("model.safetensors")).unwrap()
}

#[test]
fn all_else_is_as_it_was() {
    let bench = bench(&lora(&["v_proj"], 0.));
    let report = bench.merge(Onto::Original).unwrap();
    let (before, after) = (tensors_of(&bench.model), tensors_of(&bench.out()));
    assert_eq!((report.files, report.verified), (1, before.len()));
    for (name, t) in &before {
        let changed = name.contains("v_proj");
        assert_eq!(same_bits(&after[name], t), !changed, "{name}");
    }
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).unwrap().flatten();
        let mut names: Vec<_> =
            entries.map(|e| e.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let expected =
        ["config.json", "merge_report.json", "model.safetensors", "tokenizer.json"];
    assert_eq!(names(&bench.out()), expected);
    let kept = |file: &str| fs::read(bench.model.join(file)).unwrap();
    for file in ["config.json", "tokenizer.json"] {
        assert!(kept(file) == fs::read(bench.out().join(file)).unwrap(), "{file}");
    }
    let text = fs::read(bench.out().join("merge_report.json")).unwrap();
    let json: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(json["into"], "original");
    let layer = &json["layers"][0];
    let number = |key: &str| layer[key].as_f64().unwrap();
    assert_eq!(layer["name"], "model.layers.0.self_attn.v_proj");
    let ratio = number("quantization_noise") / number("delta_norm");
    assert!((number("noise_to_delta") / ratio - 1.).abs() < 1e-12);
    // Merged again into the same place: refused, and what is there stays.
    refused(bench.merge(Onto::Original), &["--output-dir", "not empty"]);
    assert_eq!(names(&bench.out()), expected);
}

#[test]
fn names_of_linears_need_no_weights() {
    for name in ["llama_mha", "llama_tied", "llama_sharded"] {
        let mut model = read(name, &F32);
        let there = model.linears_mut().into_iter().map(|(name, _)| name);
        let found = survey(&path(name)).unwrap().linear_names();
        assert_eq!(found, there.collect::<Vec<_>>());
    }
}

#[test]
fn shards_stay_shards() {
    let dir = tempfile::tempdir().unwrap();
    let (adapter, out) = (dir.path().join("adapter"), dir.path().join("out"));
    fs::create_dir(&adapter).unwrap();
    let mut model = read("llama_sharded", &F32);
    let config = lora(&["all-linear"], 0.);
    let named = attach(model.linears_mut(), &config, 1, Device::Cpu).unwrap();
    tch::no_grad(|| {
        for (_, t) in &named {
            let _ = t.shallow_clone().fill_(0.01);
        }
    });
    save_adapter(&adapter, &config, "base", &named).unwrap();
    let tokens = crate::common::ids(2, 9);
    let expected = logits(&model, &tokens);
    let report =
        merged(&path("llama_sharded"), &adapter, &out, Onto::Original).unwrap();
    assert!(report.files > 1);
    let far = gap(&logits(&model_of(&out, &F32), &tokens), &expected);
    assert!(far < 0.05, "{far:e}"); // its files are bf16
    let index = "model.safetensors.index.json";
    let read = |dir: &Path| fs::read(dir.join(index)).unwrap();
    assert!(read(&out) == read(&path("llama_sharded")));
    let (before, after) = (
        Checkpoint::open(path("llama_sharded")).unwrap(),
        Checkpoint::open(&out).unwrap(),
    );
    for name in before.names() {
        assert_eq!(
            before.file_of(name).file_name(),
            after.file_of(name).file_name()
        );
    }
}

#[test]
fn what_cannot_be_merged_is_refused() {
    let plain = lora(&["q_proj"], 0.);
    let bench = || bench(&plain);
    let b = bench();
    for out in [&b.model, &b.adapter, &b.model.join("merged"), &b.dir.path().into()]
    {
        let refusal = merged(&b.model, &b.adapter, out, Onto::Original);
        refused(refusal, &["--output-dir"]);
        assert!(b.model.join("config.json").exists() && b.adapter.exists());
        assert!(!b.model.join("merged").exists());
    }
    let odd = Onto::Dequantized { blocksize: 100, double_quant: true };
    refused(b.merge(odd), &["--bnb-4bit-blocksize", "100", "4096"]);
    let missing = b.dir.path().join("none");
    refused(merged(&b.model, &missing, &b.out(), NF4), &["none", "adapter_config"]);
    refused(merged(&missing, &b.adapter, &b.out(), NF4), &["none"]);

    b.set(
        "model/config.json",
        "quantization_config",
        json!({"quant_method": "fp8"}),
    );
    b.refuses(&["config.json", "quantization_config"]);

    let b = bench();
    b.spoil(|t| drop(t.remove(0)));
    b.refuses(&["layers.0.self_attn.q_proj.lora_A.weight", "missing"]);
    let b = bench();
    b.spoil(|t| t[0].1 = Tensor::zeros([4, 31], (Kind::Float, Device::Cpu)));
    b.refuses(&["lora_A.weight", "[4, 31]", "[4, 32]"]);
    let b = bench();
    let head = "base_model.model.score.weight";
    b.spoil(|t| {
        t.push((head.into(), Tensor::zeros([2, 32], (Kind::Float, Device::Cpu))))
    });
    b.refuses(&[head, "no place", "score head", "evaluate --adapter"]);
    let b = bench();
    b.spoil(|t| t[0].1 = &t[0].1 * f64::NAN);
    b.refuses(&[
        "model.safetensors",
        "layers.0.self_attn.q_proj.weight",
        "not finite",
    ]);
    let b = bench();
    b.set("adapter/adapter_config.json", "lora_bias", json!(true));
    b.refuses(&["lora_B.bias", "missing"]);
    let b = bench();
    b.spoil(|t| {
        for layer in 0..2 {
            let name =
                format!("base_model.model.model.layers.{layer}.self_attn.q_proj");
            let bias = Tensor::zeros([32], (Kind::Float, Device::Cpu));
            t.push((format!("{name}.lora_B.bias"), bias));
        }
    });
    b.refuses(&["lora_B.bias", "no place"]);
    b.set("adapter/adapter_config.json", "lora_bias", json!(true));
    b.refuses(&[
        "adapter_model",
        "q_proj",
        "none in this checkpoint",
        "cannot be merged",
    ]);
    let b = bench();
    b.set("adapter/adapter_config.json", "init_lora_weights", json!("pissa"));
    refused(b.merge(NF4), &["--into", "pissa", "original"]);
    let b = bench();
    let file = b.model.join("model.safetensors");
    let mut all: Vec<_> = read_safetensors(&file).unwrap().into_iter().collect();
    for (name, t) in &mut all {
        if name.contains("1.self_attn.q_proj") {
            *t = t.to_kind(Kind::Int8);
        }
    }
    save_safetensors(&file, &all, &[]).unwrap();
    b.refuses(&["1.self_attn.q_proj.weight", "Int8"]);
    fs::write(&file, "no tensors").unwrap();
    b.refuses(&["model.safetensors"]);
}

#[test]
fn the_command_merges_and_reports() {
    let bench = bench(&lora(&["q_proj"], 0.));
    let run = |into: &[&str]| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
        c.arg("merge").arg("--model").arg(&bench.model).arg("--adapter");
        c.arg(&bench.adapter).arg("--output-dir").arg(bench.out());
        c.arg("--into").args(into).env("OMP_NUM_THREADS", "1");
        c.output().unwrap()
    };
    let wrong = run(&["nf4"]);
    let text = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && text.contains("dequantized"), "{text}");
    let done = run(&["dequantized"]);
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{text}");
    assert!(text.contains("read back"), "{text}");
    let table = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(table.contains("model.layers.1.self_attn.q_proj"), "{table}");
    assert!(table.contains("median of 2 layers"), "{table}");
    assert!(text.contains("blocks of 64, double quantization: true"), "{text}");
    // What the run left beside the adapter, and a flag over that.
    let state = json!({"settings": {
        "bnb_4bit_blocksize": 256, "bnb_4bit_use_double_quant": false}});
    fs::write(bench.adapter.join("trainer_state.json"), state.to_string()).unwrap();
    for (flags, expected) in [
        (&["dequantized"][..], (256, false)),
        (&["dequantized", "--bnb-4bit-blocksize=128"], (128, false)),
        (&["dequantized", "--bnb-4bit-use-double-quant"], (256, true)),
    ] {
        fs::remove_dir_all(bench.out()).unwrap();
        let done = run(flags);
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{text}");
        let report = fs::read(bench.out().join("merge_report.json")).unwrap();
        let report: Value = serde_json::from_slice(&report).unwrap();
        let found = (report["blocksize"].as_u64(), report["double_quant"].as_bool());
        assert_eq!(found, (Some(expected.0), Some(expected.1)), "{flags:?}");
    }
    assert!(bench.out().join("merge_report.json").exists());
}

fn command(model: &Path, adapter: &Path, out: &Path, flags: &[&str]) -> Output {
    let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
    c.arg("merge").arg("--model").arg(model).arg("--adapter").arg(adapter);
    c.arg("--output-dir").arg(out).args(flags).env("OMP_NUM_THREADS", "1");
    c.output().unwrap()
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// NF4 by bitsandbytes and block-scaled fp8: the update goes into what they stand for,
/// in 16 bits, and what is left behind is the merged folder alone.
#[test]
fn quantized_checkpoints_are_unpacked_and_merged() {
    for (name, into) in [
        ("bnb_nested", "dequantized"),
        ("bnb_plain", "dequantized"),
        ("v3_fp8", "original"),
        ("v3_fp8", "dequantized"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (adapter, out) = (dir.path().join("adapter"), dir.path().join("out"));
        fs::create_dir(&adapter).unwrap();
        // Beside what the files stand for, or, of fp8, that in NF4.
        let quantize = name == "v3_fp8" && into == "dequantized";
        let mut model = read(name, &LoadOptions { quantize, ..F32 });
        let config = lora(&["all-linear"], 0.);
        let named = attach(model.linears_mut(), &config, 1, Device::Cpu).unwrap();
        tch::no_grad(|| {
            for (_, t) in &named {
                let wave =
                    Tensor::arange(t.numel() as i64, (Kind::Float, Device::Cpu));
                t.shallow_clone().copy_(&(wave.sin() * 0.05).view_as(t));
            }
        });
        save_adapter(&adapter, &config, "base", &named).unwrap();
        let tokens = crate::common::ids(2, 9);
        let expected = logits(&model, &tokens);
        let plain = logits(&read(name, &LoadOptions { quantize, ..F32 }), &tokens);
        let done = command(&path(name), &adapter, &out, &["--into", into]);
        assert!(done.status.success(), "{name}: {}", said(&done));
        let merged = model_of(&out, &F32);
        let far = gap(&logits(&merged, &tokens), &expected);
        // Written in 16 bits, and far nearer than without the update.
        let moved = gap(&plain, &expected);
        println!("{name} into {into}: {far:.1e} of {moved:.1e}");
        // From fp8 by way of bf16 a few weights round to another level of NF4 than from
        // f32, in which this model was loaded.
        let bound = if quantize { 0.1 } else { 0.05 };
        assert!(far < bound && far < moved / 5., "{name}: {far:e} of {moved:e}");
        let config = fs::read_to_string(out.join("config.json")).unwrap();
        assert!(!config.contains("quantization_config"), "{config}");
        let report = fs::read(out.join("merge_report.json")).unwrap();
        let report: Value = serde_json::from_slice(&report).unwrap();
        assert_eq!(report["model"], json!(path(name)));
        assert_eq!(report["into"], into);
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 2, "{name}: more than adapter and output");
    }
    // The weights before NF4 are not there.
    let dir = tempfile::tempdir().unwrap();
    let into = ["--into", "original"];
    let refusal = command(
        &path("bnb_nested"),
        &path("lora_qv"),
        &dir.path().join("out"),
        &into,
    );
    let text = said(&refusal);
    assert!(
        !refusal.status.success() && text.contains("--into dequantized"),
        "{text}"
    );
}

/// The divergence on probe rows: nothing where the merged model is the trained one, and
/// more where it is not.
#[test]
fn the_merged_model_is_compared_on_rows() {
    let bench = bench(&lora(&["q_proj", "down_proj"], 0.));
    fs::remove_file(bench.model.join("tokenizer.json")).unwrap();
    let rows = bench.dir.path().join("rows.jsonl");
    let row = |start: i64| {
        let ids: Vec<i64> = (0..12).map(|i| (start * 7 + i * 5) % 57 + 3).collect();
        json!({"input_ids": ids, "labels": ids}).to_string()
    };
    let text: Vec<String> = (0..4).map(row).collect();
    fs::write(&rows, text.join("\n")).unwrap();
    let state = json!({"settings": {"load_in_4bit": true}});
    fs::write(bench.adapter.join("trainer_state.json"), state.to_string()).unwrap();
    let probe = format!("--probe-file={}", rows.display());
    let mut far = vec![];
    for into in ["dequantized", "original"] {
        let flags = ["--into", into, &probe];
        let done = command(&bench.model, &bench.adapter, &bench.out(), &flags);
        assert!(done.status.success(), "{}", said(&done));
        let text = said(&done);
        assert!(
            text.contains("4-bit weights") && text.contains("44 tokens"),
            "{text}"
        );
        let report = fs::read(bench.out().join("merge_report.json")).unwrap();
        let report: Value = serde_json::from_slice(&report).unwrap();
        far.push(report["divergence"].as_f64().unwrap());
        fs::remove_dir_all(bench.out()).unwrap();
    }
    assert!(far[0].abs() < 1e-6 && far[1] > 1e-5, "{far:?}");
}

/// The files are asked before anything is made of what `config.json` says.
#[test]
fn layers_that_the_files_do_not_have_are_refused_at_once() {
    let (model, out) = (base_in(Kind::Float, "llama_gqa"), TempDir::new().unwrap());
    let file = model.path().join("config.json");
    let mut config: Value =
        serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    config["num_hidden_layers"] = json!(1_000_000_000);
    fs::write(&file, config.to_string()).unwrap();
    let out = out.path().join("out");
    let failed = merged(model.path(), &path("lora_qv"), &out, NF4);
    let text = failed.expect_err("a billion layers").to_string();
    assert!(text.contains("model.layers.2."), "{text}");
    assert!(!out.exists());
}
