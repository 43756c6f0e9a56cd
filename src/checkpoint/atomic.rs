//! Writing so that nothing is lost: beside, flushed to the disk, then renamed. A kill,
//! a full disk or a power cut leaves the old file or the new one, never half of one.
use crate::{Error, Result};
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind as Kind};
use std::path::{Path, PathBuf};

/// A name beside `path` that no other process writes to.
fn beside(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{what}-{}", std::process::id()))
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
    let partial = beside(path, "partial");
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

/// Has `write` fill a folder beside `path`, then puts it in place of `path`. An older
/// folder there is exchanged for the new one in one call, and removed then. Where the
/// file system has no such call, it is renamed first: killed between these two renames,
/// a process leaves it under a hidden name, from which [`recover`] brings it back.
///
/// # Errors
/// As [`file`].
pub fn dir(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = beside(path, "partial");
    let run = || -> Result<()> {
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial).map_err(|e| Error::io(&partial, e))?;
        write(&partial)?;
        sync(&partial)?;
        if !path.exists() {
            fs::rename(&partial, path).map_err(|e| Error::io(path, e))?;
            return sync_parent(path);
        }
        let older = match exchange(&partial, path) {
            Ok(()) => partial.clone(),
            Err(_) => in_turns(&partial, path)?,
        };
        sync_parent(path)?;
        // The new one is in its place: what cannot be removed takes room, no more.
        let _ = fs::remove_dir_all(older);
        Ok(())
    };
    let done = run();
    if done.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    done
}

#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Renames `path` to a hidden name, which it returns, and `partial` to `path`.
fn in_turns(partial: &Path, path: &Path) -> Result<PathBuf> {
    let older = beside(path, REPLACED);
    let _ = fs::remove_dir_all(&older);
    fs::rename(path, &older).map_err(|e| Error::io(path, e))?;
    if let Err(e) = fs::rename(partial, path) {
        let _ = fs::rename(&older, path);
        return Err(Error::io(path, e));
    }
    Ok(older)
}

const REPLACED: &str = "replaced";

/// The entries of `dir` that [`beside`] named so for a process that is no more: each
/// with the name that it was to have.
fn left(dir: &Path, what: &str) -> Vec<(PathBuf, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let named = |entry: fs::DirEntry| {
        let name = entry.file_name();
        let (name, pid) = name.to_str()?.rsplit_once(&format!(".{what}-"))?;
        let pid = pid.parse::<u32>().ok()?;
        let name = name.strip_prefix('.')?;
        // A process replaces nothing while it looks: with our number it was another.
        let other = what != REPLACED || pid != std::process::id();
        let alive = other && Path::new("/proc").join(pid.to_string()).exists();
        (!alive).then(|| (entry.path(), dir.join(name)))
    };
    entries.filter_map(named).collect()
}

/// Brings back the folders that a killed process was replacing, and had neither in
/// their old form nor in the new one under their name.
pub fn recover(dir: &Path) {
    for (older, path) in left(dir, REPLACED) {
        if !path.exists() {
            let _ = fs::rename(older, path);
        }
    }
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

/// Removes what killed processes left half-written or replaced in `dir`.
pub fn sweep(dir: &Path) {
    recover(dir);
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| is_dead(p)).for_each(|p| remove(&p));
    left(dir, REPLACED).iter().for_each(|(path, _)| remove(path));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder `name` in `dir` with one file.
    fn folder(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        fs::create_dir_all(&path).expect("a folder");
        fs::write(path.join("file"), text).expect("a file");
        path
    }

    fn text(path: &Path) -> String {
        fs::read_to_string(path.join("file")).unwrap_or_default()
    }

    #[test]
    fn without_an_exchange_the_older_comes_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = folder(dir.path(), "checkpoint-3", "old");
        let partial = folder(dir.path(), ".checkpoint-3.partial-0", "new");
        let older = in_turns(&partial, &path).expect("replaced");
        assert_eq!((text(&path), text(&older)), ("new".into(), "old".into()));
        // Killed after both renames: the new one holds, and the older goes.
        let dead = dir.path().join(".checkpoint-3.replaced-0");
        fs::rename(&older, &dead).expect("renamed");
        recover(dir.path());
        assert_eq!((text(&path), text(&dead)), ("new".into(), "old".into()));
        sweep(dir.path());
        assert!(!dead.exists() && text(&path) == "new");
        // Killed between them: the older one is there again.
        folder(dir.path(), ".checkpoint-3.replaced-0", "old");
        folder(dir.path(), ".checkpoint-3.partial-0", "newer");
        fs::remove_dir_all(&path).expect("removed");
        recover(dir.path());
        assert_eq!(text(&path), "old");
        assert_eq!(text(&partial), "newer", "recovering removes nothing");
        sweep(dir.path());
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
        // Nor is anything lost where the second rename fails.
        let none = dir.path().join(".checkpoint-3.partial-0");
        assert!(in_turns(&none, &path).is_err());
        assert_eq!(text(&path), "old");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_exchange_is_one_call() {
        let dir = tempfile::tempdir().expect("a folder");
        let (a, b) = (folder(dir.path(), "a", "1"), folder(dir.path(), "b", "2"));
        exchange(&a, &b).expect("of two folders");
        assert_eq!((text(&a), text(&b)), ("2".into(), "1".into()));
    }
}
