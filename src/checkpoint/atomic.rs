//! Writing so that nothing is lost: beside, flushed to the disk, then renamed. A kill,
//! a full disk or a power cut leaves the old file or the new one, never half of one.
use crate::{Error, Result};
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind as Kind};
use std::path::{Path, PathBuf};

/// A name beside `path` that no other process writes to.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial-{}", std::process::id()))
}

pub(super) fn sync(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    match file.sync_all() {
        // Some network disks do not know the call, folders least of all.
        Err(e) if matches!(e.kind(), Kind::InvalidInput | Kind::Unsupported) => {
            Ok(())
        }
        done => done.map_err(|e| Error::io(path, e)),
    }
}

/// Whether a disk cannot rename, rather than that it would not this time.
pub(super) fn cannot_rename(e: &io::Error) -> bool {
    matches!(e.kind(), Kind::Unsupported | Kind::CrossesDevices)
}

/// Renames a file; where the disk cannot, copies it and removes the first.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(e) if cannot_rename(&e) && from.is_file() => {
            fs::copy(from, to)?;
            File::open(to)?.sync_all()?;
            fs::remove_file(from)
        }
        done => done,
    }
}

pub(super) fn sync_parent(path: &Path) -> Result<()> {
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
        .and_then(|()| rename(&partial, path).map_err(|e| Error::io(path, e)));
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

/// The number of the process that writes under such a name.
fn writer(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    let (_, pid) = name.strip_prefix('.')?.rsplit_once(".partial-")?;
    pid.parse().ok()
}

/// Whether `path` is something half-written whose writer is no more: its process is
/// gone, and nobody, on this machine or another, holds it locked.
pub(super) fn is_dead(path: &Path) -> bool {
    let gone = |pid: u32| !Path::new("/proc").join(pid.to_string()).exists();
    let held = || {
        let file = File::open(path);
        file.is_ok_and(|f| matches!(f.try_lock(), Err(TryLockError::WouldBlock)))
    };
    writer(path).is_some_and(gone) && !held()
}

fn remove(path: &Path) {
    let _ = match path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
}

/// Removes what killed processes left half-written in `dir`.
pub fn sweep(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| is_dead(p)).for_each(|p| remove(&p));
}

/// Removes what this very process has half-written in `dir`: for one that must end in
/// the midst of it.
pub fn abandon(dir: &Path) {
    let ours = |p: &PathBuf| writer(p) == Some(std::process::id());
    // Another thread may go on writing until the process ends: out of its way first.
    for _ in 0..3 {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| e.path()).filter(ours).for_each(|p| remove(&p));
    }
}
