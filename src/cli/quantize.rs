//! `downhill quantize`: a checkpoint folder in 4 bits, as bitsandbytes reads it.
use anyhow::{Result, bail};
use clap::Args;
use downhill::checkpoint::place;
use downhill::models::{self, QuantizeOptions};
use downhill::{device, quant};
use std::path::PathBuf;
use std::process::ExitCode;

/// The flags.
#[derive(Args)]
pub(super) struct Quantize {
    /// Checkpoint folder, or its name on the hub
    #[arg(long)]
    model: PathBuf,
    /// New folder for the quantized checkpoint
    #[arg(long)]
    output_dir: PathBuf,
    /// Weights that share a scale
    #[arg(long, default_value_t = 64)]
    bnb_4bit_blocksize: usize,
    /// Quantize the scales of the blocks as well
    #[arg(long, action = clap::ArgAction::Set, default_value_t = true,
          num_args = 0..=1, default_missing_value = "true")]
    bnb_4bit_use_double_quant: bool,
    /// Size of one weight file at most, such as 5GB or 500MB
    #[arg(long, default_value = "5GB")]
    max_shard_size: String,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
}

impl Quantize {
    pub(super) fn run(self) -> Result<ExitCode> {
        quantize(&self)
    }
}

fn quantize(args: &Quantize) -> Result<ExitCode> {
    let sizes = quant::BLOCKSIZES;
    if !sizes.contains(&args.bnb_4bit_blocksize) {
        let found = args.bnb_4bit_blocksize;
        bail!("--bnb-4bit-blocksize: {found}; one of {sizes:?}");
    }
    let Some(max_shard_size) = bytes(&args.max_shard_size) else {
        let found = &args.max_shard_size;
        bail!(
            "--max-shard-size: `{found}`; a number with KB, MB or GB, such as 5GB"
        );
    };
    let out = &args.output_dir;
    place::free(out, &[("--model", &args.model)])?;
    place::try_writing("--output-dir", out)?;
    let options = QuantizeOptions {
        blocksize: args.bnb_4bit_blocksize,
        double_quant: args.bnb_4bit_use_double_quant,
        max_shard_size,
        device: device::parse(&args.device)?,
    };
    let model = super::resolve(&args.model)?;
    let survey = models::survey(&model)?;
    survey.notes.iter().for_each(|note| eprintln!("{}: {note}", model.display()));
    if let Some(note) = survey.quantized_note() {
        eprintln!("{}: {note}", args.output_dir.display());
    }
    let _watch = super::signals::at_once(super::signals::beside(out))?;
    let bar = super::bar("quantizing")?;
    let progress = &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let sizes = models::quantize(&model, out, &options, progress)?;
    bar.finish_and_clear();
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    eprintln!(
        "{}: {:.3} GiB of weights, from {:.3} GiB",
        out.display(),
        gib(sizes.to),
        gib(sizes.from)
    );
    Ok(ExitCode::SUCCESS)
}

/// As transformers reads `max_shard_size`: powers of 1000, or of 1024 with an i.
fn bytes(text: &str) -> Option<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let unit: u64 = match text[at..].trim().to_uppercase().as_str() {
        "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KIB" => 1 << 10,
        "MIB" => 1 << 20,
        "GIB" => 1 << 30,
        _ => return None,
    };
    let number: u64 = text[..at].parse().ok()?;
    number.checked_mul(unit).filter(|bytes| *bytes > 0)
}
