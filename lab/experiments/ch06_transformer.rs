//! Chapter 6, the Transformer: `cargo run -p downhill-lab --bin ch06_transformer`. With
//! `--out DIR` it writes the page's figures and numbers; `--quick` does less of
//! everything.
use downhill::nn::dropout::normal;
use downhill::plot::Chart;
use downhill::schedule::constant_with_warmup;
use downhill_lab::{Report, Spread, Text, by_seed, draw_spread};
use model::*;
use reader::{G, H, K, LAYERS, linear};
use std::time::Instant;
use tch::{Kind, Tensor, no_grad};

#[path = "ch06_transformer/drawings.rs"]
mod drawings;
#[path = "ch06_transformer/model.rs"]
mod model;
/// The reader's program, whose pieces are measured here.
#[path = "../../examples/ch06_transformer.rs"]
#[allow(dead_code)] // its `main`
mod reader;

/// Chapter 6, the Transformer: prints short tables, and asserts what the page claims.
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

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    tch::set_num_threads(1); // matrices this small are not worth sharing
    let mut report = Report::new("ch06_transformer", out)?;
    let text = Text::alice()?;
    let v = text.vocabulary();
    let seeds = seed..seed + if quick { 2 } else { 5 };
    drawings::all(&mut report)?;

    // The pieces make what the reader's program makes.
    let w = drawn(v, LAYERS, D, seed)?;
    let (x, _) = text.batch(seed, 0, false);
    let ours = forward(&w, WHOLE, &x, &mut |_| ());
    let theirs = linear(&reader::hidden(&w, &x), &w["lm_head"]);
    assert!(ours.equal(&theirs), "other pieces than the reader's");

    // CELL: A random start
    let blind = (v as f64).ln();
    let mut chart = Chart::new(
        "A wider head starts out worse than blind",
        "spread of the head's numbers",
        "first loss (nats)",
    );
    let spread = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.];
    let mut measured = vec![];
    println!("first loss by the spread of the head: measured, ln V + D s²/2");
    for s in spread {
        let losses = by_seed(1, seeds.clone(), |_, seed| {
            let mut w = drawn(v, LAYERS, D, seed)?;
            let head = w["lm_head"].detach() * (s / 0.02);
            w.insert("lm_head".into(), head);
            Ok(scored(&w, WHOLE, text.batch(seed, 0, false)).double_value(&[]))
        })?;
        let loss = Spread::of(losses[0].iter().copied());
        let theory = blind + D as f64 * s * s / 2.;
        println!("  {s:5} {loss:.3}, {theory:.3}");
        let key = format!("start.s{}", (s * 1000.) as i64);
        report.spread(&key, loss);
        report.number(&format!("{key}.theory"), theory);
        assert!(s != 0.02 || (loss.median / blind - 1.).abs() < 0.01, "{loss}");
        measured.push((s, loss));
    }
    let theory = spread.map(|s| (s, blind + D as f64 * s * s / 2.));
    chart = draw_spread(chart, "measured", &measured, 1.);
    chart = chart.dashed("ln V + D s²/2", theory[..7].to_vec());
    report.numbers("start", [("vocabulary", v as f64), ("blind", blind)]);
    report.figure("start", &chart.log_x().at_ends().draw()?)?;

    // CELL: Why the root of K
    let mut chart = Chart::new(
        "Without 1/√K the largest weight takes all",
        "K",
        "largest of 32 weights",
    );
    println!("spread of scores and largest of 32 weights, with 1/√K and without");
    let mut lines = [vec![], vec![]];
    for size in [4, 16, 64, 256] {
        let draw = |place| {
            let z = normal((64 * 32 * size) as usize, seed, place);
            Tensor::from_slice(&z).view([64, 32, size])
        };
        let raw = draw(0).matmul(&draw(1).transpose(1, 2));
        for (i, name) in ["with", "without"].into_iter().enumerate() {
            let scores = if i == 0 {
                &raw / (size as f64).sqrt()
            } else {
                raw.shallow_clone()
            };
            let p = scores.softmax(-1, Kind::Double);
            let largest =
                p.amax([-1].as_slice(), false).mean(Kind::Double).double_value(&[]);
            let left = 1. - (&p * &p).sum(Kind::Double).double_value(&[]) / 2048.;
            let std = scores.std(true).double_value(&[]);
            println!("  K {size:3} {name:8} {std:.2} {largest:.2} {left:.3}");
            report.numbers(
                &format!("scale.k{size}.{name}"),
                [("std", std), ("largest", largest), ("left", left)],
            );
            let root = if i == 0 { 1. } else { (size as f64).sqrt() };
            assert!((std / root - 1.).abs() < 0.05, "{std}");
            lines[i].push((size as f64, largest));
        }
    }
    let [with, without] = lines;
    chart = chart.line("with", with.clone()).points("", with);
    chart = chart.line("without", without.clone()).points("", without);
    report.figure("scale", &chart.log_x().y_range(0., 1.).at_ends().draw()?)?;

    // CELL: How deep the gradient reaches
    let mut chart = Chart::new(
        "Without the stream gradients grow from layer to layer",
        "layers",
        "gradient of the first layer / of the last",
    );
    println!("gradient of the first layer over that of the last, by depth");
    let depths = [2, 4, 8, 16];
    let mut deepest = vec![];
    for (key, name, pieces) in [
        ("whole", "whole", WHOLE),
        ("stream", "no stream", NO_STREAM),
        ("norm", "no norm", NO_NORM),
    ] {
        let ratios = by_seed(depths.len(), seeds.clone(), |i, seed| {
            let w = kept_in_size(&drawn(v, depths[i], D, seed)?);
            let loss = scored(&w, pieces, text.batch(seed, 0, false));
            loss.backward();
            let length = |layer: i64| {
                let g = w[&format!("{layer}.v")].grad();
                g.norm().double_value(&[])
            };
            Ok((length(0) / length(depths[i] - 1), loss.double_value(&[])))
        })?;
        let mut points = vec![];
        for (depth, ratios) in depths.iter().zip(&ratios) {
            let ratio = Spread::of(ratios.iter().map(|r| r.0));
            let first = Spread::of(ratios.iter().map(|r| r.1));
            println!("  {name:9} {depth:2} {ratio:.2}; first loss {first:.2}");
            report.spread(&format!("depth.{key}.l{depth}"), ratio);
            report.spread(&format!("depth.{key}.l{depth}.loss"), first);
            points.push((*depth as f64, ratio));
        }
        deepest.push(points[points.len() - 1].1);
        chart = draw_spread(chart, name, &points, 1.);
    }
    assert!(deepest[1].low > 5. * deepest[0].high, "{deepest:?}");
    assert!(deepest[2].low.is_infinite(), "no norm: {}", deepest[2]);
    report.tolerance("depth", Some(0.1));
    report.figure("depth", &chart.log_y().at_ends().draw()?)?;

    // CELL: What each part is for
    let steps = if quick { 40 } else { 120 };
    let rates = downhill_lab::grid(1e-3, 10f64.sqrt(), 4);
    // Each variant's rate is chosen on another seed than those that are reported.
    let count = rates.len();
    let choice = seeds.end..seeds.end + 1;
    let tried = by_seed(VARIANTS.len() * count, choice, |i, seed| {
        run(&text, VARIANTS[i / count].2, rates[i % count], steps, seed)
    })?;
    let best: Vec<usize> = tried
        .chunks(count)
        .map(|runs| {
            let medians: Vec<Spread> = runs
                .iter()
                .map(|r| Spread::of(r.iter().map(|d| d.held_out)))
                .collect();
            Spread::best(&medians)
        })
        .collect();
    let edge = |b: &usize| *b == 0 || *b == count - 1;
    assert!(quick || !best.iter().any(edge), "a best rate at the edge: {best:?}");
    let high = rates[best[0]] * 10f64.sqrt();
    let mut jobs: Vec<(Pieces, f64, i64)> =
        VARIANTS.iter().zip(&best).map(|(v, b)| (v.2, rates[*b], 0)).collect();
    jobs.push((LATE_MASK, rates[best[0]], 0));
    jobs.extend([(WHOLE, high, 0), (WHOLE, high, steps / 5)]);
    let done = by_seed(jobs.len(), seeds.clone(), |i, seed| {
        let (pieces, lr, warmup) = jobs[i];
        run(&text, pieces, constant_with_warmup(lr, warmup), steps, seed)
    })?;
    println!(
        "held-out loss after {steps} steps, best rate, median (range), seeds worse than whole"
    );
    let mut rows = vec![];
    let all = VARIANTS.iter().map(|v| (v.0, v.1)).chain([
        ("late", "mask off by one"),
        ("high", "high rate"),
        ("warm", "high rate, warmup"),
    ]);
    for (i, (key, name)) in all.enumerate() {
        let loss = Spread::of(done[i].iter().map(|d| d.held_out));
        // Where no mask is at fault the two are one.
        let leaks = ["mask", "late"].contains(&key);
        let told = |d: &Done| if leaks { d.honest } else { d.held_out };
        let honest = Spread::of(done[i].iter().map(told));
        let learned = Spread::of(done[i].iter().map(|d| d.learned));
        let pairs = done[i].iter().zip(&done[0]);
        let worse = pairs.filter(|(a, b)| told(a) > told(b)).count();
        assert!(quick || i == 0 || worse == done[0].len(), "{name} is not worse");
        assert!(quick || !leaks || loss.high < 1. && honest.low > text.entropy());
        println!(
            "  {name:18} {:.4} {loss:.3}; under the mask {honest:.3}; worse {worse}",
            jobs[i].1
        );
        report.spread(&format!("parts.{key}"), loss);
        report.spread(&format!("parts.{key}.honest"), honest);
        report.spread(&format!("parts.{key}.learned"), learned);
        report.numbers(
            &format!("parts.{key}"),
            [("rate", jobs[i].1), ("worse", worse as f64)],
        );
        if i < VARIANTS.len() && !leaks {
            rows.push((name, Vec::from_iter(done[i].iter().map(told))));
        }
    }
    let [high, warm] = [&done[7], &done[8]];
    let pairs = high.iter().zip(warm);
    let warm_better = pairs.filter(|(h, w)| w.held_out < h.held_out).count();
    println!("  the warmup is better in {warm_better}");
    report.numbers(
        "parts",
        [
            ("steps", steps as f64),
            ("seeds", done[0].len() as f64),
            ("warmup", (steps / 5) as f64),
            ("warm_better", warm_better as f64),
            ("letters", text.entropy()),
        ],
    );
    report.tolerance("parts", Some(0.1));
    report.figure("parts", &drawings::dots(&rows))?;

    // CELL: It learns to write
    // What the reader's program does: the same numbers, the same batches and draws.
    tch::manual_seed(0);
    let w = drawn(v, LAYERS, D, 0)?;
    let before = reader::write(&w, &text, "Alice ", 60);
    let long = if quick { 60 } else { 1200 };
    let losses = train(&w, WHOLE, 0.003, long, |step| text.batch(0, step, false));
    let after = reader::write(&w, &text, "Alice ", 200);
    let out = held_out(&text, &w, WHOLE, 0);
    println!("before: {before:?}\nafter {long} steps, loss {out:.2}: {after:?}");
    let sample = format!("before: {before:?}\n\nafter: {after}");
    report.text("sample", &wrapped(&sample))?;
    report.numbers(
        "writes",
        [("steps", long as f64), ("held_out", out), ("first", losses[0])],
    );
    report.tolerance("writes", Some(0.1));

    // CELL: What heads look at
    let mut seen = vec![];
    let (x, _) = text.batch(seed, 0, true);
    let _ = no_grad(|| {
        forward(&w, WHOLE, &x, &mut |p| {
            seen.push(p.mean_dim([0].as_slice(), false, None))
        })
    });
    println!(
        "where heads look, mean over held-out rows: itself, one before, further back"
    );
    let mut previous = (0, 0, 0.);
    for (layer, p) in seen.iter().enumerate() {
        for head in 0..H {
            let p = p.get(head).narrow(0, 2, 30);
            let at = |offset| {
                p.diagonal(offset, 0, 1).mean(Kind::Double).double_value(&[])
            };
            let (own, one) = (at(2), at(1));
            println!(
                "  layer {layer} head {head}: {own:.2} {one:.2} {:.2}",
                1. - own - one
            );
            report.numbers(
                &format!("heads.l{layer}h{head}"),
                [("own", own), ("one", one), ("back", 1. - own - one)],
            );
            if one > previous.2 {
                previous = (layer, head, one);
            }
        }
    }
    report.numbers(
        "heads.previous",
        [
            ("layer", previous.0 as f64 + 1.),
            ("head", previous.1 as f64 + 1.),
            ("share", previous.2),
        ],
    );
    report.tolerance("heads", Some(0.2));
    let sentence = "Alice was beginning";
    let ids = Tensor::from_slice(&text.encode(sentence)).unsqueeze(0);
    let mut seen = vec![];
    let _ = no_grad(|| forward(&w, WHOLE, &ids, &mut |p| seen.push(p.get(0))));
    report.figure("maps", &drawings::maps(sentence, &seen))?;

    // CELL: Order without positions
    let ids = text.encode("the cat sat on a mat");
    let mut shuffled = ids.clone();
    shuffled[..12].reverse();
    println!("how far the scores move when the first letters are turned around");
    for layers in [1, 2] {
        let w = kept_in_size(&drawn(v, layers, D, seed)?);
        let last = |ids: &[i64], pieces| {
            let ids = Tensor::from_slice(ids).unsqueeze(0);
            no_grad(|| forward(&w, pieces, &ids, &mut |_| ()).select(1, -1))
        };
        for (name, pieces) in [("places", NO_PLACES), ("whole", WHOLE)] {
            let moved = (last(&ids, pieces) - last(&shuffled, pieces))
                .abs()
                .max()
                .double_value(&[]);
            println!("  {layers} layers, {name}: {moved:.1e}");
            report.number(&format!("order.{name}.l{layers}"), moved);
            assert!((moved < 1e-5) == (layers == 1 && name == "places"), "{moved}");
        }
    }
    report.tolerance("order", Some(0.05));
    report.tolerance("order.places.l1", None); // rounding

    // CELL: One batch by heart
    let runs = by_seed(1, seeds.clone(), |_, seed| {
        let w = kept_in_size(&drawn(v, LAYERS, D, seed)?);
        let batch = || text.batch(seed, 0, false);
        let losses =
            train(&w, WHOLE, 0.003, if quick { 40 } else { 200 }, |_| batch());
        let there = losses.iter().position(|l| *l < 0.1).unwrap_or(losses.len());
        Ok((
            there as f64,
            losses[losses.len() - 1],
            held_out(&text, &w, WHOLE, seed),
        ))
    })?;
    let there = Spread::of(runs[0].iter().map(|r| r.0));
    let last = Spread::of(runs[0].iter().map(|r| r.1));
    let out = Spread::of(runs[0].iter().map(|r| r.2));
    println!(
        "one batch by heart: below 0.1 after {there:.0} steps, {last:.4} at the end, held out {out:.2}"
    );
    report.spread("heart.there", there);
    report.spread("heart.last", last);
    report.spread("heart.held_out", out);
    report.tolerance("heart", Some(0.3));
    assert!(quick || last.high < 0.1 && out.low > blind);

    // CELL: What it costs
    println!("width, parameters, MFLOP a step, ms, GFLOP/s");
    for width in [64, 128, 256] {
        let w = drawn(v, LAYERS, width, seed)?;
        let found: usize = w.values().map(Tensor::numel).sum();
        let (h, g, f) = (width / K, width / K / 2, width * 11 / 4);
        let layer = 2 * width * K * (h + g) + 3 * width * f;
        let counted = 2 * v * width + width + LAYERS * (layer + 2 * width);
        assert_eq!(found as i64, counted, "parameters");
        let (rows, letters) = (8, 32);
        let products = 6 * (v * width + LAYERS * layer);
        let looking = 12 * LAYERS * h * K * letters;
        let flop = (rows * letters * (products + looking)) as f64;
        let mut ms = f64::INFINITY;
        for step in 0..8 {
            let began = Instant::now();
            train(&w, WHOLE, 0.001, 1, |_| text.batch(seed, step, false));
            ms = ms.min(1e3 * began.elapsed().as_secs_f64());
        }
        let rate = flop / ms / 1e6;
        println!("  {width:3} {counted:8} {:6.0} {ms:6.2} {rate:.1}", flop / 1e6);
        let key = format!("cost.d{width}");
        let feed = (LAYERS * 3 * width * f) as f64 / counted as f64;
        report.numbers(
            &key,
            [
                ("parameters", counted as f64),
                ("mflop", flop / 1e6),
                ("feed", feed),
                ("looking", looking as f64 / (products + looking) as f64),
            ],
        );
        report.numbers(&format!("{key}.time"), [("ms", ms), ("gflops", rate)]);
        report.tolerance(&format!("{key}.time"), None);
    }
    assert_eq!((H, G), (D / K, D / K / 2));
    report.finish()?;
    Ok(())
}
