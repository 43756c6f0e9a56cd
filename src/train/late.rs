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
use crate::nn::Mode;
use crate::optim::clip_grad_norm_late;
use crate::{Error, Result};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};
use tch::{Cuda, Device, Kind, Tensor, no_grad};

/// Loss, and norm of the gradient before clipping.
pub(super) enum Numbers {
    Known(f64, f64),
    /// On their way into host memory: both as a pair, and behind them a stamp, which is
    /// there when they are.
    Coming {
        pair: Tensor,
        stamp: Tensor,
        awaited: i64,
        home: Device,
    },
}

/// The next stamp. No two are alike in a process, nor like what else it may have left
/// in that memory, which libtorch hands out again: an old stamp would pass for the new.
static STAMP: AtomicI64 = AtomicI64::new(0x5EED_57A3_0000_0000);

/// How long to look for numbers before libtorch is asked to wait: it tells as well what
/// went wrong on the device.
const PATIENCE: Duration = Duration::from_secs(2);

impl Numbers {
    /// Clips on the device, and sends the numbers off.
    pub(super) fn coming(run: &Run, loss: &Tensor, max_norm: f64) -> Self {
        let awaited = STAMP.fetch_add(1, Ordering::Relaxed);
        no_grad(|| {
            let params = run.optimizer.params();
            let norm = clip_grad_norm_late(params, max_norm, loss);
            let pair = Tensor::stack(&[loss.to_kind(Kind::Double), norm], 0);
            let stamp = Tensor::full(1, awaited, (Kind::Int64, loss.device()));
            let (pair, stamp) = (fetched(&pair), fetched(&stamp));
            Self::Coming { pair, stamp, awaited, home: loss.device() }
        })
    }

    fn wait(&self) -> (f64, f64) {
        let (pair, stamp, awaited, home) = match self {
            Self::Known(loss, norm) => return (*loss, *norm),
            Self::Coming { pair, stamp, awaited, home } => {
                (pair, stamp, *awaited, home)
            }
        };
        let began = Instant::now();
        while stamp.int64_value(&[0]) != awaited {
            match home {
                Device::Cuda(i) if began.elapsed() > PATIENCE => {
                    Cuda::synchronize(*i as i64);
                }
                _ => std::thread::sleep(Duration::from_micros(50)),
            }
        }
        (pair.double_value(&[0]), pair.double_value(&[1]))
    }
}

/// In host memory that the device writes by itself, some time.
fn fetched(t: &Tensor) -> Tensor {
    t.to_device_(Device::Cpu, t.kind(), true, true)
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
            run.log.step(&entry, run.total)?;
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
