//! What tells the rows of one file from those of another.
use super::source::Source;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;
use twox_hash::XxHash3_128;

/// A number of rows, and a hash of what they say. The file's name and place, its line
/// ends, blank lines and a byte order mark are not part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Rows, without a header.
    pub rows: u64,
    /// XXH3 (128 bits) of their bytes, and of a header's.
    pub xxh3: String,
}

impl Fingerprint {
    /// Reads a file of rows, and no more of it than its first `rows`.
    ///
    /// # Errors
    /// What the operating system says; a row without an end; a pipe, which can be read
    /// once.
    pub fn of(path: &Path, rows: u64) -> Result<Self> {
        if !path.is_file() {
            return Err(Error::file(path, "no plain file, and read already"));
        }
        let mut source = Source::open(path)?;
        let mut bytes = Vec::new();
        while source.digest.rows < rows && source.next_into(&mut bytes)?.is_some() {}
        Ok(source.digest.fingerprint())
    }
}

/// A [`Fingerprint`] in the making.
pub(super) struct Digest {
    pub(super) rows: u64,
    hash: XxHash3_128,
}

impl Digest {
    pub(super) fn new() -> Self {
        Self { rows: 0, hash: XxHash3_128::new() }
    }

    pub(super) fn add(&mut self, row: &[u8]) {
        let row = row.strip_suffix(b"\n").unwrap_or(row);
        let row = row.strip_suffix(b"\r").unwrap_or(row);
        self.hash.write(&(row.len() as u64).to_le_bytes());
        self.hash.write(row);
        self.rows += 1;
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        let xxh3 = format!("{:032x}", self.hash.finish_128());
        Fingerprint { rows: self.rows, xxh3 }
    }
}
