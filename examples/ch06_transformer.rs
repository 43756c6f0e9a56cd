//! Chapter 6, the Transformer: `cargo run --example ch06_transformer`.
//! A language model in a few tensor operations: it reads a book, and writes.
use anyhow::Result;
use downhill::optim::{Adam, Driver, Optimizer, Param};
use downhill::plot::Chart;
use downhill_lab::{Named, ProgressIterator, Text, named};
use tch::{Device::Cpu, Kind, Tensor, no_grad};

pub(crate) const H: i64 = 4; // query heads
pub(crate) const G: i64 = 2; // heads of keys and values
pub(crate) const K: i64 = 16; // numbers of a head
pub(crate) const LAYERS: i64 = 2;

/// Every vector of `x` [.., in] times the matrix `w` [out, in].
pub fn linear(x: &Tensor, w: &Tensor) -> Tensor {
    x.matmul(&w.tr())
}

// CELL: The norm
// ANCHOR: norm
/// Every vector of `x` [.., D] with a root mean square of 1, times the gains `w`.
pub fn norm(x: &Tensor, w: &Tensor) -> Tensor {
    let mean_square = x.square().mean_dim(-1, true, None);
    x / (mean_square + 1e-6).sqrt() * w
}
// ANCHOR_END: norm

// CELL: Positions
// ANCHOR: rotate
/// Turns pair i of each vector of `x` [.., T, K] at place m by m · 10000^(-2i/K).
pub fn rotate(x: &Tensor) -> Tensor {
    let (t, half) = (x.size()[2], x.size()[3] / 2);
    let m = Tensor::arange(t, (x.kind(), Cpu)).unsqueeze(1);
    let i = Tensor::arange(half, (x.kind(), Cpu));
    let angle = m * (i * (-10_000f64.ln() / half as f64)).exp(); // [T, K/2]
    let (a, b) = (x.narrow(-1, 0, half), x.narrow(-1, half, half));
    let (cos, sin) = (angle.cos(), angle.sin());
    Tensor::cat(&[&a * &cos - &b * &sin, &a * &sin + &b * &cos], -1)
}
// ANCHOR_END: rotate

// CELL: Attention
// ANCHOR: look
/// softmax(q kᵀ / √K) [.., T, T], where place t sees places 0 to t.
pub fn look(q: &Tensor, k: &Tensor) -> Tensor {
    let (t, size) = (q.size()[2], q.size()[3]);
    let scores = q.matmul(&k.transpose(-2, -1)) / (size as f64).sqrt();
    let later = Tensor::ones([t, t], (Kind::Bool, Cpu)).triu(1);
    scores.masked_fill(&later, f64::NEG_INFINITY).softmax(-1, None)
}

/// Attention over `x` [B, T, D]: H heads ask, G heads answer.
pub fn attention(x: &Tensor, [q, k, v, o]: [&Tensor; 4]) -> Tensor {
    let split = |y: Tensor| y.unflatten(-1, [-1, K]).transpose(1, 2);
    let [q, k, v] = [q, k, v].map(|w| split(linear(x, w))); // [B, H or G, T, K]
    let each = |y: &Tensor| y.repeat_interleave_self_int(H / G, 1, None);
    let p = look(&rotate(&q), &each(&rotate(&k)));
    let y = p.matmul(&each(&v)); // [B, H, T, K]
    linear(&y.transpose(1, 2).flatten(2, 3), o)
}
// ANCHOR_END: look

// CELL: SwiGLU
// ANCHOR: swiglu
/// Every vector of `x` by itself: down(silu(gate x) ⊙ up x).
pub fn swiglu(x: &Tensor, [gate, up, down]: [&Tensor; 3]) -> Tensor {
    linear(&(linear(x, gate).silu() * linear(x, up)), down)
}
// ANCHOR_END: swiglu

// CELL: The residual stream
// ANCHOR: hidden
/// Letters [B, T] to the vectors [B, T, D] after the last layer.
pub fn hidden(w: &Named, ids: &Tensor) -> Tensor {
    let mut x = Tensor::embedding(&w["embed_tokens"], ids, -1, false, false);
    for layer in 0..LAYERS {
        let get = |part: &str| &w[&format!("{layer}.{part}")];
        let normed = norm(&x, get("input_layernorm"));
        x = &x + attention(&normed, ["q", "k", "v", "o"].map(get));
        let normed = norm(&x, get("post_attention_layernorm"));
        x = &x + swiglu(&normed, ["gate", "up", "down"].map(get));
    }
    norm(&x, &w["norm"])
}
// ANCHOR_END: hidden

// CELL: Scores and loss
// ANCHOR: loss
/// The mean of -ln p of the letters `y` [B·T] that came, from scores `z` [B, T, V].
pub fn loss(z: &Tensor, y: &Tensor) -> Tensor {
    let log_p = z.flatten(0, 1).log_softmax(-1, None);
    -log_p.gather(1, &y.unsqueeze(1), false).mean(None)
}
// ANCHOR_END: loss

/// `n` letters after `start`, each drawn from what the model expects.
pub fn write(w: &Named, text: &Text, start: &str, n: usize) -> String {
    let mut ids = text.encode(start);
    for _ in 0..n {
        let seen = &ids[ids.len().saturating_sub(32)..]; // it has learned no longer ones
        let h = no_grad(|| hidden(w, &Tensor::from_slice(seen).unsqueeze(0)));
        let z = linear(&h.select(1, -1), &w["lm_head"]); // of the last place, [1, V]
        ids.push(z.softmax(-1, None).multinomial(1, true).int64_value(&[0, 0]));
    }
    text.decode(&ids)
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");
    // NOTEBOOK: let quick: bool = false;

    // CELL: A random start
    let text = Text::alice()?;
    let model = text.grouped(0)?; // of which only the tensors are used here
    let w: Named = named(&model);
    println!("{} letters, {} tensors", text.vocabulary(), w.len());

    // CELL: Backward by hand
    // ANCHOR: by_hand
    let (x, y) = text.batch(0, 0, false);
    let h = hidden(&w, &x);
    let z = linear(&h, &w["lm_head"]);
    loss(&z, &y).backward();
    let (p, came) = (z.softmax(-1, None), y.one_hot(text.vocabulary()));
    let dz = (p.flatten(0, 1) - came) / 256.;
    let dw = dz.tr().matmul(&h.flatten(0, 1));
    let gap = (dw - w["lm_head"].grad()).abs().max().double_value(&[]);
    // ANCHOR_END: by_hand
    println!("gradient by hand and by autograd: {gap:.0e} apart");

    // CELL: It learns to write
    tch::manual_seed(0); // of the draws
    println!("before: {:?}", write(&w, &text, "Alice ", 60));
    let steps: i32 = if quick { 40 } else { 1200 };
    let mut losses = vec![];
    // ANCHOR: loop
    let mut optimizer = Driver::new(Adam::default(), Param::all(named(&model)));
    for step in (0..steps).progress() {
        let (x, y) = text.batch(0, step.into(), false);
        let loss = loss(&linear(&hidden(&w, &x), &w["lm_head"]), &y);
        optimizer.zero_grad();
        loss.backward();
        optimizer.step(0.003);
        losses.push((f64::from(step), loss.double_value(&[])));
    }
    // ANCHOR_END: loop
    for (step, loss) in losses.iter().step_by(200) {
        println!("step {step:4}: loss {loss:.2}");
    }
    println!("after: {:?}", write(&w, &text, "Alice ", 200));
    let figure = Chart::new("Learning to spell", "step", "loss (nats)");
    let figure = figure.line("loss", losses).draw()?;
    // NOTEBOOK: skip
    figure.save("target/figures/ch06_transformer.svg")?;
    println!("figure: target/figures/ch06_transformer.svg");
    // NOTEBOOK: end
    // NOTEBOOK: figure
    Ok(())
}
