//! `downhill merge`: a checkpoint with an adapter inside its weights.
use super::holding::OfRun;
use anyhow::Result;
use clap::{Args, ValueEnum};
use downhill::Error;
use downhill::checkpoint::{atomic, fresh, place};
use downhill::data::{RowEncoder, Tokenizer};
use downhill::lora::{self, MergeReport, MergedLayer, Onto};
use downhill::models::{self, LoadOptions, Stored};
use downhill::train::{Rows, Task, Trained, divergence, predictions};
use serde_json::{Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tch::{Device, Kind, Tensor};

#[derive(Args)]
pub(super) struct Merge {
    /// Checkpoint folder that the adapter was trained on, or its name on the hub
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
    /// With --into dequantized: weights that share a scale, as in training. Not given,
    /// what the adapter's trainer_state.json says, or else 64
    #[arg(long)]
    bnb_4bit_blocksize: Option<usize>,
    /// With --into dequantized: whether the scales were quantized as well. Not given,
    /// what the adapter's trainer_state.json says, or else true
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    bnb_4bit_use_double_quant: Option<bool>,
    /// Rows, as of --eval-file, on whose first 512 learned tokens the merged model is
    /// compared with the one that was trained: needs memory for each, one at a time
    #[arg(long)]
    probe_file: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Into {
    /// The checkpoint's own (of one in fp8, in bf16): for adapters trained with
    /// --load-in-4bit false, or where the report shows little noise
    Original,
    /// What the checkpoint's are in NF4, unpacked again: exactly what an adapter saw
    /// that was trained in 4 bits
    Dequantized,
}

/// Learned tokens that are compared at most.
const PROBED: usize = 512;

/// How the run held the weights: by flag, or as `finetune` left it beside the adapter.
fn trained(m: &Merge, run: &mut OfRun) -> LoadOptions {
    let in_4bit = run.trained.load_in_4bit.unwrap_or(m.into == Into::Dequantized);
    let flags = (m.bnb_4bit_blocksize, m.bnb_4bit_use_double_quant);
    let (blocksize, double_quant) = run.blocks(flags.0, flags.1, true);
    LoadOptions {
        quantize: in_4bit,
        blocksize,
        double_quant,
        kind: Kind::Float,
        device: Device::Cpu,
    }
}

/// A quantized checkpoint as floats, beside the output, until the merge is done.
struct Unpacked {
    dir: PathBuf,
    _held: Option<File>,
}

impl Unpacked {
    fn new(model: &Path, partial: &Path) -> downhill::Result<Self> {
        let name = partial.file_name().unwrap_or_default().to_string_lossy();
        // Named as what is half-written is, by which it is found if we are killed.
        let name = name.replace(".partial-", ".unpacked.partial-");
        let dir = partial.with_file_name(name);
        eprintln!("unpacking {} into {}", model.display(), dir.display());
        models::dequantize(model, &dir, 5_000_000_000, &mut |_, _| ())?;
        let _held = fresh::lock(&dir)?;
        Ok(Self { dir, _held })
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        // What is left over takes room, and no more.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Merge {
    pub(super) fn run(mut self) -> Result<ExitCode> {
        let out = self.output_dir.clone();
        self.check(&out)?;
        place::try_writing("--output-dir", &out)?;
        self.model = super::resolve(&self.model)?;
        self.check(&out)?;
        let _watch = super::signals::at_once(super::signals::beside(&out))?;
        let mut report = None;
        fresh::folder(&out, |partial| {
            self.output_dir = partial.into();
            report = Some(merge(&self)?);
            Ok(())
        })?;
        if let Some(report) = report {
            eprintln!(
                "{}: {} file(s), {} tensors, read back and compared; the layers' \
                 numbers are in merge_report.json",
                out.display(),
                report.files,
                report.verified
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Refuses an output that would touch what is read.
    fn check(&self, out: &Path) -> downhill::Result<()> {
        let files = self.probe_file.iter().map(|f| ("--probe-file", f.as_path()));
        place::apart(("--output-dir", out), &files.collect::<Vec<_>>())?;
        place::free(out, &[("--model", &self.model), ("--adapter", &self.adapter)])
    }
}

fn merge(m: &Merge) -> downhill::Result<MergeReport> {
    let (model, out) = (&m.model, &m.output_dir);
    let mut run = OfRun::new(Some(&m.adapter))?;
    let trained = trained(m, &mut run);
    let survey = models::survey(model)?;
    survey.notes.iter().for_each(|note| eprintln!("{}: {note}", model.display()));
    let linears = survey.linear_names();
    let stored = Stored::of(model)?;
    // In NF4 they are what was trained beside, in whatever blocks.
    let onto = match m.into {
        Into::Dequantized if stored != Stored::Nf4 => {
            let LoadOptions { blocksize, double_quant, .. } = trained;
            eprintln!(
                "NF4 in blocks of {blocksize}, double quantization: {double_quant}"
            );
            Onto::Dequantized { blocksize, double_quant }
        }
        _ => Onto::Original,
    };
    let unpacked = match (stored, m.into) {
        (Stored::Plain, _) | (Stored::Nf4, Into::Original) => None,
        _ => Some(Unpacked::new(model, out)?),
    };
    let base = unpacked.as_ref().map_or(model, |u| &u.dir);
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
    let report = lora::merge(base, &m.adapter, out, (&linears, onto), say)?;
    match stored {
        Stored::Nf4 => println!(
            "the weights were in 4 bits already: what that changed, only the 16-bit \
             checkpoint can tell"
        ),
        _ => println!(
            "|W - dq(Wq)|, what 4 bits change, against the update: {:.1} times its \
             size (median of {} layers)",
            report.median_ratio(),
            report.layers.len()
        ),
    }
    let far =
        m.probe_file.as_deref().map(|file| probe(m, file, &trained, &run.trained));
    note(m, far.transpose()?)?;
    Ok(report)
}

/// Divergence of the merged model's predictions from those of model and adapter.
fn probe(
    m: &Merge,
    file: &Path,
    trained: &LoadOptions,
    run: &Trained,
) -> downhill::Result<f64> {
    let tokenizer = Tokenizer::find(&m.model)?;
    let vocabulary = models::read_config(&m.model)?.vocab_size;
    let encoder = RowEncoder {
        completion_only_loss: run.completion_only_loss.unwrap_or(true),
        assistant_only_loss: run.assistant_only_loss.unwrap_or(true),
        ..RowEncoder::new(tokenizer.as_ref(), 2048, vocabulary)
    };
    let rows = Rows::load(file, Task::CausalLm, &encoder, None)?;
    let before: Tensor = {
        let mut model = models::load(&m.model, trained, &mut |_, _| ())?;
        if lora::unties(&m.adapter)? {
            model.untie();
        }
        let parameters = model.named_parameters();
        let parts = (model.linears_mut(), parameters);
        lora::load_for_use(&m.adapter, parts, Device::Cpu)?;
        lora::settle(model.linears_mut())?;
        predictions(&model, &rows, PROBED)?
    };
    let options = LoadOptions { quantize: false, ..*trained };
    let merged = models::load(&m.output_dir, &options, &mut |_, _| ())?;
    let far = divergence(&before, &predictions(&merged, &rows, PROBED)?);
    println!(
        "merged, against the adapter beside {}: {far:.2e} nats per token \
         (Kullback-Leibler, {} tokens)",
        if trained.quantize { "4-bit weights" } else { "unquantized weights" },
        before.size()[0]
    );
    Ok(far)
}

/// What only the command knows, into the report.
fn note(m: &Merge, divergence: Option<f64>) -> downhill::Result<()> {
    let path = m.output_dir.join("merge_report.json");
    let text = downhill::files::text(&path).map_err(|e| Error::io(&path, e))?;
    let mut all: Value = serde_json::from_slice(&text)
        .map_err(|e| Error::file(&path, e.to_string()))?;
    all["model"] = json!(m.model);
    if m.into == Into::Dequantized {
        all["into"] = json!("dequantized");
    }
    all["divergence"] = json!(divergence);
    atomic::bytes(&path, format!("{all:#}").as_bytes())
}
