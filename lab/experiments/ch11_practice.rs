//! Chapter 11, practice: `cargo run --example ch11_practice`. With `--out DIR` it writes
//! the page's figures and numbers; `--quick` does less of everything.
use downhill::data::Scale;
use downhill::nn::Mode;
use downhill::nn::dropout::uniform;
use downhill::plot::{Chart, panels};
use downhill_lab::cost::{clock, memory};
use downhill_lab::tables::{
    Augment, Done, Model, Setting, Task, fit, loss, on_noise, parts,
};
use downhill_lab::{Report, Spread, by_seed, draw_spread};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

// NOTEBOOK: skip
#[derive(clap::Parser)]
struct Args {
    /// Where to write the figures and the numbers.
    #[arg(long)]
    out: Option<std::path::PathBuf>,
    /// First of the seeds.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Fewer seeds and epochs.
    #[arg(long)]
    quick: bool,
}
// NOTEBOOK: end

const USUAL: Setting = Setting {
    blocks: 2,
    lr: 1e-3,
    wd: 1e-2,
    batch: 32,
    scale: Scale::Standard,
    augment: Augment::None,
    epochs: 30,
    patience: 5,
};
/// What is searched: rates, and decays.
const SEARCHED: [(f64, f64); 2] = [(3e-4, 3e-3), (1e-3, 1e-1)];
/// Chosen out of how many columns of noise, and how many.
const NOISE: i64 = 2000;
const CHOSEN: i64 = 20;

/// Runs of one setting for all seeds.
fn runs(
    task: &Task,
    s: &[Setting],
    seeds: &Range<u64>,
) -> anyhow::Result<Vec<Vec<Done>>> {
    Ok(by_seed(s.len(), seeds.clone(), |i, seed| fit(task, s[i], seed))?)
}

fn spread(runs: &[Done], of: fn(&Done) -> f64) -> Spread {
    Spread::of(runs.iter().map(of))
}

/// Searches rate and decay, `trials` settings on a grid or drawn from the same ranges,
/// uniform in the logarithm. All runs of each seed, in their order.
fn search(
    task: &Task,
    on_grid: bool,
    trials: usize,
    usual: Setting,
    seeds: &Range<u64>,
) -> anyhow::Result<Vec<Vec<Done>>> {
    let mut all = vec![];
    let side = (trials as f64).sqrt() as usize;
    for seed in seeds.clone() {
        let draws = uniform(2 * trials, 0.5, seed, 77);
        let between = |low: f64, high: f64, at: f64| low * (high / low).powf(at);
        let setting = |i: usize| {
            let [a, b] = match on_grid {
                true => [i / side, i % side].map(|k| k as f64 / (side - 1) as f64),
                false => {
                    [draws[2 * i], draws[2 * i + 1]].map(|u| f64::from(u) + 0.5)
                }
            };
            Setting {
                lr: between(SEARCHED[0].0, SEARCHED[0].1, a),
                wd: between(SEARCHED[1].0, SEARCHED[1].1, b),
                ..usual
            }
        };
        let settings: Vec<Setting> = (0..trials).map(setting).collect();
        let found = runs(task, &settings, &(seed..seed + 1))?;
        all.push(found.into_iter().flatten().collect());
    }
    Ok(all)
}

/// The run with the lowest validation loss.
fn chosen(runs: &[Done]) -> Option<Done> {
    runs.iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).cloned()
}

/// The lowest validation loss of the first 1, 2, .. runs.
fn best_so_far(runs: &[Done]) -> Vec<f64> {
    let lower = |low: &mut f64, d: &Done| {
        *low = low.min(d.loss);
        Some(*low)
    };
    runs.iter().scan(f64::INFINITY, lower).collect()
}

fn mean(runs: &[Done], of: fn(&Done) -> f64) -> f64 {
    runs.iter().map(of).sum::<f64>() / runs.len() as f64
}

fn width(s: Spread) -> f64 {
    s.high - s.low
}

/// One of the two losses of each epoch.
fn by_epoch(runs: &[Done], which: usize) -> Vec<(f64, Spread)> {
    let epochs = runs.iter().map(|d| d.losses.len()).min().unwrap_or_default();
    let at = |e: usize| Spread::of(runs.iter().map(|d| d.losses[e][which]));
    (0..epochs).map(|e| ((e + 1) as f64, at(e))).collect()
}

/// How far the validation loss has risen again at the end.
fn rise(d: &Done) -> f64 {
    d.losses.last().map_or(f64::NAN, |l| l[1]) - d.loss
}

/// By how much the winner is better than the average of its split.
fn lead(tried: &[Vec<Done>], of: fn(&Done) -> f64) -> Spread {
    let lead = |r: &Vec<Done>| mean(r, of) - chosen(r).map_or(f64::NAN, |d| of(&d));
    Spread::of(tried.iter().map(lead))
}

fn by_rows(title: &str, unit: &str) -> Chart {
    Chart::new(title, "rows in a batch", unit).log_x()
}

// ANCHOR: accumulate
/// The gradient of the first 64 rows, taken in parts.
fn gradient(task: &Task, part: i64) -> downhill::Result<Tensor> {
    let (encoder, [learn, ..]) = parts(task, Scale::Standard, 0)?;
    let model = Model::new(&encoder, 2, 0)?;
    for rows in Tensor::arange(64, (Kind::Int64, Device::Cpu)).split(part, 0) {
        let batch = learn.pick(&rows);
        let y = model.forward(&batch.x, Mode::Eval)?;
        // The mean over all 64, not over the part; backward adds to what is there.
        let share = rows.size()[0] as f64 / 64.;
        (loss(task, &y, &batch.y) * share).backward();
    }
    let all = model.parameters().into_iter().map(|(_, t)| t.grad().flatten(0, -1));
    Ok(Tensor::cat(&all.collect::<Vec<_>>(), 0))
}
// ANCHOR_END: accumulate

/// The largest difference between parts and whole, as a share of the largest entry.
fn accumulated(task: &Task) -> downhill::Result<f64> {
    let (whole, parts) = (gradient(task, 64)?, gradient(task, 8)?);
    let far = (&whole - parts).abs().max() / whole.abs().max();
    Ok(far.double_value(&[]))
}

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 0;
    // NOTEBOOK: let quick: bool = true;
    // CELL: Is it the right tool?
    let mut report = Report::new("ch11_practice", out)?;
    let seeds: Range<u64> = seed..seed + if quick { 2 } else { 5 };
    let usual: Setting = Setting { epochs: if quick { 4 } else { 30 }, ..USUAL };
    let cancer: Task = Task::read("breast_cancer", "diagnosis", &[])?;
    let diabetes: Task = Task::read("diabetes", "progression", &["sex"])?;
    println!(
        "test rows: share of wrong diagnoses, error of progression in its spread"
    );
    const MODELS: [(&str, &str, usize, f64, usize); 2] =
        [("linear", "linear", 0, 1e-2, 3), ("FT-Transformer", "ft", 2, 1e-3, 1)];
    let mut first: Vec<Spread> = vec![];
    let mut plain: Vec<Vec<Done>> = vec![]; // the usual setting, wanted again below
    for (name, key, blocks, lr, longer) in MODELS {
        let s = Setting { blocks, lr, epochs: longer * usual.epochs, ..usual };
        let a = runs(&cancer, &[s], &seeds)?.remove(0);
        let b = runs(&diabetes, &[s], &seeds)?.remove(0);
        let found = [spread(&a, |d| d.test), spread(&b, |d| d.test)];
        println!("  {name:14} {:.3}, {:.3}", found[0], found[1]);
        report.spread(&format!("tool.{key}.cancer"), found[0]);
        report.spread(&format!("tool.{key}.diabetes"), found[1]);
        report.number(
            &format!("tool.{key}.seconds"),
            spread(&a, |d| d.seconds).median,
        );
        report.tolerance(&format!("tool.{key}.seconds"), None);
        first.extend(found);
        plain = vec![a, b];
    }
    report.tolerance("tool", Some(0.3));
    assert!(quick || first[0].median <= first[2].median); // the linear one, on tumours
    let sizes: [f64; 2] = [cancer.table.rows() as f64, diabetes.table.rows() as f64];
    report.numbers("data", [("cancer", sizes[0]), ("diabetes", sizes[1])]);
    // CELL: When to stop
    let long: Setting =
        Setting { epochs: if quick { 8 } else { 60 }, patience: 60, ..usual };
    let on: Vec<Done> = runs(&diabetes, &[long], &seeds)?.remove(0);
    let mut chart = Chart::new("Without stopping", "epoch", "loss");
    for (which, name) in ["learned", "validation"].into_iter().enumerate() {
        chart = draw_spread(chart, name, &by_epoch(&on, which), 1.);
    }
    let figure = chart.y_range(0., 1.).draw()?;
    report.figure("stop", &figure)?;
    println!("{} epochs, or stopped early: test error, epochs", long.epochs);
    let [to_the_end, stopped]: [Spread; 2] =
        [spread(&on, |d| d.last), spread(&plain[1], |d| d.test)];
    let epochs: [Spread; 2] = [
        spread(&plain[1], |d| d.epochs as f64),
        spread(&plain[1], |d| d.ran as f64),
    ];
    println!("  to the end {to_the_end:.3}; stopped {stopped:.3},");
    println!("  best epoch {:.0}, stopped after {:.0}", epochs[0], epochs[1]);
    report.number("stop.epochs", long.epochs as f64);
    report.spread("stop.end", to_the_end);
    report.spread("stop.best", epochs[0]);
    report.spread("stop.ran", epochs[1]);
    report.spread("stop.rise", spread(&on, rise));
    report.tolerance("stop", Some(0.3));
    report.tolerance("stop.rise", None);
    assert!(quick || to_the_end.median > stopped.median);
    assert!(quick || spread(&on, rise).low > 0.); // over-fitting, on every split
    // NOTEBOOK: figure
    // CELL: Grid or random
    let trials: usize = if quick { 4 } else { 9 };
    let mut best = Chart::new("Best so far", "trials", "validation loss");
    println!(
        "{trials} trials each, by validation loss: validation error, test error"
    );
    let mut tried: Vec<Vec<Done>> = seeds.clone().map(|_| vec![]).collect();
    let mut tests: Vec<Spread> = vec![];
    for key in ["grid", "random"] {
        let all = search(&diabetes, key == "grid", trials, usual, &seeds)?;
        let ends: Vec<Done> = all.iter().filter_map(|r| chosen(r)).collect();
        let validation = spread(&ends, |d| d.validation);
        let test = spread(&ends, |d| d.test);
        println!("  {key:6} {validation:.3}, {test:.3}");
        report.spread(&format!("search.{key}.validation"), validation);
        report.spread(&format!("search.{key}.test"), test);
        let curves: Vec<Vec<f64>> = all.iter().map(|r| best_so_far(r)).collect();
        let points: Vec<(f64, Spread)> = (0..trials)
            .map(|i| ((i + 1) as f64, Spread::of(curves.iter().map(|c| c[i]))))
            .collect();
        best = draw_spread(best, key, &points, 1.);
        tests.push(test);
        tried.iter_mut().zip(all).for_each(|(tried, all)| tried.extend(all));
    }
    // How far the settings are apart on one split, and the splits for the best setting.
    let settings: Spread =
        Spread::of(tried.iter().map(|r| width(spread(r, |d| d.validation))));
    let splits: f64 =
        width(Spread::of(tried.iter().map(|r| mean(r, |d| d.validation))));
    println!("  settings differ by {settings:.3}, splits by {splits:.3}");
    report.spread("search.settings", settings);
    report.number("search.splits", splits);
    report.number("search.trials", trials as f64);
    for (key, (low, high)) in ["rate", "decay"].iter().zip(SEARCHED) {
        report.numbers(&format!("search.{key}"), [("low", low), ("high", high)]);
    }
    report.tolerance("search", Some(0.1));
    report.tolerance("search.settings", None);
    report.tolerance("search.splits", None);
    assert!(quick || tests[0].overlaps(tests[1]), "{} {}", tests[0], tests[1]);
    assert!(quick || first[3].median <= tests[0].high.min(tests[1].high));
    assert!(quick || settings.median < splits);
    let figure = best.draw()?;
    report.figure("", &figure)?;
    // NOTEBOOK: figure
    // CELL: How large a batch
    let far: f64 = accumulated(&diabetes)?;
    println!("the gradient of 8 parts of 8 rows and of 64 rows: {far:.0e} apart");
    assert!(far < 1e-6);
    report.number("batch.accumulated", far);
    report.tolerance("batch.accumulated", None);
    println!("rows in a batch: ms of an epoch, megabytes, test error");
    let mut lines: [Vec<(f64, f64)>; 2] = [vec![], vec![]];
    let mut errors: Vec<(f64, Spread)> = vec![];
    for batch in [8, 32, 128] {
        let s = Setting { batch, ..usual };
        let all = match batch == usual.batch {
            true => plain[1].clone(),
            false => runs(&diabetes, &[s], &seeds)?.remove(0),
        };
        let ms = clock(&diabetes, s, seed)?;
        let mb = memory(&cancer, batch as i64)?;
        let test = spread(&all, |d| d.test);
        println!("  {batch:3} {ms:4.0} {mb:5.1} {test:.3}");
        let key = format!("batch.b{batch}");
        report.spread(&key, test);
        report.numbers(&key, [("ms", ms), ("mb", mb)]);
        report.tolerance(&format!("{key}.ms"), None);
        report.tolerance(&format!("{key}.mb"), None);
        lines[0].push((batch as f64, ms));
        lines[1].push((batch as f64, mb));
        errors.push((batch as f64, test));
    }
    report.tolerance("batch", Some(0.1));
    assert!(quick || errors.iter().all(|e| e.1.overlaps(errors[1].1)));
    let [ms, mb]: [Vec<(f64, f64)>; 2] = lines;
    let [slow, large]: [f64; 2] =
        [&ms, &mb].map(|l| l.iter().map(|p| p.1).fold(1., f64::max));
    let charts: Vec<Chart> = vec![
        by_rows("Time of an epoch", "milliseconds")
            .line("least of three", ms)
            .y_range(0., 1.4 * slow),
        by_rows("Memory of a step", "megabytes")
            .line("one step", mb)
            .y_range(0., 1.4 * large),
        draw_spread(by_rows("Quality", "error of progression"), "test", &errors, 1.)
            .y_range(0.6, 0.9),
    ];
    let figure = panels(&charts, 1)?;
    report.figure("batch", &figure)?;
    // NOTEBOOK: figure
    // CELL: Scale and augmentation
    const WAYS: [(&str, Scale, Augment); 5] = [
        ("none", Scale::None, Augment::None),
        ("standard", Scale::Standard, Augment::None),
        ("quantile", Scale::Quantile, Augment::None),
        ("noise", Scale::Standard, Augment::Noise),
        ("mixup", Scale::Standard, Augment::Mixup),
    ];
    let ways: Vec<Setting> = WAYS
        .iter()
        .map(|(_, scale, augment)| Setting {
            scale: *scale,
            augment: *augment,
            ..usual
        })
        .collect();
    let mut found: [Vec<Vec<Done>>; 2] = [vec![], vec![]];
    for (t, task) in [&cancer, &diabetes].into_iter().enumerate() {
        let mut all = runs(task, &[ways[0]], &seeds)?;
        all.push(plain[t].clone()); // standard, no augmentation: the usual setting
        all.extend(runs(task, &ways[2..], &seeds)?);
        found[t] = all;
    }
    println!("test rows, by what is done to the numbers");
    for (i, (name, _, _)) in WAYS.iter().enumerate() {
        let test = [0, 1].map(|t| spread(&found[t][i], |d| d.test));
        println!("  {name:8} {:.3}, {:.3}", test[0], test[1]);
        report.spread(&format!("ways.{name}.cancer"), test[0]);
        report.spread(&format!("ways.{name}.diabetes"), test[1]);
    }
    report.tolerance("ways", Some(0.4));
    // On the patients stopping is worth more than any of these.
    let worst: f64 =
        found[1].iter().map(|r| spread(r, |d| d.test).median).fold(0., f64::max);
    assert!(quick || to_the_end.median > worst, "{to_the_end} and {worst}");
    for runs in &found {
        let medians: Vec<f64> =
            runs.iter().map(|r| spread(r, |d| d.test).median).collect();
        assert!(
            quick || medians[1..].iter().all(|m| *m <= medians[0]),
            "{medians:?}"
        );
        let plain = spread(&runs[1], |d| d.test);
        assert!(runs[2..].iter().all(|r| spread(r, |d| d.test).overlaps(plain)));
    }
    // CELL: What goes wrong
    println!("a linear model on the best {CHOSEN} of {NOISE} columns of noise");
    let mut noise: Vec<Spread> = vec![];
    for (key, ahead) in [("ahead", true), ("learned", false)] {
        let one = |seed| on_noise(&diabetes, (NOISE, CHOSEN), ahead, seed);
        let all = seeds.clone().map(one).collect::<downhill::Result<Vec<_>>>()?;
        let error = Spread::of(all);
        println!("  chosen by all rows {ahead}: test error {error:.2}");
        report.spread(&format!("noise.{key}"), error);
        noise.push(error);
    }
    report.numbers("noise", [("columns", NOISE as f64), ("chosen", CHOSEN as f64)]);
    report.tolerance("noise", Some(0.1));
    assert!(noise[0].high < 1. && noise[1].low > 1., "{} {}", noise[0], noise[1]);
    // CELL: Check the folklore
    // How much better than the average of its split is the winner of the search, on the
    // rows that it won by, and on others?
    let gains: [Spread; 2] =
        [lead(&tried, |d| d.validation), lead(&tried, |d| d.test)];
    println!("the winner's lead over the mean of its {} runs", 2 * trials);
    println!("  validation {:.3}, test {:.3}", gains[0], gains[1]);
    report.spread("honest.validation", gains[0]);
    report.spread("honest.test", gains[1]);
    report.number("honest.runs", 2. * trials as f64);
    report.number("honest.rows", (diabetes.table.rows() / 5) as f64);
    report.tolerance("honest", None);
    assert!(quick || gains[1].median < gains[0].median);
    report.finish()?;
    Ok(())
}
