//! Chapter 10, practice: `cargo run --example ch10_practice`. With `--out DIR` it writes
//! the page's figures and numbers; `--quick` does less of everything.
use downhill::data::Scale;
use downhill::lab::tables::{Augment, Done, Model, Setting, Task, fit, loss, parts};
use downhill::lab::{Report, Spread, draw_spread, parallel};
use downhill::nn::Mode;
use downhill::nn::dropout::uniform;
use downhill::plot::Chart;
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
};

/// Runs of one setting for all seeds.
fn runs(
    task: &Task,
    s: &[Setting],
    seeds: &Range<u64>,
) -> anyhow::Result<Vec<Vec<Done>>> {
    let each = (seeds.end - seeds.start) as usize;
    let all = parallel(s.len() * each, |i| {
        fit(task, s[i / each], seeds.start + (i % each) as u64)
    })?;
    Ok(all.chunks(each).map(<[Done]>::to_vec).collect())
}

fn spread(runs: &[Done], of: fn(&Done) -> f64) -> Spread {
    Spread::of(runs.iter().map(of))
}

/// Searches rate and decay, `trials` settings on a grid or drawn from the same ranges,
/// uniform in the logarithm. Of each seed the run with the lowest validation loss, and
/// how that fell with the trials.
fn search(
    task: &Task,
    on_grid: bool,
    trials: usize,
    usual: Setting,
    seeds: &Range<u64>,
) -> anyhow::Result<(Vec<Done>, Vec<Vec<f64>>)> {
    let (mut ends, mut curves) = (vec![], vec![]);
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
                lr: between(3e-4, 3e-3, a),
                wd: between(1e-3, 1e-1, b),
                ..usual
            }
        };
        let settings: Vec<Setting> = (0..trials).map(setting).collect();
        let found = runs(task, &settings, &(seed..seed + 1))?;
        let found: Vec<Done> = found.into_iter().map(|r| r[0]).collect();
        let mut low = f64::INFINITY;
        let lower = |d: &Done| {
            low = low.min(d.loss);
            low
        };
        curves.push(found.iter().map(lower).collect());
        ends.extend(found.iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).copied());
    }
    Ok((ends, curves))
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

/// Megabytes by which a forward and backward pass over `batch` rows raises the peak of
/// the process; 0 where the system does not tell.
fn memory(task: &Task, batch: i64) -> downhill::Result<f64> {
    let status = |key: &str| {
        let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = text.lines().find(|l| l.starts_with(key)).map(String::from);
        let kib =
            line.and_then(|l| l.split_whitespace().nth(1)?.parse::<f64>().ok());
        kib.unwrap_or(0.) / 1024.
    };
    let (encoder, [learn, ..]) = parts(task, Scale::Standard, 0)?;
    let model = Model::new(&encoder, 2, 0)?;
    let rows = Tensor::arange(batch, (Kind::Int64, Device::Cpu))
        .remainder(learn.y.size()[0]);
    let batch = learn.pick(&rows);
    std::fs::write("/proc/self/clear_refs", "5").ok();
    let before = status("VmRSS");
    let y = model.forward(&batch.x, Mode::Train { seed: 0, step: 0 })?;
    loss(task, &y, &batch.y).backward();
    Ok(status("VmHWM") - before)
}

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 0;
    // NOTEBOOK: let quick: bool = true;
    // CELL: Is it the right tool?
    let mut report = Report::new("ch10_practice", out)?;
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
    }
    report.tolerance("tool", Some(0.3));
    assert!(quick || first[0].median <= first[2].median); // the linear one, on tumours
    let sizes: [f64; 2] = [cancer.table.rows() as f64, diabetes.table.rows() as f64];
    report.numbers("data", [("cancer", sizes[0]), ("diabetes", sizes[1])]);
    // CELL: Grid or random
    let trials: usize = if quick { 4 } else { 9 };
    let mut best = Chart::new("Best so far", "trials", "validation loss");
    println!(
        "{trials} trials each, by validation loss: validation error, test error"
    );
    for key in ["grid", "random"] {
        let (ends, curves) =
            search(&diabetes, key == "grid", trials, usual, &seeds)?;
        let validation = spread(&ends, |d| d.validation);
        let test = spread(&ends, |d| d.test);
        println!("  {key:6} {validation:.3}, {test:.3}");
        report.spread(&format!("search.{key}.validation"), validation);
        report.spread(&format!("search.{key}.test"), test);
        let points: Vec<(f64, Spread)> = (0..trials)
            .map(|i| ((i + 1) as f64, Spread::of(curves.iter().map(|c| c[i]))))
            .collect();
        best = draw_spread(best, key, &points, 1.);
    }
    report.number("search.trials", trials as f64);
    report.tolerance("search", Some(0.1));
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
    for batch in [8, 32, 128] {
        let s = Setting { batch, ..usual };
        let all = runs(&diabetes, &[s], &seeds)?.remove(0);
        let alone = fit(&diabetes, s, seed)?; // for the clock
        let ms = 1e3 * alone.seconds / alone.ran as f64;
        let mb = memory(&cancer, batch as i64)?;
        let test = spread(&all, |d| d.test);
        println!("  {batch:3} {ms:4.0} {mb:5.1} {test:.3}");
        let key = format!("batch.b{batch}");
        report.spread(&key, test);
        report.numbers(&key, [("ms", ms), ("mb", mb)]);
        report.tolerance(&format!("{key}.ms"), None);
        report.tolerance(&format!("{key}.mb"), None);
    }
    report.tolerance("batch", Some(0.1));
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
    let found: [Vec<Vec<Done>>; 2] =
        [runs(&cancer, &ways, &seeds)?, runs(&diabetes, &ways, &seeds)?];
    println!("test rows, by what is done to the numbers");
    for (i, (name, _, _)) in WAYS.iter().enumerate() {
        let test = [0, 1].map(|t| spread(&found[t][i], |d| d.test));
        println!("  {name:8} {:.3}, {:.3}", test[0], test[1]);
        report.spread(&format!("ways.{name}.cancer"), test[0]);
        report.spread(&format!("ways.{name}.diabetes"), test[1]);
    }
    report.tolerance("ways", Some(0.4));
    // CELL: Check the folklore
    // Settings that are all but equal: what the best of them looks like on the rows
    // that it was chosen by, and on others.
    let many: Vec<Setting> = (0..if quick { 3 } else { 12 })
        .map(|i| Setting { lr: 1e-3 * 1.01f64.powi(i), ..usual })
        .collect();
    let same: Vec<Done> = runs(&diabetes, &many, &(seed..seed + 1))?
        .into_iter()
        .map(|r| r[0])
        .collect();
    let chosen: Done = same
        .iter()
        .copied()
        .min_by(|a, b| a.validation.total_cmp(&b.validation))
        .unwrap_or(same[0]);
    let mean: f64 =
        same.iter().map(|d| d.validation).sum::<f64>() / same.len() as f64;
    let test: f64 = same.iter().map(|d| d.test).sum::<f64>() / same.len() as f64;
    println!(
        "{} all but equal settings: validation {mean:.3}, test {test:.3}",
        same.len()
    );
    println!(
        "  the best by validation: {:.3}, {:.3}",
        chosen.validation, chosen.test
    );
    report.numbers("honest", [("mean", mean), ("best", chosen.validation)]);
    report.numbers("honest", [("test", chosen.test), ("mean_test", test)]);
    report.number("honest.runs", same.len() as f64);
    report.tolerance("honest", Some(0.1));
    report.finish()?;
    Ok(())
}
