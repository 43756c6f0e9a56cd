//! Where may be written: paths compared as the system sees them, and folders tried
//! before the work that fills them.
use crate::{Error, Result};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Component, Path, PathBuf};

/// Links on the way of one path, as Linux allows.
const LINKS: usize = 40;

/// A path without links or dots, whether it is there yet or not.
pub fn real(path: &Path) -> PathBuf {
    let full = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let parts = |p: &Path| -> Vec<OsString> {
        p.components().map(|c| c.as_os_str().to_os_string()).collect()
    };
    let mut ahead = VecDeque::from(parts(&full));
    let (mut done, mut links) = (PathBuf::new(), 0);
    while let Some(part) = ahead.pop_front() {
        match Path::new(&part).components().next() {
            Some(Component::ParentDir) => {
                done.pop();
            }
            Some(Component::CurDir) | None => {}
            _ => done.push(&part),
        }
        // A link that leads nowhere yet counts as where it leads.
        if let Ok(to) = fs::read_link(&done)
            && links < LINKS
        {
            links += 1;
            done.pop();
            for part in parts(&to).into_iter().rev() {
                ahead.push_front(part);
            }
        }
    }
    done
}

/// Whether two paths are one file or folder: by name, or by what the system says, which
/// knows of folders that are mounted twice and of disks that ignore case.
fn same(a: &Path, b: &Path) -> bool {
    a == b || identity(a).is_some_and(|id| identity(b) == Some(id))
}

#[cfg(unix)]
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    // Two names of one file are not one place.
    let about = fs::metadata(path).ok().filter(fs::Metadata::is_dir)?;
    Some((about.dev(), about.ino()))
}

#[cfg(not(unix))]
fn identity(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok()
}

/// Whether `inner` is `outer` or lies in it.
fn within(inner: &Path, outer: &Path) -> bool {
    inner.ancestors().any(|a| same(a, outer))
}

/// Refuses an output folder that is one of `inputs`, or in which one of them lies,
/// each with its flag.
///
/// # Errors
/// So it is; both flags are named.
pub fn apart((flag, out): (&str, &Path), inputs: &[(&str, &Path)]) -> Result<()> {
    let folder = real(out);
    for (other, input) in inputs {
        // A link lies where it stands and where it leads.
        let stands = match (input.parent(), input.file_name()) {
            (Some(dir), Some(name)) => real(dir).join(name),
            _ => real(input),
        };
        let found = real(input);
        let relation = match () {
            () if same(&found, &folder) || same(&stands, &folder) => "is",
            () if within(&found, &folder) || within(&stands, &folder) => "holds",
            () => continue,
        };
        let what = format!(
            "{} {relation} {other} {}, which a run might then overwrite; name \
             another folder",
            out.display(),
            input.display()
        );
        return Err(Error::setting(flag, what));
    }
    Ok(())
}

/// Refuses an `--output-dir` that holds something, that is or holds one of `inputs`, or
/// that lies in one of them.
///
/// # Errors
/// So it is.
pub fn free(out: &Path, inputs: &[(&str, &Path)]) -> Result<()> {
    const FLAG: &str = "--output-dir";
    apart((FLAG, out), inputs)?;
    for (flag, input) in inputs {
        if within(&real(out), &real(input)) {
            let (out, input) = (out.display(), input.display());
            let what = format!("{out} lies in {flag} {input}; name another folder");
            return Err(Error::setting(FLAG, what));
        }
    }
    super::fresh::recover(&real(out));
    let used = match fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => out.symlink_metadata().is_ok() && out.exists(),
    };
    match used {
        true => {
            let what = format!("{} is not empty; name a new folder", out.display());
            Err(Error::setting(FLAG, what))
        }
        false => Ok(()),
    }
}

/// Writes a byte where the folder `dir` is or will be, and removes it again.
///
/// # Errors
/// What the system says against it, with the flag.
pub fn try_writing(flag: &str, dir: &Path) -> Result<()> {
    let folder = real(dir);
    let there = folder.ancestors().find(|a| a.exists()).unwrap_or(&folder);
    let probe = there.join(format!(".probe.partial-{}", std::process::id()));
    super::fresh::recover(there);
    let tried = fs::File::create(&probe).and_then(|mut f| f.write_all(b"x"));
    let _ = fs::remove_file(&probe);
    tried.map_err(|e| {
        let place = match there == folder {
            true => String::new(),
            false => format!(", in {}", there.display()),
        };
        let what = format!(
            "{}: nothing can be written there{place}: {e}; name another folder, or \
             make it writable",
            dir.display()
        );
        Error::setting(flag, what)
    })
}
