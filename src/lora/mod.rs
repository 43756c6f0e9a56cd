//! LoRA: attach low-rank adapters to named linears, and read and write PEFT folders.
//!
//! `y = W x + s · B A dropout(x)`, with W frozen, A [r, in] random and B [out, r] zero,
//! so that training starts at the base model; s = α/r. Its kinds are settings of
//! [`LoraConfig`]: other ranks by name, rsLoRA, DoRA, PiSSA, and modules that are
//! trained whole beside it.
//!
//! Source: Hu et al. 2021, arXiv 2106.09685. Adapters are f32 whatever the base
//! computes in, as PEFT's `autocast_adapter_dtype`.
mod config;
mod delta;
mod folder;
pub mod init;
mod merge;
mod parts;
mod pattern;
mod peft;

pub use config::{Init, LoraConfig, Modules, TaskType};
pub use merge::{MergeReport, MergedLayer, Onto, merge};
pub use parts::Parts;
pub use peft::{read_config, save_adapter};

use crate::nn::{Adapter, Dora, Linear, Weight};
use crate::{Error, Result};
use config::{Rules, ends_in};
use delta::Saved;
use init::Pair;
use peft::{CONFIG, WEIGHTS};
use std::collections::BTreeSet;
use std::path::Path;
use tch::{Device, Kind, Tensor, no_grad};

/// Trained tensors by name: `model.layers.0.self_attn.q_proj.lora_A.weight`, or, of a
/// module that is trained whole, that in the checkpoint.
pub type Named = Vec<(String, Tensor)>;

/// Puts a fresh, trainable adapter beside every linear that `config` targets, and makes
/// `modules_to_save` trainable. PiSSA takes its share out of the weights.
///
/// # Errors
/// A setting out of range; a pattern that matches nothing, with the names there are.
pub fn attach<'a>(
    parts: impl Into<Parts<'a>>,
    config: &LoraConfig,
    seed: u64,
    device: Device,
) -> Result<Named> {
    let Parts { linears, parameters } = parts.into();
    let rules = Rules::new(config)?;
    all_found(config, &linears)?;
    let saved = parts::chosen(&parameters, &config.modules_to_save, true)?;
    let (mut named, mut adapted) = (Named::new(), vec![]);
    for (place, (name, linear)) in linears.into_iter().enumerate() {
        if !rules.targets(&name)? {
            continue;
        }
        let (r, scale) = rules.rank_and_scale(&name)?;
        let place = place as u32;
        let [out, input] = linear.weight.shape();
        let (start, (a, b)) = match config.init {
            Init::Pissa => {
                let (a, b) = cut(&name, linear, r, scale)?;
                (Some([a.copy(), b.copy()]), (a, b))
            }
            init => {
                let pair =
                    init::random(init, [out, input], r, (seed, place), device);
                (None, pair)
            }
        };
        let bias = config.lora_bias.then(|| {
            Tensor::zeros([out], (Kind::Float, device)).set_requires_grad(true)
        });
        let adapter = Adapter { bias, place, start, ..Adapter::new(a, b, scale) };
        put(linear, adapter, config)?;
        remember(&mut named, &name, linear);
        adapted.push(name);
    }
    if adapted.is_empty() {
        let what = match config.target_modules.is_empty() {
            true => "empty: nothing would be trained",
            false => {
                "nothing is left of them after exclude-modules, \
                 layers-to-transform and modules-to-save"
            }
        };
        return Err(Error::setting("target-modules", what));
    }
    rules.all_used(&adapted.iter().map(String::as_str).collect::<Vec<_>>())?;
    for (name, t) in saved {
        named.push((name, t.set_requires_grad(true)));
    }
    Ok(named)
}

/// Refuses a name or pattern of `target_modules` that no linear has.
fn all_found(config: &LoraConfig, linears: &[(String, &mut Linear)]) -> Result<()> {
    let names = || linears.iter().map(|(n, _)| n.as_str());
    let missing = match &config.target_modules {
        Modules::AllLinear => None,
        Modules::Names(list) => {
            list.iter().find(|m| !names().any(|n| ends_in(n, m))).map(String::as_str)
        }
        Modules::Pattern(text) => {
            let whole = pattern::Pattern::whole("target-modules", text)?;
            let mut any = false;
            for name in names() {
                any |= whole.matches(name)?;
            }
            (!any).then_some(text.as_str())
        }
    };
    let Some(missing) = missing else { return Ok(()) };
    let leaves: BTreeSet<_> = names().map(leaf).collect();
    let leaves = Vec::from_iter(leaves).join(", ");
    let what = format!(
        "`{missing}` matches no linear layer of this model; it has {leaves} (or use \
         all-linear)"
    );
    Err(Error::setting("target-modules", what))
}

fn leaf(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// PiSSA: A and B out of the weight of `linear`, which keeps the rest.
fn cut(name: &str, linear: &mut Linear, r: i64, scale: f64) -> Result<Pair> {
    let Weight::Dense(w) = &linear.weight else {
        let what = format!(
            "pissa splits the weight of {name}, which is in 4 bits; load the model \
             unquantized (--load-in-4bit false), or take another start"
        );
        return Err(Error::setting("init-lora-weights", what));
    };
    let (pair, left) = init::pissa(w, r, scale)?;
    linear.weight = Weight::Dense(left);
    Ok(pair)
}

/// Puts `adapter` beside `linear`, to be trained.
fn put(
    linear: &mut Linear,
    mut adapter: Adapter,
    config: &LoraConfig,
) -> Result<()> {
    adapter.dropout = config.dropout;
    adapter.a = adapter.a.set_requires_grad(true);
    adapter.b = adapter.b.set_requires_grad(true);
    if config.use_dora && adapter.dora.is_none() {
        adapter.dora = Some(Dora::new(&linear.weight, &adapter)?);
    }
    linear.lora = Some(adapter);
    Ok(())
}

fn remember(named: &mut Named, name: &str, linear: &Linear) {
    let Some(l) = &linear.lora else { return };
    let mut add = |half: &str, t: &Tensor| {
        named.push((format!("{name}.{half}"), t.shallow_clone()));
    };
    add("lora_A.weight", &l.a);
    add("lora_B.weight", &l.b);
    if let Some(bias) = &l.bias {
        add("lora_B.bias", bias);
    }
    if let Some(dora) = &l.dora {
        add("lora_magnitude_vector", &dora.magnitude);
    }
}

/// For a model that is used and not trained any more: what its adapters would compute
/// anew for every token is computed once.
///
/// # Errors
/// What libtorch refuses.
pub fn settle(linears: Vec<(String, &mut Linear)>) -> Result<()> {
    for (_, linear) in linears {
        if let Some(adapter) = &mut linear.lora {
            adapter.keep_norm(&linear.weight)?;
        }
    }
    Ok(())
}

/// Puts the adapter in `dir` beside the linears that its tensors name, and the modules
/// that were saved with it in the place of the model's.
///
/// # Errors
/// As [`read_config`]; a tensor that fits nothing in the model, a targeted linear
/// without its tensors, a rank or shape that disagrees.
pub fn load_adapter<'a>(
    dir: &Path,
    parts: impl Into<Parts<'a>>,
    device: Device,
) -> Result<(LoraConfig, Named)> {
    let Parts { linears, parameters } = parts.into();
    let config = read_config(dir)?;
    let path = dir.join(WEIGHTS);
    let as_ours = |e: Error| Error::file(dir.join(CONFIG), e.to_string());
    let rules = Rules::new(&config).map_err(as_ours)?;
    let mut saved = Saved::read(&path)?;
    let mut named = Named::new();
    for (place, (name, linear)) in linears.into_iter().enumerate() {
        let shape = linear.weight.shape();
        let Some(delta) = saved.delta(&rules, &config, &name, shape)? else {
            continue;
        };
        let at = |t: Tensor| t.to_device(device).set_requires_grad(true);
        let start = match config.init {
            Init::Pissa => {
                let cut = cut(&name, linear, delta.r, delta.scale);
                let (a, b) = cut.map_err(as_ours)?;
                Some([a, b])
            }
            _ => None,
        };
        let dora = delta.magnitude.map(|m| Dora::with(&linear.weight, at(m)));
        let adapter = Adapter {
            bias: delta.bias.map(at),
            dora,
            start,
            place: place as u32,
            ..Adapter::new(at(delta.a), at(delta.b), delta.scale)
        };
        put(linear, adapter, &config)?;
        remember(&mut named, &name, linear);
    }
    let modules = parts::chosen(&parameters, &config.modules_to_save, false);
    for (name, mut t) in modules.map_err(as_ours)? {
        let stored = saved.take(&name, &t.size(), None)?;
        no_grad(|| t.f_copy_(&stored))?;
        named.push((name, t.set_requires_grad(true)));
    }
    saved.nothing_left(
        "fits no linear layer of this model, and no module of modules_to_save; is it \
         the adapter of another base?",
    )?;
    match named.is_empty() {
        true => Err(Error::file(&path, "holds no adapter tensor")),
        false => Ok((config, named)),
    }
}
