//! `adapter_config.json` and `adapter_model.safetensors`, as PEFT writes and reads them.
use super::config::{Init, LoraConfig, MAX_RANK, Modules, TaskType};
use super::{Named, leaf};
use crate::checkpoint::{atomic, save_safetensors};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub(super) const WEIGHTS: &str = "adapter_model.safetensors";
pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const PREFIX: &str = "base_model.model.";

/// Writes `adapter_model.safetensors` and `adapter_config.json` into `dir`, as PEFT
/// reads them. `base` is what the adapter was trained on, for `PeftModel`'s eyes.
///
/// # Errors
/// The system's; each file is there whole or not at all.
pub fn save_adapter(
    dir: &Path,
    config: &LoraConfig,
    base: &str,
    adapters: &Named,
) -> Result<()> {
    let named = adapters.iter().map(|(n, t)| (format!("{PREFIX}{n}"), t.detach()));
    let mut named: Named = named.collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    save_safetensors(&dir.join(WEIGHTS), &named, &[("format", "pt")])?;
    // The names that `all-linear` stood for: PEFT would look for them anew.
    let all = || {
        let paths = adapters.iter().filter_map(|(n, _)| n.split_once(".lora_"));
        let leaves: BTreeSet<&str> = paths.map(|(path, _)| leaf(path)).collect();
        json!(leaves)
    };
    let some = |empty: bool, value: Value| if empty { Value::Null } else { value };
    let excluded = &config.exclude_modules;
    // Sorted, as PEFT writes it; but patterns in the order in which they are tried.
    let text = json!({
        "alpha_pattern": patterns(&config.alpha_pattern, |a| number(*a)),
        "auto_mapping": null,
        "base_model_name_or_path": base,
        "bias": "none",
        "exclude_modules": some(excluded.is_empty(), modules(excluded, all)),
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": match config.init {
            Init::Default => json!(true),
            Init::Gaussian => json!("gaussian"),
            Init::Pissa => json!("pissa"),
        },
        "layers_pattern":
            some(config.layers_pattern.is_empty(), json!(config.layers_pattern)),
        "layers_to_transform": config.layers_to_transform,
        "lora_alpha": number(config.alpha),
        "lora_bias": config.lora_bias,
        "lora_dropout": config.dropout,
        "modules_to_save":
            some(config.modules_to_save.is_empty(), json!(config.modules_to_save)),
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": patterns(&config.rank_pattern, |r| json!(r)),
        "revision": null,
        "target_modules": modules(&config.target_modules, all),
        "task_type": match config.task_type {
            TaskType::CausalLm => "CAUSAL_LM",
            TaskType::SeqCls => "SEQ_CLS",
        },
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
    });
    let text = serde_json::to_string_pretty(&text).unwrap_or_default();
    atomic::bytes(&dir.join(CONFIG), text.as_bytes())
}

fn modules(modules: &Modules, all: impl Fn() -> Value) -> Value {
    match modules {
        Modules::AllLinear => all(),
        Modules::Names(names) => json!(BTreeSet::from_iter(names)),
        Modules::Pattern(text) => json!(text),
    }
}

fn patterns<V>(list: &[(String, V)], value: impl Fn(&V) -> Value) -> Value {
    let entries = list.iter().map(|(text, v)| (text.clone(), value(v)));
    Value::Object(entries.collect())
}

/// A whole number without its `.0`.
fn number(x: f64) -> Value {
    if x.fract() == 0. { json!(x as i64) } else { json!(x) }
}

/// Reads `adapter_config.json`.
///
/// # Errors
/// No such file, no JSON, not LoRA, a kind of LoRA that we do not compute: the key is
/// named.
pub fn read_config(dir: &Path) -> Result<LoraConfig> {
    let path = dir.join(CONFIG);
    let bytes = crate::files::text(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::file(
            &path,
            "not there; expected the folder of an adapter, as finetune and PEFT \
             write it (finetune's --output-dir, or a checkpoint-<step> in it)",
        ),
        _ => Error::io(&path, e),
    })?;
    let json = serde_json::from_slice(&bytes)
        .map_err(|e| Error::file(&path, format!("not a JSON object: {e}")))?;
    let keys = Keys { path, json };
    keys.only_what_we_compute()?;
    let r = keys.number("r", 8.)?;
    let config = LoraConfig {
        r: keys.rank("r", r)?,
        alpha: keys.number("lora_alpha", 8.)?,
        dropout: keys.number("lora_dropout", 0.)?,
        target_modules: keys.modules("target_modules")?,
        exclude_modules: keys.modules("exclude_modules")?,
        layers_to_transform: keys.layers()?,
        layers_pattern: keys.strings("layers_pattern")?,
        rank_pattern: keys
            .patterns("rank_pattern")?
            .into_iter()
            .map(|(text, r)| Ok((text, keys.rank("rank_pattern", r)?)))
            .collect::<Result<_>>()?,
        alpha_pattern: keys.patterns("alpha_pattern")?,
        use_rslora: keys.switch("use_rslora")?,
        use_dora: keys.switch("use_dora")?,
        lora_bias: keys.switch("lora_bias")?,
        init: keys.init()?,
        modules_to_save: keys.strings("modules_to_save")?,
        task_type: match keys.get("task_type").and_then(Value::as_str) {
            Some("SEQ_CLS") => TaskType::SeqCls,
            _ => TaskType::CausalLm,
        },
    };
    let nothing = config.target_modules.is_empty();
    if nothing {
        return Err(keys.wrong("target_modules", "a list of module names"));
    }
    config.check().map_err(|e| Error::file(&keys.path, e.to_string()))?;
    Ok(config)
}

struct Keys {
    path: PathBuf,
    json: Map<String, Value>,
}

impl Keys {
    fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|v| !v.is_null())
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = self.get(key).unwrap_or(&Value::Null);
        Error::file(&self.path, format!("{key}: {found}; expected {expected}"))
    }

    /// Refuses other methods, and kinds of LoRA whose result is not ours.
    fn only_what_we_compute(&self) -> Result<()> {
        match self.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            other => {
                let found = other.unwrap_or("none");
                let what = format!("peft_type: {found}; only LORA");
                return Err(Error::file(&self.path, what));
            }
        }
        let neutral = |v: &Value| match v {
            Value::Bool(b) => !b,
            Value::Object(o) => o.is_empty(),
            Value::Array(a) => a.is_empty(),
            Value::String(s) => s == "none",
            _ => false,
        };
        for key in [
            "bias",
            "fan_in_fan_out",
            "layer_replication",
            "megatron_config",
            "target_parameters",
            "trainable_token_indices",
            "alora_invocation_tokens",
            "use_qalora",
            "use_bdlora",
            "arrow_config",
            "kasa_config",
            "monteclora_config",
            "velora_config",
        ] {
            if self.get(key).is_some_and(|v| !neutral(v)) {
                let what = "nothing here; this version computes LoRA, rsLoRA and DoRA \
                            without it";
                return Err(self.wrong(key, what));
            }
        }
        Ok(())
    }

    fn number(&self, key: &str, default: f64) -> Result<f64> {
        let Some(v) = self.get(key) else { return Ok(default) };
        v.as_f64().ok_or_else(|| self.wrong(key, "a number"))
    }

    fn rank(&self, key: &str, r: f64) -> Result<i64> {
        match r.fract() == 0. && (1. ..=MAX_RANK as f64).contains(&r) {
            true => Ok(r as i64),
            false => {
                let what = format!("a whole number from 1 to {MAX_RANK}");
                Err(self.wrong(key, &what))
            }
        }
    }

    fn switch(&self, key: &str) -> Result<bool> {
        let Some(v) = self.get(key) else { return Ok(false) };
        v.as_bool().ok_or_else(|| self.wrong(key, "true or false"))
    }

    fn strings(&self, key: &str) -> Result<Vec<String>> {
        let wrong = || self.wrong(key, "a list of strings");
        let text = |v: &Value| v.as_str().map(str::to_string).ok_or_else(wrong);
        match self.get(key) {
            None => Ok(vec![]),
            Some(Value::String(one)) => Ok(vec![one.clone()]),
            Some(Value::Array(list)) => list.iter().map(text).collect(),
            Some(_) => Err(wrong()),
        }
    }

    fn modules(&self, key: &str) -> Result<Modules> {
        match self.get(key) {
            Some(Value::String(s)) if s.eq_ignore_ascii_case("all-linear") => {
                Ok(Modules::AllLinear)
            }
            Some(Value::String(text)) => Ok(Modules::Pattern(text.clone())),
            None | Some(Value::Array(_)) => Ok(Modules::Names(self.strings(key)?)),
            Some(_) => Err(self.wrong(key, "a list of module names")),
        }
    }

    fn patterns(&self, key: &str) -> Result<Vec<(String, f64)>> {
        let wrong = || self.wrong(key, "an object of patterns with a number each");
        let entry = |(text, v): (&String, &Value)| {
            Ok((text.clone(), v.as_f64().ok_or_else(wrong)?))
        };
        match self.get(key) {
            None => Ok(vec![]),
            Some(Value::Object(all)) => all.iter().map(entry).collect(),
            Some(_) => Err(wrong()),
        }
    }

    fn layers(&self) -> Result<Option<Vec<i64>>> {
        let key = "layers_to_transform";
        let wrong = || self.wrong(key, "a number or a list of numbers");
        let layer = |v: &Value| v.as_i64().ok_or_else(wrong);
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) if list.is_empty() => Ok(None),
            Some(Value::Array(list)) => {
                list.iter().map(layer).collect::<Result<_>>().map(Some)
            }
            Some(one) => Ok(Some(vec![layer(one)?])),
        }
    }

    fn init(&self) -> Result<Init> {
        let Some(init) = self.get("init_lora_weights") else {
            return Ok(Init::Default);
        };
        match (init, init.as_str()) {
            (Value::Bool(_), _) => Ok(Init::Default),
            (_, Some("gaussian")) => Ok(Init::Gaussian),
            (_, Some("pissa")) => Ok(Init::Pissa),
            // They choose A and B, which are in the file, and leave W alone.
            (_, Some("eva" | "orthogonal" | "mica")) => Ok(Init::Default),
            _ => Err(self.wrong(
                "init_lora_weights",
                "true, gaussian, pissa, eva or orthogonal; the others change the base \
                 model's weights in ways that we do not repeat: save the adapter from \
                 PEFT with path_initial_model_for_weight_conversion",
            )),
        }
    }
}
