//! Chapter 14, NF4: `cargo run --example ch14_nf4`. With `--out DIR` it writes the
//! page's figures and numbers; `--quick` does less of everything.
use downhill::nn::{Linear, Mode, Weight, dropout::normal};
use downhill::plot::{Chart, panels};
use downhill::quant::{Absmax, BLOCKSIZES, Nf4Tensor, double, nf4};
use downhill_lab::codes::{
    Code, bits, by, error, kept, normal_float, outliers, placed, relative_error,
    scaled,
};
use downhill_lab::normality::{against_normal, excess_kurtosis, jarque_bera};
use downhill_lab::{Report, Shipped, Spread, codes::Rounding, peak};
use std::time::Instant;
use tch::{Kind, Tensor, no_grad};

// NOTEBOOK: skip
#[derive(clap::Parser)]
struct Args {
    /// Where to write the figures and the numbers.
    #[arg(long)]
    out: Option<std::path::PathBuf>,
    /// Seed of the normal draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Fewer placings of the blocks.
    #[arg(long)]
    quick: bool,
}
// NOTEBOOK: end

const MIB: f64 = 1024. * 1024.;

/// N(0, 1), a matrix.
fn draws(rows: i64, columns: i64, seed: u64) -> Tensor {
    let n = (rows * columns) as usize;
    Tensor::from_slice(&normal(n, seed, 13)).view([rows, columns])
}

// ANCHOR: through
/// Through the real thing: quantized, and dequantized again.
fn through(double_quant: bool) -> Rounding {
    Box::new(move |w, size| {
        let q = Nf4Tensor::quantize(w, size as usize, double_quant)?;
        Ok(q.dequantize(Kind::Float))
    })
}
// ANCHOR_END: through

// ANCHOR: stack
/// Forward and backward through 4-bit layers. `recorded` is the trap: the dequantized
/// weight as an operand like any other, which libtorch keeps for backward.
fn pass(stack: &[Linear], recorded: bool) -> downhill::Result<()> {
    let mut x = draws(4, stack[0].weight.shape()[1], 1).set_requires_grad(true);
    for layer in stack {
        let y = match &layer.weight {
            Weight::Nf4(q) if recorded => {
                x.linear(&q.dequantize(Kind::Float), None::<&Tensor>)
            }
            _ => layer.forward(&x, Mode::Eval)?,
        };
        x = &x + y.tanh();
    }
    x.sum(Kind::Float).backward();
    Ok(())
}
// ANCHOR_END: stack

/// GiB of the linear layers of deepseek-llm-7b.
fn gib(bits: f64) -> f64 {
    30. * (4. * 4096. * 4096. + 3. * 4096. * 11008.) * bits / 8. / 1024. / MIB
}

/// The shortest of some runs, in seconds.
fn seconds<T>(mut f: impl FnMut() -> downhill::Result<T>) -> downhill::Result<f64> {
    (0..20).try_fold(f64::INFINITY, |best, _| {
        let began = Instant::now();
        f()?;
        Ok(best.min(began.elapsed().as_secs_f64()))
    })
}

/// Each level of a code with the share of these weights that takes it.
fn used(code: &Code, all: &[Tensor], size: i64) -> Vec<(f64, f64)> {
    code.levels.iter().copied().zip(code.shares(all, size)).collect()
}

/// Bits per weight: a scale of 32 bits per block, or one of 8 and a part of a second.
fn cost(double_quant: bool, size: f64) -> f64 {
    4. + if double_quant { 8. / size + 32. / (256. * size) } else { 32. / size }
}

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 0;
    // NOTEBOOK: let quick: bool = true;
    // CELL: From quantiles to sixteen levels
    let mut report = Report::new("ch14_nf4", out)?;
    let offset: f64 = 1. - (1. / 32. + 1. / 30.) / 2.;
    let levels: Vec<f64> = normal_float(offset);
    let off: f64 = (0..16)
        .map(|i| (levels[i] - f64::from(nf4::CODE[i])).abs())
        .fold(0., f64::max);
    println!("offset {offset:.7}: the levels are bitsandbytes' to {off:.1e}");
    report.number("levels.off", off);
    report.tolerance("levels.off", Some(0.2));
    assert!((offset - 0.9677083).abs() < 5e-8 && off < 3e-7, "{offset} {off}");
    let nf4: Code = Code::nearest(&levels);
    let mut shipped: Shipped = Shipped::load()?;
    let (names, weights): (Vec<String>, Vec<Tensor>) =
        shipped.weights().into_iter().unzip();
    let count: f64 = weights.iter().map(|w| w.numel() as f64).sum();
    report.numbers("linears", [("layers", names.len() as f64), ("weights", count)]);
    // Where the weights lie in their blocks: shares of 64 bins.
    let middles: Vec<f64> =
        (0..64).map(|i| f64::from(i) / 32. - 63. / 64.).collect();
    let bins: Code = Code::nearest(&middles);
    let chance: [Tensor; 1] = [draws(20_480, 64, seed)];
    let title = "Weights in blocks of 64, and the levels for them";
    let mut chart = Chart::new(title, "weight / largest of its block", "share")
        .line("trained weights", used(&bins, &weights, 64))
        .dashed("normal draws", used(&bins, &chance, 64));
    let rows = [("NF4", nf4.clone()), ("FP4", Code::fp4()), ("int4", Code::int4())];
    for (i, (name, code)) in rows.into_iter().enumerate() {
        let y = -0.003 * (i + 1) as f64;
        chart = chart.points(name, code.levels.iter().map(|x| (*x, y)).collect());
    }
    let figure = chart.y_range(-0.011, 0.045).draw()?;
    report.figure("", &figure)?;
    // NOTEBOOK: figure

    // CELL: How normal the weights are
    println!("share of rows that fail a test which 5 % of normal rows fail");
    for part in ["q", "k", "v", "o", "gate", "up", "down"] {
        let mine = |name: &&String| name.ends_with(&format!(".{part}_proj"));
        let mine = names.iter().zip(&weights).filter(|(name, _)| mine(name));
        let stats: Vec<Tensor> = mine.clone().map(|(_, w)| jarque_bera(w)).collect();
        let width = mine.map(|(_, w)| w.size()[1]).next().unwrap_or(1);
        let normal = jarque_bera(&draws(4000, width, seed + 1));
        let limit = normal.quantile_scalar(0.95, 0, false, "linear");
        let fail = Tensor::cat(&stats, 0).gt_tensor(&limit);
        let share = fail.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        println!("  {part:5} {share:.2}");
        report.number(&format!("rows.{part}"), share);
    }
    report.tolerance("rows", Some(0.05));
    let heaviest: f64 = weights.iter().map(excess_kurtosis).fold(0., f64::max);
    report.number("tails", heaviest);
    let mut chart = Chart::new("Sorted weights", "normal quantile", "theirs, in σ");
    for w in &weights {
        chart = chart.faint(against_normal(w));
    }
    let line = vec![(-3.5, -3.5), (3.5, 3.5)];
    let figure =
        chart.dashed("a normal distribution", line).y_range(-4., 5.).draw()?;
    report.figure("normal", &figure)?;
    // NOTEBOOK: figure

    // CELL: The error, by block
    println!("error / weights in blocks of 64 and of 4096");
    let mut by_size =
        Chart::new("By block", "weights per block", "error / weights").log_x();
    let mut by_cost = Chart::new("By cost", "bits per weight", "error / weights");
    for (key, name, round) in [
        ("nf4", "NF4", through(false)),
        ("double", "NF4, double quantization", through(true)),
        ("int4", "int4", by(&Code::int4())),
        ("fp4", "FP4", by(&Code::fp4())),
    ] {
        let (mut line, mut costs) = (vec![], vec![]);
        for size in BLOCKSIZES {
            let e = error(&weights, &round, size as i64)?;
            report.number(&format!("error.{key}.b{size}"), e);
            line.push((size as f64, e));
            costs.push((cost(key == "double", size as f64), e));
        }
        println!("  {name:24} {:.4} {:.4}", line[1].1, line[7].1);
        by_size = by_size.line(name, line);
        by_cost = by_cost.line(name, costs.clone()).points("", costs);
    }
    let (plain, short): (f64, f64) = (cost(false, 64.), cost(true, 64.));
    report.numbers("bits", [("plain", plain), ("double", short)]);
    report.number("bits.plain256", cost(false, 256.));
    report.numbers("gib", [("bf16", gib(16.)), ("double", gib(short))]);
    report.number("gib.saved", gib(plain - short));
    let both = [by_size, by_cost.x_range(3.95, 5.05)];
    let figure = panels(&both.map(|c| c.y_range(0.08, 0.2)), 2)?;
    report.figure("error", &figure)?;
    // NOTEBOOK: figure

    // CELL: What it does to the loss
    let values = scaled(&chance[0], 64);
    let ends: fn(f64) -> bool = |x| x == 0. || x.abs() == 1.;
    let best: Code = Code::lloyd(&levels, &values, |_| false);
    let pinned: Code = Code::lloyd(&levels, &values, ends);
    let absolute: Code = Code::lloyd_absolute(&levels, &values, ends);
    let equal: Code = Code::equal_use(16, &values);
    let shifts: i64 = if quick { 2 } else { 5 };
    let [before, _]: [f64; 2] = shipped.judge()?;
    report.numbers("loss", [("f32", before), ("placings", shifts as f64)]);
    println!("loss {before:.4} in f32; divergence, and what is added");
    let mut far: Vec<Spread> = vec![];
    for (key, round) in [
        ("nf4", through(false)),
        ("double", through(true)),
        ("int4", by(&Code::int4())),
        ("fp4", by(&Code::fp4())),
        ("best", by(&best)),
        ("pinned", by(&pinned)),
        ("absolute", by(&absolute)),
        ("equal", by(&equal)),
    ] {
        let mut all: Vec<[f64; 2]> = vec![];
        for shift in 0..shifts {
            for (w, (_, linear)) in weights.iter().zip(shipped.model.linears_mut()) {
                linear.weight = Weight::Dense(placed(&round, w, 13 * shift)?);
            }
            all.push(shipped.judge()?);
        }
        let loss = Spread::of(all.iter().map(|[loss, _]| loss - before));
        let divergence = Spread::of(all.iter().map(|[_, far]| *far));
        println!("  {key:7} {divergence:.4}  {loss:.4}");
        report.spread(&format!("loss.{key}"), loss);
        report.spread(&format!("loss.{key}.far"), divergence);
        far.push(divergence);
    }
    report.tolerance("loss", Some(0.1));
    assert!(far[0].high < far[2].low && far[2].high < far[3].low, "{far:?}");
    // The head, which is the embedding here, in four bits as well.
    for (w, (_, linear)) in weights.iter().zip(shipped.model.linears_mut()) {
        linear.weight = Weight::Nf4(Nf4Tensor::quantize(w, 64, true)?);
    }
    let [_, body]: [f64; 2] = shipped.judge()?;
    let (_, mut head): (String, Tensor) = shipped.model.named_parameters().remove(0);
    no_grad(|| head.copy_(&nf4.round(&head, 64)));
    let [_, all]: [f64; 2] = shipped.judge()?;
    println!("  linears {body:.4}, with the head {all:.4}");
    report.numbers("head", [("body", body), ("all", all)]);
    report.tolerance("head", Some(0.1));

    // CELL: The memory trap
    // Above 32 MiB each, so that malloc gives freed ones back at once.
    let w: Tensor = draws(3072, 3072, seed) * 0.02;
    let one: f64 = w.numel() as f64 * 4. / MIB;
    let mut chart = Chart::new("Peak memory, above the model", "layers", "MiB");
    for (key, name, recorded) in [
        ("again", "dequantized again in backward", false),
        ("kept", "recorded as plain operations", true),
    ] {
        let mut line: Vec<(f64, f64)> = vec![];
        for depth in [2, 4, 6, 8] {
            let mut stack: Vec<Linear> = vec![];
            for _ in 0..depth {
                let q = Weight::Nf4(Nf4Tensor::quantize(&w, 64, true)?);
                stack.push(Linear { weight: q, bias: None, lora: None });
            }
            pass(&stack[..1], recorded)?; // what is set up once
            let bytes = peak(|| pass(&stack, recorded))?.unwrap_or(f64::NAN);
            line.push((depth as f64, bytes / MIB));
            report.number(&format!("memory.{key}.d{depth}"), bytes / MIB);
        }
        let slope = (line[3].1 - line[0].1) / 6.;
        println!("{name}: {slope:.1} MiB a layer, {line:.1?}");
        report.number(&format!("memory.{key}.slope"), slope);
        assert!(slope.is_nan() || (slope > 0.9 * one) == recorded, "{slope}");
        chart = chart.line(name, line.clone()).points("", line);
    }
    report.number("memory.weight", one);
    report.tolerance("memory", None); // malloc may have room for one left
    let figure = chart.y_range(-10., 400.).draw()?;
    report.figure("memory", &figure)?;
    // NOTEBOOK: figure

    // CELL: The speed of it
    let threads = tch::get_num_threads();
    tch::set_num_threads(1);
    let w: Tensor = draws(2048, 4096, seed);
    let q: Nf4Tensor = Nf4Tensor::quantize(&w, 64, true)?;
    let mut room: Tensor = w.zeros_like();
    let gigabytes: f64 = w.numel() as f64 * 4. / 1e9;
    let fill: f64 = gigabytes / seconds(|| Ok(room.fill_(1.5)))?;
    let from: f64 = gigabytes / seconds(|| q.dequantize_into(&room))?;
    println!("GB/s written: filling {fill:.1}, dequantizing {from:.1}");
    report.numbers("speed", [("fill", fill), ("from", from)]);
    for tokens in [1, 64] {
        let x = draws(tokens, 4096, seed);
        let dense = || Ok(no_grad(|| x.linear(&w, None::<&Tensor>)));
        let (f32, four) = (seconds(dense)?, seconds(|| q.matmul_t(&x))?);
        println!("  {tokens} tokens: NF4 takes {:.2} times as long", four / f32);
        report.number(&format!("speed.t{tokens}"), four / f32);
    }
    tch::set_num_threads(threads);
    report.tolerance("speed", None);

    // CELL: What goes wrong
    let mut chart = Chart::new("One weight grows", "its size, σ", "error of others");
    for (key, name, size, code) in [
        ("nf4", "NF4, block of 64", 64, nf4.clone()),
        ("long", "NF4, block of 1024", 1024, nf4.clone()),
        ("int4", "int4, block of 64", 64, Code::int4()),
        ("fp4", "FP4, block of 64", 64, Code::fp4()),
    ] {
        let line = outliers(&code, &draws((1 << 17) / size, size, seed + 2));
        let [near, far] = [0, 16].map(|i: usize| line[i].1);
        println!("  {name:20} {near:.3} at 3 σ, {far:.3} at 30 σ");
        report.numbers(&format!("outlier.{key}"), [("x3", near), ("x30", far)]);
        chart = chart.line(name, line);
    }
    let figure = chart.log_x().y_range(0., 1.5).draw()?;
    report.figure("outlier", &figure)?;
    // Blocks of zeros among others, plain and with quantized scales.
    let w = draws(64, 4096, seed);
    let _ = w.narrow(0, 0, 8).fill_(0.);
    for (key, double_quant) in [("plain", false), ("double", true)] {
        let back = through(double_quant)(&w, 64)?.narrow(0, 0, 8);
        let low = back.min().double_value(&[]);
        println!("zeros come back as {low:.3} σ, {key} scales");
        report.number(&format!("zeros.{key}"), low);
        assert!((low == 0.) == (key == "plain"));
    }
    // The scales again, with one rounding instead of two.
    let (mut differ, mut scales) = (0., 0.);
    let mut back: Vec<Tensor> = vec![];
    for w in &weights {
        let q = Nf4Tensor::quantize(w, 64, true)?;
        back.push(q.dequantize(Kind::Float));
        let Absmax::Double { codes, nested_absmax, code, offset } =
            q.stored_absmax()
        else {
            continue;
        };
        // In f64 nothing is rounded before the end.
        let [nested, code] = [nested_absmax, code].map(|t| t.to_kind(Kind::Double));
        let fused = double::decode(codes, &nested, &code, *offset);
        let off = fused.to_kind(Kind::Float).ne_tensor(&q.absmax());
        differ += off.sum(Kind::Double).double_value(&[]);
        scales += off.numel() as f64;
    }
    println!("with fused multiply-add {differ} of {scales} scales differ");
    report.numbers("fma", [("share", differ / scales), ("scales", scales)]);
    report.tolerance("fma", Some(0.1));
    // Quantized twice, in ways that look harmless.
    for (key, double_quant, size) in
        [("same", false, 64), ("double", true, 64), ("other", false, 128)]
    {
        let added = error(&back, &through(double_quant), size)?;
        println!("quantized again, {key}: {added:.1e} on top");
        report.number(&format!("twice.{key}"), added);
    }
    report.tolerance("twice", Some(0.1));
    // An update a hundredth as large as the weights, merged and quantized again.
    let w: Tensor = weights[0].shallow_clone(); // a square one
    let base: Tensor = through(false)(&w, 64)?;
    let side: i64 = w.size()[0];
    let update: Tensor = draws(side, 8, seed).matmul(&draws(8, side, seed + 3));
    let update: Tensor = &update * (w.norm() / update.norm() * 0.01);
    for (key, under) in [("four", &base), ("whole", &w)] {
        let merged = through(false)(&(under + &update), 64)?;
        let share = kept(&update, &merged, &through(false)(under, 64)?);
        println!("{share:.2} of an update stays, merged into {key}");
        report.number(&format!("merge.{key}"), share);
        assert!((share > 0.5) == (key == "whole"), "{share}");
    }
    report.tolerance("merge", Some(0.1));
    // NOTEBOOK: figure

    // CELL: Check the folklore
    println!("error on normal draws (squared, absolute), on weights; bits of 4");
    let long: Code = Code::lloyd(&levels, &scaled(&chance[0], 4096), |_| false);
    for (key, code, size) in [
        ("nf4", nf4.clone(), 64),
        ("af4", Code::af4(), 64),
        ("pinned", pinned, 64),
        ("absolute", absolute, 64),
        ("best", best, 64),
        ("equal", equal, 64),
        ("nf4long", nf4.clone(), 4096),
        ("bestlong", long, 4096),
    ] {
        let draws = relative_error(&chance[0], &code.round(&chance[0], size));
        let mean = code.absolute_error(&chance[0], size);
        let weights = error(&weights, &by(&code), size)?;
        let carried = bits(&code.shares(&chance, size));
        println!("  {key:8} {draws:.4}  {mean:.5}  {weights:.4}  {carried:.3}");
        let key = format!("codes.{key}");
        report.numbers(&key, [("draws", draws), ("weights", weights)]);
        report.numbers(&key, [("bits", carried), ("mean", mean)]);
    }
    let figure = Chart::new("How often NF4 uses its levels", "level", "share")
        .line("trained weights, blocks of 64", used(&nf4, &weights, 64))
        .dashed("normal draws, blocks of 64", used(&nf4, &chance, 64))
        .dashed("normal draws, blocks of 4096", used(&nf4, &chance, 4096))
        .faint(vec![(-1., 1. / 16.), (1., 1. / 16.)])
        .y_range(0., 0.18)
        .draw()?;
    report.figure("use", &figure)?;
    report.finish()?;
    // NOTEBOOK: figure

    Ok(())
}
