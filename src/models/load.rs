//! A decoder from a checkpoint folder, quantized tensor by tensor on the way.
use super::config::{DecoderConfig, read_config};
use super::decoder::Decoder;
use super::weights::Weights;
use crate::checkpoint::Checkpoint;
use crate::nn::{Linear, Weight};
use crate::quant::Nf4Tensor;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::ops::Range;
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
    let extra = Extra::of(&config);
    let passed = checkpoint.names().filter(|name| extra.holds(name)).count();
    let mut from = FromDisk {
        checkpoint: &checkpoint,
        options,
        used: BTreeSet::new(),
        total: checkpoint.names().count() - passed,
        progress,
    };
    let tied = config.tie_word_embeddings;
    let mut model = tch::no_grad(|| Decoder::new(config, &mut from))?;
    if passed > 0 {
        model.notes.push(extra.note(passed));
    }
    let used = from.used;
    let spare = |name: &str| {
        // Buffers that old exports carry, and a tied head stored twice.
        name.ends_with("rotary_emb.inv_freq")
            || (tied && name == "lm_head.weight")
            || extra.holds(name)
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

/// The layers behind the last: they predict a token further ahead, and only for that
/// were they trained (multi-token prediction). Nothing here needs them.
struct Extra(Range<i64>);

impl Extra {
    fn of(c: &DecoderConfig) -> Self {
        let last = c.num_hidden_layers;
        Self(last..last + c.extra_layers)
    }

    fn holds(&self, name: &str) -> bool {
        let layer =
            name.strip_prefix("model.layers.").and_then(|n| n.split_once('.'));
        let layer = layer.and_then(|(layer, _)| layer.parse().ok());
        layer.is_some_and(|layer| self.0.contains(&layer))
    }

    fn note(&self, passed: usize) -> String {
        let Range { start, end } = self.0;
        let layers = match end - start {
            1 => format!("layer {start}"),
            _ => format!("layers {start} to {}", end - 1),
        };
        format!("multi-token prediction ({layers}, {passed} tensors) is not read")
    }
}

struct FromDisk<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a LoadOptions,
    used: BTreeSet<String>,
    /// Tensors to read.
    total: usize,
    progress: &'a mut dyn FnMut(usize, usize),
}

impl FromDisk<'_> {
    /// In host memory.
    fn read(&mut self, name: &str, shape: &[i64], kind: Kind) -> Result<Tensor> {
        let file = self.checkpoint.file_of(name);
        let found = self.checkpoint.shape(name)?;
        if found != shape {
            let what = format!("shape {found:?}, config.json implies {shape:?}");
            return Err(Error::tensor(file, name, what));
        }
        if self.checkpoint.is_fp8(name) {
            let t = self.checkpoint.fp8(name, kind)?;
            self.used.insert(Checkpoint::fp8_scale_name(name));
            self.seen(name);
            return Ok(t);
        }
        let t = self.checkpoint.tensor(name)?;
        if !matches!(t.kind(), Kind::Float | Kind::Half | Kind::BFloat16) {
            let what = format!("dtype {:?}; weights are F32, F16 or BF16", t.kind());
            return Err(Error::tensor(file, name, what));
        }
        self.seen(name);
        Ok(t.f_to_kind(kind)?)
    }

    fn seen(&mut self, name: &str) {
        self.used.insert(name.into());
        (self.progress)(self.used.len(), self.total);
    }
}

impl Weights for FromDisk<'_> {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let t = self.read(name, shape, self.options.kind)?;
        Ok(t.f_to_device(self.options.device)?)
    }

    fn buffer(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let t = self.read(name, shape, Kind::Float)?;
        Ok(t.f_to_device(self.options.device)?)
    }

    fn linear(&mut self, name: &str, shape: [i64; 2], bias: bool) -> Result<Linear> {
        let weight = format!("{name}.weight");
        let w = self.tensor(&weight, &shape)?;
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
