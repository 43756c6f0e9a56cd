//! A fine-tune, put together from its settings.
use super::fit::Window;
use super::{
    Evaluation, Head, Log, Rows, Settings, Switch, Task, saved_labels, state,
};
use crate::checkpoint::atomic;
use crate::data::{Labels, Tokenizer};
use crate::lora::{self, LoraConfig, TaskType};
use crate::models::{self, Decoder, LoadOptions};
use crate::optim::{Optimizer, Param};
use crate::plot::{Chart, Figure};
use crate::schedule::Schedule;
use crate::{Error, Result, device};
use serde_json::Value;
use std::path::{Path, PathBuf};

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
    /// Owns the adapters' tensors and what is remembered of them.
    pub optimizer: Box<dyn Optimizer>,
    /// Learning rate by step.
    pub schedule: Box<dyn Schedule>,
    /// Rows to learn from.
    pub train: Rows,
    /// Rows to measure on.
    pub eval: Option<Rows>,
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
    pub(super) window: Window,
}

/// A model with its data, before adapters.
pub struct Base {
    /// The base model.
    pub model: Decoder,
    /// Scores for whole rows, where the task is not to continue text.
    pub head: Option<Head>,
    /// Its tokenizer, if its folder has one.
    pub tokenizer: Option<Tokenizer>,
    /// Rows to learn from.
    pub train: Rows,
    /// Rows to measure on.
    pub eval: Option<Rows>,
}

impl Base {
    /// Reads model and rows. `say` gets a line for each thing that is done.
    ///
    /// # Errors
    /// A setting that cannot work; what reading model, tokenizer and rows returns.
    pub fn load(settings: &Settings, say: &mut dyn FnMut(&str)) -> Result<Self> {
        settings.check()?;
        let device = device::parse(&settings.device)?;
        check_folder(&settings.model)?;
        // The rows first: they are read in a moment, and wrong more often.
        let config = models::read_config(&settings.model)?;
        let tokenizer = match settings.model.join("tokenizer.json").exists() {
            true => Some(Tokenizer::from_dir(&settings.model)?),
            false => None,
        };
        let limits = (settings.max_length, config.vocab_size);
        let mut read = |path: &Path, labels: Option<&Labels>| -> Result<Rows> {
            let tokenizer = tokenizer.as_ref();
            let rows = Rows::load(path, settings.task, tokenizer, limits, labels)?;
            say(&format!("{}: {rows}", path.display()));
            Ok(rows)
        };
        let train = read(&settings.train_file, earlier_labels(settings)?.as_ref())?;
        let eval = settings.eval_file.as_deref();
        let eval = eval.map(|path| read(path, train.labels())).transpose()?;
        let head = train.labels().cloned().map(|labels| {
            Head::random(labels, config.hidden_size, settings.seed, device)
        });
        let options = LoadOptions {
            quantize: settings.load_in_4bit,
            double_quant: settings.bnb_4bit_use_double_quant,
            kind: settings.compute_dtype.kind(device),
            device,
        };
        let mut model = models::load(&settings.model, &options, &mut |_, _| ())?;
        model.checkpointing = match settings.gradient_checkpointing {
            Switch::Auto => device.is_cuda(),
            Switch::True => true,
            Switch::False => false,
        };
        let what = if settings.load_in_4bit { "NF4" } else { "unquantized" };
        say(&format!(
            "{}: {what}, {:.1} MiB, computing in {:?} on {device:?}",
            settings.model.display(),
            model.bytes() as f64 / 1024f64.powi(2),
            options.kind
        ));
        Ok(Self { model, head, tokenizer, train, eval })
    }
}

/// A folder, said in words if it is not.
fn check_folder(model: &Path) -> Result<()> {
    match model.is_dir() {
        true => Ok(()),
        false => Err(Error::setting(
            "--model",
            format!(
                "`{}` is no folder. Models are not fetched from a hub by this \
                 version: download the checkpoint and name its folder",
                model.display()
            ),
        )),
    }
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
        let Base { mut model, head, tokenizer, train, eval } = base;
        let out = &settings.output_dir;
        let from = checkpoint_to_resume(&settings, say)?;
        let device = model.device();
        let score = || head.iter().map(Head::named);
        let parts = (model.linears_mut(), score().collect());
        let (mut lora, mut adapters) =
            match from.as_ref().or(settings.init_adapter.as_ref()) {
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
        for (_, linear) in model.linears_mut() {
            if let Some(adapter) = &mut linear.lora {
                adapter.dropout = lora.dropout;
            }
        }
        // Not before the adapters are there: they may come from that folder, and a
        // run that cannot begin should move nothing.
        if from.is_none()
            && let Some(kept) = set_aside(out)?
        {
            say(&format!(
                "{} held an earlier run; it is now {}",
                out.display(),
                kept.display()
            ));
        }
        std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
        atomic::sweep(out);
        let trained: usize = adapters.iter().map(|(_, t)| t.numel()).sum();
        say(&format!(
            "LoRA r = {}, alpha = {}: {} adapters, {trained} trained parameters",
            lora.r,
            lora.alpha,
            adapters.iter().filter(|(n, _)| n.ends_with("lora_A.weight")).count()
        ));
        let params = Param::with_decay(adapters, |_, _| settings.weight_decay);
        let mut optimizer = settings.optimizer(params);

        let per_epoch = state::steps_per_epoch(
            train.len(),
            settings.per_device_train_batch_size,
            settings.gradient_accumulation_steps,
        );
        let total = match settings.max_steps {
            -1 => (settings.num_train_epochs * per_epoch as f64).ceil() as i64,
            steps => steps,
        };
        let resumed = match &from {
            Some(dir) => state::restore(dir, &settings, &mut *optimizer)?,
            None => state::Resumed::default(),
        };
        let logging_dir = Some(settings.logging_dir.as_path());
        let log = Log::new(resumed.history, logging_dir, resumed.step, total)?;
        Ok(Self {
            schedule: settings.schedule(total)?,
            settings,
            model,
            head,
            lora,
            optimizer,
            train,
            eval,
            tokenizer,
            step: resumed.step,
            total,
            per_epoch,
            log,
            before: resumed.before,
            after: None,
            grown: None,
            window: resumed.window,
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
        let mut state = state::trainer_state(&self.settings, steps, epoch, history);
        state["eval_before"] = self.before.clone();
        if let Some(after) = &self.after {
            state["eval_after"] = after.json();
        }
        state
    }

    /// The loss and the metrics on the eval file, if there is one.
    pub fn evaluate(&self) -> Result<Option<Evaluation>> {
        let size = self.settings.per_device_train_batch_size;
        let run =
            |rows| Evaluation::run(&self.model, self.head.as_ref(), rows, size);
        self.eval.as_ref().map(run).transpose()
    }

    /// Writes adapter and `trainer_state.json` into the output folder.
    pub fn finish(&self) -> Result<()> {
        self.log.finish();
        let out = &self.settings.output_dir;
        state::adapter(self, out)?;
        state::write_json(&out.join(state::STATE), &self.state())
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

/// The labels of the adapter that this run goes on from, if any.
fn earlier_labels(settings: &Settings) -> Result<Option<Labels>> {
    let out = &settings.output_dir;
    let from = match &settings.resume {
        Some(dir) if dir.as_os_str() == "latest" => state::latest_checkpoint(out),
        Some(dir) => Some(dir.clone()),
        None => settings.init_adapter.clone(),
    };
    let labels = from.as_deref().map(saved_labels).transpose()?.flatten();
    match (settings.task, &labels) {
        (_, None) | (Task::Regression, Some(Labels::Numbers)) => Ok(labels),
        (Task::Classification, Some(Labels::Classes(_))) => Ok(labels),
        (task, Some(_)) => {
            let dir = from.unwrap_or_default();
            let what = format!(
                "{}, but the adapter in {} is for another; a new run can begin \
                 without it",
                task.name(),
                dir.display()
            );
            Err(Error::setting("--task", what))
        }
    }
}

/// The folder that `--resume` means, if there is one to go on from.
fn checkpoint_to_resume(
    settings: &Settings,
    say: &mut dyn FnMut(&str),
) -> Result<Option<PathBuf>> {
    let Some(dir) = &settings.resume else { return Ok(None) };
    if dir.as_os_str() != "latest" {
        if dir.join(state::STATE).is_file() {
            say(&format!("going on from {}", dir.display()));
            return Ok(Some(dir.clone()));
        }
        let what = "holds no trainer_state.json; name a checkpoint-<step> folder";
        return Err(Error::setting("--resume", format!("{} {what}", dir.display())));
    }
    let found = state::latest_checkpoint(&settings.output_dir);
    match &found {
        Some(dir) => say(&format!("going on from {}", dir.display())),
        None => say(&format!(
            "no checkpoint in {} yet: beginning at the start",
            settings.output_dir.display()
        )),
    }
    Ok(found)
}

/// Renames an output folder that holds an earlier run, so that nothing of it is
/// overwritten or taken for this one. Returns its new name.
fn set_aside(out: &Path) -> Result<Option<PathBuf>> {
    let used = out.join(state::STATE).exists()
        || out.join("adapter_model.safetensors").exists()
        || state::latest_checkpoint(out).is_some();
    if !used {
        return Ok(None);
    }
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let free = (1..).map(|n| out.with_file_name(format!("{name}.{n}")));
    let Some(aside) = free.into_iter().find(|p| !p.exists()) else {
        return Ok(None);
    };
    std::fs::rename(out, &aside).map_err(|e| Error::io(out, e))?;
    Ok(Some(aside))
}
