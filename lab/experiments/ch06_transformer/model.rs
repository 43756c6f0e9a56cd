//! The Transformer of the reader's program, in parts that can be left out.
use super::reader::{self, K, LAYERS, linear};
use downhill::Result;
use downhill::models::{Decoder, DecoderConfig};
use downhill::optim::{Adam, Driver, Optimizer, Param};
use downhill::schedule::Schedule;
use downhill_lab::{Named, Text, named};
use tch::{Device::Cpu, Kind, Tensor, no_grad};

pub const D: i64 = 64;

// ANCHOR: pieces
/// The parts of a layer, so that one can stand in for another.
#[derive(Clone, Copy)]
pub struct Pieces {
    pub norm: fn(&Tensor, &Tensor) -> Tensor,
    pub rotate: fn(&Tensor) -> Tensor,
    pub look: fn(&Tensor, &Tensor) -> Tensor,
    pub join: fn(&Tensor, &Tensor) -> Tensor,
}

pub const WHOLE: Pieces = Pieces {
    norm: reader::norm,
    rotate: reader::rotate,
    look: reader::look,
    join: |x, added| x + added,
};
pub const NO_SCALE: Pieces =
    Pieces { look: |q, k| reader::look(&(q * (K as f64).sqrt()), k), ..WHOLE };
pub const NO_MASK: Pieces =
    Pieces { look: |q, k| scores(q, k).softmax(-1, None), ..WHOLE };
pub const NO_NORM: Pieces = Pieces { norm: |x, gains| x * gains, ..WHOLE };
pub const NO_STREAM: Pieces =
    Pieces { join: |_, added| added.shallow_clone(), ..WHOLE };
pub const NO_PLACES: Pieces = Pieces { rotate: Tensor::shallow_clone, ..WHOLE };
// ANCHOR_END: pieces
pub const LATE_MASK: Pieces = Pieces {
    look: |q, k| {
        let t = q.size()[2];
        let later = Tensor::ones([t, t], (Kind::Bool, Cpu)).triu(2); // 1 is right
        scores(q, k).masked_fill(&later, f64::NEG_INFINITY).softmax(-1, None)
    },
    ..WHOLE
};
pub const VARIANTS: [(&str, &str, Pieces); 6] = [
    ("whole", "whole", WHOLE),
    ("scale", "no 1/√K", NO_SCALE),
    ("norm", "no norm", NO_NORM),
    ("stream", "no stream", NO_STREAM),
    ("places", "no positions", NO_PLACES),
    ("mask", "no mask", NO_MASK),
];

pub fn scores(q: &Tensor, k: &Tensor) -> Tensor {
    q.matmul(&k.transpose(-2, -1)) / (q.size()[3] as f64).sqrt()
}

/// A model of so many layers and this width, drawn by the library.
pub fn drawn(v: i64, layers: i64, width: i64, seed: u64) -> Result<Named> {
    let config = DecoderConfig {
        vocab_size: v,
        hidden_size: width,
        intermediate_size: width * 11 / 4,
        num_hidden_layers: layers,
        num_attention_heads: width / K,
        num_key_value_heads: width / K / 2,
        head_dim: K,
        ..DecoderConfig::default()
    };
    Ok(named(&Decoder::random(config, seed)?))
}

/// The same with matrices that keep the size of what they multiply: 1/√in for 0.02.
pub fn kept_in_size(w: &Named) -> Named {
    let grown = |(name, t): (&String, &Tensor)| {
        let factor = match t.dim() {
            2 => (t.size()[1] as f64).powf(-0.5) / 0.02,
            _ => 1.,
        };
        (name.clone(), (t.detach() * factor).set_requires_grad(true))
    };
    w.iter().map(grown).collect()
}

/// Scores [B, T, V] by these pieces. `see` is shown what each layer's heads look at.
pub fn forward(
    w: &Named,
    pieces: Pieces,
    ids: &Tensor,
    see: &mut dyn FnMut(&Tensor),
) -> Tensor {
    let Pieces { norm, rotate, look, join } = pieces;
    let mut x = Tensor::embedding(&w["embed_tokens"], ids, -1, false, false);
    for layer in 0.. {
        let Some(gains) = w.get(&format!("{layer}.input_layernorm")) else { break };
        let get = |part: &str| &w[&format!("{layer}.{part}")];
        let normed = norm(&x, gains);
        let split = |y: Tensor| y.unflatten(-1, [-1, K]).transpose(1, 2);
        let [q, k, v] = ["q", "k", "v"].map(|m| split(linear(&normed, get(m))));
        let serve = q.size()[1] / k.size()[1];
        let each = |y: &Tensor| y.repeat_interleave_self_int(serve, 1, None);
        let p = look(&rotate(&q), &each(&rotate(&k)));
        see(&p);
        let y = p.matmul(&each(&v)).transpose(1, 2).flatten(2, 3);
        x = join(&x, &linear(&y, get("o")));
        let normed = norm(&x, get("post_attention_layernorm"));
        x = join(&x, &reader::swiglu(&normed, ["gate", "up", "down"].map(get)));
    }
    linear(&norm(&x, &w["norm"]), &w["lm_head"])
}

pub fn scored(w: &Named, pieces: Pieces, (x, y): (Tensor, Tensor)) -> Tensor {
    reader::loss(&forward(w, pieces, &x, &mut |_| ()), &y)
}

pub fn adam(w: &Named) -> Driver<Adam, 2> {
    let named = w.iter().map(|(name, t)| (name.clone(), t.shallow_clone()));
    Driver::new(Adam::default(), Param::all(named))
}

/// Trains on the batches that `batch` gives; the loss of each step, before it.
pub fn train(
    w: &Named,
    pieces: Pieces,
    lr: impl Schedule,
    steps: i64,
    batch: impl Fn(i64) -> (Tensor, Tensor),
) -> Vec<f64> {
    let mut optimizer = adam(w);
    let mut losses = vec![];
    for step in 0..steps {
        let loss = scored(w, pieces, batch(step));
        losses.push(loss.double_value(&[]));
        optimizer.zero_grad();
        loss.backward();
        optimizer.step(lr.lr(step));
    }
    losses
}

/// Mean loss on held-out text.
pub fn held_out(text: &Text, w: &Named, pieces: Pieces, seed: u64) -> f64 {
    let loss = |i| no_grad(|| scored(w, pieces, text.batch(seed, i, true)));
    (0..8).map(|i| loss(i).double_value(&[])).sum::<f64>() / 8.
}

/// A run: held-out loss as the model was trained, under the right mask, and at the end of
/// training.
pub struct Done {
    pub held_out: f64,
    pub honest: f64,
    pub learned: f64,
}

pub fn run(
    text: &Text,
    pieces: Pieces,
    lr: impl Schedule,
    steps: i64,
    seed: u64,
) -> Result<Done> {
    let w = kept_in_size(&drawn(text.vocabulary(), LAYERS, D, seed)?);
    let losses = train(&w, pieces, lr, steps, |step| text.batch(seed, step, false));
    let last = &losses[losses.len() - 10..];
    Ok(Done {
        held_out: held_out(text, &w, pieces, seed),
        honest: held_out(text, &w, Pieces { look: WHOLE.look, ..pieces }, seed),
        learned: last.iter().sum::<f64>() / 10.,
    })
}

/// The text with line breaks at spaces, so that no line is longer than 76 characters.
pub fn wrapped(text: &str) -> String {
    let (mut out, mut column) = (String::new(), 0);
    for word in text.split_inclusive([' ', '\n']) {
        if column > 0 && column + word.trim_end().chars().count() > 76 {
            out.truncate(out.trim_end().len());
            out.push('\n');
            column = 0;
        }
        out += word;
        column =
            if word.ends_with('\n') { 0 } else { column + word.chars().count() };
    }
    out
}
