//! A decoder from a checkpoint folder, quantized tensor by tensor on the way.
use super::config::read_config;
use super::decoder::Decoder;
use super::weights::Weights;
use crate::checkpoint::Checkpoint;
use crate::nn::{Linear, Weight};
use crate::quant::Nf4Tensor;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// How to hold the weights.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Linear layers of the blocks in NF4 (blocks of 64); embedding, head and norms
    /// stay as they are.
    pub quantize: bool,
    /// Quantize the block scales as well.
    pub double_quant: bool,
    /// Kind to compute in; also that of every weight that is not quantized.
    pub kind: Kind,
    /// Where the model shall live.
    pub device: Device,
}

/// Reads the checkpoint in `dir`. At no time is more in memory than the finished part
/// of the model and two copies of one tensor.
///
/// # Errors
/// As [`read_config`] and [`Checkpoint::open`]; a tensor that is missing, that the
/// model has no use for, or whose shape or dtype is wrong: each by name and file.
pub fn load(
    dir: &Path,
    options: &LoadOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Decoder> {
    let config = read_config(dir)?;
    let checkpoint = Checkpoint::open(dir)?;
    let mut from = FromDisk {
        checkpoint: &checkpoint,
        options,
        used: BTreeSet::new(),
        progress,
    };
    let tied = config.tie_word_embeddings;
    let model = tch::no_grad(|| Decoder::new(config, &mut from))?;
    let used = from.used;
    let spare = |name: &str| {
        // Buffers that old exports carry, and a tied head stored twice.
        name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight")
    };
    match checkpoint.names().find(|n| !used.contains(*n) && !spare(n)) {
        None => Ok(model),
        Some(name) => Err(Error::tensor(
            checkpoint.file_of(name),
            name,
            "the model described by config.json has no such tensor; is it the \
             config.json of this checkpoint?",
        )),
    }
}

struct FromDisk<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a LoadOptions,
    used: BTreeSet<String>,
    progress: &'a mut dyn FnMut(usize, usize),
}

impl FromDisk<'_> {
    /// In host memory and in the compute kind.
    fn read(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let file = self.checkpoint.file_of(name);
        let found = self.checkpoint.shape(name)?;
        if found != shape {
            let what = format!("shape {found:?}, config.json implies {shape:?}");
            return Err(Error::tensor(file, name, what));
        }
        let t = self.checkpoint.tensor(name)?;
        if !matches!(t.kind(), Kind::Float | Kind::Half | Kind::BFloat16) {
            let what = format!("dtype {:?}; weights are F32, F16 or BF16", t.kind());
            return Err(Error::tensor(file, name, what));
        }
        self.used.insert(name.into());
        (self.progress)(self.used.len(), self.checkpoint.names().count());
        Ok(t.f_to_kind(self.options.kind)?)
    }
}

impl Weights for FromDisk<'_> {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        Ok(self.read(name, shape)?.f_to_device(self.options.device)?)
    }

    fn linear(&mut self, name: &str, shape: [i64; 2], bias: bool) -> Result<Linear> {
        let weight = format!("{name}.weight");
        let w = self.read(&weight, &shape)?.f_to_device(self.options.device)?;
        let weight = match self.options.quantize {
            false => Weight::Dense(w),
            true => {
                let q = Nf4Tensor::quantize(&w, 64, self.options.double_quant);
                let file = self.checkpoint.file_of(&weight);
                Weight::Nf4(
                    q.map_err(|e| Error::tensor(file, weight, e.to_string()))?,
                )
            }
        };
        let bias = match bias {
            true => Some(self.tensor(&format!("{name}.bias"), &shape[..1])?),
            false => None,
        };
        Ok(Linear { weight, bias, lora: None })
    }
}
