//! What keeps all experts in use while they learn.
use anyhow::{Context, Result};
use downhill::models::Decoder;
use downhill::tch::{Kind, Tensor, no_grad};

/// How much of the unevenness is added to the loss. DeepSeek-V2-Lite has 0.001, over
/// far more tokens.
pub const ALPHA: f64 = 0.01;

/// The router that reads the result of the layer `name`, if one does.
pub fn router_of(name: &str) -> Option<String> {
    let layer = name.strip_suffix(".post_attention_layernorm")?;
    Some(format!("{layer}.mlp.gate.weight"))
}

/// `Σ_e f_e p_e`, the mean of the layers that have experts: f_e is the share of tokens
/// that chose expert e, over the share if all were chosen alike, and p_e the mean
/// probability that the router gave to it. 1 where the load is even, more where it is
/// not. The gradient comes by p alone, and lowers that of experts much chosen.
///
/// Source: DeepSeek-AI 2024, arXiv 2405.04434, eq. 23 to 25; here over a whole batch,
/// of whose tokens the `real` ones count.
pub fn unevenness(
    model: &Decoder,
    seen: &[(String, Tensor)],
    real: &Tensor,
) -> Result<Tensor> {
    let none = Tensor::zeros([], (Kind::Float, model.device()));
    let Some(experts) = &model.config.experts else { return Ok(none) };
    let (all, chosen) = (experts.routed, experts.routing.chosen);
    let weights = model.named_parameters();
    let mut each = Vec::new();
    for (router, x) in seen {
        let Some((_, w)) = weights.iter().find(|(name, _)| name == router) else {
            continue; // a layer without experts
        };
        let p = x.index_select(0, real).linear(w, None::<&Tensor>);
        let p = p.softmax(-1, Kind::Float); // (N, E)
        let f = no_grad(|| {
            let (_, ids) = p.topk(chosen, 1, true, false);
            let counts = ids.view([-1]).bincount(None::<Tensor>, all);
            counts.to_kind(Kind::Float) * (all as f64 / ids.numel() as f64)
        });
        each.push((f * p.mean_dim([0].as_slice(), false, None)).sum(None));
    }
    let sum = each.iter().fold(none, |sum, t| sum + t);
    let layers = (!each.is_empty()).then_some(each.len() as f64);
    Ok(sum / layers.context("no router was seen")?)
}
