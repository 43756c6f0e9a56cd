//! What of a model an adapter can change.
use super::{LoraConfig, Named};
use crate::nn::Linear;

/// The linears of a model by name and, where `modules_to_save` shall be trained whole,
/// its parameters: made from the linears alone, or from both.
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

/// The parameters of `modules_to_save`, trainable. PEFT lists `classifier` beside
/// `score` for a model that has one of them: what is not there is not missed.
pub(super) fn whole(parameters: Named, config: &LoraConfig) -> Named {
    let of = |n: &str, m: &String| n.rsplit_once('.').is_some_and(|n| n.0 == m);
    let wanted = parameters
        .into_iter()
        .filter(|(n, _)| config.modules_to_save.iter().any(|m| of(n, m)));
    wanted.map(|(n, t)| (n, t.set_requires_grad(true))).collect()
}
