//! New folders: whole, or not there at all. What a killed process left of one is removed
//! when the next begins; what a living one writes is not touched.
use super::{atomic, place};
use crate::{Error, Result};
use serde_json::Value;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Names what is about to be moved out of a partial folder, so that half a move can be
/// taken back.
const MOVING: &str = ".moving.json";

/// Has `write` fill a new folder, which is then put in place as `out`: by one renaming
/// where there is no `out` yet. Into an empty one, which may be a link, a mounted disk or
/// somebody's working directory, the files are moved one by one, `config.json` last.
///
/// # Errors
/// What `write` returns, or the system; paths are those in `out`. Nothing is left then.
pub fn folder(out: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let target = place::real(out);
    sweep_beside(&target);
    recover(&target);
    let there = target.is_dir();
    let partial = match there {
        true => target.join(format!(".new.partial-{}", std::process::id())),
        false => {
            let name = target.file_name().unwrap_or_default().to_string_lossy();
            let partial = format!(".{name}.partial-{}", std::process::id());
            target.with_file_name(partial)
        }
    };
    if partial.exists() {
        // Of a process with our number that is gone, or that lives on another machine.
        drop(lock(&partial)?);
        remove(&partial);
    }
    let made = partial.ancestors().skip(1).take_while(|a| !a.exists());
    let made: Vec<PathBuf> = made.map(Path::to_path_buf).collect();
    fs::create_dir_all(&partial).map_err(|e| Error::io(out, e))?;
    let lock = lock(&partial)?;
    let done = write(&partial)
        .and_then(|()| flush(&partial))
        .and_then(|()| put(&partial, &target, there));
    drop(lock);
    if done.is_err() {
        let _ = fs::remove_dir_all(&partial);
        made.iter().for_each(|dir| drop(fs::remove_dir(dir)));
    }
    done.map_err(|e| in_place(e, &partial, out))
}

/// Holds a folder against being swept, as long as the file lives; where the system
/// cannot lock, the number of the process alone speaks for it.
///
/// # Errors
/// Another process holds it; the system's.
pub fn lock(dir: &Path) -> Result<Option<File>> {
    let file = File::open(dir).map_err(|e| Error::io(dir, e))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            Err(Error::file(dir, "another process is writing this folder"))
        }
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// Everything below `dir` onto the disk.
fn flush(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        match path.is_dir() {
            true => flush(&path)?,
            false => atomic::sync(&path)?,
        }
    }
    atomic::sync(dir)
}

fn put(partial: &Path, target: &Path, there: bool) -> Result<()> {
    if !there {
        match fs::rename(partial, target) {
            Ok(()) => return atomic::sync_parent(target),
            Err(e) if atomic::cannot_rename(&e) => {
                fs::create_dir(target).map_err(|e| Error::io(target, e))?;
                let done = move_into(partial, target);
                if done.is_err() {
                    let _ = fs::remove_dir(target);
                }
                return done;
            }
            Err(e) => return Err(Error::io(target, e)),
        }
    }
    move_into(partial, target)
}

fn move_into(partial: &Path, target: &Path) -> Result<()> {
    let mut names = vec![];
    for entry in fs::read_dir(partial).map_err(|e| Error::io(partial, e))? {
        names.push(entry.map_err(|e| Error::io(partial, e))?.file_name());
    }
    // Without it the folder is no checkpoint.
    names.sort_by_key(|n| (n == "config.json", n.clone()));
    let list: Vec<_> = names.iter().map(|n| n.to_string_lossy()).collect();
    let list = serde_json::to_vec(&list).unwrap_or_default();
    let journal = partial.join(MOVING);
    fs::write(&journal, list).map_err(|e| Error::io(&journal, e))?;
    atomic::sync(&journal)?;
    for (i, name) in names.iter().enumerate() {
        let (from, to) = (partial.join(name), target.join(name));
        if let Err(e) = atomic::rename(&from, &to) {
            for name in &names[..=i] {
                remove(&target.join(name));
            }
            return Err(Error::io(&to, e));
        }
    }
    atomic::sync(target)?;
    let _ = fs::remove_dir_all(partial);
    Ok(())
}

fn remove(path: &Path) {
    let _ = match path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
}

/// Takes back what a dead process had begun to move into `dir`, and removes what else
/// it left half-written there.
pub(super) fn recover(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let name = name.trim_start_matches('.');
        let ours = ["new.", "probe."].iter().any(|n| name.starts_with(n));
        if !ours || !atomic::is_dead(&path) {
            continue;
        }
        let list = fs::read(path.join(MOVING)).unwrap_or_default();
        let list: Value = serde_json::from_slice(&list).unwrap_or_default();
        for name in list.as_array().into_iter().flatten().filter_map(Value::as_str) {
            // What is still in the partial folder has not been moved, and what has
            // this name in `dir` is somebody else's.
            if !path.join(name).exists() {
                remove(&dir.join(name));
            }
        }
        remove(&path);
    }
}

/// Removes what dead processes left of earlier tries to write `target`.
fn sweep_beside(target: &Path) {
    let Some((dir, name)) = target.parent().zip(target.file_name()) else { return };
    let name = format!("{}.", name.to_string_lossy());
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, found) = (entry.path(), entry.file_name());
        let found = found.to_string_lossy();
        let ours = found.starts_with('.')
            && found.trim_start_matches('.').starts_with(&name);
        if ours && atomic::is_dead(&path) {
            remove(&path);
        }
    }
}

/// A copy of a file, whose errors name the file that is at fault.
///
/// # Errors
/// The system's.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).map_err(|e| Error::io(from, e))?;
    let mut target = File::create(to).map_err(|e| Error::io(to, e))?;
    let mut piece = vec![0; 1 << 16];
    loop {
        let n = match source.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::io(from, e)),
        };
        target.write_all(&piece[..n]).map_err(|e| Error::io(to, e))?;
    }
    // As far as the disk has modes.
    let _ = source.metadata().map(|m| target.set_permissions(m.permissions()));
    Ok(())
}

/// An error as it would read had the folder been in place already.
fn in_place(e: Error, partial: &Path, out: &Path) -> Error {
    let shown = |path: PathBuf| match path.strip_prefix(partial) {
        Ok(rest) => {
            let rest: PathBuf = rest
                .iter()
                .map(|part| {
                    let part = part.to_string_lossy();
                    let hidden = part.strip_prefix('.').and_then(|p| {
                        p.rsplit_once(".partial-").map(|(name, _)| name.to_string())
                    });
                    hidden.unwrap_or_else(|| part.into_owned())
                })
                .collect();
            match rest.as_os_str().is_empty() {
                true => out.to_path_buf(),
                false => out.join(rest),
            }
        }
        Err(_) => path,
    };
    match e {
        Error::Io { path, source } => Error::io(shown(path), source),
        Error::File { path, what } => Error::file(shown(path), what),
        Error::Tensor { path, tensor, what } => {
            Error::tensor(shown(path), tensor, what)
        }
        other => other,
    }
}
