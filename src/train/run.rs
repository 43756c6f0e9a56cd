//! A fine-tune, put together from its settings.
use super::earlier::LENGTHS;
use super::fit::Window;
use super::output::{NotThere, Output};
use super::saved::Resumed;
use super::{
    Base, Content, Evaluation, Head, Log, Origin, Rows, Settings, Task, When, state,
};
use crate::data::{Dataset, Grouping, Plan, Tokenizer};
use crate::device::guarded;
use crate::lora::{self, LoraConfig, TaskType};
use crate::models::Decoder;
use crate::optim::{Optimizer, Param};
use crate::plot::{Chart, Figure};
use crate::schedule::Schedule;
use crate::{Error, Result};
use serde_json::Value;

/// Everything that [`super::fit`] works on.
pub struct Run {
    /// As given.
    pub settings: Settings,
    /// The base model with its adapters.
    pub model: Decoder,
    /// Scores for whole rows, where the task is not to continue text.
    pub head: Option<Head>,
    /// The adapters' settings: the flags', or the initial adapter's.
    pub lora: LoraConfig,
    /// What PiSSA took out of the weights, if it did.
    starts: lora::Named,
    /// Owns the adapters' tensors and what is remembered of them.
    pub optimizer: Box<dyn Optimizer>,
    /// Learning rate by step.
    pub schedule: Box<dyn Schedule>,
    /// Rows to learn from.
    pub train: Rows,
    /// Which rows an epoch takes together.
    pub plan: Plan,
    /// Rows to measure on.
    pub eval: Option<Rows>,
    /// Fingerprints of what the run is made of.
    pub content: Content,
    /// The model's tokenizer, if its folder has one.
    pub tokenizer: Option<Tokenizer>,
    /// Steps taken.
    pub step: i64,
    /// Steps to take in all.
    pub total: i64,
    /// Steps in one pass over the rows.
    pub per_epoch: i64,
    /// What is told and kept of the run.
    pub log: Log,
    /// What the eval file gave before the first step.
    pub before: Value,
    /// And after the last.
    pub after: Option<Evaluation>,
    /// By how much a forward pass made the memory of the process grow, at most.
    pub grown: Option<usize>,
    /// Read the numbers of a step a step late: on a GPU, which would have nothing to
    /// do while the host waited.
    pub late: bool,
    pub(super) window: Window,
    /// The folder that is its own while it lives.
    pub(super) output: Output,
}

impl Run {
    /// Adds adapters, optimizer and log to a model; goes on from a checkpoint if the
    /// settings say so.
    ///
    /// # Errors
    /// What attaching or reading adapters, restoring and writing return.
    pub fn start(
        base: Base,
        settings: Settings,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let Base { mut model, head, tokenizer, train, eval, origin } = base;
        let Origin { content, saved } = origin;
        let from = saved.as_ref().map(|s| s.dir.as_path());
        let device = model.device();
        let score = || head.iter().map(Head::named);
        let begun = from.or(settings.init_adapter.as_deref());
        if begun.map_or(Ok(false), lora::unties)? {
            model.untie();
        }
        let mut parameters = model.named_parameters();
        parameters.extend(score());
        let parts = (model.linears_mut(), parameters);
        let (mut lora, mut adapters) = match begun {
            Some(dir) => lora::load_adapter(dir, parts, device)?,
            None => {
                let config = settings.lora();
                let named = lora::attach(parts, &config, settings.seed, device)?;
                (config, named)
            }
        };
        // An adapter of another task may be a start: the head is then new.
        for (name, t) in score() {
            lora.task_type = TaskType::SeqCls;
            if !adapters.iter().any(|(n, _)| *n == name) {
                adapters.push((name, t.set_requires_grad(true)));
                lora.modules_to_save.push("score".into());
            }
        }
        lora.dropout = settings.lora_dropout;
        let starts = lora::init::pissa_starts(model.linears_mut());
        for (_, linear) in model.linears_mut() {
            if let Some(adapter) = &mut linear.lora {
                adapter.dropout = lora.dropout;
            }
        }
        let inner = |n: &str| n.contains(".layers.") && !n.contains(".lora_");
        if model.checkpointing && adapters.iter().any(|(n, _)| inner(n)) {
            let what = "modules of a layer get no gradient through \
                        --gradient-checkpointing; switch it off";
            return Err(Error::setting("--modules-to-save", what));
        }
        // Not before the adapters are there: they may come from that folder, and a
        // run that cannot begin should move nothing.
        let output = Output::claim(&settings, from, say)?;
        let trained: usize = adapters.iter().map(|(_, t)| t.numel()).sum();
        say(&format!(
            "LoRA r = {}, alpha = {}: {} adapters, {trained} trained parameters",
            lora.r,
            lora.alpha,
            adapters.iter().filter(|(n, _)| n.ends_with("lora_A.weight")).count()
        ));
        let params = Param::with_decay(adapters, |_, _| settings.weight_decay);
        let mut optimizer = settings.optimizer(params);

        let plan = plan(&train, &settings, say)?;
        let per_epoch = state::steps_per_epoch(
            plan.packs(),
            settings.per_device_train_batch_size,
            settings.gradient_accumulation_steps,
        );
        let total = match settings.max_steps {
            -1 => (settings.num_train_epochs * per_epoch as f64).ceil() as i64,
            steps => steps,
        };
        let resumed = match &saved {
            Some(saved) => saved.restore(total, &mut *optimizer)?,
            None => Resumed::default(),
        };
        let logging_dir = Some(settings.logging_dir.as_path());
        // The adapters, two averages of each of their numbers, and the log.
        let entries = (total / settings.logging_steps).max(1) as u64;
        output.reserve(12 * trained as u64 + 400 * entries + (64 << 10))?;
        let log = Log::new(resumed.history, logging_dir, resumed.step, total);
        Ok(Self {
            schedule: settings.schedule(total)?,
            settings,
            model,
            head,
            lora,
            starts,
            optimizer,
            train,
            plan,
            eval,
            content,
            tokenizer,
            step: resumed.step,
            total,
            per_epoch,
            log,
            before: resumed.before,
            after: None,
            grown: None,
            late: device.is_cuda(),
            window: resumed.window,
            output,
        })
    }

    /// Passes over the rows so far.
    pub fn epoch(&self) -> f64 {
        self.step as f64 / self.per_epoch as f64
    }

    pub(super) fn state(&self) -> Value {
        let steps = (self.step, self.total);
        let history = &self.log.history;
        let epoch = self.epoch();
        let made_of = (&self.settings, &self.content);
        let mut state = state::trainer_state(made_of, steps, epoch, history);
        state["eval_before"] = self.before.clone();
        if let Some(after) = &self.after {
            state["eval_after"] = after.json();
        }
        state
    }

    /// Measures what the eval file gives before the first step, if that is wanted and
    /// not done yet.
    ///
    /// # Errors
    /// As [`Run::evaluate`].
    pub fn evaluate_before(&mut self) -> Result<()> {
        let measured = self.settings.eval_strategy != When::No;
        if self.step == 0
            && measured
            && self.before.is_null()
            && let Some(found) = self.evaluate()?
        {
            self.log.say(&format!("before  eval {found}"));
            self.before = found.json();
        }
        Ok(())
    }

    /// The loss and the metrics on the eval file, if there is one.
    pub fn evaluate(&self) -> Result<Option<Evaluation>> {
        let size = self.settings.per_device_train_batch_size;
        let run = |rows| {
            let head = self.head.as_ref();
            guarded(|| Evaluation::run(&self.model, head, rows, size))
        };
        let found = self.eval.as_ref().map(run).transpose();
        found.map_err(|e| match e {
            Error::OutOfMemory(what) => {
                let flag = "--per-device-train-batch-size";
                Error::OutOfMemory(format!(
                    "measuring: {what}. Lower {flag} ({size})"
                ))
            }
            other => other,
        })
    }

    /// Writes adapter and `trainer_state.json` into the output folder.
    pub fn finish(&self) -> Result<()> {
        let late = self.train.text().map_or(vec![], Dataset::skipped_late);
        if let Some(first) = late.first() {
            let n = late.len();
            self.log
                .say(&format!("{n} rows had no token to learn (line {first}, ...)"));
        }
        self.log.finish();
        let mut trained = state::adapters(&*self.optimizer);
        let mut lora = self.lora.clone();
        // DoRA's lengths are not those of a sum, so with them it stays PiSSA's.
        if !self.starts.is_empty() && !lora.use_dora {
            let starts = &self.starts;
            (lora, trained) = lora::init::pissa_to_lora(&lora, &trained, starts);
        }
        let state = self.state();
        let written = self.output.last(|out| {
            state::adapter(self, out, (&lora, &trained))?;
            state::write_json(&out.join(state::STATE), &state)?;
            Ok(out.to_path_buf())
        });
        match written {
            Ok(_) => {
                self.output.finished();
                if self.model.config.latent.is_some()
                    && let Some(why) = lora::fused::obstacle(&lora, &trained)
                {
                    self.log.say(&why);
                }
                Ok(())
            }
            Err(NotThere {
                why: Error::Io { path, source },
                instead: Some(dir),
            }) => {
                let what = format!(
                    "{source}; adapter and trainer_state.json are in {} instead",
                    dir.display()
                );
                Err(Error::file(path, what))
            }
            Err(other) => Err(other.why),
        }
    }

    /// The losses by step.
    pub fn curve(&self) -> Result<Figure> {
        let series = |key: &str| -> Vec<(f64, f64)> {
            let point = |e: &Value| Some((e["step"].as_f64()?, e[key].as_f64()?));
            self.log.history.iter().filter_map(point).collect()
        };
        let unit = match self.settings.task {
            Task::CausalLm => "loss per token (nats)",
            Task::Classification => "loss per row (nats)",
            Task::Regression => "squared error per row",
        };
        let chart =
            Chart::new("Fine-tune", "step", unit).line("training", series("loss"));
        let eval = series("eval_loss");
        let chart = match eval.is_empty() {
            true => chart,
            false => chart.line("held out", eval.clone()).points("", eval),
        };
        chart.draw()
    }
}

/// The order of the rows, as the settings say.
fn plan(
    train: &Rows,
    settings: &Settings,
    say: &mut dyn FnMut(&str),
) -> Result<Plan> {
    let grouping = settings.grouping();
    let alone = grouping == Grouping::Alone;
    let cache = settings.output_dir.join(LENGTHS);
    let lengths = if alone { vec![] } else { train.lengths(&cache)? };
    let tokens: u64 = lengths.iter().map(|n| u64::from(*n)).sum();
    let plan =
        Plan::new(train.len(), lengths, grouping, settings.seed, settings.shuffle);
    if plan.packs() == 0 {
        let what = "no row has a token to learn";
        return Err(Error::file(&settings.train_file, what));
    }
    if settings.packing {
        let (rows, packs) = (train.len(), plan.packs());
        let room = (packs * settings.max_length) as f64;
        let full = 100. * tokens as f64 / room;
        say(&format!("{rows} rows in {packs} packs, {full:.0} % full"));
    }
    Ok(plan)
}
