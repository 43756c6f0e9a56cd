//! Why there is no CUDA on a machine, from facts that are gathered first and judged
//! apart, so that every judgement can be tested on a machine without a GPU.
use super::driver::Driver;
use crate::autograd;
use std::fmt;
use std::path::{Path, PathBuf};
use tch::Cuda;

/// The libtorch that tch 0.24 is built for.
const TORCH: &str = "2.11.0";
/// What its CUDA half needs of the driver, as `cuDriverGetVersion` counts.
const CUDA: i32 = 13_000;

/// What a look at the machine found. Later facts are not asked for where an earlier
/// one settles the matter: they stay at their defaults.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// `CUDA_VISIBLE_DEVICES`, if it is set.
    pub visible: Option<String>,
    /// The driver's kernel module is loaded (or WSL's stands in for it).
    pub module: bool,
    /// The driver's library: the version of CUDA that it supports, or what the loader
    /// said.
    pub driver: Library<i32>,
    /// What `cuInit` returned.
    pub init: i32,
    /// Devices that the driver shows, and what asking for a context on the first one
    /// returned: 0 if any gives one.
    pub devices: (i32, i32),
    /// The folder of libtorch's libraries, and its version.
    pub libtorch: (PathBuf, String),
    /// libtorch's CUDA half: how many devices it sees, or what the loader said.
    pub cuda_half: Library<i64>,
}

/// A shared library.
#[derive(Clone, Debug, Default)]
pub enum Library<T> {
    /// Not asked for.
    #[default]
    Unknown,
    /// No such file.
    Absent,
    /// The loader refused it, in its words.
    Refused(String),
    /// Loaded, and what it said.
    Loaded(T),
}

impl Facts {
    /// Looks, and loads libtorch's CUDA half if nothing speaks against it.
    pub fn gather() -> Self {
        let module = ["/proc/driver/nvidia/version", "/dev/dxg"];
        let mut facts = Self {
            visible: std::env::var("CUDA_VISIBLE_DEVICES").ok(),
            module: module.iter().any(|p| Path::new(p).exists()),
            libtorch: libtorch().unwrap_or_default(),
            ..Self::default()
        };
        let driver = match Driver::load() {
            Ok(driver) => driver,
            Err(why) => {
                facts.driver = Library::Refused(why);
                return facts;
            }
        };
        facts.driver = Library::Loaded(driver.version());
        facts.init = driver.init();
        if facts.init == 0 {
            let count = driver.count();
            let mut codes =
                (0..count).map(|i| driver.memory(i, true).err().unwrap_or(0));
            let first = codes.next().unwrap_or(0);
            let usable = first == 0 || codes.any(|code| code == 0);
            facts.devices = (count, if usable { 0 } else { first });
        }
        if facts.problem() == Some(Problem::NotAsked) {
            facts.cuda_half = cuda_half(&facts.libtorch.0);
        }
        facts
    }

    /// The first thing that stands in the way, if any.
    pub fn problem(&self) -> Option<Problem> {
        let version = match &self.driver {
            Library::Loaded(version) => *version,
            Library::Refused(why) if self.module => {
                return Some(Problem::DriverLibrary(why.clone()));
            }
            _ => return Some(Problem::NoDriver),
        };
        if let Some(text) = &self.visible
            && (text.trim().is_empty() || text.trim().starts_with('-'))
        {
            return Some(Problem::Hidden(text.clone()));
        }
        if version < CUDA {
            return Some(Problem::DriverTooOld(version));
        }
        match (self.init, self.devices) {
            (0, (0, _)) | (NO_DEVICE, _) => {
                return Some(Problem::NoDevice(self.visible.clone()));
            }
            (0, (_, 0)) => {}
            (0, (_, BUSY)) => return Some(Problem::Busy),
            (0, (_, OUT_OF_MEMORY)) => return Some(Problem::Full),
            (0, (_, code)) | (code, _) => return Some(Problem::Refused(code)),
        }
        let (dir, found) = &self.libtorch;
        if !found.is_empty() && !found.starts_with(TORCH) {
            return Some(Problem::WrongVersion(dir.clone(), found.clone()));
        }
        match &self.cuda_half {
            Library::Unknown => Some(Problem::NotAsked),
            Library::Absent => Some(Problem::NoCudaHalf(dir.clone())),
            Library::Refused(why) => Some(match missing_library(why) {
                Some(name) => Problem::LibraryMissing(name, dir.clone()),
                None => Problem::CudaHalf(dir.clone(), why.clone()),
            }),
            Library::Loaded(0) => Some(Problem::Unseen),
            Library::Loaded(_) => None,
        }
    }
}

const OUT_OF_MEMORY: i32 = 2;
const BUSY: i32 = 46;
const NO_DEVICE: i32 = 100;

/// Each way in which CUDA can fail to be there. As text: what was found, and the fix.
#[derive(Clone, Debug, PartialEq)]
pub enum Problem {
    /// Neither the driver's module nor its library.
    NoDriver,
    /// The module without the library, and what the loader said.
    DriverLibrary(String),
    /// Hidden by `CUDA_VISIBLE_DEVICES`, which is this.
    Hidden(String),
    /// It supports only this CUDA, as `cuDriverGetVersion` counts.
    DriverTooOld(i32),
    /// A driver without a device; `CUDA_VISIBLE_DEVICES`, if set.
    NoDevice(Option<String>),
    /// Another process has the device to itself.
    Busy,
    /// Not even a context fits into the device's memory.
    Full,
    /// The driver's own code for something else.
    Refused(i32),
    /// The libtorch in this folder is of this other version.
    WrongVersion(PathBuf, String),
    /// No CUDA half in this folder.
    NoCudaHalf(PathBuf),
    /// The CUDA half in this folder needs this library, which is nowhere.
    LibraryMissing(String, PathBuf),
    /// The CUDA half in this folder was refused, in the loader's words.
    CudaHalf(PathBuf, String),
    /// The driver shows a device, and libtorch none.
    Unseen,
    /// Nothing spoke against it so far, but libtorch was not asked.
    NotAsked,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SETUP: &str = "`cargo xtask setup --cuda` fetches the right one";
        match self {
            Self::NoDriver => write!(
                f,
                "no NVIDIA driver on this machine. If it has an NVIDIA GPU, install \
                 driver 580 or newer; in a container, start it with --gpus all"
            ),
            Self::DriverLibrary(why) => write!(
                f,
                "the driver's kernel module is loaded, but not its library: {why}. In \
                 a container, start it with --gpus all (NVIDIA Container Toolkit); \
                 else install the driver's user part, of the module's version"
            ),
            Self::Hidden(text) => write!(
                f,
                "CUDA_VISIBLE_DEVICES is `{text}`, which hides every device; unset \
                 it, or name devices such as 0"
            ),
            Self::DriverTooOld(version) => write!(
                f,
                "the driver supports CUDA {}.{}, and libtorch {TORCH} needs {}.0: \
                 install driver 580 or newer",
                version / 1000,
                version % 1000 / 10,
                CUDA / 1000
            ),
            Self::NoDevice(visible) => match visible {
                Some(text) => write!(
                    f,
                    "the driver shows no device under CUDA_VISIBLE_DEVICES={text}; \
                     `nvidia-smi -L` lists those there are"
                ),
                None => write!(
                    f,
                    "the driver shows no device: `nvidia-smi -L` lists those it \
                     knows; in a container, start it with --gpus all"
                ),
            },
            Self::Busy => write!(
                f,
                "another process has the device to itself (exclusive compute mode): \
                 `nvidia-smi` shows which; wait for it, or name another device"
            ),
            Self::Full => write!(
                f,
                "the device's memory is full: `nvidia-smi` shows who holds it; end \
                 that, or name another device"
            ),
            Self::Refused(code) => write!(f, "the driver answers {}", said(*code)),
            Self::WrongVersion(dir, found) => write!(
                f,
                "libtorch in {} is {found}, and this program is built for {TORCH}; \
                 {SETUP}",
                dir.display()
            ),
            Self::NoCudaHalf(dir) => write!(
                f,
                "there is a GPU, but no libtorch_cuda.so in {}: this is the libtorch \
                 for CPUs; {SETUP}",
                dir.display()
            ),
            Self::LibraryMissing(name, dir) => write!(
                f,
                "there is a GPU, but libtorch_cuda.so in {} needs {name}, which is \
                 not there: only the CPU's part was installed; {SETUP}",
                dir.display()
            ),
            Self::CudaHalf(dir, why) => write!(
                f,
                "libtorch_cuda.so in {} cannot be loaded: {why}. Is it of the same \
                 build as libtorch_cpu.so beside it? {SETUP}",
                dir.display()
            ),
            Self::Unseen => write!(
                f,
                "the driver shows a device, and libtorch none: its kernels may be \
                 too new for this card (libtorch {TORCH} needs compute capability \
                 7.5); or the driver is broken: try `nvidia-smi`; or this program \
                 computed gradients before it asked for a device, which libtorch \
                 takes for the end of the matter"
            ),
            Self::NotAsked => write!(f, "libtorch was not asked"),
        }
    }
}

/// What a code of the driver means.
fn said(code: i32) -> String {
    let meaning = match code {
        3 => "not initialized: is this process going down?",
        101 => "no such device: see CUDA_VISIBLE_DEVICES",
        802 => "system not yet ready: is nvidia-fabricmanager running?",
        803 => "its library and its kernel module differ in version: reboot",
        804 => "this library supports data-center cards alone: remove cuda-compat",
        304 => "the operating system refused: may you read /dev/nvidia*?",
        _ => "see cuda.h; a reboot or `nvidia-modprobe -u` often helps",
    };
    format!("with code {code} ({meaning})")
}

/// The library that the loader missed, from its words.
fn missing_library(why: &str) -> Option<String> {
    let (name, rest) = why.split_once(": ")?;
    let missing = rest.contains("No such file") && !name.contains("libtorch_cuda");
    missing.then(|| name.to_string())
}

fn cuda_half(dir: &Path) -> Library<i64> {
    let path = dir.join("libtorch_cuda.so");
    if !path.exists() {
        return Library::Absent;
    }
    // Before the first question about CUDA: libtorch remembers its answer.
    match autograd::load_library(&path.to_string_lossy()) {
        Err(why) => Library::Refused(why),
        Ok(()) if Cuda::is_available() => Library::Loaded(Cuda::device_count()),
        Ok(()) => Library::Loaded(0),
    }
}

/// Folder and version of the libtorch that this process has loaded; the version is
/// empty where its folder does not say it.
pub fn libtorch() -> Option<(PathBuf, String)> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().find_map(|l| {
        l.split_whitespace().last().filter(|p| p.contains("libtorch_cpu"))
    })?;
    let dir = Path::new(path).parent()?;
    // A Python package has version.py beside its lib folder, a zip build-version.
    let root = dir.parent().unwrap_or(dir);
    let read = |name| std::fs::read_to_string(root.join(name)).ok();
    let package = read("version.py").unwrap_or_default();
    let quoted = package.lines().find_map(|l| l.strip_prefix("__version__ = "));
    let version = quoted.map(|v| v.trim_matches(['\'', '"']).to_string());
    let version = version.or(read("build-version").map(|v| v.trim().to_string()));
    Some((dir.to_path_buf(), version.unwrap_or_default()))
}
