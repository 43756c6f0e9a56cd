//! How a command holds the model that it uses: the flags and what they mean.
use anyhow::Result;
use clap::{ArgAction, Args};
use downhill::device;
use downhill::models::LoadOptions;
use downhill::train::ComputeDtype;

#[derive(Args)]
pub(super) struct Holding {
    /// Hold the model in 4 bits
    #[arg(long, action = ArgAction::Set, default_value_t = true,
          num_args = 0..=1, default_missing_value = "true")]
    load_in_4bit: bool,
    /// Weights that share a scale, as in training
    #[arg(long, default_value_t = 64)]
    bnb_4bit_blocksize: usize,
    /// Quantize the scales of the blocks as well, as in training
    #[arg(long, action = ArgAction::Set, default_value_t = true,
          num_args = 0..=1, default_missing_value = "true")]
    bnb_4bit_use_double_quant: bool,
    /// Kind to compute in; auto: bf16 on a GPU, f32 on a CPU
    #[arg(long, value_enum, default_value_t = ComputeDtype::Auto)]
    compute_dtype: ComputeDtype,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
}

impl Holding {
    pub(super) fn options(&self) -> Result<LoadOptions> {
        let device = device::parse(&self.device)?;
        Ok(LoadOptions {
            quantize: self.load_in_4bit,
            blocksize: self.bnb_4bit_blocksize,
            double_quant: self.bnb_4bit_use_double_quant,
            kind: self.compute_dtype.kind(device),
            device,
        })
    }
}
