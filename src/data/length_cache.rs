//! The lengths of a streamed file's rows, kept on disk: to know them, all of the file
//! must be tokenized, and a resumed run has done that before.
use super::{Dataset, RowEncoder, Tokenizer};
use crate::{Error, Result, files};
use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::Path,
    time::UNIX_EPOCH,
};

impl Dataset {
    /// As [`Dataset::lengths`]. Those of a streamed file are written to `cache`, with a
    /// checksum of them and of all that they depend on: the file's size and time, which
    /// of its rows these are, the limits, what is learned, and the files of the
    /// tokenizer. They are read from it as long as that is the same.
    ///
    /// # Errors
    /// As [`Dataset::lengths`]; a cache that cannot be written.
    pub fn lengths_cached(&self, cache: &Path) -> Result<Vec<u32>> {
        if !self.is_streamed() {
            return self.lengths();
        }
        let about = self.about().map_err(|e| Error::io(&self.path, e))?;
        let sum = |lengths: &[u8]| {
            let mut sum = about.clone();
            lengths.hash(&mut sum);
            sum.finish().to_le_bytes()
        };
        if let Ok(bytes) = files::read(cache)
            && let Some((known, lengths)) = bytes.split_first_chunk::<8>()
            && lengths.len() == 4 * self.len()
            && *known == sum(lengths)
        {
            let (four, _) = lengths.as_chunks::<4>();
            return Ok(four.iter().map(|n| u32::from_le_bytes(*n)).collect());
        }
        let lengths = self.lengths()?;
        let bytes: Vec<u8> = lengths.iter().flat_map(|n| n.to_le_bytes()).collect();
        let partial = cache.with_extension("partial");
        let written = fs::write(&partial, [&sum(&bytes)[..], &bytes].concat())
            .and_then(|()| fs::rename(&partial, cache));
        written.map_err(|e| {
            let _ = fs::remove_file(&partial);
            Error::io(cache, e)
        })?;
        Ok(lengths)
    }

    /// What the lengths depend on.
    fn about(&self) -> io::Result<DefaultHasher> {
        let RowEncoder {
            tokenizer,
            max_length,
            vocab_size,
            completion_only_loss,
            assistant_only_loss,
        } = self.encoder();
        let file = fs::metadata(&self.path)?;
        let time = file.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut about = DefaultHasher::new();
        env!("CARGO_PKG_VERSION").hash(&mut about);
        (file.len(), time.as_nanos(), self.lines()).hash(&mut about);
        (max_length, vocab_size).hash(&mut about);
        (completion_only_loss, assistant_only_loss).hash(&mut about);
        if let Some(dir) = tokenizer.as_ref().and_then(Tokenizer::folder) {
            hash_folder(dir, &mut about);
        }
        Ok(about)
    }
}

/// The files of a folder that may have a say in what a tokenizer and its template do,
/// as far as they are there.
fn hash_folder(dir: &Path, into: &mut DefaultHasher) {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if ["json", "jinja", "txt", "model"].contains(&kind) && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        path.file_name().hash(into);
        files::read(&path).unwrap_or_default().hash(into);
    }
}
