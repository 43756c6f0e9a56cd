//! Chapter 7, schedules: `cargo run --example ch07_schedules`. With `--out DIR` it
//! writes the page's figures and numbers; `--quick` does less of everything.
use downhill::models::Decoder;
use downhill::optim::{Adam, Driver, Optimizer, Param, Sgd};
use downhill::plot::{Chart, Heat, panels};
use downhill::schedule::{
    Schedule, cosine, cosine_restarts, deepseek, hold, inverse_sqrt, linear,
    one_cycle, warmup, wsd,
};
use downhill_lab::{Make, Report, Run, Spread, Text, draw_spread, grid, train_all};
use std::sync::atomic::{AtomicI64, Ordering};
use tch::no_grad;

// NOTEBOOK: skip
/// Chapter 7, schedules: prints short tables, and asserts what the page claims.
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

const ADAM: Make = |p| Box::new(Driver::new(Adam::default(), p));
const SGD: Make = |p| Box::new(Driver::new(Sgd::default(), p));

/// A learning rate at each step, to be kept in a list and sent to another thread.
type Rate = Box<dyn Fn(i64) -> f64 + Send + Sync>;

fn boxed(s: impl Schedule + Send + Sync + 'static) -> Rate {
    Box::new(move |t| s.lr(t))
}

/// Steps of a run, and of its warmup.
const STEPS: i64 = 100;
const WARM: i64 = 10;

/// The schedules that are compared, for a peak.
fn compared(peak: f64) -> Vec<(&'static str, Rate)> {
    vec![
        ("constant", boxed(warmup(peak, WARM).then(hold(peak, STEPS)))),
        ("inverse sqrt", boxed(inverse_sqrt(peak, WARM, WARM))),
        ("DeepSeek", boxed(deepseek(peak, WARM, STEPS))),
        ("WSD", boxed(wsd(peak, WARM, 65, 25))),
        ("linear", boxed(linear(peak, WARM, STEPS))),
        ("one cycle", boxed(one_cycle(peak, STEPS))),
        ("cosine", boxed(cosine(peak, WARM, STEPS))),
    ]
}

/// Up for `w` steps, then down to zero in a line: a short run.
const SHORT: i64 = 40;
fn warm(peak: f64, w: i64) -> Rate {
    boxed(linear(peak, w, SHORT))
}

/// A longer run by Adam: its loss on held-out text, and the model.
fn long(
    text: &Text,
    lr: &Rate,
    steps: i64,
    seed: u64,
) -> downhill::Result<(f64, Decoder)> {
    let model = text.model(seed)?;
    let params = Param::with_decay(model.named_parameters(), |_, _| 0.);
    let mut optimizer = Driver::new(Adam::default(), params);
    for step in 0..steps {
        optimizer.zero_grad();
        text.loss(&model, text.batch(seed, step, false))?.backward();
        optimizer.step(lr(step));
    }
    let loss = no_grad(|| text.loss(&model, text.batch(seed, 0, true)))?;
    Ok((loss.double_value(&[]), model))
}

/// From 1e-5 to 1 in so many steps, by the same factor at each.
const SWEPT: i64 = 80;
fn rising(t: i64) -> f64 {
    10f64.powf(-5. + 5. * t as f64 / SWEPT as f64)
}

// ANCHOR: noise
/// Mean loss `½ Σ h x²` over all courses of the noise, after `steps` steps of SGD from
/// x = 1 along each axis: the gradient is `h x` plus noise of variance 1.
fn expected(rate: &Rate, steps: i64) -> f64 {
    let loss = |h: f64| {
        let mut square = 1.; // the mean of x²
        for t in 0..steps {
            square = (1. - rate(t) * h).powi(2) * square + rate(t).powi(2);
        }
        h * square / 2.
    };
    loss(1.) + loss(0.02)
}
// ANCHOR_END: noise

/// The lowest loss over a grid of peaks, after `steps` steps of what `make` makes.
fn lowest(make: impl Fn(f64) -> Rate, steps: i64) -> f64 {
    let peaks = grid(1e-4, 10f64.powf(0.1), 42);
    let losses = peaks.iter().map(|peak| expected(&make(*peak), steps));
    losses.fold(f64::INFINITY, f64::min)
}

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 0;
    // NOTEBOOK: let quick: bool = true;
    // CELL: The idea in one picture
    let mut report = Report::new("ch07_schedules", out)?;
    let shapes: [Vec<(&str, Rate)>; 2] = [
        vec![
            ("linear", boxed(linear(1., 50, 1000))),
            ("cosine", boxed(cosine(1., 50, 1000))),
            ("WSD", boxed(wsd(1., 50, 750, 200))),
        ],
        vec![
            ("inverse sqrt", boxed(inverse_sqrt(1., 50, 50))),
            ("DeepSeek", boxed(deepseek(1., 50, 1000))),
            ("restarts", boxed(cosine_restarts(1., 50, 1000, 3))),
            ("one cycle", boxed(one_cycle(1., 1000))),
        ],
    ];
    let mut charts: Vec<Chart> = vec![];
    for (title, shapes) in ["To zero at the end", "And others"].iter().zip(&shapes) {
        let mut chart = Chart::new(title, "step", "rate / peak");
        for (name, s) in shapes {
            let curve = (0..=1000).map(|t| (t as f64, s(t))).collect();
            chart = chart.line(name, curve);
        }
        charts.push(chart.x_range(0., 1350.).y_range(0., 1.05)); // room for the legend
    }
    let figure = panels(&charts, 1)?;
    report.figure("", &figure)?;
    // NOTEBOOK: figure

    // CELL: Why a rate should fall
    let lengths: Vec<i64> =
        (0..=12).map(|k| (10. * 10f64.powf(k as f64 / 4.)) as i64).collect();
    let mut chart = Chart::new(
        "Noisy gradients, each at its best peak",
        "steps",
        "loss / that of the constant rate",
    );
    println!("expected loss with noisy gradients after 100 and 10000 steps");
    let mut noisy: Vec<[f64; 2]> = vec![];
    let mut flat: Vec<(f64, f64)> = vec![]; // that of the constant rate
    for name in ["constant", "inverse sqrt", "WSD", "linear", "cosine"] {
        let make = |peak: f64, n: i64| -> Rate {
            match name {
                "constant" => boxed(hold(peak, n)),
                "inverse sqrt" => boxed(inverse_sqrt(peak, 0, n / 10)),
                "WSD" => boxed(wsd(peak, 0, n - n / 5, n / 5)),
                "linear" => boxed(linear(peak, 0, n)),
                _ => boxed(cosine(peak, 0, n)),
            }
        };
        let ends: Vec<(f64, f64)> = lengths
            .iter()
            .map(|n| (*n as f64, lowest(|peak| make(peak, *n), *n)))
            .collect();
        let (short, long) = (ends[4].1, ends[12].1);
        println!("  {name:12} {short:.3} {long:.5}");
        let key = name.to_lowercase().replace(' ', "_");
        report.numbers(&format!("noise.{key}"), [("short", short), ("long", long)]);
        noisy.push([short, long]);
        if name == "constant" {
            flat = ends.clone();
        }
        let share: Vec<(f64, f64)> =
            ends.iter().zip(&flat).map(|(e, f)| (e.0, e.1 / f.1)).collect();
        // No more than a sixth up to 1,000 steps; then more with every length.
        let falls = share[8..].windows(2).all(|w| w[1].1 < w[0].1);
        assert!(share[..=8].iter().all(|s| s.1 > 0.83), "{share:?}");
        assert!(name == "constant" || falls, "{share:?}");
        chart = chart.line(name, share);
    }
    let gain: Vec<f64> = (0..2).map(|i| noisy[0][i] / noisy[3][i]).collect();
    report.numbers("noise.gain", [("short", gain[0]), ("long", gain[1])]);
    assert!(gain[0] > 1. && gain[1] > gain[0], "what falling gains: {gain:?}");
    // A cosine whose end is ten times as far as that of the training.
    let n: i64 = 10_000;
    let right: f64 = lowest(|peak| boxed(cosine(peak, 0, n)), n);
    let wrong: f64 = lowest(|peak| boxed(cosine(peak, 0, 10 * n)), n);
    println!("  a cosine that ends ten times too late: {wrong:.5}");
    report.numbers("noise.far", [("loss", wrong), ("times", wrong / right)]);
    assert!(wrong > 1.2 * right, "a wrong end costs only {}", wrong / right);
    let figure = chart.log_x().y_range(0.6, 1.25).draw()?;
    report.figure("noise", &figure)?;
    // NOTEBOOK: figure

    // CELL: With and without warmup
    let text = Text::alice()?;
    let seeds: std::ops::Range<u64> = seed..seed + if quick { 2 } else { 5 };
    let rates: Vec<f64> = grid(1e-3, 10f64.sqrt(), 5);
    let warmups: [i64; 3] = [0, 4, 16];
    let mut jobs: Vec<(Make, Rate)> = vec![];
    for w in warmups {
        jobs.extend(rates.iter().map(|lr| (ADAM, warm(*lr, w))));
    }
    // SGD, without and with, at rates of its own.
    let sgd_rates: Vec<f64> = grid(0.1, 10f64.sqrt(), 3);
    for w in [0, 4] {
        jobs.extend(sgd_rates.iter().map(|lr| (SGD, warm(*lr, w))));
    }
    let runs: Vec<Vec<Run>> = train_all(&text, &jobs, SHORT, seeds.clone())?;
    let losses: Vec<Spread> = runs.iter().map(|r| Run::held_out(r)).collect();
    let names: Vec<String> = rates.iter().map(|lr| format!("{lr:.4}")).collect();
    let title: &str = "Held-out loss (nats), median";
    let mut heat = Heat::new(title, "peak learning rate", "warmup steps", &names);
    println!("held-out loss after {SHORT} steps: median (range)");
    for (w, losses) in warmups.iter().zip(losses.chunks(rates.len())) {
        let row: Vec<f64> = losses.iter().map(|s| s.median).collect();
        heat = heat.row(&w.to_string(), &row);
        for ((k, lr), loss) in rates.iter().enumerate().zip(losses) {
            println!("  Adam, warmup {w:2}, rate {lr:.4}: {loss}");
            report.spread(&format!("warmup.adam.w{w}.r{k}"), *loss);
        }
    }
    for (k, lr) in rates.iter().enumerate() {
        report.number(&format!("warmup.rates.r{k}"), *lr);
    }
    let sgd: Vec<Spread> = losses[warmups.len() * rates.len()..].to_vec();
    for ((k, lr), (without, with)) in
        sgd_rates.iter().enumerate().zip(sgd.iter().zip(&sgd[sgd_rates.len()..]))
    {
        println!("  SGD, rate {lr:.3}: {without}, with warmup {with}");
        report.number(&format!("warmup.sgd.rates.r{k}"), *lr);
        report.spread(&format!("warmup.sgd.w0.r{k}"), *without);
        report.spread(&format!("warmup.sgd.w4.r{k}"), *with);
    }
    report.number("warmup.steps", SHORT as f64);
    let high: [Spread; 2] = [losses[3], losses[2 * rates.len() + 3]];
    assert!(high[1].median < high[0].median, "warmup does not help at a high rate");
    let best: Vec<usize> = losses.chunks(rates.len()).map(Spread::best).collect();
    assert!(quick || best[2] > best[0], "warmup does not allow a higher rate");
    // The best of the row without and of that with 16 steps, and SGD at every rate: what
    // the page cannot tell apart.
    let found: [Spread; 2] = [losses[best[0]], losses[2 * rates.len() + best[2]]];
    assert!(quick || found[0].overlaps(found[1]), "{} {}", found[0], found[1]);
    assert!(quick || (0..3).all(|i: usize| sgd[i].overlaps(sgd[i + 3])));
    for (key, i, found) in [("none", best[0], found[0]), ("most", best[2], found[1])]
    {
        report.spread(&format!("warmup.best.{key}"), found);
        report.number(&format!("warmup.best.{key}.rate"), rates[i]);
    }
    report.number("warmup.best.times", rates[best[2]] / rates[best[0]]);
    report.tolerance("warmup.best.times", None);
    report.tolerance("warmup", Some(0.1));
    let figure = heat.draw()?;
    report.figure("warmup", &figure)?;
    // NOTEBOOK: figure

    // CELL: Equal budgets
    let peaks: Vec<f64> = grid(1e-3, 10f64.sqrt(), 3);
    let mut jobs: Vec<(Make, Rate)> = vec![];
    for peak in &peaks {
        jobs.extend(compared(*peak).into_iter().map(|(_, rate)| (ADAM, rate)));
    }
    let runs: Vec<Vec<Run>> = train_all(&text, &jobs, STEPS, seeds.clone())?;
    let mut by_step = Chart::new("Each at its best peak", "step", "loss (nats)");
    println!("held-out loss after {STEPS} steps: median (range)");
    let mut ends: Vec<(&str, Spread, f64)> = vec![];
    for (m, (name, _)) in compared(1.).iter().enumerate() {
        let mine: Vec<&[Run]> =
            runs.iter().skip(m).step_by(7).map(|r| &r[..]).collect();
        let losses: Vec<Spread> = mine.iter().map(|r| Run::held_out(r)).collect();
        let best = Spread::best(&losses);
        println!("  {name:12} {:.3} at peak {:.4}", losses[best], peaks[best]);
        let key = format!("budget.{}", name.to_lowercase().replace(' ', "_"));
        report.spread(&key, losses[best]);
        report.number(&format!("{key}.peak"), peaks[best]);
        if ["constant", "WSD", "cosine"].contains(name) {
            by_step = draw_spread(by_step, name, &Run::curve(mine[best], 6), 1.);
        }
        ends.push((*name, losses[best], peaks[best]));
    }
    let (constant, cosine_end): (Spread, Spread) = (ends[0].1, ends[6].1);
    let apart: bool = constant.high < cosine_end.low;
    assert!(quick || apart, "constant {constant} and cosine {cosine_end}");
    // Those that keep their rate for most of the run, and those that fall from the start.
    let kept: f64 =
        [0, 2, 3].map(|i: usize| ends[i].1.median).into_iter().fold(0., f64::max);
    assert!(quick || [1, 4, 5, 6].iter().all(|i: &usize| ends[*i].1.median > kept));
    assert!(quick || ends.iter().all(|e| e.2 == ends[0].2), "different peaks");
    report.number("budget.steps", STEPS as f64);
    report.tolerance("budget", Some(0.1));
    let figure = by_step.draw()?;
    report.figure("budget", &figure)?;
    // NOTEBOOK: figure

    // CELL: Restarts
    let peak: f64 = ends[6].2;
    let jobs: Vec<(Make, Rate)> = [peak, 10. * peak]
        .map(|peak| (ADAM, boxed(cosine_restarts(peak, WARM, STEPS, 3))))
        .into();
    let runs: Vec<Vec<Run>> = train_all(&text, &jobs, STEPS, seeds.clone())?;
    let mut chart = Chart::new("Three cosines", "step", "loss (nats)");
    println!("three cosines in {STEPS} steps; change over a restart");
    let cycle: i64 = (STEPS - WARM) / 3;
    for (key, name, runs) in
        [("best", "best peak", &runs[0]), ("high", "ten times that", &runs[1])]
    {
        chart = draw_spread(chart, name, &Run::curve(runs, 3), 1.);
        let end = Run::held_out(runs);
        report.spread(&format!("restarts.{key}"), end);
        assert!(quick || key == "high" || end.overlaps(ends[6].1), "{end}");
        println!("  {name}: {end:.3}");
        // Means over five steps before each restart, and over the third to seventh
        // after it.
        for (order, restart) in
            [("first", WARM + cycle), ("second", WARM + 2 * cycle)]
        {
            let mean = |r: &Run, from: i64| {
                r.losses[from as usize..][..5].iter().sum::<f64>() / 5.
            };
            let rise = |r: &Run| mean(r, restart + 3) - mean(r, restart - 5);
            let rise = Spread::of(runs.iter().map(rise));
            assert!(quick || rise.low <= 0., "a jump in every run: {rise}");
            println!("    {order:6} {rise:.3}");
            report.spread(&format!("restarts.{key}.{order}"), rise);
        }
    }
    report.numbers("restarts", [("steps", STEPS as f64), ("peak", peak)]);
    report.tolerance("restarts", Some(0.1));
    for key in ["best.first", "best.second", "high.first", "high.second"] {
        report.tolerance(&format!("restarts.{key}"), None); // noise around zero
    }
    let figure = chart.draw()?;
    report.figure("restarts", &figure)?;
    // NOTEBOOK: figure

    // CELL: A range test
    let jobs: Vec<(Make, Rate)> = vec![(ADAM, Box::new(rising))];
    let runs: Vec<Run> = train_all(&text, &jobs, SWEPT, seeds.clone())?.remove(0);
    let mut line_of: Vec<(f64, f64)> = vec![];
    for (t, _) in runs[0].losses.iter().enumerate() {
        let at = Spread::of(
            runs.iter().map(|r| r.losses.get(t).copied().unwrap_or(f64::INFINITY)),
        );
        line_of.push((rising(t as i64), at.median));
    }
    // Where it falls fastest, seen over ten steps, and where it has risen again.
    let falls: Vec<f64> = line_of.windows(11).map(|w| w[0].1 - w[10].1).collect();
    let steepest = (0..falls.len()).max_by(|i, j| falls[*i].total_cmp(&falls[*j]));
    let fastest: f64 = line_of[steepest.unwrap_or_default() + 5].0;
    let low: f64 = line_of.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let risen = line_of.iter().rev().find(|p| p.1 < low + 0.3).map_or(0., |p| p.0);
    println!(
        "range test: falls fastest at {fastest:.4}, to {low:.2}, up from {risen:.2}"
    );
    report.numbers("range", [("fastest", fastest), ("low", low), ("up", risen)]);
    report.tolerance("range", Some(0.3));
    let chart =
        Chart::new("The rate rises at every step", "learning rate", "loss (nats)")
            .line("loss", line_of)
            .log_x()
            .y_range(2., 6.);
    let figure = chart.draw()?;
    report.figure("range", &figure)?;
    // NOTEBOOK: figure

    // CELL: What goes wrong
    println!("cosine with a mistake: held-out loss after {STEPS} steps");
    let right: Spread = ends[6].1;
    println!("  none       {right:.3}");
    // A schedule that counts its own calls, and was plotted before it was used.
    let calls = AtomicI64::new(0);
    let worn: Rate = Box::new(move |_| {
        cosine(peak, WARM, STEPS).lr(calls.fetch_add(1, Ordering::Relaxed))
    });
    let plotted: Vec<f64> = (0..STEPS).map(&worn).collect();
    assert!(plotted[WARM as usize] == peak, "the plot looks right");
    let runs: Vec<Run> =
        train_all(&text, &[(ADAM, worn)], STEPS, seeds.clone())?.remove(0);
    let loss = Run::held_out(&runs);
    println!("  worn out   {loss:.3}");
    report.spread("wrong.worn", loss);
    assert!(loss.low > 4., "a worn-out schedule learned: {loss}");
    report.tolerance("wrong", Some(0.1));

    // CELL: A longer run
    let steps: i64 = if quick { 100 } else { 1500 };
    let text: Text = text.with_batch(32);
    let (loss, model) = long(&text, &boxed(cosine(peak, WARM, steps)), steps, seed)?;
    let sample: String = text.continued(&model, "Alice ", (400, 0.6), seed)?;
    println!("{steps} steps of 32 rows: held-out loss {loss:.2}; it writes");
    println!("{sample}");
    report.numbers("long", [("steps", steps as f64), ("loss", loss)]);
    report.tolerance("long", Some(0.05));
    report.text("sample", &sample)?;
    report.finish()?;
    Ok(())
}
