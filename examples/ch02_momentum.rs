//! Chapter 2, momentum: `cargo run --example ch02_momentum`.
//! A ball in a bowl, the square root of the condition number, and a Transformer.
use anyhow::Result;
use downhill::optim::{Driver, Optimizer, Param, Sgd};
use downhill::plot::{Chart, panels};
use downhill_lab::Text;
use indicatif::ProgressIterator;
use tch::{Kind, Tensor, no_grad};

/// Descends a bowl of curvatures 1 and `kappa` from (1, 1): the distance from the bottom
/// before each step.
fn down(rule: Sgd, kappa: f64, rate: f64, steps: i64) -> Vec<f64> {
    let curvature = Tensor::from_slice(&[1., kappa]);
    let theta = Tensor::from_slice(&[1., 1.]).set_requires_grad(true);
    let mut optimizer = Driver::new(rule, vec![Param::new("theta", &theta)]);
    let mut path = vec![];
    for _ in 0..steps {
        path.push(no_grad(|| theta.norm()).double_value(&[]));
        let loss = (&curvature * theta.square()).sum(Kind::Double) / 2.;
        optimizer.zero_grad();
        loss.backward();
        optimizer.step(rate);
    }
    path
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");

    // # Damping
    // One number, x, in a bowl of curvature 1. The buffer b keeps the share mu of itself
    // in each step; that is what friction leaves of the ball's speed.
    let rate = 0.01;
    let mut swings = Chart::new("A ball in a bowl, rate 0.01", "step", "x");
    for mu in [0., 0.6, 0.81, 0.97] {
        let (mut x, mut b): (f64, f64) = (1., 0.);
        let mut path = vec![];
        for step in 0..250 {
            path.push((f64::from(step), x));
            let gradient = x;
            b = mu * b + gradient;
            x -= rate * b;
        }
        // The last step at which the ball was not yet within a hundredth of the bottom.
        let late = path.iter().rposition(|(_, x)| x.abs() > 0.01);
        println!("momentum {mu:.2}: last above 0.01 at step {}", late.unwrap_or(0));
        swings = swings.line(&format!("momentum {mu}"), path);
    }

    // # The square root
    // Now two curvatures, 1 and kappa, and the library's rule. Plain descent may not take
    // a rate above 2 / kappa, so that the flat direction waits for about kappa steps. With
    // the best rate and momentum for each kappa it waits for about the root of that.
    println!("kappa, steps to a thousandth: plain, heavy ball, Nesterov");
    let kappas: &[f64] = if quick { &[4., 16.] } else { &[4., 16., 64., 256.] };
    for &kappa in kappas {
        let plain = Sgd::default();
        let root = kappa.sqrt();
        let mu = ((root - 1.) / (root + 1.)).powi(2);
        let heavy = Sgd { momentum: mu, ..Sgd::default() };
        let n = (3. * kappa + 1.).sqrt();
        let mu = (n - 2.) / (n + 2.);
        let nesterov = Sgd { momentum: mu, nesterov: true, ..Sgd::default() };
        let limit = 5 * kappa as i64 + 50;
        let paths = [
            down(plain, kappa, 2. / (1. + kappa), limit),
            down(heavy, kappa, 4. / (root + 1.).powi(2), limit),
            down(nesterov, kappa, 4. / (n * n), limit),
        ];
        let steps =
            paths.map(|p| p.iter().rposition(|d| *d > 1e-3).unwrap_or(0) + 1);
        println!("  {kappa:4} {:5} {:5} {:5}", steps[0], steps[1], steps[2]);
    }

    // # On a Transformer
    // A bowl is not a network. A small Transformer learns to spell, from Alice; the rates
    // are the best of the page's grid for each method.
    let text = Text::alice()?;
    let mut spelling = Chart::new("A small Transformer", "step", "loss (nats)");
    let heavy = Sgd { momentum: 0.9, ..Sgd::default() };
    let methods = [
        ("SGD", Sgd::default(), 0.1),
        ("momentum 0.9", heavy, 0.0316),
        ("Nesterov 0.9", Sgd { nesterov: true, ..heavy }, 0.0316),
        // What goes wrong: an effective rate ten times as high.
        ("momentum 0.99", Sgd { momentum: 0.99, ..heavy }, 0.0316),
    ];
    for (name, rule, rate) in methods {
        let model = text.model(1)?;
        let params = Param::all(model.named_parameters());
        let mut optimizer = Driver::new(rule, params);
        let steps = if quick { 20 } else { 100 };
        let mut losses = vec![];
        for step in (0..steps).progress_count(steps as u64) {
            let loss = text.loss(&model, text.batch(1, step, false))?;
            optimizer.zero_grad();
            loss.backward();
            optimizer.step(rate);
            losses.push(loss.double_value(&[]));
        }
        // Of ten batches each, because a single one says little.
        let mut curve = vec![];
        for (i, ten) in losses.chunks(10).enumerate() {
            let mean = ten.iter().sum::<f64>() / ten.len() as f64;
            curve.push((10. * i as f64 + 5., mean));
        }
        println!(
            "{name:13} loss of the last ten batches {:.2}",
            curve[curve.len() - 1].1
        );
        spelling = spelling.line(name, curve);
    }

    let figure = panels(&[swings, spelling], 1)?;
    figure.save("target/figures/ch02_momentum.svg")?;
    println!("figure: target/figures/ch02_momentum.svg");
    Ok(())
}
