//! What of a run's settings must stay as it was for the run to go on.
//!
//! Every field of [`Settings`] is named here, in one of four groups, so that a new one
//! does not compile before somebody has put it into one.
use super::{AdapterFlags, Settings};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

/// The settings on which the remaining steps, or what is written of them, depend: by
/// name, as they are compared.
fn fixed(settings: &Settings) -> Vec<(&'static str, Value)> {
    let Settings {
        // Content: compared by fingerprint, wherever it lies (see `Content`).
        model: _,
        train_file: _,
        eval_file: _,
        init_adapter: _,
        // What it comes to on a device is compared, likewise.
        compute_dtype: _,
        // Free: where to compute and to write, what to spare, when to save and to
        // measure. With none of them does a step compute anything else.
        output_dir: _,
        logging_dir: _,
        quantized_cache: _,
        cache_dequant: _,
        gradient_checkpointing: _,
        save_strategy: _,
        save_steps: _,
        eval_strategy: _,
        eval_steps: _,
        predict_with_generate: _,
        full_determinism: _,
        device: _,
        resume: _,
        // They change what the remaining steps compute, or the log's entries.
        task,
        seed,
        validation_split,
        num_train_epochs,
        max_steps,
        per_device_train_batch_size,
        gradient_accumulation_steps,
        learning_rate,
        lr_scheduler_type,
        lr_scheduler_kwargs,
        warmup_ratio,
        optim,
        weight_decay,
        max_grad_norm,
        lora_dropout,
        max_length,
        packing,
        group_by_length,
        completion_only_loss,
        assistant_only_loss,
        shuffle,
        load_in_4bit,
        bnb_4bit_quant_type,
        bnb_4bit_use_double_quant,
        bnb_4bit_blocksize,
        logging_steps,
        // The adapter is the one in the checkpoint, which other values do not change:
        // they would be ignored, and written down as if they were not.
        lora_r,
        lora_alpha,
        target_modules,
        adapters:
            AdapterFlags {
                exclude_modules,
                layers_to_transform,
                rank_pattern,
                alpha_pattern,
                use_rslora,
                use_dora,
                lora_bias,
                init_lora_weights,
                modules_to_save,
                // Judged beside the labels of the adapter, where these are read.
                labels: _,
            },
    } = settings;
    macro_rules! named {
        ($($field:ident),* $(,)?) => { vec![$((stringify!($field), json!($field))),*] };
    }
    named![
        task,
        seed,
        validation_split,
        num_train_epochs,
        max_steps,
        per_device_train_batch_size,
        gradient_accumulation_steps,
        learning_rate,
        lr_scheduler_type,
        lr_scheduler_kwargs,
        warmup_ratio,
        optim,
        weight_decay,
        max_grad_norm,
        lora_dropout,
        max_length,
        packing,
        group_by_length,
        completion_only_loss,
        assistant_only_loss,
        shuffle,
        load_in_4bit,
        bnb_4bit_quant_type,
        bnb_4bit_use_double_quant,
        bnb_4bit_blocksize,
        logging_steps,
        lora_r,
        lora_alpha,
        target_modules,
        exclude_modules,
        layers_to_transform,
        rank_pattern,
        alpha_pattern,
        use_rslora,
        use_dora,
        lora_bias,
        init_lora_weights,
        modules_to_save,
    ]
}

/// Refuses settings with which the run saved in `dir` would not go on as it began, by
/// flag. `recorded` are those that it was begun with.
pub(super) fn same_settings(
    recorded: &Value,
    settings: &Settings,
    dir: &Path,
) -> Result<()> {
    for (key, now) in fixed(settings) {
        // None: begun before there was such a setting.
        let Some(before) = recorded.get(key) else { continue };
        if plain(key, before) != plain(key, &now) {
            let flag = format!("--{}", key.replace('_', "-"));
            return Err(Error::setting(flag, changed(&now, before, dir)));
        }
    }
    Ok(())
}

/// What to say of a value that was another.
fn changed(now: &Value, before: &Value, dir: &Path) -> String {
    format!(
        "{now}, but the run in {} was begun with {before}; {}",
        dir.display(),
        ways(dir)
    )
}

/// What to do where a run cannot go on.
pub(super) fn ways(dir: &Path) -> String {
    format!(
        "resume with the same, or begin a new run from its adapter: --init-adapter {} \
         in the place of --resume",
        dir.display()
    )
}

/// A value without what makes no difference: the order of names, the spaces of JSON.
fn plain(key: &str, value: &Value) -> Value {
    match (key, value) {
        ("lr_scheduler_kwargs", Value::String(text)) => {
            serde_json::from_str(text).unwrap_or(value.clone())
        }
        (
            "target_modules"
            | "exclude_modules"
            | "layers_to_transform"
            | "modules_to_save",
            Value::Array(list),
        ) => {
            let mut list: Vec<String> = list.iter().map(Value::to_string).collect();
            list.sort();
            list.dedup();
            json!(list)
        }
        _ => value.clone(),
    }
}
