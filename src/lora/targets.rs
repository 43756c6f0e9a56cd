//! Which linears of a model an adapter goes beside, found by their names alone: wrong
//! names are so refused before the weights are read.
use super::config::{Init, LoraConfig, Modules, Rules, ends_in};
use super::{leaf, parts, pattern};
use crate::{Error, Result};
use std::collections::BTreeSet;
use tch::Tensor;

/// Refuses settings that [`super::attach`] would refuse for a model with these `linears`
/// (name and [out, in]), held in 4 bits or not, and these other `parameters`.
///
/// # Errors
/// As [`super::attach`].
pub fn check(
    config: &LoraConfig,
    linears: &[(String, [i64; 2])],
    in_4bit: bool,
    parameters: &[String],
) -> Result<()> {
    let rules = Rules::new(config)?;
    let names: Vec<&str> = linears.iter().map(|(n, _)| n.as_str()).collect();
    let targeted = chosen(config, &rules, &names)?;
    let empty = |n: &String| (n.clone(), Tensor::from_slice(&[0f32; 0]));
    let mut others: Vec<_> = parameters.iter().map(empty).collect();
    if !in_4bit {
        let weight = |n: &&str| empty(&format!("{n}.weight"));
        others.extend(names.iter().map(weight));
    }
    parts::chosen(&others, &config.modules_to_save, true)?;
    if config.init != Init::Pissa {
        return Ok(());
    }
    if let (true, Some(name)) = (in_4bit, names.first()) {
        return Err(in_4_bits(name));
    }
    for ((name, [out, input]), targeted) in linears.iter().zip(targeted) {
        let (r, _) = rules.rank_and_scale(name)?;
        if targeted && r > *out.min(input) {
            let what = format!(
                "{r}, but {name} has a weight of shape [{out}, {input}], which has {} \
                 singular values",
                out.min(input)
            );
            return Err(Error::setting("lora-r", what));
        }
    }
    Ok(())
}

/// PiSSA cannot split the weight of `name`.
pub(super) fn in_4_bits(name: &str) -> Error {
    let what = format!(
        "pissa splits the weight of {name}, which is in 4 bits; load the model \
         unquantized (--load-in-4bit false), or take another start"
    );
    Error::setting("init-lora-weights", what)
}

/// Whether each of the linears `names` gets an adapter.
///
/// # Errors
/// A name or pattern that none has; nothing left.
pub(super) fn chosen(
    config: &LoraConfig,
    rules: &Rules,
    names: &[&str],
) -> Result<Vec<bool>> {
    found("target-modules", &config.target_modules, names)?;
    found("exclude-modules", &config.exclude_modules, names)?;
    let each = names.iter().map(|name| rules.targets(name));
    let targeted = each.collect::<Result<Vec<bool>>>()?;
    let adapted = names.iter().zip(&targeted).filter(|(_, on)| **on);
    let adapted: Vec<&str> = adapted.map(|(name, _)| *name).collect();
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
    rules.all_used(&adapted)?;
    Ok(targeted)
}

/// Refuses a name or pattern that no linear has.
fn found(flag: &str, modules: &Modules, names: &[&str]) -> Result<()> {
    let missing = match modules {
        Modules::AllLinear => None,
        Modules::Names(list) => {
            list.iter().find(|m| !names.iter().any(|n| ends_in(n, m)))
        }
        Modules::Pattern(text) => {
            let whole = pattern::Pattern::whole("target-modules", text)?;
            let mut any = false;
            for name in names {
                any |= whole.matches(name)?;
            }
            (!any).then_some(text)
        }
    };
    let Some(missing) = missing else { return Ok(()) };
    let leaves: BTreeSet<_> = names.iter().map(|n| leaf(n)).collect();
    let leaves = Vec::from_iter(leaves).join(", ");
    let also = if flag == "target-modules" { " (or use all-linear)" } else { "" };
    let what = format!(
        "`{missing}` matches no linear layer of this model; it has {leaves}{also}"
    );
    Err(Error::setting(flag, what))
}
