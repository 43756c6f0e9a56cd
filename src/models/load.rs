//! A decoder from a checkpoint folder, tensor by tensor: quantized on the way, or as
//! bitsandbytes quantized it before.
use super::config::{DecoderConfig, read_config};
use super::decoder::Decoder;
use super::quantization::{Bitsandbytes, config_json};
use super::tied::{HEAD, stored, untie};
use super::weights::Weights;
use crate::autograd::pinned;
use crate::checkpoint::{Checkpoint, PromptFrees, Writer};
use crate::nn::{Linear, Weight};
use crate::quant::bnb;
use crate::{Error, Result};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use tch::{Device, Kind, Tensor};

/// How to hold the weights.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Linear layers of the blocks in NF4; embedding, head and norms stay as they are.
    /// Off, what a checkpoint holds in NF4 is dequantized.
    pub quantize: bool,
    /// Weights that share a scale, one of [`crate::quant::BLOCKSIZES`]; what is
    /// quantized already keeps its own.
    pub blocksize: usize,
    /// Quantize the block scales as well.
    pub double_quant: bool,
    /// Kind to compute in; also that of every weight that is not quantized.
    pub kind: Kind,
    /// Where the model shall live.
    pub device: Device,
}

/// Reads the checkpoint in `dir`. At no time is more in memory than the finished part
/// of the model, two copies of one tensor, and the tensor after it.
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
    FromDisk::new(&checkpoint, options, dir, progress)?.decoder(config)
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

/// The largest tensor that is read into pinned memory, in bytes.
const PINNED: usize = 256 << 20;

fn bytes(t: &Tensor) -> usize {
    t.numel() * t.kind().elt_size_in_bytes()
}

/// `t` on its way to `device`, which fetches it in its turn.
pub(super) fn sent(t: &Tensor, device: Device) -> Result<Tensor> {
    Ok(t.f_to_device_(device, t.kind(), device.is_cuda(), false)?)
}

/// What the reading thread gives: tensors in the order in which they will be asked for.
struct Ahead {
    queue: Receiver<(String, Result<Tensor>)>,
    /// The first one, if it has come and was not what was asked for.
    next: Option<(String, Result<Tensor>)>,
}

impl Ahead {
    /// The tensor `name`, if it is the next one.
    fn take(&mut self, name: &str) -> Option<Result<Tensor>> {
        if self.next.is_none() {
            self.next = self.queue.recv().ok();
        }
        let next = self.next.take_if(|(next, _)| next == name);
        next.map(|(_, t)| t)
    }
}

/// Reads a checkpoint, and may write what it reads to another.
pub(super) struct FromDisk<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) options: &'a LoadOptions,
    /// How bitsandbytes quantized the checkpoint, if it did.
    quantized: Option<Bitsandbytes>,
    used: BTreeSet<String>,
    /// The head is the embedding.
    tied: bool,
    /// Tensors to read.
    total: usize,
    progress: &'a mut dyn FnMut(usize, usize),
    /// Gets every tensor as it will be held, but unquantized ones in the file's kind.
    pub(super) copy: Option<Writer>,
    /// Why there is no copy any more, where the model matters more than its copy.
    pub(super) failed: Option<Error>,
    /// Off, the model is stood in for by tensors without memory: for the copy alone.
    pub(super) keep: bool,
    /// Nothing waits until a weight is quantized: see [`FromDisk::settle`].
    pub(super) late: bool,
    pub(super) queued: HashMap<String, Tensor>,
    ahead: Option<Ahead>,
    _frees: PromptFrees,
}

impl<'a> FromDisk<'a> {
    /// `dir` holds the config.json that describes the files.
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        options: &'a LoadOptions,
        dir: &Path,
        progress: &'a mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let quantized = Bitsandbytes::of(&config_json(dir)?);
        let quantized =
            quantized.map_err(|what| Error::file(dir.join("config.json"), what))?;
        Ok(Self {
            checkpoint,
            options,
            quantized,
            used: BTreeSet::new(),
            tied: false,
            total: checkpoint.names().count(),
            progress,
            copy: None,
            failed: None,
            keep: true,
            late: options.device.is_cuda(),
            queued: HashMap::new(),
            ahead: None,
            _frees: PromptFrees::new(),
        })
    }

    pub(super) fn decoder(&mut self, mut config: DecoderConfig) -> Result<Decoder> {
        let checkpoint = self.checkpoint;
        let untied = untie(&mut config, checkpoint)?;
        let (tied, extra) = (config.tie_word_embeddings, Extra::of(&config));
        self.tied = tied;
        let passed = checkpoint.names().filter(|name| extra.holds(name)).count();
        self.total -= passed;
        let mut model = self.built(config)?;
        self.settle(&mut model)?;
        model.notes.extend(untied);
        if passed > 0 {
            model.notes.push(extra.note(passed));
        }
        let spare = |name: &str| {
            // Buffers that old exports carry, and a tied head stored twice.
            name.ends_with("rotary_emb.inv_freq")
                || (tied && name == HEAD)
                || extra.holds(name)
        };
        match checkpoint.names().find(|n| !self.used.contains(*n) && !spare(n)) {
            None => Ok(model),
            Some(name) => Err(Error::tensor(
                checkpoint.file_of(name),
                name,
                "the model described by config.json has no such tensor; is it the \
                 config.json of this checkpoint?",
            )),
        }
    }

    /// The model, while a thread reads one tensor ahead: what the disk and the copy
    /// into host memory take passes beside quantizing and what the device does.
    fn built(&mut self, config: DecoderConfig) -> Result<Decoder> {
        let (checkpoint, device) = (self.checkpoint, self.options.device);
        let mut names = config.tensors_of(checkpoint)?;
        names.retain(|name| !checkpoint.is_fp8(name));
        std::thread::scope(|threads| {
            // Without room: whoever has read a tensor waits until it is wanted.
            let (send, ahead) = sync_channel(0);
            threads.spawn(move || {
                for name in names {
                    let t = checkpoint.tensor(&name);
                    // From such memory a GPU fetches by itself. libtorch keeps what it
                    // pinned, so none of it is large.
                    let pin = |t: Tensor| match device {
                        Device::Cuda(_) if bytes(&t) <= PINNED => pinned(&t, device),
                        _ => t,
                    };
                    let t = t.map(pin);
                    if send.send((name, t)).is_err() {
                        break; // nobody waits any more
                    }
                }
            });
            self.ahead = Some(Ahead { queue: ahead, next: None });
            let model = tch::no_grad(|| Decoder::new(config, self));
            self.ahead = None;
            model
        })
    }

    /// One tensor as the file has it.
    fn take(&mut self, name: &str) -> Result<Tensor> {
        let ahead = self.ahead.as_mut().and_then(|ahead| ahead.take(name));
        let t = ahead.unwrap_or_else(|| self.checkpoint.tensor(name))?;
        self.seen(name);
        Ok(t)
    }

    fn seen(&mut self, name: &str) {
        self.used.insert(name.into());
        (self.progress)(self.used.len(), self.total);
    }

    /// In host memory and in the file's kind; fp8, which has its scales apart, in the
    /// kind to compute in.
    fn read(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let file = self.checkpoint.file_of(name);
        let found = self.checkpoint.shape(name)?;
        if found != shape {
            let what = format!("shape {found:?}, config.json implies {shape:?}");
            return Err(Error::tensor(file, name, what));
        }
        if self.checkpoint.is_fp8(name) {
            let t = self.checkpoint.fp8(name, self.options.kind)?;
            self.seen(&Checkpoint::fp8_scale_name(name));
            self.seen(name);
            return Ok(t);
        }
        let t = self.take(name)?;
        if !matches!(t.kind(), Kind::Float | Kind::Half | Kind::BFloat16) {
            let what = format!("dtype {:?}; weights are F32, F16 or BF16", t.kind());
            return Err(Error::tensor(file, name, what));
        }
        Ok(t)
    }

    /// `t` in `kind`, or what takes its place.
    fn held(&self, t: Tensor, kind: Kind) -> Result<Tensor> {
        let device = self.options.device;
        match self.keep {
            true => sent(&t.f_to_kind(kind)?, device),
            false => self.stand_in(&t.size()),
        }
    }

    /// A tensor of one number, seen in this shape.
    fn stand_in(&self, shape: &[i64]) -> Result<Tensor> {
        let one = Tensor::f_zeros([1], (self.options.kind, self.options.device))?;
        Ok(one.f_expand(shape, false)?)
    }

    /// A linear's weight as bitsandbytes stored it, if it did.
    fn stored(
        &mut self,
        name: &str,
        weight: &str,
        shape: [i64; 2],
    ) -> Result<Option<bnb::Stored>> {
        let file = self.checkpoint.file_of(weight);
        if !self.checkpoint.contains(&format!("{weight}{}", bnb::STATE)) {
            let foreign = bnb::FOREIGN.map(|suffix| format!("{weight}{suffix}"));
            if let Some(name) = foreign.iter().find(|n| self.checkpoint.contains(n))
            {
                let what = "the mark of a code that is not read; only NF4 is";
                return Err(Error::tensor(
                    self.checkpoint.file_of(name),
                    name,
                    what,
                ));
            }
            return match &self.quantized {
                Some(q) if !q.skips(name) => Err(Error::tensor(
                    file,
                    weight,
                    format!(
                        "quantization_config of config.json says that it is in 4 \
                         bits, and llm_int8_skip_modules does not name it; but \
                         `{weight}{}` is missing",
                        bnb::STATE
                    ),
                )),
                _ => Ok(None),
            };
        }
        let part = &mut |suffix: &str| self.take(&format!("{weight}{suffix}"));
        let stored = bnb::Stored::read(part).map_err(|e| match e {
            Error::Setting { name: suffix, what } => {
                let part = format!("{weight}{suffix}");
                Error::tensor(self.checkpoint.file_of(&part), part, what)
            }
            other => other,
        })?;
        let found = stored.matrix.shape();
        if found != shape {
            let what = format!("shape {found:?}, config.json implies {shape:?}");
            return Err(Error::tensor(file, weight, what));
        }
        Ok(Some(stored))
    }

    fn copied(&mut self, name: &str, t: &Tensor) -> Result<()> {
        let pushed = self.copy.as_mut().map_or(Ok(()), |copy| copy.push(name, t));
        match pushed {
            Err(e) if self.keep => {
                self.copy = None;
                self.failed = Some(e);
                Ok(())
            }
            other => other,
        }
    }

    fn held_quantized(&mut self, weight: &str, q: bnb::Stored) -> Result<Weight> {
        let options = self.options;
        if self.copy.is_some() && options.quantize {
            for (suffix, t) in q.parts()? {
                self.copied(&format!("{weight}{suffix}"), &t)?;
            }
        } else if self.copy.is_some() {
            self.copied(weight, &q.matrix.dequantize(q.dtype))?;
        }
        if !self.keep {
            return Ok(Weight::Dense(self.stand_in(&q.matrix.shape())?));
        }
        let matrix = q.matrix.to_device(options.device);
        Ok(match options.quantize {
            true => Weight::Nf4(matrix),
            false => Weight::Dense(matrix.dequantize(options.kind)),
        })
    }
}

impl Weights for FromDisk<'_> {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let t = self.read(stored(name, self.tied, self.checkpoint), shape)?;
        self.copied(name, &t)?;
        self.held(t, self.options.kind)
    }

    fn buffer(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let t = self.read(name, shape)?;
        self.copied(name, &t)?;
        self.held(t, Kind::Float)
    }

    fn linear(&mut self, name: &str, shape: [i64; 2], bias: bool) -> Result<Linear> {
        let weight = format!("{name}.weight");
        let quantize = self.options.quantize && self.quantized.is_none();
        let held = match self.stored(name, &weight, shape)? {
            Some(stored) => self.held_quantized(&weight, stored)?,
            None if quantize => {
                let w = self.read(&weight, &shape)?;
                let q = self.quantize(&weight, &w)?;
                drop(w);
                self.held_quantized(&weight, q)?
            }
            None => Weight::Dense(self.tensor(&weight, &shape)?),
        };
        let bias = match bias {
            true => Some(self.tensor(&format!("{name}.bias"), &shape[..1])?),
            false => None,
        };
        Ok(Linear { weight: held, bias, lora: None })
    }
}
