//! Chapter 15, LoRA: `cargo run --example ch15_lora`. With `--out DIR` it writes the
//! page's figures and numbers; `--quick` does less of everything.
use downhill::lora::{self, LoraConfig, Modules};
use downhill::models::{Decoder, Survey};
use downhill::nn::{Weight, dropout::uniform};
use downhill::optim::{AdamW, Driver, Optimizer, Param};
use downhill::plot::{Bars, Chart, panels};
use downhill::quant::Nf4Tensor;
use downhill_lab::dates::{Arm, Dates, Outcome, Tuned, Tuning, compare, loss};
use downhill_lab::published::shape_of;
use downhill_lab::spectrum::{median, shares};
use downhill_lab::{Report, Spread, draw_spread, parallel, slope};
use std::ops::Range;
use tch::{Device, Kind, Tensor, no_grad};

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

const GIB: f64 = 1024. * 1024. * 1024.;
/// Learning rates that everything is tried at.
const RATES: [f64; 4] = [5e-4, 2e-3, 8e-3, 3.2e-2];
/// What a merge multiplies the update by, where it should be 1.
const TIMES: [f64; 8] = [0., 0.25, 0.5, 1., 1.5, 2., 3., 4.];

/// Adapters on every linear layer.
fn rank(r: i64, alpha: f64) -> LoraConfig {
    let target_modules = Modules::AllLinear;
    LoraConfig { r, alpha, target_modules, ..LoraConfig::default() }
}

fn arm(key: &'static str, name: &'static str, lora: Option<LoraConfig>) -> Arm {
    Arm { key, name, lora }
}

/// Prints and reports what came of some arms.
fn tell(report: &mut Report, arms: &[Arm], outcomes: &[Outcome]) {
    for (Arm { key, name, .. }, o) in arms.iter().zip(outcomes) {
        println!("  {name:22} rate {:.0e}  loss {:.3}", o.best, o.loss);
        report.spread(&format!("arms.{key}.loss"), o.loss);
        report.number(&format!("arms.{key}.rate"), o.best);
        report.number(&format!("arms.{key}.trained"), o.trained as f64);
        for (i, (_, loss)) in o.rates.iter().enumerate() {
            report.number(&format!("arms.{key}.at.k{i}"), *loss);
        }
    }
}

fn by_rate(title: &str, arms: &[Arm], all: &[Outcome], which: &[usize]) -> Chart {
    let chart = Chart::new(title, "learning rate, thousandths", "held-out loss");
    which.iter().fold(chart.log_x().y_range(0., 6.), |chart, &i| {
        let points = all[i].rates.iter().map(|(lr, loss)| (lr * 1e3, *loss));
        chart.line(arms[i].name, points.collect())
    })
}

fn norm(t: &Tensor) -> f64 {
    t.norm().double_value(&[])
}

/// The weights of a model, without its adapters.
fn weights(model: &mut Decoder) -> Vec<Tensor> {
    let dense = |w: &Weight| match w {
        Weight::Dense(w) => w.detach(),
        Weight::Nf4(q) => q.dequantize(Kind::Float),
    };
    model.linears_mut().into_iter().map(|(_, l)| dense(&l.weight)).collect()
}

/// s B A of each layer.
fn updates(model: &mut Decoder) -> Vec<Tensor> {
    let linears = model.linears_mut().into_iter();
    let adapters = linears.filter_map(|(_, l)| l.lora.as_ref());
    no_grad(|| adapters.map(|l| l.b.matmul(&l.a) * l.scale).collect())
}

// ANCHOR: first_step
/// The gradient of all B before the first step: the sum of its squares, by which a step
/// of SGD lowers the loss, and of its magnitudes, by which one of AdamW does. Each to
/// first order and for a rate of 1; A has no gradient yet.
fn first_step(
    dates: &Dates,
    config: &LoraConfig,
    seed: u64,
) -> downhill::Result<[f64; 2]> {
    let mut model = dates.model(false)?;
    let named = lora::attach(model.linears_mut(), config, seed, Device::Cpu)?;
    loss(&model, &dates.batch(seed, 0))?.backward();
    let b = named.iter().filter(|(name, _)| name.contains("lora_B"));
    let b: Vec<Tensor> = b.map(|(_, t)| t.grad()).collect();
    let sum = |f: fn(&Tensor) -> Tensor| -> f64 {
        b.iter().map(|g| f(g).sum(Kind::Double).double_value(&[])).sum()
    };
    Ok([sum(Tensor::square), sum(Tensor::abs)])
}
// ANCHOR_END: first_step

/// What becomes of one adapter: the loss under each way of merging; sizes, and what
/// stays of the update in four bits; and the loss by what it is multiplied by.
struct Merged {
    loss: [f64; 5],
    ratios: [f64; 4],
    times: [f64; TIMES.len()],
}

// ANCHOR: merged
/// Trains over NF4 and merges. `w` are the checkpoint's weights, `q` those that the
/// adapter was trained beside, `b` its update.
fn merged(dates: &Dates, tuning: &Tuning, seed: u64) -> downhill::Result<Merged> {
    let mut tuned = dates.tune(tuning, seed)?;
    let (b, q) = (updates(&mut tuned.model), weights(&mut tuned.model));
    let mut bare = dates.model(false)?;
    let w = weights(&mut bare);
    let mut judge = |all: &[Tensor]| {
        for ((_, linear), w) in bare.linears_mut().into_iter().zip(all) {
            linear.weight = Weight::Dense(w.shallow_clone());
        }
        Ok::<f64, downhill::Error>(dates.judge(&bare)?[0])
    };
    let plus = |base: &[Tensor], times: f64| -> Vec<Tensor> {
        base.iter().zip(&b).map(|(base, b)| base + b * times).collect()
    };
    let four_bits = |all: &[Tensor]| -> downhill::Result<Vec<Tensor>> {
        let round = |w| Nf4Tensor::quantize(w, 64, true);
        all.iter().map(|w| Ok(round(w)?.dequantize(Kind::Float))).collect()
    };
    let again = four_bits(&plus(&q, 1.))?;
    let anew = four_bits(&plus(&w, 1.))?;
    let loss = [
        tuned.held_out[0],
        judge(&plus(&q, 1.))?,
        judge(&plus(&w, 1.))?,
        judge(&again)?,
        judge(&anew)?,
    ];
    // ANCHOR_END: merged
    let middle = |f: &dyn Fn(usize) -> f64| Spread::of((0..b.len()).map(f)).median;
    let along = |new: &Tensor, b: &Tensor| {
        (new * b).sum(Kind::Double).double_value(&[]) / norm(b).powi(2)
    };
    let ratios = [
        middle(&|i| norm(&b[i]) / norm(&w[i])),
        middle(&|i| norm(&(&w[i] - &q[i])) / norm(&b[i])),
        middle(&|i| along(&(&again[i] - &q[i]), &b[i])),
        middle(&|i| along(&(&anew[i] - &q[i]), &b[i])),
    ];
    let mut times = [0.; TIMES.len()];
    for (at, by) in times.iter_mut().zip(TIMES) {
        *at = if by == 1. { loss[1] } else { judge(&plus(&q, by))? };
    }
    Ok(Merged { loss, ratios, times })
}

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 0;
    // NOTEBOOK: let quick: bool = true;
    // CELL: The idea in one picture
    let mut report = Report::new("ch15_lora", out)?;
    let dates: Dates = Dates::load(400, 32)?;
    let (steps, count): (i64, u64) = if quick { (6, 2) } else { (24, 5) };
    // One to search the rate on, the others to report.
    let seeds: Range<u64> = seed..seed + 1 + count;
    report.numbers("effort", [("steps", steps as f64), ("seeds", count as f64)]);
    let base: f64 = dates.judge(&dates.model(false)?)?[0];
    println!("held-out loss before: {base:.3}");
    report.number("base", base);
    let tuning = Tuning { lora: None, nf4: false, lr: 1e-3, steps: 3 * steps };
    let mut tuned: Tuned = dates.tune(&tuning, seed)?;
    let before: Vec<Tensor> = weights(&mut dates.model(false)?);
    let after: Vec<Tensor> = weights(&mut tuned.model);
    let change: Vec<Vec<f64>> =
        before.iter().zip(&after).map(|(w, now)| shares(&(now - w))).collect();
    let change: Vec<(f64, f64)> = median(&change);
    let still: Vec<Vec<f64>> = before.iter().map(shares).collect();
    let still: Vec<(f64, f64)> = median(&still);
    for r in [1, 4, 16, 64] {
        report.number(&format!("spectrum.change.r{r}"), change[r - 1].1);
        report.number(&format!("spectrum.weights.r{r}"), still[r - 1].1);
    }
    println!("rank 16 holds {:.2}, of W {:.2}", change[15].1, still[15].1);
    report.tolerance("spectrum", Some(0.05));
    assert!(quick || change[15].1 > 1.5 * still[15].1);
    let figure = Chart::new(
        "Singular values",
        "so many of the largest",
        "share of the square",
    )
    .line("of what training changed", change)
    .dashed("of the weights", still)
    .log_x()
    .y_range(0., 1.3)
    .draw()?;
    report.figure("", &figure)?;
    // NOTEBOOK: figure

    // CELL: What A and B start from
    println!("before the first step: loss, gradient of A, gradient of B");
    for (key, zero_a, random_b) in
        [("usual", false, false), ("zeros", true, false), ("random", false, true)]
    {
        let mut model: Decoder = dates.model(false)?;
        let config: LoraConfig = rank(8, 16.);
        let named = lora::attach(model.linears_mut(), &config, seed, Device::Cpu)?;
        for (name, t) in &named {
            let mut t = t.detach();
            if zero_a && name.contains("lora_A") {
                let _ = t.zero_();
            }
            if random_b && name.contains("lora_B") {
                let b = uniform(t.numel(), 0.07, seed, 0); // as A is
                t.copy_(&Tensor::from_slice(&b).view_as(&t));
            }
        }
        let first = loss(&model, &dates.batch(seed, 0))?;
        first.backward();
        let gradient = |half: &str| {
            let of = named.iter().filter(|(name, _)| name.contains(half));
            of.map(|(_, t)| norm(&t.grad()).powi(2)).sum::<f64>().sqrt()
        };
        let [a, b] = ["lora_A", "lora_B"].map(gradient);
        let first = first.double_value(&[]);
        println!("  {key:7} {first:.3} {a:.3} {b:.3}");
        let key = format!("start.{key}");
        report.numbers(&key, [("loss", first), ("a", a), ("b", b)]);
        assert!((a == 0.) != random_b && (b == 0.) == zero_a);
        if zero_a {
            // Not even Adam moves it.
            let params = Param::with_decay(named, |_, _| 0.);
            let mut optimizer = Driver::new(AdamW::default(), params);
            optimizer.step(1e-2);
            assert!(optimizer.params().iter().all(|p| norm(&p.tensor) == 0.));
        }
    }

    // CELL: What it costs
    let models: [[&'static str; 2]; 5] = [
        ["coder", "deepseek-coder-1.3b"],
        ["qwen", "R1-Distill-Qwen-1.5B"],
        ["qwen7", "R1-Distill-Qwen-7B"],
        ["llm", "deepseek-llm-7b"],
        ["lite", "DeepSeek-V2-Lite"],
    ];
    let mut bars = Bars::new("Rank 16: weights, gradients and Adam's m and v, GiB");
    for [key, name] in models {
        let survey = Survey::of(name, shape_of(name)?)?;
        let n = survey.linear_parameters() as f64;
        let nf4 = n * (4. + 8. / 64. + 32. / (64. * 256.)) / 8. / GIB;
        let sizes = [("weights", n / 1e9), ("nf4", nf4), ("whole", n * 16. / GIB)];
        report.numbers(&format!("cost.{key}"), sizes);
        for r in [8, 16, 64] {
            let trained = survey.adapter_parameters(r, &["all-linear"]) as f64;
            let (millions, gib) = (trained / 1e6, trained * 16. / GIB);
            let sizes = [("millions", millions), ("gib", gib)];
            report.numbers(&format!("cost.{key}.r{r}"), sizes);
            if r == 16 {
                println!("  {name:22} {millions:6.1} million, {gib:.2} GiB");
                bars = bars.bar(name, gib, &format!("{gib:.2}"));
            }
        }
    }
    let figure = bars.draw();
    report.figure("memory", &figure)?;
    // NOTEBOOK: figure

    // CELL: The scale
    println!("the first step's gain, as a power of the rank");
    let ranks: [i64; 7] = [1, 2, 4, 8, 16, 32, 64];
    let mut chart = Chart::new("Gain of the first step", "rank", "of rank 1's");
    for (key, use_rslora, name) in [("plain", false, "α/r"), ("rs", true, "α/√r")]
    {
        let mut gains: Vec<[f64; 2]> = vec![];
        for r in ranks {
            let config = LoraConfig { use_rslora, ..rank(r, 16.) };
            let all = seeds.clone().skip(1).map(|s| first_step(&dates, &config, s));
            let all: Vec<[f64; 2]> = all.collect::<downhill::Result<_>>()?;
            gains.push([0, 1].map(|k| Spread::of(all.iter().map(|g| g[k])).median));
        }
        for (k, by) in ["SGD", "AdamW"].into_iter().enumerate() {
            let line: Vec<(f64, f64)> = (0..ranks.len())
                .map(|i| (ranks[i] as f64, gains[i][k] / gains[0][k]))
                .collect();
            let power = slope(&line);
            println!("  {name:7} {by:5} {power:.2}");
            let shown = (power * 100.).round() / 100. + 0.; // no -0
            report.number(&format!("power.{key}.{}", by.to_lowercase()), shown);
            let expected = [[-1., 0.], [0., 0.5]][usize::from(use_rslora)][k];
            assert!(quick || (power - expected).abs() < 0.15, "{power}");
            let name = format!("{by}, {name}");
            let add = if use_rslora { Chart::dashed } else { Chart::line };
            chart = add(chart, &name, line);
        }
    }
    report.tolerance("power", None); // near zero; see the assertion
    let figure = chart.log_x().log_y().y_range(0.01, 1000.).draw()?;
    report.figure("scale", &figure)?;
    // NOTEBOOK: figure

    // CELL: The experiments
    let rs = LoraConfig { use_rslora: true, ..rank(64, 8.) };
    let pair: Modules = Modules::parse(&["q_proj", "v_proj"]);
    let only = LoraConfig { target_modules: pair, ..rank(16, 32.) };
    let dora = LoraConfig { use_dora: true, ..rank(16, 32.) };
    let pissa = LoraConfig { init: lora::Init::Pissa, ..rank(16, 32.) };
    let arms: Vec<Arm> = vec![
        arm("r1", "rank 1, α = 32", Some(rank(1, 32.))),
        arm("r16", "rank 16, α = 32", Some(rank(16, 32.))),
        arm("r64", "rank 64, α = 32", Some(rank(64, 32.))),
        arm("whole", "all weights", None),
        arm("two64", "rank 64, α = 2r", Some(rank(64, 128.))),
        arm("rs64", "rank 64, rsLoRA", Some(rs)),
        arm("qv", "q and v, rank 16", Some(only)),
        arm("all3", "all linear, rank 3", Some(rank(3, 6.))),
        arm("dora", "DoRA, rank 16", Some(dora)),
        arm("pissa", "PiSSA, rank 16", Some(pissa)),
    ];
    let found: Vec<Outcome> = compare(&dates, &arms, &RATES, steps, seeds.clone())?;
    tell(&mut report, &arms, &found);
    report.tolerance("arms", Some(0.3));
    assert!((found[6].trained as f64 / found[7].trained as f64 - 1.).abs() < 0.01);
    if !quick {
        let [r1, r16, r64, all, two, rs, qv, all3, dora, pissa] =
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(|i: usize| found[i].loss);
        assert!(r1.low > r16.high && qv.low > all3.high);
        assert!([r64, all, dora, pissa].iter().all(|s| s.overlaps(r16)));
        assert!(two.overlaps(r64) && rs.overlaps(r64));
        // At α / r the rate stays where it was; at α = 2r it does not.
        let rates: [f64; 10] =
            std::array::from_fn(|i| found[i].best / found[1].best);
        assert!(rates[2] == 1. && [3, 4, 9].iter().all(|i: &usize| rates[*i] < 1.));
        let at = |i: usize, k: usize| found[i].rates[k].1;
        assert!(at(9, 0) < at(1, 0) && at(1, 1) > at(3, 1) && at(1, 2) < at(3, 2));
    }
    let by_rank = by_rate("By rank", &arms, &found, &[0, 1, 2, 3]);
    let by_scale = by_rate("By scale, rank 64", &arms, &found, &[2, 5, 4]);
    let figure = panels(&[by_rank, by_scale], 2)?;
    report.figure("rank", &figure)?;
    // NOTEBOOK: figure

    // CELL: Merging
    let keys = ["adapter", "dequantized", "original", "again", "anew"];
    let mut chart = Chart::new("By mistake", "times the update", "held-out loss")
        .y_range(0., 9.);
    for (how, lr) in [("small", 1e-4), ("large", found[1].best)] {
        let tuning = Tuning { lora: Some(rank(16, 32.)), nf4: true, lr, steps };
        let all: Vec<Merged> = parallel(count as usize, |i| {
            merged(&dates, &tuning, seed + 1 + i as u64)
        })?;
        println!("learned at {lr:.0e}");
        for (k, key) in keys.into_iter().enumerate() {
            let loss = Spread::of(all.iter().map(|m| m.loss[k]));
            println!("  {key:12} {loss:.3}");
            report.spread(&format!("merge.{how}.{key}"), loss);
        }
        for (k, key) in ["size", "noise", "again", "anew"].into_iter().enumerate() {
            let ratio = Spread::of(all.iter().map(|m| m.ratios[k]));
            println!("  {key:12} {ratio:.3}");
            report.spread(&format!("merge.{how}.ratio.{key}"), ratio);
        }
        assert!(all.iter().all(|m| (m.loss[0] - m.loss[1]).abs() < 1e-4));
        let at = |k: usize| Spread::of(all.iter().map(|m| m.times[k]));
        let line: Vec<(f64, Spread)> =
            (0..TIMES.len()).map(|k| (TIMES[k], at(k))).collect();
        for (times, loss) in &line {
            let key = format!("merge.{how}.times.x{}", times * 100.);
            report.number(&key, loss.median);
        }
        let loss = |k: usize| Spread::of(all.iter().map(|m| m.loss[k]));
        let stays = Spread::of(all.iter().map(|m| m.ratios[2]));
        if how == "small" {
            assert!(quick || stays.high < 0.05 && loss(3).low > 0.98 * at(0).low);
            assert!(quick || loss(1).high < loss(2).low && at(0).high < base);
            assert!(quick || loss(4).overlaps(loss(1)));
        } else {
            assert!(quick || stays.low > 0.9);
            assert!(quick || (1..5).all(|k| loss(k).overlaps(loss(0))));
            assert!(quick || at(5).low > at(3).high);
        }
        chart = draw_spread(chart, &format!("learned at {lr}"), &line, 1.);
    }
    report.tolerance("merge", Some(0.3));
    let figure = chart.draw()?;
    report.figure("times", &figure)?;
    report.finish()?;
    // NOTEBOOK: figure

    Ok(())
}
