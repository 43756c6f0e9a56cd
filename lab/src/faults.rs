//! Ways to read a checkpoint wrongly that no shape betrays.
use super::small::Small;
use downhill::Result;
use downhill::models::Decoder;
use tch::Tensor;

/// A key, what is wrong, and the model that has it.
pub type Fault = (&'static str, &'static str, Decoder);

/// Rows of a matrix of heads of size `k`, put so that turning halves turns neighbours.
fn neighbours(w: &Tensor, k: i64) -> Tensor {
    let shape = w.size();
    let pairs = w.view([shape[0] / k, k / 2, 2, shape[1]]);
    pairs.transpose(1, 2).reshape(shape)
}

/// Of a Llama whose `o_proj` is square and whose head is tied; the first is right.
///
/// # Errors
/// What libtorch refuses.
pub fn of_llama(small: &Small) -> Result<Vec<Fault>> {
    let each = |end: &'static [&'static str], f: fn(&Tensor, i64) -> Tensor| {
        small.changed(|c, tensors| {
            for (name, w) in tensors.iter_mut() {
                if end.iter().any(|end| name.ends_with(end)) {
                    *w = f(w, c.head_dim);
                }
            }
        })
    };
    let turned = &["q_proj.weight", "k_proj.weight"];
    Ok(vec![
        ("right", "as it is", small.changed(|_, _| ())?),
        ("layout", "halves turned as neighbours", each(turned, neighbours)?),
        (
            "theta",
            "rope_theta 500000 for 10000",
            small.changed(|c, _| c.rope.theta = 500_000.)?,
        ),
        ("transpose", "o_proj transposed", each(&["o_proj.weight"], |w, _| w.tr())?),
        (
            "head",
            "tied head forgotten",
            small.changed(|c, _| c.tie_word_embeddings = false)?,
        ),
        ("norms", "norms' weights left at 1", {
            each(&["norm.weight"], |w, _| w.ones_like())?
        }),
        (
            "eps",
            "rms_norm_eps 1e-3 for 1e-6",
            small.changed(|c, _| c.rms_norm_eps = 1e-3)?,
        ),
    ])
}

/// Of a DeepSeek-V2 with four experts a token; the first is right.
///
/// # Errors
/// What libtorch refuses.
pub fn of_deepseek(small: &Small) -> Result<Vec<Fault>> {
    let latent = |f: fn(&mut downhill::models::LatentConfig)| {
        small.changed(|c, _| c.latent.iter_mut().for_each(f))
    };
    let experts = |f: fn(&mut downhill::models::ExpertsConfig)| {
        small.changed(|c, _| c.experts.iter_mut().for_each(f))
    };
    let each = |end: &'static str, f: fn(&Tensor) -> Tensor| {
        small.changed(|_, tensors| {
            for (_, w) in tensors.iter_mut().filter(|(n, _)| n.ends_with(end)) {
                *w = f(w);
            }
        })
    };
    let normalized = |e: &mut downhill::models::ExpertsConfig| {
        (e.routing.normalize, e.routing.scale) = (true, 1.);
    };
    Ok(vec![
        ("right", "as it is", small.changed(|_, _| ())?),
        (
            "layout",
            "neighbours turned as halves",
            latent(|l| l.interleaved = false)?,
        ),
        (
            "score",
            "scores over √32, not √48",
            latent(|l| l.scale = 1. / 32f64.sqrt())?,
        ),
        (
            "scale",
            "routed_scaling_factor forgotten",
            experts(|e| e.routing.scale = 1.)?,
        ),
        (
            "normalize",
            "weights of the chosen made to add to 1",
            experts(normalized)?,
        ),
        ("fewer", "two experts for four", experts(|e| e.routing.chosen = 2)?),
        ("more", "eight experts for four", experts(|e| e.routing.chosen = 8)?),
        (
            "shared",
            "shared experts left out",
            each("shared_experts.down_proj.weight", Tensor::zeros_like)?,
        ),
        ("shifted", "experts numbered from 1", {
            each("mlp.gate.weight", |w| w.roll([1], [0]))?
        }),
    ])
}
