//! Chapter 2, momentum: `cargo run --example ch02_momentum`. With `--out DIR` it writes
//! the page's figures and numbers; `--quick` does less of everything.
use downhill::nn::dropout::normal;
use downhill::optim::{Driver, Hyper, Rule, Sgd};
use downhill::plot::{Chart, panels};
use downhill::schedule::{Schedule, constant};
use downhill_lab::{
    Make, Report, Run, Spread, Text, descend, draw_spread, grid, slope, train_all,
};
use std::ops::Range;
use tch::{Kind, Tensor};

// NOTEBOOK: skip
/// Chapter 2, momentum: prints short tables, and asserts what the page claims.
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

/// SGD with momentum μ, Nesterov's or not.
fn sgd(momentum: f64, nesterov: bool) -> Sgd {
    Sgd { momentum, nesterov, ..Sgd::default() }
}

const PLAIN: Make = |p| Box::new(Driver::new(Sgd::default(), p));
const HEAVY: Make = |p| Box::new(Driver::new(sgd(0.9, false), p));
const NESTEROV: Make = |p| Box::new(Driver::new(sgd(0.9, true), p));
const HEAVIER: Make = |p| Box::new(Driver::new(sgd(0.99, false), p));

// ANCHOR: sutskever
/// The form of Sutskever et al. 2013: the rate goes into the velocity.
struct Velocity(f64);

impl Rule<1> for Velocity {
    const SLOTS: [&'static str; 1] = ["v"];

    fn update(
        &self,
        theta: &mut Tensor,
        g: &Tensor,
        [v]: [&mut Tensor; 1],
        h: Hyper,
    ) {
        *v = self.0 * &*v - h.lr * g;
        *theta += &*v;
    }
}
// ANCHOR_END: sutskever

/// A path down a bowl of curvatures 1 and `kappa` from (1, 1), by any rule.
fn down<const N: usize>(
    rule: impl Rule<N>,
    kappa: f64,
    lr: impl Schedule,
    steps: i64,
) -> Vec<[f64; 2]> {
    let mut theta = Tensor::from_slice(&[1., 1.]);
    let curvature = Tensor::from_slice(&[1., kappa]);
    let mut slots = rule.init(&theta);
    let mut path = vec![[1., 1.]];
    for t in 0..steps {
        let g = &curvature * &theta;
        let h = Hyper { t: t as i32 + 1, lr: lr.lr(t), wd: 0. };
        rule.update(&mut theta, &g, slots.each_mut(), h);
        path.push([0, 1].map(|i| theta.double_value(&[i])));
    }
    path
}

/// Steps until the distance stays below a millionth.
fn steps_needed(path: &[[f64; 2]]) -> usize {
    path.iter()
        .rposition(|p| p[0].hypot(p[1]) > 1e-6 * 2f64.sqrt())
        .map_or(0, |i| i + 1)
}

/// How far apart two paths are at step t.
fn apart(paths: &[Vec<[f64; 2]>; 2], t: usize) -> f64 {
    let [a, b] = [0, 1].map(|i| paths[i][t]);
    (a[0] - b[0]).hypot(a[1] - b[1])
}

/// How far the first step after the rate fell goes.
fn moved(path: &[[f64; 2]]) -> f64 {
    (path[31][0] - path[30][0]).hypot(path[31][1] - path[30][1])
}

/// x on a bowl of curvature 1, from 1.
fn swing(momentum: f64, lr: f64, steps: i64) -> Vec<f64> {
    down(sgd(momentum, false), 1., constant(lr), steps)
        .iter()
        .map(|p| p[0])
        .collect()
}

/// Steps until x stays below a thousandth.
fn settled(path: &[f64]) -> usize {
    path.iter().rposition(|x| x.abs() > 1e-3).map_or(0, |i| i + 1)
}

/// Mean of x² late in a run down `½ x²` by gradients with noise of variance 1.
fn floor(momentum: f64, lr: f64, seed: u64) -> f64 {
    let steps = 40_000;
    let noise = normal(steps, seed, 1);
    let (mut x, mut b, mut sum) = (0., 0., 0.);
    for (t, z) in noise.iter().enumerate() {
        b = momentum * b + x + f64::from(*z);
        x -= lr * b;
        sum += if t >= steps / 4 { x * x } else { 0. };
    }
    sum / (steps - steps / 4) as f64
}

/// Of Lessard, Recht and Packard: a convex function, curvature 25 and in the middle 1.
fn bent(x: &Tensor) -> Tensor {
    let middle = x.clamp(1., 2.) - 1.;
    // Its gradient is 25 x, less 24 for each unit of x between 1 and 2.
    let all = x.square() * 25. / 2.;
    let (over, none) = ((x - 2.).clamp_min(0.), middle.square() * 24. / 2.);
    (all - none - over * 24.).sum(Kind::Double)
}

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 0;
    // NOTEBOOK: let quick: bool = true;
    // CELL: The square root
    let mut report = Report::new("ch02_momentum", out)?;
    let seeds: Range<u64> = seed..seed + if quick { 2 } else { 5 };
    let kappas: [f64; 5] = [4., 16., 64., 256., 1024.];
    let mut needed: [Vec<(f64, f64)>; 3] = [vec![], vec![], vec![]];
    println!(
        "steps to a millionth, by condition number: plain, heavy ball, Nesterov"
    );
    for kappa in kappas {
        let (k, limit) = (kappa.sqrt(), (12. * kappa) as i64 + 200);
        let n = (3. * kappa + 1.).sqrt();
        let paths = [
            down(sgd(0., false), kappa, constant(2. / (1. + kappa)), limit),
            down(
                sgd(((k - 1.) / (k + 1.)).powi(2), false),
                kappa,
                constant(4. / (k + 1.).powi(2)),
                limit,
            ),
            down(
                sgd((n - 2.) / (n + 2.), true),
                kappa,
                constant(4. / (n * n)),
                limit,
            ),
        ];
        let steps = paths.map(|p| steps_needed(&p));
        println!("  {kappa:5} {:6} {:6} {:6}", steps[0], steps[1], steps[2]);
        let key = format!("kappa.k{kappa}");
        let names = ["plain", "heavy", "nesterov"];
        for (i, name) in names.into_iter().enumerate() {
            report.number(&format!("{key}.{name}"), steps[i] as f64);
            needed[i].push((kappa, steps[i] as f64));
        }
    }
    let mut chart = Chart::new("Steps to a millionth", "condition number", "steps")
        .log_x()
        .log_y()
        .y_range(10., 1e5); // room for the legend
    for (i, name) in ["plain", "heavy ball", "Nesterov"].into_iter().enumerate() {
        let found = slope(&needed[i]);
        println!("  {name}: the power is {found:.2}");
        let key = ["plain", "heavy", "nesterov"][i];
        report.number(&format!("kappa.slope.{key}"), found);
        let expected = if i == 0 { 1. } else { 0.5 };
        assert!((found - expected).abs() < 0.1);
        chart = chart.line(name, needed[i].clone()).points("", needed[i].clone());
    }
    let longer: f64 = needed[2][4].1 / needed[1][4].1;
    println!("  at the largest Nesterov needs {longer:.2} times the heavy ball's");
    report.number("kappa.longer", longer);
    let figure = chart.draw()?;
    report.figure("", &figure)?;
    // NOTEBOOK: figure
    // CELL: Damping
    let lr: f64 = 0.01;
    let critical: f64 = (1. - lr.sqrt()).powi(2);
    let mut chart = Chart::new("A ball in a bowl, rate 0.01", "step", "x");
    println!("momentum, steps until x stays below 0.001, its sign changes");
    for (name, mu) in
        [("none", 0.), ("over", 0.6), ("critical", critical), ("under", 0.97)]
    {
        let path = swing(mu, lr, 1500);
        let turns = path.windows(2).filter(|w| w[0] * w[1] < 0.).count();
        println!("  {mu:.2} {:4} {turns:2}", settled(&path));
        let key = format!("damping.{name}");
        let all =
            [("mu", mu), ("steps", settled(&path) as f64), ("turns", turns as f64)];
        report.numbers(&key, all);
        assert!((turns > 0) == (name == "under"), "{mu} turns {turns} times");
        let line = path[..250].iter().enumerate().map(|(t, x)| (t as f64, *x));
        chart = chart.line(&format!("{mu:.2}, {name}"), line.collect());
    }
    let figure = chart.draw()?;
    report.figure("damping", &figure)?;
    // NOTEBOOK: figure
    // CELL: The critical momentum
    let times: Vec<(usize, f64)> = (0..200)
        .map(|i| f64::from(i) / 200.)
        .map(|mu| (settled(&swing(mu, lr, 1500)), mu))
        .collect();
    let fastest: f64 =
        times.iter().min_by_key(|(steps, _)| *steps).map_or(0., |t| t.1);
    println!("  fastest {fastest:.3}, critical {critical:.3}");
    assert!(fastest >= critical && fastest < critical + 0.05);
    report.number("damping.fastest", fastest);
    // CELL: On a Transformer
    let text: Text = Text::alice()?;
    let steps: i64 = if quick { 20 } else { 100 };
    let rates: Vec<f64> = grid(1e-2 / 10f64.sqrt(), 10f64.sqrt(), 6);
    const METHODS: [(&str, &str, Make); 4] = [
        ("SGD", "sgd", PLAIN),
        ("momentum 0.9", "heavy", HEAVY),
        ("Nesterov 0.9", "nesterov", NESTEROV),
        ("momentum 0.99", "heavier", HEAVIER),
    ];
    let mut chart = Chart::new(
        "A small Transformer, by learning rate",
        "learning rate",
        "held-out loss (nats)",
    )
    .log_x()
    .y_range(2.4, 4.5);
    println!("held-out loss after {steps} steps: median (range)");
    let mut best: Vec<(Spread, f64)> = vec![];
    let mut unchanged: Vec<Spread> = vec![];
    for (name, key, make) in METHODS {
        let jobs: Vec<(Make, f64)> = rates.iter().map(|lr| (make, *lr)).collect();
        let runs = train_all(&text, &jobs, steps, seeds.clone())?;
        let all: Vec<Spread> = runs.iter().map(|r| Run::held_out(r)).collect();
        let i = Spread::best(&all);
        println!("  {name:13} {:.2} at rate {:.4}", all[i], rates[i]);
        report.spread(&format!("text.{key}"), all[i]);
        report.number(&format!("text.{key}.rate"), rates[i]);
        let points = rates.iter().copied().zip(all.iter().copied());
        // Where a seed diverged, or nearly, nothing is drawn.
        let points: Vec<(f64, Spread)> = points.filter(|p| p.1.high < 3.8).collect();
        chart = draw_spread(chart, name, &points, 1.);
        best.push((all[i], rates[i]));
        // At the rate that is best for momentum 0.9, or for SGD.
        let at = best[best.len().min(2) - 1].1;
        let same = rates.iter().position(|r| *r == at).unwrap_or(0);
        unchanged.push(all[same]);
    }
    println!("  momentum 0.99 at the rate of 0.9: {:.2}", unchanged[3]);
    report.spread("text.unchanged", unchanged[3]);
    report.number("text.steps", steps as f64);
    // Nesterov is better than plain SGD, 0.99 worse than either; 0.9 cannot be told from
    // SGD, nor from Nesterov, whose median is lower.
    assert!(quick || best[1].0.overlaps(best[0].0));
    assert!(quick || best[1].0.overlaps(best[2].0));
    assert!(quick || best[2].0.median < best[1].0.median);
    assert!(quick || best[2].0.high < best[0].0.low);
    assert!(quick || best[3].0.low > best[0].0.high);
    report.tolerance("text", Some(0.05));
    let figure = chart.draw()?;
    report.figure("text", &figure)?;
    // NOTEBOOK: figure
    // CELL: What goes wrong
    // The rate falls to a tenth in the middle: one form obeys at once.
    let fall: fn(i64) -> f64 = |t| if t < 30 { 0.02 } else { 0.002 };
    let forms: [Vec<[f64; 2]>; 2] =
        [down(sgd(0.9, false), 10., fall, 60), down(Velocity(0.9), 10., fall, 60)];
    println!("the two forms: {:.0e} apart before the rate falls", apart(&forms, 30));
    println!("  five steps later {:.3}", apart(&forms, 35));
    report.numbers(
        "forms",
        [("before", apart(&forms, 30)), ("after", apart(&forms, 35))],
    );
    report.numbers(
        "forms",
        [("torch", moved(&forms[0])), ("velocity", moved(&forms[1]))],
    );
    report.tolerance("forms.before", None);
    assert!(apart(&forms, 30) < 1e-12);
    let lr: f64 = 1. / 9.;
    let ball: Make = |p| Box::new(Driver::new(sgd(4. / 9., false), p));
    let mut chart = Chart::new("A heavy ball on a convex function", "step", "x");
    for (name, make) in [("plain", PLAIN), ("heavy ball", ball)] {
        let rate = if name == "plain" { 2. / 26. } else { lr };
        let path = descend(make, &[3.3], constant(rate), 3000, |x, _| bent(x));
        let last: Vec<f64> = path[2998..].iter().map(|x| x[0]).collect();
        println!("  {name:10} ends {:.3} {:.3} {:.3}", last[0], last[1], last[2]);
        let key = name.replace(' ', "_");
        let all = [("a", last[0]), ("b", last[1]), ("c", last[2])];
        // The heavy ball is where it was three steps before, and not at the bottom.
        let again = (path[2997][0] - last[2]).abs() < 1e-6;
        assert!(again && (last[2].abs() > 0.1) == (name == "heavy ball"), "{name}");
        report.numbers(&format!("cycle.{key}"), all);
        let line = path[..40].iter().enumerate().map(|(t, x)| (t as f64, x[0]));
        chart = chart.line(name, line.collect());
    }
    report.tolerance("cycle.plain", None);
    let figure = panels(&[chart], 1)?;
    report.figure("cycle", &figure)?;
    // NOTEBOOK: figure
    // CELL: Check the folklore
    println!(
        "noise: mean of x^2 at the same rate / (1 - momentum), at the same rate"
    );
    let mut floors: Vec<[Spread; 2]> = vec![];
    for mu in [0., 0.5, 0.9, 0.99] {
        let effective =
            Spread::of(seeds.clone().map(|s| floor(mu, 0.1 * (1. - mu), s)));
        let same = Spread::of(seeds.clone().map(|s| floor(mu, 0.01, s)));
        println!("  {mu:4} {effective:.3}, {same:.3}");
        let key = format!("floor.m{}", (100. * mu) as i64);
        report.spread(&format!("{key}.effective"), effective);
        report.spread(&format!("{key}.same"), same);
        floors.push([effective, same]);
        let [without, now] = [floors[0][1], same].map(|s| s.median);
        let more = now / without * (1. - mu);
        assert!(quick || (more - 1.).abs() < 0.15, "{mu}: {now}");
        let [without, now] = [floors[0][0], effective].map(|s| s.median);
        assert!(quick || (now / without - 1.).abs() < 0.15, "{mu}: {now}");
    }
    report.finish()?;
    Ok(())
}
