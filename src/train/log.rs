//! What a run tells: a progress line, `log_history`, TensorBoard.
use super::Evaluation;
use super::events::Events;
use crate::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

/// The numbers of one log entry.
#[derive(Clone, Copy, Debug)]
pub struct StepLog {
    /// Steps taken so far.
    pub step: i64,
    /// The same in epochs.
    pub epoch: f64,
    /// Mean loss per learned token since the entry before.
    pub loss: f64,
    /// Global gradient norm of the last step, before clipping.
    pub grad_norm: f64,
    /// Learning rate of the last step.
    pub learning_rate: f64,
    /// Input tokens per second since the entry before.
    pub tokens_per_second: f64,
}

/// Collects the entries and shows them: one line that moves on a terminal, plain
/// lines elsewhere. All of it on stderr.
pub struct Log {
    /// The entries so far, with transformers' keys.
    pub history: Vec<Value>,
    logging_dir: Option<PathBuf>,
    events: Option<Events>,
    bar: Option<ProgressBar>,
}

impl Log {
    /// `history` is what a resumed run logged before; `logging_dir` gets the event
    /// file with the first number, if given.
    pub fn new(
        history: Vec<Value>,
        logging_dir: Option<&Path>,
        done: i64,
        total: i64,
    ) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total as u64).with_position(done as u64);
            let style = "{bar:24} {pos}/{len} {msg} {eta} left";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.reset_eta();
            bar
        });
        let logging_dir = logging_dir.map(Path::to_path_buf);
        Self { history, logging_dir, events: None, bar }
    }

    /// One entry. Losses and norms are kept in full, so that runs can be compared.
    pub fn step(&mut self, s: &StepLog, total: i64) {
        self.history.push(json!({
            "step": s.step,
            "epoch": s.epoch,
            "loss": s.loss,
            "grad_norm": s.grad_norm,
            "learning_rate": s.learning_rate,
            "tokens_per_second": s.tokens_per_second,
        }));
        let text = format!(
            "loss {:.4}  grad norm {:.3}  lr {:.2e}  {:.0} tok/s",
            s.loss, s.grad_norm, s.learning_rate, s.tokens_per_second
        );
        match &self.bar {
            Some(bar) => {
                bar.set_position(s.step as u64);
                bar.set_message(text);
            }
            None => self.say(&format!("step {}/{total}  {text}", s.step)),
        }
        let numbers = [
            ("train/loss", s.loss),
            ("train/grad_norm", s.grad_norm),
            ("train/learning_rate", s.learning_rate),
            ("train/tokens_per_second", s.tokens_per_second),
        ];
        self.events(s.step, &numbers);
    }

    /// What the eval file gave.
    pub fn eval(&mut self, step: i64, epoch: f64, found: &Evaluation) {
        let mut entry = json!({ "step": step, "epoch": epoch });
        let numbers = [&[("loss", found.loss)], &found.named()[..]].concat();
        for (name, value) in &numbers {
            entry[format!("eval_{name}")] = json!(value);
        }
        self.history.push(entry);
        self.say(&format!("step {step}  eval {found}"));
        let numbers: Vec<(String, f64)> =
            numbers.iter().map(|(name, x)| (format!("eval/{name}"), *x)).collect();
        let numbers: Vec<(&str, f64)> =
            numbers.iter().map(|(tag, x)| (tag.as_str(), *x)).collect();
        self.events(step, &numbers);
    }

    /// Numbers for TensorBoard. That they cannot be written is said once, and no reason
    /// to end a run.
    fn events(&mut self, step: i64, numbers: &[(&str, f64)]) {
        let Some(dir) = &self.logging_dir else { return };
        let mut write = || -> Result<()> {
            let events = match &mut self.events {
                Some(events) => events,
                none => none.insert(Events::create(dir)?),
            };
            numbers.iter().try_for_each(|(tag, x)| events.scalar(tag, step, *x))
        };
        if let Err(e) = write() {
            self.logging_dir = None;
            self.say(&format!(
                "{e}: from here on nothing is written for TensorBoard"
            ));
        }
    }

    /// A line above the progress line.
    pub fn say(&self, text: &str) {
        let text = crate::error::plain(text);
        match &self.bar {
            Some(bar) => bar.println(text),
            None => {
                // Nobody reading it is no reason to end a run.
                let _ = writeln!(std::io::stderr(), "{text}");
            }
        }
    }

    /// Takes the progress line away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
