//! Broken input of every kind through the real command: it must end soon, with an error
//! that names the culprit, without a panic, and leave nothing half-made behind.
//!
//! A case is a sound set of files, one change to it, and what the message must hold.
mod adapters;
mod checkpoints;
mod families;
mod flags;
mod labels;
mod odd;
mod quantized;
mod rows;

use crate::common::{config, lora, safetensors};
use crate::golden;
use downhill::checkpoint::save_safetensors;
use downhill::models::{Decoder, DecoderConfig};
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tch::Tensor;
use tempfile::TempDir;

/// Long for an error message even where all cores are taken, short for a hang.
const PATIENCE: Duration = Duration::from_secs(180);
const WEIGHTS: &str = "model/model.safetensors";

/// A checkpoint with tokenizer, rows and an adapter, all sound, made once.
static SOUND: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |path: &str| dir.path().join(path);
    for part in ["model", "adapter"] {
        fs::create_dir(at(part)).expect("a folder");
    }
    let shape = DecoderConfig { vocab_size: 300, ..config() };
    let mut model = Decoder::random(shape, 1).expect("a model");
    let mut json = crate::common::config_json();
    json["vocab_size"] = json!(300);
    fs::write(at("model/config.json"), json.to_string()).expect("config");
    save_safetensors(&at(WEIGHTS), &model.named_parameters(), &[]).expect("weights");
    let checkpoints = golden::json("data.json");
    let files = &checkpoints["checkpoints"][0]["files"];
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let text = files[name].as_str().expect("text");
        fs::write(at(&format!("model/{name}")), text).expect("tokenizer");
    }
    let config = lora(&["q_proj", "v_proj"], 0.);
    let device = tch::Device::Cpu;
    let named = downhill::lora::attach(model.linears_mut(), &config, 1, device);
    let named = named.expect("adapter");
    downhill::lora::save_adapter(&at("adapter"), &config, "model", &named)
        .expect("adapter");
    let row =
        |i: i64| json!({"prompt": format!("the hen {i}"), "completion": "end"});
    let rows: String = (0..6).map(|i| format!("{}\n", row(i))).collect();
    fs::write(at("rows.jsonl"), rows).expect("rows");
    dir
});

/// A copy of the sound files, to be broken.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        for part in ["", "model", "adapter"] {
            let to = dir.path().join(part);
            fs::create_dir_all(&to).expect("a folder");
            for entry in fs::read_dir(SOUND.path().join(part)).expect("sound") {
                let from = entry.expect("sound").path();
                if from.is_file() {
                    fs::copy(&from, to.join(from.file_name().unwrap()))
                        .expect("copy");
                }
            }
        }
        Self(dir)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn put(&self, path: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.at(path), bytes).expect(path);
    }

    fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.at(path)).expect(path)
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.at(path)).expect(path);
    }

    /// Changes a JSON file.
    fn json(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let mut json = serde_json::from_slice(&self.read(path)).expect(path);
        change(&mut json);
        self.put(path, json.to_string());
    }

    /// Sets one key of a JSON file.
    fn set(&self, path: &str, key: &str, value: Value) {
        self.json(path, |json| json[key] = value);
    }

    /// Changes the header of a safetensors file and leaves its body alone.
    fn header(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let bytes = self.read(path);
        let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header = serde_json::from_slice(&bytes[8..8 + n]).expect("a header");
        change(&mut header);
        self.put(path, safetensors(&header.to_string(), &bytes[8 + n..]));
    }

    /// Changes the tensors of a safetensors file, by name.
    fn tensors(&self, path: &str, change: impl FnOnce(&mut Vec<(String, Tensor)>)) {
        let read = downhill::checkpoint::read_safetensors(&self.at(path));
        let mut all: Vec<_> = read.expect(path).into_iter().collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        change(&mut all);
        save_safetensors(&self.at(path), &all, &[]).expect(path);
    }

    fn cut(&self, path: &str, length: usize) {
        let bytes = self.read(path);
        self.put(path, &bytes[..length]);
    }

    /// `downhill` with these arguments, where `@` is this folder.
    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
        let here = self.0.path().to_str().expect("a path");
        c.args(args.iter().map(|a| a.replace('@', here)));
        c.stdin(Stdio::null())
            .env("OMP_NUM_THREADS", "1")
            .env("HF_HUB_OFFLINE", "1")
            .env("RUST_BACKTRACE", "0");
        c
    }

    fn finetune(&self, flags: &[&str]) -> Command {
        let usual = [
            "finetune",
            "--model=@/model",
            "--train-file=@/rows.jsonl",
            "--output-dir=@/out",
            "--logging-dir=@/logs",
            "--max-steps=1",
            "--device=cpu",
        ];
        self.command(&[&usual[..], flags].concat())
    }

    fn generate(&self, flags: &[&str]) -> Command {
        let usual = ["generate", "--model=@/model", "--prompt=the", "--device=cpu"];
        self.command(&[&usual[..], &["--max-new-tokens=3"], flags].concat())
    }
}

/// The output of a command that must not hang.
fn finish(mut command: Command) -> Result<Output, String> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            break status;
        }
        if began.elapsed() > PATIENCE {
            let _ = child.kill();
            return Err("hangs".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    // Error messages are shorter than a pipe, so nobody waited for us to read.
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    child.stdout.take().unwrap().read_to_end(&mut stdout).expect("stdout");
    child.stderr.take().unwrap().read_to_end(&mut stderr).expect("stderr");
    Ok(Output { status, stdout, stderr })
}

/// All files below a folder.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(below(&path)),
            path => found.push(path),
        }
    }
    found
}

/// What is wrong with the way in which a command failed, if anything.
fn fault(bench: &Bench, command: Command, expected: &[&str]) -> Option<String> {
    let output = match finish(command) {
        Ok(output) => output,
        Err(what) => return Some(what),
    };
    let text = String::from_utf8_lossy(&output.stderr);
    let said = |what: &str| Some(format!("{what}: {text}"));
    match output.status.code() {
        Some(1 | 2) => {}
        Some(0) => return said("accepted"),
        code => return said(&format!("ended with {code:?}")),
    }
    if text.contains("panicked") {
        return said("panic");
    }
    if !output.stdout.is_empty() {
        return said("something on stdout");
    }
    if let Some(part) = expected.iter().find(|part| !text.contains(**part)) {
        return said(&format!("no `{part}` in"));
    }
    if text.len() > 4000 {
        return said("a message that nobody reads");
    }
    let left = [below(&bench.at("out")), below(&bench.at("logs"))].concat();
    let others = fs::read_dir(bench.0.path()).expect("the folder").flatten();
    let strange = others.map(|e| e.path()).filter(|p| {
        let name = p.file_name().unwrap().to_string_lossy().into_owned();
        name.contains("partial") || name.starts_with("out.")
    });
    let left: Vec<_> = left.into_iter().chain(strange).collect();
    if !left.is_empty() {
        return said(&format!("left {left:?}"));
    }
    println!("{}", text.replace(bench.0.path().to_str().unwrap(), "@").trim_end());
    None
}

/// A name, what is broken, and what the message must hold.
type Case<'a> = (&'a str, &'a dyn Fn(&Bench), &'a [&'a str]);

/// Runs `finetune` on each.
#[track_caller]
fn refuses(cases: &[Case]) {
    refuses_with(&[], cases);
}

fn refuses_with(flags: &[&str], cases: &[Case]) {
    let mut wrong = Vec::new();
    for (name, spoil, expected) in cases {
        let bench = Bench::new();
        spoil(&bench);
        if let Some(what) = fault(&bench, bench.finetune(flags), expected) {
            wrong.push(format!("{name}: {what}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The other half of every case: without a fault the same command succeeds.
#[test]
fn the_sound_files_are_accepted() {
    let bench = Bench::new();
    for flags in [&[][..], &["--init-adapter=@/adapter", "--lora-dropout=0"]] {
        let output = finish(bench.finetune(flags)).expect("ends");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        assert!(bench.at("out/adapter_model.safetensors").is_file(), "{text}");
    }
    let output = finish(bench.generate(&["--adapter=@/adapter"])).expect("ends");
    assert!(output.status.success() && !output.stdout.is_empty());
}
