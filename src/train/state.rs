//! A run on disk: what is needed to go on as if it had never stopped.
//!
//! `checkpoint-<step>/` holds the adapter, the optimizer's state and
//! `trainer_state.json`. Dropout masks and row order are functions of seed, step and
//! epoch, so no generator state is saved.
use super::fit::Window;
use super::{Run, Settings};
use crate::checkpoint::{atomic, read_safetensors, save_safetensors};
use crate::lora::{self, LoraConfig};
use crate::optim::Optimizer;
use crate::{Error, Result, hub};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub(super) const STATE: &str = "trainer_state.json";
const OPTIMIZER: &str = "optimizer.safetensors";

/// Optimizer steps in one epoch of rows, or of packs of rows: the last may have fewer
/// micro-batches.
pub fn steps_per_epoch(rows: usize, batch_size: usize, accumulation: usize) -> i64 {
    rows.div_ceil(batch_size).div_ceil(accumulation) as i64
}

/// The newest complete `checkpoint-<step>` in `dir`.
pub fn latest_checkpoint(dir: &Path) -> Option<PathBuf> {
    let step = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix("checkpoint-")?.parse::<i64>().ok()
    };
    let entries = std::fs::read_dir(dir).ok()?.flatten().map(|e| e.path());
    let numbered = entries.filter_map(|p| step(&p).map(|n| (n, p)));
    numbered
        .filter(|(_, p)| p.join(STATE).is_file())
        .max_by_key(|(n, _)| *n)
        .map(|(_, p)| p)
}

/// `trainer_state.json`, with transformers' keys and our settings.
pub(super) fn trainer_state(
    settings: &Settings,
    (step, total): (i64, i64),
    epoch: f64,
    history: &[Value],
) -> Value {
    json!({
        "global_step": step,
        "max_steps": total,
        "epoch": epoch,
        "num_train_epochs": settings.num_train_epochs,
        "train_batch_size": settings.per_device_train_batch_size,
        "logging_steps": settings.logging_steps,
        "log_history": history,
        "settings": settings,
    })
}

pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    atomic::bytes(path, text.as_bytes())
}

/// Writes `checkpoint-<step>` in `out`, whole or not at all.
pub(super) fn save(run: &Run, out: &Path, state: &Value) -> Result<PathBuf> {
    let dir = out.join(format!("checkpoint-{}", run.step));
    atomic::dir(&dir, |partial| {
        adapter(run, partial, (&run.lora, &adapters(&*run.optimizer)))?;
        let tensors = run.optimizer.state();
        save_safetensors(&partial.join(OPTIMIZER), &tensors, &[("format", "pt")])?;
        write_json(&partial.join(STATE), state)
    })?;
    Ok(dir)
}

/// The trained tensors by name.
pub(super) fn adapters(optimizer: &dyn Optimizer) -> lora::Named {
    let named = |p: &crate::optim::Param| (p.name.clone(), p.tensor.shallow_clone());
    optimizer.params().iter().map(named).collect()
}

/// Writes what was trained into `dir`, and with a head what its scores mean.
pub(super) fn adapter(
    run: &Run,
    dir: &Path,
    (lora, trained): (&LoraConfig, &lora::Named),
) -> Result<()> {
    let base = hub::name_of(&run.settings.model);
    lora::save_adapter(dir, lora, &base, trained)?;
    match &run.head {
        Some(head) => head.save_config(dir, &run.settings.model),
        None => Ok(()),
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

/// Puts the optimizer's state back; the adapter is loaded by the caller.
///
/// # Errors
/// A file that is missing or broken; a setting that would change what the remaining
/// steps compute, by flag.
pub(super) fn restore(
    dir: &Path,
    settings: &Settings,
    optimizer: &mut dyn Optimizer,
) -> Result<Resumed> {
    let path = dir.join(STATE);
    let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let state: Value = serde_json::from_slice(&bytes)
        .map_err(|e| Error::file(&path, format!("not JSON: {e}")))?;
    let step = state["global_step"].as_i64().filter(|s| *s >= 0);
    let (Some(step), Some(history)) = (step, state["log_history"].as_array()) else {
        let what = "needs `global_step` and `log_history`; is it ours?";
        return Err(Error::file(&path, what));
    };
    let now = serde_json::to_value(settings).unwrap_or_default();
    for key in [
        "task",
        "seed",
        "train_file",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "num_train_epochs",
        "max_steps",
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_ratio",
        "optim",
        "weight_decay",
        "max_grad_norm",
        "lora_dropout",
        "max_length",
        "shuffle",
        "packing",
        "group_by_length",
        "validation_split",
        "completion_only_loss",
        "assistant_only_loss",
        "load_in_4bit",
        "bnb_4bit_use_double_quant",
        "bnb_4bit_blocksize",
        "compute_dtype",
        "logging_steps",
    ] {
        let (before, after) = (&state["settings"][key], &now[key]);
        // Null: begun before there was such a setting.
        if !before.is_null() && before != after {
            let flag = format!("--{}", key.replace('_', "-"));
            let what = format!(
                "{after}, but the run in {} was begun with {before}; resume with the \
                 same value, or begin a new run from its adapter with --init-adapter",
                dir.display()
            );
            return Err(Error::setting(flag, what));
        }
    }
    let saved = read_safetensors(&dir.join(OPTIMIZER))?;
    optimizer
        .load_state(&saved)
        .map_err(|e| Error::file(dir.join(OPTIMIZER), e.to_string()))?;
    let pending = &state["pending"];
    let window = Window {
        loss: pending[0].as_f64().unwrap_or(0.),
        steps: pending[1].as_i64().unwrap_or(0),
        tokens: pending[2].as_i64().unwrap_or(0),
    };
    let before = state["eval_before"].clone();
    Ok(Resumed { step, history: history.clone(), before, window })
}
