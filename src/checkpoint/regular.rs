//! Files that others wrote, before they are opened: a pipe would be waited for, and a
//! description without end would fill the memory.
use crate::{Error, Result};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// The longest `config.json` or `adapter_config.json` that is read, in bytes.
pub const CONFIG: u64 = 4 << 20;
/// The longest index of shards that is read: DeepSeek-V3's has 9 MB.
pub(super) const INDEX: u64 = 64 << 20;

/// The length of `path`, which must be a file and no folder, pipe, socket or device.
///
/// # Errors
/// It is one of these, or the system's.
pub(super) fn length(path: &Path) -> Result<u64> {
    let about = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    let kind = about.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(about.len()),
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a pipe",
        () => "a socket or a device",
    };
    Err(Error::file(path, format!("{what}; expected a file")))
}

/// The bytes of a small file.
///
/// # Errors
/// It is no file, or has more than `limit` bytes; the system's.
pub fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let long = length(path)?;
    let (mut bytes, failed) = (vec![], |e| Error::io(path, e));
    if long <= limit {
        let file = File::open(path).map_err(failed)?;
        file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    match long > limit || bytes.len() as u64 > limit {
        true => {
            let (found, most) = (long >> 20, limit >> 20);
            let what = format!(
                "{found} MiB long, and a file of this name has {most} at most; is it \
                 another file, or damaged?"
            );
            Err(Error::file(path, what))
        }
        false => Ok(bytes),
    }
}
