//! What an earlier run left in an output folder, and what somebody else put there.
use super::{Task, state};
use crate::{Error, Result};
use serde_json::Value;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The file by which a folder is known in which a run of ours has begun and not ended.
pub(super) const MARK: &str = ".downhill-run.json";

/// The lengths of a streamed file's rows, to be taken up by the next run.
pub(super) const LENGTHS: &str = "row_lengths.bin";

/// What a run writes into its output folder, and into a checkpoint.
const WRITTEN: [&str; 8] = [
    "adapter_model.safetensors",
    "adapter_config.json",
    state::STATE,
    "report.html",
    "loss.svg",
    "learning_rate.svg",
    "grad_norm.svg",
    "memory.svg",
];
/// And where rows are classified or given numbers.
const WITH_HEAD: [&str; 2] = ["config.json", "confusion.svg"];
const OPTIMIZER: &str = "optimizer.safetensors";
const IN_CHECKPOINT: [&str; 6] = [
    "adapter_model.safetensors",
    "adapter_config.json",
    "config.json",
    "manifest.json",
    OPTIMIZER,
    state::STATE,
];

/// What is in an output folder before a run begins in it.
pub(super) struct Found {
    /// Whether there is more of an earlier run than what the next one takes up.
    pub(super) used: bool,
    /// What an earlier run wrote.
    pub(super) ours: Vec<PathBuf>,
    /// Something of somebody else, in whose place this run would write.
    pub(super) foreign: Option<PathBuf>,
}

impl Found {
    pub(super) fn new(dir: &Path, task: Task) -> Result<Self> {
        let mut entries = vec![];
        match fs::read_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(dir, e)),
            Ok(all) => {
                for entry in all {
                    let entry = entry.map_err(|e| Error::io(dir, e))?;
                    entries.push(PathBuf::from(entry.file_name()));
                }
            }
        }
        entries.sort();
        let earlier = earlier_task(dir, &entries);
        let (mut ours, mut foreign) = (vec![], None);
        let (theirs, next) = (earlier.map(files), files(task));
        for name in entries {
            let text = name.to_string_lossy();
            let path = dir.join(&name);
            let plain = path.symlink_metadata().is_ok_and(|m| m.is_file());
            let known = theirs.as_ref().is_some_and(|f| f.contains(&&*text));
            if known && plain || is_checkpoint(&path) {
                ours.push(name);
            } else if next.contains(&&*text)
                || is_numbered(&text) && !is_empty(&path)
            {
                foreign = foreign.or(Some(name));
            }
        }
        let used = ours.iter().any(|name| name != Path::new(LENGTHS));
        Ok(Self { used, ours, foreign })
    }
}

/// The names that a run gives.
fn files(task: Task) -> Vec<&'static str> {
    let head: &[&str] = if task == Task::CausalLm { &[] } else { &WITH_HEAD };
    [&WRITTEN[..], head, &[LENGTHS]].concat()
}

/// What the run did that wrote here; none if there was none.
fn earlier_task(dir: &Path, entries: &[PathBuf]) -> Option<Task> {
    let task = |value: &Value| serde_json::from_value::<String>(value.clone()).ok();
    let states = entries.iter().filter(|n| is_numbered(&n.to_string_lossy()));
    let states = states.map(|n| dir.join(n).join(state::STATE));
    let named = [MARK, state::STATE].map(|name| dir.join(name));
    let named = named.into_iter().chain(states).find_map(|path| {
        let json = read(&path);
        // Other trainers write a file of that name as well.
        task(&json["task"]).filter(|_| path.ends_with(MARK)).or_else(|| {
            let settings = &json["settings"];
            task(&settings["task"]).filter(|_| settings["output_dir"].is_string())
        })
    })?;
    let all = [Task::CausalLm, Task::Classification, Task::Regression];
    all.into_iter().find(|t| serde_json::to_value(t).is_ok_and(|v| v == named))
}

fn is_numbered(name: &str) -> bool {
    name.strip_prefix("checkpoint-").is_some_and(|n| n.parse::<u64>().is_ok())
}

/// Whether this is a checkpoint of a run of ours, whole or damaged, and nothing else is
/// in it.
fn is_checkpoint(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if !is_numbered(&name) || !path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
        return false;
    }
    let own = |entry: io::Result<fs::DirEntry>| {
        let name = entry.map(|e| e.file_name()).unwrap_or_default();
        IN_CHECKPOINT.iter().any(|n| name == *n)
    };
    let state = || read(&path.join(state::STATE));
    // Other trainers call theirs optimizer.pt.
    (path.join(OPTIMIZER).exists() || state()["settings"]["output_dir"].is_string())
        && fs::read_dir(path).is_ok_and(|mut all| all.all(own))
}

fn is_empty(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut all| all.next().is_none())
}

pub(super) fn read(path: &Path) -> Value {
    let text = crate::files::text(path).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Moves these files of `dir` into a new folder beside it, or, where there can be none
/// (another disk is mounted here), within it. Returns the new folder.
pub(super) fn set_aside(dir: &Path, names: &[PathBuf]) -> Result<PathBuf> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let beside = |n: u32| dir.with_file_name(format!("{name}.{n}"));
    let within = |n: u32| dir.join(format!("earlier-{n}"));
    numbered(beside)
        .and_then(|aside| move_all(dir, names, aside))
        .or_else(|_| numbered(within).and_then(|aside| move_all(dir, names, aside)))
        .map_err(|e| Error::io(dir, e))
}

/// The first of these folders that is not there yet, made.
pub(super) fn numbered(path: impl Fn(u32) -> PathBuf) -> io::Result<PathBuf> {
    for n in 1.. {
        let path = path(n);
        match fs::create_dir(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            done => return done.map(|()| path),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// All of them or none.
fn move_all(dir: &Path, names: &[PathBuf], aside: PathBuf) -> io::Result<PathBuf> {
    for (i, name) in names.iter().enumerate() {
        if let Err(e) = fs::rename(dir.join(name), aside.join(name)) {
            for name in &names[..i] {
                let _ = fs::rename(aside.join(name), dir.join(name));
            }
            let _ = fs::remove_dir(&aside);
            return Err(e);
        }
    }
    Ok(aside)
}
