//! The folders of a merge: what may be read, what is copied, and whether it arrived.
use crate::checkpoint::{Checkpoint, Hashes, fresh};
use crate::files::{CONFIG, read_small};
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// Refuses a checkpoint whose weights are in 4 or 8 bits already.
pub(super) fn not_quantized(model: &Path) -> Result<()> {
    let path = model.join("config.json");
    let text = read_small(&path, CONFIG)?;
    let json: Value = serde_json::from_slice(&text)
        .map_err(|e| Error::file(&path, format!("not JSON: {e}")))?;
    match &json["quantization_config"] {
        Value::Null => Ok(()),
        found => {
            let method = &found["quant_method"];
            let what = format!(
                "quantization_config ({method}): merged weights would have to be \
                 quantized again, and the update lost in that; merge into the 16-bit \
                 checkpoint that this one was made from, or --into dequantized, \
                 which unpacks NF4 first"
            );
            Err(Error::file(&path, what))
        }
    }
}

/// Copies everything but weights: config, tokenizer, index, licence.
pub(super) fn copy_others(model: &Path, out: &Path) -> Result<()> {
    const WEIGHTS: [&str; 9] =
        ["safetensors", "bin", "pt", "pth", "ckpt", "gguf", "h5", "msgpack", "onnx"];
    let entries = std::fs::read_dir(model).map_err(|e| Error::io(model, e))?;
    for entry in entries {
        let path = entry.map_err(|e| Error::io(model, e))?.path();
        let name =
            path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ending = path.extension().unwrap_or_default().to_string_lossy();
        let weights = WEIGHTS.contains(&&*ending) || name.contains(".bin.index.");
        if path.is_file() && !weights && !name.starts_with('.') {
            let to = out.join(&name);
            fresh::copy(&path, &to)?;
        }
    }
    Ok(())
}

/// Reads everything back: each tensor must be what was written, and each that was not
/// changed what it is in the model.
pub(super) fn verify(
    checkpoint: &Checkpoint,
    out: &Path,
    written: &Hashes,
    changed: &BTreeSet<String>,
) -> Result<()> {
    let (there, before) = (Checkpoint::open(out)?.hashes()?, checkpoint.hashes()?);
    for name in checkpoint.names() {
        let same = there.get(name) == written.get(name)
            && (changed.contains(name) || there.get(name) == before.get(name));
        if !same {
            let what = "does not read back as it was written; is the disk full or \
                        failing?";
            return Err(Error::tensor(out, name, what));
        }
    }
    Ok(())
}
