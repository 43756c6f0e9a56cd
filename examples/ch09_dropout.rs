//! Chapter 9, dropout: `cargo run --example ch09_dropout`.
//! A mask that can be drawn again, a text that is learned by heart, and a committee.
use anyhow::Result;
use downhill::models::Decoder;
use downhill::nn::Mode;
use downhill::nn::dropout::{Rates, dropout};
use downhill::optim::{Adam, Driver, Optimizer, Param};
use downhill::plot::Chart;
use downhill_lab::Text;
use indicatif::ProgressIterator;
use tch::{Device, Kind, Tensor, no_grad};

/// Mean loss of four batches, in the mode given.
fn look(text: &Text, model: &Decoder, held_out: bool, mode: Mode) -> Result<f64> {
    let mut sum = 0.;
    for batch in 0..4 {
        let rows = text.batch(99, batch, held_out);
        sum += no_grad(|| text.loss_in(model, rows, mode))?.double_value(&[]);
    }
    Ok(sum / 4.)
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");

    // # The equation
    // A share p of the elements becomes zero, the others are divided by 1 - p, so that the
    // mean stays. The mask is a function of seed, step and place: the same again, if you
    // ask again, and another at the next step. In evaluation nothing happens.
    let ones = Tensor::ones([1_000_000], (Kind::Float, Device::Cpu));
    let first = Mode::Train { seed: 0, step: 1 };
    let y = dropout(&ones, 0.3, first, 0);
    let zeros = y.eq(0.).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    println!("zeros {zeros:.3}, mean {:.3}", y.mean(Kind::Double).double_value(&[]));
    let next = Mode::Train { seed: 0, step: 2 };
    println!("the same step again: {}", y == dropout(&ones, 0.3, first, 0));
    println!("the next step:       {}", y == dropout(&ones, 0.3, next, 0));
    println!("evaluation is x:     {}", ones == dropout(&ones, 0.3, Mode::Eval, 0));

    // # Little text, and much
    // The small Transformer reads the same 2,000 characters again and again. Without
    // dropout it learns them by heart, and the loss on other text turns and rises.
    let mut chart = Chart::new("2,000 characters", "step", "held-out loss (nats)");
    let little = Text::alice()?.with_first(2_000);
    let steps = if quick { 20 } else { 300 };
    let mut dropped = None;
    for p in [0., 0.3] {
        let rates = Rates { embedding: p, attention: p, residual: p };
        let text = little.with_dropout(rates);
        let model = text.model(0)?;
        let params = Param::all(model.named_parameters());
        let mut optimizer = Driver::new(Adam::default(), params);
        let mut curve = vec![];
        for step in (0..steps).progress_count(steps as u64) {
            let mode = Mode::Train { seed: 0, step: step as u64 };
            let loss = text.loss_in(&model, text.batch(0, step, false), mode)?;
            optimizer.zero_grad();
            loss.backward();
            optimizer.step(3e-3);
            if step % 10 == 9 {
                let held_out = look(&text, &model, true, Mode::Eval)?;
                curve.push((step as f64 + 1., held_out));
            }
        }
        let learned = look(&text, &model, false, Mode::Eval)?;
        let last = curve[curve.len() - 1].1;
        let lowest = curve.iter().map(|c| c.1).fold(f64::INFINITY, f64::min);
        println!(
            "p = {p}: learned {learned:.2}, held out {last:.2}, lowest {lowest:.2}"
        );
        chart = chart.line(&format!("p = {p}"), curve);
        dropped = Some((text, model));
    }

    // # What goes wrong
    // Nobody said that this is evaluation: the loss is measured under masks. Here the mode
    // is an argument of every forward pass, so that it must be said.
    let Some((text, model)) = dropped else { return Ok(()) };
    let right = look(&text, &model, true, Mode::Eval)?;
    let forgotten = look(&text, &model, true, Mode::Train { seed: 7, step: 0 })?;
    println!("held out {right:.2}; measured under masks {forgotten:.2}");

    // # Check the folklore
    // "The net without dropout is the mean of all thinned nets." Average the predictions
    // under many masks, and compare with the full net.
    let (x, y) = text.batch(99, 0, true);
    let full = no_grad(|| text.loss(&model, text.batch(99, 0, true)))?;
    let shape = [y.size()[0], text.vocabulary()];
    let mut sum = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    for k in 1..=64 {
        let mode = Mode::Train { seed: 1, step: k };
        let logits = no_grad(|| model.logits(&model.hidden(&x, mode, None)?))?;
        sum += logits.flatten(0, 1).softmax(-1, Kind::Float);
        if [1, 4, 16, 64].contains(&k) {
            let mean = &sum / k as f64;
            let right = mean.gather(1, &y.unsqueeze(1), false);
            let loss = -right.log().mean(Kind::Double).double_value(&[]);
            println!("{k:2} thinned nets: {loss:.2}");
        }
    }
    println!("the full net once: {:.2}", full.double_value(&[]));

    let figure = chart.y_range(2.4, 3.8).draw()?;
    figure.save("target/figures/ch09_dropout.svg")?;
    println!("figure: target/figures/ch09_dropout.svg");
    Ok(())
}
