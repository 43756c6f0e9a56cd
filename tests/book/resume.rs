//! Going on from a checkpoint: only as the same run, from whole and undamaged files; and
//! what is not finite is no result. On the small checkpoint in `golden/train_taught`.
use crate::common::refused;
use crate::late::start;
use crate::train::{MODEL, finetune, ok};
use downhill::Result;
use downhill::checkpoint::{Manifest, read_safetensors, save_safetensors};
use downhill::train::{Run, fit, latest_checkpoint};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;
use tempfile::TempDir;

static GO: AtomicBool = AtomicBool::new(false);

const FLAGS: [&str; 9] = [
    "--max-steps=6",
    "--save-strategy=steps",
    "--save-steps=2",
    "--logging-steps=4",
    "--per-device-train-batch-size=2",
    "--gradient-accumulation-steps=2",
    "--lora-r=4",
    "--lora-dropout=0.1",
    "--quantized-cache=off",
];

/// A run of six steps in `dir`, on a copy of the rows and of the model in it.
fn project() -> TempDir {
    let dir = TempDir::new().unwrap();
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(format!("{MODEL}/{name}"), model.join(name)).unwrap();
    }
    fs::copy(format!("{MODEL}/rows.jsonl"), dir.path().join("rows.jsonl")).unwrap();
    go_on(dir.path(), &[]).unwrap();
    dir
}

fn begin(dir: &Path, flags: &[&str]) -> Result<Run> {
    let at = |name: &str| dir.join(name).to_str().unwrap().to_string();
    let (model, rows) = (at("model"), at("rows.jsonl"));
    let own = ["--model", &model, "--train-file", &rows];
    start(dir, "cpu", &[&own[..], &FLAGS, flags].concat())
}

fn go_on(dir: &Path, flags: &[&str]) -> Result<()> {
    let mut run = begin(dir, flags)?;
    fit(&mut run, &GO)?;
    run.finish()
}

/// As if it had been killed after step 4.
fn interrupt(dir: &Path) {
    fs::remove_dir_all(dir.join("out/checkpoint-6")).unwrap();
    for name in ["adapter_model.safetensors", "trainer_state.json"] {
        fs::remove_file(dir.join("out").join(name)).unwrap();
    }
}

/// Every file below `dir` with its bytes and its time.
fn tree(dir: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let time = fs::metadata(&path).unwrap().modified().unwrap();
                all.insert(path.clone(), (time, fs::read(&path).unwrap()));
            }
        }
    }
    all
}

/// Resuming is refused with these parts in the message, and changes nothing on disk.
#[track_caller]
fn not_resumed(dir: &Path, flags: &[&str], parts: &[&str]) {
    let before = tree(dir);
    let named = flags.iter().any(|f| f.starts_with("--resume"));
    let latest = if named { &[][..] } else { &["--resume"] };
    refused(begin(dir, &[flags, latest].concat()), parts);
    assert!(tree(dir) == before, "{flags:?} changed a file");
}

fn adapter(dir: &Path) -> Vec<u8> {
    fs::read(dir.join("out/adapter_model.safetensors")).unwrap()
}

fn state(dir: &Path) -> Value {
    let bytes = fs::read(dir.join("trainer_state.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn other_settings_are_refused_by_flag() {
    let dir = project();
    interrupt(dir.path());
    let other = dir.path().join("out/checkpoint-2");
    let start = format!("--init-adapter={}", other.display());
    for flag in [
        "--lora-r=16",
        "--lora-alpha=3",
        "--target-modules=all-linear",
        "--exclude-modules=k_proj",
        "--layers-to-transform=0",
        "--rank-pattern=q_proj=2",
        "--alpha-pattern=q_proj=2",
        "--use-rslora",
        "--use-dora",
        "--lora-bias",
        "--init-lora-weights=gaussian",
        "--modules-to-save=lm_head",
        "--compute-dtype=bf16",
        "--load-in-4bit=false",
        "--bnb-4bit-blocksize=128",
        "--validation-split=0.2",
        "--gradient-accumulation-steps=4",
        "--packing",
        "--lr-scheduler-type=linear",
        "--weight-decay=0.1",
        "--max-steps=8",
        &start,
    ] {
        let name = flag.split('=').next().unwrap();
        not_resumed(dir.path(), &[flag], &[name, "checkpoint-"]);
    }
    // What nothing depends on may change.
    let order = [
        "--target-modules=v_proj,q_proj",
        "--resume",
        "--save-steps=3",
        "--eval-strategy=no",
        "--gradient-checkpointing=true",
    ];
    let whole = project();
    go_on(dir.path(), &order).unwrap();
    assert!(adapter(dir.path()) == adapter(whole.path()));
    assert!(dir.path().join("out/checkpoint-6").is_dir());
}

#[test]
fn other_rows_are_refused_and_the_same_elsewhere_are_not() {
    let dir = project();
    let whole = adapter(dir.path());
    interrupt(dir.path());
    let file = dir.path().join("rows.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let put = |lines: &[&str]| fs::write(&file, lines.join("\n")).unwrap();
    let flag = ["--train-file", "rows.jsonl", "checkpoint-4", "--init-adapter"];
    let refuse = |flags: &[&str], said: &str| {
        not_resumed(dir.path(), flags, &[&flag[..], &[said]].concat());
    };
    put(&[&lines[..], &lines[..5]].concat());
    refuse(&[], "5 rows were added to the 90 ");
    put(&lines[..40]);
    refuse(&[], "40 rows, and not the 90 ");
    put(&[&lines[1..], &lines[..1]].concat());
    refuse(&[], "not the 90 rows ");
    put(&[&lines[..89], &["{\"input_ids\": [1, 999]}"]].concat());
    refuse(&[], "not the 90 rows "); // though that row is wrong as well
    // Moved, under another name and with other line ends: the same rows.
    fs::remove_file(&file).unwrap();
    let moved = TempDir::new().unwrap();
    let home = moved.path().join("home");
    fs::rename(dir.path(), &home).unwrap();
    let elsewhere = home.join("elsewhere.jsonl");
    fs::write(&elsewhere, lines.join("\r\n") + "\n\n").unwrap();
    let rows = elsewhere.to_str().unwrap();
    go_on(&home, &["--train-file", rows, "--resume"]).unwrap();
    assert!(adapter(&home) == whole, "resumed differently");
}

#[test]
fn a_split_of_other_rows_is_refused() {
    let dir = project();
    let split = ["--validation-split=0.2"];
    go_on(dir.path(), &split).unwrap();
    interrupt(dir.path());
    let file = dir.path().join("rows.jsonl");
    let mut text = fs::read_to_string(&file).unwrap();
    text.push_str("{\"input_ids\": [1, 4, 7], \"labels\": [1, 4, 7]}\n");
    fs::write(&file, text).unwrap();
    not_resumed(dir.path(), &split, &["--train-file", "1 rows were added"]);
}

#[test]
fn another_base_is_refused() {
    let dir = project();
    interrupt(dir.path());
    let config = dir.path().join("model/config.json");
    let (kept, before) = (fs::read(&config).unwrap(), adapter_of(&dir));
    // What says nothing of the computation may change.
    edit(&config, |c| c["transformers_version"] = json!("99"));
    drop(begin(dir.path(), &["--resume"]).unwrap());
    assert!(adapter_of(&dir) == before);
    edit(&config, |c| c["rope_theta"] = json!(20_000.));
    let parts = ["--model", "config.json", "checkpoint-4"];
    not_resumed(dir.path(), &[], &parts);
    fs::write(&config, kept).unwrap();
    let weights = dir.path().join("model/model.safetensors");
    let all = read_safetensors(&weights).unwrap();
    let half = all.into_iter().map(|(name, t)| (name, t * 0.5));
    let half: Vec<_> = half.collect();
    save_safetensors(&weights, &half, &[("format", "pt")]).unwrap();
    not_resumed(dir.path(), &[], &["--model", "weights", "checkpoint-4"]);
}

fn adapter_of(dir: &TempDir) -> Vec<u8> {
    let file = "out/checkpoint-4/adapter_model.safetensors";
    fs::read(dir.path().join(file)).unwrap()
}

#[test]
fn a_damaged_checkpoint_is_named_and_an_older_one_offered() {
    let dir = project();
    interrupt(dir.path());
    let newest = dir.path().join("out/checkpoint-4");
    for name in [
        "adapter_model.safetensors",
        "adapter_config.json",
        "optimizer.safetensors",
        "trainer_state.json",
    ] {
        let path = newest.join(name);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        fs::write(&path, flipped).unwrap();
        let parts = [name, "damaged", "--resume", "checkpoint-2"];
        not_resumed(dir.path(), &[], &parts);
        fs::write(&path, whole).unwrap();
    }
    // With a manifest that fits: written so.
    for (name, bad) in [("adapter_model", f64::NAN), ("optimizer", f64::INFINITY)] {
        let path = newest.join(format!("{name}.safetensors"));
        let whole = fs::read(&path).unwrap();
        let mut all: Vec<_> = read_safetensors(&path).unwrap().into_iter().collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let at = all.iter().position(|(_, t)| t.is_floating_point()).unwrap();
        let _ = all[at].1.view([-1]).get(0).fill_(bad);
        save_safetensors(&path, &all, &[("format", "pt")]).unwrap();
        Manifest::write(&newest).unwrap();
        let parts = [name, &all[at].0, "infinite or NaN", "checkpoint-2"];
        not_resumed(dir.path(), &[], &parts);
        fs::write(&path, whole).unwrap();
        Manifest::write(&newest).unwrap();
    }
    go_on(dir.path(), &["--resume"]).unwrap();
}

#[test]
fn a_checkpoint_that_is_not_whole_is_passed_over() {
    let dir = project();
    let whole = adapter(dir.path());
    interrupt(dir.path());
    let out = dir.path().join("out");
    let newest = out.join("checkpoint-4");
    let named = format!("--resume={}", newest.display());
    for name in ["manifest.json", "optimizer.safetensors", "adapter_config.json"] {
        fs::rename(newest.join(name), dir.path().join("aside")).unwrap();
        assert_eq!(latest_checkpoint(&out), Some(out.join("checkpoint-2")));
        not_resumed(dir.path(), &[&named], &["--resume", name, "not there"]);
        fs::rename(dir.path().join("aside"), newest.join(name)).unwrap();
        assert_eq!(latest_checkpoint(&out), Some(newest.clone()));
    }
    // Copied in part.
    let path = newest.join("optimizer.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let rows = dir.path().join("rows.jsonl");
    let model = dir.path().join("model");
    let mut c = finetune(dir.path(), &FLAGS);
    c.arg("--train-file").arg(&rows).arg("--model").arg(&model);
    let text = ok(c.args(["--resume", "true"]).output().unwrap());
    for part in ["checkpoint-4 is not whole", "going on from", "checkpoint-2"] {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
    assert!(adapter(dir.path()) == whole, "resumed differently");
    // The output folder is none, and says which is.
    let parts = ["--resume", "no whole checkpoint", "checkpoint-6 is one"];
    let named = format!("--resume={}", out.display());
    refused(begin(dir.path(), &[&named]), &parts);
}

#[test]
fn a_checkpoint_of_an_earlier_version_is_gone_on_from() {
    let dir = project();
    let whole = adapter(dir.path());
    interrupt(dir.path());
    for step in [2, 4] {
        let saved = dir.path().join(format!("out/checkpoint-{step}"));
        fs::remove_file(saved.join("manifest.json")).unwrap();
        edit(&saved.join("trainer_state.json"), |s| {
            s.as_object_mut().unwrap().remove("content");
        });
    }
    // All that is known of its rows is how many steps they give.
    let by_epoch = ["--max-steps=-1", "--num-train-epochs=1", "--resume"];
    edit(&dir.path().join("out/checkpoint-4/trainer_state.json"), |s| {
        s["settings"]["max_steps"] = json!(-1);
        s["settings"]["num_train_epochs"] = json!(1.);
    });
    let parts = ["--train-file", "23 steps", "had 6"];
    refused(begin(dir.path(), &by_epoch), &parts);
    edit(&dir.path().join("out/checkpoint-4/trainer_state.json"), |s| {
        s["settings"]["max_steps"] = json!(6);
        s["settings"]["num_train_epochs"] = json!(3.);
    });
    go_on(dir.path(), &["--resume"]).unwrap();
    assert!(adapter(dir.path()) == whole, "resumed differently");
}

#[test]
fn other_eval_rows_end_the_comparison_and_not_the_run() {
    let dir = project();
    let held = dir.path().join("held.jsonl");
    let text = fs::read_to_string(dir.path().join("rows.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    fs::write(&held, lines[..8].join("\n")).unwrap();
    let flags = ["--eval-file", held.to_str().unwrap()];
    go_on(dir.path(), &flags).unwrap();
    let whole = adapter(dir.path());
    let before = state(&dir.path().join("out"))["eval_before"].clone();
    assert!(before["eval_loss"].is_f64(), "{before}");
    interrupt(dir.path());
    fs::write(&held, lines[4..12].join("\n")).unwrap();
    go_on(dir.path(), &[&flags[..], &["--resume"]].concat()).unwrap();
    assert!(adapter(dir.path()) == whole, "resumed differently");
    assert_eq!(state(&dir.path().join("out"))["eval_before"], Value::Null);
}

#[test]
fn classes_in_another_order_are_refused() {
    let dir = TempDir::new().unwrap();
    let rows = "tests/golden/tasks_classification/rows.jsonl";
    let flags =
        [&FLAGS[..], &["--task=classification", "--train-file", rows]].concat();
    let mut run = start(dir.path(), "cpu", &flags).unwrap();
    fit(&mut run, &GO).unwrap();
    drop(run);
    let saved = dir.path().join("out/checkpoint-6");
    edit(&saved.join("config.json"), |c| {
        let names = c["id2label"].as_object_mut().unwrap();
        let (first, last) = (names["0"].clone(), names["2"].clone());
        names["0"] = last;
        names["2"] = first;
    });
    Manifest::write(&saved).unwrap();
    let resume = [&flags[..], &["--resume"]].concat();
    refused(start(dir.path(), "cpu", &resume), &["its classes are", "many"]);
}

#[test]
fn resume_in_a_config_file_is_the_flag() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("run.toml");
    let run = |toml: &str, flags: &[&str]| {
        fs::write(&config, toml).unwrap();
        let mut c = finetune(dir.path(), &["--config", config.to_str().unwrap()]);
        ok(c.args(FLAGS).args(flags).output().unwrap())
    };
    let text = run("resume = true\n", &[]);
    assert!(text.contains("beginning at the start"), "{text}");
    let text = run("resume = true\n", &[]);
    assert!(text.contains("going on from"), "{text}");
    for (toml, flags) in
        [("resume = false\n", &[][..]), ("resume = true\n", &["--resume=false"])]
    {
        let text = run(toml, flags);
        assert!(!text.contains("going on from"), "{text}");
        assert!(text.contains("step 4/6"), "{text}");
    }
}

#[test]
fn a_failed_first_step_leaves_no_checkpoint() {
    let dir = project();
    fs::remove_dir_all(dir.path().join("out")).unwrap();
    let mut run = begin(dir.path(), &[]).unwrap();
    let named = run.model.named_parameters();
    let embed = named.iter().find(|(n, _)| n.contains("embed_tokens")).unwrap();
    let _ = tch::no_grad(|| embed.1.shallow_clone().fill_(f64::NAN));
    let parts = ["step 1", "not finite", "nothing was learned yet"];
    refused(fit(&mut run, &GO), &parts);
    let left = fs::read_dir(dir.path().join("out")).unwrap().flatten();
    let left: Vec<_> = left.map(|e| e.file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().contains("checkpoint")));
}

/// The last step makes the adapter infinite, and no later one is there to tell.
#[test]
fn an_overflow_in_the_last_step_is_an_error() {
    let dir = TempDir::new().unwrap();
    let flags = [
        "--learning-rate=1e308",
        "--lr-scheduler-type=constant",
        "--max-steps=1",
        "--save-strategy=no",
    ];
    let output = finetune(dir.path(), &flags).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in ["step 1", "is not finite after it", "--learning-rate"] {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
    assert!(!dir.path().join("out/adapter_model.safetensors").exists());
    // Nor is it saved on the way.
    let flags = [&flags[..2], &["--max-steps=3", "--save-strategy=steps"]].concat();
    let flags = [&flags[..], &["--save-steps=1"]].concat();
    let output = finetune(dir.path(), &flags).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(latest_checkpoint(&dir.path().join("out")), None);
}

#[test]
fn what_is_measured_as_nan_is_an_error() {
    let dir = project();
    let rows = format!("{MODEL}/rows.jsonl");
    let (out, model) = (dir.path().join("out"), dir.path().join("model"));
    let evaluate = |adapter: bool| {
        let mut c = std::process::Command::new(env!("CARGO_BIN_EXE_downhill"));
        c.env("OMP_NUM_THREADS", "1").args(["evaluate", "--eval-file", &rows]);
        c.args(["--device", "cpu", "--model"]).arg(&model);
        if adapter {
            c.arg("--adapter").arg(&out);
        }
        let output = c.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    assert_eq!(evaluate(true).0, Some(0));
    let spoil = |path: &Path, name: &str| {
        let mut all: Vec<_> = read_safetensors(path).unwrap().into_iter().collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let found = all.iter().find(|(n, _)| n.contains(name)).unwrap();
        let _ = found.1.shallow_clone().fill_(f64::NAN);
        save_safetensors(path, &all, &[("format", "pt")]).unwrap();
    };
    spoil(&out.join("adapter_model.safetensors"), "lora_A");
    let (code, text) = evaluate(true);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("lora_A") && text.contains("NaN"), "{text}");
    spoil(&model.join("model.safetensors"), "layers.1.input_layernorm");
    let (code, text) = evaluate(false);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("layers.1") && text.contains("not finite"), "{text}");
}
