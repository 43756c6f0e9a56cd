//! The lengths of a streamed file's rows, kept on disk: to know them, all of the file
//! must be tokenized, and a resumed run has done that before.
use super::Dataset;
use crate::{Error, Result};
use std::{fs, io, path::Path, time::UNIX_EPOCH};

impl Dataset {
    /// As [`Dataset::lengths`]. Those of a streamed file are written to `cache`, and
    /// read from it as long as file and number of rows are the same. Whoever changes
    /// the tokenizer or the length limit must name another cache.
    ///
    /// # Errors
    /// As [`Dataset::lengths`]; a cache that cannot be written.
    pub fn lengths_cached(&self, cache: &Path) -> Result<Vec<u32>> {
        if !self.is_streamed() {
            return self.lengths();
        }
        let key = self.key().map_err(|e| Error::io(&self.path, e))?;
        if let Ok(bytes) = fs::read(cache)
            && let Some(lengths) = bytes.strip_prefix(key.as_slice())
            && lengths.len() == 4 * self.len()
        {
            let (four, _) = lengths.as_chunks::<4>();
            return Ok(four.iter().map(|n| u32::from_le_bytes(*n)).collect());
        }
        let lengths = self.lengths()?;
        let mut bytes = key;
        bytes.extend(lengths.iter().flat_map(|n| n.to_le_bytes()));
        let partial = cache.with_extension("partial");
        let written =
            fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, cache));
        written.map_err(|e| Error::io(cache, e))?;
        Ok(lengths)
    }

    /// The file's size and time, and the number of rows.
    fn key(&self) -> io::Result<Vec<u8>> {
        let about = fs::metadata(&self.path)?;
        let time = about.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let key = [about.len(), time.as_nanos() as u64, self.len() as u64];
        Ok(key.iter().flat_map(|n| n.to_le_bytes()).collect())
    }
}
