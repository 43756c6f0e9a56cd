//! Chapter 15, the fine-tune: `cargo run --example ch15_finetune`. The loop is that of
//! `downhill finetune`, without its files, flags and safeguards. With `--out DIR` it
//! writes the page's figures and numbers; `--quick` takes fewer steps.
use downhill::checkpoint::PromptFrees;
use downhill::data::{Batch, Example, IGNORED};
use downhill::lab::tune::{
    ROWS, Recipe, Story, adapters, gradients, halves, micro_steps, scored, story,
};
use downhill::lab::{Report, parallel, peak, shipped};
use downhill::models::{Decoder, DecoderConfig, Survey, published};
use downhill::nn::{Mode, Weight};
use downhill::optim::Optimizer;
use downhill::plot::{Bars, Chart, panels};
use downhill::quant::Nf4Tensor;
use downhill::train::{
    Evaluation, Memory, Sketch, batch_loss, exact_match, predict,
};
use tch::{Kind, Reduction, Tensor};

// NOTEBOOK: skip
#[derive(clap::Parser)]
struct Args {
    /// Where to write the figures and the numbers.
    #[arg(long)]
    out: Option<std::path::PathBuf>,
    /// Of adapters, row order and dropout.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Fewer steps.
    #[arg(long)]
    quick: bool,
}
// NOTEBOOK: end

const MIB: f64 = 1024. * 1024.;
/// The mean of the last few.
fn last(points: &[(f64, f64)], n: usize) -> f64 {
    let points = &points[points.len().saturating_sub(n)..];
    points.iter().map(|p| p.1).sum::<f64>() / points.len() as f64
}

/// A random model of this shape, frozen, its linear layers in f32 or in 4 bits.
fn random(config: &DecoderConfig, nf4: bool) -> downhill::Result<Decoder> {
    let mut model = Decoder::random(config.clone(), 1)?;
    for (_, t) in model.named_parameters() {
        let _ = t.set_requires_grad(false);
    }
    for (_, linear) in model.linears_mut() {
        if let (true, Weight::Dense(w)) = (nf4, &linear.weight) {
            linear.weight = Weight::Nf4(Nf4Tensor::quantize(w, 64, true)?);
        }
    }
    Ok(model)
}

// ANCHOR: plain_loss
/// The loss with all scores at once.
fn plain_loss(m: &Decoder, batch: &Batch, mode: Mode) -> downhill::Result<Tensor> {
    let hidden = m.hidden_rows(&batch.ids, &batch.lengths, mode, &mut |_, _| ())?;
    let scores = m.logits(&hidden.index_select(0, &batch.learned))?;
    let sum = Reduction::Sum;
    Ok(scores.f_cross_entropy_loss(&batch.targets, None::<Tensor>, sum, -100, 0.)?)
}
// ANCHOR_END: plain_loss

/// What a fine-tune on a GPU is assumed to be: one row, or as many as are given.
fn on_gpu<'a>(rows: u64, length: u64) -> Sketch<'a> {
    Sketch {
        rows,
        length,
        kind: Kind::BFloat16,
        nf4: Some(64),
        r: 16,
        targets: &["all-linear"],
        dropout: true,
        checkpointing: true,
        cuda: true,
    }
}

// ANCHOR: longest
/// The longest row, in steps of 128 tokens, that fits on a card of so many GiB, one of
/// which is left to CUDA and to the allocator's gaps.
fn longest(survey: &Survey, card: u64) -> u64 {
    let lengths: Vec<u64> = (1..=survey.max_position_embeddings as u64 / 128)
        .map(|blocks| 128 * blocks)
        .collect();
    let fits = |length: &u64| {
        let need = Memory::planned(survey, &on_gpu(1, *length));
        need.total() as u64 <= (card - 1) << 30
    };
    match lengths.partition_point(fits) {
        0 => 0,
        n => lengths[n - 1],
    }
}
// ANCHOR_END: longest

/// Paragraphs of a book, all of which is learned: rows of very different lengths.
fn paragraphs(count: usize) -> downhill::Result<Vec<Example>> {
    let (text, words) = (shipped::alice()?, shipped::tokenizer()?);
    let mut rows = vec![];
    let long = text.split("\n\n").filter(|p| p.len() > 40);
    for paragraph in long.skip(20).take(count) {
        let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut ids = words.encode(&line, true)?;
        ids.push(words.eos_id());
        rows.push(Example { labels: ids.clone(), ids, line: 1 });
    }
    Ok(rows)
}

/// A checkpoint's name as a key of the numbers.
fn key(name: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() { c } else { '_' };
    name.to_lowercase().chars().map(plain).collect()
}

/// Share of the numbers of `t` that are not zero, and are in this kind.
fn vanish(t: &Tensor, kind: Kind) -> f64 {
    let gone = t.to_kind(kind).eq(0.).logical_and(&t.ne(0.));
    gone.to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
}

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 42;
    // NOTEBOOK: let quick: bool = true;
    // CELL: The experiment
    let mut report = Report::new("ch15_finetune", out)?;
    let (steps, every, asked): (i64, i64, usize) =
        if quick { (20, 10, 10) } else { (100, 25, 50) };
    let recipe: Recipe = Recipe { steps, peak: 1e-2, seed };
    let stories: Vec<Story> = parallel(4, |i| {
        let wrong: [fn(&mut Example); 4] = [
            |_| (),
            |e| e.labels.rotate_right(1), // each token is asked for itself
            |e| *e.labels.last_mut().unwrap_or(&mut 0) = IGNORED, // the EOS
            |_| (),
        ];
        let peak = if i == 3 { 10. * recipe.peak } else { recipe.peak };
        story(&Recipe { peak, ..recipe }, every, asked, wrong[i])
    })?;
    let (mut loss, mut right) = (
        Chart::new("Loss of the examination", "step", "nats per token").log_y(),
        Chart::new("Answers that are right", "step", "share"),
    );
    let names = ["as it should be", "labels not shifted", "no EOS", "rate times 10"];
    for (i, (name, s)) in names.iter().zip(&stories).enumerate() {
        let key = ["right", "unshifted", "no_eos", "rate"][i];
        let own = last(&s.loss, 10);
        let (held, share) = (last(&s.held, 1), last(&s.right, 1));
        println!("{name:20} loss {own:.3}, examination {held:.3}, {share:.2} right");
        println!("  {:?}", s.said[2]);
        report.numbers(key, [("own", own), ("held", held), ("share", share)]);
        report.number(&format!("{key}.first"), s.loss[0].1);
        loss = loss.line(name, s.held.clone());
        right = right.line(name, s.right.clone());
    }
    report.tolerance("right", Some(0.3));
    let figure = panels(&[loss, right.y_range(0., 1.)], 2)?;
    report.figure("", &figure)?;
    // NOTEBOOK: figure

    // CELL: Where the memory goes
    let config: DecoderConfig = DecoderConfig {
        hidden_size: 512,
        intermediate_size: 1536,
        num_hidden_layers: 6,
        num_attention_heads: 8,
        num_key_value_heads: 8,
        head_dim: 64,
        vocab_size: 32768,
        tie_word_embeddings: false,
        ..stories[0].model.config.clone()
    };
    let survey: Survey = Survey::of("llama", config.clone())?;
    let ids: Vec<i64> = (0..256).map(|i| i * 7919 % 32768).collect();
    let row: Example = Example { labels: ids.clone(), ids, line: 1 };
    let batch: Batch = Batch::collate(&[&row, &row]);
    let frees = PromptFrees::new(); // so that the peak is of what lives
    let mut grads: Vec<Tensor> = vec![];
    let mut bars = Bars::new("Peak memory of a step (MiB)");
    for (key, name, nf4, chunked, checkpointing) in [
        ("plain", "f32, plain operations", false, false, false),
        ("four", "weights in 4 bits", true, false, false),
        ("chunked", "and the loss in chunks", true, true, false),
        ("again", "and blocks computed again", true, true, true),
    ] {
        let mut model = random(&config, nf4)?;
        model.checkpointing = checkpointing;
        let optimizer = adapters(&mut model, None, seed)?;
        let loss = if chunked { batch_loss } else { plain_loss };
        let mode = Mode::Train { seed, step: 0 };
        let grown = peak(|| {
            let mean = loss(&model, &batch, mode)? / batch.supervised() as f64;
            mean.backward();
            Ok(())
        })?;
        let grown = grown.unwrap_or(f64::NAN) / MIB;
        let sketch = Sketch {
            kind: Kind::Float,
            nf4: nf4.then_some(64),
            checkpointing,
            cuda: false,
            ..on_gpu(2, 256)
        };
        let planned = Memory::planned(&survey, &sketch);
        let of = |part: &str| planned.part(part) as f64 / MIB;
        let weights = of("weights");
        let above = of("gradients") + of("activations") + of(Memory::HIGHEST);
        println!("{name:26} {weights:.0} MiB of weights, {grown:.0} more");
        println!("{:26} as planned: {above:.0} more", "");
        let all = [("weights", weights), ("grown", grown), ("planned", above)];
        report.numbers(&format!("memory.{key}"), all);
        bars = bars.bar(name, weights + grown, &format!("{:.0}", weights + grown));
        if nf4 {
            grads.push(gradients(&optimizer));
        }
        assert!(!chunked || grown.is_nan() || (above / grown - 1.).abs() < 0.15);
    }
    drop(frees);
    assert!(grads[1] == grads[2], "checkpointing changed a gradient");
    let far = (&grads[0] - &grads[1]).norm() / grads[1].norm();
    let far: f64 = far.double_value(&[]);
    println!("in chunks the gradients differ by {far:.0e}; again: same bits");
    assert!(far < 1e-5);
    report.number("memory.far", far);
    report.tolerance("memory", Some(0.1));
    report.tolerance("memory.far", None);
    let figure = bars.draw();
    report.figure("memory", &figure)?;
    // NOTEBOOK: figure

    // CELL: What fits
    let cards = [8, 12, 16, 24, 48, 80];
    println!("longest row that fits on {cards:?} GB");
    for (name, config) in published()? {
        let survey = Survey::of(name, config)?;
        let at = format!("fits.{}", key(name));
        let longest = cards.map(|card| longest(&survey, card));
        println!("  {name:22} {longest:?}");
        for (card, tokens) in cards.iter().zip(longest) {
            report.number(&format!("{at}.gb{card}"), tokens as f64);
        }
        for (what, sketch) in [("short", on_gpu(4, 512)), ("long", on_gpu(4, 2048))]
        {
            let need = Memory::planned(&survey, &sketch).total();
            report.number(&format!("{at}.{what}"), need as f64 / MIB / 1024.);
        }
    }

    // CELL: How the loss is divided
    let rows: Vec<Example> = paragraphs(ROWS)?;
    let lengths: Vec<f64> = rows.iter().map(|e| e.supervised() as f64).collect();
    let shortest = lengths.iter().copied().fold(f64::MAX, f64::min);
    let longest_row = lengths.iter().copied().fold(0., f64::max);
    report.numbers("divide", [("shortest", shortest), ("longest", longest_row)]);
    let mut model = shipped::in_four_bits()?;
    let mut optimizer = adapters(&mut model, None, seed)?;
    let mut found: Vec<(Tensor, f64)> = vec![];
    for (size, own_mean) in
        [(8, false), (4, false), (1, false), (4, true), (1, true)]
    {
        optimizer.zero_grad();
        let all: Vec<&Example> = rows.iter().collect();
        let parts: Vec<Batch> = all.chunks(size).map(Batch::collate).collect();
        let of = |batch: &Batch, _| batch_loss(&model, batch, Mode::Eval);
        let loss = micro_steps(&parts, own_mean, &of)?;
        let gradient = gradients(&optimizer);
        let whole = found.first().map_or(&gradient, |(whole, _)| whole);
        let far = (&gradient - whole).norm() / whole.norm();
        let far = far.double_value(&[]);
        println!("{size} rows at a time, own mean {own_mean}: {loss:.4}, {far:.1e}");
        let at = format!("divide.{}{size}", if own_mean { "own" } else { "whole" });
        report.numbers(&at, [("loss", loss), ("far", far)]);
        assert!(if own_mean { far > 0.05 } else { far < 1e-5 });
        found.push((gradient, loss));
    }
    report.tolerance("divide.whole4.far", None);
    report.tolerance("divide.whole1.far", None);

    // CELL: Classes and numbers
    let scores: Vec<[Evaluation; 2]> =
        parallel(2, |i| scored(&Recipe { peak: 5e-3, ..recipe }, i == 1))?;
    for ([before, after], key) in scores.iter().zip(["books", "years"]) {
        println!("{key}, before: {before}\n       after: {after}");
        for (when, found) in [("before", before), ("after", after)] {
            report.number(&format!("{key}.{when}.loss"), found.loss);
            for (name, value) in found.named() {
                report.number(&format!("{key}.{when}.{name}"), value);
            }
        }
    }
    report.tolerance("books", Some(0.2));
    report.tolerance("years", Some(0.3));
    let figure = scores[0][1].confusion()?;
    report.figure("confusion", &figure)?;
    // NOTEBOOK: figure

    // CELL: Stopped and resumed
    let short: Recipe = Recipe { steps: if quick { 8 } else { 24 }, ..recipe };
    let runs: Vec<(Vec<f64>, Tensor)> = parallel(4, |i| halves(&short, i))?;
    let mut chart = Chart::new("A run in two halves", "step", "training loss");
    for (i, name) in ["", "adapters and state", "adapters alone", "rate begun again"]
        .into_iter()
        .enumerate()
        .skip(1)
    {
        let point = |(t, l): (usize, &f64)| (t as f64 + 1., *l);
        chart = chart.line(name, runs[i].0.iter().enumerate().map(point).collect());
    }
    let same = runs[0].1 == runs[1].1;
    println!("whole and resumed end with the same bits: {same}");
    assert!(same && runs[0].0 == runs[1].0 && runs[0].1 != runs[2].1);
    let half = short.steps as usize / 2;
    for (i, key) in [(1, "exact"), (2, "adapter"), (3, "again")] {
        let worst = runs[i].0[half..].iter().copied().fold(0., f64::max);
        println!("  {key}: at most {worst:.3} after the break");
        report.number(&format!("resume.{key}"), worst);
    }
    report.tolerance("resume", Some(0.2));
    let figure = chart.draw()?;
    report.figure("resume", &figure)?;
    // NOTEBOOK: figure

    // CELL: What goes wrong
    // The examination without the token that begins every text.
    let mut exam = shipped::dates("eval")?;
    exam.examples.truncate(asked);
    for e in &mut exam.examples {
        (e.ids, e.labels) = (e.ids.split_off(1), e.labels.split_off(1));
    }
    let tuned: &Decoder = &stories[0].model;
    let answers = predict(tuned, &shipped::tokenizer()?, &exam, &mut |_, _| ())?;
    let without = exact_match(&answers);
    println!("without a BOS {without:.2} right");
    report.number("bos", without);
    // Gradients in 16 bits.
    let gradient: Tensor = found[0].0.shallow_clone();
    let nonzero = gradient.masked_select(&gradient.ne(0.));
    for (key, kind, scale) in [
        ("half", Kind::Half, 1.),
        ("scaled", Kind::Half, 1024.),
        ("bfloat", Kind::BFloat16, 1.),
    ] {
        let share = vanish(&(&nonzero * scale), kind);
        println!("{key}: {share:.1e} of the gradient's numbers become zero");
        report.number(&format!("vanish.{key}"), share);
    }
    report.tolerance("vanish", Some(0.2));
    report.finish()?;

    Ok(())
}
