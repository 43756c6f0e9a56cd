//! `downhill evaluate`: the loss and the metric of held-out rows.
use super::holding::{Holding, OfRun};
use anyhow::{Result, bail};
use clap::{ArgAction, Args};
use downhill::data::{Labels, RowEncoder, Tokenizer};
use downhill::models;
use downhill::train::{
    Evaluation, Head, Rows, Task, askable, exact_match, labels_for, predict, unnamed,
};
use downhill::{checkpoint::atomic, lora};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Whether `evaluate` wrote this file: it may write it again.
fn is_ours(path: &Path) -> bool {
    let text = downhill::files::text(path).unwrap_or_default();
    let all: Value = serde_json::from_slice(&text).unwrap_or_default();
    all["eval_loss"].is_number() && all["rows"].is_number()
}

#[derive(Args)]
pub(super) struct Evaluate {
    /// Checkpoint folder, or its name on the hub
    #[arg(long)]
    model: PathBuf,
    /// Adapter folder, as finetune and PEFT write it
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Rows to measure on: JSON Lines, or CSV with a header
    #[arg(long)]
    eval_file: PathBuf,
    /// What the rows hold; classification and regression need the adapter's score head.
    /// Not given: as in the adapter's run, or else causal-lm
    #[arg(long, value_enum)]
    task: Option<Task>,
    /// With --task classification: the classes in the order of the adapter's scores,
    /// where its folder does not say (PEFT does not write it)
    #[arg(long, value_delimiter = ',')]
    labels: Vec<String>,
    /// Rows in one forward pass
    #[arg(long, default_value_t = 8)]
    per_device_eval_batch_size: usize,
    /// Tokens per row; longer rows are cut. Not given: as in the adapter's run, or else
    /// 1024
    #[arg(long)]
    max_length: Option<usize>,
    /// Measure of {prompt, completion} the completion alone. Not given: as in the
    /// adapter's run, or else true
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    completion_only_loss: Option<bool>,
    /// Measure of {messages} the assistant's turns alone. Not given: as in the adapter's
    /// run, or else true
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    assistant_only_loss: Option<bool>,
    /// Answer the prompts as well, and count exact matches (causal-lm)
    #[arg(long, action = ArgAction::Set, default_value_t = false,
          num_args = 0..=1, default_missing_value = "true")]
    predict_with_generate: bool,
    /// Write the numbers here, as JSON
    #[arg(long)]
    output_file: Option<PathBuf>,
    #[command(flatten)]
    holding: Holding,
}

impl Evaluate {
    pub(super) fn run(mut self) -> Result<ExitCode> {
        self.model = super::resolve(&self.model)?;
        if self.per_device_eval_batch_size == 0 {
            bail!("--per-device-eval-batch-size: 0; at least 1");
        }
        if let Some(path) = &self.output_file {
            // Before the work, not after it.
            let dir = path.parent().filter(|d| !d.as_os_str().is_empty());
            if path.is_dir() || dir.is_some_and(|d| !d.is_dir()) {
                let path = path.display();
                bail!(
                    "--output-file: {path} cannot be a file: it is a folder, or in \
                     none; name a file in a folder that is there"
                );
            }
            if path.symlink_metadata().is_ok() && !is_ours(path) {
                let path = path.display();
                bail!(
                    "--output-file: {path} is there already, and evaluate did not \
                     write it; name another file"
                );
            }
        }
        let mut run = OfRun::new(self.adapter.as_deref())?;
        let task = run.one_of("task", self.task, |t| t.task, Task::CausalLm);
        if task != Task::CausalLm && self.predict_with_generate {
            bail!("--predict-with-generate: only with --task causal-lm");
        }
        let labels = self.labels(task)?;
        let options = self.holding.options(&mut run)?;
        let device = options.device;
        let config = models::read_config(&self.model)?;
        let tokenizer = Tokenizer::find(&self.model)?;
        let vocabulary = config.vocab_size;
        let length = run.or("max_length", self.max_length, |t| t.max_length, 1024);
        let mut encoder = RowEncoder::new(tokenizer.as_ref(), length, vocabulary);
        if task == Task::CausalLm {
            encoder.completion_only_loss = run.or(
                "completion_only_loss",
                self.completion_only_loss,
                |t| t.completion_only_loss,
                true,
            );
            encoder.assistant_only_loss = run.or(
                "assistant_only_loss",
                self.assistant_only_loss,
                |t| t.assistant_only_loss,
                true,
            );
        }
        run.say();
        let known = labels.as_ref().map(|(labels, _)| labels);
        let rows = Rows::load(&self.eval_file, task, &encoder, known);
        let rows = match (&labels, &self.adapter) {
            (Some((_, false)), Some(dir)) => rows.map_err(|e| unnamed(e, dir))?,
            _ => rows?,
        };
        eprintln!("{}: {rows}", self.eval_file.display());
        if self.predict_with_generate {
            askable(tokenizer.as_ref(), Some(&rows))?;
        }
        let mut model = models::load(&self.model, &options, &mut |_, _| ())?;
        for note in &model.notes {
            eprintln!("{}: {note}", self.model.display());
        }
        let head = rows.labels().cloned();
        let head = head.map(|l| Head::random(l, config.hidden_size, 0, device));
        if let Some(dir) = &self.adapter {
            if lora::unties(dir)? {
                model.untie();
            }
            let mut parameters = model.named_parameters();
            parameters.extend(head.iter().map(Head::named));
            lora::load_for_use(dir, (model.linears_mut(), parameters), device)?;
            lora::settle(model.linears_mut())?;
        }
        let size = self.per_device_eval_batch_size;
        let found = Evaluation::run(&model, head.as_ref(), &rows, size)?;
        let mut all = found.json();
        all["rows"] = json!(rows.len());
        println!("{found}");
        if self.predict_with_generate {
            let (Some(tokenizer), Some(text)) = (&tokenizer, rows.text()) else {
                bail!("--predict-with-generate needs a tokenizer.json");
            };
            let given = predict(&model, tokenizer, text, &mut |_, _| ())?;
            let right = exact_match(&given);
            let n = given.len();
            let what = if n == text.len() { "rows" } else { "answers" };
            println!("exact match {:.1} % of {n} {what}", 100. * right);
            all["eval_exact_match"] = json!(right);
        }
        if let Some(path) = &self.output_file {
            let text = serde_json::to_string_pretty(&all)? + "\n";
            atomic::bytes(path, text.as_bytes())?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// What the scores of the adapter mean, and whether something says so.
    fn labels(&self, task: Task) -> Result<Option<(Labels, bool)>> {
        let dir = self.adapter.as_deref();
        if task == Task::CausalLm {
            return Ok(labels_for(task, None, &self.labels)?);
        }
        let Some(dir) = dir else {
            bail!("--adapter: needed for --task {}: its score head", task.name());
        };
        let labels = labels_for(task, Some(dir), &self.labels)?;
        if lora::head_scores(dir)?.is_none() {
            bail!(
                "--task {}: the adapter in {} has no score head (modules_to_save); it \
                 was trained for --task causal-lm",
                task.name(),
                dir.display()
            );
        }
        Ok(labels)
    }
}
