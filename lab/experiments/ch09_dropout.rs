//! Chapter 9, dropout: `cargo run --example ch09_dropout`. With `--out DIR` it writes
//! the page's figures and numbers; `--quick` does less of everything.
use downhill::models::Decoder;
use downhill::nn::Mode;
use downhill::nn::dropout::{Rates, dropout};
use downhill::optim::{Adam, Driver, Optimizer, Param};
use downhill::plot::Chart;
use downhill_lab::{Report, Spread, Text, by_seed, draw_spread};
use std::ops::Range;
use tch::{Device, Kind, Tensor, no_grad};

// NOTEBOOK: skip
/// Chapter 9, dropout: prints short tables, and asserts what the page claims.
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

/// The learning rate of all that is compared, and a lower one, to see what it decides.
const RATE: f64 = 3e-3;
const LOWER: f64 = 1e-3;
/// Steps between two looks at the held-out text.
const EVERY: i64 = 50;

/// A run's losses, on what was learned and on held-out text, every `EVERY` steps.
struct Curve {
    learned: Vec<f64>,
    held_out: Vec<f64>,
    model: Decoder,
}

// ANCHOR: look
/// Mean loss over eight batches.
fn look(
    text: &Text,
    model: &Decoder,
    held_out: bool,
    mode: Mode,
) -> downhill::Result<f64> {
    no_grad(|| {
        let loss = |i| text.loss_in(model, text.batch(99, i, held_out), mode);
        let all = (0..8).map(loss).collect::<downhill::Result<Vec<_>>>()?;
        Ok(Tensor::stack(&all, 0).mean(Kind::Double).double_value(&[]))
    })
}

/// Trains by Adam, and looks; with new masks at every step, or those of the first.
fn run(
    text: &Text,
    steps: i64,
    seed: u64,
    counted: bool,
    rate: f64,
) -> downhill::Result<Curve> {
    let model = text.model(seed)?;
    let params = Param::with_decay(model.named_parameters(), |_, _| 0.);
    let mut optimizer = Driver::new(Adam::default(), params);
    let (mut learned, mut held_out) = (vec![], vec![]);
    for step in 0..=steps {
        if step % EVERY == 0 {
            learned.push(look(text, &model, false, Mode::Eval)?);
            held_out.push(look(text, &model, true, Mode::Eval)?);
        }
        let drawn = if counted { step as u64 } else { 0 };
        let mode = Mode::Train { seed, step: drawn };
        optimizer.zero_grad();
        text.loss_in(&model, text.batch(seed, step, false), mode)?.backward();
        optimizer.step(rate);
    }
    Ok(Curve { learned, held_out, model })
}
// ANCHOR_END: look

/// Dropout of the same rate at all three places.
fn everywhere(p: f64) -> Rates {
    Rates { embedding: p, attention: p, residual: p }
}

/// Runs of several seeds for each of several texts, which differ in their dropout.
fn runs(
    texts: &[Text],
    steps: i64,
    seeds: Range<u64>,
    counted: bool,
    rate: f64,
) -> downhill::Result<Vec<Vec<Curve>>> {
    by_seed(texts.len(), seeds, |i, seed| run(&texts[i], steps, seed, counted, rate))
}

/// Losses of several seeds over the steps.
fn over(curves: &[Curve], losses: fn(&Curve) -> &Vec<f64>) -> Vec<(f64, Spread)> {
    let at = |look: usize| Spread::of(curves.iter().map(|c| losses(c)[look]));
    let looks = 0..losses(&curves[0]).len();
    looks.map(|look| ((look as i64 * EVERY) as f64, at(look))).collect()
}

/// Held-out losses at the end.
fn held(curves: &[Curve]) -> Spread {
    Spread::of(curves.iter().filter_map(|c| c.held_out.last().copied()))
}

/// The lowest held-out loss of each run.
fn lowest(curves: &[Curve]) -> Spread {
    let low = |c: &Curve| c.held_out.iter().copied().fold(f64::INFINITY, f64::min);
    Spread::of(curves.iter().map(low))
}

/// After how many steps that was.
fn turned(curves: &[Curve]) -> Spread {
    let at = |c: &Curve| {
        let looks = 0..c.held_out.len();
        let order = |i: &usize, j: &usize| c.held_out[*i].total_cmp(&c.held_out[*j]);
        (looks.min_by(order).unwrap_or_default() as i64 * EVERY) as f64
    };
    Spread::of(curves.iter().map(at))
}

/// Held-out loss of the mean prediction of 1, 4, 16, 64 nets under masks.
fn committee(text: &Text, model: &Decoder) -> downhill::Result<Vec<f64>> {
    no_grad(|| {
        let (x, y) = text.batch(99, 0, true);
        let mut sum = Tensor::zeros(
            [y.size()[0], text.vocabulary()],
            (Kind::Float, Device::Cpu),
        );
        let mut losses = vec![];
        for k in 1..=64 {
            let mode = Mode::Train { seed: 1, step: k };
            let logits = model.logits(&model.hidden(&x, mode, None)?)?;
            sum += logits.flatten(0, 1).softmax(-1, Kind::Float);
            if [1, 4, 16, 64].contains(&k) {
                let p = (&sum / k as f64).gather(1, &y.unsqueeze(1), false);
                losses.push(-p.log().mean(Kind::Double).double_value(&[]));
            }
        }
        Ok(losses)
    })
}

/// Held-out loss if nobody says that this is evaluation.
fn forgotten(text: &Text, curves: &[Curve]) -> downhill::Result<Spread> {
    let mode = Mode::Train { seed: 7, step: 0 };
    let look = |c: &Curve| look(text, &c.model, true, mode);
    let all = curves.iter().map(look).collect::<downhill::Result<Vec<_>>>()?;
    Ok(Spread::of(all))
}

/// The gradient of a loss under the masks of step 0, when backward computes the layers
/// again under those of `step`: dL/dh comes from the one, dh/dθ from the other.
fn gradient(text: &Text, model: &Decoder, step: u64) -> downhill::Result<Tensor> {
    let (x, y) = text.batch(5, 0, false);
    let hidden = |step| model.hidden(&x, Mode::Train { seed: 5, step }, None);
    let h = hidden(0)?.detach().set_requires_grad(true);
    let logits = model.logits(&h)?.flatten(0, 1);
    let dh = Tensor::run_backward(
        &[logits.cross_entropy_for_logits(&y)],
        &[&h],
        false,
        false,
    );
    let theta = model.named_parameters();
    let theta: Vec<&Tensor> = theta
        .iter()
        .filter(|(n, _)| n != "lm_head.weight")
        .map(|(_, t)| t)
        .collect();
    let sum = (hidden(step)? * &dh[0]).sum(Kind::Float);
    let all = Tensor::run_backward(&[sum], &theta, false, false);
    Ok(Tensor::cat(&all.iter().map(|g| g.flatten(0, -1)).collect::<Vec<_>>(), 0))
}

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 0;
    // NOTEBOOK: let quick: bool = true;
    // CELL: The masks
    let mut report = Report::new("ch09_dropout", out)?;
    let ones: Tensor = Tensor::ones([1_000_000], (Kind::Float, Device::Cpu));
    let mask: Tensor = dropout(&ones, 0.3, Mode::Train { seed, step: 1 }, 0);
    let zeros: f64 = mask.eq(0.).to_kind(Kind::Double).mean(None).double_value(&[]);
    let others: [(&str, Tensor); 3] = [
        ("step", dropout(&ones, 0.3, Mode::Train { seed, step: 2 }, 0)),
        ("place", dropout(&ones, 0.3, Mode::Train { seed, step: 1 }, 1)),
        ("neighbour", mask.roll([1], [0])),
    ];
    println!("zeros in a million draws at 0.3: {zeros:.4}; mean {:.4}", {
        mask.mean(Kind::Double).double_value(&[])
    });
    report.number("masks.zeros", zeros);
    report.number("masks.mean", mask.mean(Kind::Double).double_value(&[]));
    for (name, other) in &others {
        let pair = Tensor::stack(&[&mask, other], 0).corrcoef();
        let r = pair.double_value(&[0, 1]);
        println!("  correlation with another {name}: {r:+.4}");
        report.number(&format!("masks.{name}"), r);
        assert!(r.abs() < 5e-3); // five standard deviations of a million draws
    }
    report.tolerance("masks", None);
    // CELL: Little text
    let seeds: Range<u64> = seed..seed + if quick { 2 } else { 5 };
    let characters: usize = 2_000;
    let steps: i64 = if quick { 100 } else { 300 };
    let little: Text = Text::alice()?.with_first(characters);
    const RATES: [f64; 4] = [0., 0.1, 0.3, 0.5];
    let texts: Vec<Text> =
        RATES.iter().map(|p| little.with_dropout(everywhere(*p))).collect();
    let all: Vec<Vec<Curve>> = runs(&texts, steps, seeds.clone(), true, RATE)?;
    let mut chart = Chart::new(
        &format!("{characters} characters of a book: held-out loss"),
        "step",
        "loss (nats)",
    )
    .y_range(1., 5.5);
    println!(
        "{characters} characters, {steps} steps: loss on them, held out, lowest"
    );
    for (p, curves) in RATES.iter().zip(&all) {
        let curve = over(curves, |c| &c.held_out);
        let learned = over(curves, |c| &c.learned)[curve.len() - 1].1;
        let held_out = held(curves);
        println!("  {p:.1} {learned:.2}, {held_out:.2}, {:.2}", lowest(curves));
        let key = format!("little.p{}", (10. * p) as i64);
        report.spread(&format!("{key}.learned"), learned);
        report.spread(&format!("{key}.held_out"), held_out);
        report.spread(&format!("{key}.lowest"), lowest(curves));
        chart = draw_spread(chart, &format!("p = {p}"), &curve, 1.);
    }
    let sizes: [f64; 2] = [characters as f64, steps as f64];
    report.numbers("little", [("characters", sizes[0]), ("steps", sizes[1])]);
    // Eight rows of 32 characters in a batch.
    report.number("little.times", 256. * sizes[1] / sizes[0]);
    report.spread("little.turned", turned(&all[0]));
    report.tolerance("little", Some(0.05));
    for p in [0, 2] {
        let name = ["learned, p = 0", "", "learned, p = 0.3"][p];
        let line = over(&all[p], |c| &c.learned);
        chart =
            chart.dashed(name, line.iter().map(|(t, s)| (*t, s.median)).collect());
    }
    let plain: Spread = held(&all[0]);
    let dropped: Spread = held(&all[2]);
    assert!(quick || dropped.high < plain.low, "{dropped} and {plain}");
    let figure = chart.draw()?;
    report.figure("", &figure)?;
    // NOTEBOOK: figure
    // CELL: Much text
    let whole: Text = Text::alice()?;
    let texts: Vec<Text> = RATES.map(|p| whole.with_dropout(everywhere(p))).into();
    println!("the whole book, {} steps: held-out loss", steps / 2);
    let book: Vec<Vec<Curve>> = runs(&texts, steps / 2, seeds.clone(), true, RATE)?;
    let mut lines: [Vec<(f64, Spread)>; 3] = [vec![], vec![], vec![]];
    for ((p, curves), little) in RATES.iter().zip(&book).zip(&all) {
        let held_out = held(curves);
        println!("  {p:.1} {held_out:.2}");
        report.spread(&format!("book.p{}", (10. * p) as i64), held_out);
        lines[0].push((*p, held(little)));
        lines[1].push((*p, lowest(little)));
        lines[2].push((*p, held_out));
    }
    report.number("book.steps", (steps / 2) as f64);
    report.tolerance("book", Some(0.05));
    let on_book: Vec<Spread> = lines[2].iter().map(|(_, s)| *s).collect();
    let rising: bool = on_book.windows(2).all(|w| w[0].median < w[1].median);
    assert!(quick || rising && on_book[0].high < on_book[2].low, "{on_book:?}");
    let mut chart =
        Chart::new("By dropout rate", "p", "held-out loss (nats)").y_range(2.1, 3.6);
    let names: [&str; 3] =
        ["little text, at the end", "at its lowest", "whole book"];
    for (name, line) in names.into_iter().zip(&lines) {
        chart = draw_spread(chart, name, line, 1.);
    }
    let figure = chart.draw()?;
    report.figure("rates", &figure)?;
    // NOTEBOOK: figure

    // CELL: At a lower learning rate
    println!("rate {LOWER}: held-out loss without dropout and with 0.3");
    for (key, text, steps) in
        [("little", &little, steps), ("book", &whole, steps / 2)]
    {
        let pair: Vec<Text> =
            [0., 0.3].map(|p| text.with_dropout(everywhere(p))).into();
        let found = runs(&pair, steps, seeds.clone(), true, LOWER)?;
        let [none, some] = [0, 1].map(|k| held(&found[k]));
        println!("  {key:6} {none:.2}, {some:.2}");
        report.spread(&format!("other.{key}.none"), none);
        report.spread(&format!("other.{key}.some"), some);
        // On the little text it helps, on the book it costs, as at the usual rate.
        let helps = some.high < none.low;
        let costs = none.high < some.low;
        assert!(quick || if key == "little" { helps } else { costs }, "{key}");
    }
    report.numbers("other", [("rate", LOWER), ("usual", RATE)]);
    report.tolerance("other", Some(0.05));
    // CELL: Where to drop
    const PLACES: [(&str, Rates); 3] = [
        ("embedding", Rates { embedding: 0.3, attention: 0., residual: 0. }),
        ("attention", Rates { embedding: 0., attention: 0.3, residual: 0. }),
        ("residual", Rates { embedding: 0., attention: 0., residual: 0.3 }),
    ];
    let texts: Vec<Text> =
        PLACES.iter().map(|(_, rates)| little.with_dropout(*rates)).collect();
    println!("0.3 at one place: held-out loss at the end, and at its lowest");
    let places: Vec<Vec<Curve>> = runs(&texts, steps, seeds.clone(), true, RATE)?;
    for ((name, _), curves) in PLACES.iter().zip(&places) {
        let (held_out, lowest) = (held(curves), lowest(curves));
        println!("  {name:9} {held_out:.2}, {lowest:.2}");
        report.spread(&format!("places.{name}.held_out"), held_out);
        report.spread(&format!("places.{name}.lowest"), lowest);
    }
    report.tolerance("places", Some(0.05));
    let at_end: Vec<f64> = places.iter().map(|c| held(c).median).collect();
    let lows: Vec<f64> = places.iter().map(|c| lowest(c).median).collect();
    // Each alone brings more than half; the attention's brings most, also at its lowest;
    // the residual one least.
    let half: f64 = (plain.median + dropped.median) / 2.;
    assert!(quick || at_end.iter().all(|l| *l < half), "{at_end:?}");
    assert!(quick || at_end[1] < at_end[0] && at_end[0] < at_end[2], "{at_end:?}");
    assert!(quick || lows[1] < lowest(&all[0]).median && lows[0] < lows[2]);

    // CELL: What goes wrong
    println!("0.3, looked at without and with masks: held-out loss");
    let heavy: Text = little.with_dropout(everywhere(0.3));
    let found: [Spread; 2] =
        [forgotten(&heavy, &all[2])?, forgotten(&heavy, &book[2])?];
    println!("  {characters} characters {dropped:.2}, {:.2}", found[0]);
    println!("  the book {:.2}, {:.2}", held(&book[2]), found[1]);
    assert!(quick || found[1].low > held(&book[2]).median);
    report.spread("wrong.little", found[0]);
    report.spread("wrong.book", found[1]);
    let cosine: f64 = {
        let (right, wrong) = (
            gradient(&heavy, &book[2][0].model, 0)?,
            gradient(&heavy, &book[2][0].model, 1)?,
        );
        Tensor::cosine_similarity(&right, &wrong, 0, 1e-8).double_value(&[])
    };
    println!("cosine to the gradient, masks drawn anew in backward: {cosine:.2}");
    report.number("wrong.cosine", cosine);
    report.tolerance("wrong", Some(0.1));
    // CELL: Check the folklore
    let same: Vec<Vec<Curve>> =
        runs(std::slice::from_ref(&heavy), steps, seeds.clone(), false, RATE)?;
    let same: Spread = held(&same[0]);
    println!("0.3, the same masks at every step: {same:.2}, new ones {dropped:.2}");
    assert!(quick || same.overlaps(dropped), "{same}");
    report.spread("folklore.same", same);
    report.tolerance("folklore", Some(0.1));
    println!("mean prediction under masks, and without: held-out loss");
    let mut voted: Vec<Vec<f64>> = vec![];
    let mut alone: Vec<f64> = vec![];
    for curve in &all[2] {
        voted.push(committee(&heavy, &curve.model)?);
        let loss = heavy.loss(&curve.model, heavy.batch(99, 0, true))?;
        alone.push(loss.double_value(&[]));
    }
    let mut nets_line: Vec<(f64, Spread)> = vec![];
    for (i, nets) in [1, 4, 16, 64].into_iter().enumerate() {
        let loss = Spread::of(voted.iter().map(|v| v[i]));
        println!("  {nets:2} {loss:.2}");
        report.spread(&format!("committee.n{nets}"), loss);
        nets_line.push((f64::from(nets), loss));
    }
    let gains: Vec<f64> = voted.iter().zip(&alone).map(|(v, a)| a - v[3]).collect();
    report.spread("committee.gain", Spread::of(gains));
    assert!(quick || voted.iter().zip(&alone).all(|(v, alone)| v[3] < *alone));
    let alone: Spread = Spread::of(alone);
    assert!(quick || nets_line[0].1.median > alone.median);
    println!("  without masks {alone:.2}");
    report.spread("committee.alone", alone);
    report.tolerance("committee", Some(0.05));
    report.tolerance("committee.gain", Some(0.5));
    let figure = draw_spread(
        Chart::new("Mean prediction under masks", "nets", "held-out loss (nats)"),
        "thinned nets",
        &nets_line,
        1.,
    )
    .dashed("the full net", vec![(1., alone.median), (64., alone.median)])
    .log_x()
    .x_range(0.9, 120.)
    .draw()?;
    report.figure("committee", &figure)?;
    // NOTEBOOK: skip
    report.finish()?;
    // NOTEBOOK: end
    // NOTEBOOK: figure
    Ok(())
}
