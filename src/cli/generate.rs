//! `downhill generate`: a prompt continued.
use super::holding::{Holding, OfRun};
use anyhow::{Result, anyhow, bail};
use clap::Args;
use downhill::data::{Message, Tokenizer};
use downhill::generate::{Sampling, generate};
use downhill::lora::{self, TaskType};
use downhill::{Error, files, models};
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Args)]
pub(super) struct Generate {
    /// Checkpoint folder, or its name on the hub
    #[arg(long)]
    model: PathBuf,
    /// Adapter folder, as finetune and PEFT write it
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Text to continue; `-` reads it from stdin
    #[arg(
        long,
        allow_hyphen_values = true,
        required_unless_present = "prompt_file"
    )]
    prompt: Option<String>,
    /// File with the text to continue, without the line end at its end
    #[arg(long, conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// Give the prompt as a user's turn of the checkpoint's chat template
    #[arg(long)]
    chat: bool,
    /// Tokens to write at most
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// Temperature of the draws; 0: always the likeliest token
    #[arg(long, default_value_t = 0.)]
    temperature: f64,
    /// Draw from the likeliest tokens that together reach this probability
    #[arg(long, default_value_t = 1.)]
    top_p: f64,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder that keeps the 4-bit form for the next start, or off
    #[arg(long, default_value = "off")]
    quantized_cache: PathBuf,
    #[command(flatten)]
    holding: Holding,
}

impl Generate {
    pub(super) fn run(mut self) -> Result<ExitCode> {
        self.model = super::resolve(&self.model)?;
        continue_prompt(&self)
    }
}

fn continue_prompt(g: &Generate) -> Result<ExitCode> {
    let sampling = Sampling {
        max_new_tokens: g.max_new_tokens,
        temperature: g.temperature,
        top_p: g.top_p,
        seed: g.seed,
    };
    sampling.check()?;
    let text = text_of(g)?;
    let mut run = OfRun::new(g.adapter.as_deref())?;
    let options = g.holding.options(&mut run)?;
    run.say();
    let tokenizer = Tokenizer::from_dir(&g.model)?;
    let cache = g.quantized_cache.as_path();
    let cache = (cache != Path::new("off")).then_some(cache);
    let say = &mut |line: &str| eprintln!("{line}");
    let watch = cache.map(|dir| super::signals::at_once([dir.to_path_buf()]));
    watch.transpose()?;
    let mut model =
        models::load_cached(&g.model, cache, &options, say, &mut |_, _| ())?;
    model.notes.iter().for_each(|note| eprintln!("{}: {note}", g.model.display()));
    if let Some(dir) = &g.adapter {
        if lora::read_config(dir)?.task_type == TaskType::SeqCls {
            bail!(
                "--adapter: {} scores whole texts and writes none; use downhill \
                 evaluate with its --task",
                dir.display()
            );
        }
        if lora::unties(dir)? {
            model.untie();
        }
        let parameters = model.named_parameters();
        lora::load_for_use(dir, (model.linears_mut(), parameters), options.device)?;
        lora::settle(model.linears_mut())?;
    }
    let prompt = match g.chat {
        true => chat_prompt(&tokenizer, &text, &g.model)?,
        false => tokenizer.encode(&text, true)?,
    };
    let (given, positions) = (prompt.len(), model.config.max_position_embeddings);
    if (given as i64) > positions {
        eprintln!(
            "the prompt has {given} tokens, and the model knows {positions} positions \
             (max_position_embeddings): expect nonsense, or give less"
        );
    }
    let mut text = tokenizer.stream();
    let mut out = std::io::stdout().lock();
    let show = &mut |id| {
        let piece = text.push(id)?;
        let written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
        Ok(match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                super::unwritten(e);
                ControlFlow::Break(())
            }
        })
    };
    let new = generate(&model, &prompt, tokenizer.stop_ids(), &sampling, show)?;
    let rest = text.finish()?;
    let _ = writeln!(out, "{rest}");
    let beyond = (given + new.len()) as i64 - positions;
    if given as i64 <= positions && beyond > 0 {
        eprintln!(
            "the last {beyond} tokens stand beyond the {positions} positions that the \
             model knows (max_position_embeddings): expect nonsense there, or ask for \
             less (--max-new-tokens)"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The text to continue.
fn text_of(g: &Generate) -> Result<String> {
    let (from, text) = match (&g.prompt_file, g.prompt.as_deref()) {
        (Some(path), _) => {
            let text = files::string(path).map_err(|e| Error::io(path, e))?;
            (format!("--prompt-file: {}", path.display()), text)
        }
        (None, Some("-")) => {
            let mut bytes = Vec::new();
            std::io::stdin().take(LONGEST + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > LONGEST {
                bail!("--prompt -: more than {} MiB on stdin", LONGEST >> 20);
            }
            let text = String::from_utf8(bytes);
            let text =
                text.map_err(|_| anyhow!("--prompt -: stdin is not UTF-8"))?;
            ("--prompt -: stdin".into(), text)
        }
        (None, text) => return Ok(text.unwrap_or_default().into()),
    };
    // Editors and echo end a text with a line end that belongs to no prompt.
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        bail!("{from} is empty: nothing to continue");
    }
    Ok(text.into())
}

/// Bytes of a prompt from stdin at most.
const LONGEST: u64 = 64 << 20;

fn chat_prompt(tokenizer: &Tokenizer, text: &str, model: &Path) -> Result<Vec<i64>> {
    let turn = [Message::new("user", text)];
    let Some(rendered) = tokenizer.chat_prompt(&turn)? else {
        bail!("--chat: {} has no chat template", model.display());
    };
    Ok(tokenizer.encode(&rendered, false)?)
}
