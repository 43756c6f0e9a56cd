//! Chapter 8, gradient clipping: `cargo run --example ch08_clipping`.
//! One bad batch of a hundred, and the one line that keeps it from deciding the run.
use anyhow::Result;
use downhill::optim::{
    Adam, Driver, Optimizer, Param, Sgd, clip_grad_norm, clip_grad_value,
};
use downhill::plot::{Chart, panels};
use downhill_lab::Text;
use indicatif::ProgressIterator;
use tch::{Tensor, no_grad};

/// Two rules, one that trusts the length of a gradient and one that does not.
fn optimizer(name: &str, params: Vec<Param>) -> Box<dyn Optimizer> {
    if name == "Adam" {
        return Box::new(Driver::new(Adam::default(), params));
    }
    let rule = Sgd { momentum: 0.9, ..Sgd::default() };
    Box::new(Driver::new(rule, params))
}

/// All gradients as one long vector.
fn flat(params: &[Param]) -> Tensor {
    let mut parts = vec![];
    for p in params {
        parts.push(p.tensor.grad().flatten(0, -1));
    }
    Tensor::cat(&parts, 0)
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");
    let text = Text::alice()?;

    // # A bad batch
    // At step 40 the loss of a batch is 256 times too large, as when a sum is taken for a
    // mean. The norm before clipping is the number to log: it says when.
    let (steps, bad) = if quick { (30, 10) } else { (100, 40) };
    let mut charts = vec![];
    for (name, rate) in [("momentum", 0.0316), ("Adam", 0.00316)] {
        let mut chart = Chart::new(name, "step", "loss (nats)").y_range(2., 6.);
        for (case, times, max) in [
            ("no bad batch", 1., f64::INFINITY),
            ("unclipped", 256., f64::INFINITY),
            ("clipped at 1", 256., 1.),
        ] {
            let model = text.model(1)?;
            let params = Param::all(model.named_parameters());
            let mut optimizer = optimizer(name, params);
            let (mut losses, mut norms) = (vec![], vec![]);
            for step in (0..steps).progress_count(steps as u64) {
                let loss = text.loss(&model, text.batch(1, step, false))?;
                losses.push((step as f64, loss.double_value(&[])));
                let times = if step == bad { times } else { 1. };
                // The order is: backward, clip, step.
                optimizer.zero_grad();
                (loss * times).backward();
                norms.push(clip_grad_norm(optimizer.params(), max));
                optimizer.step(rate);
            }
            let held_out = no_grad(|| text.loss(&model, text.batch(0, 0, true)))?;
            let norm = norms[bad as usize];
            println!(
                "{name:8} {case:12} norm at the bad step {norm:5.1}, held-out loss {:.2}",
                held_out.double_value(&[])
            );
            if case == "no bad batch" {
                // What is normal? Look before you choose a threshold.
                let above = norms.iter().filter(|n| **n > 1.).count();
                println!("{name:8} norm above 1 at {above} of {steps} steps");
            }
            chart = chart.line(case, losses);
        }
        charts.push(chart);
    }

    // # What changes the direction
    // Clip one gradient to a tenth of its norm in three ways. Only the global norm makes a
    // shorter version of the same step; the others make another step.
    let model = text.model(1)?;
    let params = Param::all(model.named_parameters());
    text.loss(&model, text.batch(0, 0, false))?.backward();
    let before = flat(&params);
    let norm = before.norm().double_value(&[]);
    for way in ["global norm", "by tensor", "by value"] {
        for p in &params {
            let _ = p.tensor.grad().zero_();
        }
        text.loss(&model, text.batch(0, 0, false))?.backward();
        match way {
            "global norm" => {
                clip_grad_norm(&params, 0.1 * norm);
            }
            "by tensor" => {
                // What some libraries do when asked for a norm: each tensor by itself.
                for p in params.chunks(1) {
                    clip_grad_norm(p, 0.03 * norm);
                }
            }
            _ => clip_grad_value(&params, 0.0008),
        }
        let after = flat(&params);
        let left = after.norm().double_value(&[]) / norm;
        let cosine =
            Tensor::cosine_similarity(&before, &after, 0, 1e-12).double_value(&[]);
        println!("{way:11}: {left:.2} of the norm is left, cosine {cosine:.3}");
    }

    let figure = panels(&charts, 1)?;
    figure.save("target/figures/ch08_clipping.svg")?;
    println!("figure: target/figures/ch08_clipping.svg");
    Ok(())
}
