//! Arguments in, calls of the library, lines out. Text that a model writes goes to
//! stdout, all else to stderr.
//!
//! A file per subcommand: its flags as a struct with `run`.

/// A line on stderr. That nobody reads it any more (`2>&1 | head`, a terminal that is
/// gone, a full disk) must not end a run, as it does with the macro of std.
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let text = $crate::cli::shown(&format!($($text)*));
        let _ = writeln!(std::io::stderr(), "{text}");
    }};
}

/// A line on stdout, likewise; but `run` ends with what could not be written.
macro_rules! println {
    () => { println!("") };
    ($($text:tt)*) => { $crate::cli::print_line(format_args!($($text)*)) };
}

mod doctor;
mod evaluate;
mod finetune;
mod generate;
mod holding;
mod merge;
mod preview;
mod quantize;
mod signals;

use anyhow::{Result, anyhow, bail};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use downhill::device;
use downhill::error::plain;
use downhill::hub::Hub;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fmt, sync::OnceLock};

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
    Finetune(Box<finetune::Finetune>),
    /// Measure loss and metric on held-out rows
    #[command(args_override_self = true)]
    Evaluate(evaluate::Evaluate),
    /// Show rows as the model sees them, or list a file's bad rows
    #[command(args_override_self = true)]
    Preview(preview::Preview),
    /// Continue a prompt
    #[command(args_override_self = true)]
    Generate(generate::Generate),
    /// Write a checkpoint with an adapter merged into its weights
    #[command(args_override_self = true)]
    Merge(merge::Merge),
    /// Write a checkpoint folder in 4 bits, as bitsandbytes reads it
    #[command(args_override_self = true)]
    Quantize(quantize::Quantize),
    /// Say what there is to compute with, and what a checkpoint will take
    #[command(args_override_self = true)]
    Doctor(doctor::Doctor),
}

pub fn run() -> Result<ExitCode> {
    let args = with_config(std::env::args_os().collect())?;
    let cli = match grouped().try_get_matches_from(args) {
        Ok(matches) => Cli::from_arg_matches(&matches)?,
        Err(e) => e.exit(),
    };
    // What has no better word for it: a call of tch panics.
    device::quiet_when_out_of_memory();
    downhill::data::quiet_when_caught();
    let code = device::guarded(|| Ok(run_one(cli.command)));
    signals::hold();
    let code = code??;
    match UNWRITTEN.get() {
        Some(e) => bail!("stdout: {e}; what was printed is not whole"),
        None => Ok(code),
    }
}

/// A message for a terminal, line by line: it may hold what a file says.
pub fn shown(message: &str) -> String {
    let lines: Vec<String> = message.split('\n').map(plain).collect();
    lines.join("\n")
}

/// Why stdout did not take everything.
static UNWRITTEN: OnceLock<io::Error> = OnceLock::new();

fn print_line(text: fmt::Arguments<'_>) {
    writeln!(io::stdout(), "{text}").unwrap_or_else(unwritten);
}

/// A closed pipe is the reader's way of saying enough; all else is an error.
fn unwritten(e: io::Error) {
    if e.kind() != io::ErrorKind::BrokenPipe {
        let _ = UNWRITTEN.set(e);
    }
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "_-./:=@%+,".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// The command, with the flags of `finetune` under headings: there are many. A number
/// below 0 is a value that a flag refuses, not a flag.
fn grouped() -> clap::Command {
    let command = Cli::command().mut_subcommands(|command| {
        command.mut_args(|flag| {
            let takes = flag.get_action().takes_values();
            flag.allow_negative_numbers(takes)
        })
    });
    command.mut_subcommand("finetune", |command| {
        command.mut_args(|flag| match finetune::heading(flag.get_id().as_str()) {
            Some(heading) => flag.help_heading(heading),
            None => flag,
        })
    })
}

fn run_one(command: Command) -> Result<ExitCode> {
    match command {
        Command::Finetune(c) => c.run(),
        Command::Evaluate(c) => c.run(),
        Command::Preview(c) => c.run(),
        Command::Generate(c) => c.run(),
        Command::Merge(c) => c.run(),
        Command::Quantize(c) => c.run(),
        Command::Doctor(c) => c.run(),
    }
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

/// Puts the keys of `--config FILE` as flags before the flags given, which thereby
/// win. One definition of flags serves both.
fn with_config(args: Vec<OsString>) -> Result<Vec<OsString>> {
    let Some(path) = config_path(&args) else { return Ok(args) };
    let text = downhill::files::string(&path)
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
