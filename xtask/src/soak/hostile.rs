//! Hostile files: every reader is given what it does not expect, in a copy of good
//! files of which one is damaged. Whatever comes, the command ends within twenty
//! seconds and two gigabytes, done or with one readable line.

use super::child::{Call, Ended};
use super::files::{self, Snapshot};
use super::ground::{self, SHORT};
use super::judge::Cause;
use super::mutate::{self, Format};
use super::{More, Place};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Seconds of a processor, and KiB of memory.
const SECONDS: u64 = 20;
const MEMORY: u64 = 2 << 20;

/// What reads a file.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reader {
    Doctor,
    Preview,
    Check,
    Generate,
    Chat,
    Evaluate,
    Finetune,
    Merge,
    Quantize,
    InitAdapter,
    Resume,
    Config,
    Cached,
    Streamed,
}
use Reader::*;

/// A damaged file: which checkpoints it may lie in or beside, and what of the ground it
/// is part of (the checkpoint itself where that is empty); the end of its name; how it
/// is to be read, and by what.
struct Target(
    &'static [&'static str],
    &'static str,
    &'static str,
    Format,
    &'static [Reader],
);

const EACH: &[&str] = &["model", "q", "moe"];
const FULL: &[&str] = &["model", "moe"];
const ALL: &[Reader] =
    &[Doctor, Preview, Generate, Evaluate, Finetune, Merge, Quantize];
const ROWS: &[Reader] = &[Preview, Check, Finetune, Evaluate];
const ADAPTED: &[Reader] = &[Generate, Evaluate, Merge, InitAdapter];
const CLASS: &[Reader] = &[Evaluate, Evaluate, Generate, InitAdapter];
const TEXTS: &[Reader] = &[Preview, Generate, Chat, Finetune];
const WEIGHTS: &str = "model.safetensors";
const ADAPTER: &str = "adapter_model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

const TARGETS: &[Target] = &[
    Target(EACH, "", "config.json", Format::Json, ALL),
    Target(EACH, "", "generation_config.json", Format::Json, &[Generate, Chat]),
    Target(&["q"], "", "tokenizer.json", Format::Json, TEXTS),
    Target(&["q"], "", "tokenizer_config.json", Format::Template, TEXTS),
    Target(FULL, "", WEIGHTS, Format::Safetensors, ALL),
    Target(&["q"], "", WEIGHTS, Format::Safetensors, ALL),
    Target(&["shards"], "", INDEX, Format::Json, ALL),
    Target(&["shards"], "", ".safetensors", Format::Safetensors, ALL),
    Target(&["model"], "made/ad", ".json", Format::Json, ADAPTED),
    Target(&["model"], "made/ad", ADAPTER, Format::Safetensors, ADAPTED),
    Target(&["model"], "made/class", "config.json", Format::Json, CLASS),
    Target(&["model"], "made/class", ADAPTER, Format::Safetensors, CLASS),
    Target(&["model"], "made/run", "state.json", Format::Json, &[Resume]),
    Target(&["model"], "made/run", ".json", Format::Json, &[Resume]),
    Target(
        &["model"],
        "made/run",
        "optimizer.safetensors",
        Format::Safetensors,
        &[Resume],
    ),
    Target(&["model"], "made/run", ".safetensors", Format::Safetensors, &[Resume]),
    Target(&["model"], "made/cache", ".json", Format::Json, &[Cached]),
    Target(&["model"], "made/cache", ".safetensors", Format::Safetensors, &[Cached]),
    Target(EACH, "pairs.jsonl", "", Format::JsonLines, ROWS),
    Target(EACH, "text.jsonl", "", Format::JsonLines, ROWS),
    Target(EACH, "chat.jsonl", "", Format::JsonLines, ROWS),
    Target(EACH, "ids.jsonl", "", Format::JsonLines, ROWS),
    Target(&["q"], "class.jsonl", "", Format::JsonLines, &[Finetune, Evaluate]),
    Target(&["q"], "number.jsonl", "", Format::JsonLines, &[Finetune]),
    Target(&["q"], "table.csv", "", Format::Csv, &[Finetune, Evaluate]),
    Target(&["q"], "run.toml", "", Format::Toml, &[Config]),
];

/// Reading 64 MiB takes a while, so this is tried once in a hundred times.
const STREAMED: Target =
    Target(&["model"], "streamed", "row_lengths.bin", Format::Bytes, &[Streamed]);

pub fn case(place: &mut Place<'_>) -> Result<More> {
    let target = match place.case.is_multiple_of(100) {
        true => &STREAMED,
        false => &TARGETS[(place.case as usize - 1) % TARGETS.len()],
    };
    let Target(models, beside, ending, format, readers) = target;
    let reader = *place.rng.of(readers);
    let input = place.work.join("in");
    let model = *place.rng.of(models);
    ground::copied(&place.ground.at(model), &input.join("model"))?;
    let folder = with_beside(place, beside, &input)?;
    let file = match ending.is_empty() {
        true => folder.clone(),
        false => one_of(place, &folder, ending)?,
    };
    let done = match place.rng.once_in(20) {
        true => something_else(place, &file)?,
        false => {
            let bytes = fs::read(&file)?;
            let (bytes, done) = mutate::mutate(&bytes, *format, &mut place.rng);
            fs::write(&file, bytes)?;
            done
        }
    };
    place.report.count("hostile inputs", 1);
    let shown =
        file.strip_prefix(&place.work).unwrap_or(&file).display().to_string();
    let name = if ending.is_empty() { *beside } else { &shown };
    let done: String = done.chars().take(200).collect();
    let when = format!("{reader:?} of {model}, {name}: {done:?}");
    let call = call(place, reader, beside)?
        .memory(MEMORY)
        .before(format!("ulimit -t {SECONDS}"));
    let before = Snapshot::of(&[&place.work]);
    let inputs = Snapshot::of(&[&input]);
    let ended = call.run(place.clock)?;
    judge(place, &ended, reader, &when, &call);
    let changes = inputs.changes(&Snapshot::of(&[&input]), true);
    for what in changes {
        place.found(Cause::Touched, &when, what, &call);
    }
    for what in files::torn(&place.work, Some(&before)) {
        place.found(Cause::Torn, &when, what, &call);
    }
    for left in files::partials(&place.work) {
        place.found(Cause::Leftover, &when, left, &call);
    }
    Ok(More::Yes)
}

/// Copies what lies beside the checkpoint, and says where the damage may go.
fn with_beside(place: &Place<'_>, beside: &str, input: &Path) -> Result<PathBuf> {
    let ground = place.ground;
    match beside {
        "" => Ok(input.join("model")),
        // Resumed runs write where they were, which is no input.
        "made/run" => ground::copied(&ground.at(beside), &place.work.join("out")),
        // As are the files of a cache.
        "made/cache" => {
            ground::copied(&ground.at(beside), &place.work.join("cache"))
        }
        "streamed" => ground::copied(&streamed(place)?, &place.work.join("out")),
        "run.toml" => {
            let file = input.join(beside);
            let text = crate::sh::read(
                &crate::sh::root().join("examples/data/finetune.toml"),
            )?;
            let keys = ["model", "train-file", "eval-file", "predict-with-generate"];
            let other = |line: &&str| {
                let key = line.split_once('=').map_or("", |(key, _)| key.trim());
                !line.starts_with('#') && !line.is_empty() && !keys.contains(&key)
            };
            let lines: Vec<&str> = text.lines().filter(other).collect();
            crate::sh::write(&file, &lines.join("\n"))?;
            Ok(file)
        }
        _ if beside.starts_with("made/") => {
            ground::copied(&ground.at(beside), &input.join("beside"))
        }
        _ => {
            let file = input.join(beside);
            fs::copy(ground.at(beside), &file)?;
            Ok(file)
        }
    }
}

/// A folder with the lengths of streamed rows, as a run leaves it.
fn streamed(place: &Place<'_>) -> Result<PathBuf> {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    if let Some(made) = MADE.get() {
        return Ok(made.clone());
    }
    let out = place.work.with_extension("streamed").join("out");
    ground::fresh(&out)?;
    let big = place.ground.big()?;
    let call =
        place.ground.call("finetune").path("--model", place.ground.at("model"));
    let call = call.path("--train-file", big).path("--output-dir", &out);
    let call = call.path("--logging-dir", out.with_file_name("logs"));
    let packed = ["--packing", "--max-steps", "1"];
    ground::good(call.args(SHORT).args(packed))?;
    for (path, _) in files::all(&out) {
        if path.is_file() && !path.ends_with("row_lengths.bin") {
            fs::remove_file(path)?;
        }
    }
    Ok(MADE.get_or_init(|| out).clone())
}

/// One of the files below a folder whose names end so.
fn one_of(place: &mut Place<'_>, folder: &Path, ending: &str) -> Result<PathBuf> {
    let ends = |p: &PathBuf| p.is_file() && p.to_string_lossy().ends_with(ending);
    let all = files::all(folder).into_iter().map(|(p, _)| p).filter(ends);
    let all: Vec<PathBuf> = all.collect();
    let one = all.get(place.rng.below(all.len())).cloned();
    one.with_context(|| format!("no …{ending} in {}", folder.display()))
}

/// No file at all where one is expected.
fn something_else(place: &mut Place<'_>, file: &Path) -> Result<String> {
    fs::remove_file(file)?;
    let of = |what: &str| Ok(what.to_string());
    match place.rng.below(8) {
        0 => of("is missing"),
        1 => {
            fs::create_dir(file)?;
            of("is a folder")
        }
        2 => {
            Command::new("mkfifo").arg(file).status()?;
            of("is a pipe")
        }
        3 => {
            symlink("/dev/zero", file)?;
            of("is a link to /dev/zero")
        }
        4 => {
            symlink(file, file)?;
            of("is a link to itself")
        }
        5 => {
            symlink("/dev/null", file)?;
            of("is a link to /dev/null")
        }
        6 => {
            // Sparse: long, and nothing on the disk.
            fs::File::create(file)?.set_len(1 << 40)?;
            of("is a terabyte of zeros")
        }
        _ => {
            symlink("/proc/self/mem", file)?;
            of("is a link to /proc/self/mem")
        }
    }
}

/// The command that reads it.
fn call(place: &Place<'_>, reader: Reader, beside: &str) -> Result<Call> {
    let (ground, input) = (place.ground, place.work.join("in"));
    let (out, logs) = (place.work.join("out"), place.work.join("logs"));
    let adapter = match beside {
        "made/ad" | "made/class" => input.join("beside"),
        _ => ground.at("made/ad"),
    };
    let class = matches!(beside, "made/class" | "class.jsonl" | "table.csv");
    let rows = match beside {
        "made/class" => ground.at("class.jsonl"),
        _ if beside.ends_with(".jsonl") || beside.ends_with(".csv") => {
            input.join(beside)
        }
        _ if reader == Preview => ground.at("chat.jsonl"),
        _ => ground.at("pairs.jsonl"),
    };
    let to = |name: &str| ground.call(name).path("--model", input.join("model"));
    let task = |call: Call| match class {
        true => call.args(["--task", "classification"]),
        false if beside == "number.jsonl" => call.args(["--task", "regression"]),
        false => call,
    };
    let with_adapter = |call: Call| match beside.starts_with("made/") {
        true => call.path("--adapter", &adapter),
        false => call,
    };
    let two = ["--max-new-tokens", "2"];
    let train = |rows: &Path, steps: &str| {
        let call = to("finetune").path("--train-file", rows).args(SHORT);
        let call = call.path("--output-dir", &out).path("--logging-dir", &logs);
        task(call.args(["--max-steps", steps]))
    };
    Ok(match reader {
        Doctor => to("doctor"),
        Preview => to("preview").path("--train-file", rows),
        Check => to("preview").path("--train-file", rows).args(["--check"]),
        Generate => with_adapter(to("generate").args(["--prompt", "The"]).args(two)),
        Chat => to("generate").args(["--chat", "--prompt", "The"]).args(two),
        Evaluate => task(with_adapter(to("evaluate").path("--eval-file", rows))),
        Finetune => train(&rows, "1"),
        Merge => to("merge")
            .path("--adapter", adapter)
            .path("--output-dir", &out)
            .args(["--into", "dequantized"]),
        Quantize => to("quantize").path("--output-dir", &out),
        InitAdapter => train(&rows, "1").path("--init-adapter", adapter),
        Resume => train(&rows, "4").args([
            "--save-strategy",
            "steps",
            "--save-steps",
            "2",
            "--resume",
        ]),
        Config => train(&rows, "1").path("--config", input.join("run.toml")),
        Cached => {
            train(&rows, "1").path("--quantized-cache", place.work.join("cache"))
        }
        Streamed => train(&ground.big()?, "1").args(["--packing", "--resume"]),
    })
}

fn judge(place: &Place<'_>, ended: &Ended, reader: Reader, when: &str, call: &Call) {
    // Bad values of flags, which a file of settings has, are clap's.
    let codes: &[i32] = if reader == Config { &[0, 1, 2] } else { &[0, 1] };
    // The system ends what has used its seconds of the processor.
    if matches!(ended.signal, Some(24)) {
        let what = format!("{SECONDS} s of a processor: {}", ended.last_line());
        return place.found(Cause::Hang, when, what, call);
    }
    // A list of bad rows is what `--check` is for.
    if reader == Check && ended.code == Some(1) && ended.err.is_empty() {
        return;
    }
    let good = place.judged(ended, codes, when, call);
    let shown = matches!(reader, Doctor | Preview | Check);
    let raw = |c: &char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    if shown && let Some(c) = ended.out.chars().find(raw) {
        let what = format!("{c:?} on stdout");
        place.found(Cause::Control, when, what, call);
    }
    let message = ended.message();
    let work = place.work.to_string_lossy();
    let named = message.contains(&*work) || message.contains("--");
    if good && ended.code == Some(1) && !named && !message.contains('`') {
        let what = format!("names nothing: {}", ended.last_line());
        place.found(Cause::Message, when, what, call);
    }
}
