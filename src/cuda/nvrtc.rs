//! The run-time compiler: NVIDIA's NVRTC, which comes with libtorch's CUDA half. It
//! needs no card, so that any machine can check that the kernels compile.
#![allow(unsafe_code)] // calls of a C library
use super::Source;
use crate::autograd::{libtorch_folder, load_library};
use crate::{Error, Result};
use cudarc::nvrtc::sys;
use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const NAME: &str = "libnvrtc.so.13";
/// Its own library, which it opens by name where the loader would not find it.
const BUILTINS: &str = "libnvrtc-builtins.so.13.0";

/// What compiling gave.
#[derive(Debug)]
pub struct Compiled {
    /// For `sm_90` machine code (a cubin), for `compute_90` PTX, which is text.
    pub code: Vec<u8>,
    /// Warnings, and what the options asked for.
    pub log: String,
}

/// The file of NVRTC: named by `DOWNHILL_NVRTC`, or from beside libtorch.
pub(super) fn file() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("DOWNHILL_NVRTC") {
        return Some(named.into());
    }
    let folder = libtorch_folder()?;
    // A link may stand for libtorch's folder: look beside the link and the folder.
    let folders = [Some(folder.clone()), folder.canonicalize().ok()];
    let places = folders.into_iter().flatten().flat_map(|lib| {
        let packages = lib.ancestors().nth(2).unwrap_or(&lib);
        [lib.join(NAME), packages.join("nvidia/cu13/lib").join(NAME)]
    });
    places.into_iter().find(|p| p.is_file())
}

/// Loads it, once; `Err` says why it is not there.
fn load() -> std::result::Result<(), String> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let find = || {
        let file = file().unwrap_or(NAME.into());
        // Before it asks for it. Where it lies elsewhere the loader finds it, or NVRTC
        // says so when it compiles.
        let _ = load_library(&file.with_file_name(BUILTINS).to_string_lossy());
        load_library(&file.to_string_lossy()).map_err(|e| {
            format!(
                "no NVRTC, the compiler of CUDA kernels ({e}); it comes with PyTorch \
                 for CUDA, or by `pip install nvidia-cuda-nvrtc==13.0.*`; \
                 DOWNHILL_NVRTC may name the file {NAME}"
            )
        })?;
        // SAFETY: opens libraries; from now on finds the one just loaded.
        match unsafe { sys::is_culib_present() } {
            true => Ok(()),
            false => Err(format!("{} does not open", shown(&file))),
        }
    };
    LOADED.get_or_init(find).clone()
}

fn shown(file: &Path) -> String {
    file.display().to_string()
}

/// Compiles `source` for `architecture`: `sm_90`, say, or `compute_90`.
///
/// # Errors
/// There is no NVRTC; the source is wrong, with the compiler's words; the architecture
/// is one that it does not know.
pub fn compile(
    source: Source,
    architecture: &str,
    options: &[&str],
) -> Result<Compiled> {
    let wrong = |what: String| Error::setting(format!("{}.cu", source.name), what);
    load().map_err(wrong)?;
    let target = format!("--gpu-architecture={architecture}");
    let c_string = |text: &str| CString::new(text).map_err(|e| wrong(e.to_string()));
    let all = [&target, "--std=c++17"].into_iter().chain(options.iter().copied());
    let options = all.map(c_string).collect::<Result<Vec<_>>>()?;
    let mut program = Program::new(
        &c_string(&source.text())?,
        &c_string(&format!("{}.cu", source.name))?,
    )
    .map_err(wrong)?;
    let done = program.compile(&options);
    let log = program.log();
    done.map_err(|e| wrong(format!("for {architecture}: {e}\n{log}")))?;
    let code = program.code(architecture.starts_with("sm_")).map_err(wrong)?;
    Ok(Compiled { code, log })
}

/// A program of NVRTC's, freed with it.
struct Program(sys::nvrtcProgram);

type Size = unsafe fn(sys::nvrtcProgram, *mut usize) -> sys::nvrtcResult;
type Text = unsafe fn(sys::nvrtcProgram, *mut c_char) -> sys::nvrtcResult;

impl Program {
    fn new(text: &CStr, name: &CStr) -> std::result::Result<Self, String> {
        let mut program = std::ptr::null_mut();
        let none = std::ptr::null();
        // SAFETY: C strings, no headers, and a place for the handle.
        check(unsafe {
            sys::nvrtcCreateProgram(
                &mut program,
                text.as_ptr(),
                name.as_ptr(),
                0,
                none,
                none,
            )
        })?;
        Ok(Self(program))
    }

    fn compile(&mut self, options: &[CString]) -> std::result::Result<(), String> {
        let options: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
        // SAFETY: a live program, and as many C strings as said.
        check(unsafe {
            sys::nvrtcCompileProgram(self.0, options.len() as i32, options.as_ptr())
        })
    }

    fn log(&self) -> String {
        let log = self.bytes(sys::nvrtcGetProgramLogSize, sys::nvrtcGetProgramLog);
        let text = String::from_utf8_lossy(&log.unwrap_or_default()).into_owned();
        text.trim_end_matches(['\0', '\n']).to_string()
    }

    fn code(&self, machine: bool) -> std::result::Result<Vec<u8>, String> {
        match machine {
            true => self.bytes(sys::nvrtcGetCUBINSize, sys::nvrtcGetCUBIN),
            false => self.bytes(sys::nvrtcGetPTXSize, sys::nvrtcGetPTX),
        }
    }

    fn bytes(&self, size: Size, text: Text) -> std::result::Result<Vec<u8>, String> {
        let mut n = 0;
        // SAFETY: a live program; `text` writes the `n` bytes that `size` has named.
        unsafe {
            check(size(self.0, &mut n))?;
            let mut bytes = vec![0u8; n];
            check(text(self.0, bytes.as_mut_ptr().cast()))?;
            Ok(bytes)
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once.
        unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

fn check(code: sys::nvrtcResult) -> std::result::Result<(), String> {
    code.result().map_err(|e| format!("NVRTC: {:?}", e.0))
}
