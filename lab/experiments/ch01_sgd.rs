//! Chapter 1, stochastic gradient descent: `cargo run --example ch01_sgd`.
use downhill::nn::dropout::{normal, uniform};
use downhill::optim::{Driver, Optimizer, Param, Sgd};
use downhill::plot::{Chart, panels};
use downhill::schedule::constant;
use downhill_lab::{
    Make, Report, Spread, Valley, Words, descend, grid, parallel, slope,
};
use std::time::Instant;
use tch::{Device, Kind, Reduction, Tensor, no_grad};

// NOTEBOOK: skip
/// Chapter 1, stochastic gradient descent: prints short tables, and asserts what the page claims.
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

/// The rate from which descent on `½ L x²` has come no nearer after a hundred steps, by
/// halving an interval.
fn border(curvature: f64) -> f64 {
    let (mut low, mut high) = (0., 10.);
    for _ in 0..60 {
        let middle = (low + high) / 2.;
        let path = descend(SGD, &[1.], constant(middle), 100, |x, _| {
            (x * x).sum(Kind::Double) * curvature / 2.
        });
        match path[100][0].abs() > 1. {
            true => high = middle,
            false => low = middle,
        }
    }
    (low + high) / 2.
}

/// Steps of gradient descent down a valley of curvatures 1 and `kappa`, at its best
/// rate, until the distance stays below a thousandth.
fn steps_needed(kappa: f64) -> f64 {
    let valley = Valley::new(kappa, 0.);
    let (lr, limit) = (constant(2. / (1. + kappa)), (5. * kappa) as i64 + 10);
    let path = descend(SGD, &[1., 1.], lr, limit, |p, _| valley.height(p));
    let far = |p: &Vec<f64>| p[0].hypot(p[1]) > 1e-3 * 2f64.sqrt();
    path.iter().rposition(far).map_or(0., |i| i as f64 + 1.)
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
    step: f64,
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
            points.push(Point { step: step as f64, passes, seconds, loss });
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

/// Of the gradients of batches drawn from all paragraphs: the mean square distance from
/// the full gradient, and the mean cosine to it.
fn noise(words: &Words, weights: &Tensor, batch: usize, seed: u64) -> (f64, f64) {
    let gradient = |rows| {
        let loss = [loss(weights, rows)];
        Tensor::run_backward(&loss, &[weights], false, false)[0]
            .to_kind(Kind::Double)
    };
    let full = gradient(words.learned());
    let (mut far, mut cosine, draws) = (0., 0., 200);
    for draw in 0..draws {
        let g = gradient(words.batch(batch, seed, draw));
        far += (&g - &full).square().sum(Kind::Double).double_value(&[]);
        cosine += Tensor::cosine_similarity(&g, &full, 0, 1e-12).double_value(&[]);
    }
    (far / draws as f64, cosine / draws as f64)
}

/// Mean of x² in a long run down `½ x²` by gradients with noise of variance 1.
fn floor(lr: f64, seed: u64) -> f64 {
    let noise = normal(100_000, seed, 1);
    let (mut x, mut sum) = (0., 0.);
    for z in &noise {
        x -= lr * (x + f64::from(*z));
        sum += x * x;
    }
    sum / noise.len() as f64
}

/// Three passes in batches of 32 over the rows in random order, or in random order
/// within each book; the loss on all.
fn in_order(words: &Words, sorted: bool, seed: u64) -> f64 {
    let (x, y) = words.learned();
    let keys = Tensor::from_slice(&uniform(words.learn, 0.5, seed, 30));
    let order = (keys + &y * if sorted { 2. } else { 0. }).argsort(0, false);
    let weights = zeros(words.width());
    let mut optimizer = Driver::new(Sgd::default(), params(&weights));
    for rows in [0; 3].iter().flat_map(|_| order.split(32, 0)) {
        let batch = (x.index_select(0, &rows), y.index_select(0, &rows));
        optimizer.zero_grad();
        loss(&weights, batch).backward();
        optimizer.step(1.);
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
fn train_network(words: &Words, steps: i64, seed: u64) -> (f64, f64, Vec<f64>) {
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
    (held_out, learned, (0..n).map(|i| weights.double_value(&[i])).collect())
}

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 0;
    // NOTEBOOK: let quick: bool = true;
    // CELL: How long may a step be?
    let mut report = Report::new("ch01_sgd", out)?;
    let seeds: std::ops::Range<u64> = seed..seed + if quick { 2 } else { 5 };
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
    let (start, mut ends): ([f64; 2], Vec<f64>) = (valley.point(-9., 1.), vec![]);
    for (name, share) in [("0.4 / L", 0.4), ("1.9 / L", 1.9), ("2.05 / L", 2.05)] {
        let lr = constant(share / steep);
        let path = descend(SGD, &start, lr, 40, |p, _| valley.height(p));
        let line = path.iter().map(|p| (p[0], p[1])).collect();
        map = map.line(name, line);
        let line: Vec<(f64, f64)> =
            (0..41).map(|t| (t as f64, valley.height_at(&path[t]))).collect();
        println!("  rate {name}: height {:.1e} after 40 steps", line[40].1);
        report.number(&format!("valley.r{}", (100. * share) as i64), line[40].1);
        ends.push(line[40].1);
        heights = heights.line(name, line);
    }
    // The second is a thousand times lower, the third higher than the start.
    assert!(ends[0] > 1000. * ends[1] && ends[2] > valley.height_at(&start));
    let heights = heights.y_range(1e-4, 1e5); // room for the legend
    let figure = panels(&[map, heights], 1)?;
    report.figure("", &figure)?;
    // NOTEBOOK: figure
    // CELL: An honest estimate
    let words: Words = Words::of(["pride_and_prejudice", "persuasion"], 3)?;
    report.number("data.rows", words.learn as f64);
    report.number("data.words", words.width() as f64);
    let weights: Tensor = zeros(words.width());
    let sizes: [usize; 5] = [1, 4, 16, 64, 256];
    let mut far: Vec<(f64, f64)> = vec![];
    let mut close: Vec<(f64, f64)> = vec![];
    println!("batch, mean square distance from the full gradient, cosine to it");
    for batch in sizes {
        let all: Vec<(f64, f64)> =
            seeds.clone().map(|s| noise(&words, &weights, batch, s)).collect();
        let distance = Spread::of(all.iter().map(|n| n.0));
        let cosine = Spread::of(all.iter().map(|n| n.1));
        println!("  {batch:3} {distance:.4}, {cosine:.2}");
        report.spread(&format!("noise.b{batch}.distance"), distance);
        report.spread(&format!("noise.b{batch}.cosine"), cosine);
        far.push((batch as f64, distance.median));
        close.push((batch as f64, cosine.median));
    }
    let falls = slope(&far);
    println!("  the distance falls as the batch to the power {falls:.2}");
    assert!((falls + 1.).abs() < 0.1);
    report.number("noise.slope", falls);
    report.tolerance("noise", Some(0.02));
    let ideal: [(f64, f64); 5] = sizes.map(|b| (b as f64, far[0].1 / b as f64));
    let charts = [
        Chart::new("Noise of the gradient", "batch", "mean square distance")
            .log_x()
            .log_y()
            .line("measured", far.clone())
            .points("", far.clone())
            .dashed("1 / B", ideal.to_vec()),
        Chart::new("Its direction", "batch", "cosine to the full gradient")
            .log_x()
            .y_range(0., 1.05)
            .line("measured", close.clone())
            .points("", close.clone()),
    ];
    let figure = panels(&charts, 1)?;
    report.figure("noise", &figure)?;
    // NOTEBOOK: figure
    // CELL: One, thirty-two, or all
    let goal: f64 = 0.1;
    let rates: Vec<f64> = grid(0.01, 10f64.sqrt(), 8);
    let most: usize = if quick { 20 } else { 400 };
    let batches: [(usize, &str, usize); 3] =
        [(1, "1", 4), (32, "32", 12), (words.learn, "all", most)];
    println!("until the loss on all is {goal}: passes, seconds");
    let mut reached: Vec<(Spread, Spread)> = vec![];
    let mut lines: Vec<(String, Vec<Point>)> = vec![];
    for (batch, name, passes) in batches {
        let each = if batch == words.learn { 1 } else { seeds.clone().count() };
        let run = |lr, seed| run(&words, batch, lr, (goal, passes), seed);
        let last = |points: &Vec<Point>| points[points.len() - 1];
        let all = parallel(rates.len() * each, |i| {
            let end = last(&run(rates[i / each], seeds.start + (i % each) as u64));
            Ok(if end.loss <= goal { end.passes } else { f64::INFINITY })
        })?;
        let all: Vec<Spread> =
            all.chunks(each).map(|part| Spread::of(part.iter().copied())).collect();
        let best = Spread::best(&all);
        let (lr, found) = (rates[best], all[best]);
        // Once more, one after the other on one core, for the clock.
        let threads: i32 = tch::get_num_threads();
        tch::set_num_threads(1);
        let again: Vec<Vec<Point>> = seeds.clone().map(|s| run(lr, s)).collect();
        tch::set_num_threads(threads);
        let seconds = Spread::of(again.iter().map(|p| last(p).seconds));
        let each = again.iter().map(|p| 1e3 * last(p).seconds / last(p).step);
        let ms = Spread::of(each).median;
        println!("  {name:3} {found:.2}, {seconds:.2}, {ms:.2} ms, rate {lr:.2}");
        let key = format!("batch.b{name}");
        report.spread(&key, found);
        report.spread(&format!("{key}.seconds"), seconds);
        report.numbers(&key, [("rate", lr), ("seconds.ms", ms)]);
        report.tolerance(&format!("{key}.seconds"), None);
        // Its best rate is the last with which the full batch gets there.
        let next = all.get(best + 1).map_or(f64::INFINITY, |s| s.median);
        report.number(&format!("{key}.next"), next);
        assert!(quick || name != "all" || next.is_infinite());
        lines.push((format!("batch {name}"), again[0].clone()));
        reached.push((found, seconds));
    }
    report.tolerance("batch", Some(0.3));
    report.number("batch.goal", goal);
    let [one, some, all] = [reached[0], reached[1], reached[2]];
    report.number("batch.dearer", all.0.median / some.0.median);
    assert!(quick || some.0.high < all.0.low / 3.);
    // Of the clock the best of each: other programs may have been in the way.
    assert!(quick || some.1.low < one.1.low.min(all.1.low));
    const AXES: [(&str, &str, fn(&Point) -> f64); 3] = [
        ("By steps", "steps", |p| p.step),
        ("By paragraphs read", "passes over the data", |p| p.passes),
        ("By the clock", "seconds", |p| p.seconds),
    ];
    let charts = AXES.map(|(title, x, at)| {
        let chart =
            Chart::new(title, x, "loss (nats)").log_x().log_y().y_range(0.05, 10.);
        lines.iter().fold(chart, |chart, (name, run)| {
            chart.line(name, run.iter().skip(1).map(|p| (at(p), p.loss)).collect())
        })
    });
    let figure = panels(&charts, 1)?;
    report.figure("batch", &figure)?;
    // NOTEBOOK: figure
    // CELL: What goes wrong
    // At twice the border, in f32: infinite, and then infinity less infinity.
    let (mut x, mut steps): (f32, i32) = (1., 0);
    while x.is_finite() {
        x -= 0.4 * (10. * x);
        steps += 1;
    }
    assert!((x - 0.4 * (10. * x)).is_nan());
    println!("at 4 / L in f32: infinite after {steps} steps, then NaN");
    report.number("burst.infinite", steps.into());
    println!("noise of variance 1 on x^2 / 2: mean of x^2, rate / (2 - rate)");
    for lr in [0.01, 0.03, 0.1, 0.3, 1.] {
        let found = Spread::of(seeds.clone().map(|s| floor(lr, s)));
        println!("  {lr:4} {found:.4}, {:.4}", lr / (2. - lr));
        let key = format!("floor.r{}", (100. * lr) as i64);
        report.spread(&key, found);
        report.number(&format!("{key}.theory"), lr / (2. - lr));
        assert!((found.median * (2. - lr) / lr - 1.).abs() < 0.1, "{found}");
    }
    let mut ordered: Vec<Spread> = vec![];
    for (name, sorted) in [("shuffled", false), ("sorted", true)] {
        let losses = seeds.clone().map(|s| in_order(&words, sorted, s));
        ordered.push(Spread::of(losses));
        println!("three passes, {name}: loss {:.3}", ordered[ordered.len() - 1]);
        report.spread(&format!("order.{name}"), ordered[ordered.len() - 1]);
    }
    report.tolerance("order", Some(0.05));
    assert!(ordered[1].low > 2. * ordered[0].high);
    // CELL: Check the folklore
    let starts: usize = if quick { 3 } else { 10 };
    let steps: i64 = if quick { 150 } else { 600 };
    let nets: Vec<(f64, f64, Vec<f64>)> =
        parallel(starts, |i| Ok(train_network(&words, steps, seed + i as u64)))?;
    let learned: Spread = Spread::of(nets.iter().map(|n| n.1));
    let held_out: Spread = Spread::of(nets.iter().map(|n| n.0));
    println!("{starts} networks: learned {learned:.4}, held out {held_out:.4}");
    let [a, b] = [0, 1].map(|i| Tensor::from_slice(&nets[i].2).to_kind(Kind::Float));
    let cosine: f64 = Tensor::cosine_similarity(&a, &b, 0, 1e-12).double_value(&[]);
    let middle: f64 =
        no_grad(|| network(&((&a + &b) / 2.), words.learned())).double_value(&[]);
    println!("two of them: cosine {cosine:.3}; loss half-way between {middle:.3}");
    assert!(quick || learned.high < 1.5 * learned.low && middle > 2. * learned.high);
    assert!(cosine.abs() < 0.2);
    report.spread("optima.learned", learned);
    report.spread("optima.held_out", held_out);
    let all = [("cosine", cosine), ("middle", middle), ("steps", steps as f64)];
    report.numbers("optima", all);
    report.number("optima.starts", starts as f64);
    report.tolerance("optima", Some(0.05));
    report.tolerance("optima.cosine", None);
    let slow: [(f64, f64); 4] =
        [1., 10., 100., 1000.].map(|kappa| (kappa, steps_needed(kappa)));
    println!("steps to a thousandth, by condition number: {slow:?}");
    slow.iter().for_each(|(k, n)| report.number(&format!("slow.k{k}"), *n));
    assert!((slope(&slow[1..]) - 1.).abs() < 0.05, "not in proportion");
    report.finish()?;
    Ok(())
}
