//! `downhill finetune`: LoRA adapters from rows.
use super::signals;
use anyhow::{Result, bail};
use clap::Args;
use downhill::checkpoint::atomic;
use downhill::data::Tokenizer;
use downhill::models::Decoder;
use downhill::train::{
    Base, Outcome, Prediction, Rows, Run, Settings, abandon, check_outputs,
    exact_match, fit, predict,
};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

#[derive(Args)]
pub(super) struct Finetune {
    /// A TOML file with these flags as keys; flags given here win
    #[arg(long)]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// What `--help` puts together. A flag that is not here stands at the top.
const HEADINGS: [(&str, &[&str]); 5] = [
    (
        "Length and steps",
        &[
            "num_train_epochs",
            "max_steps",
            "learning_rate",
            "lr_scheduler_type",
            "lr_scheduler_kwargs",
            "warmup_ratio",
            "optim",
            "weight_decay",
            "max_grad_norm",
        ],
    ),
    (
        "Rows and batches",
        &[
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "max_length",
            "packing",
            "group_by_length",
            "completion_only_loss",
            "assistant_only_loss",
            "shuffle",
            "labels",
        ],
    ),
    (
        "Adapters",
        &[
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "target_modules",
            "exclude_modules",
            "layers_to_transform",
            "rank_pattern",
            "alpha_pattern",
            "use_rslora",
            "use_dora",
            "lora_bias",
            "init_lora_weights",
            "modules_to_save",
            "init_adapter",
        ],
    ),
    (
        "Weights and memory",
        &[
            "load_in_4bit",
            "bnb_4bit_quant_type",
            "bnb_4bit_use_double_quant",
            "bnb_4bit_blocksize",
            "quantized_cache",
            "cache_dequant",
            "compute_dtype",
            "gradient_checkpointing",
        ],
    ),
    (
        "Measuring and saving",
        &[
            "save_strategy",
            "save_steps",
            "eval_strategy",
            "eval_steps",
            "logging_steps",
            "predict_with_generate",
        ],
    ),
];

/// The heading of a flag.
pub(super) fn heading(flag: &str) -> Option<&'static str> {
    let found = HEADINGS.iter().find(|(_, flags)| flags.contains(&flag));
    found.map(|(heading, _)| *heading)
}

impl Finetune {
    pub(super) fn run(mut self) -> Result<ExitCode> {
        let config = self.config.iter().map(|p| ("--config", p.as_path()));
        check_outputs(&self.settings, &config.collect::<Vec<_>>())?;
        self.settings.model = super::resolve(&self.settings.model)?;
        finetune(self.settings)
    }
}

fn finetune(settings: Settings) -> Result<ExitCode> {
    let (out, cache) =
        (settings.output_dir.clone(), settings.quantized_cache.clone());
    let watch = signals::watch(move || {
        abandon(&out);
        atomic::abandon(&cache);
    })?;
    let say = &mut |line: &str| eprintln!("{line}");
    let base = Base::load(&settings, say)?;
    let before = answers(&settings, &base.model, &base.tokenizer, &base.eval)?;
    let mut run = Run::start(base, settings, say)?;
    run.evaluate_before()?;
    watch.training(true);
    if let Outcome::Stopped(step, dir) = fit(&mut run, &watch.stop)? {
        run.log.finish();
        eprintln!(
            "stopped after step {step} of {}; saved in {}. To go on, give the same \
             command with --resume",
            run.total,
            dir.display()
        );
        return Ok(ExitCode::from(watch.code()));
    }
    run.finish()?;
    watch.training(false);
    let out = run.settings.output_dir.clone();
    let out = out.display();
    if watch.stop.load(Ordering::Relaxed) {
        eprintln!("stopped after the last step: adapter and log are in {out}");
        return Ok(ExitCode::from(watch.code()));
    }
    let after = answers(&run.settings, &run.model, &run.tokenizer, &run.eval)?;
    let answers = before.as_deref().zip(after.as_deref());
    if let Some((before, after)) = answers {
        compare(before, after);
    }
    if let (Some(after), Some(_)) = (&run.after, &run.head) {
        println!("held-out rows: {after}");
    }
    let out = super::quoted(&run.settings.output_dir);
    match run.report(answers) {
        Ok(()) => {
            eprintln!("adapter, trainer_state.json and report.html are in {out}");
        }
        // The run is over and saved: its picture is no reason to call it failed.
        Err(e) => {
            eprintln!("adapter and trainer_state.json are in {out}; no report: {e}");
        }
    }
    let model = super::quoted(&run.settings.model);
    match &run.settings.eval_file {
        Some(file) if run.head.is_some() => eprintln!(
            "try: downhill evaluate --model {model} --adapter {out} --task {} \
             --eval-file {}",
            run.settings.task.name(),
            super::quoted(file)
        ),
        _ => eprintln!(
            "try: downhill generate --model {model} --adapter {out} --prompt …"
        ),
    }
    Ok(ExitCode::SUCCESS)
}

/// With --predict-with-generate: greedy answers to the prompts of the eval file.
fn answers(
    settings: &Settings,
    model: &Decoder,
    tokenizer: &Option<Tokenizer>,
    eval: &Option<Rows>,
) -> Result<Option<Vec<Prediction>>> {
    if !settings.predict_with_generate {
        return Ok(None);
    }
    let (Some(tokenizer), Some(eval)) =
        (tokenizer, eval.as_ref().and_then(Rows::text))
    else {
        bail!(
            "--predict-with-generate needs --eval-file or --validation-split, and a tokenizer.json"
        );
    };
    let bar = indicatif::ProgressBar::new(eval.len() as u64)
        .with_prefix("answering the held-out prompts");
    bar.set_style(indicatif::ProgressStyle::with_template(
        "{prefix} {bar:24} {pos}/{len}",
    )?);
    let step = &mut |i: usize, _: usize| bar.set_position(i as u64);
    let given = predict(model, tokenizer, eval, step)?;
    bar.finish_and_clear();
    Ok(Some(given))
}

/// A few answers side by side, and the score of all.
fn compare(before: &[Prediction], after: &[Prediction]) {
    for (old, new) in before.iter().zip(after).take(4) {
        println!("prompt    {}", old.prompt);
        println!("expected  {}", old.expected);
        println!("before    {}", old.answer);
        println!("after     {}\n", new.answer);
    }
    println!(
        "held-out exact match: before {:.1} %, after {:.1} % of {} rows",
        100. * exact_match(before),
        100. * exact_match(after),
        after.len()
    );
}
