//! LoRA: attach low-rank adapters to named linears, and read and write PEFT folders.
//!
//! `y = W x + (α/r) · B A dropout(x)`, with W frozen, A [r, in] from
//! U(−1/√in, 1/√in) and B [out, r] zero, so that training starts at the base model.
//!
//! Source: Hu et al. 2021, arXiv 2106.09685; initial values as in PEFT
//! (`lora/layer.py`, Kaiming-uniform with a = √5). Adapters are f32 whatever the base
//! computes in, as PEFT's `autocast_adapter_dtype`.
mod parts;

pub use parts::Parts;

use crate::checkpoint::{atomic, read_safetensors, save_safetensors};
use crate::nn::{Adapter, Linear, dropout::uniform};
use crate::{Error, Result};
use parts::whole;
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use tch::{Device, Kind, Tensor};

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
const PREFIX: &str = "base_model.model.";

/// The settings of a LoRA adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank r.
    pub r: i64,
    /// α; the update is scaled by α / r.
    pub alpha: f64,
    /// Probability of dropping an input element in training.
    pub dropout: f64,
    /// Which linears: see [`LoraConfig::targets`].
    pub target_modules: Vec<String>,
    /// Modules of the model that are trained whole and saved with the adapter.
    pub modules_to_save: Vec<String>,
    /// What the model is for.
    pub task_type: TaskType,
}

/// What the model is for: PEFT's `task_type`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TaskType {
    /// Continuing text.
    CausalLm,
    /// Scores for a whole text: classes, or a number.
    SeqCls,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 8,
            alpha: 8.,
            dropout: 0.,
            target_modules: vec![],
            modules_to_save: vec![],
            task_type: TaskType::CausalLm,
        }
    }
}

impl LoraConfig {
    /// Whether the linear `name` gets an adapter: `all-linear` means each (the head
    /// is none of them), otherwise the name or its last parts must be listed.
    pub fn targets(&self, name: &str) -> bool {
        let matches = |t: &String| {
            t == "all-linear"
                || name == t
                || name.strip_suffix(t.as_str()).is_some_and(|p| p.ends_with('.'))
        };
        self.target_modules.iter().any(matches)
    }

    fn scale(&self) -> f64 {
        self.alpha / self.r as f64
    }

    fn check(&self) -> Result<()> {
        if self.r < 1 {
            return Err(Error::setting("lora-r", format!("{}; at least 1", self.r)));
        }
        if !(0. ..1.).contains(&self.dropout) {
            let what = format!("{}; from 0 to below 1", self.dropout);
            return Err(Error::setting("lora-dropout", what));
        }
        if !self.alpha.is_finite() {
            return Err(Error::setting("lora-alpha", format!("{}", self.alpha)));
        }
        Ok(())
    }
}

/// Trained tensors by name: `model.layers.0.self_attn.q_proj.lora_A.weight`, or, of a
/// module that is trained whole, that in the checkpoint.
pub type Named = Vec<(String, Tensor)>;

/// Puts a fresh, trainable adapter beside every linear that `config` targets, and makes
/// `modules_to_save` trainable.
///
/// # Errors
/// A setting out of range; a pattern that matches no linear, with the names there are.
pub fn attach<'a>(
    parts: impl Into<Parts<'a>>,
    config: &LoraConfig,
    seed: u64,
    device: Device,
) -> Result<Named> {
    let Parts { linears, parameters } = parts.into();
    config.check()?;
    for target in config.target_modules.iter().filter(|t| *t != "all-linear") {
        let only =
            LoraConfig { target_modules: vec![target.clone()], ..config.clone() };
        if !linears.iter().any(|(name, _)| only.targets(name)) {
            let leaves: BTreeSet<_> = linears.iter().map(|(n, _)| leaf(n)).collect();
            let leaves = Vec::from_iter(leaves).join(", ");
            let what = format!(
                "`{target}` matches no linear layer of this model; it has {leaves} \
                 (or use all-linear)"
            );
            return Err(Error::setting("target-modules", what));
        }
    }
    let mut named = Named::new();
    for (place, (name, linear)) in linears.into_iter().enumerate() {
        if !config.targets(&name) {
            continue;
        }
        let [out, input] = linear.weight.shape();
        let r = config.r;
        let bound = 1. / (input as f64).sqrt();
        let a = uniform((r * input) as usize, bound, seed, place as u32);
        let a = Tensor::from_slice(&a).view_([r, input]).to_device(device);
        let b = Tensor::zeros([out, r], (Kind::Float, device));
        put(linear, a, b, config, place);
        remember(&mut named, &name, linear);
    }
    if named.is_empty() {
        return Err(Error::setting(
            "target-modules",
            "empty: nothing would be trained",
        ));
    }
    named.extend(whole(parameters, config));
    Ok(named)
}

fn leaf(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn put(linear: &mut Linear, a: Tensor, b: Tensor, c: &LoraConfig, place: usize) {
    let (a, b) = (a.set_requires_grad(true), b.set_requires_grad(true));
    let (scale, dropout) = (c.scale(), c.dropout);
    linear.lora = Some(Adapter { a, b, scale, dropout, place: place as u32 });
}

fn remember(named: &mut Named, name: &str, linear: &Linear) {
    if let Some(l) = &linear.lora {
        named.push((format!("{name}.lora_A.weight"), l.a.shallow_clone()));
        named.push((format!("{name}.lora_B.weight"), l.b.shallow_clone()));
    }
}

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
    // PEFT adapts every module whose name ends in one of these: so the names as they
    // were given, those that `all-linear` stood for, or, after a regular expression
    // that was not kept, each module in full.
    let given = &config.target_modules;
    let all = given.iter().any(|t| t == "all-linear");
    let paths = adapters.iter().filter_map(|(n, _)| Some(n.split_once(".lora_")?.0));
    let modules: BTreeSet<&str> = match (all, given.is_empty()) {
        (true, _) => paths.map(leaf).collect(),
        (false, true) => paths.collect(),
        (false, false) => given.iter().map(String::as_str).collect(),
    };
    let alpha = match config.alpha.fract() == 0. {
        true => json!(config.alpha as i64),
        false => json!(config.alpha),
    };
    // Sorted, as PEFT writes it.
    let text = json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": alpha,
        "lora_bias": false,
        "lora_dropout": config.dropout,
        "modules_to_save": match config.modules_to_save.is_empty() {
            true => Value::Null,
            false => json!(config.modules_to_save),
        },
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": {},
        "revision": null,
        "target_modules": modules,
        "task_type": match config.task_type {
            TaskType::CausalLm => "CAUSAL_LM",
            TaskType::SeqCls => "SEQ_CLS",
        },
        "use_dora": false,
        "use_rslora": false,
    });
    let text = serde_json::to_string_pretty(&text).unwrap_or_default();
    atomic::bytes(&dir.join(CONFIG), text.as_bytes())
}

/// Reads `adapter_config.json`.
///
/// # Errors
/// No such file, no JSON, not LoRA, a kind of LoRA that we do not compute: the key is
/// named.
pub fn read_config(dir: &Path) -> Result<LoraConfig> {
    let path = dir.join(CONFIG);
    let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let wrong = |what: String| Error::file(&path, what);
    let json: Map<String, Value> = serde_json::from_slice(&bytes)
        .map_err(|e| wrong(format!("not a JSON object: {e}")))?;
    let get = |key: &str| json.get(key).filter(|v| !v.is_null());
    match get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        other => {
            let found = other.unwrap_or("none");
            return Err(wrong(format!("peft_type: {found}; only LORA")));
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
        "use_dora",
        "use_rslora",
        "lora_bias",
        "bias",
        "fan_in_fan_out",
        "rank_pattern",
        "alpha_pattern",
        "layer_replication",
        "target_parameters",
        "trainable_token_indices",
        "use_qalora",
        "use_bdlora",
    ] {
        if let Some(v) = get(key).filter(|v| !neutral(v)) {
            let what = format!("{key}: {v}; this version computes plain LoRA only");
            return Err(wrong(what));
        }
    }
    let number = |key: &str, default: f64| match get(key) {
        None => Ok(default),
        Some(v) => v.as_f64().ok_or_else(|| wrong(format!("{key}: {v}; a number"))),
    };
    let target_modules = match get("target_modules") {
        Some(Value::Array(names)) => {
            names.iter().filter_map(Value::as_str).map(str::to_string).collect()
        }
        // A regular expression; which modules it means, the tensors say.
        Some(Value::String(_)) => vec![],
        other => {
            let what = format!("target_modules: {other:?}; a list of module names");
            return Err(wrong(what));
        }
    };
    let r = number("r", 8.)?;
    if r.fract() != 0. || !(1. ..65_536.).contains(&r) {
        return Err(wrong(format!("r: {r}; a whole number, at least 1")));
    }
    let config = LoraConfig {
        r: r as i64,
        alpha: number("lora_alpha", 8.)?,
        dropout: number("lora_dropout", 0.)?,
        target_modules,
        modules_to_save: match get("modules_to_save") {
            Some(Value::Array(names)) => {
                names.iter().filter_map(Value::as_str).map(str::to_string).collect()
            }
            _ => vec![],
        },
        task_type: match get("task_type").and_then(Value::as_str) {
            Some("SEQ_CLS") => TaskType::SeqCls,
            _ => TaskType::CausalLm,
        },
    };
    config.check().map_err(|e| wrong(e.to_string()))?;
    Ok(config)
}

/// Puts the adapter in `dir` beside the linears that its tensors name.
///
/// # Errors
/// As [`read_config`]; a tensor that fits no linear of the model, a targeted linear
/// without its pair, a rank or shape that disagrees.
pub fn load_adapter<'a>(
    dir: &Path,
    parts: impl Into<Parts<'a>>,
    device: Device,
) -> Result<(LoraConfig, Named)> {
    let Parts { linears, parameters } = parts.into();
    let config = read_config(dir)?;
    let path = dir.join(WEIGHTS);
    let mut saved: HashMap<String, Tensor> = read_safetensors(&path)?;
    let mut named = Named::new();
    for (place, (name, linear)) in linears.into_iter().enumerate() {
        let [out, input] = linear.weight.shape();
        let key = |half: &str| format!("{PREFIX}{name}.lora_{half}.weight");
        let (a, b) = match (saved.remove(&key("A")), saved.remove(&key("B"))) {
            (Some(a), Some(b)) => (a, b),
            (None, None) if !config.targets(&name) => continue,
            (None, _) => return Err(Error::tensor(&path, key("A"), "missing")),
            (_, None) => return Err(Error::tensor(&path, key("B"), "missing")),
        };
        for (half, t, expected) in
            [("A", &a, [config.r, input]), ("B", &b, [out, config.r])]
        {
            let found = t.size();
            if found != expected {
                let what = format!(
                    "shape {found:?}, expected {expected:?} (r = {} in {CONFIG})",
                    config.r
                );
                return Err(Error::tensor(&path, key(half), what));
            }
            if !t.is_floating_point() {
                let what = format!("dtype {:?}; F32, F16 or BF16", t.kind());
                return Err(Error::tensor(&path, key(half), what));
            }
        }
        let at = |t: Tensor| t.to_kind(Kind::Float).to_device(device);
        put(linear, at(a), at(b), &config, place);
        remember(&mut named, &name, linear);
    }
    let there =
        |m: &String| parameters.iter().any(|(n, _)| *n == format!("{m}.weight"));
    let strange = |m: &&String| *m != "classifier" && !there(m);
    if let Some(m) = config.modules_to_save.iter().find(strange) {
        let what =
            format!("modules_to_save: `{m}`; only `score`, with a --task for it");
        return Err(Error::file(dir.join(CONFIG), what));
    }
    for (name, mut t) in whole(parameters, &config) {
        let key = format!("{PREFIX}{name}");
        let Some(stored) = saved.remove(&key) else {
            return Err(Error::tensor(&path, key, "missing"));
        };
        let (found, expected) = (stored.size(), t.size());
        if found != expected {
            let what = format!("shape {found:?}, expected {expected:?}");
            return Err(Error::tensor(&path, key, what));
        }
        tch::no_grad(|| t.f_copy_(&stored))?;
        named.push((name, t));
    }
    let mut unused: Vec<_> = saved.into_keys().collect();
    unused.sort();
    match unused.into_iter().next() {
        Some(key) => {
            let what = "fits no linear layer of this model, and no module of \
                        modules_to_save; is it the adapter of another base?";
            Err(Error::tensor(&path, key, what))
        }
        None if named.is_empty() => {
            Err(Error::file(&path, "holds no adapter tensor"))
        }
        None => Ok((config, named)),
    }
}
