//! A safetensors file written again with some of its tensors changed.
use super::mmap::MappedFile;
use super::{Checkpoint, atomic};
use crate::{Error, Result};
use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{BufWriter, Write};
use std::path::Path;
use tch::{Device, Tensor};

/// Tensors by name, each with a hash of its bytes.
pub type Hashes = HashMap<String, u64>;

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

impl Checkpoint {
    /// The files, in order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.mapped().iter().map(|f| f.path.as_path())
    }

    /// Writes `file` of this checkpoint again as `to`, one tensor in memory at a time.
    /// `change` gives the tensors that shall be others, of the same shape and kind: so
    /// the header stays as it is, and whatever is not changed, even a kind that libtorch
    /// does not know, is copied byte for byte. Returns what was written.
    ///
    /// # Errors
    /// What `change` returns; a tensor of another shape or kind; the system's.
    pub fn rewrite(
        &self,
        file: &Path,
        to: &Path,
        change: &mut dyn FnMut(&str) -> Result<Option<Tensor>>,
    ) -> Result<Hashes> {
        let mapped = self.mapped().iter().find(|f| f.path == file);
        let mapped =
            mapped.ok_or_else(|| Error::file(file, "not of this folder"))?;
        let mut hashes = Hashes::new();
        atomic::file(to, |partial| {
            let failed = |e| Error::io(to, e);
            let out = File::create(partial).map_err(failed)?;
            let mut out = BufWriter::with_capacity(1 << 20, out);
            out.write_all(mapped.head()).map_err(failed)?;
            for name in mapped.in_order() {
                let bytes = match change(&name)? {
                    None => mapped.raw(&name)?.to_vec(),
                    Some(t) => same_form(mapped, &name, &t)?,
                };
                mapped.forget(&name)?;
                out.write_all(&bytes).map_err(failed)?;
                hashes.insert(name, hash(&bytes));
            }
            out.flush().map_err(failed)
        })?;
        Ok(hashes)
    }

    /// Hashes of all tensors as they are on the disk.
    ///
    /// # Errors
    /// The system's.
    pub fn hashes(&self) -> Result<Hashes> {
        let mut hashes = Hashes::new();
        for file in self.mapped() {
            for name in file.in_order() {
                hashes.insert(name.clone(), hash(file.raw(&name)?));
                file.forget(&name)?;
            }
        }
        Ok(hashes)
    }
}

/// The bytes of `t`, which must fit in the place of the tensor `name`.
fn same_form(file: &MappedFile, name: &str, t: &Tensor) -> Result<Vec<u8>> {
    let (shape, length) = (file.shape(name)?, file.raw(name)?.len());
    let t = t.detach().to_device(Device::Cpu).contiguous();
    let mut bytes = vec![0; t.numel() * t.kind().elt_size_in_bytes()];
    if t.size() != shape || bytes.len() != length {
        let found = format!("{:?} of {:?}", t.size(), t.kind());
        let what = format!("cannot be replaced by {found}: it has shape {shape:?}");
        return Err(Error::tensor(&file.path, name, what));
    }
    t.copy_data_u8(&mut bytes, t.numel());
    Ok(bytes)
}
