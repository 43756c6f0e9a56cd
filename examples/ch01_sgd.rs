//! Chapter 1, stochastic gradient descent: `cargo run --example ch01_sgd`.
//! How long a step may be, why a few rows are enough for one, and what they cost.
use anyhow::Result;
use downhill::optim::{Driver, Optimizer, Param, Sgd};
use downhill::plot::{Chart, panels};
use downhill_lab::Words;
use tch::{Device, Kind, Reduction, Tensor, no_grad};

/// Cross-entropy of logistic regression: theta has a weight per word, x says which words
/// are in a paragraph, y which novel the paragraph is from.
fn loss(theta: &Tensor, (x, y): (Tensor, Tensor)) -> Tensor {
    let score = x.mv(theta); // [rows, words] times [words]
    let (unweighted, mean) = (None::<&Tensor>, Reduction::Mean);
    score.binary_cross_entropy_with_logits(&y, unweighted, unweighted, mean)
}

/// A weight per word, all zero, that the gradient is wanted of.
fn zeros(words: &Words) -> Tensor {
    let zeros = Tensor::zeros([words.width() as i64], (Kind::Float, Device::Cpu));
    zeros.set_requires_grad(true)
}

/// The gradient of the loss on these rows.
fn gradient(theta: &Tensor, rows: (Tensor, Tensor)) -> Tensor {
    let loss = loss(theta, rows);
    Tensor::run_backward(&[loss], &[theta], false, false).remove(0)
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");

    // # How long may a step be?
    // The loss x^2 / 2 + L y^2 / 2 is a valley, L = 10 times steeper across than along. A
    // step makes y into (1 - rate L) y: beyond the rate 2 / L that is farther out than y.
    let steep = 10.;
    let mut valley =
        Chart::new("Down a valley, 10 times steeper across", "step", "loss");
    for share in [0.4, 1.9, 2.05] {
        let rate = share / steep;
        let (mut x, mut y) = (-9., 1.);
        let mut losses = vec![];
        for step in 0..=40 {
            losses.push((f64::from(step), (x * x + steep * y * y) / 2.));
            let gradient = (x, steep * y);
            x -= rate * gradient.0;
            y -= rate * gradient.1;
        }
        println!("rate {share:4} / L: loss {:.1e} after 40 steps", losses[40].1);
        valley = valley.line(&format!("{share} / L"), losses);
    }

    // # An honest estimate
    // Real data: paragraphs of two novels. Which one is a paragraph from? The gradient of
    // a batch is right on average, however small the batch; how far does it point astray?
    let words = Words::of(["pride_and_prejudice", "persuasion"], 3)?;
    println!("{} paragraphs, {} words", words.learn, words.width());
    let theta = zeros(&words);
    let full = gradient(&theta, words.learned());
    for batch in [1, 16, 256] {
        let draws = if quick { 20 } else { 100 };
        let mut cosine = 0.;
        for draw in 0..draws {
            let g = gradient(&theta, words.batch(batch, 0, draw));
            cosine +=
                Tensor::cosine_similarity(&full, &g, 0, 1e-12).double_value(&[]);
        }
        println!("batch {batch:3}: cosine to the full {:.2}", cosine / draws as f64);
    }

    // # One, thirty-two, or all
    // Descend until the loss on all paragraphs is 0.1, each batch at the best of the
    // page's rates, and count the paragraphs that were read on the way.
    let mut descent =
        Chart::new("To a loss of 0.1", "paragraphs read", "loss (nats)");
    for (batch, rate) in [(1, 0.32), (32, 3.2), (words.learn, 3.2)] {
        let theta = zeros(&words);
        let params = vec![Param::new("theta", &theta)];
        let mut optimizer = Driver::new(Sgd::default(), params);
        let mut curve = vec![];
        let every = (words.learn / batch / 16).max(1);
        let passes = if quick { 4 } else { 150 };
        for step in 0..=(passes * words.learn / batch) {
            if step % every == 0 {
                let loss = no_grad(|| loss(&theta, words.learned()));
                let loss = loss.double_value(&[]);
                curve.push(((step * batch) as f64, loss));
                if loss <= 0.1 {
                    break;
                }
            }
            // One step: rows, their loss, its gradient, and the rule of the chapter.
            let rows = words.batch(batch, 0, step as i64);
            optimizer.zero_grad();
            loss(&theta, rows).backward();
            optimizer.step(rate);
        }
        let (read, loss) = curve[curve.len() - 1];
        println!("batch {batch:4}: loss {loss:.2} after {read} paragraphs");
        descent = descent.line(&format!("batch {batch}"), curve.split_off(1));
    }

    // # What goes wrong
    // A constant rate never arrives where there is noise: on 1/2 x^2 with noise of
    // variance 1 in the gradient, the mean of x^2 stays near rate / (2 - rate).
    for rate in [0.01, 0.1, 1.] {
        tch::manual_seed(0);
        let noise = Tensor::randn([20_000], (Kind::Double, Device::Cpu));
        let (mut x, mut sum) = (0., 0.);
        for noise in noise.iter::<f64>()? {
            x -= rate * (x + noise);
            sum += x * x;
        }
        let expected = rate / (2. - rate);
        println!("rate {rate:4}: x^2 {:.4}, expected {expected:.4}", sum / 20_000.);
    }

    let figure =
        panels(&[valley.log_y().y_range(1e-4, 1e5), descent.log_x().log_y()], 1)?;
    figure.save("target/figures/ch01_sgd.svg")?;
    println!("figure: target/figures/ch01_sgd.svg");
    Ok(())
}
