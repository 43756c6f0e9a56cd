//! Writing so that nothing is lost: beside, flushed to the disk, then renamed. A kill,
//! a full disk or a power cut leaves the old file or the new one, never half of one.
use crate::{Error, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// A name beside `path` that no other process writes to.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial-{}", std::process::id()))
}

fn sync(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    file.sync_all().map_err(|e| Error::io(path, e))
}

fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => sync(Path::new(".")),
        Some(dir) => sync(dir),
        None => Ok(()),
    }
}

/// Has `write` fill a file beside `path`, then puts it in place of `path`.
///
/// # Errors
/// What `write` returns, or the system on flushing and renaming; what it wrote is
/// removed then, and an older `path` is as it was.
pub fn file(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = beside(path);
    let done = write(&partial)
        .and_then(|()| sync(&partial))
        .and_then(|()| fs::rename(&partial, path).map_err(|e| Error::io(path, e)));
    if done.is_err() {
        let _ = fs::remove_file(&partial);
    }
    done?;
    sync_parent(path)
}

/// Puts `bytes` into `path`, as [`file`] does.
pub fn bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    file(path, |p| fs::write(p, bytes).map_err(|e| Error::io(path, e)))
}

/// Has `write` fill a folder beside `path`, then puts it in place of `path`.
///
/// # Errors
/// As [`file`]. If `path` exists already, the moment between its removal and the
/// renaming leaves neither name, but the new folder is complete beside it.
pub fn dir(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = beside(path);
    let run = || -> Result<()> {
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial).map_err(|e| Error::io(&partial, e))?;
        write(&partial)?;
        sync(&partial)?;
        if path.exists() {
            fs::remove_dir_all(path).map_err(|e| Error::io(path, e))?;
        }
        fs::rename(&partial, path).map_err(|e| Error::io(path, e))
    };
    let done = run();
    if done.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    done?;
    sync_parent(path)
}

/// Removes what killed processes left half-written in `dir`.
pub fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Some((_, pid)) = name.rsplit_once(".partial-") else { continue };
        let alive = Path::new("/proc").join(pid).exists();
        if name.starts_with('.') && pid.parse::<u32>().is_ok() && !alive {
            let path = entry.path();
            let _ = match path.is_dir() {
                true => fs::remove_dir_all(path),
                false => fs::remove_file(path),
            };
        }
    }
}
