//! Chapter 10, weight decay: `cargo run --example ch10_weight_decay`. With `--out DIR`
//! it writes the page's figures and numbers; `--quick` does less of everything.
use downhill::nn::dropout::normal;
use downhill::optim::{Adam, AdamW, Driver, Hyper, Optimizer, Param, Rule, Sgd};
use downhill::plot::{Chart, Heat};
use downhill_lab::{Report, Spread, Text, by_seed, draw_spread};
use std::ops::Range;
use tch::{Kind, Tensor, no_grad};

// NOTEBOOK: skip
#[derive(clap::Parser)]
struct Args {
    /// Where to write the figures and the numbers.
    #[arg(long)]
    out: Option<std::path::PathBuf>,
    /// First of the seeds.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Fewer steps and seeds.
    #[arg(long)]
    quick: bool,
}
// NOTEBOOK: end

/// SGD with decay beside the gradient instead of in it; `wd` is ηλ.
struct SgdW(Sgd);

impl Rule<1> for SgdW {
    const SLOTS: [&'static str; 1] = ["b"];

    fn init(&self, theta: &Tensor) -> [Tensor; 1] {
        self.0.init(theta)
    }

    fn update(&self, theta: &mut Tensor, g: &Tensor, b: [&mut Tensor; 1], h: Hyper) {
        *theta *= 1. - h.wd;
        self.0.update(theta, g, b, Hyper { wd: 0., ..h });
    }
}

/// Positions along noisy gradients of ½ (x − 1)².
fn path<const N: usize>(rule: impl Rule<N>, lr: f64, wd: f64) -> Vec<f64> {
    let noise = normal(300, 1, 0);
    let mut x = Tensor::from_slice(&[3f64]);
    let mut slots = rule.init(&x);
    let step = |(i, z): (usize, &f32)| {
        let g = &x - 1. + f64::from(*z) * 0.1;
        rule.update(&mut x, &g, slots.each_mut(), Hyper { t: i as i32 + 1, lr, wd });
        x.double_value(&[0])
    };
    noise.iter().enumerate().map(step).collect()
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0., f64::max)
}

fn mean_of_late(path: &[f64]) -> f64 {
    path[200..].iter().sum::<f64>() / 100.
}

/// Where a weight of 1 is after each step, if its gradient is always zero.
fn idle<const N: usize>(rule: impl Rule<N>, wd: f64, steps: i32) -> Vec<f64> {
    let mut x = Tensor::from_slice(&[1f64]);
    let zero = x.zeros_like();
    let mut slots = rule.init(&x);
    let step = |t: i32| {
        rule.update(&mut x, &zero, slots.each_mut(), Hyper { t, lr: 0.01, wd });
        x.double_value(&[0])
    };
    (1..=steps).map(step).collect()
}

/// Which parameters of the Transformer decay.
type Group = fn(&str) -> bool;
const ALL: Group = |_| true;
const MATRICES: Group =
    |n| !n.contains("norm") && !n.contains("embed") && !n.contains("lm_head");
const NOT_NORMS: Group = |n| !n.contains("norm");
const NORMS: Group = |n| n.contains("norm");

/// A training run: which rule, its rate, λ, and what decays.
#[derive(Clone, Copy)]
struct Job {
    decoupled: bool,
    lr: f64,
    wd: f64,
    group: Group,
}

/// Loss on the learned and on held-out text, and the norm of all matrices every ten
/// steps.
struct Done {
    learned: f64,
    held_out: f64,
    norms: Vec<f64>,
}

// ANCHOR: train
fn train(text: &Text, job: Job, steps: i64, seed: u64) -> downhill::Result<Done> {
    let model = text.model(seed)?;
    let named = model.named_parameters();
    let decay = |name: &str, _: &Tensor| if (job.group)(name) { job.wd } else { 0. };
    let params = Param::with_decay(named, decay);
    let mut optimizer: Box<dyn Optimizer> = match job.decoupled {
        true => Box::new(Driver::new(AdamW::default(), params)),
        false => Box::new(Driver::new(Adam::default(), params)),
    };
    let mut norms = vec![];
    for step in 0..steps {
        if step % 10 == 0 {
            let squares = model.named_parameters().into_iter().map(|(name, t)| {
                let square = t.square().sum(Kind::Double).double_value(&[]);
                if MATRICES(&name) { square } else { 0. }
            });
            norms.push(squares.sum::<f64>().sqrt());
        }
        optimizer.zero_grad();
        text.loss(&model, text.batch(seed, step, false))?.backward();
        optimizer.step(job.lr);
    }
    // ANCHOR_END: train
    let look = |held_out| {
        no_grad(|| -> downhill::Result<f64> {
            let loss = |i| text.loss(&model, text.batch(99, i, held_out));
            let all = (0..8).map(loss).collect::<downhill::Result<Vec<_>>>()?;
            Ok(Tensor::stack(&all, 0).mean(Kind::Double).double_value(&[]))
        })
    };
    Ok(Done { learned: look(false)?, held_out: look(true)?, norms })
}

/// All seeds of all jobs.
fn train_all(
    text: &Text,
    jobs: &[Job],
    steps: i64,
    seeds: Range<u64>,
) -> downhill::Result<Vec<Vec<Done>>> {
    by_seed(jobs.len(), seeds, |i, seed| train(text, jobs[i], steps, seed))
}

fn held_out(runs: &[Done]) -> Spread {
    Spread::of(runs.iter().map(|r| r.held_out))
}

/// The norm of the matrices over the steps.
fn norm_by_step(runs: &[Done]) -> Vec<(f64, Spread)> {
    let at = |i: usize| Spread::of(runs.iter().map(|r| r.norms[i]));
    (0..runs[0].norms.len()).map(|i| (10. * i as f64, at(i))).collect()
}

fn learned(runs: &[Done]) -> Spread {
    Spread::of(runs.iter().map(|r| r.learned))
}

/// A weight vector whose length a norm takes out again: random gradients at a right
/// angle to it, of size 1/‖w‖. Its length at the end, and the mean angle of a step.
fn turning(lr: f64, wd: f64) -> (f64, f64) {
    let (steps, n) = (20_000, 64);
    let noise = normal(steps * n, 3, 0);
    let mut w = vec![1. / (n as f64).sqrt(); n];
    let (mut angle, mut count) = (0., 0.);
    for t in 0..steps {
        let square: f64 = w.iter().map(|w| w * w).sum();
        let z: Vec<f64> =
            noise[t * n..(t + 1) * n].iter().map(|z| f64::from(*z)).collect();
        let along = z.iter().zip(&w).map(|(z, w)| z * w).sum::<f64>() / square;
        let flat: Vec<f64> = z.iter().zip(&w).map(|(z, w)| z - along * w).collect();
        let size = flat.iter().map(|z| z * z).sum::<f64>().sqrt() * square.sqrt();
        let step = lr / size; // the gradient has the size 1/‖w‖
        for (w, z) in w.iter_mut().zip(&flat) {
            *w = (1. - lr * wd) * *w - step * z;
        }
        if t >= steps / 2 {
            angle += (lr / square / (1. - lr * wd)).atan();
            count += 1.;
        }
    }
    (w.iter().map(|w| w * w).sum::<f64>().sqrt(), angle / count)
}

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 0;
    // NOTEBOOK: let quick: bool = true;
    // CELL: Two ways that are one for SGD
    let mut report = Report::new("ch10_weight_decay", out)?;
    let seeds: Range<u64> = seed..seed + if quick { 2 } else { 5 };
    println!("largest distance between coupled and decoupled decay");
    for (name, key, momentum) in
        [("SGD", "sgd", 0.), ("momentum 0.9", "momentum", 0.9)]
    {
        let sgd = Sgd { momentum, ..Sgd::default() };
        let far = apart(&path(sgd, 0.02, 0.5), &path(SgdW(sgd), 0.02, 0.02 * 0.5));
        println!("  {name:12} {far:.0e}");
        report.number(&format!("same.{key}"), far);
        assert!((far < 1e-12) == (momentum == 0.));
    }
    report.tolerance("same.sgd", None);
    // The buffer carries the decay as it carries the gradient, ten times as far.
    let heavy: Sgd = Sgd { momentum: 0.9, ..Sgd::default() };
    let rest: [f64; 3] = [
        mean_of_late(&path(heavy, 0.02, 0.5)),
        mean_of_late(&path(SgdW(heavy), 0.02, 0.01)),
        mean_of_late(&path(SgdW(heavy), 0.02, 0.1)),
    ];
    println!("  with momentum they rest at {:.2} and {:.2};", rest[0], rest[1]);
    println!("  the decoupled one ten times as much, at {:.2}", rest[2]);
    report.numbers("rest", [("coupled", rest[0]), ("decoupled", rest[1])]);
    report.number("rest.matched", rest[2]);
    assert!((rest[0] - rest[2]).abs() < 0.05 && rest[1] > rest[0] + 0.2);
    let adam =
        apart(&path(Adam::default(), 0.02, 0.5), &path(AdamW::default(), 0.02, 0.5));
    println!("  Adam, AdamW  {adam:.2}");
    report.number("same.adam", adam);
    // CELL: A weight that gets no gradient
    let mut chart =
        Chart::new("A weight without gradient, rate 0.01", "step", "weight")
            .y_range(0., 1.6);
    println!("a weight without gradient after 50 steps: Adam with L2, AdamW");
    for wd in [0.1, 1.] {
        let (l2, w) =
            (idle(Adam::default(), wd, 150), idle(AdamW::default(), wd, 150));
        println!("  lambda {wd}: {:.3} {:.3}", l2[49], w[49]);
        let key = format!("idle.w{}", (10. * wd) as i64);
        report.numbers(&key, [("l2", l2[49]), ("decoupled", w[49])]);
        assert!((w[49] - (1. - 0.01 * wd).powi(50)).abs() < 1e-12);
        let line = |path: &[f64]| {
            path.iter().enumerate().map(|(t, x)| ((t + 1) as f64, *x)).collect()
        };
        chart = chart.line(&format!("AdamW, {wd}"), line(&w));
        chart = chart.dashed(&format!("Adam with L2, {wd}"), line(&l2));
    }
    let figure = chart.draw()?;
    report.figure("idle", &figure)?;
    // NOTEBOOK: figure
    // CELL: Rate and decay
    let text: Text = Text::alice()?.with_first(1500);
    let steps: i64 = if quick { 30 } else { 105 };
    const RATES: [f64; 4] = [3e-4, 1e-3, 3e-3, 1e-2];
    const DECAYS: [[f64; 4]; 2] = [[1e-3, 3e-3, 1e-2, 3e-2], [0.1, 0.3, 1., 3.]];
    let plain: Vec<Job> = RATES
        .iter()
        .map(|lr| Job { decoupled: true, lr: *lr, wd: 0., group: ALL })
        .collect();
    let plain: Vec<Vec<Done>> = train_all(&text, &plain, steps, seeds.clone())?;
    println!("1,500 characters, {steps} steps: held-out loss");
    for (lr, runs) in RATES.iter().zip(&plain) {
        println!("  no decay, rate {lr}: {:.2}", held_out(runs));
        let key = format!("none.r{}", (1e4 * lr).round() as i64);
        report.spread(&key, held_out(runs));
        report.spread(&format!("{key}.learned"), learned(runs));
    }
    // Of each kind, decay by decay, the losses at all rates; the first row has no decay.
    let none: Vec<Spread> = plain.iter().map(|r| held_out(r)).collect();
    let mut cells: [Vec<Vec<Spread>>; 2] = [vec![none.clone()], vec![none]];
    for (kind, name) in ["Adam with L2", "AdamW"].into_iter().enumerate() {
        let decoupled = kind == 1;
        let job = |wd, lr| Job { decoupled, lr, wd, group: ALL };
        let jobs = DECAYS[kind].map(|wd| RATES.map(|lr| job(wd, lr))).concat();
        let runs = train_all(&text, &jobs, steps, seeds.clone())?;
        let row = |row: &[Vec<Done>]| row.iter().map(|r| held_out(r)).collect();
        cells[kind].extend(runs.chunks(RATES.len()).map(row));
        let title = format!("{name}: held-out loss (nats)");
        let mut heat = Heat::new(&title, "learning rate", "decay", &RATES);
        let decays: Vec<f64> = [0.].into_iter().chain(DECAYS[kind]).collect();
        for (wd, row) in decays.iter().zip(&cells[kind]) {
            let medians: Vec<f64> = row.iter().map(|s| s.median).collect();
            println!("  {name} {wd:5}: {medians:.2?}");
            heat = heat.row(&wd.to_string(), &medians);
        }
        let key = ["l2", "decoupled"][kind];
        // The best cell; the best decay of each rate.
        let all: Vec<Spread> = cells[kind].concat();
        report.spread(&format!("heat.{key}"), all[Spread::best(&all)]);
        let at = |k: usize| cells[kind].iter().map(|row| row[k]).collect::<Vec<_>>();
        let lows: Vec<usize> =
            (0..RATES.len()).map(|k| Spread::best(&at(k))).collect();
        for (k, i) in lows.iter().enumerate() {
            report.number(&format!("heat.{key}.best.r{k}"), decays[*i]);
        }
        // What it costs to keep one decay for all rates: of the decay that costs least,
        // the loss above the best of the rate, where that is most.
        let price = |row: &Vec<Spread>| {
            let each = (0..RATES.len())
                .map(|k| row[k].median - cells[kind][lows[k]][k].median);
            each.fold(0., f64::max)
        };
        let prices: Vec<f64> = cells[kind].iter().map(price).collect();
        let cheap =
            (0..prices.len()).min_by(|i, j| prices[*i].total_cmp(&prices[*j]));
        let cheap = cheap.unwrap_or_default();
        println!("  one for all rates: {}, at {:.2}", decays[cheap], prices[cheap]);
        report.numbers(
            &format!("heat.{key}.one"),
            [("wd", decays[cheap]), ("price", prices[cheap])],
        );
        // The higher rates want more decay, and yet one will do for all, in both maps.
        assert!(quick || lows[2].min(lows[3]) > lows[0], "{lows:?}");
        assert!(quick || prices[cheap] < 0.1, "{prices:?}");
        report.tolerance(&format!("heat.{key}.one"), None);
        report.tolerance(&format!("heat.{key}.best"), None);
        let figure = heat.draw()?;
        report.figure(["l2", ""][kind], &figure)?;
    }
    // At the higher rates both kinds help.
    for cells in &cells {
        for k in [2, 3] {
            let low = cells[1..].iter().map(|row| row[k].median);
            let low = low.fold(f64::INFINITY, f64::min);
            assert!(quick || low < cells[0][k].median, "no decay helps");
        }
    }
    report.number("heat.steps", steps as f64);
    report.tolerance("heat", Some(0.05));
    report.tolerance("none", Some(0.05));
    // CELL: Who decays
    const GROUPS: [(&str, &str, Group); 4] = [
        ("all", "all", ALL),
        ("all but norms", "not_norms", NOT_NORMS),
        ("matrices of the blocks", "matrices", MATRICES),
        ("norms alone", "norms", NORMS),
    ];
    let (lr, wd): (f64, f64) = (3e-3, 3.);
    let jobs: Vec<Job> = GROUPS
        .iter()
        .map(|(_, _, group)| Job { decoupled: true, lr, wd, group: *group })
        .collect();
    let groups: Vec<Vec<Done>> = train_all(&text, &jobs, steps, seeds.clone())?;
    println!("AdamW, rate {lr}, lambda {wd}: learned, held out, norm at the end");
    let mut norms: Chart =
        Chart::new("Norm of the blocks' matrices", "step", "norm").y_range(0., 24.);
    for ((name, key, _), runs) in GROUPS.iter().zip(&groups) {
        let last = Spread::of(runs.iter().map(|r| r.norms[r.norms.len() - 1]));
        println!(
            "  {name:22} {:.2}, {:.2}, {last:.1}",
            learned(runs),
            held_out(runs)
        );
        report.spread(&format!("groups.{key}"), held_out(runs));
        report.number(&format!("groups.{key}.norm"), last.median);
        report.spread(&format!("groups.{key}.learned"), learned(runs));
        norms = draw_spread(norms, name, &norm_by_step(runs), 1.);
    }
    let idle: Vec<(f64, Spread)> = norm_by_step(&plain[2]);
    report.number("groups.none.norm", idle[idle.len() - 1].1.median);
    report.number("groups.none.first", idle[0].1.median);
    report.numbers("groups", [("rate", lr), ("wd", wd)]);
    let none: Spread = held_out(&plain[2]);
    assert!(quick || held_out(&groups[3]).high < none.low);
    assert!(quick || held_out(&groups[0]).overlaps(none));
    assert!(quick || groups[1..].iter().all(|g| held_out(g).median < none.median));
    report.tolerance("groups", Some(0.05));
    let figure = norms.draw()?;
    report.figure("norm", &figure)?;
    // NOTEBOOK: figure
    // CELL: What goes wrong
    println!(
        "before a norm, rate 0.01: length at the end, angle of a step, sqrt(2 lr wd)"
    );
    for wd in [0.01, 0.1, 1.] {
        let (length, angle) = turning(0.01, wd);
        let theory = (2f64 * 0.01 * wd).sqrt();
        println!("  lambda {wd:4}: {length:.3}, {angle:.4}, {theory:.4}");
        let key = format!("turning.w{}", (100. * wd) as i64);
        report.numbers(
            &key,
            [("length", length), ("angle", angle), ("theory", theory)],
        );
        assert!(wd < 0.05 || (angle / theory - 1.).abs() < 0.05);
    }
    // CELL: Check the folklore
    // A λ and a rate that suit AdamW, given to Adam.
    let (lr, wd): (f64, f64) = (3e-3, 1.);
    let jobs: [Job; 2] =
        [true, false].map(|decoupled| Job { decoupled, lr, wd, group: ALL });
    let pair: Vec<Vec<Done>> = train_all(&text, &jobs, steps, seeds.clone())?;
    let [aimed, confused]: [Spread; 2] = [held_out(&pair[0]), held_out(&pair[1])];
    println!("lambda {wd} in AdamW: {aimed:.2}; in Adam: {confused:.2}");
    report.spread("confused", confused);
    report.spread("confused.aimed", aimed);
    report.numbers("confused", [("wd", wd), ("rate", lr)]);
    report.tolerance("confused", Some(0.05));
    assert!(quick || confused.low > aimed.high, "{confused} and {aimed}");
    let whole: Text = Text::alice()?;
    println!("the whole book, {steps} steps: held-out loss");
    for (name, wd) in [("none", 0.), ("some", 1.)] {
        let jobs = [Job { decoupled: true, lr: 3e-3, wd, group: ALL }];
        let runs = train_all(&whole, &jobs, steps, seeds.clone())?;
        println!("  lambda {wd}: {:.2}", held_out(&runs[0]));
        report.spread(&format!("book.{name}"), held_out(&runs[0]));
    }
    report.tolerance("book", Some(0.05));
    report.finish()?;
    Ok(())
}
