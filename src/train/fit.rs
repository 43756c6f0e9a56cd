//! The training loop.
use super::late::{Book, Numbers, Taken};
use super::loss::{blame_gradient, blame_loss, loss_of};
use super::memory::{lower, resident};
use super::output::NotThere;
use super::{Evaluation, Run, When, latest_checkpoint, state};
use crate::data::Batch;
use crate::device::guarded;
use crate::nn::Mode;
use crate::optim::clip_grad_norm;
use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tch::{Kind, Tensor};

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// All steps taken.
    Finished,
    /// Asked to stop; the state after this step is in the folder.
    Stopped(i64, PathBuf),
}

/// Takes the remaining steps of `run`, in nanoGPT's order: set the learning rate,
/// micro-steps, clip, step, log, evaluate and save. Ends after the current step when
/// `stop` becomes true.
///
/// # Errors
/// A loss or gradient that is not finite, with step, rows and layer; memory that ran
/// out. The state before that step is saved first. What evaluating, saving and logging
/// return.
pub fn fit(run: &mut Run, stop: &AtomicBool) -> Result<Outcome> {
    let mut book = Book::new(run.window);
    // On a GPU what the process holds says nothing of activations.
    let before = (!run.model.device().is_cuda()).then(resident).flatten();
    let measured = run.settings.eval_strategy != When::No;
    run.evaluate_before()?;
    let max_norm = match run.settings.max_grad_norm {
        0. => f64::INFINITY,
        max => max,
    };
    book.clock = Instant::now();
    while run.step < run.total {
        // ANCHOR: step
        let lr = run.schedule.lr(run.step);
        let batches = match micro_batches(run) {
            Ok(batches) => batches,
            Err(row) => return Err(stopped_by(run, &mut book, row)),
        };
        // None where streamed rows turn out to have no token to learn: no batch, no
        // gradient, and nothing moves.
        let learned: i64 = batches.iter().map(|(b, _)| b.supervised()).sum();

        let loss = guarded(|| gradients(run, &batches, learned, before));
        // What a GPU found in the step before, now that it has this one to do.
        book.settle(run)?;
        let loss = loss.map_err(|why| stopped_by(run, &mut book, why))?;
        let numbers = match run.late {
            true => Numbers::coming(run, &loss, max_norm),
            false => match clipped(run, &batches, &loss, max_norm) {
                Ok((loss, norm)) => Numbers::Known(loss, norm),
                Err(why) => return Err(stopped_by(run, &mut book, why)),
            },
        };
        guarded(|| {
            run.optimizer.step(lr);
            Ok(())
        })
        .map_err(|why| half_stepped(run, why))?;
        run.step += 1;
        let (step, epoch) = (run.step, run.epoch());
        book.open = Some(Taken { step, epoch, lr, numbers, batches });
        // ANCHOR_END: step

        let evaluating =
            due(run, run.settings.eval_strategy, run.settings.eval_steps);
        let saving = due(run, run.settings.save_strategy, run.settings.save_steps);
        let stopping = stop.load(Ordering::Relaxed) && run.step < run.total;
        let last = run.step == run.total;
        if !run.late || evaluating || saving || stopping || last {
            book.settle(run)?;
        }
        if saving || stopping || last {
            finite(run, lr)?;
        }
        if evaluating && let Some(found) = measured_now(run, &book)? {
            run.log.eval(run.step, run.epoch(), &found);
            run.after = Some(found).filter(|_| last);
        }
        if saving || stopping {
            let dir = save(run, book.window)?;
            if stopping {
                return Ok(Outcome::Stopped(run.step, dir));
            }
        }
        if book.open.is_none() {
            book.clock = Instant::now();
        }
    }
    if measured && run.after.is_none() {
        run.after = measured_now(run, &book)?;
    }
    Ok(Outcome::Finished)
}

// ANCHOR: gradients
/// The loss of a step, and through it the gradients of its parameters.
fn gradients(
    run: &mut Run,
    batches: &[(Batch, Mode)],
    learned: i64,
    before: Option<usize>,
) -> Result<Tensor> {
    run.optimizer.zero_grad();
    let mut loss = Tensor::zeros([], (Kind::Float, run.model.device()));
    for (batch, mode) in batches {
        let part = loss_of(&run.model, run.head.as_ref(), batch, *mode)?;
        let part = part / learned as f64;
        let grown = before.zip(resident()).map(|(b, n)| n.saturating_sub(b));
        run.grown = run.grown.max(grown);
        part.f_backward()?;
        loss += part.detach();
    }
    Ok(loss)
}
// ANCHOR_END: gradients

/// Clips the gradients; loss and norm, or why they cannot be used.
fn clipped(
    run: &Run,
    batches: &[(Batch, Mode)],
    loss: &Tensor,
    max_norm: f64,
) -> Result<(f64, f64)> {
    let loss = loss.double_value(&[]);
    if !loss.is_finite() {
        let (model, head) = (&run.model, run.head.as_ref());
        return Err(blame_loss(model, head, batches, run.step + 1));
    }
    let norm = clip_grad_norm(run.optimizer.params(), max_norm);
    match norm.is_finite() {
        true => Ok((loss, norm)),
        false => Err(blame_gradient(run.optimizer.params(), batches, run.step + 1)),
    }
}

/// What has been summed since the last log entry.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    pub(super) loss: f64,
    pub(super) steps: i64,
    pub(super) tokens: i64,
}

/// The rows of the next step, in micro-batches, each with its dropout masks' number.
fn micro_batches(run: &mut Run) -> Result<Vec<(Batch, Mode)>> {
    let s = &run.settings;
    let (size, accumulation) =
        (s.per_device_train_batch_size, s.gradient_accumulation_steps);
    let (epoch, k) = (run.step / run.per_epoch, run.step % run.per_epoch);
    run.plan.go_to(epoch as u64);
    let packs = run.plan.packs();
    let first = k as usize * accumulation * size;
    let mut batches = Vec::new();
    for j in (0..accumulation).take_while(|j| first + j * size < packs) {
        let packs = packs.min(first + j * size)..packs.min(first + (j + 1) * size);
        let rows = packs.flat_map(|k| run.plan.pack(k)).map(|&i| i as usize);
        let Some(batch) = run.train.batch(&rows.collect::<Vec<_>>())? else {
            continue;
        };
        let batch = batch.to(run.model.device());
        let step = run.step as u64 * accumulation as u64 + j as u64;
        batches.push((batch, Mode::Train { seed: s.seed, step }));
    }
    Ok(batches)
}

fn due(run: &Run, when: When, steps: i64) -> bool {
    match when {
        When::No => false,
        When::Steps => run.step % steps == 0,
        When::Epoch => run.step % run.per_epoch == 0,
    }
}

pub(super) fn save(run: &Run, window: Window) -> Result<PathBuf> {
    let mut state = run.state();
    state["pending"] = serde_json::json!([window.loss, window.steps, window.tokens]);
    let written = run.output.last(|out| state::save(run, out, &state));
    written.map_err(|e| unsaved(run, e))
}

/// Saves the state before the step that failed, and says so.
fn stopped_by(run: &mut Run, book: &mut Book, why: Error) -> Error {
    // Should the step before have failed as well, that is the reason.
    if let Err(earlier) = book.settle(run) {
        return earlier;
    }
    let kept = saved(run, book);
    with_kept(run, why, &kept)
}

/// Saves the state as it is, and says where.
fn saved(run: &Run, book: &Book) -> String {
    if run.step == 0 {
        return "nothing was learned yet".into();
    }
    match save(run, book.window) {
        Err(e) => format!("saving the state before it failed too: {e}"),
        Ok(dir) => {
            let (n, dir) = (run.step, dir.display());
            match overflown(run) {
                None => format!("the state after step {n} is in {dir}"),
                Some(name) => format!(
                    "the state after step {n} is in {dir}, to be looked at and not \
                     gone on from: {name} is not finite"
                ),
            }
        }
    }
}

/// The first trained tensor, or what the optimizer remembers of one, that holds numbers
/// that are infinite or NaN.
fn overflown(run: &Run) -> Option<String> {
    let trained = run.optimizer.params().iter();
    let trained = trained.map(|p| (p.name.clone(), p.tensor.shallow_clone()));
    let whole = |t: &Tensor| bool::try_from(t.isfinite().all()).unwrap_or(false);
    let mut all = trained.chain(run.optimizer.state());
    all.find(|(_, t)| !whole(t)).map(|(name, _)| name)
}

/// Refuses what the last step made infinite or NaN, though its loss and its gradient
/// were neither: no later step would tell, if there is none.
fn finite(run: &Run, lr: f64) -> Result<()> {
    let Some(name) = overflown(run) else { return Ok(()) };
    Err(Error::NonFinite(format!(
        "step {}: {name} is not finite after it, though loss and gradient were. Try a \
         lower --learning-rate (it was {lr:.2e}); {}",
        run.step,
        last_saved(run)
    )))
}

/// What the eval file gives; what was learned is saved where it cannot be measured.
fn measured_now(run: &Run, book: &Book) -> Result<Option<Evaluation>> {
    run.evaluate().map_err(|why| {
        let kept = saved(run, book);
        match why {
            Error::Row { path, line, what } => {
                Error::row(path, line, format!("{what}; {kept}"))
            }
            Error::OutOfMemory(what) => {
                Error::OutOfMemory(format!("{what}; {kept}"))
            }
            why => Error::NonFinite(format!("{why}; {kept}")),
        }
    })
}

/// What to say where memory ran out within an optimizer's step: some parameters have
/// moved and some have not, which nobody should go on from.
fn half_stepped(run: &Run, why: Error) -> Error {
    with_kept(run, why, &last_saved(run))
}

fn last_saved(run: &Run) -> String {
    match latest_checkpoint(&run.settings.output_dir) {
        Some(dir) => format!("{} is as it was saved", dir.display()),
        None => "no checkpoint was saved yet".into(),
    }
}

/// What to say where a checkpoint could not be written.
fn unsaved(run: &Run, e: NotThere) -> Error {
    let (kept, step) = (last_saved(run), run.step);
    match (e.why, e.instead) {
        (Error::Io { path, source }, None) => {
            let what = format!(
                "{source}; so step {step} was not saved. {kept}; make room and go on \
                 with --resume"
            );
            Error::file(path, what)
        }
        (Error::Io { path, source }, Some(dir)) => {
            let what = format!(
                "{source}; the state after step {step} is in {0} instead. {kept}; \
                 make room and go on with --resume, or with --resume {0}",
                dir.display()
            );
            Error::file(path, what)
        }
        (why, _) => why,
    }
}

pub(super) fn with_kept(run: &Run, why: Error, kept: &str) -> Error {
    match why {
        Error::Row { path, line, what } => {
            Error::row(path, line, format!("{what}; {kept}"))
        }
        Error::OutOfMemory(what) => {
            let (step, help) = (run.step + 1, lower(&run.settings));
            Error::OutOfMemory(format!("step {step}: {what}. {help}; {kept}"))
        }
        why => Error::NonFinite(format!("{why}; {kept}")),
    }
}
