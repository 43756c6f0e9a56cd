//! What a checkpoint is and what it will take, from its description and the headers of
//! its files: no weight is read.
use super::config::{DecoderConfig, read_config};
use super::decoder::Decoder;
use super::quantization::{Bitsandbytes, config_json};
use super::tied::{stored, untie};
use super::weights::Weights;
use crate::checkpoint::Checkpoint;
use crate::nn::Linear;
use crate::quant::{bnb, double};
use crate::{Error, Result, autograd};
use std::collections::BTreeSet;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Products that oneDNN keeps compiled at most (`autograd/node.cpp`), and bytes of one.
const KEPT: usize = 64;
const PRODUCT: u64 = 650 << 10;

/// A checkpoint, surveyed.
#[derive(Clone, Debug)]
pub struct Survey {
    /// `model_type`, or the architecture's name.
    pub family: String,
    /// Numbers in all weights.
    pub parameters: u64,
    /// The linears of the blocks: name and [out, in].
    pub linears: Vec<(String, [i64; 2])>,
    /// Bytes of the weights in the files.
    pub file_bytes: u64,
    /// Quantized by bitsandbytes already.
    pub quantized: bool,
    /// The longest text that it was made for, in tokens.
    pub max_position_embeddings: i64,
    /// Its shape.
    pub config: DecoderConfig,
    /// What a user should know of its files, a sentence each.
    pub notes: Vec<String>,
}

/// Surveys the checkpoint in `dir`.
///
/// # Errors
/// As [`super::load`], as far as names and shapes go.
pub fn survey(dir: &Path) -> Result<Survey> {
    let config = read_config(dir)?;
    let checkpoint = Checkpoint::open(dir)?;
    let json = config_json(dir)?;
    let family = json["model_type"].as_str().or(json["architectures"][0].as_str());
    let survey =
        Survey::walk(family.unwrap_or("unknown"), config, Some(&checkpoint))?;
    let quantized = Bitsandbytes::of(&json).is_ok_and(|q| q.is_some());
    Ok(Survey { file_bytes: checkpoint.bytes(), quantized, ..survey })
}

impl Survey {
    /// Of a model of this shape, of which there are no files.
    ///
    /// # Errors
    /// None in practice.
    pub fn of(family: &str, config: DecoderConfig) -> Result<Self> {
        Self::walk(family, config, None)
    }

    fn walk(
        family: &str,
        mut config: DecoderConfig,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Self> {
        let untied = checkpoint.map(|c| untie(&mut config, c)).transpose()?;
        let tied = config.tie_word_embeddings;
        let mut walk = Walk { checkpoint, tied, parameters: 0, linears: vec![] };
        Decoder::new(config.clone(), &mut walk)?;
        Ok(Self {
            family: family.into(),
            parameters: walk.parameters,
            linears: walk.linears,
            file_bytes: 0,
            quantized: false,
            max_position_embeddings: config.max_position_embeddings,
            config,
            notes: untied.flatten().into_iter().collect(),
        })
    }

    /// The names of the linears of the blocks: those that are held in 4 bits.
    pub fn linear_names(&self) -> Vec<String> {
        self.linears.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Of what [`super::quantize`] makes of it: who cannot read that.
    pub fn quantized_note(&self) -> Option<&'static str> {
        self.config.experts.as_ref().map(|_| {
            "transformers 5 keeps the experts of a layer in one tensor, which it does \
             not hold in 4 bits, and will not read this folder; downhill does. For \
             transformers 5 give it the original checkpoint and a \
             BitsAndBytesConfig, which leaves the experts in 16 bits"
        })
    }

    /// Numbers in the linears of the blocks.
    pub fn linear_parameters(&self) -> u64 {
        self.linears.iter().map(|(_, [out, input])| (out * input) as u64).sum()
    }

    /// Bytes of the weights in memory: the blocks' linears in NF4 with double
    /// quantization in blocks of `Some(size)`, or not quantized; all else in `kind`.
    pub fn weight_bytes(&self, nf4: Option<usize>, kind: Kind) -> u64 {
        let width = kind.elt_size_in_bytes() as u64;
        let Some(blocksize) = nf4 else { return self.parameters * width };
        let sizes = self
            .linears
            .iter()
            .map(|(_, [rows, columns])| (*rows as u64) * (*columns as u64));
        let (mut rest, mut bytes) = (self.parameters, 0);
        for n in sizes {
            let blocks = n.div_ceil(blocksize as u64);
            let nested = blocks.div_ceil(double::NESTED_BLOCKSIZE as u64);
            let levels_and_offset = 256 * 4 + 4;
            bytes += n.div_ceil(2) + blocks + nested * 4 + levels_and_offset;
            rest = rest.saturating_sub(n);
        }
        bytes + rest * width
    }

    /// Bytes that oneDNN, where it multiplies, compiles for a step in `kind` on a CPU:
    /// for each shape of a weight its panels and the last of them, forward and
    /// backward, and the first in backward, which begins a sum; two for the head. With
    /// experts for each number of tokens as well, so as many as are kept.
    pub fn compiled_bytes(&self, kind: Kind) -> u64 {
        if !autograd::compiles(kind) {
            return 0;
        }
        let shapes: BTreeSet<_> = self.linears.iter().map(|(_, s)| s).collect();
        let products = match self.config.experts {
            None => (5 * shapes.len() + 2).min(KEPT),
            Some(_) => KEPT,
        };
        products as u64 * PRODUCT
    }

    /// Parameters of adapters of rank `r` on the linears whose last name is one of
    /// `targets`; on all for `all-linear`.
    pub fn adapter_parameters(&self, r: i64, targets: &[&str]) -> u64 {
        let chosen = |name: &str| {
            let last = name.rsplit('.').next().unwrap_or(name);
            targets.contains(&"all-linear") || targets.contains(&last)
        };
        let each = self.linears.iter().filter(|(name, _)| chosen(name));
        each.map(|(_, [out, input])| (r * (out + input)) as u64).sum()
    }
}

/// Counts, and looks each tensor up in the headers, where there are files.
struct Walk<'a> {
    checkpoint: Option<&'a Checkpoint>,
    tied: bool,
    parameters: u64,
    linears: Vec<(String, [i64; 2])>,
}

impl Walk<'_> {
    fn stand_in(&self, shape: &[i64]) -> Result<Tensor> {
        let one = Tensor::f_zeros([1], (Kind::Float, Device::Cpu))?;
        Ok(one.f_expand(shape, false)?)
    }

    fn count(&mut self, shape: &[i64]) {
        self.parameters += shape.iter().map(|n| *n as u64).product::<u64>();
    }
}

impl Weights for Walk<'_> {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        if let Some(checkpoint) = self.checkpoint {
            let name = stored(name, self.tied, checkpoint);
            let found = checkpoint.shape(name)?;
            if found != shape {
                let what = format!("shape {found:?}, config.json implies {shape:?}");
                return Err(Error::tensor(checkpoint.file_of(name), name, what));
            }
        }
        self.count(shape);
        self.stand_in(shape)
    }

    fn linear(&mut self, name: &str, shape: [i64; 2], bias: bool) -> Result<Linear> {
        let weight = format!("{name}.weight");
        self.linears.push((name.into(), shape));
        // Codes have another shape than their matrix, and without what says of which
        // kind they are they are refused where they are read.
        let state = format!("{weight}{}", bnb::STATE);
        let codes = |c: &Checkpoint| {
            c.contains(&state) || c.kind(&weight) == Some(Kind::Uint8)
        };
        let w = match self.checkpoint.is_some_and(codes) {
            true => {
                self.count(&shape);
                self.stand_in(&shape)?
            }
            false => self.tensor(&weight, &shape)?,
        };
        let bias = match bias {
            true => Some(self.tensor(&format!("{name}.bias"), &shape[..1])?),
            false => None,
        };
        Ok(Linear::dense(w, bias))
    }
}
