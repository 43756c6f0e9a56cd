//! Chapter 16, the fine-tune: `cargo run --example ch16_finetune`. The loop is that of
//! `downhill finetune`, without its files, flags and safeguards. With `--out DIR` it
//! writes the page's figures and numbers; `--quick` takes fewer steps.
use downhill::checkpoint::PromptFrees;
use downhill::data::{Batch, Example, IGNORED};
use downhill_lab::tune::{
    ROWS, Recipe, Story, adapters, gradients, halves, micro_steps, plain_loss,
    random, scored, story,
};
use downhill_lab::{Report, parallel, peak, shipped};
// NOTEBOOK: skip
use downhill_lab::{Spread, by_seed, draw_spread};
// NOTEBOOK: end
use downhill::models::{Decoder, DecoderConfig, Survey, published};
use downhill::nn::Mode;
use downhill::optim::{AdamW, Driver, Optimizer};
use downhill::plot::{Bars, Chart, panels};
use downhill::train::{
    Evaluation, Memory, Sketch, batch_loss, exact_match, mean_loss, predict,
};
use tch::{Kind, Tensor};

// NOTEBOOK: skip
#[derive(clap::Parser)]
struct Args {
    /// Where to write the figures and the numbers.
    #[arg(long)]
    out: Option<std::path::PathBuf>,
    /// Seed of adapters, row order and dropout.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Fewer steps.
    #[arg(long)]
    quick: bool,
    /// Instead of the rest: the run of `cargo xtask finetune`, with five seeds.
    #[arg(long)]
    whole: bool,
}

/// Five runs of 600 steps, a few minutes each; written as `ch16_finetune_whole`.
fn whole(out: Option<std::path::PathBuf>, seed: u64) -> downhill::Result<()> {
    let mut report = Report::new("ch16_finetune_whole", out)?;
    let recipe = Recipe { steps: 600, peak: 2e-3, seed };
    let runs = by_seed(1, seed..seed + 5, |_, seed| {
        let s = story(&Recipe { seed, ..recipe }, 100, 150, |_| ())?;
        Ok((s.right, s.held))
    })?;
    let (mut right, mut held) = (vec![], vec![]);
    for i in 0..=6 {
        let step = 100. * i as f64;
        right.push((step, Spread::of(runs[0].iter().map(|r| r.0[i].1))));
        held.push((step, Spread::of(runs[0].iter().map(|r| r.1[i].1))));
        println!("{step:4} {:.2}  loss {:.3}", right[i].1, held[i].1);
        report.spread(&format!("right.s{step}"), right[i].1);
        report.spread(&format!("held.s{step}"), held[i].1);
    }
    let chart = |title, unit| Chart::new(title, "step", unit);
    let held = draw_spread(
        chart("Loss of the examination", "nats per token").log_y(),
        "",
        &held,
        1.,
    );
    let right =
        draw_spread(chart("Answers that are right", "share"), "", &right, 1.);
    report.figure("", &panels(&[held, right.y_range(0., 1.)], 2)?)?;
    report.finish()
}
// NOTEBOOK: end

const MIB: f64 = 1024. * 1024.;
/// The mean of the last few.
fn last(points: &[(f64, f64)], n: usize) -> f64 {
    let points = &points[points.len().saturating_sub(n)..];
    points.iter().map(|p| p.1).sum::<f64>() / points.len() as f64
}

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
        side_by_side: false,
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
    let Args { out, seed, quick, whole: all } = clap::Parser::parse();
    if all {
        return Ok(whole(out, seed)?);
    }
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 42;
    // NOTEBOOK: let quick: bool = true;
    // CELL: The experiment
    let mut report = Report::new("ch16_finetune", out)?;
    let (steps, asked): (i64, usize) = if quick { (20, 10) } else { (120, 40) };
    let recipe: Recipe = Recipe { steps, peak: 5e-3, seed };
    let stories: Vec<Story> = parallel(4, |i| {
        let wrong: [fn(&mut Example); 4] = [
            |_| (),
            |e| *e.labels.last_mut().unwrap_or(&mut 0) = IGNORED, // the EOS
            |e| e.labels.rotate_right(1), // each token is asked for itself
            |_| (),
        ];
        let r: Recipe = match i {
            0 | 1 => recipe,
            2 => Recipe { steps: recipe.steps / 2, ..recipe },
            _ => Recipe { steps: recipe.steps / 2, peak: 5e-2, ..recipe },
        };
        story(&r, recipe.steps / 4, asked, wrong[i])
    })?;
    let (mut loss, mut right) = (
        Chart::new("Loss of the examination", "step", "nats per token").log_y(),
        Chart::new("Answers that are right", "step", "share"),
    );
    let names = ["as it should be", "no EOS", "labels not shifted", "rate times 10"];
    for (i, (name, s)) in names.iter().zip(&stories).enumerate() {
        let key = ["right", "no_eos", "unshifted", "rate"][i];
        let [own, held, share] =
            [last(&s.loss, 10), last(&s.held, 1), last(&s.right, 1)];
        println!("{name:20} loss {own:.3}, examination {held:.3}, {share:.2} right");
        println!("  {:?}", s.said[2]);
        report.numbers(key, [("own", own), ("held", held), ("share", share)]);
        report.number(&format!("{key}.first"), s.loss[0].1);
        loss = loss.line(name, s.held.clone());
        right = right.line(name, s.right.clone());
    }
    let shares: Vec<f64> = stories.iter().map(|s| last(&s.right, 1)).collect();
    let own: Vec<f64> = stories.iter().map(|s| last(&s.loss, 10)).collect();
    let held: Vec<f64> = stories.iter().map(|s| last(&s.held, 1)).collect();
    assert!(quick || shares[0] > 0.1 && shares[1..].iter().all(|s| *s < 0.05));
    assert!(quick || own[1] < 1.3 * own[0] && own[2] < 0.1);
    assert!(quick || held[2] > stories[2].held[0].1 && held[3] > 2. * held[0]);
    report.number("steps", steps as f64);
    report.number("peak", recipe.peak);
    // Another processor rounds otherwise, and a run of this length tells.
    for key in ["right", "no_eos", "unshifted", "rate", "bos", "divide.own1"] {
        report.tolerance(key, Some(0.5));
    }
    report.tolerance("unshifted.own", None);
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
        report.number(&format!("memory.{key}.all"), weights + grown);
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
        if name == "DeepSeek-V3" {
            continue; // on no card
        }
        let survey = Survey::of(name, config)?;
        let at = format!("fits.{}", key(name));
        let longest = cards.map(|card| longest(&survey, card));
        println!("  {name:22} {longest:?}");
        for (card, tokens) in cards.iter().zip(longest) {
            report.number(&format!("{at}.gb{card}"), tokens as f64);
        }
        let few = &["q_proj", "v_proj", "kv_a_proj_with_mqa", "kv_b_proj"];
        let gib =
            |s: &Sketch| Memory::planned(&survey, s).total() as f64 / MIB / 1024.;
        let usual = |rows, length| Sketch { targets: few, ..on_gpu(rows, length) };
        report.number(&format!("{at}.usual"), gib(&usual(4, 1024)));
        report.number(&format!("{at}.all"), gib(&on_gpu(4, 1024)));
        let trained = survey.adapter_parameters(16, &["all-linear"]);
        report.number(&format!("{at}.trained"), trained as f64 / 1e6);
        // The recipes.
        report.number(&format!("{at}.packed"), gib(&on_gpu(4, 2048)));
        report.number(&format!("{at}.long"), gib(&on_gpu(1, 4096)));
        report.number(&format!("{at}.short"), gib(&usual(1, 512)));
        report.number(&format!("{at}.middle"), gib(&usual(1, 1024)));
    }

    // CELL: How the loss is divided
    let rows: Vec<Example> = shipped::paragraphs(ROWS)?;
    let lengths: Vec<f64> = rows.iter().map(|e| e.supervised() as f64).collect();
    let shortest = lengths.iter().copied().fold(f64::MAX, f64::min);
    let longest_row = lengths.iter().copied().fold(0., f64::max);
    report.numbers("divide", [("shortest", shortest), ("longest", longest_row)]);
    let tokens: f64 = lengths.iter().sum();
    report.number("divide.first", ROWS as f64 / (tokens + ROWS as f64));
    let mut model: Decoder = shipped::in_four_bits()?;
    let mut optimizer: Driver<AdamW, 2> = adapters(&mut model, None, seed)?;
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
        parallel(2, |i| scored(&Recipe { steps: steps * 2 / 3, ..recipe }, i == 1))?;
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
    let half = short.steps as usize / 2;
    let mut chart = Chart::new("A run in two halves", "step", "training loss");
    for (i, name) in ["", "adapters and state", "adapters alone", "rate begun again"]
        .into_iter()
        .enumerate()
        .skip(1)
    {
        let from = half - 4;
        let point = |(t, l): (usize, &f64)| ((from + t + 1) as f64, *l);
        let points = runs[i].0[from..].iter().enumerate().map(point).collect();
        chart = chart.line(name, points);
    }
    let same = runs[0].1 == runs[1].1;
    println!("whole and resumed end with the same bits: {same}");
    assert!(same && runs[0].0 == runs[1].0 && runs[0].1 != runs[2].1);
    for (i, key) in [(1, "exact"), (2, "adapter"), (3, "again")] {
        let pairs = runs[i].0.iter().zip(&runs[0].0);
        let far = pairs.map(|(a, b)| (a - b).abs()).fold(0., f64::max);
        println!("  {key}: at most {far:.3} from the whole run's loss");
        report.number(&format!("resume.{key}"), far);
    }
    report.tolerance("resume", Some(0.5));
    let figure = chart.draw()?;
    report.figure("resume", &figure)?;
    // NOTEBOOK: figure

    // CELL: What goes wrong
    // The examination without the token that begins every text.
    let (without, bare): (f64, f64) = {
        let (mut exam, words) = (shipped::dates("eval")?, shipped::tokenizer()?);
        exam.examples.truncate(asked);
        for e in &mut exam.examples {
            (e.ids, e.labels) = (e.ids.split_off(1), e.labels.split_off(1));
        }
        let tuned = &stories[0].model;
        let answers = predict(tuned, &words, &exam, &mut |_, _| ())?;
        (exact_match(&answers), mean_loss(tuned, &exam, 16)?)
    };
    println!("without a BOS loss {bare:.3}, {without:.2} right");
    report.numbers("bos", [("share", without), ("loss", bare)]);
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
    report.tolerance("vanish", Some(0.5));
    report.finish()?;

    Ok(())
}
