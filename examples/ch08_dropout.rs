//! Chapter 8, dropout: `cargo run --example ch08_dropout`. With `--out DIR` it writes
//! the page's figures and numbers; `--quick` does less of everything.
use downhill::lab::{Report, Spread, Text, draw_spread, parallel};
use downhill::models::Decoder;
use downhill::nn::Mode;
use downhill::nn::dropout::{Rates, dropout};
use downhill::optim::{Adam, Driver, Optimizer, Param};
use downhill::plot::Chart;
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

const RATE: f64 = 3e-3;
/// Steps between two looks at the held-out text.
const EVERY: i64 = 50;

/// What masks a run draws.
#[derive(Clone, Copy, PartialEq)]
enum Masks {
    /// New ones at every step.
    New,
    /// Those of the first step for ever: the counter is not counted.
    Same,
}

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

/// Trains by Adam, and looks.
fn run(text: &Text, steps: i64, seed: u64, masks: Masks) -> downhill::Result<Curve> {
    let model = text.model(seed)?;
    let params = Param::with_decay(model.named_parameters(), |_, _| 0.);
    let mut optimizer = Driver::new(Adam::default(), params);
    let (mut learned, mut held_out) = (vec![], vec![]);
    for step in 0..=steps {
        if step % EVERY == 0 {
            learned.push(look(text, &model, false, Mode::Eval)?);
            held_out.push(look(text, &model, true, Mode::Eval)?);
        }
        let drawn = if masks == Masks::New { step as u64 } else { 0 };
        let mode = Mode::Train { seed, step: drawn };
        optimizer.zero_grad();
        text.loss_in(&model, text.batch(seed, step, false), mode)?.backward();
        optimizer.step(RATE);
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
    masks: Masks,
) -> downhill::Result<Vec<Vec<Curve>>> {
    let each = (seeds.end - seeds.start) as usize;
    let all = parallel(texts.len() * each, |i| {
        run(&texts[i / each], steps, seeds.start + (i % each) as u64, masks)
    })?;
    let mut all = all.into_iter();
    Ok(texts.iter().map(|_| all.by_ref().take(each).collect()).collect())
}

/// Losses of several seeds over the steps.
fn over(curves: &[Curve], losses: fn(&Curve) -> &Vec<f64>) -> Vec<(f64, Spread)> {
    let at = |look: usize| Spread::of(curves.iter().map(|c| losses(c)[look]));
    let looks = 0..losses(&curves[0]).len();
    looks.map(|look| ((look as i64 * EVERY) as f64, at(look))).collect()
}

/// Losses at the end.
fn end(curves: &[Curve], losses: fn(&Curve) -> &Vec<f64>) -> Spread {
    Spread::of(curves.iter().filter_map(|c| losses(c).last().copied()))
}

/// The lowest held-out loss of each run.
fn lowest(curves: &[Curve]) -> Spread {
    let low = |c: &Curve| c.held_out.iter().copied().fold(f64::INFINITY, f64::min);
    Spread::of(curves.iter().map(low))
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
    let mut report = Report::new("ch08_dropout", out)?;
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
    let all: Vec<Vec<Curve>> = runs(&texts, steps, seeds.clone(), Masks::New)?;
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
        let (learned, held_out) =
            (end(curves, |c| &c.learned), end(curves, |c| &c.held_out));
        println!("  {p:.1} {learned:.2}, {held_out:.2}, {:.2}", lowest(curves));
        let key = format!("little.p{}", (10. * p) as i64);
        report.spread(&format!("{key}.learned"), learned);
        report.spread(&format!("{key}.held_out"), held_out);
        report.spread(&format!("{key}.lowest"), lowest(curves));
        chart = draw_spread(
            chart,
            &format!("p = {p}"),
            &over(curves, |c| &c.held_out),
            1.,
        );
    }
    report.numbers(
        "little",
        [("characters", characters as f64), ("steps", steps as f64)],
    );
    report.tolerance("little", Some(0.05));
    for p in [0, 2] {
        let name = ["learned, p = 0", "", "learned, p = 0.3"][p];
        let line = over(&all[p], |c| &c.learned);
        chart =
            chart.dashed(name, line.iter().map(|(t, s)| (*t, s.median)).collect());
    }
    let plain: Spread = end(&all[0], |c| &c.held_out);
    let dropped: Spread = end(&all[2], |c| &c.held_out);
    assert!(quick || dropped.high < plain.low, "{dropped} and {plain}");
    let figure = chart.draw()?;
    report.figure("", &figure)?;
    // NOTEBOOK: figure
    // CELL: Much text
    let whole: Text = Text::alice()?;
    let texts: Vec<Text> =
        [0., 0.1, 0.3].map(|p| whole.with_dropout(everywhere(p))).into();
    println!("the whole book, {} steps: held-out loss", steps / 2);
    let book: Vec<Vec<Curve>> = runs(&texts, steps / 2, seeds.clone(), Masks::New)?;
    for (p, curves) in [0, 1, 3].into_iter().zip(&book) {
        let held_out = end(curves, |c| &c.held_out);
        println!("  0.{p} {held_out:.2}");
        report.spread(&format!("book.p{p}"), held_out);
    }
    report.number("book.steps", (steps / 2) as f64);
    report.tolerance("book", Some(0.05));
    // CELL: Where to drop
    const PLACES: [(&str, Rates); 3] = [
        ("embedding", Rates { embedding: 0.3, attention: 0., residual: 0. }),
        ("attention", Rates { embedding: 0., attention: 0.3, residual: 0. }),
        ("residual", Rates { embedding: 0., attention: 0., residual: 0.3 }),
    ];
    let texts: Vec<Text> =
        PLACES.iter().map(|(_, rates)| little.with_dropout(*rates)).collect();
    println!("0.3 at one place: held-out loss at the end, and at its lowest");
    let places: Vec<Vec<Curve>> = runs(&texts, steps, seeds.clone(), Masks::New)?;
    for ((name, _), curves) in PLACES.iter().zip(&places) {
        let (held_out, lowest) = (end(curves, |c| &c.held_out), lowest(curves));
        println!("  {name:9} {held_out:.2}, {lowest:.2}");
        report.spread(&format!("places.{name}.held_out"), held_out);
        report.spread(&format!("places.{name}.lowest"), lowest);
    }
    report.tolerance("places", Some(0.05));

    // CELL: What goes wrong
    println!("0.3, looked at without and with masks: held-out loss");
    let heavy: Text = little.with_dropout(everywhere(0.3));
    let found: [Spread; 2] =
        [forgotten(&heavy, &all[2])?, forgotten(&heavy, &book[2])?];
    println!("  {characters} characters {dropped:.2}, {:.2}", found[0]);
    println!("  the book {:.2}, {:.2}", end(&book[2], |c| &c.held_out), found[1]);
    report.spread("wrong.little", found[0]);
    report.spread("wrong.book", found[1]);
    let cosine: f64 = {
        let (right, wrong) = (
            gradient(&heavy, &book[2][0].model, 0)?,
            gradient(&heavy, &book[2][0].model, 1)?,
        );
        Tensor::cosine_similarity(&right, &wrong, 0, 1e-8).double_value(&[])
    };
    println!(
        "cosine to the gradient if masks are drawn anew in backward: {cosine:.2}"
    );
    report.number("wrong.cosine", cosine);
    report.tolerance("wrong", Some(0.1));
    // CELL: Check the folklore
    let same: Vec<Vec<Curve>> =
        runs(std::slice::from_ref(&heavy), steps, seeds.clone(), Masks::Same)?;
    let same: Spread = end(&same[0], |c| &c.held_out);
    println!("0.3, the same masks at every step: {same:.2}, new ones {dropped:.2}");
    report.spread("folklore.same", same);
    report.tolerance("folklore", Some(0.1));
    println!(
        "mean prediction of nets under masks, and the net without: held-out loss"
    );
    let mut voted: Vec<Vec<f64>> = vec![];
    let mut alone: Vec<f64> = vec![];
    for curve in &all[2] {
        voted.push(committee(&heavy, &curve.model)?);
        let loss = heavy.loss(&curve.model, heavy.batch(99, 0, true))?;
        alone.push(loss.double_value(&[]));
    }
    for (i, nets) in [1, 4, 16, 64].into_iter().enumerate() {
        let loss = Spread::of(voted.iter().map(|v| v[i]));
        println!("  {nets:2} {loss:.2}");
        report.spread(&format!("committee.n{nets}"), loss);
    }
    assert!(quick || voted.iter().zip(&alone).all(|(v, alone)| v[3] < *alone));
    let alone: Spread = Spread::of(alone);
    println!("  without masks {alone:.2}");
    report.spread("committee.alone", alone);
    report.tolerance("committee", Some(0.05));
    report.finish()?;
    Ok(())
}
