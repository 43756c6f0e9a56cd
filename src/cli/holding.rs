//! How a command holds the model that it uses: by flag, or as the adapter's run did.
use anyhow::Result;
use clap::{Args, ValueEnum};
use downhill::device;
use downhill::models::LoadOptions;
use downhill::train::{ComputeDtype, Trained};
use std::path::Path;

#[derive(Args)]
pub(super) struct Holding {
    /// Hold the model in 4 bits. Not given: as the adapter's run did (its
    /// trainer_state.json), or else true
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    load_in_4bit: Option<bool>,
    /// Weights that share a scale. Not given: as in the adapter's run, or else 64
    #[arg(long)]
    bnb_4bit_blocksize: Option<usize>,
    /// Quantize the scales of the blocks as well. Not given: as in the adapter's run, or
    /// else true
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    bnb_4bit_use_double_quant: Option<bool>,
    /// Kind to compute in; auto: bf16 on a GPU, f32 on a CPU. Not given: as in the
    /// adapter's run, or else auto
    #[arg(long, value_enum)]
    compute_dtype: Option<ComputeDtype>,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
}

impl Holding {
    pub(super) fn options(&self, run: &mut OfRun) -> Result<LoadOptions> {
        let device = device::parse(&self.device)?;
        let quantize =
            run.or("load_in_4bit", self.load_in_4bit, |t| t.load_in_4bit, true);
        let (blocksize, double_quant) = run.blocks(
            self.bnb_4bit_blocksize,
            self.bnb_4bit_use_double_quant,
            quantize,
        );
        let kind = run.one_of(
            "compute_dtype",
            self.compute_dtype,
            |t| t.compute_dtype,
            ComputeDtype::Auto,
        );
        let kind = kind.kind(device);
        Ok(LoadOptions { quantize, blocksize, double_quant, kind, device })
    }
}

/// Settings by flag, or else as an adapter's run had them: which of them were taken from
/// it is remembered, to be said.
#[derive(Default)]
pub(super) struct OfRun {
    pub(super) trained: Trained,
    taken: Vec<String>,
}

impl OfRun {
    pub(super) fn new(adapter: Option<&Path>) -> downhill::Result<Self> {
        let trained = adapter.map(Trained::of).transpose()?.unwrap_or_default();
        Ok(Self { trained, taken: vec![] })
    }

    /// The flag, if it is given; or what the run had, if that is known; or `default`.
    pub(super) fn or<T: std::fmt::Display>(
        &mut self,
        name: &str,
        flag: Option<T>,
        of_run: impl Fn(&Trained) -> Option<T>,
        default: T,
    ) -> T {
        match (flag, of_run(&self.trained)) {
            (Some(flag), _) => flag,
            (None, Some(value)) => {
                self.taken.push(format!("{name} {value}"));
                value
            }
            (None, None) => default,
        }
    }

    /// Likewise, of values that the flag names.
    pub(super) fn one_of<T: ValueEnum>(
        &mut self,
        name: &str,
        flag: Option<T>,
        of_run: impl Fn(&Trained) -> Option<T>,
        default: T,
    ) -> T {
        match (flag, of_run(&self.trained)) {
            (Some(flag), _) => flag,
            (None, Some(value)) => {
                let shown = value.to_possible_value();
                let shown = shown.as_ref().map_or("", |v| v.get_name());
                self.taken.push(format!("{name} {shown}"));
                value
            }
            (None, None) => default,
        }
    }

    /// Block size, and whether the scales are quantized as well, of weights in 4 bits.
    pub(super) fn blocks(
        &mut self,
        size: Option<usize>,
        double_quant: Option<bool>,
        in_4bit: bool,
    ) -> (usize, bool) {
        if !in_4bit {
            return (size.unwrap_or(64), double_quant.unwrap_or(true));
        }
        let size = self.or("bnb_4bit_blocksize", size, |t| t.bnb_4bit_blocksize, 64);
        let of_run = |t: &Trained| t.bnb_4bit_use_double_quant;
        (size, self.or("bnb_4bit_use_double_quant", double_quant, of_run, true))
    }

    /// A line on stderr, if anything was taken from the run.
    pub(super) fn say(&self) {
        if !self.taken.is_empty() {
            let (path, taken) = (self.trained.path.display(), self.taken.join(", "));
            eprintln!("read from {path}: {taken}");
        }
    }
}
