//! What the parts run on: the checkpoints that ship, rows, and what the command makes
//! of them. Made anew at each start; nothing may change it afterwards.

use super::child::{Call, Ended};
use super::files::Snapshot;
use crate::sh;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

pub struct Ground {
    pub dir: PathBuf,
    pub bin: PathBuf,
    pub shim: Option<PathBuf>,
    before: Mutex<Option<Snapshot>>,
    big: OnceLock<Result<PathBuf, String>>,
}

/// Flags of a short run.
pub const SHORT: [&str; 6] = [
    "--per-device-train-batch-size",
    "1",
    "--gradient-accumulation-steps",
    "1",
    "--max-length",
    "48",
];

impl Ground {
    pub fn make(dir: PathBuf, bin: PathBuf) -> Result<Self> {
        fs::remove_dir_all(&dir).ok();
        fs::create_dir_all(&dir)?;
        let data = sh::root().join("examples/data");
        sh::copy_tree(&data.join("tiny"), &dir.join("model"))?;
        sh::copy_tree(&data.join("tiny_moe"), &dir.join("moe"))?;
        let shim = super::faults::compile(&dir)?;
        let ground =
            Self { dir, bin, shim, before: Mutex::default(), big: OnceLock::new() };
        ground.rows(&data.join("dates_train.jsonl"))?;
        ground.results()?;
        let snapshot = ground.snapshot();
        *ground.before.lock().expect("not poisoned") = Some(snapshot);
        Ok(ground)
    }

    /// A ground that somebody else has made.
    #[cfg(test)]
    pub fn given(dir: PathBuf, bin: PathBuf) -> Self {
        let (before, big) = (Mutex::default(), OnceLock::new());
        let ground = Self { dir, bin, shim: None, before, big };
        ground.touched();
        ground
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// `downhill` and its subcommand.
    pub fn call(&self, command: &str) -> Call {
        Call::new(&self.bin).args([command])
    }

    /// A short fine-tune into `out`, its events beside it.
    pub fn finetune(&self, model: &str, rows: &str, out: &Path) -> Call {
        let logs = out.with_file_name("logs");
        self.call("finetune")
            .path("--model", self.at(model))
            .path("--train-file", self.at(rows))
            .args(SHORT)
            .path("--output-dir", out)
            .path("--logging-dir", logs)
    }

    /// Rows of every shape, made from the date task's.
    fn rows(&self, from: &Path) -> Result<()> {
        let text = sh::read(from)?;
        let rows: Vec<serde_json::Value> = text
            .lines()
            .take(64)
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()?;
        let write = |name: &str, row: &dyn Fn(usize, &str, &str) -> String| {
            let mut text = String::new();
            for (i, r) in rows.iter().enumerate() {
                let part =
                    |key: &str| r[key].as_str().unwrap_or_default().to_string();
                text += &row(i, &part("prompt"), &part("completion"));
                text.push('\n');
            }
            sh::write(&self.at(name), &text)
        };
        use serde_json::json;
        write("pairs.jsonl", &|_, p, c| {
            json!({"prompt": p, "completion": c}).to_string()
        })?;
        write("text.jsonl", &|_, p, c| {
            json!({"text": format!("{p}{c}")}).to_string()
        })?;
        write("chat.jsonl", &|_, p, c| {
            let turn =
                |role: &str, text: &str| json!({"role": role, "content": text});
            json!({"messages": [turn("user", p), turn("assistant", c)]}).to_string()
        })?;
        write("ids.jsonl", &|i, _, _| {
            let ids: Vec<usize> = (0..12).map(|k| 5 + (7 * i + k) % 90).collect();
            let labels: Vec<i64> = ids.iter().map(|n| *n as i64).collect();
            json!({"input_ids": ids, "labels": labels}).to_string()
        })?;
        let short = |p: &str| p.chars().take(40).collect::<String>();
        write("class.jsonl", &|i, p, _| {
            let label = ["a", "b", "c"][i % 3];
            json!({"text": short(p), "label": label}).to_string()
        })?;
        write("number.jsonl", &|i, p, _| {
            json!({"text": short(p), "label": i as f64 / 100.}).to_string()
        })?;
        write("table.csv", &|i, p, _| match i {
            0 => "text,label".into(),
            _ => format!(
                "\"{}\",{}",
                short(p).replace('"', "\"\""),
                ["x", "y"][i % 2]
            ),
        })
    }

    /// What the command makes: 4-bit folders, adapters, a run to go on with, a cache.
    fn results(&self) -> Result<()> {
        let quantize = |model: &str, out: &str, more: &[&str]| {
            let call = self.call("quantize").path("--model", self.at(model));
            good(call.path("--output-dir", self.at(out)).args(more))
        };
        quantize("model", "q", &[])?;
        quantize("model", "shards", &["--max-shard-size", "300KB"])?;
        for (model, rows, out, more) in [
            ("q", "pairs.jsonl", "made/adq", &["--max-steps", "1"][..]),
            (
                "model",
                "class.jsonl",
                "made/class",
                &["--max-steps", "1", "--task", "classification"],
            ),
            (
                "model",
                "pairs.jsonl",
                "made/run",
                &[
                    "--max-steps",
                    "4",
                    "--save-strategy",
                    "steps",
                    "--save-steps",
                    "2",
                ],
            ),
        ] {
            good(self.finetune(model, rows, &self.at(out)).args(more))?;
        }
        let cached = self.finetune("model", "pairs.jsonl", &self.at("made/cached"));
        let cache = self.at("made/cache");
        good(cached.args(["--max-steps", "1"]).path("--quantized-cache", cache))?;
        // A run that was stopped half-way.
        let run = self.at("made/run");
        for file in ["adapter_model.safetensors", "adapter_config.json"] {
            fs::copy(run.join(file), self.at("made").join(file)).ok();
        }
        fs::remove_dir_all(run.join("checkpoint-4")).ok();
        for entry in fs::read_dir(&run)?.flatten().filter(|e| e.path().is_file()) {
            fs::remove_file(entry.path())?;
        }
        fs::create_dir_all(self.at("made/ad"))?;
        for file in ["adapter_model.safetensors", "adapter_config.json"] {
            fs::rename(self.at("made").join(file), self.at("made/ad").join(file))?;
        }
        Ok(())
    }

    /// Rows of more than 64 MiB, which are streamed; padded, so that there are few.
    pub fn big(&self) -> Result<PathBuf> {
        let made = self.big.get_or_init(|| {
            let make = || -> Result<PathBuf> {
                let text = sh::read(&self.at("pairs.jsonl"))?;
                let mut all = String::new();
                for line in text.lines().cycle().take(3400) {
                    all += line;
                    all += &" ".repeat(20_000);
                    all.push('\n');
                }
                let path = self.dir.with_file_name("big.jsonl");
                fs::write(&path, all)?;
                Ok(path)
            };
            make().map_err(|e| e.to_string())
        });
        made.clone().map_err(anyhow::Error::msg)
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(&[&self.dir])
    }

    /// What was changed here since it was last asked.
    pub fn touched(&self) -> Vec<String> {
        let Ok(mut before) = self.before.lock() else { return vec![] };
        let now = self.snapshot();
        let changes = before.as_ref().map(|b| b.changes(&now, true));
        *before = Some(now);
        changes.unwrap_or_default()
    }
}

/// Runs what has to work.
pub fn good(call: Call) -> Result<Ended> {
    let ended = call.run(300)?;
    if ended.code != Some(0) {
        bail!("{} ended with {}:\n{}", call.line(), ended.how(), ended.err);
    }
    Ok(ended)
}

/// A fresh folder with a copy of one of the ground's.
pub fn copied(from: &Path, to: &Path) -> Result<PathBuf> {
    sh::copy_tree(from, to)?;
    ensure!(to.is_dir(), "{} has no files", from.display());
    Ok(to.to_path_buf())
}

/// An empty folder of that name.
pub fn fresh(dir: &Path) -> Result<()> {
    fs::remove_dir_all(dir).ok();
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))
}
