//! The checkpoint that a run goes on from: found, whole, undamaged, and of the same run.
use super::content::Content;
use super::fit::Window;
use super::resume::same_settings;
use super::state::{OPTIMIZER, STATE};
use super::{Rows, Settings};
use crate::checkpoint::{MANIFEST, Manifest, atomic, finite, read_safetensors};
use crate::optim::Optimizer;
use crate::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

const ADAPTER: &str = "adapter_model.safetensors";

/// A checkpoint that a run can go on from.
#[derive(Debug)]
pub struct Saved {
    /// Its folder.
    pub dir: PathBuf,
    /// What its `trainer_state.json` says.
    state: Value,
    step: i64,
    content: Content,
    /// The rows of the eval file are others than before.
    others_measured: bool,
}

/// All `checkpoint-<step>` folders in `dir`, whole or not, the newest first.
pub(super) fn checkpoints(dir: &Path) -> Vec<PathBuf> {
    let step = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix("checkpoint-")?.parse::<i64>().ok()
    };
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let entries = entries.map(|e| e.path()).filter(|p| p.is_dir());
    let mut numbered: Vec<_> =
        entries.filter_map(|p| step(&p).map(|n| (n, p))).collect();
    numbered.sort_by_key(|(n, _)| -n);
    numbered.into_iter().map(|(_, p)| p).collect()
}

/// The newest whole `checkpoint-<step>` in `dir`: with all the files that it was written
/// with, in their sizes.
pub fn latest_checkpoint(dir: &Path) -> Option<PathBuf> {
    checkpoints(dir).into_iter().find(|p| lacking(p).is_none())
}

/// What a checkpoint folder lacks, if it lacks something. Its tensors are not read.
fn lacking(dir: &Path) -> Option<String> {
    let needed = [STATE, "adapter_config.json", ADAPTER, OPTIMIZER];
    let missing = needed.iter().find(|name| !dir.join(name).is_file());
    if let Some(name) = missing {
        return Some(format!("{name} is not there"));
    }
    match Manifest::read(dir) {
        Err(e) => return Some(e.to_string()),
        Ok(Some(manifest)) => return manifest.lacking(dir),
        Ok(None) => {}
    }
    // Without a manifest it is of an earlier version, or lost it.
    match read_state(dir) {
        Err(e) => Some(e.to_string()),
        Ok(state) if !state["content"].is_null() => {
            Some(format!("{MANIFEST} is not there"))
        }
        Ok(_) => None,
    }
}

fn read_state(dir: &Path) -> Result<Value> {
    let path = dir.join(STATE);
    let bytes = crate::files::text(&path).map_err(|e| Error::io(&path, e))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::file(&path, format!("not JSON: {e}")))
}

/// What `--resume` asks for.
enum Asked<'a> {
    Latest,
    Folder(&'a Path),
}

/// `true` and `false`, as a config file has them, are no folders unless there is one.
fn asked(settings: &Settings) -> Option<Asked<'_>> {
    let dir = settings.resume.as_deref()?;
    match dir.to_str() {
        Some("latest") => Some(Asked::Latest),
        Some("true") if !dir.exists() => Some(Asked::Latest),
        Some("false") if !dir.exists() => None,
        _ => Some(Asked::Folder(dir)),
    }
}

impl Saved {
    /// The checkpoint that `--resume` means, if there is one; `say` is told which. Its
    /// files are verified, and the settings compared with those that it was saved with.
    ///
    /// # Errors
    /// No whole checkpoint where one was named, or where there are some; a damaged
    /// file; numbers that are not finite; a setting that would change what the
    /// remaining steps compute, by flag.
    pub(super) fn find(
        settings: &Settings,
        say: &mut dyn FnMut(&str),
    ) -> Result<Option<Self>> {
        let dir = match asked(settings) {
            None => return Ok(None),
            Some(Asked::Folder(dir)) => named(dir)?,
            Some(Asked::Latest) => {
                let out = &settings.output_dir;
                atomic::recover(out);
                let Some(dir) = newest(out, say)? else {
                    say(&format!(
                        "no checkpoint in {} yet: beginning at the start",
                        out.display()
                    ));
                    return Ok(None);
                };
                dir
            }
        };
        say(&format!("going on from {}", dir.display()));
        let saved = Self::read(dir).map_err(with_way_out)?;
        same_settings(&saved.state["settings"], settings, &saved.dir)?;
        if !saved.content.is_known() {
            say(&format!(
                "{} is of an earlier version, which kept no fingerprints: that rows and \
                 base model are those that it was begun with is taken on trust",
                saved.dir.display()
            ));
        }
        Ok(Some(saved))
    }

    /// A checkpoint whose files are as they were written.
    fn read(dir: PathBuf) -> std::result::Result<Self, (PathBuf, Error)> {
        let read = || -> Result<_> {
            if let Some(manifest) = Manifest::read(&dir)? {
                manifest.verify(&dir)?;
            }
            finite(&dir.join(ADAPTER))?;
            finite(&dir.join(OPTIMIZER))?;
            let (path, state) = (dir.join(STATE), read_state(&dir)?);
            let step = state["global_step"].as_i64().filter(|s| *s >= 0);
            let (Some(step), true) = (step, state["log_history"].is_array()) else {
                let what = "needs `global_step` and `log_history`; is it ours?";
                return Err(Error::file(path, what));
            };
            let content = match &state["content"] {
                Value::Null => Content::default(),
                content => serde_json::from_value(content.clone())
                    .map_err(|e| Error::file(path, format!("content: {e}")))?,
            };
            Ok((state, step, content))
        };
        match read() {
            Err(e) => Err((dir, e)),
            Ok((state, step, content)) => {
                Ok(Self { dir, state, step, content, others_measured: false })
            }
        }
    }

    /// Refuses rows, base model and initial adapter that are not those that the run
    /// was begun with.
    pub(super) fn same_content(
        &mut self,
        now: &Content,
        settings: &Settings,
        say: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let recorded = &self.state["settings"];
        now.same(&self.content, settings, (&self.dir, recorded))?;
        self.others_measured = now.measures_others(&self.content);
        if self.others_measured && settings.eval_file.is_some() {
            say("the rows of --eval-file are not those of the run so far: losses \
                 measured before and from now on cannot be compared");
        }
        Ok(())
    }

    /// The rows to learn from, or why they cannot be read: which is the lesser news
    /// where they are not those of the run.
    pub(super) fn rows(
        &self,
        read: Result<Rows>,
        settings: &Settings,
    ) -> Result<Rows> {
        read.map_err(|e| self.content.instead(settings, &self.dir, e))
    }

    /// Puts the optimizer's state back, for a run of `total` steps; the adapter is
    /// loaded by the caller.
    ///
    /// # Errors
    /// A state that does not fit the adapter; another number of steps, as other rows
    /// give.
    pub(super) fn restore(
        &self,
        total: i64,
        optimizer: &mut dyn Optimizer,
    ) -> Result<Resumed> {
        let (state, dir) = (&self.state, self.dir.display());
        if let Some(steps) = state["max_steps"].as_i64()
            && steps != total
        {
            let what = format!(
                "these rows give {total} steps, and the run in {dir} had {steps}: they \
                 are not those that it was begun with"
            );
            return Err(Error::setting("--train-file", what));
        }
        let path = self.dir.join(OPTIMIZER);
        let saved = read_safetensors(&path)?;
        let loaded = optimizer.load_state(&saved);
        loaded.map_err(|e| Error::file(path, e.to_string()))?;
        let pending = &state["pending"];
        let window = Window {
            loss: pending[0].as_f64().unwrap_or(0.),
            steps: pending[1].as_i64().unwrap_or(0),
            tokens: pending[2].as_i64().unwrap_or(0),
        };
        let before = match self.others_measured {
            true => Value::Null,
            false => state["eval_before"].clone(),
        };
        let history = state["log_history"].as_array().cloned().unwrap_or_default();
        Ok(Resumed { step: self.step, history, before, window })
    }
}

/// Where a resumed run goes on.
#[derive(Default)]
pub(super) struct Resumed {
    /// Steps taken.
    pub(super) step: i64,
    /// The log so far.
    pub(super) history: Vec<Value>,
    /// What the eval file gave before the first step.
    pub(super) before: Value,
    /// What was summed since its last entry.
    pub(super) window: Window,
}

/// The folder that was named, if it is a whole checkpoint.
fn named(dir: &Path) -> Result<PathBuf> {
    let Some(why) = lacking(dir) else { return Ok(dir.into()) };
    let help = match latest_checkpoint(dir) {
        Some(inner) => format!("--resume {} is one", inner.display()),
        None => "name a checkpoint-<step> folder".into(),
    };
    let what = format!("{} is no whole checkpoint ({why}); {help}", dir.display());
    Err(Error::setting("--resume", what))
}

/// The newest whole checkpoint; those that are newer and not whole are said.
fn newest(out: &Path, say: &mut dyn FnMut(&str)) -> Result<Option<PathBuf>> {
    let mut broken = None;
    for dir in checkpoints(out) {
        let Some(why) = lacking(&dir) else { return Ok(Some(dir)) };
        say(&format!("{} is not whole: {why}; passed over", dir.display()));
        broken = broken.or(Some((dir, why)));
    }
    let Some((dir, why)) = broken else { return Ok(None) };
    let what = format!(
        "{} is not whole ({why}), and there is no older checkpoint; without --resume \
         the run begins anew",
        dir.display()
    );
    Err(Error::setting("--resume", what))
}

/// What to do about a checkpoint that cannot be read.
fn with_way_out((dir, e): (PathBuf, Error)) -> Error {
    let all = dir.parent().map(checkpoints).unwrap_or_default();
    let at = all.iter().position(|p| p.file_name() == dir.file_name());
    let older = &all[at.map_or(0, |at| at + 1)..];
    let way = match older.iter().find(|p| lacking(p).is_none()) {
        Some(older) => format!("an older checkpoint: --resume {}", older.display()),
        None => "no older checkpoint is whole: without --resume the run begins anew"
            .to_string(),
    };
    match e {
        Error::File { path, what } => Error::file(path, format!("{what}; {way}")),
        Error::Tensor { path, tensor, what } => {
            Error::tensor(path, tensor, format!("{what}; {way}"))
        }
        e => e,
    }
}
