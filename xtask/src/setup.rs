//! `cargo xtask setup`: libtorch 2.11.0 in `.libtorch`, from the Python registry's
//! `torch` wheel. It is unpacked beside and renamed at the end, with a stamp inside
//! written last: a folder without the stamp is an interrupted one and is replaced.

use crate::{nvrtc, sh};
use anyhow::{Context, Result, bail};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// The libtorch that tch 0.24 is built for.
const VERSION: &str = "2.11.0";
const STAMP: &str = "downhill-stamp.toml";

/// What to install: libraries, sizes, and how pip is asked for them.
struct Variant {
    name: &'static str,
    packages: &'static [&'static str],
    no_deps: bool,
    sizes: &'static str,
    /// Free space wanted for the archives, the unpacked files and their move, in MB.
    needs_mb: u64,
}

/// libtorch_cpu needs of NVIDIA's libraries only libcudart and libcupti.
const CPU: Variant = Variant {
    name: "cpu",
    packages: &[
        "torch==2.11.0",
        "nvidia-cuda-runtime==13.0.*",
        "nvidia-cuda-cupti==13.0.*",
    ],
    no_deps: true,
    sizes: "about 545 MB to fetch, 1.3 GB unpacked",
    needs_mb: 3_000,
};

const CUDA: Variant = Variant {
    name: "cuda",
    packages: &["torch==2.11.0"],
    no_deps: false,
    sizes: "about 2.7 GB to fetch, 4.7 GB unpacked",
    needs_mb: 11_000,
};

/// `cargo xtask setup [--cpu|--cuda|--nvrtc]`
pub fn main(args: &[String]) -> Result<()> {
    let wanted = match args {
        [] => None,
        [flag] if flag == "--cpu" => Some(&CPU),
        [flag] if flag == "--cuda" => Some(&CUDA),
        [flag] if flag == "--nvrtc" => {
            ensure()?;
            return nvrtc::install();
        }
        _ => {
            bail!("setup takes --cpu, --cuda or --nvrtc, found `{}`", args.join(" "))
        }
    };
    match install(&sh::root(), wanted)? {
        Outcome::Ready(what) => println!("libtorch {VERSION} is ready ({what})"),
        Outcome::Installed(what) => println!(
            "libtorch {VERSION} is ready ({what}). The first build after this compiles \
             tch once: 5 to 9 minutes on 2 cores."
        ),
    }
    Ok(())
}

/// Makes sure that libtorch is there before another command needs it.
pub fn ensure() -> Result<()> {
    if let Outcome::Installed(_) = install(&sh::root(), None)? {
        println!("The next build compiles tch once: 5 to 9 minutes on 2 cores.");
    }
    Ok(())
}

enum Outcome {
    Ready(String),
    Installed(String),
}

fn install(root: &Path, wanted: Option<&'static Variant>) -> Result<Outcome> {
    let folder = root.join(".libtorch");
    if let Some(other) = own_libtorch(&folder)? {
        return Ok(Outcome::Ready(other));
    }
    if let Some(found) = complete(&folder, wanted) {
        return Ok(Outcome::Ready(found));
    }
    compiler()?;
    let _lock = lock(&root.join(".libtorch.lock"))?;
    // Another set-up may have finished while this one waited.
    if let Some(found) = complete(&folder, wanted) {
        return Ok(Outcome::Ready(found));
    }
    sweep(root)?;
    let python = python()?;
    let partial = root.join(format!(".libtorch.partial-{}", std::process::id()));
    fs::create_dir_all(&partial)
        .with_context(|| format!("cannot create {}", partial.display()))?;
    let what = fill(&python, wanted, &partial).inspect_err(|_| {
        fs::remove_dir_all(&partial).ok();
    })?;
    if fs::symlink_metadata(&folder).is_ok() {
        // Renamed first: what is named `.libtorch` is never half there.
        fs::rename(&folder, root.join(".libtorch.partial-old"))?;
    }
    fs::rename(&partial, &folder).context("cannot rename the unpacked libtorch")?;
    sweep(root)?;
    Ok(Outcome::Installed(what))
}

/// Brings libtorch into the partial folder, the stamp last; says where it is from.
fn fill(
    python: &Path,
    wanted: Option<&'static Variant>,
    partial: &Path,
) -> Result<String> {
    let what = match wanted.is_none().then(|| existing(python)).flatten() {
        Some(torch) => link(python, &torch, partial)?,
        None => {
            let variant = wanted.unwrap_or(if driver() { &CUDA } else { &CPU });
            fetch(python, variant, partial)?;
            variant.name.to_string()
        }
    };
    sh::write(&partial.join(STAMP), &stamp(&what))?;
    Ok(what)
}

/// An exported LIBTORCH that is not ours wins; it must then be whole.
fn own_libtorch(folder: &Path) -> Result<Option<String>> {
    let Some(path) = std::env::var_os("LIBTORCH").map(PathBuf::from) else {
        return Ok(None);
    };
    if path == folder.join("torch") {
        return Ok(None);
    }
    if !library(&path).is_file() {
        bail!(
            "the environment variable LIBTORCH names {}, where there is no {}; unset \
             it, or let it name a libtorch {VERSION}",
            path.display(),
            library(Path::new("")).display()
        );
    }
    Ok(Some(format!("LIBTORCH = {}", path.display())))
}

fn library(torch: &Path) -> PathBuf {
    let ending = if cfg!(target_os = "macos") { "dylib" } else { "so" };
    torch.join(format!("lib/libtorch_cpu.{ending}"))
}

fn stamp(what: &str) -> String {
    format!(
        "# Written last by `cargo xtask setup`: this folder is whole.\n\
         version = \"{VERSION}\"\nfrom = {:?}\n",
        what
    )
}

/// What is installed, if it is whole, of our version, and of the kind asked for.
fn complete(folder: &Path, wanted: Option<&Variant>) -> Option<String> {
    let stamp: toml::Table =
        fs::read_to_string(folder.join(STAMP)).ok()?.parse().ok()?;
    let torch = folder.join("torch");
    // A linked PyTorch may have been upgraded or removed since.
    let version = fs::read_to_string(torch.join("version.py")).ok()?;
    let same = version.contains(&format!("__version__ = '{VERSION}"));
    let from = stamp.get("from")?.as_str()?;
    let kind = wanted.is_none_or(|w| w.name == from);
    (same && kind && library(&torch).is_file()).then(|| from.to_string())
}

/// Removes what interrupted set-ups have left. Called only under the lock.
fn sweep(root: &Path) -> Result<()> {
    for entry in fs::read_dir(root)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(".libtorch.partial-") {
            let path = entry.path();
            println!("removing {}", sh::shown(&path));
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// One set-up at a time. The system drops the lock when its holder ends, however it
/// ends, so that a lock cannot be stale.
fn lock(path: &Path) -> Result<File> {
    let file = File::create(path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {
            println!("another set-up is at work in this folder: waiting for it");
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).context("cannot lock .libtorch.lock");
        }
    }
    file.lock().context("cannot lock .libtorch.lock")?;
    Ok(file)
}

fn compiler() -> Result<()> {
    if std::env::var_os("CXX").is_some()
        || sh::which(&["c++", "g++", "clang++"]).is_some()
    {
        return Ok(());
    }
    bail!(
        "no C++ compiler found (c++, g++ or clang++); tch needs one. Install it:\n  \
         Debian, Ubuntu: apt install g++\n  Fedora:         dnf install gcc-c++\n  \
         macOS:          xcode-select --install"
    )
}

/// The Python to use: `$PYTHON`, or `python3` on the path.
pub fn python() -> Result<PathBuf> {
    let named = std::env::var_os("PYTHON").map(PathBuf::from);
    let Some(python) = named.or_else(|| sh::which(&["python3", "python"])) else {
        bail!(
            "no python3 found. Python is needed once, to fetch libtorch; nothing needs \
             it afterwards. Install it:\n  Debian, Ubuntu: apt install python3 \
             python3-pip python3-venv\n  Fedora:         dnf install python3 \
             python3-pip\n  macOS:          xcode-select --install"
        )
    };
    Ok(python)
}

fn driver() -> bool {
    Path::new("/proc/driver/nvidia/version").is_file()
        || sh::which(&["nvidia-smi"])
            .is_some_and(|smi| sh::output(sh::command(smi).arg("-L")).is_some())
}

/// The folder of a PyTorch of our version that this Python already has. It is looked
/// up without importing it.
fn existing(python: &Path) -> Option<PathBuf> {
    let script = "import importlib.metadata as m, importlib.util as u, os\n\
         print(m.version('torch'))\n\
         print(os.path.dirname(u.find_spec('torch').origin))";
    let text = sh::output(sh::command(python).args(["-c", script]))?;
    let mut lines = text.lines();
    let version = lines.next()?.split('+').next()?.to_string();
    let torch = PathBuf::from(lines.next()?);
    (version == VERSION
        && library(&torch).is_file()
        && loads(python, &torch).is_ok())
    .then_some(torch)
}

fn link(python: &Path, torch: &Path, partial: &Path) -> Result<String> {
    println!("using the PyTorch {VERSION} that {} already has", python.display());
    #[cfg(unix)]
    std::os::unix::fs::symlink(torch, partial.join("torch"))?;
    #[cfg(not(unix))]
    bail!("set LIBTORCH to {} instead", torch.display());
    // Through the link, as programs will find it.
    loads(python, &partial.join("torch"))?;
    Ok(format!("PyTorch at {}", torch.display()))
}

/// Has the loader open libtorch_cpu, which needs all its own libraries.
fn loads(python: &Path, torch: &Path) -> Result<()> {
    let script = "import ctypes, sys; ctypes.CDLL(sys.argv[1])";
    let out = sh::command(python)
        .args(["-c", script])
        .arg(library(torch))
        .output()
        .with_context(|| format!("cannot start {}", python.display()))?;
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stderr);
        bail!("libtorch does not load: {}", text.lines().last().unwrap_or_default());
    }
    Ok(())
}

fn fetch(python: &Path, variant: &Variant, partial: &Path) -> Result<()> {
    let pip = ["-m", "pip"];
    if sh::output(sh::command(python).args(pip).arg("--version")).is_none() {
        bail!(
            "{} has no pip, which fetches libtorch. Install it:\n  Debian, Ubuntu: apt \
             install python3-pip\n  Fedora:         dnf install python3-pip\n  \
             elsewhere:      python3 -m ensurepip",
            python.display()
        );
    }
    let free = free_mb(partial)?;
    if free < variant.needs_mb {
        bail!(
            "not enough disk space: unpacking libtorch needs about {} MB beside {}, \
             and {free} MB are free",
            variant.needs_mb,
            sh::root().display()
        );
    }
    println!(
        "fetching libtorch {VERSION} ({}) with pip: {}, a few minutes",
        variant.name, variant.sizes
    );
    // Pip unpacks in TMPDIR first: on the same file system it can then just rename.
    let tmp = partial.join("tmp");
    fs::create_dir(&tmp)?;
    let mut install = sh::command(python);
    install.args(pip).args([
        "install",
        "--no-compile",
        "--disable-pip-version-check",
    ]);
    install.arg("--target").arg(partial).args(variant.packages).env("TMPDIR", &tmp);
    install.env("PIP_ROOT_USER_ACTION", "ignore");
    if variant.no_deps {
        install.arg("--no-deps");
    }
    if !wheels_for(python) {
        // Only the libraries matter, and these are the same for every Python.
        install.args(["--python-version", "3.12", "--only-binary=:all:"]);
    }
    sh::check(&mut install).context(
        "pip could not install libtorch (its own message is above); nothing was \
         changed, and running this again starts cleanly",
    )?;
    fs::remove_dir_all(&tmp).ok();
    loads(python, &partial.join("torch"))
}

/// Whether the registry has a wheel of this torch for this Python.
fn wheels_for(python: &Path) -> bool {
    let script =
        "import sys; print(sys.version_info[0] * 100 + sys.version_info[1])";
    sh::output(sh::command(python).args(["-c", script]))
        .and_then(|v| v.trim().parse::<u32>().ok())
        .is_some_and(|v| (310..=314).contains(&v))
}

/// Free space where this path lies, in MB.
fn free_mb(path: &Path) -> Result<u64> {
    let text =
        sh::output(sh::command("df").arg("-Pk").arg(path)).unwrap_or_default();
    let field = text.lines().nth(1).and_then(|l| l.split_whitespace().nth(3));
    let Some(kb) = field.and_then(|f| f.parse::<u64>().ok()) else {
        return Ok(u64::MAX); // no `df` here: pip will say it
    };
    Ok(kb / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = sh::root().join("target/xtask-tests").join(name);
        fs::remove_dir_all(&folder).ok();
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn only_a_stamped_whole_folder_of_our_version_is_complete() {
        let folder = scratch("complete");
        assert_eq!(complete(&folder, None), None);
        sh::write(&library(&folder.join("torch")), "").unwrap();
        let version = folder.join("torch/version.py");
        sh::write(&version, "__version__ = '2.11.0+cu130'\n").unwrap();
        assert_eq!(complete(&folder, None), None, "no stamp: interrupted");
        sh::write(&folder.join(STAMP), &stamp("cpu")).unwrap();
        assert_eq!(complete(&folder, None).as_deref(), Some("cpu"));
        assert_eq!(complete(&folder, Some(&CUDA)), None, "another kind is wanted");
        sh::write(&version, "__version__ = '2.12.0'\n").unwrap();
        assert_eq!(complete(&folder, None), None, "upgraded under our feet");
    }

    #[test]
    fn leftovers_are_swept_and_nothing_else() {
        let folder = scratch("sweep");
        sh::write(&folder.join(".libtorch.partial-1/torch/x"), "").unwrap();
        sh::write(&folder.join(".libtorch/torch/x"), "").unwrap();
        sweep(&folder).unwrap();
        assert!(!folder.join(".libtorch.partial-1").exists());
        assert!(folder.join(".libtorch/torch/x").exists());
    }

    #[test]
    fn two_setups_take_turns() {
        let path = scratch("lock").join("lock");
        let held = lock(&path).unwrap();
        let second = File::create(&path).unwrap();
        assert!(matches!(second.try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        assert!(second.try_lock().is_ok());
    }
}
