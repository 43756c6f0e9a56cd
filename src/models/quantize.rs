//! A checkpoint folder as transformers and bitsandbytes save it in 4 bits.
use super::config::read_config;
use super::load::{FromDisk, LoadOptions};
use super::quantization::{Bitsandbytes, config_json, written};
use crate::checkpoint::{Checkpoint, Writer, atomic, fresh, place};
use crate::{Error, Result};
use serde_json::Value;
use std::fs;
use std::path::Path;
use tch::{Device, Kind};

/// How to write a quantized checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeOptions {
    /// Weights that share a scale, one of [`crate::quant::BLOCKSIZES`].
    pub blocksize: usize,
    /// Quantize the block scales as well.
    pub double_quant: bool,
    /// Bytes of one file, where single tensors allow it.
    pub max_shard_size: u64,
    /// Where to quantize.
    pub device: Device,
}

/// What [`quantize`] read and wrote, in bytes of weight files.
#[derive(Clone, Copy, Debug)]
pub struct Quantized {
    /// In the source.
    pub from: u64,
    /// In the new folder.
    pub to: u64,
}

/// Writes the checkpoint in `from` into the new folder `to`, the linears of the blocks
/// in NF4, with its tokenizer. One tensor at a time is in memory. What bitsandbytes
/// quantized before is read and written again, unchanged.
///
/// # Errors
/// As [`super::load`]; `to` exists and is not empty; what writing returns, and then
/// nothing is left of `to`.
pub fn quantize(
    from: &Path,
    to: &Path,
    options: &QuantizeOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Quantized> {
    let load = LoadOptions {
        quantize: true,
        blocksize: options.blocksize,
        double_quant: options.double_quant,
        kind: Kind::Float,
        device: options.device,
    };
    rewrite((from, to), &load, options.max_shard_size, progress, |checkpoint| {
        described(from, checkpoint, options.double_quant)
    })
}

/// How the files of a checkpoint hold its linear layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stored {
    /// As floats.
    Plain,
    /// In NF4, by bitsandbytes.
    Nf4,
    /// In 8 bits with a scale for each block of 128 × 128.
    Fp8,
}

impl Stored {
    /// What `config.json` in `dir` says.
    ///
    /// # Errors
    /// No such file; another quantization than these.
    pub fn of(dir: &Path) -> Result<Self> {
        let json = config_json(dir)?;
        let nf4 = Bitsandbytes::of(&json)
            .map_err(|what| Error::file(dir.join("config.json"), what))?;
        Ok(match (nf4, json["quantization_config"].is_null()) {
            (Some(_), _) => Self::Nf4,
            (None, false) => Self::Fp8,
            (None, true) => Self::Plain,
        })
    }
}

/// Writes the checkpoint in `from`, in NF4 or 8 bits, into the new folder `to` as
/// floats: NF4 in the kind that it was made from, 8 bits in bf16. One tensor at a time
/// is in memory.
///
/// # Errors
/// As [`quantize`].
pub fn dequantize(
    from: &Path,
    to: &Path,
    max_shard_size: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Quantized> {
    let load = LoadOptions {
        quantize: false,
        blocksize: 64,
        double_quant: false,
        kind: Kind::BFloat16,
        device: Device::Cpu,
    };
    rewrite((from, to), &load, max_shard_size, progress, |_| {
        let mut json = config_json(from)?;
        if let Some(all) = json.as_object_mut() {
            all.remove("quantization_config");
        }
        Ok(json)
    })
}

/// Writes what is read as `load` says, under the `config.json` that `describe` gives.
fn rewrite(
    (from, to): (&Path, &Path),
    load: &LoadOptions,
    max_shard_size: u64,
    progress: &mut dyn FnMut(usize, usize),
    describe: impl FnOnce(&Checkpoint) -> Result<Value>,
) -> Result<Quantized> {
    place::free(to, &[("--model", from)])?;
    let config = read_config(from)?;
    let tied = config.tie_word_embeddings;
    let checkpoint = Checkpoint::open(from)?;
    fresh::folder(to, |partial| {
        let copy = Writer::new(partial, max_shard_size, checkpoint.names());
        let mut disk = FromDisk::new(&checkpoint, load, from, progress)?;
        (disk.copy, disk.keep) = (Some(copy), false);
        let model = disk.decoder(config)?;
        disk.copy.take().map_or(Ok(()), Writer::finish)?;
        let mut json = describe(&checkpoint)?;
        if tied && !model.config.tie_word_embeddings {
            // Not every reader looks for a head of its own beside a tied embedding.
            json["tie_word_embeddings"] = false.into();
        }
        let text = format!("{json:#}\n");
        atomic::bytes(&partial.join("config.json"), text.as_bytes())?;
        copy_the_rest(from, partial)
    })?;
    Ok(Quantized { from: checkpoint.bytes(), to: Checkpoint::open(to)?.bytes() })
}

/// `config.json` of the new folder.
pub(super) fn described(
    from: &Path,
    checkpoint: &Checkpoint,
    double_quant: bool,
) -> Result<Value> {
    let mut json = config_json(from)?;
    if Bitsandbytes::of(&json).is_ok_and(|q| q.is_some()) {
        return Ok(json);
    }
    let kinds = checkpoint.names().map(|name| checkpoint.kind(name));
    let compute = match kinds.flatten().next() {
        Some(kind @ (Kind::Half | Kind::Float)) => kind,
        _ => Kind::BFloat16,
    };
    json["quantization_config"] = written(double_quant, compute);
    Ok(json)
}

/// Tokenizer, templates, licences: small files that are neither weights nor their
/// description.
fn copy_the_rest(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).map_err(|e| Error::io(from, e))?.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let kind = path.extension().and_then(|e| e.to_str()).unwrap_or("");
        let wanted = matches!(kind, "json" | "txt" | "model" | "jinja" | "tiktoken")
            || name.to_uppercase().starts_with("LICENSE");
        let described = name == "config.json" || name.ends_with(".index.json");
        if wanted && !described && path.is_file() {
            let to = to.join(&*name);
            fresh::copy(&path, &to)?;
        }
    }
    Ok(())
}
