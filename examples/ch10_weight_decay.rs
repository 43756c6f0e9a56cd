//! Chapter 10, weight decay: `cargo run --example ch10_weight_decay`.
//! In the gradient or beside it: one method for SGD, two for Adam. And who decays?
use anyhow::Result;
use downhill::optim::{Adam, AdamW, Driver, Optimizer, Param, Sgd};
use downhill::plot::Chart;
use downhill_lab::Text;
use indicatif::ProgressIterator;
use tch::{Kind, Tensor, no_grad};

/// Adam in its two forms: with the decay in the gradient (L2), or beside it (AdamW).
fn optimizer(name: &str, params: Vec<Param>) -> Box<dyn Optimizer> {
    match name {
        "Adam" => Box::new(Driver::new(Adam::default(), params)),
        _ => Box::new(Driver::new(AdamW::default(), params)),
    }
}

/// Weights that the usual recipe lets decay: matrices of the blocks, no norms, no
/// embeddings.
fn is_matrix(name: &str) -> bool {
    !["norm", "embed", "lm_head"].iter().any(|part| name.contains(part))
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");

    // # Two ways that are one for SGD
    // On 1/2 (x - 1)^2 the coupled form puts lambda * x into the gradient, as the library's
    // rule does. The decoupled one shrinks x first, by 1 - rate * lambda.
    let (rate, lambda) = (0.1, 0.5);
    let x = Tensor::from(3f64).set_requires_grad(true);
    let decaying = Param { weight_decay: lambda, ..Param::new("x", &x) };
    let mut coupled = Driver::new(Sgd::default(), vec![decaying]);
    let mut decoupled = 3.;
    for _ in 0..50 {
        let loss = (&x - 1.).square() / 2.;
        coupled.zero_grad();
        loss.backward();
        coupled.step(rate);
        let gradient = decoupled - 1.;
        decoupled = (1. - rate * lambda) * decoupled - rate * gradient;
    }
    let apart = (x.double_value(&[]) - decoupled).abs();
    println!("SGD, coupled and decoupled: {decoupled:.3}, {apart:.0e} apart");

    // # The idea in one picture
    // A weight of 1 that gets no gradient. AdamW shrinks it by a factor per step, as asked.
    // In Adam with L2 the decay is the whole gradient, which Adam divides by its size: the
    // weight falls by a rate per step, whatever the decay.
    let mut idle = Chart::new("A weight without gradient", "step", "weight");
    for (name, label) in [("AdamW", "AdamW"), ("Adam", "Adam with L2")] {
        for lambda in [0.1, 1.] {
            let w = Tensor::from(1f64).set_requires_grad(true);
            let decaying = Param { weight_decay: lambda, ..Param::new("w", &w) };
            let mut optimizer = optimizer(name, vec![decaying]);
            let mut path = vec![];
            for step in 1..=150 {
                optimizer.zero_grad();
                (&w * 0.).backward(); // a gradient of zero
                optimizer.step(0.01);
                path.push((f64::from(step), w.double_value(&[])));
            }
            println!(
                "{label:12} lambda {lambda:3}: {:.2} after 50 steps",
                path[49].1
            );
            let label = format!("{label}, {lambda}");
            idle = match name {
                "AdamW" => idle.line(&label, path),
                _ => idle.dashed(&label, path),
            };
        }
    }

    // # Who decays
    // The small Transformer on 1,500 characters, which it learns by heart. A closure gives
    // each parameter its own lambda by its name.
    let text = Text::alice()?.with_first(1_500);
    let steps = if quick { 10 } else { 105 };
    for (what, name, lambda) in [
        ("nothing", "AdamW", 0.),
        ("all", "AdamW", 3.),
        ("matrices", "AdamW", 3.),
        // What goes wrong: one letter less, and a decay of AdamW's size is far too much.
        ("all", "Adam", 3.),
    ] {
        let model = text.model(0)?;
        let decay = |name: &str, _: &Tensor| match what == "all" || is_matrix(name) {
            true => lambda,
            false => 0.,
        };
        let params = Param::with_decay(model.named_parameters(), decay);
        let mut optimizer = optimizer(name, params);
        for step in (0..steps).progress_count(steps as u64) {
            let loss = text.loss(&model, text.batch(0, step, false))?;
            optimizer.zero_grad();
            loss.backward();
            optimizer.step(3e-3);
        }
        let mut losses = [0., 0.];
        for batch in 0..8 {
            for (i, held_out) in [false, true].into_iter().enumerate() {
                let rows = text.batch(99, batch, held_out);
                let loss = no_grad(|| text.loss(&model, rows))?;
                losses[i] += loss.double_value(&[]) / 8.;
            }
        }
        let mut square = 0.;
        for (name, w) in model.named_parameters() {
            if is_matrix(&name) {
                square += w.square().sum(Kind::Double).double_value(&[]);
            }
        }
        println!(
            "{name:5} lambda {lambda} on {what:8}: learned {:.2}, held out {:.2}, norm {:.1}",
            losses[0],
            losses[1],
            square.sqrt()
        );
    }

    let figure = idle.y_range(0., 1.6).draw()?;
    figure.save("target/figures/ch10_weight_decay.svg")?;
    println!("figure: target/figures/ch10_weight_decay.svg");
    Ok(())
}
