//! An adapter's settings as PEFT must find them where transformers 5 has changed the
//! model: of DeepSeek-V2 and -V3 it keeps the experts of a layer in two tensors,
//! `experts.gate_up_proj` and `experts.down_proj`.
//!
//! PEFT 0.21 turns the tensors of adapters of single experts into those of the whole,
//! as long as they are of `gate_proj` and `up_proj` both; their rank is then twice as
//! large. But it takes these names, wherever they stand, out of `target_modules`, so
//! that the adapters of dense layers and of shared experts would be left out in
//! silence. So they are named by their weights, in `target_parameters`, and all else
//! by a regular expression that has only the experts under these names. PEFT knows
//! `target_parameters` from 0.17 on, and the result is the same under transformers 4.
//! It knows no dropout there, which matters to training alone.
//!
//! Source: `_convert_peft_config_moe` in PEFT's `utils/transformers_weight_conversion.py`.
use super::config::{LoraConfig, Modules, Rules};
use super::{Named, leaf};
use crate::Result;
use std::collections::{BTreeMap, BTreeSet};

const FUSED: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// The settings `config` of a DeepSeek-V2 or -V3 for PEFT over transformers 4 and 5,
/// with the tensors `named` of the adapter.
///
/// # Errors
/// A setting out of range; a pattern that is none.
pub fn for_peft(config: &LoraConfig, named: &Named) -> Result<LoraConfig> {
    let modules = adapted(named);
    if !modules.iter().any(|name| FUSED.contains(&leaf(name)))
        || obstacle(config, named).is_some()
    {
        return Ok(config.clone());
    }
    let expert = |name: &&&str| name.contains(".experts.");
    let fused = |name: &&&str| FUSED.contains(&leaf(name));
    let dense = modules.iter().filter(fused).filter(|name| !expert(name));
    let dense: Vec<&str> = dense.copied().collect();
    let parameter = |name: &&str| {
        let from = name.rfind('.').and_then(|at| name[..at].rfind('.'));
        format!("{}.weight", &name[from.map_or(0, |at| at + 1)..])
    };
    let parameters: BTreeSet<String> = dense.iter().map(parameter).collect();
    let others = modules.iter().filter(|name| !fused(name) || expert(name));
    let rules = Rules::new(config)?;
    let (mut ranks, mut alphas) = (vec![], vec![]);
    if config.use_rslora
        || !config.rank_pattern.is_empty()
        || !config.alpha_pattern.is_empty()
    {
        // What PEFT would look up under names that it has changed, each by itself.
        let experts = modules.iter().filter(expert).filter_map(|name| {
            let (layer, rest) = name.split_once(".experts.")?;
            let (_, part) = rest.split_once('.')?;
            let twice = part != "down_proj";
            let part = if twice { "gate_up_proj" } else { part };
            Some((format!("{layer}.experts.{part}"), *name, twice))
        });
        let dense = dense.iter().map(|n| (format!("{n}.weight"), *n, false));
        let mut seen = BTreeSet::new();
        for (target, name, twice) in experts.chain(dense) {
            if !seen.insert(target.clone()) {
                continue;
            }
            let (r, scale) = rules.rank_and_scale(name)?;
            let r = if twice { 2 * r } else { r };
            let by = if config.use_rslora { (r as f64).sqrt() } else { r as f64 };
            let pattern = target.replace('.', r"\.");
            ranks.push((pattern.clone(), r));
            alphas.push((pattern, scale * by));
        }
    }
    ranks.extend(config.rank_pattern.iter().cloned());
    alphas.extend(config.alpha_pattern.iter().cloned());
    Ok(LoraConfig {
        target_modules: Modules::Pattern(pattern(others.copied())),
        exclude_modules: Modules::default(),
        layers_to_transform: None,
        layers_pattern: vec![],
        rank_pattern: ranks,
        alpha_pattern: alphas,
        target_parameters: parameters.into_iter().collect(),
        dropout: 0.,
        ..config.clone()
    })
}

/// Why PEFT over transformers 5 cannot read the adapter of a DeepSeek-V2 or -V3, if it
/// cannot.
pub fn obstacle(config: &LoraConfig, named: &Named) -> Option<String> {
    let modules = adapted(named);
    let has = |part: &str| {
        modules.iter().any(|n| n.contains(".experts.") && leaf(n) == part)
    };
    if !modules.iter().any(|name| FUSED.contains(&leaf(name))) {
        return None;
    }
    let why = match () {
        () if config.use_dora => "DoRA",
        () if config.lora_bias => "a bias beside B",
        () if has("gate_proj") != has("up_proj") => {
            "only one of gate_proj and up_proj, which it keeps in one tensor"
        }
        () => return None,
    };
    Some(format!(
        "PEFT over transformers 5 cannot read this adapter: it knows no adapters of \
         feed-forward layers of DeepSeek-V2 and -V3 with {why}. downhill reads it, and \
         so does PEFT over transformers 4; or write a merged checkpoint with downhill \
         merge"
    ))
}

/// The names of the linears with an adapter.
fn adapted(named: &Named) -> BTreeSet<&str> {
    named.iter().filter_map(|(n, _)| Some(n.split_once(".lora_")?.0)).collect()
}

/// A regular expression for the names: as one where they differ in the numbers of
/// layers and experts alone.
fn pattern<'a>(names: impl Iterator<Item = &'a str>) -> String {
    // By what stands after both numbers: the layers, and the experts.
    let mut groups: BTreeMap<(&str, &str, &str), [BTreeSet<u64>; 2]> =
        BTreeMap::new();
    let mut alone = vec![];
    for name in names {
        let Some((before, rest)) = name.split_once(".layers.") else {
            alone.push(name.replace('.', r"\."));
            continue;
        };
        let (layer, rest) = rest.split_once('.').unwrap_or((rest, ""));
        let (inner, expert, part) = match rest.split_once(".experts.") {
            Some((inner, rest)) => {
                let (expert, part) = rest.split_once('.').unwrap_or((rest, ""));
                (inner, expert.parse::<u64>().ok(), part)
            }
            None => ("", None, rest),
        };
        let group = groups.entry((before, inner, part)).or_default();
        group[0].extend(layer.parse::<u64>());
        group[1].extend(expert);
    }
    let list = |numbers: &BTreeSet<u64>| {
        let numbers: Vec<_> = numbers.iter().map(u64::to_string).collect();
        numbers.join("|")
    };
    let grouped = groups.iter().map(|((before, inner, part), [layers, experts])| {
        let whole = experts.iter().copied().eq(0..experts.len() as u64);
        // PEFT asks for the experts of a layer without a number.
        let experts = match (experts.is_empty(), whole) {
            (true, _) => String::new(),
            (_, true) => format!("{inner}.experts.(NUMBER)?"),
            (_, false) => format!("{inner}.experts.(({}).)?", list(experts)),
        };
        let name = format!("{before}.layers.({}).{experts}{part}", list(layers));
        name.replace('.', r"\.").replace("NUMBER", r"[0-9]+\.")
    });
    let all: Vec<String> = alone.into_iter().chain(grouped).collect();
    all.join("|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    #[test]
    fn a_pattern_has_the_names_it_was_made_of() {
        let names: Vec<String> = (1..3)
            .flat_map(|l| {
                let at = format!("model.layers.{l}");
                let experts = (0..4).map(|e| format!("mlp.experts.{e}.up_proj"));
                let others = ["self_attn.q_proj", "self_attn.o_proj"];
                let all = experts.chain(others.map(str::to_string));
                all.map(|rest| format!("{at}.{rest}")).collect::<Vec<_>>()
            })
            .collect();
        let text = pattern(names.iter().map(String::as_str));
        let whole = super::super::pattern::Pattern::whole("x", &text).expect("one");
        for name in &names {
            assert!(whole.matches(name).expect("decided"), "{name}: {text}");
        }
        for other in [
            "model.layers.0.self_attn.q_proj",
            "model.layers.1.self_attn.k_proj",
            "model.layers.1.mlp.shared_experts.up_proj",
            "model.layers.1.mlp.up_proj",
        ] {
            assert!(!whole.matches(other).expect("decided"), "{other}: {text}");
        }
        assert!(
            whole.matches("model.layers.1.mlp.experts.up_proj").expect("decided")
        );
    }

    #[test]
    fn what_transformers_5_cannot_hold_is_said() {
        let one = |name: &str| {
            let name = format!("model.layers.1.mlp.{name}.lora_A.weight");
            (name, Tensor::from_slice(&[0f32]))
        };
        let plain = LoraConfig::default();
        let dora = LoraConfig { use_dora: true, ..LoraConfig::default() };
        let both = vec![one("experts.0.gate_proj"), one("experts.0.up_proj")];
        assert_eq!(obstacle(&plain, &both), None);
        assert!(obstacle(&dora, &both).is_some_and(|why| why.contains("DoRA")));
        let half = vec![one("experts.0.gate_proj")];
        assert!(obstacle(&plain, &half).is_some_and(|why| why.contains("up_proj")));
        let q = vec![("a.q_proj.lora_A.weight".to_string(), Tensor::new())];
        assert_eq!(obstacle(&dora, &q), None);
    }
}
