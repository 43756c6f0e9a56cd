//! Writing a checkpoint tensor by tensor, so that memory does not grow with the file.
use super::dtype_of;
use crate::{Error, Result};
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};

/// Bytes that are copied out of a tensor at a time.
const PIECE: usize = 8 << 20;

/// A folder's `model.safetensors`, or shards with their index when it grows too large.
///
/// The header of a safetensors file stands before the data and is known only after it,
/// so that room for it is left and filled up with spaces, as the format allows.
pub struct Writer {
    dir: PathBuf,
    limit: u64,
    room: usize,
    shards: Vec<Shard>,
}

struct Shard {
    path: PathBuf,
    file: BufWriter<File>,
    header: Map<String, Value>,
    at: u64,
    /// Tensors that would put the next ones at odd places: they go last.
    odd: Vec<(String, Tensor, Dtype)>,
}

impl Writer {
    /// Writes into `dir`, in files of at most `limit` bytes where tensors allow it.
    /// `names`: those of the tensors that may come, for the room of the headers; each
    /// may come in up to six parts.
    pub fn new<'a>(
        dir: &Path,
        limit: u64,
        names: impl Iterator<Item = &'a str>,
    ) -> Self {
        let room = names.map(|name| 6 * (name.len() + 128)).sum::<usize>() + 256;
        let room = room.next_multiple_of(8);
        Self { dir: dir.into(), limit: limit.max(1), room, shards: vec![] }
    }

    /// Adds a tensor.
    ///
    /// # Errors
    /// A kind that the format lacks; the system's.
    pub fn push(&mut self, name: &str, t: &Tensor) -> Result<()> {
        let kind = t.kind();
        let dtype = dtype_of(kind).ok_or_else(|| {
            Error::tensor(&self.dir, name, format!("kind {kind:?} cannot be saved"))
        })?;
        let t = t.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
        let bytes = (t.numel() * kind.elt_size_in_bytes()) as u64;
        let full = self.shards.last().is_none_or(|s| {
            let used = s.at + s.odd.iter().map(|(_, t, _)| size(t)).sum::<u64>();
            used > 0 && used + bytes > self.limit
        });
        if full {
            self.close_last()?;
            let number = self.shards.len() + 1;
            let path = self.dir.join(format!("part-{number}.safetensors"));
            self.shards.push(Shard::new(path, self.room)?);
        }
        let Some(shard) = self.shards.last_mut() else { return Ok(()) };
        match bytes % 8 {
            0 => shard.write(name, &t, dtype),
            _ => {
                shard.odd.push((name.into(), t, dtype));
                Ok(())
            }
        }
    }

    /// Completes headers, names and index.
    pub fn finish(mut self) -> Result<()> {
        if self.shards.is_empty() {
            return Err(Error::file(&self.dir, "no tensors to write"));
        }
        self.close_last()?;
        let rename = |from: &Path, name: &str| {
            let to = from.with_file_name(name);
            std::fs::rename(from, to).map_err(|e| Error::io(from, e))
        };
        if let [only] = &self.shards[..] {
            return rename(&only.path, super::shards::SINGLE);
        }
        let (count, mut map, mut total) = (self.shards.len(), Map::new(), 0);
        for (i, shard) in self.shards.iter().enumerate() {
            let name = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
            rename(&shard.path, &name)?;
            total += shard.at;
            let names = shard.header.keys().filter(|k| *k != "__metadata__");
            map.extend(names.map(|k| (k.clone(), json!(name))));
        }
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        let path = self.dir.join(super::shards::INDEX);
        let text = format!("{index:#}\n");
        std::fs::write(&path, text).map_err(|e| Error::io(&path, e))
    }

    fn close_last(&mut self) -> Result<()> {
        self.shards.last_mut().map_or(Ok(()), |s| s.close(self.room))
    }
}

fn size(t: &Tensor) -> u64 {
    (t.numel() * t.kind().elt_size_in_bytes()) as u64
}

impl Shard {
    fn new(path: PathBuf, room: usize) -> Result<Self> {
        let failed = |e| Error::io(&path, e);
        let mut file = BufWriter::new(File::create(&path).map_err(failed)?);
        file.write_all(&(room as u64).to_le_bytes()).map_err(failed)?;
        file.write_all(&vec![b' '; room]).map_err(failed)?;
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        Ok(Self { path, file, header, at: 0, odd: vec![] })
    }

    fn write(&mut self, name: &str, t: &Tensor, dtype: Dtype) -> Result<()> {
        let flat = t.f_view([-1])?;
        let (n, width) = (t.numel(), t.kind().elt_size_in_bytes());
        let step = PIECE / width;
        let mut bytes = vec![0; n.min(step) * width];
        for start in (0..n).step_by(step) {
            let count = step.min(n - start);
            let piece = flat.f_narrow(0, start as i64, count as i64)?;
            piece.f_copy_data_u8(&mut bytes[..count * width], count)?;
            let written = self.file.write_all(&bytes[..count * width]);
            written.map_err(|e| Error::io(&self.path, e))?;
        }
        let end = self.at + size(t);
        let entry = json!({"dtype": dtype, "shape": t.size(), "data_offsets": [self.at, end]});
        self.header.insert(name.into(), entry);
        self.at = end;
        Ok(())
    }

    /// Writes what was held back, the widest elements first, and the header.
    fn close(&mut self, room: usize) -> Result<()> {
        let mut odd = std::mem::take(&mut self.odd);
        odd.sort_by_key(|(_, t, _)| std::cmp::Reverse(t.kind().elt_size_in_bytes()));
        for (name, t, dtype) in odd {
            self.write(&name, &t, dtype)?;
        }
        let header = Value::Object(self.header.clone()).to_string();
        if header.len() > room {
            let what = format!("the header takes {} bytes of {room}", header.len());
            return Err(Error::file(&self.path, what));
        }
        let file = &mut self.file;
        let done = file
            .seek(std::io::SeekFrom::Start(8))
            .and_then(|_| file.write_all(header.as_bytes()))
            .and_then(|()| file.flush())
            .and_then(|()| file.get_ref().sync_all());
        done.map_err(|e| Error::io(&self.path, e))
    }
}
