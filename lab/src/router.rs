//! Whom the routers of a model pick, and what that tells.
use downhill::Result;
use downhill::models::Decoder;
use downhill::nn::{Mode, dropout::uniform};
use std::collections::BTreeMap;
use tch::{Kind, Tensor, no_grad};

/// What kind of a piece a token is, as [`kind_of`] numbers them.
pub const KINDS: [&str; 6] = ["word", "Name", "piece", "mark", "digit", "other"];

/// A word with the space before it, one with a capital, the rest of a word, ...
pub fn kind_of(piece: &str) -> i64 {
    let bare = piece.trim_start();
    let first = bare.chars().next().unwrap_or(' ');
    match (bare.len() < piece.len(), first) {
        (_, c) if c.is_uppercase() => 1,
        (true, c) if c.is_alphabetic() => 0,
        (false, c) if c.is_alphabetic() => 2,
        (_, c) if c.is_ascii_digit() => 4,
        (_, c) if c.is_ascii_punctuation() || "“”‘’—".contains(c) => 3,
        _ => 5,
    }
}

// ANCHOR: choices
/// The experts that each token of `rows` [R, 1 + T] but the last goes to: [R·T, k] for
/// every layer that has experts.
///
/// # Errors
/// What libtorch refuses.
pub fn choices(model: &Decoder, rows: &Tensor) -> Result<Vec<Tensor>> {
    let t = rows.size()[1] - 1;
    let k = model.config.experts.as_ref().map_or(1, |e| e.routing.chosen);
    let weights: BTreeMap<_, _> = model.named_parameters().into_iter().collect();
    let mut chosen = vec![];
    let mut see = |name: &str, x: &Tensor| {
        let layer = name.strip_suffix(".post_attention_layernorm");
        let router =
            layer.and_then(|l| weights.get(&format!("{l}.mlp.gate.weight")));
        if let Some(router) = router {
            let [x, router] = [x, router].map(|t| t.to_kind(Kind::Float));
            chosen.push(x.matmul(&router.tr()).topk(k, 1, true, false).1);
        }
    };
    let ids = rows.narrow(1, 0, t).reshape([-1]);
    let lengths = vec![t; rows.size()[0] as usize];
    let _ = no_grad(|| model.hidden_rows(&ids, &lengths, Mode::Eval, &mut see))?;
    Ok(chosen)
}
// ANCHOR_END: choices

/// How often each of `e` experts [e] was chosen by tokens of each of `l` labels: the
/// counts [l, e] of choices [N, k] under labels [N].
pub fn counts(chosen: &Tensor, labels: &Tensor, l: i64, e: i64) -> Tensor {
    let pairs = labels.unsqueeze(1) * e + chosen;
    pairs.reshape([-1]).bincount(None::<Tensor>, l * e).view([l, e])
}

// ANCHOR: information
/// What the chosen expert and the label tell about each other, in bits a choice:
/// `Σ p(l, e) log₂ p(l, e) / (p(l) p(e))`, from counts [l, e].
pub fn information(counts: &Tensor) -> f64 {
    let p = counts.to_kind(Kind::Double);
    let p = &p / p.sum(Kind::Double);
    let sum = |dim: i64| p.sum_dim_intlist([dim].as_slice(), true, Kind::Double);
    let even = sum(1) * sum(0);
    let terms = &p * (&p / even).log2();
    terms
        .nan_to_num(0., None::<f64>, None::<f64>)
        .sum(Kind::Double)
        .double_value(&[])
}
// ANCHOR_END: information

/// The labels in an order that has nothing to do with theirs.
pub fn shuffled(labels: &Tensor, seed: u64) -> Tensor {
    let order = Tensor::from_slice(&uniform(labels.numel(), 1., seed, 12));
    labels.index_select(0, &order.argsort(0, false))
}

/// How often each expert was chosen, from counts [e], where 1 is an even share.
pub fn load(counts: &Tensor) -> Vec<f64> {
    let counts = counts.to_kind(Kind::Double);
    let n = counts.numel() as i64;
    let share = &counts / counts.sum(Kind::Double) * n as f64;
    (0..n).map(|e| share.double_value(&[e])).collect()
}
