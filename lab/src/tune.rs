//! Chapter 16's fine-tunes of the shipped checkpoint: the loop of `downhill finetune`
//! without its files, flags and safeguards, and what can be done wrong in it.
use super::shipped;
use downhill::Result;
use downhill::data::{Batch, Example, order};
use downhill::lora::{self, LoraConfig, Modules};
use downhill::models::{Decoder, DecoderConfig};
use downhill::nn::{Mode, Weight};
use downhill::optim::{AdamW, Driver, Optimizer, Param, clip_grad_norm};
use downhill::quant::Nf4Tensor;
use downhill::schedule::{Schedule, cosine};
use downhill::train::{
    Evaluation, Head, Rows, batch_loss, exact_match, mean_loss, predict,
};
use std::collections::HashMap;
use tch::{Device, Reduction, Tensor, no_grad};

/// Rows of a step, however they are split.
pub const ROWS: usize = 8;

/// Two thin matrices beside every linear layer, and AdamW for them and for `more`.
///
/// # Errors
/// What libtorch and the files say.
pub fn adapters(
    model: &mut Decoder,
    more: Option<(String, Tensor)>,
    seed: u64,
) -> Result<Driver<AdamW, 2>> {
    let config = LoraConfig {
        r: 16,
        alpha: 32.,
        dropout: 0.05,
        target_modules: Modules::AllLinear,
        ..LoraConfig::default()
    };
    let mut named = lora::attach(model.linears_mut(), &config, seed, Device::Cpu)?;
    named.extend(more.map(|(name, t)| (name, t.set_requires_grad(true))));
    Ok(Driver::new(AdamW::default(), Param::with_decay(named, |_, _| 0.)))
}

/// The course of a run.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// Steps of its schedule.
    pub steps: i64,
    /// Their highest rate.
    pub peak: f64,
    /// Of adapters, row order and dropout.
    pub seed: u64,
}

// ANCHOR: micro_steps
/// Adds up the gradient of one step, micro-batch by micro-batch, and returns its loss.
/// `own_mean` is the mistake: each micro-batch is divided by its own tokens.
///
/// # Errors
/// What libtorch and the files say.
pub fn micro_steps(
    parts: &[Batch],
    own_mean: bool,
    loss: &dyn Fn(&Batch, u64) -> Result<Tensor>,
) -> Result<f64> {
    let learned: i64 = parts.iter().map(Batch::supervised).sum();
    let mut mean = 0.;
    for (i, batch) in parts.iter().enumerate() {
        let tokens = match own_mean {
            false => learned,
            true => batch.supervised() * parts.len() as i64,
        };
        let part = loss(batch, i as u64)? / tokens as f64;
        part.backward();
        mean += part.double_value(&[]);
    }
    Ok(mean)
}
// ANCHOR_END: micro_steps

/// The steps `from..to` of a run: rate, micro-steps, clip, step. `see` is told how many
/// steps are taken and the loss of the last.
///
/// # Errors
/// Those of `loss` and `see`.
pub fn train(
    r: &Recipe,
    (from, to): (i64, i64),
    optimizer: &mut dyn Optimizer,
    (rows, collate): (usize, &dyn Fn(&[usize]) -> Batch),
    loss: &dyn Fn(&Batch, Mode) -> Result<Tensor>,
    see: &mut dyn FnMut(i64, f64) -> Result<()>,
) -> Result<()> {
    let schedule = cosine(r.peak, r.steps / 10, r.steps);
    let per_epoch = rows / ROWS;
    for step in from..to {
        let lr = schedule.lr(step);
        let (epoch, k) = (step as usize / per_epoch, step as usize % per_epoch);
        let order = order(rows, r.seed, epoch as u64, true);
        let batch = collate(&order[k * ROWS..(k + 1) * ROWS]);
        optimizer.zero_grad();
        let mode = Mode::Train { seed: r.seed, step: step as u64 };
        let mean = micro_steps(&[batch], false, &|batch, _| loss(batch, mode))?;
        clip_grad_norm(optimizer.params(), 1.);
        optimizer.step(lr);
        see(step + 1, mean)?;
    }
    Ok(())
}

/// How a run went, by step.
#[derive(Debug)]
pub struct Story {
    /// Its loss.
    pub loss: Vec<(f64, f64)>,
    /// That of the examination.
    pub held: Vec<(f64, f64)>,
    /// The share of its questions that were answered right.
    pub right: Vec<(f64, f64)>,
    /// The first question, what was expected, and the last answer to it.
    pub said: [String; 3],
    /// As it is now.
    pub model: Decoder,
}

/// Trains on rows that were changed by `wrong`, and asks `questions`.
///
/// # Errors
/// What libtorch and the files say.
pub fn story(
    r: &Recipe,
    every: i64,
    questions: usize,
    wrong: fn(&mut Example),
) -> Result<Story> {
    let (mut data, mut exam) = (shipped::dates("train")?, shipped::dates("eval")?);
    data.examples.iter_mut().for_each(wrong);
    exam.examples.truncate(questions);
    let (words, mut model) = (shipped::tokenizer()?, shipped::in_four_bits()?);
    let mut optimizer = adapters(&mut model, None, r.seed)?;
    let collate = |rows: &[usize]| {
        Batch::collate(&rows.iter().map(|&i| &data.examples[i]).collect::<Vec<_>>())
    };
    let (mut loss, mut held, mut right) = (vec![], vec![], vec![]);
    let mut said = [(); 3].map(|()| String::new());
    let mut examine = |step: i64| -> Result<()> {
        let answers = predict(&model, &words, &exam, &mut |_, _| ())?;
        held.push((step as f64, mean_loss(&model, &exam, 16)?));
        right.push((step as f64, exact_match(&answers)));
        if let Some(a) = answers.into_iter().next() {
            said = [a.prompt, a.expected, a.answer];
        }
        Ok(())
    };
    examine(0)?;
    let see = &mut |step: i64, l: f64| {
        loss.push((step as f64, l));
        if step % every == 0 { examine(step) } else { Ok(()) }
    };
    let of = |batch: &Batch, mode| batch_loss(&model, batch, mode);
    let rows: (usize, &dyn Fn(&[usize]) -> Batch) = (data.len(), &collate);
    train(r, (0, r.steps), &mut optimizer, rows, &of, see)?;
    Ok(Story { loss, held, right, said, model })
}

/// Every gradient of an optimizer's parameters, end to end.
pub fn gradients(optimizer: &dyn Optimizer) -> Tensor {
    let of = |p: &Param| p.tensor.grad().flatten(0, -1);
    Tensor::cat(&optimizer.params().iter().map(of).collect::<Vec<_>>(), 0)
}

/// Every parameter, end to end.
fn parameters(optimizer: &dyn Optimizer) -> Tensor {
    let of = |p: &Param| p.tensor.detach().flatten(0, -1);
    Tensor::cat(&optimizer.params().iter().map(of).collect::<Vec<_>>(), 0)
}

/// Trains a score head and adapters to tell books apart, or years: what the
/// examination gave before and after.
///
/// # Errors
/// What libtorch and the files say.
pub fn scored(r: &Recipe, years: bool) -> Result<[Evaluation; 2]> {
    let [data, exam] = if years { shipped::years()? } else { shipped::books()? };
    let mut model = shipped::in_four_bits()?;
    let width = model.config.hidden_size;
    let head = Head::random(data.labels.clone(), width, r.seed, Device::Cpu);
    let mut optimizer = adapters(&mut model, Some(head.named()), r.seed)?;
    let exam = Rows::Labelled(exam);
    let before = Evaluation::run(&model, Some(&head), &exam, 16)?;
    let collate = |rows: &[usize]| {
        let rows: Vec<_> = rows.iter().map(|&i| &data.rows[i]).collect();
        Batch::labelled(&rows, &data.labels)
    };
    let of = |batch: &Batch, mode| {
        let see = &mut |_: &str, _: &Tensor| ();
        let hidden = model.hidden_rows(&batch.ids, &batch.lengths, mode, see)?;
        head.loss(&hidden.index_select(0, &batch.learned), &batch.targets)
    };
    let rows: (usize, &dyn Fn(&[usize]) -> Batch) = (data.rows.len(), &collate);
    train(r, (0, r.steps), &mut optimizer, rows, &of, &mut |_, _| Ok(()))?;
    Ok([before, Evaluation::run(&model, Some(&head), &exam, 16)?])
}

/// A run in two halves, with a new process's model and optimizer for the second.
/// `carried` over the break: 0 no break, 1 adapters and optimizer state, 2 the adapters
/// alone, 3 these, and the schedule from its start. Its losses and its adapters.
///
/// # Errors
/// What libtorch and the files say.
pub fn halves(r: &Recipe, carried: usize) -> Result<(Vec<f64>, Tensor)> {
    let (data, half) = (shipped::dates("train")?, r.steps / 2);
    let collate = |rows: &[usize]| {
        Batch::collate(&rows.iter().map(|&i| &data.examples[i]).collect::<Vec<_>>())
    };
    let rows: (usize, &dyn Fn(&[usize]) -> Batch) = (data.len(), &collate);
    let mut losses = vec![];
    let mut see = |_, l| {
        losses.push(l);
        Ok(())
    };
    let mut model = shipped::in_four_bits()?;
    let mut optimizer = adapters(&mut model, None, r.seed)?;
    let to = if carried == 0 { r.steps } else { half };
    let of = |batch: &Batch, mode| batch_loss(&model, batch, mode);
    train(r, (0, to), &mut optimizer, rows, &of, &mut see)?;
    if carried > 0 {
        // ANCHOR: resume
        let mut again = shipped::in_four_bits()?; // as after a crash: all from the files
        let mut fresh = adapters(&mut again, None, r.seed)?;
        for (new, old) in fresh.params().iter().zip(optimizer.params()) {
            no_grad(|| new.tensor.shallow_clone().copy_(&old.tensor));
        }
        if carried == 1 {
            let state: HashMap<_, _> = optimizer.state().into_iter().collect();
            fresh.load_state(&state)?;
        }
        let (from, to) = if carried < 3 { (half, r.steps) } else { (0, half) };
        let of = |batch: &Batch, mode| batch_loss(&again, batch, mode);
        train(r, (from, to), &mut fresh, rows, &of, &mut see)?;
        // ANCHOR_END: resume
        optimizer = fresh;
    }
    let end = parameters(&optimizer);
    Ok((losses, end))
}

/// A random model of this shape, frozen, its linear layers in f32 or in 4 bits.
///
/// # Errors
/// What libtorch says.
pub fn random(config: &DecoderConfig, nf4: bool) -> Result<Decoder> {
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
///
/// # Errors
/// What libtorch says.
pub fn plain_loss(m: &Decoder, batch: &Batch, mode: Mode) -> Result<Tensor> {
    let hidden = m.hidden_rows(&batch.ids, &batch.lengths, mode, &mut |_, _| ())?;
    let scores = m.logits(&hidden.index_select(0, &batch.learned))?;
    let sum = Reduction::Sum;
    Ok(scores.f_cross_entropy_loss(&batch.targets, None::<Tensor>, sum, -100, 0.)?)
}
// ANCHOR_END: plain_loss
