//! What a folder held when it was written: `manifest.json`, written last. It tells a
//! whole folder from one that was copied or emptied in part, and bytes that have changed
//! since from those that were written.
use super::atomic;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path};
use twox_hash::XxHash3_128;

/// Its file in the folder.
pub const MANIFEST: &str = "manifest.json";

/// The files of a folder.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    xxh3_128: String,
}

impl Manifest {
    /// Reads every file in `dir`, and writes what they are beside them.
    ///
    /// # Errors
    /// The system's.
    pub fn write(dir: &Path) -> Result<()> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
            let path = entry.map_err(|e| Error::io(dir, e))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_file() && name != MANIFEST {
                files.insert(name.into_owned(), Entry::of(&path)?);
            }
        }
        let manifest = Self { version: 1, files };
        let text = serde_json::to_string_pretty(&manifest).unwrap_or_default();
        atomic::bytes(&dir.join(MANIFEST), text.as_bytes())
    }

    /// The manifest of a folder; none where there is none.
    ///
    /// # Errors
    /// One that cannot be read, or is none of ours.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(MANIFEST);
        let bytes = match crate::files::text(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|e| Error::io(&path, e))?,
        };
        let wrong = |what: String| Error::file(&path, what);
        let found: Self = serde_json::from_slice(&bytes)
            .map_err(|e| wrong(format!("damaged: {e}")))?;
        if found.version != 1 {
            let version = found.version;
            let what = format!("of version {version}; this program knows version 1");
            return Err(wrong(what));
        }
        for name in found.files.keys() {
            let mut parts = Path::new(name).components();
            let plain = matches!(parts.next(), Some(Component::Normal(_)))
                && parts.next().is_none();
            if !plain {
                return Err(wrong(format!(
                    "names {name:?}, which is no file's name"
                )));
            }
        }
        Ok(Some(found))
    }

    /// The first file that is not there, or has another size, in words. No file is read.
    pub fn lacking(&self, dir: &Path) -> Option<String> {
        self.files.iter().find_map(|(name, entry)| {
            let about = fs::metadata(dir.join(name)).ok().filter(|a| a.is_file());
            match about.map(|a| a.len()) {
                None => Some(format!("{name} is not there")),
                Some(n) if n != entry.bytes => Some(format!(
                    "{name} has {n} bytes, and had {} when it was written",
                    entry.bytes
                )),
                _ => None,
            }
        })
    }

    /// Reads every file again.
    ///
    /// # Errors
    /// A file whose bytes are others than were written, by name.
    pub fn verify(&self, dir: &Path) -> Result<()> {
        for (name, entry) in &self.files {
            let path = dir.join(name);
            if Entry::of(&path)? != *entry {
                let what = format!(
                    "damaged or edited: its bytes are not those that were written, by \
                     the checksum in {MANIFEST}"
                );
                return Err(Error::file(&path, what));
            }
        }
        Ok(())
    }
}

impl Entry {
    fn of(path: &Path) -> Result<Self> {
        let failed = |e| Error::io(path, e);
        let mut file = File::open(path).map_err(failed)?;
        let (mut hash, mut bytes) = (XxHash3_128::new(), 0);
        let mut piece = vec![0; 1 << 20];
        loop {
            let n = match file.read(&mut piece) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                read => read.map_err(failed)?,
            };
            if n == 0 {
                break;
            }
            hash.write(&piece[..n]);
            bytes += n as u64;
        }
        Ok(Self { bytes, xxh3_128: format!("{:032x}", hash.finish_128()) })
    }
}
