//! Chapter 7, schedules: `cargo run --example ch07_schedules`.
//! A learning rate is a function of the step. Why it should fall, and why rise first.
use anyhow::Result;
use downhill::optim::{Adam, Driver, Optimizer, Param};
use downhill::plot::{Chart, panels};
use downhill::schedule::{Schedule, constant, cosine, linear, wsd};
use downhill_lab::Text;
use indicatif::ProgressIterator;
use tch::no_grad;

/// A schedule by its name: 100 steps, of which ten warm up.
fn schedule(name: &str, peak: f64) -> Box<dyn Schedule> {
    match name {
        "cosine" => Box::new(cosine(peak, 10, 100)),
        "linear" => Box::new(linear(peak, 10, 100)),
        "WSD" => Box::new(wsd(peak, 10, 65, 25)),
        _ => Box::new(constant(peak)),
    }
}

/// The mean of 1/2 (x^2 + 0.02 y^2) after n steps of SGD from (1, 1), each gradient with
/// noise of variance 1. No sampling is needed: a step of rate r down a curvature h
/// shrinks the mean of x^2 by (1 - r h)^2 and adds r^2.
fn expected(rate: &dyn Schedule, n: i64) -> f64 {
    let mut loss = 0.;
    for h in [1., 0.02] {
        let mut square = 1.;
        for t in 0..n {
            let r = rate.lr(t);
            square = (1. - r * h).powi(2) * square + r * r;
        }
        loss += 0.5 * h * square;
    }
    loss
}

/// Trains the small Transformer of chapter 5 with Adam: its loss on held-out text.
fn train(text: &Text, rate: &dyn Schedule, steps: i64) -> Result<f64> {
    let model = text.model(0)?;
    let params = Param::all(model.named_parameters());
    let mut optimizer = Driver::new(Adam::default(), params);
    for step in (0..steps).progress_count(steps as u64) {
        optimizer.zero_grad();
        text.loss(&model, text.batch(0, step, false))?.backward();
        optimizer.step(rate.lr(step)); // all that a schedule changes
    }
    let mut loss = 0.;
    for batch in 0..8 {
        let held_out = text.batch(0, batch, true);
        loss += no_grad(|| text.loss(&model, held_out))?.double_value(&[]) / 8.;
    }
    Ok(loss)
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");

    // # The idea in one picture
    // A schedule has no state: it can be plotted without being worn out.
    let names = ["constant", "WSD", "linear", "cosine"];
    let mut shapes = Chart::new("Four schedules", "step", "rate / peak");
    for name in names {
        let rate = schedule(name, 1.);
        let curve = (0..100).map(|t| (t as f64, rate.lr(t))).collect();
        shapes = shapes.line(name, curve);
    }

    // # Why a rate should fall
    // Large steps shrink faster and add more noise. So begin with large ones and end with
    // small ones: against the best constant rate, a falling one gains, the longer the run
    // the more.
    let mut gains = vec![];
    for n in [100, 300, 1_000, 3_000, 10_000] {
        let (mut flat, mut falling) = (f64::INFINITY, f64::INFINITY);
        for k in 0..40 {
            let peak = 1e-4 * 10f64.powf(0.1 * f64::from(k));
            flat = flat.min(expected(&constant(peak), n));
            falling = falling.min(expected(&linear(peak, 0, n), n));
        }
        println!("{n:6} steps: best constant {flat:.5}, best line {falling:.5}");
        gains.push((n as f64, falling / flat));
    }
    let gains = Chart::new("A falling rate", "steps", "loss / that of the constant")
        .line("linear", gains)
        .log_x()
        .y_range(0.6, 1.1);

    // # With and without warmup
    // At a rate that is too high for the first steps, a slow rise saves the run.
    let text = Text::alice()?;
    let steps = if quick { 10 } else { 40 };
    for peak in [0.0032, 0.032] {
        let without = train(&text, &linear(peak, 0, steps), steps)?;
        let with = train(&text, &linear(peak, 16, steps), steps)?;
        println!(
            "peak {peak:.4}: held-out loss {without:.2}, with warmup {with:.2}"
        );
    }

    // # Equal budgets
    // The same number of steps for each, at the best of the page's peaks. So short a run
    // is still on its way down, and who keeps the rate is ahead.
    for name in names {
        let steps = if quick { 10 } else { 100 };
        let loss = train(&text, schedule(name, 0.0032).as_ref(), steps)?;
        println!("{name:9} held-out loss {loss:.2} after {steps} steps");
    }

    // # What goes wrong
    // A cosine that was told the wrong end never gets to its low rates.
    let n = 10_000;
    let right = expected(&cosine(0.05, 0, n), n);
    let wrong = expected(&cosine(0.05, 0, 10 * n), n);
    println!(
        "a cosine that ends ten times too late: {:.1} times the loss",
        wrong / right
    );

    let figure = panels(&[shapes.y_range(0., 1.5), gains], 1)?;
    figure.save("target/figures/ch07_schedules.svg")?;
    println!("figure: target/figures/ch07_schedules.svg");
    Ok(())
}
