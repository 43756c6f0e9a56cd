//! A run on disk: what is needed to go on as if it had never stopped.
//!
//! `checkpoint-<step>/` holds the adapter, the optimizer's state, `trainer_state.json`
//! and `manifest.json`, by which a whole one is known. Dropout masks and row order are functions of seed, step and
//! epoch, so no generator state is saved.
use super::{Content, Run, Settings};
use crate::checkpoint::{Manifest, atomic, save_safetensors};
use crate::lora::{self, LoraConfig};
use crate::optim::Optimizer;
use crate::{Result, hub};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub(super) const STATE: &str = "trainer_state.json";
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";

/// Optimizer steps in one epoch of rows, or of packs of rows: the last may have fewer
/// micro-batches.
pub fn steps_per_epoch(rows: usize, batch_size: usize, accumulation: usize) -> i64 {
    rows.div_ceil(batch_size).div_ceil(accumulation) as i64
}

/// `trainer_state.json`, with transformers' keys, our settings, and fingerprints of what
/// the run is made of.
pub(super) fn trainer_state(
    (settings, content): (&Settings, &Content),
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
        "content": content,
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
        write_json(&partial.join(STATE), state)?;
        Manifest::write(partial)
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
    match run.model.config.latent {
        // DeepSeek-V2 or -V3, which transformers 5 holds in another form.
        Some(_) => {
            let lora = lora::fused::for_peft(lora, trained)?;
            lora::save_adapter(dir, &lora, &base, trained)?;
            if let Some(why) = lora::fused::obstacle(&lora, trained) {
                let text = format!("# Where this adapter loads\n\n{why}.\n");
                atomic::bytes(&dir.join("README.md"), text.as_bytes())?;
            }
        }
        None => lora::save_adapter(dir, lora, &base, trained)?,
    }
    match &run.head {
        Some(head) => head.save_config(dir, &run.settings.model),
        None => Ok(()),
    }
}
