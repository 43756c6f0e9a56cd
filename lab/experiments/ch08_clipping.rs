//! Chapter 8, clipping: `cargo run --example ch08_clipping`. With `--out DIR` it writes
//! the page's figures and numbers; `--quick` does less of everything.
use downhill::autograd::clear_grad;
use downhill::models::Decoder;
use downhill::optim::{
    Adam, Driver, Param, Sgd, clip_grad_adaptive, clip_grad_norm, clip_grad_value,
};
use downhill::plot::{Chart, panels};
use downhill_lab::{Make, Report, Spread, Text, draw_spread, parallel};
use tch::{Kind, Tensor, no_grad};

// NOTEBOOK: skip
/// Chapter 8, gradient clipping: prints short tables, and asserts what the page claims.
#[derive(clap::Parser)]
struct Args {
    /// Where to write the figures and the numbers.
    #[arg(long)]
    out: Option<std::path::PathBuf>,
    /// First of the seeds.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Fewer seeds.
    #[arg(long)]
    quick: bool,
}
// NOTEBOOK: end

const STEPS: i64 = 100;
/// The step whose batch is bad, where one is.
const BAD: i64 = 40;
/// How many times too large its loss is: it was summed where it should be averaged.
const TIMES: f64 = 256.;

const SGD: Make =
    |p| Box::new(Driver::new(Sgd { momentum: 0.9, ..Sgd::default() }, p));
const ADAM: Make = |p| Box::new(Driver::new(Adam::default(), p));
/// Each at its best rate of chapter 5.
const METHODS: [(&str, Make, f64); 2] =
    [("momentum", SGD, 0.0316), ("Adam", ADAM, 0.003_16)];

/// What is done to the gradients before the step; returns their norm before.
type Clip = fn(&[Param], f64) -> f64;

// ANCHOR: clips
const GLOBAL: Clip = clip_grad_norm;
const BY_VALUE: Clip = |params, max| {
    clip_grad_value(params, max);
    0.
};
const BY_TENSOR: Clip = |params, max| {
    params.chunks(1).for_each(|one| _ = clip_grad_norm(one, max));
    0.
};
const ADAPTIVE: Clip = |params, factor| {
    clip_grad_adaptive(params, factor);
    0.
};
// ANCHOR_END: clips

/// What a run leaves: loss and gradient norm by step, the loss on held-out text.
struct Trace {
    losses: Vec<f64>,
    norms: Vec<f64>,
    held_out: f64,
}

// ANCHOR: run
/// Trains chapter 5's Transformer, clipped at `max`, perhaps with one bad batch.
fn run(
    text: &Text,
    (_, make, lr): (&str, Make, f64),
    max: f64,
    bad: bool,
    seed: u64,
) -> downhill::Result<Trace> {
    let model = text.model(seed)?;
    let mut optimizer = make(Param::with_decay(model.named_parameters(), |_, _| 0.));
    let (mut losses, mut norms) = (vec![], vec![]);
    for step in 0..STEPS {
        let loss = text.loss(&model, text.batch(seed, step, false))?;
        losses.push(loss.double_value(&[]));
        let times = if bad && step == BAD { TIMES } else { 1. };
        optimizer.zero_grad();
        (loss * times).backward();
        norms.push(clip_grad_norm(optimizer.params(), max));
        optimizer.step(lr);
    }
    // ANCHOR_END: run
    let held_out = no_grad(|| -> downhill::Result<f64> {
        let loss = |i| text.loss(&model, text.batch(seed, i, true));
        let losses = (0..8).map(loss).collect::<downhill::Result<Vec<_>>>()?;
        Ok(Tensor::stack(&losses, 0).mean(Kind::Double).double_value(&[]))
    })?;
    Ok(Trace { losses, norms, held_out })
}

/// Medians and ranges of one number per step.
fn by_step(runs: &[Trace], of: fn(&Trace) -> &[f64]) -> Vec<(f64, Spread)> {
    let at = |t: usize| Spread::of(runs.iter().map(|r| of(r)[t]));
    (0..STEPS as usize).map(|t| (t as f64, at(t))).collect()
}

fn held_out(runs: &[Trace]) -> Spread {
    Spread::of(runs.iter().map(|r| r.held_out))
}

/// All gradients as one vector.
fn flat(params: &[Param]) -> Tensor {
    let each: Vec<Tensor> =
        params.iter().map(|p| p.tensor.grad().flatten(0, -1)).collect();
    Tensor::cat(&each, 0)
}

fn cosine(a: &Tensor, b: &Tensor) -> f64 {
    (a.dot(b) / (a.norm() * b.norm())).double_value(&[])
}

/// A fresh model's gradient on the first batch of a seed, left in its parameters too.
fn gradient(text: &Text, model: &Decoder, seed: u64) -> anyhow::Result<Tensor> {
    let params = Param::with_decay(model.named_parameters(), |_, _| 0.);
    params.iter().for_each(|p| clear_grad(&p.tensor));
    text.loss(model, text.batch(seed, 0, false))?.backward();
    Ok(flat(&params))
}

fn mean(parts: &[Tensor]) -> Tensor {
    Tensor::stack(parts, 0).mean_dim(0, false, Kind::Float)
}

/// A gradient by itself, its norm cut to `max`.
fn cut(g: &Tensor, max: f64) -> Tensor {
    g * (max / g.norm().double_value(&[])).min(1.)
}

// ANCHOR: naive
/// Clipping that multiplies by whatever comes out.
fn naive(params: &[Param], max: f64) {
    let scale: Tensor = max / (flat(params).norm() + 1e-6);
    let scale = scale.clamp_max(1.);
    params.iter().for_each(|p| _ = p.tensor.grad().g_mul_(&scale));
}
// ANCHOR_END: naive

fn nans(params: &[Param]) -> f64 {
    flat(params).isnan().sum(Kind::Double).double_value(&[])
}

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 0;
    // NOTEBOOK: let quick: bool = true;
    // CELL: The trace of the norm
    let mut report = Report::new("ch08_clipping", out)?;
    let text = Text::alice()?;
    let seeds: usize = if quick { 2 } else { 5 };
    let maxima: [f64; 5] = [f64::INFINITY, 3., 1., 0.3, 0.1];
    // By method and threshold, then with the bad batch, unclipped and clipped.
    let mut jobs: Vec<((&str, Make, f64), f64, bool)> = vec![];
    for method in METHODS {
        jobs.extend(maxima.iter().map(|max| (method, *max, false)));
        jobs.extend([(method, f64::INFINITY, true), (method, 1., true)]);
    }
    let mut traces = parallel(jobs.len() * seeds, |i| {
        let (method, max, bad) = jobs[i / seeds];
        run(&text, method, max, bad, seed + (i % seeds) as u64)
    })?
    .into_iter();
    let mut runs: Vec<Vec<Trace>> = vec![];
    for _ in &jobs {
        runs.push(traces.by_ref().take(seeds).collect());
    }
    let mut chart = Chart::new("Without clipping", "step", "gradient norm");
    println!(
        "gradient norm without clipping: first, last ten, largest after step 10"
    );
    for (m, (name, _, _)) in METHODS.iter().enumerate() {
        let trace = by_step(&runs[7 * m], |r| &r.norms);
        let median =
            |part: &[(f64, Spread)]| Spread::of(part.iter().map(|p| p.1.median));
        let (first, last) = (trace[0].1.median, median(&trace[90..]).median);
        assert!(trace[0].1.low > 2., "{name} starts at {}", trace[0].1);
        let most: f64 = trace[10..].iter().fold(0., |most, p| most.max(p.1.high));
        let all: Vec<f64> =
            runs[7 * m].iter().flat_map(|r| r.norms.clone()).collect();
        let above =
            all.iter().filter(|n| **n > 1.).count() as f64 / all.len() as f64;
        println!("  {name:9} {first:.2}, {last:.2}, {most:.2}; above 1: {above:.2}");
        let key = format!("trace.{}", name.to_lowercase());
        let numbers =
            [("first", first), ("last", last), ("most", most), ("above", above)];
        report.numbers(&key, numbers);
        chart = draw_spread(chart, name, &trace, 1.);
    }
    report.tolerance("trace", Some(0.2));
    for method in ["momentum", "adam"] {
        report.tolerance(&format!("trace.{method}.most"), None); // a spike of one run
    }
    let figure = chart.draw()?;
    report.figure("trace", &figure)?;
    // NOTEBOOK: figure

    // CELL: A bad batch
    let mut charts: Vec<Chart> = vec![];
    println!("held-out loss after {STEPS} steps with a bad batch at step {BAD}");
    for (m, (name, _, _)) in METHODS.iter().enumerate() {
        let title = format!("{name}, a bad batch at step {BAD}");
        let mut chart = Chart::new(&title, "step", "loss (nats)");
        for (key, label, k) in [
            ("none", "no bad batch", 0),
            ("hit", "unclipped", 5),
            ("clipped", "clipped at 1", 6),
        ] {
            let mine = &runs[7 * m + k];
            let loss = held_out(mine);
            println!("  {name:9} {label:12} {loss:.3}");
            report.spread(&format!("bad.{}.{key}", name.to_lowercase()), loss);
            chart = draw_spread(chart, label, &by_step(mine, |r| &r.losses), 1.);
        }
        let [none, hit, clipped] = [0, 5, 6].map(|k| held_out(&runs[7 * m + k]));
        assert!(quick || clipped.high <= none.high, "{name}: {clipped}, {none}");
        assert!(clipped.median < hit.median, "{name}: clipping does not help");
        charts.push(chart.x_range(0., 140.).y_range(2., 6.)); // room for the legend
    }
    let norm = Spread::of(runs[7 + 5].iter().map(|r| r.norms[BAD as usize]));
    report.number("bad.norm", norm.median);
    report.numbers("bad", [("step", BAD as f64), ("times", TIMES)]);
    report.tolerance("bad", Some(0.2));
    report.tolerance("bad.momentum.hit", None); // chaos
    let figure = panels(&charts, 1)?;
    report.figure("", &figure)?;
    // NOTEBOOK: figure

    // CELL: What changes the direction
    let model: Decoder = text.model(0)?;
    let params: Vec<Param> = Param::with_decay(model.named_parameters(), |_, _| 0.);
    report.number("tensors", params.len() as f64);
    let mut chart = Chart::new(
        "Cosine between the gradient before and after",
        "share of the norm that is left",
        "cosine",
    );
    println!("cosine to the gradient before, where a tenth of the norm is left");
    for (key, name, clip, bounds) in [
        ("global", "global norm", GLOBAL, (-4., 1.)),
        ("tensor", "by tensor", BY_TENSOR, (-4., 1.)),
        ("value", "by value", BY_VALUE, (-7., 0.)),
        ("adaptive", "adaptive", ADAPTIVE, (-5., 1.)),
    ] {
        let mut line: Vec<(f64, f64)> = vec![];
        for k in 0..=40 {
            let before = gradient(&text, &model, seed)?;
            let (low, high) = bounds;
            let bound = 10f64.powf(low + (high - low) * f64::from(k) / 40.);
            clip(&params, bound);
            let after = flat(&params);
            let left = (after.norm() / before.norm()).double_value(&[]);
            line.push((left, cosine(&before, &after)));
        }
        let near = |p: &&(f64, f64)| ((p.0 / 0.1).ln().abs() * 1e6) as i64;
        let tenth: f64 = line.iter().min_by_key(near).map_or(0., |p| p.1);
        println!("  {name:12} {tenth:.3}");
        report.number(&format!("direction.{key}"), tenth);
        assert!((tenth > 0.9999) == (key == "global"), "{name}: {tenth}");
        chart = chart.line(name, line);
    }
    report.tolerance("direction", Some(0.1));
    let figure = chart.log_x().x_range(1e-2, 1.).y_range(0., 1.6).draw()?;
    report.figure("direction", &figure)?;
    // NOTEBOOK: figure

    // CELL: Under accumulation
    // Four micro-batches, the second of them bad; their mean is the step's gradient.
    let four: Vec<Tensor> = (0..4)
        .map(|i| gradient(&text, &model, seed + i))
        .collect::<anyhow::Result<_>>()?;
    // The same rows as one batch: the same gradient.
    let (x, y): (Vec<Tensor>, Vec<Tensor>) =
        (0..4).map(|i| text.batch(seed + i, 0, false)).unzip();
    params.iter().for_each(|p| clear_grad(&p.tensor));
    text.loss(&model, (Tensor::cat(&x, 0), Tensor::cat(&y, 0)))?.backward();
    let large: Tensor = flat(&params);
    let off: f64 = ((mean(&four) - &large).norm() / large.norm()).double_value(&[]);
    println!("four micro-batches and one large batch differ by {off:.1e}");
    assert!(off < 1e-5, "{off}");
    let mut bad: Vec<Tensor> = four.iter().map(Tensor::shallow_clone).collect();
    bad[1] = TIMES * &four[1];
    let good: Tensor =
        mean(&[&four[0], &four[2], &four[3]].map(Tensor::shallow_clone));
    let once: f64 = cosine(&good, &cut(&mean(&bad), 1.));
    let alone: Vec<Tensor> = bad.iter().map(|g| cut(g, 1.)).collect();
    let each: f64 = cosine(&good, &mean(&alone));
    println!("cosine to the gradient of the three good micro-batches");
    println!("  clipped once, after: {once:.3}; each by itself: {each:.3}");
    report.numbers("accumulation", [("once", once), ("each", each)]);
    // Without a bad one the two are different steps as well.
    let once: f64 = cut(&mean(&four), 0.3).norm().double_value(&[]);
    let alone: Vec<Tensor> = four.iter().map(|g| cut(g, 0.3)).collect();
    let each: f64 = mean(&alone).norm().double_value(&[]);
    println!("  norms at a threshold of 0.3: {once:.3} once, {each:.3} each");
    report.numbers("accumulation.norm", [("once", once), ("each", each)]);
    report.tolerance("accumulation", Some(0.1));
    assert!(each < once, "{each} {once}");

    // CELL: What goes wrong
    let clean: Tensor = gradient(&text, &model, seed)?;
    assert!(clean.norm().double_value(&[]).is_finite());
    let one: Tensor = params[3].tensor.grad().flatten(0, -1).narrow(0, 0, 1);
    let _ = no_grad(|| one.shallow_clone().fill_(f64::NAN));
    let norm: f64 = clip_grad_norm(&params, 1.);
    let ours: f64 = nans(&params);
    naive(&params, 1.);
    let all: f64 = nans(&params);
    println!("one NaN: our norm is {norm}; NaNs after: {ours} ours, {all} naive");
    report.numbers("nan", [("ours", ours), ("naive", all)]);
    assert!(norm.is_nan() && ours == 1. && all > 1e5, "{norm} {ours} {all}");

    // CELL: Check the folklore
    println!("held-out loss by threshold: median (range)");
    let mut chart = Chart::new(
        "By threshold",
        "largest norm (10: no clipping)",
        "held-out loss (nats)",
    );
    for (m, (name, _, _)) in METHODS.iter().enumerate() {
        let mut line: Vec<(f64, Spread)> = vec![];
        for (k, max) in maxima.iter().enumerate() {
            let loss = held_out(&runs[7 * m + k]);
            println!("  {name:9} {max:4} {loss:.3}");
            report.spread(&format!("by.{}.m{k}", name.to_lowercase()), loss);
            line.push((max.min(10.), loss));
        }
        chart = draw_spread(chart, name, &line, 1.);
    }
    report.tolerance("by", Some(0.1));
    // Momentum: best at 1, worst at 0.1. Adam: no threshold apart from another.
    let heavy: Vec<Spread> = runs[..5].iter().map(|r| held_out(r)).collect();
    let adam: Vec<Spread> = runs[7..12].iter().map(|r| held_out(r)).collect();
    assert!(quick || Spread::best(&heavy) == 2 && heavy[4].low > heavy[0].high);
    assert!(quick || adam.iter().all(|a| a.low <= adam[0].high));
    let figure = chart.log_x().draw()?;
    report.figure("by", &figure)?;
    report.finish()?;
    // NOTEBOOK: figure

    Ok(())
}
