//! Chapter 1, stochastic gradient descent: `cargo run --example ch01_sgd`. With `--out
//! DIR` it writes the page's figures and numbers; `--quick` does less of everything.
use downhill::lab::{Make, Report, Spread, Valley, Words, descend, grid, parallel};
use downhill::nn::dropout::{normal, uniform};
use downhill::optim::{Driver, Optimizer, Param, Sgd};
use downhill::plot::{Chart, panels};
use downhill::schedule::constant;
use std::ops::Range;
use std::time::Instant;
use tch::{Device, Kind, Reduction, Tensor, no_grad};

// NOTEBOOK: skip
#[derive(clap::Parser)]
struct Args {
    /// Where to write the figures and the numbers.
    #[arg(long)]
    out: Option<std::path::PathBuf>,
    /// First of the seeds.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Fewer seeds and shorter runs.
    #[arg(long)]
    quick: bool,
}
// NOTEBOOK: end

const SGD: Make = |p| Box::new(Driver::new(Sgd::default(), p));

/// Whether gradient descent on `½ L x²` has come no nearer after a hundred steps.
fn diverges(curvature: f64, lr: f64) -> bool {
    let path = descend(SGD, &[1.], constant(lr), 100, |x, _| {
        (x * x).sum(Kind::Double) * curvature / 2.
    });
    path[100][0].abs() > 1.
}

/// The rate from which it diverges, by halving an interval.
fn border(curvature: f64) -> f64 {
    let (mut low, mut high) = (0., 10.);
    for _ in 0..60 {
        let middle = (low + high) / 2.;
        match diverges(curvature, middle) {
            true => high = middle,
            false => low = middle,
        }
    }
    (low + high) / 2.
}

// ANCHOR: loss
/// Logistic regression: which of two novels is a paragraph from?
fn loss(weights: &Tensor, (x, y): (Tensor, Tensor)) -> Tensor {
    let (none, mean) = (None::<&Tensor>, Reduction::Mean);
    x.mv(weights).binary_cross_entropy_with_logits(&y, none, none, mean)
}
// ANCHOR_END: loss

fn zeros(n: usize) -> Tensor {
    Tensor::zeros(n as i64, (Kind::Float, Device::Cpu)).set_requires_grad(true)
}

/// Where a run has come.
#[derive(Clone, Copy)]
struct Point {
    passes: f64,
    seconds: f64,
    loss: f64,
}

// ANCHOR: run
/// Descends on batches of so many paragraphs until the loss on all of them is `goal`,
/// or for so many passes. The loss is looked at sixteen times in a pass.
fn run(
    words: &Words,
    batch: usize,
    lr: f64,
    (goal, passes): (f64, usize),
    seed: u64,
) -> Vec<Point> {
    let all = words.learned();
    let all = || (all.0.shallow_clone(), all.1.shallow_clone());
    let weights = zeros(words.width());
    let mut optimizer = Driver::new(Sgd::default(), params(&weights));
    let full = batch >= words.learn;
    let steps = words.learn.div_ceil(batch) * passes;
    let every = (words.learn / batch / 16).max(1);
    let (mut points, mut seconds) = (vec![], 0.);
    for step in 0..=steps {
        if step % every == 0 {
            let loss = no_grad(|| loss(&weights, all())).double_value(&[]);
            let passes = (step * batch) as f64 / words.learn as f64;
            points.push(Point { passes, seconds, loss });
            if loss <= goal || loss > 10. {
                break;
            }
        }
        let began = Instant::now();
        let rows = if full { all() } else { words.batch(batch, seed, step as i64) };
        optimizer.zero_grad();
        loss(&weights, rows).backward();
        optimizer.step(lr);
        seconds += began.elapsed().as_secs_f64();
    }
    points
}
// ANCHOR_END: run

fn params(weights: &Tensor) -> Vec<Param> {
    let named = [("weights".to_string(), weights.shallow_clone())];
    Param::with_decay(named, |_, _| 0.)
}

/// Passes until the goal, infinite if it was not reached.
fn needed(points: &[Point], goal: f64) -> f64 {
    let last = points[points.len() - 1];
    if last.loss <= goal { last.passes } else { f64::INFINITY }
}

/// Of the gradients of batches drawn from all paragraphs: the mean square distance from
/// the full gradient, and the mean cosine to it.
fn noise(words: &Words, weights: &Tensor, batch: usize, draws: i64) -> (f64, f64) {
    let gradient = |rows| {
        let g =
            Tensor::run_backward(&[loss(weights, rows)], &[weights], false, false);
        g[0].to_kind(Kind::Double)
    };
    let full = gradient(words.learned());
    let (mut far, mut cosine) = (0., 0.);
    for draw in 0..draws {
        let g = gradient(words.batch(batch, 99, draw));
        far += (&g - &full).square().sum(Kind::Double).double_value(&[]);
        cosine += Tensor::cosine_similarity(&g, &full, 0, 1e-12).double_value(&[]);
    }
    (far / draws as f64, cosine / draws as f64)
}

/// The slope of log y over log x.
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let mean = |f: fn(&(f64, f64)) -> f64| points.iter().map(f).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0.ln()), mean(|p| p.1.ln()));
    let over = |p: &(f64, f64)| (p.0.ln() - x) * (p.1.ln() - y);
    let under = |p: &(f64, f64)| (p.0.ln() - x).powi(2);
    points.iter().map(over).sum::<f64>() / points.iter().map(under).sum::<f64>()
}

/// Mean of x² late in a run down `½ x²` by gradients with noise of variance 1.
fn floor(lr: f64, seed: u64) -> f64 {
    let steps = 4000;
    let draws = normal(steps, seed, 1);
    let path = descend(SGD, &[0.], constant(lr), steps as i64, |x, t| {
        (x * x / 2. + x * f64::from(draws[t as usize])).sum(Kind::Double)
    });
    path[1000..].iter().map(|x| x[0] * x[0]).sum::<f64>() / (steps - 999) as f64
}

/// Three passes over the rows in this order, in batches of 32; the loss on all.
fn in_order(words: &Words, order: &Tensor, lr: f64) -> f64 {
    let (x, y) = words.learned();
    let weights = zeros(words.width());
    let mut optimizer = Driver::new(Sgd::default(), params(&weights));
    for _ in 0..3 {
        for rows in order.split(32, 0) {
            let batch = (x.index_select(0, &rows), y.index_select(0, &rows));
            optimizer.zero_grad();
            loss(&weights, batch).backward();
            optimizer.step(lr);
        }
    }
    no_grad(|| loss(&weights, (x, y))).double_value(&[])
}

/// A network with a hidden layer, all its weights in one vector.
const HIDDEN: i64 = 16;

fn network(weights: &Tensor, (x, y): (Tensor, Tensor)) -> Tensor {
    let width = x.size()[1];
    let inner = weights.narrow(0, 0, width * HIDDEN).view([width, HIDDEN]);
    let outer = weights.narrow(0, width * HIDDEN, HIDDEN);
    let (none, mean) = (None::<&Tensor>, Reduction::Mean);
    let logits = x.matmul(&inner).tanh().mv(&outer);
    logits.binary_cross_entropy_with_logits(&y, none, none, mean)
}

/// Loss on held-out paragraphs, on learned ones, and the weights of a trained network.
fn train_network(words: &Words, steps: i64, seed: u64) -> (f64, f64, Vec<f32>) {
    let n = (words.width() as i64 + 1) * HIDDEN;
    let start = uniform(n as usize, 0.1, seed, 7);
    let weights = Tensor::from_slice(&start).set_requires_grad(true);
    let mut optimizer = Driver::new(Sgd::default(), params(&weights));
    for step in 0..steps {
        optimizer.zero_grad();
        network(&weights, words.batch(32, seed, step)).backward();
        optimizer.step(0.3);
    }
    let at = |rows| no_grad(|| network(&weights, rows)).double_value(&[]);
    let (held_out, learned) = (at(words.held_out()), at(words.learned()));
    let mut flat = vec![0f32; n as usize];
    weights.detach().copy_data(&mut flat, n as usize);
    (held_out, learned, flat)
}

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 0;
    // NOTEBOOK: let quick: bool = true;
    // CELL: How long may a step be?
    let mut report = Report::new("ch01_sgd", out)?;
    let seeds: Range<u64> = seed..seed + if quick { 2 } else { 5 };
    println!("rate from which descent diverges, and 2 / L");
    for curvature in [0.5, 1., 10.] {
        let found = border(curvature);
        println!("  L = {curvature:4}: {found:.10}, {:.10}", 2. / curvature);
        assert!((found * curvature / 2. - 1.).abs() < 1e-12);
        report.number(&format!("border.l{}", (10. * curvature) as i64), found);
    }
    let steep = 10.;
    let valley: Valley = Valley::new(steep, 30.);
    let mut map =
        Chart::new("A valley of curvatures 1 and 10", "theta 1", "theta 2");
    for height in [0.5, 2., 8., 20., 40.] {
        map = map.faint(valley.contour(height));
    }
    let mut heights = Chart::new("Height by step", "step", "loss").log_y();
    for (name, share) in [("0.4 / L", 0.4), ("1.9 / L", 1.9), ("2.05 / L", 2.05)] {
        let start = valley.point(-9., 1.);
        let lr = constant(share / steep);
        let path = descend(SGD, &start, lr, 40, |p, _| valley.height(p));
        let line = path.iter().map(|p| (p[0], p[1])).collect();
        map = map.line(name, line);
        let line = path.iter().enumerate();
        let line: Vec<(f64, f64)> =
            line.map(|(t, p)| (t as f64, valley.height_at(p))).collect();
        println!("  rate {name}: height {:.1e} after 40 steps", line[40].1);
        let key = format!("valley.r{}", (100. * share) as i64);
        report.number(&key, line[40].1);
        heights = heights.line(name, line);
    }
    let figure = panels(&[map, heights], 2)?;
    report.figure("", &figure)?;
    // NOTEBOOK: figure
    // CELL: An honest estimate
    let words: Words = Words::of(["pride_and_prejudice", "persuasion"], 3)?;
    report.numbers(
        "data",
        [("rows", words.learn as f64), ("words", words.width() as f64)],
    );
    let weights: Tensor = zeros(words.width());
    let sizes: [usize; 5] = [1, 4, 16, 64, 256];
    let mut far: Vec<(f64, f64)> = vec![];
    let mut close: Vec<(f64, f64)> = vec![];
    println!("batch, mean square distance from the full gradient, cosine to it");
    for batch in sizes {
        let (distance, cosine) = noise(&words, &weights, batch, 200);
        println!("  {batch:3} {distance:8.4} {cosine:.2}");
        report.numbers(
            &format!("noise.b{batch}"),
            [("distance", distance), ("cosine", cosine)],
        );
        far.push((batch as f64, distance));
        close.push((batch as f64, cosine));
    }
    let falls = slope(&far);
    println!("  the distance falls as the batch to the power {falls:.2}");
    assert!((falls + 1.).abs() < 0.1);
    report.number("noise.slope", falls);
    report.tolerance("noise", Some(0.02));
    let charts = [
        Chart::new("Noise of the gradient", "batch", "mean square distance")
            .log_x()
            .log_y()
            .line("measured", far.clone())
            .points("", far.clone())
            .dashed(
                "1 / B",
                sizes.map(|b| (b as f64, far[0].1 / b as f64)).to_vec(),
            ),
        Chart::new("Its direction", "batch", "cosine to the full gradient")
            .log_x()
            .y_range(0., 1.05)
            .line("measured", close.clone())
            .points("", close.clone()),
    ];
    let figure = panels(&charts, 2)?;
    report.figure("noise", &figure)?;
    // NOTEBOOK: figure
    // CELL: One, thirty-two, or all
    let goal: f64 = 0.1;
    let rates: Vec<f64> = grid(0.01, 10f64.sqrt(), 8);
    let batches: [(usize, &str, usize); 3] = [
        (1, "1", 4),
        (32, "32", 12),
        (words.learn, "all", if quick { 20 } else { 400 }),
    ];
    let mut by_passes =
        Chart::new("By paragraphs read", "passes", "loss (nats)").log_x().log_y();
    let mut by_seconds =
        Chart::new("By the clock", "seconds", "loss (nats)").log_x().log_y();
    println!("until the loss on all is {goal}: passes, seconds");
    let mut reached: Vec<Spread> = vec![];
    for (batch, name, passes) in batches {
        let each = if batch == words.learn {
            1
        } else {
            (seeds.end - seeds.start) as usize
        };
        let all = parallel(rates.len() * each, |i| {
            let seed = seeds.start + (i % each) as u64;
            let points = run(&words, batch, rates[i / each], (goal, passes), seed);
            Ok(needed(&points, goal))
        })?;
        let all: Vec<Spread> =
            all.chunks(each).map(|part| Spread::of(part.iter().copied())).collect();
        let best = Spread::best(&all);
        // Once more alone, for the clock.
        let points = run(&words, batch, rates[best], (goal, passes), seed);
        let seconds = points[points.len() - 1].seconds;
        println!(
            "  {name:3} {:.2}, {seconds:.2}, rate {:.2}",
            all[best], rates[best]
        );
        let key = format!("batch.b{name}");
        report.spread(&key, all[best]);
        report.numbers(&key, [("rate", rates[best]), ("seconds", seconds)]);
        report.tolerance(&format!("{key}.seconds"), None);
        let later = points.iter().filter(|p| p.passes > 0.);
        let line = |x: fn(&Point) -> f64| later.clone().map(move |p| (x(p), p.loss));
        by_passes =
            by_passes.line(&format!("batch {name}"), line(|p| p.passes).collect());
        by_seconds =
            by_seconds.line(&format!("batch {name}"), line(|p| p.seconds).collect());
        reached.push(all[best]);
    }
    report.tolerance("batch", Some(0.3));
    report.number("batch.goal", goal);
    assert!(quick || reached[1].high < reached[2].low / 3.);
    let figure = panels(&[by_passes, by_seconds], 2)?;
    report.figure("batch", &figure)?;
    // NOTEBOOK: figure
    // CELL: What goes wrong
    println!(
        "noise of variance 1 on x^2 / 2: mean of x^2 at the end, rate / (2 - rate)"
    );
    let mut floors: Vec<(f64, f64)> = vec![];
    for lr in [0.01, 0.03, 0.1, 0.3, 1.] {
        let found = Spread::of(seeds.clone().map(|s| floor(lr, s)));
        println!("  {lr:4} {found:.4}, {:.4}", lr / (2. - lr));
        let key = format!("floor.r{}", (100. * lr) as i64);
        report.spread(&key, found);
        report.number(&format!("{key}.theory"), lr / (2. - lr));
        floors.push((lr, found.median));
    }
    let sorted: Tensor = words.learned().1.argsort(0, false);
    let shuffled: Tensor =
        Tensor::arange(words.learn as i64, (Kind::Int64, Device::Cpu));
    let (lr, mut ordered): (f64, Vec<f64>) = (1., vec![]);
    for (name, order) in [("shuffled", &shuffled), ("sorted", &sorted)] {
        ordered.push(in_order(&words, order, lr));
        println!("three passes, {name}: loss {:.3}", ordered[ordered.len() - 1]);
        report.number(&format!("order.{name}"), ordered[ordered.len() - 1]);
    }
    report.tolerance("order", Some(0.05));
    assert!(ordered[1] > 2. * ordered[0]);
    // CELL: Check the folklore
    let starts: usize = if quick { 3 } else { 10 };
    let steps: i64 = if quick { 150 } else { 600 };
    let nets: Vec<(f64, f64, Vec<f32>)> =
        parallel(starts, |i| Ok(train_network(&words, steps, seed + i as u64)))?;
    let learned: Spread = Spread::of(nets.iter().map(|n| n.1));
    let held_out: Spread = Spread::of(nets.iter().map(|n| n.0));
    println!("{starts} networks: learned {learned:.4}, held out {held_out:.4}");
    let [a, b] = [0, 1].map(|i| Tensor::from_slice(&nets[i].2));
    let cosine: f64 = Tensor::cosine_similarity(&a, &b, 0, 1e-12).double_value(&[]);
    let middle: f64 =
        no_grad(|| network(&((&a + &b) / 2.), words.learned())).double_value(&[]);
    println!("two of them: cosine {cosine:.3}; loss half-way between {middle:.3}");
    report.spread("optima.learned", learned);
    report.spread("optima.held_out", held_out);
    report.numbers("optima", [("cosine", cosine), ("middle", middle)]);
    report.numbers("optima", [("starts", starts as f64), ("steps", steps as f64)]);
    report.tolerance("optima", Some(0.05));
    report.tolerance("optima.cosine", None);
    report.finish()?;
    Ok(())
}
