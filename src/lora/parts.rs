//! What of a model an adapter can change.
use super::{Named, leaf};
use crate::nn::Linear;
use crate::{Error, Result};
use std::collections::BTreeSet;
use tch::Tensor;

/// The linears of a model by name and, where `modules_to_save` shall be trained whole,
/// its parameters: made from the linears alone, or from both.
///
/// ```ignore
/// let parameters = model.named_parameters();
/// lora::attach((model.linears_mut(), parameters), &config, seed, device)?;
/// ```
pub struct Parts<'a> {
    pub(super) linears: Vec<(String, &'a mut Linear)>,
    pub(super) parameters: Named,
}

impl<'a> From<Vec<(String, &'a mut Linear)>> for Parts<'a> {
    fn from(linears: Vec<(String, &'a mut Linear)>) -> Self {
        Self { linears, parameters: vec![] }
    }
}

impl<'a> From<(Vec<(String, &'a mut Linear)>, Named)> for Parts<'a> {
    fn from((linears, parameters): (Vec<(String, &'a mut Linear)>, Named)) -> Self {
        Self { linears, parameters }
    }
}

/// The modules around a parameter: of `a.b.weight` they are `a` and `a.b`.
fn modules(parameter: &str) -> impl Iterator<Item = &str> {
    parameter.match_indices('.').map(|(at, _)| &parameter[..at])
}

/// The parameters of the modules whose name ends in one of `wanted`, dot or not, as in
/// PEFT's `_set_trainable`. Each must mean something if all are `needed`: PEFT itself
/// lists both `classifier` and `score` for a model that has one of them.
pub(super) fn chosen(
    parameters: &[(String, Tensor)],
    wanted: &[String],
    needed: bool,
) -> Result<Named> {
    let wrong = |what: String| Err(Error::setting("modules-to-save", what));
    let of =
        |name: &str, m: &String| modules(name).any(|module| module.ends_with(m));
    for m in wanted {
        if m.is_empty() {
            return wrong("an empty name".into());
        }
        if needed && !parameters.iter().any(|(name, _)| of(name, m)) {
            let last = |(name, _): &'_ (String, Tensor)| {
                modules(name).last().map(|m| leaf(m).to_string())
            };
            let leaves: BTreeSet<_> = parameters.iter().filter_map(last).collect();
            return wrong(format!(
                "`{m}` names no module of this model; it has {} (those in 4 bits \
                 cannot be trained whole, nor a head that shares the embedding)",
                Vec::from_iter(leaves).join(", ")
            ));
        }
    }
    let mut all = Named::new();
    for (name, t) in parameters {
        if !wanted.iter().any(|m| of(name, m)) {
            continue;
        }
        if !t.is_floating_point() {
            return wrong(format!("{name} is {:?}; only floats train", t.kind()));
        }
        let has = |part: &str| parameters.iter().any(|(n, _)| n.contains(part));
        if name.contains("embed_tokens.") && !has("lm_head.") && !has("score.") {
            return wrong(format!(
                "{name} is also the head of this model (tie_word_embeddings), where \
                 PEFT would train one and keep the other; take lora on other modules"
            ));
        }
        all.push((name.clone(), t.shallow_clone()));
    }
    Ok(all)
}
