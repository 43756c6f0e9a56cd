//! The output folder of a run: claimed for it alone, without anything of the user's moved
//! or overwritten, with room for the last write.
use super::Settings;
use super::earlier::{Found, LENGTHS, MARK, numbered, read, set_aside};
use crate::checkpoint::{atomic, place};
use crate::{Error, Result};
use serde_json::json;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Refuses outputs that would touch what is read, or that cannot be written. `more`:
/// files that are read beside those of the settings, with their flags.
///
/// # Errors
/// So it is, by flag.
pub fn check_outputs(settings: &Settings, more: &[(&str, &Path)]) -> Result<()> {
    let s = settings;
    let mut outputs =
        vec![("--output-dir", &s.output_dir), ("--logging-dir", &s.logging_dir)];
    if s.quantized_cache != Path::new("off") {
        outputs.push(("--quantized-cache", &s.quantized_cache));
    }
    let mut inputs: Vec<(&str, &Path)> =
        vec![("--model", &s.model), ("--train-file", &s.train_file)];
    inputs.extend(s.eval_file.iter().map(|p| ("--eval-file", p.as_path())));
    inputs.extend(s.init_adapter.iter().map(|p| ("--init-adapter", p.as_path())));
    inputs.extend(more);
    for (flag, dir) in &outputs {
        if let Some(file) = dir.ancestors().find(|p| p.is_file()) {
            let (dir, file) = (dir.display(), file.display());
            let what = format!("{dir}: {file} is a file; name a folder");
            return Err(Error::setting(*flag, what));
        }
        place::apart((flag, dir), &inputs)?;
    }
    if let Some(from) = &s.resume
        && place::real(from) == place::real(&s.output_dir)
        && !from.join(MARK).exists()
        && from.join("optimizer.safetensors").exists()
    {
        let what = format!(
            "{} is the checkpoint of --resume; name the folder that holds it",
            from.display()
        );
        return Err(Error::setting("--output-dir", what));
    }
    for (flag, dir) in &outputs[..2] {
        place::try_writing(flag, dir)?;
    }
    Ok(())
}

/// An output folder that is ours while this lives.
pub(super) struct Output {
    /// As the user names it.
    given: PathBuf,
    dir: PathBuf,
    _lock: Option<File>,
}

impl Output {
    /// Claims the folder, and makes it if need be. What an earlier run wrote there is
    /// set aside, unless this one goes on from a checkpoint in it, `from`.
    ///
    /// # Errors
    /// Another run is writing there; files of somebody else bear the names of those
    /// that this run will write; the system's.
    pub(super) fn claim(
        settings: &Settings,
        from: Option<&Path>,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let given = settings.output_dir.clone();
        let dir = place::real(&given);
        let made = !dir.exists();
        // Nothing is made or moved in a folder that another run works in.
        let lock = if made { None } else { lock(&given, &dir, say)? };
        let found = Found::new(&dir, settings.task)?;
        if let Some(path) = found.foreign {
            let what = format!(
                "{} was not written by a run of downhill, and this one would \
                 overwrite it; name another folder",
                given.join(path).display()
            );
            return Err(Error::setting("--output-dir", what));
        }
        let goes_on = from.is_some_and(|from| {
            let from = place::real(from);
            from == dir || from.parent() == Some(&dir)
        });
        if found.used && !goes_on {
            let aside = set_aside(&dir, &found.ours)?;
            // As the user would name it, where that leads there.
            let named = aside.file_name().map(|name| given.with_file_name(name));
            let aside = named.filter(|n| place::real(n) == aside).unwrap_or(aside);
            say(&format!(
                "{} held an earlier run; it is now {}",
                given.display(),
                aside.display()
            ));
        }
        fs::create_dir_all(&dir).map_err(|e| Error::io(&given, e))?;
        let lock = match lock {
            None => self::lock(&given, &dir, say)?,
            held => held,
        };
        atomic::sweep(&dir);
        let output = Self { given, dir, _lock: lock };
        let mark = json!({
            "what": "a run of downhill writes here, or was ended before its end",
            "process": std::process::id(),
            "host": host(),
            "task": settings.task,
            "made": made,
        });
        let written = fs::write(output.dir.join(MARK), format!("{mark:#}\n"));
        written.map_err(|e| Error::io(output.given.join(MARK), e))?;
        Ok(output)
    }

    /// Keeps room for the last write, of some `bytes`.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn reserve(&self, bytes: u64) -> Result<()> {
        let kept = self.room();
        let made = File::create(&kept).and_then(|file| allocate(&file, bytes));
        let Err(e) = made else { return Ok(()) };
        let _ = fs::remove_file(&kept);
        use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        match e.kind() {
            StorageFull | QuotaExceeded | ReadOnlyFilesystem => {
                let what = format!(
                    "{}: no room for what will be saved there, {:.1} MiB: {e}; make \
                     room, or name another folder",
                    self.given.display(),
                    bytes as f64 / 1024f64.powi(2)
                );
                Err(Error::setting("--output-dir", what))
            }
            // A disk that cannot set room aside.
            _ => Ok(()),
        }
    }

    fn room(&self) -> PathBuf {
        self.dir.join(format!(".room.partial-{}", std::process::id()))
    }

    /// Writes what must not be lost: into the folder; where that fails, once more with
    /// the room that was kept for it; and then into a new folder elsewhere.
    ///
    /// # Errors
    /// It is not in the output folder.
    pub(super) fn last(
        &self,
        write: impl Fn(&Path) -> Result<PathBuf>,
    ) -> std::result::Result<PathBuf, NotThere> {
        if let Ok(done) = write(&self.given) {
            return Ok(done);
        }
        let _ = fs::remove_file(self.room());
        // Some faults of a network's disk pass.
        std::thread::sleep(Duration::from_millis(200));
        write(&self.given).map_err(|why| {
            let instead = match why {
                Error::Io { .. } => self.elsewhere(write),
                _ => None,
            };
            NotThere { why, instead }
        })
    }

    /// What was written into a new folder elsewhere.
    fn elsewhere(
        &self,
        write: impl Fn(&Path) -> Result<PathBuf>,
    ) -> Option<PathBuf> {
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy();
        let places = [std::env::current_dir().ok(), Some(std::env::temp_dir())];
        places.into_iter().flatten().find_map(|place| {
            let dir = numbered(|n| match n {
                1 => place.join(format!("{name}.kept")),
                n => place.join(format!("{name}.kept-{n}")),
            });
            let dir = dir.ok()?;
            let written = write(&dir).ok();
            if written.is_none() {
                let _ = fs::remove_dir_all(dir);
            }
            written
        })
    }

    /// The run has ended, and all of it is there.
    pub(super) fn finished(&self) {
        let _ = fs::remove_file(self.room());
        let _ = fs::remove_file(self.dir.join(MARK));
    }
}

/// Why something is not in the output folder, and where it is instead.
pub(super) struct NotThere {
    pub(super) why: Error,
    pub(super) instead: Option<PathBuf>,
}

impl Drop for Output {
    fn drop(&mut self) {
        abandon(&self.dir);
    }
}

/// Leaves nothing half-written of this process in an output folder, and no folder that
/// it made for nothing.
pub fn abandon(out: &Path) {
    let dir = place::real(out);
    atomic::abandon(&dir);
    let mark = read(&dir.join(MARK));
    if mark["process"] != std::process::id() {
        return;
    }
    let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
    if entries.map(|e| e.file_name()).all(|name| name == MARK || name == LENGTHS) {
        let _ = fs::remove_file(dir.join(LENGTHS));
        let _ = fs::remove_file(dir.join(MARK));
        if mark["made"] == true {
            let _ = fs::remove_dir(&dir);
        }
    }
}

/// Locks an output folder, so that two runs do not mix their files in it; the lock goes
/// with the process, however it ends. Where a disk has no locks, the mark of a run that
/// is alive stands for one.
fn lock(
    given: &Path,
    dir: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<Option<File>> {
    let taken = || {
        let what = "another run is writing there; name another folder, or wait for \
                    its end";
        let what = format!("{}: {what}", given.display());
        Err(Error::setting("--output-dir", what))
    };
    let file = File::open(dir).map_err(|e| Error::io(given, e))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => taken(),
        Err(TryLockError::Error(e)) => {
            let mark = read(&dir.join(MARK));
            let pid = mark["process"].as_u64().filter(|_| mark["host"] == host());
            let other = pid.filter(|pid| *pid != u64::from(std::process::id()));
            if other.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
                return taken();
            }
            say(&format!(
                "{}: this disk has no locks ({e}): see that no other run writes there",
                given.display()
            ));
            Ok(None)
        }
    }
}

fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname");
    name.map(|n| n.trim().to_string()).unwrap_or_default()
}

#[cfg(target_os = "linux")]
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    let flags = rustix::fs::FallocateFlags::empty();
    Ok(rustix::fs::fallocate(file, flags, 0, bytes)?)
}

#[cfg(not(target_os = "linux"))]
fn allocate(_: &File, _: u64) -> io::Result<()> {
    Ok(())
}
