//! The loop and the command: exact resume, interruption, faults that must lose
//! nothing. Runs the real binary on the small checkpoint in `golden/train_taught`.
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const MODEL: &str = "tests/golden/train_taught";

/// `downhill finetune` into `dir`, with these flags beside the usual.
pub fn finetune(dir: &Path, flags: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
    let rows = format!("{MODEL}/rows.jsonl");
    c.args(["finetune", "--model", MODEL, "--train-file", &rows]);
    c.arg("--output-dir").arg(dir.join("out"));
    c.arg("--logging-dir").arg(dir.join("logs"));
    c.args(["--device", "cpu"]).args(flags).stdin(Stdio::null());
    // One thread each: tests run side by side, and waiting threads spin.
    c.env("OMP_NUM_THREADS", "1");
    c
}

pub fn ok(output: Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

/// The log without what depends on the clock.
fn history(dir: &Path) -> Vec<Value> {
    let text = std::fs::read(dir.join("out/trainer_state.json")).unwrap();
    let state: Value = serde_json::from_slice(&text).unwrap();
    let mut history = state["log_history"].as_array().unwrap().clone();
    for entry in &mut history {
        entry.as_object_mut().unwrap().remove("tokens_per_second");
    }
    history
}

fn adapter(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("out/adapter_model.safetensors")).unwrap()
}

const RUN: [&str; 10] = [
    "--max-steps",
    "40",
    "--save-strategy",
    "steps",
    "--save-steps",
    "4",
    "--logging-steps",
    "3",
    "--lora-dropout",
    "0.1",
];

#[test]
fn killed_ten_times_ends_with_the_same_bits() {
    let (whole, broken) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let began = Instant::now();
    ok(finetune(whole.path(), &RUN).output().unwrap());
    let whole_run = began.elapsed();

    let flags = [&RUN[..], &["--resume"]].concat();
    // Moments spread over a run, in an order that is not that of time.
    for kill in 0..10_u32 {
        let share = f64::from((kill * 7) % 10 + 1) / 10.;
        let mut child =
            finetune(broken.path(), &flags).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole_run.mul_f64(share * 0.8));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
    }
    ok(finetune(broken.path(), &flags).output().unwrap());
    assert_eq!(history(whole.path()), history(broken.path()));
    assert!(adapter(whole.path()) == adapter(broken.path()), "adapters differ");
    let left: Vec<_> = std::fs::read_dir(broken.path().join("out"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("partial"))
        .collect();
    assert_eq!(left, Vec::<String>::new(), "half-written files are left");
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_says_how_to_go_on() {
    let dir = TempDir::new().unwrap();
    let flags = ["--max-steps", "100000", "--save-strategy", "no"];
    let mut c = finetune(dir.path(), &flags);
    let child = c.stderr(Stdio::piped()).spawn().unwrap();
    // Once the event file is there, training has begun.
    let begun = Instant::now();
    while !dir.path().join("logs").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never began");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(500));
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("stopped after step"), "{text}");
    assert!(text.contains("--resume"), "{text}");
    let saved = downhill::train::latest_checkpoint(&dir.path().join("out"));
    assert!(saved.is_some(), "{text}");
}

#[test]
fn a_loss_that_is_not_finite_names_step_rows_and_layer() {
    let dir = TempDir::new().unwrap();
    let flags =
        ["--learning-rate", "1e300", "--warmup-ratio", "0", "--max-steps", "9"];
    let flags = [&flags[..], &["--max-grad-norm", "0", "--optim", "sgd"]].concat();
    let output = finetune(dir.path(), &flags).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in ["step 2", "not finite", "layer at fault: model.layers", "lines ["] {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
    assert!(dir.path().join("out/checkpoint-1/trainer_state.json").is_file());
    assert!(!dir.path().join("out/adapter_model.safetensors").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_loses_nothing_that_was_saved() {
    let dir = TempDir::new().unwrap();
    let small =
        ["--max-steps", "4", "--save-strategy", "steps", "--save-steps", "2"];
    ok(finetune(dir.path(), &small).output().unwrap());
    let saved = adapter(dir.path());
    let resume = [&small[..], &["--resume"]].concat();
    std::fs::remove_dir_all(dir.path().join("out/checkpoint-4")).unwrap();
    // No file may grow past 4 KiB: like a disk that is nearly full.
    let run = finetune(dir.path(), &resume);
    let mut line = String::from("trap '' XFSZ; ulimit -f 4; exec \"$0\" \"$@\"");
    line.push_str(" 2>&1 | cat");
    let limited = Command::new("bash")
        .args(["-o", "pipefail", "-c", &line])
        .arg(run.get_program())
        .args(run.get_args())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&limited.stdout);
    assert!(!limited.status.success(), "{text}");
    assert!(text.contains("too large") || text.contains("space"), "{text}");
    assert!(text.contains("checkpoint-4"), "names no file: {text}");
    assert!(dir.path().join("out/checkpoint-2/optimizer.safetensors").is_file());
    assert!(!dir.path().join("out/checkpoint-4").exists());
    assert!(adapter(dir.path()) == saved);
    ok(finetune(dir.path(), &resume).output().unwrap());
    assert!(adapter(dir.path()) == saved, "resumed differently");
}

#[test]
fn an_earlier_run_is_kept_and_a_changed_one_refused() {
    let dir = TempDir::new().unwrap();
    let two = ["--max-steps", "2", "--save-strategy", "steps", "--save-steps", "1"];
    ok(finetune(dir.path(), &two).output().unwrap());
    let first = adapter(dir.path());
    let text = ok(finetune(dir.path(), &two).output().unwrap());
    assert!(text.contains("out.1"), "{text}");
    let kept = dir.path().join("out.1/adapter_model.safetensors");
    assert!(std::fs::read(kept).unwrap() == first);
    let other = [&two[..], &["--resume", "--seed", "7"]].concat();
    let output = finetune(dir.path(), &other).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("--seed"), "{text}");
}

#[test]
fn the_same_rows_in_other_micro_batches_give_the_same_update() {
    let split = |batch: &str, accumulation: &str| {
        let dir = TempDir::new().unwrap();
        let flags = [
            "--per-device-train-batch-size",
            batch,
            "--gradient-accumulation-steps",
            accumulation,
            "--lora-dropout",
            "0",
            "--max-steps",
            "3",
            "--save-strategy",
            "no",
            "--warmup-ratio",
            "0",
        ];
        ok(finetune(dir.path(), &flags).output().unwrap());
        let file = dir.path().join("out/adapter_model.safetensors");
        downhill::checkpoint::read_safetensors(&file).unwrap()
    };
    let whole = split("8", "1");
    for (batch, accumulation) in [("2", "4"), ("1", "8")] {
        for (name, t) in split(batch, accumulation) {
            let apart = (&whole[&name] - t).abs().max().double_value(&[]);
            assert!(apart < 1e-6, "{name} at {batch}x{accumulation}: {apart}");
        }
    }
}

#[test]
fn a_config_file_holds_flags_and_flags_win() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("run.toml");
    let text =
        "max-steps = 1\nlora-r = 2\ntarget-modules = [\"q_proj\", \"up_proj\"]\n";
    std::fs::write(&config, text).unwrap();
    let path = config.to_str().unwrap();
    ok(finetune(dir.path(), &["--config", path, "--lora-r=3"]).output().unwrap());
    let lora = downhill::lora::read_config(&dir.path().join("out")).unwrap();
    let targets = downhill::lora::Modules::parse(&["q_proj", "up_proj"]);
    assert_eq!((lora.r, lora.target_modules), (3, targets));
    assert_eq!(history(dir.path()).len(), 1);

    for (text, culprit) in [
        ("learning-rat = 1e-4\n", "learning-rat"),
        ("lora-r = \"many\"\n", "lora-r"),
        ("lora-r = [[1]]\n", "lora-r"),
        ("lora-r = \n", "run.toml"),
    ] {
        std::fs::write(&config, text).unwrap();
        let output = finetune(dir.path(), &["--config", path]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "accepted {culprit}");
        assert!(text.contains(culprit), "no `{culprit}` in: {text}");
    }
}

#[test]
fn event_files_hold_what_was_logged() {
    let dir = TempDir::new().unwrap();
    ok(finetune(dir.path(), &["--max-steps", "2"]).output().unwrap());
    let mut files = std::fs::read_dir(dir.path().join("logs")).unwrap();
    let bytes = std::fs::read(files.next().unwrap().unwrap().path()).unwrap();
    // Records: length, its checksum, that many bytes, their checksum.
    let (mut at, mut records) = (0, vec![]);
    while at < bytes.len() {
        let n = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        records.push(&bytes[at + 12..at + 12 + n]);
        at += 16 + n;
    }
    assert_eq!(at, bytes.len());
    let loss = history(dir.path())[1]["loss"].as_f64().unwrap() as f32;
    let tagged = |r: &&&[u8]| r.windows(10).any(|w| w == b"train/loss");
    let last = records.iter().rfind(tagged).unwrap();
    assert_eq!(last[last.len() - 4..], loss.to_le_bytes());
}
