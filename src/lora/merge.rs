//! Merging: a checkpoint with the adapter's update inside its weights.
//!
//! `W' = W + s B A`, or DoRA's, one tensor at a time and one file at a time, so that
//! neither model nor file has to fit in memory. A model that was trained over 4-bit
//! weights learned to correct those, `dq(Wq)`, and not the W that the checkpoint holds:
//! the difference `‖W − dq(Wq)‖` is often far larger than `‖s B A‖`. So both bases are
//! offered, each layer's two numbers are reported, and what is written is never
//! quantized again.
use super::config::Rules;
use super::delta::{Delta, Saved};
use super::folder::{copy_others, not_quantized, verify};
use super::peft::CONFIG;
use super::{Init, LoraConfig, init, parts, read_config};
use crate::checkpoint::{Checkpoint, Hashes, atomic, fresh, place};
use crate::quant::{BLOCKSIZES, Nf4Tensor};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Kind, Tensor, no_grad};

/// What the update is added to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Onto {
    /// The weights as the checkpoint has them.
    Original,
    /// What they are in NF4, as the adapter saw them if it was trained so: then every
    /// linear of the model is written like that, adapted or not.
    Dequantized {
        /// Weights that shared a scale.
        blocksize: usize,
        /// Whether the block scales were quantized as well.
        double_quant: bool,
    },
}

/// One adapted layer, in Frobenius norms.
#[derive(Clone, Debug)]
pub struct MergedLayer {
    /// Its name.
    pub name: String,
    /// `‖W‖`.
    pub weight: f64,
    /// `‖W' − base‖`: what the adapter changes.
    pub delta: f64,
    /// `‖W − dq(Wq)‖`: what 4 bits change; into the original, in blocks of 64.
    pub noise: f64,
    /// `‖W' − round(W')‖`: what the kind of the written weights loses.
    pub rounding: f64,
}

/// What [`merge`] did.
#[derive(Clone, Debug)]
pub struct MergeReport {
    /// The adapted layers, in the order of the files.
    pub layers: Vec<MergedLayer>,
    /// Tensors that were written from `modules_to_save`.
    pub replaced: Vec<String>,
    /// Files of tensors.
    pub files: usize,
    /// Tensors in them, all read again and found as they were written.
    pub verified: usize,
}

impl MergeReport {
    /// The middle one of the layers' `‖W − dq(Wq)‖ / ‖update‖`.
    pub fn median_ratio(&self) -> f64 {
        let mut all: Vec<f64> =
            self.layers.iter().map(|l| l.noise / l.delta).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// As it stands in `merge_report.json`.
    pub fn json(&self, model: &Path, adapter: &Path, onto: Onto) -> Value {
        let layer = |l: &MergedLayer| {
            json!({
                "name": l.name,
                "weight_norm": l.weight,
                "delta_norm": l.delta,
                "quantization_noise": l.noise,
                "noise_to_delta": l.noise / l.delta,
                "rounding": l.rounding,
            })
        };
        let (blocksize, double_quant) = match onto {
            Onto::Original => (None, None),
            Onto::Dequantized { blocksize, double_quant } => {
                (Some(blocksize), Some(double_quant))
            }
        };
        json!({
            "model": model,
            "adapter": adapter,
            "into": match onto {
                Onto::Original => "original",
                Onto::Dequantized { .. } => "dequantized",
            },
            "blocksize": blocksize,
            "double_quant": double_quant,
            "layers": self.layers.iter().map(layer).collect::<Vec<_>>(),
            "replaced": self.replaced,
            "tensors_verified": self.verified,
        })
    }
}

/// Writes into `out` the checkpoint in `model` with the adapter in `adapter` merged,
/// beside copies of its other files and `merge_report.json`. `linears` are the names
/// of the model's linear layers. `say` is shown each layer as it is done.
///
/// # Errors
/// As [`super::load_adapter`] and [`Checkpoint::open`]; a quantized checkpoint; an
/// `out` that is not empty, or is one of the other two; merged weights that are not
/// finite; a file that does not read back as it was written. `out` is there whole or
/// not at all.
pub fn merge(
    model: &Path,
    adapter: &Path,
    out: &Path,
    (linears, onto): (&[String], Onto),
    say: &mut dyn FnMut(&MergedLayer),
) -> Result<MergeReport> {
    if let Onto::Dequantized { blocksize, .. } = onto
        && !BLOCKSIZES.contains(&blocksize)
    {
        let what = format!("{blocksize}; one of {BLOCKSIZES:?}");
        return Err(Error::setting("--bnb-4bit-blocksize", what));
    }
    place::free(out, &[("--model", model), ("--adapter", adapter)])?;
    let checkpoint = Checkpoint::open(model)?;
    not_quantized(model)?;
    let config = read_config(adapter)?;
    let mut work = Work::new(&checkpoint, adapter, &config, (linears, onto))?;
    let mut report = None;
    fresh::folder(out, |partial| {
        let mut written = Hashes::new();
        for file in checkpoint.files() {
            let to = partial.join(file.file_name().unwrap_or_default());
            let change = &mut |name: &str| work.change(name, say);
            written.extend(no_grad(|| checkpoint.rewrite(file, &to, change))?);
        }
        copy_others(model, partial)?;
        verify(&checkpoint, partial, &written, &work.changed)?;
        let done = MergeReport {
            layers: std::mem::take(&mut work.layers),
            replaced: work.modules.keys().cloned().collect(),
            files: checkpoint.files().count(),
            verified: written.len(),
        };
        let json = done.json(model, adapter, onto);
        let text = serde_json::to_string_pretty(&json).unwrap_or_default();
        atomic::bytes(&partial.join("merge_report.json"), text.as_bytes())?;
        report = Some(done);
        Ok(())
    })?;
    report.ok_or_else(|| Error::file(out, "nothing was written"))
}

struct Work<'a> {
    checkpoint: &'a Checkpoint,
    onto: Onto,
    pissa: bool,
    deltas: BTreeMap<String, Delta>,
    modules: BTreeMap<String, Tensor>,
    linears: BTreeSet<&'a str>,
    layers: Vec<MergedLayer>,
    changed: BTreeSet<String>,
}

impl<'a> Work<'a> {
    /// Every tensor of the adapter in its place, before anything is written.
    fn new(
        checkpoint: &'a Checkpoint,
        adapter: &Path,
        config: &LoraConfig,
        (linears, onto): (&'a [String], Onto),
    ) -> Result<Self> {
        let as_ours = |e: Error| Error::file(adapter.join(CONFIG), e.to_string());
        let pissa = config.init == Init::Pissa;
        if pissa && onto != Onto::Original {
            let what = "dequantized, but this adapter was cut out of unquantized \
                        weights (init_lora_weights: pissa): use original";
            return Err(Error::setting("--into", what));
        }
        let rules = Rules::new(config).map_err(as_ours)?;
        let mut saved = Saved::read(adapter)?;
        let mut deltas = BTreeMap::new();
        for name in linears {
            let shape = match checkpoint.shape(&format!("{name}.weight"))?[..] {
                [out, input] => [out, input],
                ref other => {
                    let what = format!("shape {other:?}; a linear has two sizes");
                    let file = checkpoint.file_of(name);
                    return Err(Error::tensor(file, name, what));
                }
            };
            let Some(delta) = saved.delta(&rules, config, name, shape)? else {
                continue;
            };
            if delta.bias.is_some() && !checkpoint.contains(&format!("{name}.bias"))
            {
                let what = format!(
                    "a bias for {name}, which has none in this checkpoint, so that it \
                     cannot be merged (nor by PEFT); use the adapter as it is"
                );
                return Err(Error::file(saved.path(), what));
            }
            deltas.insert(name.clone(), delta);
        }
        let empty = |n: &str| (n.to_string(), Tensor::from_slice(&[0f32; 0]));
        let names: Vec<_> = checkpoint.names().map(empty).collect();
        let chosen = parts::chosen(&names, &config.modules_to_save, false);
        let mut modules = BTreeMap::new();
        for (name, _) in chosen.map_err(as_ours)? {
            let stored = saved.take(&name, &checkpoint.shape(&name)?, None)?;
            modules.insert(name, stored);
        }
        for module in ["lm_head", "model.embed_tokens"] {
            let name = format!("{module}.weight");
            let both = ["lm_head.weight", "model.embed_tokens.weight"];
            if !both.iter().all(|name| checkpoint.contains(name)) || pissa {
                continue; // of a tied model, which needs a head of its own first
            }
            let w = checkpoint.tensor(&name)?;
            if let Some(update) = saved.update(&rules, module, &w)? {
                let new = w.f_to_kind(Kind::Float)? + update;
                modules.insert(name, new);
            }
        }
        saved.nothing_left(
            &|name| checkpoint.tensor(name).ok(),
            "has no place in this checkpoint. The score head of a classifier cannot be \
             merged into a model that writes text: use that adapter as it is (downhill \
             evaluate --adapter, or PEFT's PeftModel). Anything else is of another \
             base",
        )?;
        let linears = linears.iter().map(String::as_str).collect();
        let (layers, changed) = (vec![], BTreeSet::new());
        Ok(Self {
            checkpoint,
            onto,
            pissa,
            deltas,
            modules,
            linears,
            layers,
            changed,
        })
    }

    /// The tensor `name` as it shall be, if it shall be another.
    fn change(
        &mut self,
        name: &str,
        say: &mut dyn FnMut(&MergedLayer),
    ) -> Result<Option<Tensor>> {
        let wrong =
            |what: String| Error::tensor(self.checkpoint.file_of(name), name, what);
        let linear =
            name.strip_suffix(".weight").filter(|n| self.linears.contains(n));
        let biased = name.strip_suffix(".bias").and_then(|n| self.deltas.get(n));
        let bias = biased.and_then(|d| d.bias.as_ref().map(|b| b * d.scale));
        if !self.modules.contains_key(name) && linear.is_none() && bias.is_none() {
            return Ok(None);
        }
        let old = self.checkpoint.tensor(name)?;
        if !matches!(old.kind(), Kind::Float | Kind::Half | Kind::BFloat16) {
            let what =
                format!("dtype {:?}; only F32, F16 and BF16 merge", old.kind());
            return Err(wrong(what));
        }
        let new = match (self.modules.get(name), bias, linear) {
            (Some(stored), ..) => stored.to_kind(Kind::Float),
            (None, Some(bias), _) => old.to_kind(Kind::Float) + bias,
            (None, None, Some(linear)) => {
                let quantized = |blocksize, double| -> Result<Tensor> {
                    let q = Nf4Tensor::quantize(&old, blocksize, double)
                        .map_err(|e| wrong(e.to_string()))?;
                    Ok(q.dequantize(Kind::Float))
                };
                let delta = self.deltas.get(linear);
                let w = old.to_kind(Kind::Float);
                let (base, noise) = match (self.onto, delta) {
                    (Onto::Dequantized { blocksize, double_quant }, _) => {
                        let base = quantized(blocksize, double_quant)?;
                        let noise = norm(&(&w - &base));
                        (base, noise)
                    }
                    (Onto::Original, Some(_)) => {
                        (w.shallow_clone(), norm(&(&w - quantized(64, true)?)))
                    }
                    (Onto::Original, None) => return Ok(None),
                };
                match delta {
                    None => base,
                    Some(delta) => {
                        let from = match self.pissa {
                            true => init::pissa(&old, delta.r, delta.scale)?.1,
                            false => base.shallow_clone(),
                        };
                        let new = delta.onto(&from.to_kind(Kind::Float))?;
                        let layer = MergedLayer {
                            name: linear.into(),
                            weight: norm(&w),
                            delta: norm(&(&new - base)),
                            noise,
                            rounding: norm(&(&new - rounded(&new, old.kind()))),
                        };
                        say(&layer);
                        self.layers.push(layer);
                        new
                    }
                }
            }
            (None, None, None) => return Ok(None),
        };
        let new = new.to_kind(old.kind());
        if !bool::try_from(new.isfinite().all())? {
            let what = "not finite after merging; the adapter's training diverged, or \
                        its values are out of the range of this dtype";
            return Err(wrong(what.into()));
        }
        self.changed.insert(name.into());
        Ok(Some(new))
    }
}

fn norm(t: &Tensor) -> f64 {
    t.norm().double_value(&[])
}

fn rounded(t: &Tensor, kind: Kind) -> Tensor {
    t.to_kind(kind).to_kind(Kind::Float)
}
