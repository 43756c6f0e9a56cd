//! A fine-tune, put together from its settings.
use super::fit::Window;
use super::{Log, OptimizerType, Settings, Switch, state};
use crate::checkpoint::atomic;
use crate::data::{Dataset, Grouping, Plan, RowEncoder, Tokenizer};
use crate::lora::{self, LoraConfig};
use crate::models::{self, Decoder, LoadOptions};
use crate::optim::{Adam, AdamW, Driver, Optimizer, Param, Sgd};
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
    /// The adapters' settings: the flags', or the initial adapter's.
    pub lora: LoraConfig,
    /// Owns the adapters' tensors and what is remembered of them.
    pub optimizer: Box<dyn Optimizer>,
    /// Learning rate by step.
    pub schedule: Box<dyn Schedule>,
    /// Rows to learn from.
    pub train: Dataset,
    /// Which rows an epoch takes together.
    pub plan: Plan,
    /// Rows to measure on.
    pub eval: Option<Dataset>,
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
    pub(super) window: Window,
}

/// A model with its data, before adapters.
pub struct Base {
    /// The base model.
    pub model: Decoder,
    /// Its tokenizer, if its folder has one.
    pub tokenizer: Option<Tokenizer>,
    /// Rows to learn from.
    pub train: Dataset,
    /// Rows to measure on.
    pub eval: Option<Dataset>,
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
        let encoder = RowEncoder {
            completion_only_loss: settings.completion_only_loss,
            assistant_only_loss: settings.assistant_only_loss,
            ..RowEncoder::new(
                tokenizer.as_ref(),
                settings.max_length,
                config.vocab_size,
            )
        };
        let mut read = |path: &Path| -> Result<Dataset> {
            let data = Dataset::read(path, encoder.clone())?;
            say(&format!("{}: {}", path.display(), data.summary));
            Ok(data)
        };
        let mut train = read(&settings.train_file)?;
        let mut eval = settings.eval_file.as_deref().map(&mut read).transpose()?;
        if settings.validation_split > 0. {
            let (rest, held) =
                train.split(settings.validation_split, settings.seed)?;
            say(&format!("of these, {} rows are kept for measuring", held.len()));
            (train, eval) = (rest, Some(held));
        }
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
        Ok(Self { model, tokenizer, train, eval })
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
        let Base { mut model, tokenizer, train, eval } = base;
        let out = &settings.output_dir;
        let from = checkpoint_to_resume(&settings, say)?;
        let device = model.device();
        let linears = model.linears_mut();
        let (lora, adapters) = match from.as_ref().or(settings.init_adapter.as_ref())
        {
            Some(dir) => lora::load_adapter(dir, linears, device)?,
            None => {
                let config = settings.lora();
                let named = lora::attach(linears, &config, settings.seed, device)?;
                (config, named)
            }
        };
        let lora = LoraConfig { dropout: settings.lora_dropout, ..lora };
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
            adapters.len() / 2
        ));
        let params = Param::with_decay(adapters, |_, _| settings.weight_decay);
        let mut optimizer: Box<dyn Optimizer> = match settings.optim {
            OptimizerType::Adamw => Box::new(Driver::new(AdamW::default(), params)),
            OptimizerType::Adam => Box::new(Driver::new(Adam::default(), params)),
            OptimizerType::Sgd => Box::new(Driver::new(Sgd::default(), params)),
        };

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
        let resumed = match &from {
            Some(dir) => state::restore(dir, &settings, &mut *optimizer)?,
            None => state::Resumed::default(),
        };
        let logging_dir = Some(settings.logging_dir.as_path());
        let log = Log::new(resumed.history, logging_dir, resumed.step, total)?;
        Ok(Self {
            schedule: settings.schedule(total),
            settings,
            model,
            lora,
            optimizer,
            train,
            plan,
            eval,
            tokenizer,
            step: resumed.step,
            total,
            per_epoch,
            log,
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
        state::trainer_state(&self.settings, steps, self.epoch(), history)
    }

    /// Writes adapter, `trainer_state.json` and the loss curve into the output folder.
    pub fn finish(&self) -> Result<()> {
        let late = self.train.skipped_late();
        if let Some(first) = late.first() {
            let n = late.len();
            self.log
                .say(&format!("{n} rows had no token to learn (line {first}, ...)"));
        }
        self.log.finish();
        let out = &self.settings.output_dir;
        let base = self.settings.model.display().to_string();
        let adapters = state::adapters(&*self.optimizer);
        lora::save_adapter(out, &self.lora, &base, &adapters)?;
        state::write_json(&out.join(state::STATE), &self.state())?;
        self.curve()?.save(out.join("loss.svg"))
    }

    /// The losses by step.
    pub fn curve(&self) -> Result<Figure> {
        let series = |key: &str| -> Vec<(f64, f64)> {
            let point = |e: &Value| Some((e["step"].as_f64()?, e[key].as_f64()?));
            self.log.history.iter().filter_map(point).collect()
        };
        let chart = Chart::new("Fine-tune", "step", "loss per token (nats)")
            .line("training", series("loss"));
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
    train: &Dataset,
    settings: &Settings,
    say: &mut dyn FnMut(&str),
) -> Result<Plan> {
    let grouping = settings.grouping();
    let alone = grouping == Grouping::Alone;
    let cache = settings.output_dir.join("row_lengths.bin");
    let lengths = if alone { vec![] } else { train.lengths_cached(&cache)? };
    let tokens: u64 = lengths.iter().map(|n| u64::from(*n)).sum();
    let plan =
        Plan::new(train.len(), lengths, grouping, settings.seed, settings.shuffle);
    if settings.packing {
        let (rows, packs) = (train.len(), plan.packs());
        let room = (packs * settings.max_length) as f64;
        let full = 100. * tokens as f64 / room;
        say(&format!("{rows} rows in {packs} packs, {full:.0} % full"));
    }
    Ok(plan)
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
