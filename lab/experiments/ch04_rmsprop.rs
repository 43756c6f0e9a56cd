//! Chapter 4, RMSprop: `cargo run --example ch04_rmsprop`. With `--out DIR` it writes
//! the page's figures and numbers; `--quick` does less of everything.
use downhill::nn::dropout::normal;
use downhill::optim::{Adagrad, Adam, Driver, Hyper, RmsProp, Rule};
use downhill::plot::{Chart, panels};
use downhill::schedule::constant;
use downhill_lab::{
    Make, Report, Run, Spread, Text, descend, draw_spread, grid, parallel, train_all,
};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

// NOTEBOOK: skip
/// Chapter 4, RMSprop: prints short tables, and asserts what the page claims.
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

const ADAGRAD: Make = |p| Box::new(Driver::new(Adagrad::default(), p));
const RMSPROP: Make = |p| Box::new(Driver::new(RmsProp::default(), p));
const LECTURE: Make =
    |p| Box::new(Driver::new(RmsProp { alpha: 0.9, ..RmsProp::default() }, p));
const SLOW: Make =
    |p| Box::new(Driver::new(RmsProp { alpha: 0.999, ..RmsProp::default() }, p));
const FAST: Make =
    |p| Box::new(Driver::new(RmsProp { alpha: 0.5, ..RmsProp::default() }, p));

/// The target jumps every so many steps.
const JUMP: i64 = 150;
/// The rate is chosen for a short run, and then kept for a long one.
const SHORT: i64 = 1200;
const LONG: i64 = 4800;

// ANCHOR: target
/// Where the target is at step t: back and forth, ever so often.
fn target(t: i64) -> f64 {
    if t / JUMP % 2 == 0 { 1. } else { -1. }
}

/// How loud the gradients are: a hundred times louder in two of four stretches.
fn volume(t: i64) -> f64 {
    if t / JUMP % 4 < 2 { 1. } else { 100. }
}

/// Follows the target by noisy gradients of `½ volume (x − target)²`.
fn follow(make: Make, lr: f64, seed: u64, steps: i64) -> Vec<f64> {
    let noise = normal(steps as usize, seed, 0);
    let path = descend(make, &[0.], constant(lr), steps, |x, t| {
        let pull = f64::from(noise[t as usize]) * 0.3 - target(t);
        (x * x / 2. + x * pull).sum(Kind::Double) * volume(t)
    });
    path.iter().skip(1).map(|x| x[0]).collect()
}
// ANCHOR_END: target

/// Mean distance from the target over the steps of the four jumps before `end`.
fn distance(path: &[f64], end: i64) -> f64 {
    let far = |t: i64| (path[t as usize] - target(t)).abs();
    (end - 4 * JUMP..end).map(far).sum::<f64>() / (4 * JUMP) as f64
}

/// The best rate of the grid, and the distances of all seeds there.
fn best(make: Make, seeds: Range<u64>) -> downhill::Result<(f64, Spread)> {
    let rates = grid(0.01, 10f64.sqrt(), 9);
    let each = (seeds.end - seeds.start) as usize;
    let far = parallel(rates.len() * each, |i| {
        let seed = seeds.start + (i % each) as u64;
        Ok(distance(&follow(make, rates[i / each], seed, SHORT), SHORT))
    })?;
    let all: Vec<Spread> =
        far.chunks(each).map(|far| Spread::of(far.iter().copied())).collect();
    let best = Spread::best(&all);
    Ok((rates[best], all[best]))
}

/// Steps down `½ x²` from 1 with a rate of 0.01, and where it falls to zero: mean of
/// |x| over the last hundred of two thousand.
fn shaking(make: Make, falls: bool) -> f64 {
    let lr = |t: i64| 0.01 * if falls { 1. - t as f64 / 2000. } else { 1. };
    let path = descend(make, &[1.], lr, 2000, |x, _| (x * x).sum(Kind::Double) / 2.);
    path[1901..].iter().map(|x| x[0].abs()).sum::<f64>() / 100.
}

/// The centered form in f32 under fifty gradients that never change: how many weights
/// are no number after 4,000 steps, and when the first was lost.
fn lost() -> (i64, i64) {
    let rule = RmsProp { centered: true, ..RmsProp::default() };
    let g = Tensor::linspace(0.04, 2., 50, (Kind::Float, Device::Cpu));
    let mut theta = g.zeros_like();
    let mut slots = rule.init(&theta);
    let (mut count, mut first) = (0, 0);
    for t in 1..=4000 {
        let h = Hyper { t, lr: 1e-3, wd: 0. };
        rule.update(&mut theta, &g, slots.each_mut(), h);
        count = theta.isnan().sum(Kind::Int64).int64_value(&[]);
        first = if count > 0 && first == 0 { i64::from(t) } else { first };
    }
    (count, first)
}

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 0;
    // NOTEBOOK: let quick: bool = true;
    // CELL: A target that moves
    let mut report = Report::new("ch04_rmsprop", out)?;
    let seeds: Range<u64> = seed..seed + if quick { 2 } else { 5 };
    let mut paths = Chart::new("The last four jumps of a long run", "step", "x");
    let mut ages = Chart::new("As the run goes on", "step", "mean distance");
    let late = LONG - 4 * JUMP..LONG;
    paths = paths.faint(late.clone().map(|t| (t as f64, target(t))).collect());
    println!("mean distance from a target that jumps: median (range)");
    let mut ends: Vec<[Spread; 2]> = vec![];
    const FOLLOW: [(&str, Make); 2] = [("Adagrad", ADAGRAD), ("RMSprop", RMSPROP)];
    for (name, make) in FOLLOW {
        let (lr, short) = best(make, seeds.clone())?;
        let each = (seeds.end - seeds.start) as usize;
        let runs: Vec<Vec<f64>> =
            parallel(each, |i| Ok(follow(make, lr, seed + i as u64, LONG)))?;
        let at = |end: i64| Spread::of(runs.iter().map(|r| distance(r, end)));
        let long = at(LONG);
        println!(
            "  {name:8} {short:.3} in {SHORT} steps, {long:.3} in {LONG}, rate {lr:.4}"
        );
        let key = name.to_lowercase();
        report.spread(&format!("moving.{key}.short"), short);
        report.spread(&format!("moving.{key}.long"), long);
        report.number(&format!("moving.{key}.rate"), lr);
        let drawn = |t: i64| (t as f64, runs[0][t as usize]);
        paths = paths.line(name, late.clone().map(drawn).collect());
        let age: Vec<(f64, Spread)> =
            (4..=LONG / JUMP).map(|k| ((k * JUMP) as f64, at(k * JUMP))).collect();
        ages = draw_spread(ages, name, &age, 1.);
        ends.push([short, long]);
    }
    let apart: bool = ends[1][1].high < ends[0][1].low;
    assert!(apart, "RMSprop {}, Adagrad {}", ends[1][1], ends[0][1]);
    let all =
        [("short", SHORT as f64), ("long", LONG as f64), ("jump", JUMP as f64)];
    report.numbers("moving.steps", all);
    report.tolerance("moving", Some(0.05));
    let figure = panels(&[paths.y_range(-1.6, 2.6), ages.y_range(0., 1.2)], 1)?;
    report.figure("", &figure)?;
    // NOTEBOOK: figure

    // CELL: How much to remember
    const ALPHAS: [(&str, Make); 4] =
        [("0.5", FAST), ("0.9", LECTURE), ("0.99", RMSPROP), ("0.999", SLOW)];
    println!("the same by alpha");
    for (name, make) in ALPHAS {
        let (lr, end) = best(make, seeds.clone())?;
        println!("  {name:6} {end:.3} at rate {lr:.4}");
        report.spread(&format!("alpha.moving.a{}", &name[2..]), end);
    }
    let text = Text::alice()?;
    let steps: i64 = if quick { 30 } else { 50 };
    let rates: Vec<f64> = grid(1e-4, 10f64.sqrt(), 5);
    let mut jobs: Vec<(Make, f64)> = vec![];
    for (_, make) in ALPHAS {
        jobs.extend(rates.iter().map(|lr| (make, *lr)));
    }
    let runs: Vec<Vec<Run>> = train_all(&text, &jobs, steps, seeds.clone())?;
    let losses: Vec<Spread> = runs.iter().map(|r| Run::held_out(r)).collect();
    let mut chart = Chart::new("By alpha", "learning rate", "held-out loss (nats)");
    println!(
        "held-out loss of the Transformer after {steps} steps, best of five rates"
    );
    let mut found: Vec<(Spread, f64)> = vec![];
    for ((name, _), losses) in ALPHAS.iter().zip(losses.chunks(rates.len())) {
        let best = Spread::best(losses);
        println!("  {name:6} {:.3} at rate {:.4}", losses[best], rates[best]);
        let key = format!("alpha.text.a{}", &name[2..]);
        report.spread(&key, losses[best]);
        report.number(&format!("{key}.rate"), rates[best]);
        let points: Vec<(f64, Spread)> =
            rates.iter().copied().zip(losses.iter().copied()).collect();
        chart = draw_spread(chart, name, &points, 1.);
        found.push((losses[best], rates[best]));
    }
    // 0.5 is below 0.9. From there on the ranges overlap, and the best rate falls.
    assert!(quick || found[0].0.median < found[1].0.low, "{found:?}");
    let lowest: f64 =
        found[1..].iter().map(|f| f.0.high).fold(f64::INFINITY, f64::min);
    assert!(quick || found[1..].iter().all(|f| f.0.low < lowest), "{found:?}");
    assert!(quick || found[1..].is_sorted_by(|a, b| a.1 > b.1), "{found:?}");
    report.number("alpha.steps", steps as f64);
    report.tolerance("alpha", Some(0.1));
    let figure = chart.log_x().y_range(2.5, 3.7).draw()?;
    report.figure("alpha", &figure)?;
    // NOTEBOOK: figure

    // CELL: Centered, and with momentum
    const VARIANTS: [(&str, &str, Make); 5] = [
        ("adagrad", "Adagrad", ADAGRAD),
        ("plain", "RMSprop", RMSPROP),
        ("centered", "centered", |p| {
            let rule = RmsProp { centered: true, ..RmsProp::default() };
            Box::new(Driver::new(rule, p))
        }),
        ("momentum", "momentum 0.9", |p| {
            let rule = RmsProp { momentum: 0.9, ..RmsProp::default() };
            Box::new(Driver::new(rule, p))
        }),
        ("adam", "Adam", |p| Box::new(Driver::new(Adam::default(), p))),
    ];
    let wide: Vec<f64> = grid(10f64.powf(-4.5), 10f64.sqrt(), 7);
    let mut jobs: Vec<(Make, f64)> = vec![];
    for (_, _, make) in VARIANTS {
        jobs.extend(wide.iter().map(|lr| (make, *lr)));
    }
    let runs: Vec<Vec<Run>> = train_all(&text, &jobs, steps, seeds.clone())?;
    let losses: Vec<Spread> = runs.iter().map(|r| Run::held_out(r)).collect();
    let mut chart =
        Chart::new("Each method", "learning rate", "held-out loss (nats)");
    println!("held-out loss by method, best of seven rates");
    let mut bests: Vec<Spread> = vec![];
    for ((key, name, _), losses) in VARIANTS.iter().zip(losses.chunks(wide.len())) {
        let best = Spread::best(losses);
        println!("  {name:13} {:.3} at rate {:.4}", losses[best], wide[best]);
        report.spread(&format!("method.{key}"), losses[best]);
        bests.push(losses[best]);
        report.number(&format!("method.{key}.rate"), wide[best]);
        let points: Vec<(f64, Spread)> =
            wide.iter().copied().zip(losses.iter().copied()).collect();
        let points =
            points.into_iter().filter(|p| p.1.high < 4.5).collect::<Vec<_>>();
        chart = draw_spread(chart, name, &points, 1.);
    }
    report.tolerance("method", Some(0.1));
    // Only Adam, the last, and momentum before it are apart.
    for (i, j) in (0..5).flat_map(|j| (0..j).map(move |i| (i, j))) {
        let overlap = bests[i].overlaps(bests[j]);
        assert!(quick || overlap != (i == 3 && j == 4), "{bests:?}");
    }
    let figure = chart.log_x().y_range(2.5, 5.2).draw()?;
    report.figure("method", &figure)?;
    // NOTEBOOK: figure

    // CELL: What goes wrong
    println!("steps in units of the rate under a gradient of 1");
    let mut chart =
        Chart::new("Step under a constant gradient", "step", "step / rate");
    for (key, name, make) in [
        ("a9", "alpha 0.9", LECTURE),
        ("a99", "alpha 0.99", RMSPROP),
        ("a999", "alpha 0.999", SLOW),
    ] {
        let path =
            descend(make, &[0.], constant(1e-3), 3000, |x, _| x.sum(Kind::Double));
        let size = |t: usize| (path[t - 1][0] - path[t][0]) / 1e-3;
        let (first, tenth, last) = (size(1), size(10), size(3000));
        assert!(key != "a99" || (first - 10.).abs() < 1e-3, "{first}");
        println!("  {name:11} {first:.2} at 1, {tenth:.2} at 10, {last:.2} at 3000");
        let all = [("first", first), ("tenth", tenth), ("last", last)];
        report.numbers(&format!("first.{key}"), all);
        let sizes = (1..=3000).map(|t| (t as f64, size(t)));
        chart = chart.line(name, sizes.collect());
    }
    // The step in units of the rate once the mean has settled, so that v = g².
    println!("settled step at gradients of 1e-3, 1e-5, 1e-7; epsilon 1e-10:");
    for (key, inside) in [("outside", false), ("inside", true)] {
        let step = |g: f64| match inside {
            true => g / (g * g + 1e-10).sqrt(),
            false => g / ((g * g).sqrt() + 1e-10),
        };
        let all = [("at3", step(1e-3)), ("at5", step(1e-5)), ("at7", step(1e-7))];
        println!("  {key:8} {:.4} {:.4} {:.4}", all[0].1, all[1].1, all[2].1);
        report.numbers(&format!("eps.{key}"), all);
    }
    let rms = [shaking(RMSPROP, false), shaking(RMSPROP, true)];
    println!("|x| at the end: {:.4}, if the rate falls {:.0e}", rms[0], rms[1]);
    report.numbers("shaking", [("rmsprop", rms[0]), ("falls", rms[1])]);
    report.tolerance("shaking", Some(0.1));
    report.tolerance("shaking.falls", None);
    assert!(rms[0] > 1e-3 && rms[1] < rms[0] / 5.);
    let (count, first): (i64, i64) = lost();
    println!("centered, f32: {count} of 50 weights lost, the first at step {first}");
    report.numbers("lost", [("count", count as f64), ("first", first as f64)]);
    assert!(count > 0);
    let figure = chart.log_x().log_y().y_range(0.5, 100.).draw()?;
    report.figure("first", &figure)?;
    // NOTEBOOK: figure

    // CELL: Check the folklore
    // RMSprop that remembers everything alike: alpha = 1 - 1/t at step t, by hand.
    let gradients: Vec<f64> =
        normal(1000, seed, 7).into_iter().map(|z| f64::from(z) + 0.5).collect();
    let path = descend(ADAGRAD, &[0.], constant(0.1), 1000, |x, t| {
        (x * gradients[t as usize]).sum(Kind::Double)
    });
    let (mut x, mut v, mut apart) = (0f64, 0f64, 0f64);
    for (t, g) in (1..).zip(&gradients) {
        let alpha = 1. - 1. / f64::from(t);
        v = alpha * v + (1. - alpha) * g * g;
        x -=
            0.1 / f64::from(t).sqrt() * g / (v.sqrt() + 1e-10 / f64::from(t).sqrt());
        apart = apart.max((x - path[t as usize][0]).abs());
    }
    println!(
        "Adagrad and RMSprop with alpha = 1 - 1/t, rate / sqrt t: {apart:.0e} apart"
    );
    report.number("folklore.apart", apart);
    report.tolerance("folklore", None);
    assert!(apart < 1e-9, "{apart}");
    report.finish()?;

    Ok(())
}
