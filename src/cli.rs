//! Arguments in, calls of the library, lines out. Text that a model writes goes to
//! stdout, all else to stderr.
mod doctor;
mod quantize;

use anyhow::{Result, anyhow, bail};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use downhill::data::{Message, Tokenizer};
use downhill::generate::{Sampling, generate};
use downhill::hub::Hub;
use downhill::models::{self, LoadOptions};
use downhill::train::{
    Base, Outcome, Prediction, Run, Settings, exact_match, predict,
};
use downhill::{device, lora, train};
use std::ffi::OsString;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Fine-tune DeepSeek-type models in 4 bits, and use the result.
#[derive(Parser)]
#[command(version, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train LoRA adapters on rows of text
    #[command(args_override_self = true)]
    Finetune(Box<Finetune>),
    /// Continue a prompt
    #[command(args_override_self = true)]
    Generate(Generate),
    /// Write a checkpoint folder in 4 bits, as bitsandbytes reads it
    #[command(args_override_self = true)]
    Quantize(quantize::Quantize),
    /// Say what there is to compute with, and what a checkpoint will take
    #[command(args_override_self = true)]
    Doctor(doctor::Doctor),
}

#[derive(Args)]
struct Finetune {
    /// A TOML file with these flags as keys; flags given here win
    #[arg(long)]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Args)]
struct Generate {
    /// Checkpoint folder, or its name on the hub
    #[arg(long)]
    model: PathBuf,
    /// Adapter folder, as finetune and PEFT write it
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Text to continue
    #[arg(long)]
    prompt: String,
    /// Give the prompt as a user's turn of the checkpoint's chat template
    #[arg(long)]
    chat: bool,
    /// Tokens to write at most
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// 0: always the likeliest token
    #[arg(long, default_value_t = 0.)]
    temperature: f64,
    /// Draw from the likeliest tokens that together reach this probability
    #[arg(long, default_value_t = 1.)]
    top_p: f64,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Hold the model in 4 bits
    #[arg(long, action = clap::ArgAction::Set, default_value_t = true,
          num_args = 0..=1, default_missing_value = "true")]
    load_in_4bit: bool,
    /// Weights that share a scale
    #[arg(long, default_value_t = 64)]
    bnb_4bit_blocksize: usize,
    /// Folder that keeps the 4-bit form for the next start, or off
    #[arg(long, default_value = "off")]
    quantized_cache: PathBuf,
    /// auto: bf16 on a GPU, f32 on a CPU
    #[arg(long, value_enum, default_value_t = train::ComputeDtype::Auto)]
    compute_dtype: train::ComputeDtype,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
}

pub fn run() -> Result<ExitCode> {
    let args = with_config(std::env::args_os().collect())?;
    let cli = match Cli::command().try_get_matches_from(args) {
        Ok(matches) => Cli::from_arg_matches(&matches)?,
        Err(e) => e.exit(),
    };
    match cli.command {
        Command::Finetune(mut f) => {
            f.settings.model = resolve(&f.settings.model)?;
            finetune(f.settings)
        }
        Command::Generate(mut g) => {
            g.model = resolve(&g.model)?;
            continue_prompt(&g)
        }
        Command::Quantize(q) => quantize::run(&q),
        Command::Doctor(d) => doctor::run(&d),
    }
}

/// Puts the keys of `--config FILE` as flags before the flags given, which thereby
/// win. One definition of flags serves both.
fn with_config(args: Vec<OsString>) -> Result<Vec<OsString>> {
    let Some(path) = config_path(&args) else { return Ok(args) };
    let text = std::fs::read_to_string(&path)
        .map_err(|e| anyhow!("{}: {e}", path.display()))?;
    let table: toml::Table =
        text.parse().map_err(|e| anyhow!("{} is not TOML: {e}", path.display()))?;
    let command = Cli::command();
    let known = command.find_subcommand("finetune").into_iter();
    let known: Vec<&str> =
        known.flat_map(|c| c.get_arguments().filter_map(|a| a.get_long())).collect();
    let mut merged = args[..2].to_vec();
    for (key, value) in table {
        if !known.contains(&key.as_str()) || key == "config" {
            bail!(
                "{}: unknown key `{key}`; keys are the flags of `downhill finetune \
                 --help`, without the dashes",
                path.display()
            );
        }
        let plain = |v: &toml::Value| match v {
            toml::Value::String(s) => Ok(s.clone()),
            toml::Value::Integer(_)
            | toml::Value::Float(_)
            | toml::Value::Boolean(_) => Ok(v.to_string()),
            _ => bail!("{}: `{key}`: a plain value or a list", path.display()),
        };
        let value = match &value {
            toml::Value::Array(list) => {
                list.iter().map(plain).collect::<Result<Vec<_>>>()?.join(",")
            }
            other => plain(other)?,
        };
        merged.push(format!("--{key}={value}").into());
    }
    merged.extend_from_slice(&args[2..]);
    Ok(merged)
}

/// The value of `--config`, before any parsing; only `finetune` has one.
fn config_path(args: &[OsString]) -> Option<PathBuf> {
    if args.get(1)? != "finetune" {
        return None;
    }
    let mut rest = args[2..].iter();
    while let Some(arg) = rest.next() {
        let text = arg.to_string_lossy();
        if text == "--config" {
            return rest.next().map(PathBuf::from);
        }
        if let Some(path) = text.strip_prefix("--config=") {
            return Some(path.into());
        }
    }
    None
}

fn finetune(settings: Settings) -> Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    // The first Ctrl-C ends after the current step, the second at once.
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\nstopping after this step (Ctrl-C again: at once)");
    })?;
    let say = &mut |line: &str| eprintln!("{line}");
    let base = Base::load(&settings, say)?;
    let before = answers(&settings, &base.model, &base.tokenizer, &base.eval)?;
    let mut run = Run::start(base, settings, say)?;
    if let Outcome::Stopped(step, dir) = train::fit(&mut run, &stop)? {
        run.log.finish();
        eprintln!(
            "stopped after step {step} of {}; saved in {}. To go on, give the same \
             command with --resume",
            run.total,
            dir.display()
        );
        return Ok(ExitCode::from(130));
    }
    run.finish()?;
    let after = answers(&run.settings, &run.model, &run.tokenizer, &run.eval)?;
    if let (Some(before), Some(after)) = (before, after) {
        compare(&before, &after);
    }
    let out = run.settings.output_dir.display();
    eprintln!("adapter, trainer_state.json and loss.svg are in {out}");
    let model = run.settings.model.display();
    eprintln!("try: downhill generate --model {model} --adapter {out} --prompt …");
    Ok(ExitCode::SUCCESS)
}

/// With --predict-with-generate: greedy answers to the prompts of the eval file.
fn answers(
    settings: &Settings,
    model: &models::Decoder,
    tokenizer: &Option<Tokenizer>,
    eval: &Option<downhill::data::Dataset>,
) -> Result<Option<Vec<Prediction>>> {
    if !settings.predict_with_generate {
        return Ok(None);
    }
    let (Some(tokenizer), Some(eval)) = (tokenizer, eval) else {
        bail!("--predict-with-generate needs --eval-file and a tokenizer.json");
    };
    let bar = indicatif::ProgressBar::new(eval.examples.len() as u64)
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

fn continue_prompt(g: &Generate) -> Result<ExitCode> {
    let sampling = Sampling {
        max_new_tokens: g.max_new_tokens,
        temperature: g.temperature,
        top_p: g.top_p,
        seed: g.seed,
    };
    sampling.check()?;
    let device = device::parse(&g.device)?;
    let tokenizer = Tokenizer::from_dir(&g.model)?;
    let options = LoadOptions {
        quantize: g.load_in_4bit,
        blocksize: g.bnb_4bit_blocksize,
        double_quant: true,
        kind: g.compute_dtype.kind(device),
        device,
    };
    let cache = g.quantized_cache.as_path();
    let cache = (cache != Path::new("off")).then_some(cache);
    let say = &mut |line: &str| eprintln!("{line}");
    let mut model =
        models::load_cached(&g.model, cache, &options, say, &mut |_, _| ())?;
    if let Some(dir) = &g.adapter {
        lora::load_adapter(dir, model.linears_mut(), device)?;
    }
    let prompt = match g.chat {
        true => chat_prompt(&tokenizer, &g.prompt, &g.model)?,
        false => tokenizer.encode(&g.prompt, true)?,
    };
    let mut text = tokenizer.stream();
    let mut out = std::io::stdout().lock();
    let show = &mut |id| {
        let piece = text.push(id)?;
        let written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
        // A closed pipe is the reader's way of saying enough.
        Ok(match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        })
    };
    generate(&model, &prompt, tokenizer.stop_ids(), &sampling, show)?;
    let rest = text.finish()?;
    let _ = writeln!(out, "{rest}");
    Ok(ExitCode::SUCCESS)
}

/// A checkpoint's folder from `--model`, which may be a name on the hub.
fn resolve(model: &Path) -> Result<PathBuf> {
    Ok(Hub::from_env().resolve(model, &mut |line| eprintln!("{line}"))?)
}

/// A progress bar over tensors, hidden where stderr is no terminal.
fn bar(what: &'static str) -> Result<indicatif::ProgressBar> {
    let bar = indicatif::ProgressBar::no_length().with_prefix(what);
    bar.set_style(indicatif::ProgressStyle::with_template(
        "{prefix} {bar:24} {pos}/{len} tensors",
    )?);
    Ok(bar)
}

fn chat_prompt(tokenizer: &Tokenizer, text: &str, model: &Path) -> Result<Vec<i64>> {
    let turn = [Message::new("user", text)];
    let Some(rendered) = tokenizer.chat_prompt(&turn)? else {
        bail!("--chat: {} has no chat template", model.display());
    };
    Ok(tokenizer.encode(&rendered, false)?)
}
