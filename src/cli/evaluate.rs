//! `downhill evaluate`: the loss and the metric of held-out rows.
use super::holding::Holding;
use anyhow::{Result, bail};
use clap::{ArgAction, Args};
use downhill::data::{Labels, RowEncoder, Tokenizer};
use downhill::models;
use downhill::train::{
    Evaluation, Head, Rows, Task, exact_match, predict, saved_labels,
};
use downhill::{checkpoint::atomic, lora};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Whether `evaluate` wrote this file: it may write it again.
fn is_ours(path: &Path) -> bool {
    let text = std::fs::read(path).unwrap_or_default();
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
    /// What the rows hold; classification and regression need the adapter's score head
    #[arg(long, value_enum, default_value_t = Task::CausalLm)]
    task: Task,
    /// Rows in one forward pass
    #[arg(long, default_value_t = 8)]
    per_device_eval_batch_size: usize,
    /// Tokens per row; longer rows are cut
    #[arg(long, default_value_t = 1024)]
    max_length: usize,
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
        let labelled = self.task != Task::CausalLm;
        if labelled && self.predict_with_generate {
            bail!("--predict-with-generate: only with --task causal-lm");
        }
        let labels = self.labels()?;
        let options = self.holding.options()?;
        let device = options.device;
        let config = models::read_config(&self.model)?;
        let tokenizer = Tokenizer::find(&self.model)?;
        let vocabulary = config.vocab_size;
        let encoder =
            RowEncoder::new(tokenizer.as_ref(), self.max_length, vocabulary);
        let rows =
            Rows::load(&self.eval_file, self.task, &encoder, labels.as_ref())?;
        eprintln!("{}: {rows}", self.eval_file.display());
        let mut model = models::load(&self.model, &options, &mut |_, _| ())?;
        for note in &model.notes {
            eprintln!("{}: {note}", self.model.display());
        }
        let head = rows.labels().cloned();
        let head = head.map(|l| Head::random(l, config.hidden_size, 0, device));
        if let Some(dir) = &self.adapter {
            let mut parameters = model.named_parameters();
            parameters.extend(head.iter().map(Head::named));
            lora::load_adapter(dir, (model.linears_mut(), parameters), device)?;
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
            println!("exact match {:.1} % of {} rows", 100. * right, given.len());
            all["eval_exact_match"] = json!(right);
        }
        if let Some(path) = &self.output_file {
            let text = serde_json::to_string_pretty(&all)? + "\n";
            atomic::bytes(path, text.as_bytes())?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// What the scores of the adapter mean; None if nothing says so.
    fn labels(&self) -> Result<Option<Labels>> {
        if self.task == Task::CausalLm {
            return Ok(None);
        }
        let Some(dir) = &self.adapter else {
            bail!(
                "--adapter: needed for --task {}: its score head",
                self.task.name()
            );
        };
        let config = lora::read_config(dir)?;
        if !config.modules_to_save.iter().any(|m| m == "score") {
            bail!(
                "--task {}: the adapter in {} has no score head (modules_to_save); it \
                 was trained for --task causal-lm",
                self.task.name(),
                dir.display()
            );
        }
        let labels = saved_labels(dir)?;
        match (self.task, &labels) {
            (Task::Classification, Some(Labels::Numbers)) => {
                bail!(
                    "--task classification: the adapter is one of --task regression"
                )
            }
            (Task::Regression, Some(Labels::Classes(_))) => {
                bail!(
                    "--task regression: the adapter is one of --task classification"
                )
            }
            _ => Ok(labels),
        }
    }
}
