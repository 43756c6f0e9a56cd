//! The readers, and the files that they are given.
use super::mutate::Format;
use anyhow::{Context, Result, bail};
use clap::Parser;
use downhill::checkpoint::{Checkpoint, Writer, read_safetensors, save_safetensors};
use downhill::data::{
    Dataset, Labelled, Labels, Message, RowEncoder, Table, Tokenizer, check,
};
use downhill::tch::{Device, Kind, Tensor};
use downhill::train::{Base, Run, Settings};
use downhill::{Error, lora, models, quant::bnb};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Of the checkpoints that ship.
const VOCABULARY: i64 = 2048;

/// What the soak made, for readers that need more than their folder.
static GROUND: OnceLock<PathBuf> = OnceLock::new();
/// A file that is damaged, its name in the folder that is read.
pub struct File {
    pub name: &'static str,
    pub format: Format,
    pub good: Vec<u8>,
    /// Damaged ones that brought a new message.
    pub grown: Vec<Vec<u8>>,
}

/// A reader of what lies in a folder.
pub type Read = fn(&Path) -> downhill::Result<()>;

fn file(name: &'static str, format: Format, good: Vec<u8>) -> File {
    File { name, format, good, grown: vec![] }
}

/// The files of a target, what else it needs put into `input`, and the reader.
pub fn target(name: &str, ground: &Path, input: &Path) -> Result<(Vec<File>, Read)> {
    let get = |name: &str| {
        let path = ground.join(name);
        fs::read(&path).with_context(|| path.display().to_string())
    };
    let put =
        |from: &str, to: &str| fs::write(input.join(to), get(from)?).context("");
    let few = |name: &str| -> Result<Vec<u8>> {
        let text = String::from_utf8(get(name)?)?;
        let lines: Vec<&str> = text.lines().take(6).collect();
        Ok(lines.join("\n").into_bytes())
    };
    use Format::{Csv, Json, JsonLines, Safetensors, Template};
    Ok(match name {
        "safetensors" => {
            let path = input.join("model.safetensors");
            save_safetensors(&path, &small(), &[("format", "pt")])?;
            let bytes = fs::read(&path)?;
            (vec![file("model.safetensors", Safetensors, bytes)], safetensors)
        }
        "index" => {
            let all = small();
            let names = || all.iter().map(|(n, _)| n.as_str());
            let mut writer = Writer::new(input, 100, names());
            for (name, t) in &all {
                writer.push(name, t)?;
            }
            writer.finish()?;
            let name = "model.safetensors.index.json";
            (vec![file(name, Json, fs::read(input.join(name))?)], checkpoint)
        }
        "quant_state" => {
            let path = input.join("model.safetensors");
            save_safetensors(&path, &quantized(ground)?, &[("format", "pt")])?;
            let bytes = fs::read(&path)?;
            (vec![file("model.safetensors", Safetensors, bytes)], quant_state)
        }
        "rows" => {
            put("model/tokenizer.json", "tokenizer.json")?;
            put("model/tokenizer_config.json", "tokenizer_config.json")?;
            let files = ["pairs.jsonl", "text.jsonl", "chat.jsonl", "ids.jsonl"];
            let files = files.map(|n| Ok(file(n, JsonLines, few(n)?)));
            (files.into_iter().collect::<Result<_>>()?, rows)
        }
        "labelled" => {
            put("model/tokenizer.json", "tokenizer.json")?;
            put("model/tokenizer_config.json", "tokenizer_config.json")?;
            let class = file("class.jsonl", JsonLines, few("class.jsonl")?);
            let number = file("number.jsonl", JsonLines, few("number.jsonl")?);
            (
                vec![class, number, file("table.csv", Csv, few("table.csv")?)],
                labelled,
            )
        }
        "table" => (vec![file("table.csv", Csv, few("table.csv")?)], |dir| {
            let table = Table::read(dir.join("table.csv"), &[])?;
            for name in table.names() {
                table.column(name)?;
                let _ = (table.numbers(name).is_ok(), table.classes(name).is_ok());
            }
            Ok(())
        }),
        "adapter_config" => {
            let name = "adapter_config.json";
            (vec![file(name, Json, get("made/ad/adapter_config.json")?)], |dir| {
                let config = lora::read_config(dir)?;
                config.check()?;
                config.adapter_for("model.layers.0.self_attn.q_proj").map(drop)
            })
        }
        "config" => {
            put("model/model.safetensors", "model.safetensors")?;
            put("model/generation_config.json", "generation_config.json")?;
            let config = get("model/config.json")?;
            (vec![file("config.json", Json, config)], config_of)
        }
        "tokenizer" => {
            put("model/config.json", "config.json")?;
            put("model/tokenizer_config.json", "tokenizer_config.json")?;
            let json = get("model/tokenizer.json")?;
            (vec![file("tokenizer.json", Json, json)], tokenizer)
        }
        "template" => {
            put("model/config.json", "config.json")?;
            put("model/tokenizer.json", "tokenizer.json")?;
            let about = get("model/tokenizer_config.json")?;
            let more = get("model/generation_config.json")?;
            (
                vec![
                    file("tokenizer_config.json", Template, about),
                    file("generation_config.json", Json, more),
                ],
                tokenizer,
            )
        }
        "resume" => {
            GROUND.get_or_init(|| ground.to_path_buf());
            let folder = ground.join("made/run/checkpoint-2");
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                let name = path.file_name().context("a file")?;
                fs::copy(&path, input.join(format!("ck-{}", name.display())))?;
            }
            let kept = |n: &str| get(&format!("made/run/checkpoint-2/{n}"));
            let tensors =
                ["ck-optimizer.safetensors", "ck-adapter_model.safetensors"];
            let mut files = vec![
                file("ck-trainer_state.json", Json, kept("trainer_state.json")?),
                file("ck-adapter_config.json", Json, kept("adapter_config.json")?),
            ];
            for name in tensors {
                files.push(file(name, Safetensors, kept(&name[3..])?));
            }
            (files, resume)
        }
        _ => bail!("there is no target {name}"),
    })
}

/// A tensor of each kind and of odd shapes.
fn small() -> Vec<(String, Tensor)> {
    let of = |shape: &[i64], kind| {
        Tensor::ones(shape, (Kind::Float, Device::Cpu)).to_kind(kind)
    };
    let kinds = [Kind::Double, Kind::Half, Kind::BFloat16, Kind::Int64, Kind::Uint8];
    let mut all: Vec<(String, Tensor)> = kinds
        .iter()
        .map(|kind| (format!("of.{kind:?}"), of(&[2, 3], *kind)))
        .collect();
    all.push(("scalar".into(), of(&[], Kind::Float)));
    all.push(("empty".into(), of(&[0, 4], Kind::Float)));
    all.push(("flag".into(), of(&[3], Kind::Bool)));
    all.push(("w".into(), of(&[130, 4], Kind::Float8e4m3fn)));
    all.push(("w_scale_inv".into(), of(&[2, 1], Kind::Float)));
    all
}

/// The parts of the smallest quantized matrix.
fn quantized(ground: &Path) -> Result<Vec<(String, Tensor)>> {
    let checkpoint = Checkpoint::open(ground.join("q"))?;
    let weights = checkpoint.names().filter_map(|n| n.strip_suffix(bnb::STATE));
    let size =
        |n: &str| checkpoint.shape(n).map_or(i64::MAX, |s| s.iter().product());
    let weight = weights.min_by_key(|n| size(n)).context("no quantized weight")?;
    let parts = checkpoint.names().filter(|n| n.starts_with(weight));
    let part = |n: &str| Ok((n.replace(weight, "weight"), checkpoint.tensor(n)?));
    parts.map(part).collect()
}

fn safetensors(dir: &Path) -> downhill::Result<()> {
    let file = read_safetensors(&dir.join("model.safetensors"));
    checkpoint(dir)?;
    file.map(drop)
}

/// Everything that a checkpoint's folder is asked.
fn checkpoint(dir: &Path) -> downhill::Result<()> {
    let checkpoint = Checkpoint::open(dir)?;
    let _ = checkpoint.bytes();
    let mut failed = Ok(());
    for name in checkpoint.names() {
        checkpoint.shape(name)?;
        checkpoint.checksum(name)?;
        let read = match checkpoint.is_fp8(name) {
            true => checkpoint.fp8(name, Kind::Float),
            false => checkpoint.tensor(name),
        };
        if let Err(e) = read {
            failed = Err(e);
        }
    }
    failed
}

fn quant_state(dir: &Path) -> downhill::Result<()> {
    let checkpoint = Checkpoint::open(dir)?;
    let part = &mut |suffix: &str| checkpoint.tensor(&format!("weight{suffix}"));
    let stored = bnb::Stored::read(part)?;
    let _ = stored.matrix.dequantize(Kind::Float);
    stored.parts().map(drop)
}

fn rows(dir: &Path) -> downhill::Result<()> {
    let tokenizer = Tokenizer::from_dir(dir)?;
    for name in ["pairs.jsonl", "text.jsonl", "chat.jsonl", "ids.jsonl"] {
        let encoder = RowEncoder::new(Some(&tokenizer), 48, VOCABULARY);
        let mut worst = None;
        check(dir.join(name), &encoder, &mut |bad| worst = Some(bad.what))?;
        if let Some(what) = worst {
            return Err(Error::file(dir, what.to_string()));
        }
        Dataset::read(dir.join(name), encoder)?;
    }
    Ok(())
}

fn labelled(dir: &Path) -> downhill::Result<()> {
    let tokenizer = Tokenizer::from_dir(dir)?;
    let load = |name: &str, labels: Labels| {
        Labelled::load(dir.join(name), Some(&tokenizer), (48, VOCABULARY), &labels)
    };
    load("class.jsonl", Labels::Classes(vec![]))?.split(0.3, 1)?;
    load("table.csv", Labels::Classes(vec![]))?.counts();
    load("number.jsonl", Labels::Numbers).map(drop)
}

fn config_of(dir: &Path) -> downhill::Result<()> {
    models::read_config(dir)?;
    let survey = models::survey(dir)?;
    let _ = survey.weight_bytes(Some(64), Kind::Float);
    let _ = survey.compiled_bytes(Kind::Float);
    let _ = survey.adapter_parameters(16, &["q_proj"]);
    Ok(())
}

fn tokenizer(dir: &Path) -> downhill::Result<()> {
    let tokenizer = Tokenizer::from_dir(dir)?;
    let ids = tokenizer.encode("Größe, 12 \u{1f9ea}\n\n  <|x|> aaaaaaaa!", true)?;
    tokenizer.decode(&ids)?;
    tokenizer.decode_all(&ids)?;
    let messages = [Message::new("user", "a"), Message::new("assistant", "b\u{0}")];
    tokenizer.chat_prompt(&messages).map(drop)
}

/// The run's settings are flags, as anywhere.
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

/// Goes on from what lies in `dir` as `ck-…`; model and rows are the ground's, by the
/// names that the run began with.
fn resume(dir: &Path) -> downhill::Result<()> {
    let io = |path: &Path, e: std::io::Error| Error::file(path, e.to_string());
    for old in ["out", "logs"] {
        fs::remove_dir_all(dir.join(old)).ok();
    }
    let out = dir.join("out/checkpoint-2");
    fs::create_dir_all(&out).map_err(|e| io(&out, e))?;
    for entry in fs::read_dir(dir).map_err(|e| io(dir, e))?.flatten() {
        if let Some(name) = entry.file_name().to_string_lossy().strip_prefix("ck-") {
            let to = out.join(name);
            fs::copy(entry.path(), &to).map_err(|e| io(&to, e))?;
        }
    }
    let path = |name: &str| dir.join(name).display().to_string();
    let ground = GROUND.get().map_or(dir, PathBuf::as_path);
    let flags = Flags::try_parse_from([
        "fuzz".into(),
        format!("--model={}", ground.join("model").display()),
        format!("--train-file={}", ground.join("pairs.jsonl").display()),
        format!("--output-dir={}", path("out")),
        format!("--logging-dir={}", path("logs")),
        format!("--resume={}", out.display()),
        "--max-steps=4".into(),
        "--max-length=48".into(),
        "--per-device-train-batch-size=1".into(),
        "--gradient-accumulation-steps=1".into(),
        "--save-strategy=steps".into(),
        "--save-steps=2".into(),
    ]);
    let flags = flags.map_err(|e| Error::setting("flags", e.to_string()))?;
    let base = Base::load(&flags.settings, &mut |_| ())?;
    Run::start(base, flags.settings, &mut |_| ()).map(drop)
}
