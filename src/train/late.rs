//! The numbers of a step, which a GPU may still be computing.
//!
//! To wait for them within the step would leave the GPU without work until the host had
//! launched the next one. They are fetched a step late instead, while it computes that
//! next one; before anything is evaluated or saved they are waited for. A gradient that
//! is not finite becomes zero on the device, so that what it would have spoiled is
//! whole when the host hears of it.
use super::fit::{Window, save, with_kept};
use super::loss::{blame_gradient, blame_loss, loss_of};
use super::{Run, StepLog};
use crate::data::Batch;
use crate::device::Coming;
use crate::nn::Mode;
use crate::optim::clip_grad_norm_late;
use crate::{Error, Result};
use std::time::{Duration, Instant};
use tch::{Kind, Tensor, no_grad};

/// Loss, and norm of the gradient before clipping.
pub(super) enum Numbers {
    Known(f64, f64),
    /// Both as a pair.
    Coming(Coming),
}

impl Numbers {
    /// Clips on the device, and sends the numbers off.
    pub(super) fn coming(run: &Run, loss: &Tensor, max_norm: f64) -> Self {
        no_grad(|| {
            let params = run.optimizer.params();
            let norm = clip_grad_norm_late(params, max_norm, loss);
            let pair = Tensor::stack(&[loss.to_kind(Kind::Double), norm], 0);
            Self::Coming(Coming::new(&pair))
        })
    }

    fn wait(&self) -> (f64, f64) {
        match self {
            Self::Known(loss, norm) => (*loss, *norm),
            Self::Coming(pair) => match pair.wait()[..] {
                [loss, norm] => (loss, norm),
                _ => (f64::NAN, f64::NAN),
            },
        }
    }
}

/// A step that was taken and is not in the log yet.
pub(super) struct Taken {
    pub(super) step: i64,
    pub(super) epoch: f64,
    pub(super) lr: f64,
    pub(super) numbers: Numbers,
    pub(super) batches: Vec<(Batch, Mode)>,
}

/// What has been summed since the last log entry, and the step that is not yet in it.
pub(super) struct Book {
    pub(super) window: Window,
    pub(super) open: Option<Taken>,
    /// Since when the time of steps has not been counted.
    pub(super) clock: Instant,
    busy: Duration,
}

impl Book {
    pub(super) fn new(window: Window) -> Self {
        Self { window, open: None, clock: Instant::now(), busy: Duration::ZERO }
    }

    /// Enters the open step, if there is one, and logs it where it is due.
    pub(super) fn settle(&mut self, run: &mut Run) -> Result<()> {
        let Some(taken) = self.open.take() else { return Ok(()) };
        let (loss, grad_norm) = taken.numbers.wait();
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return Err(self.left_out(run, &taken, loss));
        }
        self.busy += self.clock.elapsed();
        let batches = || taken.batches.iter().map(|(b, _)| b);
        let learned: i64 = batches().map(Batch::supervised).sum();
        let window = &mut self.window;
        window.loss += loss;
        window.steps += i64::from(learned > 0);
        window.tokens += batches().map(Batch::tokens).sum::<i64>();
        if taken.step % run.settings.logging_steps == 0 || taken.step == run.total {
            let entry = StepLog {
                step: taken.step,
                epoch: taken.epoch,
                loss: window.loss / window.steps.max(1) as f64,
                grad_norm,
                learning_rate: taken.lr,
                tokens_per_second: window.tokens as f64 / self.busy.as_secs_f64(),
            };
            run.log.step(&entry, run.total);
            (self.window, self.busy) = (Window::default(), Duration::ZERO);
        }
        self.clock = Instant::now();
        Ok(())
    }

    /// Why the numbers of a step are not finite, found by computing it again: nothing
    /// but its momentum has moved the parameters since. Saves them, and says so.
    fn left_out(&self, run: &mut Run, taken: &Taken, loss: f64) -> Error {
        let (batches, step) = (&taken.batches, taken.step);
        let why = match loss.is_finite() {
            false => blame_loss(&run.model, run.head.as_ref(), batches, step),
            true => {
                run.optimizer.zero_grad();
                for (batch, mode) in batches {
                    let part = loss_of(&run.model, run.head.as_ref(), batch, *mode);
                    let done = part.and_then(|part| Ok(part.f_backward()?));
                    if let Err(e) = done {
                        return e;
                    }
                }
                blame_gradient(run.optimizer.params(), batches, step)
            }
        };
        let kept = match save(run, self.window) {
            Ok(dir) => {
                let dir = dir.display();
                format!("the state after that step without its gradient is in {dir}")
            }
            Err(e) => format!("saving the state failed too: {e}"),
        };
        with_kept(run, why, &kept)
    }
}
