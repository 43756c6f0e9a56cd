//! Chapter 3, Adagrad: `cargo run --example ch03_adagrad`.
//! A rate for each word of two novels: where it pays, where not, and how it dies.
use anyhow::Result;
use downhill::optim::{Adagrad, Driver, Optimizer, Param, Sgd};
use downhill::plot::Chart;
use downhill_lab::Words;
use tch::{Device, Kind, Reduction, Tensor, no_grad};

/// Logistic regression, as in chapter 1: a weight per word, and the cross-entropy of
/// saying which novel a paragraph is from.
fn loss(theta: &Tensor, (x, y): (Tensor, Tensor)) -> Tensor {
    let score = x.mv(theta);
    let (unweighted, mean) = (None::<&Tensor>, Reduction::Mean);
    score.binary_cross_entropy_with_logits(&y, unweighted, unweighted, mean)
}

/// The two rules of this chapter by their names.
fn optimizer(name: &str, theta: &Tensor) -> Box<dyn Optimizer> {
    let params = vec![Param::new("theta", theta)];
    match name {
        "Adagrad" => Box::new(Driver::new(Adagrad::default(), params)),
        _ => Box::new(Driver::new(Sgd::default(), params)),
    }
}

/// Takes `steps` steps of `batch` paragraphs each. The mean of the losses met on the way,
/// each before it was learned from, and the weights.
fn train(
    words: &Words,
    name: &str,
    rate: f64,
    (steps, batch): (i64, usize),
    first_times: f64,
) -> (f64, Tensor) {
    let zeros = Tensor::zeros([words.width() as i64], (Kind::Float, Device::Cpu));
    let theta = zeros.set_requires_grad(true);
    let mut optimizer = optimizer(name, &theta);
    let mut met = 0.;
    for step in 0..steps {
        let loss = loss(&theta, words.batch(batch, 0, step));
        met += loss.double_value(&[]) / steps as f64;
        let times = if step == 0 { first_times } else { 1. };
        optimizer.zero_grad();
        (loss * times).backward();
        optimizer.step(rate);
    }
    (met, theta.detach())
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");
    let words = Words::of(["pride_and_prejudice", "persuasion"], 3)?;

    // # The idea in one picture
    // Follow three words, one paragraph at a time: a very frequent one, one of the middle,
    // a rare one. s is the sum of the squared gradients that a word has had, and its rate
    // is eta / sqrt(s): it falls only where the word is met.
    let eta = 0.32;
    let theta = Tensor::zeros([words.width() as i64], (Kind::Float, Device::Cpu));
    let theta = theta.set_requires_grad(true);
    let mut adagrad = optimizer("Adagrad", &theta);
    let mut rates = [vec![], vec![], vec![]];
    let paragraphs = if quick { 500 } else { words.learn as i64 };
    for step in 0..paragraphs {
        adagrad.zero_grad();
        loss(&theta, words.batch(1, 0, step)).backward();
        adagrad.step(eta);
        let (_, s) = &adagrad.state()[0];
        for (k, word) in [0, 100, 1000].into_iter().enumerate() {
            let s = s.double_value(&[word]);
            if s > 0. {
                rates[k].push((step as f64 + 1., eta / s.sqrt()));
            }
        }
    }
    let mut chart =
        Chart::new("Adagrad, one by one", "paragraphs", "rate of the word");
    for (line, word) in rates.into_iter().zip([0, 100, 1000]) {
        let (name, share) = (&words.names[word], 100. * words.share()[word]);
        let last = line.last().map_or(f64::NAN, |p| p.1);
        println!("{name:8} in {share:4.1} % of the paragraphs: rate {last:.3}");
        chart = chart.line(name, line);
    }

    // # The experiments
    // In batches over the same data, and one by one, each at the best of the page's
    // rates. Adagrad wins where each paragraph is met once, as its theory says.
    println!("          batches: held-out loss      one by one: loss met");
    for (name, in_batches, one_by_one) in
        [("SGD", 3.2, 0.1), ("Adagrad", 0.32, 0.32)]
    {
        let (_, theta) = train(&words, name, in_batches, (300, 32), 1.);
        let held_out = no_grad(|| loss(&theta, words.held_out())).double_value(&[]);
        let (met, _) = train(&words, name, one_by_one, (paragraphs, 1), 1.);
        println!(
            "{name:9} {held_out:.3} at rate {in_batches:<4}         {met:.3} at rate {one_by_one}"
        );
    }

    // # Rare words and frequent ones
    // How far has each rule moved the weights? The words are sorted by frequency.
    println!("size of the weights: the 100 most frequent words, the 1,000 rarest");
    for (name, rate) in [("SGD", 3.2), ("Adagrad", 0.32)] {
        let (_, theta) = train(&words, name, rate, (300, 32), 1.);
        let size =
            |from, n| theta.narrow(0, from, n).square().mean(Kind::Double).sqrt();
        let frequent = size(0, 100).double_value(&[]);
        let rare = size(words.width() as i64 - 1000, 1000).double_value(&[]);
        println!("{name:9} {frequent:.2}, {rare:.2}");
    }

    // # What goes wrong
    // Nothing ever leaves the sum. One gradient that is a hundred times too large, the
    // first, and all later steps of Adagrad are short; SGD is thrown far away.
    for (name, rate) in [("SGD", 3.2), ("Adagrad", 0.32)] {
        let (_, theta) = train(&words, name, rate, (300, 32), 100.);
        let held_out = no_grad(|| loss(&theta, words.held_out())).double_value(&[]);
        println!(
            "{name:9} with a spike at the first step: held-out loss {held_out:.2}"
        );
    }

    let figure = chart.log_x().log_y().y_range(0.02, 2.).draw()?;
    figure.save("target/figures/ch03_adagrad.svg")?;
    println!("figure: target/figures/ch03_adagrad.svg");
    Ok(())
}
