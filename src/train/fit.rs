//! The training loop.
use super::loss::{blame_gradient, blame_loss, loss_of};
use super::memory::resident;
use super::{Run, StepLog, When, state};
use crate::data::Batch;
use crate::nn::Mode;
use crate::optim::clip_grad_norm;
use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
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
/// A loss or gradient that is not finite, with step, rows and layer; the state before
/// that step is saved first. What evaluating, saving and logging return.
pub fn fit(run: &mut Run, stop: &AtomicBool) -> Result<Outcome> {
    let mut window = run.window;
    // On a GPU what the process holds says nothing of activations.
    let before = (!run.model.device().is_cuda()).then(resident).flatten();
    let measured = run.settings.eval_strategy != When::No;
    if run.step == 0
        && measured
        && let Some(found) = run.evaluate()?
    {
        run.log.say(&format!("before  eval {found}"));
        run.before = found.json();
    }
    let mut busy = Duration::ZERO;
    let max_norm = match run.settings.max_grad_norm {
        0. => f64::INFINITY,
        max => max,
    };
    while run.step < run.total {
        let began = Instant::now();
        // ANCHOR: step
        let lr = run.schedule.lr(run.step);
        let batches = match micro_batches(run) {
            Ok(batches) => batches,
            Err(row) => return Err(stopped_by(run, window, row)),
        };
        // None where streamed rows turn out to have no token to learn: no batch, no
        // gradient, and nothing moves.
        let learned: i64 = batches.iter().map(|(b, _)| b.supervised()).sum();

        run.optimizer.zero_grad();
        let mut loss = Tensor::zeros([], (Kind::Float, run.model.device()));
        for (batch, mode) in &batches {
            let part = loss_of(&run.model, run.head.as_ref(), batch, *mode)?;
            let part = part / learned as f64;
            let grown = resident().zip(before).map(|(n, b)| n.saturating_sub(b));
            run.grown = run.grown.max(grown);
            part.f_backward()?;
            loss += part.detach();
        }
        let loss = loss.double_value(&[]);
        if !loss.is_finite() {
            let why =
                blame_loss(&run.model, run.head.as_ref(), &batches, run.step + 1);
            return Err(stopped_by(run, window, why));
        }
        let grad_norm = clip_grad_norm(run.optimizer.params(), max_norm);
        if !grad_norm.is_finite() {
            let why = blame_gradient(run.optimizer.params(), &batches, run.step + 1);
            return Err(stopped_by(run, window, why));
        }
        run.optimizer.step(lr);
        run.step += 1;
        // ANCHOR_END: step

        busy += began.elapsed();
        window.loss += loss;
        window.steps += i64::from(learned > 0);
        window.tokens += batches.iter().map(|(b, _)| b.tokens()).sum::<i64>();
        if run.step % run.settings.logging_steps == 0 || run.step == run.total {
            let entry = StepLog {
                step: run.step,
                epoch: run.epoch(),
                loss: window.loss / window.steps.max(1) as f64,
                grad_norm,
                learning_rate: lr,
                tokens_per_second: window.tokens as f64 / busy.as_secs_f64(),
            };
            run.log.step(&entry, run.total)?;
            (window, busy) = (Window::default(), Duration::ZERO);
        }
        if due(run, run.settings.eval_strategy, run.settings.eval_steps)
            && let Some(found) = run.evaluate()?
        {
            run.log.eval(run.step, run.epoch(), &found)?;
            run.after = Some(found).filter(|_| run.step == run.total);
        }
        let stopping = stop.load(Ordering::Relaxed) && run.step < run.total;
        let saving = due(run, run.settings.save_strategy, run.settings.save_steps);
        if saving || stopping {
            let dir = save(run, window)?;
            if stopping {
                return Ok(Outcome::Stopped(run.step, dir));
            }
        }
    }
    if measured && run.after.is_none() {
        run.after = run.evaluate()?;
    }
    Ok(Outcome::Finished)
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
    let mut batches = Vec::with_capacity(accumulation);
    for j in 0..accumulation {
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

fn save(run: &Run, window: Window) -> Result<PathBuf> {
    let mut state = run.state();
    state["pending"] = serde_json::json!([window.loss, window.steps, window.tokens]);
    state::save(run, &state)
}

/// Saves the state before the step that failed, and says so.
fn stopped_by(run: &Run, window: Window, why: Error) -> Error {
    let kept = match (run.step, save(run, window)) {
        (0, _) => "nothing was learned yet".to_string(),
        (n, Ok(dir)) => format!("the state after step {n} is in {}", dir.display()),
        (_, Err(e)) => format!("saving the state before it failed too: {e}"),
    };
    match why {
        Error::Row { path, line, what } => {
            Error::row(path, line, format!("{what}; {kept}"))
        }
        why => Error::NonFinite(format!("{why}; {kept}")),
    }
}
