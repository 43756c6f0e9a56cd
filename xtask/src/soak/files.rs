//! Folders looked at from outside: what changed, what is whole, what the bits are.

use super::tensors;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Everything below a folder, links not followed.
pub fn all(dir: &Path) -> Vec<(PathBuf, Metadata)> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for path in entries.flatten().map(|e| e.path()) {
        let Ok(about) = fs::symlink_metadata(&path) else { continue };
        if about.is_dir() {
            found.extend(all(&path));
        }
        found.push((path, about));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// What the system says of each file: another inode, time or length is a change.
#[derive(Clone, PartialEq)]
pub struct Snapshot(BTreeMap<PathBuf, (u64, u64, i64, i64)>);

impl Snapshot {
    pub fn of(dirs: &[&Path]) -> Self {
        let mut map = BTreeMap::new();
        for (path, about) in dirs.iter().flat_map(|dir| all(dir)) {
            // A folder's time changes with what is in it, which has its own entry.
            let times = (about.ctime(), about.ctime_nsec());
            let (time, nano) = if about.is_dir() { (0, 0) } else { times };
            let size = if about.is_dir() { 0 } else { about.len() };
            map.insert(path, (about.ino(), size, time, nano));
        }
        Self(map)
    }

    /// The files that are gone or others since, and with `new` those that came.
    pub fn changes(&self, now: &Self, new: bool) -> Vec<String> {
        let gone = self.0.iter().filter_map(|(path, was)| match now.0.get(path) {
            None => Some(format!("{} is gone", path.display())),
            Some(is) if is != was => Some(format!("{} changed", path.display())),
            Some(_) => None,
        });
        let came = now.0.keys().filter(|p| new && !self.0.contains_key(*p));
        gone.chain(came.map(|p| format!("{} is new", p.display()))).collect()
    }

    fn holds(&self, path: &Path, about: &Metadata) -> bool {
        let is = (about.ino(), about.len(), about.ctime(), about.ctime_nsec());
        self.0.get(path) == Some(&is)
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A name that says of itself that the file is not complete.
pub fn is_partial(path: &Path) -> bool {
    path.components().any(|part| {
        let part = part.as_os_str().to_string_lossy();
        part.contains(".partial") || part.ends_with(".unpacked")
    })
}

const OF_A_CHECKPOINT: [&str; 4] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.safetensors",
    "trainer_state.json",
];

/// The files below `dir` that bear a final name and are not whole; those that were
/// there `before` are the user's own.
pub fn torn(dir: &Path, before: Option<&Snapshot>) -> Vec<String> {
    let mut found = Vec::new();
    for (path, about) in all(dir) {
        let inside = path.strip_prefix(dir).unwrap_or(&path);
        let old = before.is_some_and(|b| b.holds(&path, &about));
        if old || is_partial(inside) || name(&path).starts_with('.') {
            continue;
        }
        let shown = inside.display();
        if about.is_dir() {
            let old = before.is_some_and(|b| b.0.contains_key(&path));
            if name(&path).starts_with("checkpoint-") && !old {
                let lacks =
                    OF_A_CHECKPOINT.iter().filter(|f| !path.join(f).is_file());
                let lacks: Vec<_> = lacks.copied().collect();
                if !lacks.is_empty() {
                    found.push(format!("{shown} lacks {}", lacks.join(", ")));
                }
            }
            continue;
        }
        let Ok(bytes) = fs::read(&path) else { continue };
        let ends = |end: &str| bytes.trim_ascii_end().ends_with(end.as_bytes());
        let good = match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => tensors::whole(&bytes),
            Some("json") => serde_json::from_slice::<Value>(&bytes).is_ok(),
            Some("svg") => ends("</svg>"),
            Some("html") => ends("</html>"),
            _ => true,
        };
        if !good {
            found.push(format!("{shown} ({} bytes) is not whole", bytes.len()));
        }
    }
    found
}

/// The unfinished files below a folder.
pub fn partials(dir: &Path) -> Vec<String> {
    let inside = |p: PathBuf| p.strip_prefix(dir).map(Path::to_path_buf).ok();
    let names = all(dir).into_iter().filter_map(|(p, _)| inside(p));
    names.filter(|p| is_partial(p)).map(|p| p.display().to_string()).collect()
}

/// The bits of a result: a number for each file below `dir`, 0 for those that hold
/// times or speeds. Paths in it are read as from `work`.
pub fn digest(dir: &Path, work: &Path) -> BTreeMap<String, u64> {
    let mut map = BTreeMap::new();
    for (path, about) in all(dir) {
        let file = name(&path);
        if about.is_dir() || file.contains("tfevents") {
            continue;
        }
        let bytes = fs::read(&path).unwrap_or_default();
        let bytes = match file.as_str() {
            "trainer_state.json" => learned(&bytes),
            "adapter_config.json"
            | "config.json"
            | "model.safetensors.index.json" => {
                let text = String::from_utf8_lossy(&bytes);
                text.replace(&*work.to_string_lossy(), "WORK").into_bytes()
            }
            _ if file.ends_with(".safetensors") => bytes,
            _ => vec![],
        };
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        let key = path.strip_prefix(dir).unwrap_or(&path).display().to_string();
        map.insert(key, hasher.finish());
    }
    map
}

/// What a run's state says of the run itself: every logged number but the speed.
fn learned(bytes: &[u8]) -> Vec<u8> {
    let Ok(state) = serde_json::from_slice::<Value>(bytes) else {
        return bytes.to_vec();
    };
    let mut history = state["log_history"].clone();
    for entry in history.as_array_mut().into_iter().flatten() {
        if let Some(entry) = entry.as_object_mut() {
            entry.remove("tokens_per_second");
        }
    }
    let rest = ["global_step", "eval_before", "eval_after"].map(|k| &state[k]);
    format!("{history}{rest:?}").into_bytes()
}

/// In what two results differ.
pub fn differences(
    want: &BTreeMap<String, u64>,
    got: &BTreeMap<String, u64>,
) -> Vec<String> {
    let of = |(file, hash): (&String, &u64)| match got.get(file) {
        None => Some(format!("{file} is missing")),
        Some(other) if other != hash => Some(format!("{file} differs")),
        Some(_) => None,
    };
    want.iter().filter_map(of).collect()
}
