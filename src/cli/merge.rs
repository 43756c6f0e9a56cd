//! `downhill merge`: a checkpoint with an adapter inside its weights.
use anyhow::Result;
use clap::{Args, ValueEnum};
use downhill::lora::{self, MergedLayer, Onto};
use downhill::models;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
pub(super) struct Merge {
    /// Checkpoint folder that the adapter was trained on
    #[arg(long)]
    model: PathBuf,
    /// Adapter folder, as finetune and PEFT write it
    #[arg(long)]
    adapter: PathBuf,
    /// New folder for the merged checkpoint
    #[arg(long)]
    output_dir: PathBuf,
    /// Which weights the update is added to
    #[arg(long, value_enum)]
    into: Into,
    /// With --into dequantized: as --bnb-4bit-use-double-quant was in training
    #[arg(long, action = clap::ArgAction::Set, default_value_t = true,
          num_args = 0..=1, default_missing_value = "true")]
    bnb_4bit_use_double_quant: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Into {
    /// The checkpoint's own: for adapters trained with --load-in-4bit false, or where
    /// the report shows little noise
    Original,
    /// What the checkpoint's are in NF4 (blocks of 64), unpacked again: exactly what an
    /// adapter saw that was trained in 4 bits with that block size
    Dequantized,
}

impl Merge {
    pub(super) fn run(mut self) -> Result<ExitCode> {
        self.model = super::resolve(&self.model)?;
        merge(&self)
    }
}

fn merge(m: &Merge) -> Result<ExitCode> {
    let linears = models::linear_names(&m.model)?;
    let onto = match m.into {
        Into::Original => Onto::Original,
        Into::Dequantized => {
            Onto::Dequantized { double_quant: m.bnb_4bit_use_double_quant }
        }
    };
    println!(
        "{:<44} {:>9} {:>9} {:>9} {:>7}",
        "layer", "|W|", "|update|", "|4-bit|", "ratio"
    );
    let say = &mut |l: &MergedLayer| {
        println!(
            "{:<44} {:>9.3e} {:>9.3e} {:>9.3e} {:>7.1}",
            l.name,
            l.weight,
            l.delta,
            l.noise,
            l.noise / l.delta
        );
    };
    let (model, out) = (&m.model, &m.output_dir);
    let report = lora::merge(model, &m.adapter, out, (&linears, onto), say)?;
    println!(
        "|W - dq(Wq)|, what 4 bits change, against the update: {:.1} times its size \
         (median of {} layers)",
        report.median_ratio(),
        report.layers.len()
    );
    eprintln!(
        "{}: {} file(s), {} tensors, read back and compared; the layers' numbers are \
         in merge_report.json",
        out.display(),
        report.files,
        report.verified
    );
    Ok(ExitCode::SUCCESS)
}
