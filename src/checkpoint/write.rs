//! Single safetensors files: adapters, optimizer states.
use super::mmap::MappedFile;
use super::{atomic, dtype_of};
use crate::{Error, Result};
use safetensors::{Dtype, View};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use tch::{Device, Tensor};

struct Contiguous {
    tensor: Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl View for &Contiguous {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        self.tensor.copy_data_u8(&mut bytes, self.tensor.numel());
        Cow::Owned(bytes)
    }
    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// Writes tensors to a safetensors file with this metadata (`[("format", "pt")]` is
/// what transformers and PEFT expect), atomically.
///
/// # Errors
/// A kind that the format lacks; the system's, naming `path`.
pub fn save_safetensors(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: &[(&str, &str)],
) -> Result<()> {
    let mut views = Vec::with_capacity(tensors.len());
    for (name, t) in tensors {
        let kind = t.kind();
        let dtype = dtype_of(kind).ok_or_else(|| {
            Error::tensor(path, name, format!("kind {kind:?} cannot be saved"))
        })?;
        let tensor = t.detach().to_device(Device::Cpu).contiguous();
        let shape = t.size().iter().map(|&n| n as usize).collect();
        views.push((name.clone(), Contiguous { tensor, dtype, shape }));
    }
    let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string()));
    let metadata: HashMap<String, String> = metadata.collect();
    // The crate writes a broken header for metadata without tensors.
    let metadata = (!views.is_empty()).then_some(metadata);
    atomic::file(path, |partial| {
        let views = views.iter().map(|(name, v)| (name, v));
        // Not `serialize_to_file`: only their owner may read the files it makes.
        let bytes = safetensors::serialize(views, metadata)
            .map_err(|e| Error::file(path, e.to_string()))?;
        std::fs::write(partial, bytes).map_err(|e| Error::io(path, e))
    })
}

/// All tensors of one safetensors file, in host memory.
///
/// # Errors
/// As [`super::Checkpoint::open`], for this file.
pub fn read_safetensors(path: &Path) -> Result<HashMap<String, Tensor>> {
    let file = MappedFile::open(path)?;
    let names = file.header.tensors().into_keys();
    names.map(|name| file.tensor(&name).map(|t| (name, t))).collect()
}

/// Refuses a safetensors file in which a number is infinite or NaN.
///
/// # Errors
/// As [`read_safetensors`]; such a tensor, by name.
pub fn finite(path: &Path) -> Result<()> {
    let file = MappedFile::open(path)?;
    for name in file.header.tensors().into_keys() {
        if !bool::try_from(file.tensor(&name)?.f_isfinite()?.f_all()?)? {
            let what = "holds numbers that are infinite or NaN";
            return Err(Error::tensor(path, &name, what));
        }
    }
    Ok(())
}
