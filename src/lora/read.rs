//! An adapter of a folder, put into a model.
use super::config::{Init, LoraConfig, Modules, Rules};
use super::delta::{NOT_GATHERED, Saved};
use super::peft::CONFIG;
use super::{Named, Parts, cut, parts, put, read_config, remember};
use crate::nn::{Adapter, Dora};
use crate::{Error, Result};
use std::path::Path;
use tch::{Device, Tensor, no_grad};

const HEAD: &str = "lm_head";
const EMBED: &str = "model.embed_tokens";

/// Puts the adapter in `dir` beside the linears that its tensors name, and the modules
/// that were saved with it in the place of the model's.
///
/// # Errors
/// As [`read_config`]; a tensor that fits nothing in the model, a targeted linear
/// without its tensors, a rank or shape that disagrees, a number that is not finite.
pub fn load_adapter<'a>(
    dir: &Path,
    parts: impl Into<Parts<'a>>,
    device: Device,
) -> Result<(LoraConfig, Named)> {
    load(dir, parts.into(), device, false)
}

/// As [`load_adapter`], for a model that is used and not trained: updates of the head
/// and of the embedding are read too, and become part of these weights. Of a model
/// whose head is its embedding see [`unties`] first.
///
/// # Errors
/// As [`load_adapter`].
pub fn load_for_use<'a>(
    dir: &Path,
    parts: impl Into<Parts<'a>>,
    device: Device,
) -> Result<()> {
    load(dir, parts.into(), device, true).map(|_| ())
}

/// Whether the adapter in `dir` changes the head or the embedding, so that a model in
/// which they are one needs one of each, as PEFT gives it.
///
/// # Errors
/// As [`read_config`].
pub fn unties(dir: &Path) -> Result<bool> {
    let config = read_config(dir)?;
    let rules = Rules::new(&config)
        .map_err(|e| Error::file(dir.join(CONFIG), e.to_string()))?;
    for name in [HEAD, EMBED] {
        let saved = config.modules_to_save.iter().any(|m| name.ends_with(m));
        let adapted = config.target_modules != Modules::AllLinear;
        if saved || adapted && rules.targets(name)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How many scores the head of the adapter in `dir` gives, if it has one.
///
/// # Errors
/// As [`read_config`]; a file that cannot be read, or a head of another shape.
pub fn head_scores(dir: &Path) -> Result<Option<i64>> {
    let config = read_config(dir)?;
    if !config.modules_to_save.iter().any(|m| "score".ends_with(m.as_str())) {
        return Ok(None);
    }
    Saved::read(dir)?.head_scores()
}

fn load(
    dir: &Path,
    parts: Parts,
    device: Device,
    fold: bool,
) -> Result<(LoraConfig, Named)> {
    let Parts { linears, parameters } = parts;
    let config = read_config(dir)?;
    let as_ours = |e: Error| Error::file(dir.join(CONFIG), e.to_string());
    let rules = Rules::new(&config).map_err(as_ours)?;
    let mut saved = Saved::read(dir)?;
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
    let parameter = |name: &str| {
        let found = parameters.iter().find(|(n, _)| n == name);
        found.map(|(_, t)| t.shallow_clone())
    };
    let mut updates = vec![];
    if fold && config.init != Init::Pissa {
        for module in [HEAD, EMBED] {
            let Some(w) = parameter(&format!("{module}.weight")) else { continue };
            let update = saved.update(&rules, module, &w)?;
            updates.extend(update.map(|update| (w, update)));
        }
    }
    let path = saved.path().to_path_buf();
    saved.nothing_left(
        &parameter,
        "fits no linear layer of this model, and no module of modules_to_save; is it \
         the adapter of another base?",
    )?;
    let folded = !updates.is_empty();
    for (mut w, update) in updates {
        let update = update.to_device(w.device()).to_kind(w.kind());
        let _ = no_grad(|| w.f_add_(&update))?;
    }
    for (name, t) in &named {
        if !bool::try_from(t.f_isfinite()?.f_all()?)? {
            let what = "holds numbers that are infinite or NaN: the training of this \
                        adapter diverged, or the file is damaged";
            return Err(Error::tensor(&path, name, what));
        }
    }
    match named.is_empty() && !folded {
        true => {
            let what = format!("holds no adapter tensor: {NOT_GATHERED}");
            Err(Error::file(&path, what))
        }
        false => Ok((config, named)),
    }
}
