//! Runs the kernels of `src/cuda` on the CPU, by `tests/cuda_host`: their own source,
//! compiled by the C++ compiler when it is first asked for.
#![allow(unsafe_code)] // functions of the library that we have just compiled
use downhill::autograd::{load_library, symbol};
use downhill::cuda::{Call, Launch, Source};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use tch::Device;

/// Launches kernels on the CPU, the threads of a block from the first to the last, or
/// `backwards`.
pub struct Emulator {
    pub backwards: bool,
    /// What stands in a source, and what to put in its place: a fault to be found.
    pub fault: Option<[&'static str; 2]>,
}

pub static EMULATOR: Emulator = Emulator { backwards: false, fault: None };
pub static BACKWARDS: Emulator = Emulator { backwards: true, fault: None };

thread_local! {
    static RUN: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
    static LAUNCHES: Cell<usize> = const { Cell::new(0) };
}

/// How often this thread has run one.
pub fn launches() -> usize {
    LAUNCHES.get()
}

/// The kernels that this thread has run.
pub fn have_run() -> BTreeSet<String> {
    RUN.with_borrow(BTreeSet::clone)
}

type Run = unsafe extern "C" fn(
    args: *const *const u64,
    grid: *const u32,
    block: *const u32,
    backwards: bool,
) -> i32;

impl Launch for Emulator {
    fn launch(&self, call: &Call, device: Device) -> downhill::Result<()> {
        assert_eq!(device, Device::Cpu);
        let run = self.function(call);
        let args: Vec<_> = call.args().map(std::ptr::from_ref).collect();
        let block = [call.block(), 1, 1];
        // SAFETY: `run` is what the text exports under this name, and `call` has the
        // arguments that the kernel takes, tensors of the CPU among them.
        let faults = unsafe {
            run(args.as_ptr(), call.grid().as_ptr(), block.as_ptr(), self.backwards)
        };
        RUN.with_borrow_mut(|run| run.insert(call.kernel().into()));
        LAUNCHES.set(LAUNCHES.get() + 1);
        match faults {
            0 => Ok(()),
            _ => panic!("{}: not all threads come to a barrier", call.kernel()),
        }
    }
}

impl Emulator {
    fn function(&self, call: &Call) -> Run {
        let mut text = call.source().text();
        if let Some([is, becomes]) = self.fault {
            assert!(text.contains(is), "nowhere `{is}`");
            text = text.replace(is, becomes);
        }
        let tag = library(call.source(), &text);
        let name = CString::new(format!("run_{}_{tag}", call.kernel())).unwrap();
        let found = symbol(&name).unwrap_or_else(|| panic!("no {name:?}"));
        // SAFETY: `EXPORT` in cuda_host.h defines this name as such a function.
        unsafe { std::mem::transmute::<*mut c_void, Run>(found.as_ptr()) }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Loads the library of this text, compiled if it is new, once. Its functions' names
/// end in what is returned.
fn library(source: Source, text: &str) -> String {
    type Loaded = Mutex<BTreeMap<String, Arc<OnceLock<()>>>>;
    static LOADED: Loaded = Mutex::new(BTreeMap::new());
    let host = ["cuda_host.h", "cuda_host.cpp"]
        .map(|f| root().join("tests/cuda_host").join(f));
    let mut hash = DefaultHasher::new();
    (text, FLAGS).hash(&mut hash);
    for file in &host {
        std::fs::read(file).expect("the shim").hash(&mut hash);
    }
    let tag = format!("{:016x}", hash.finish());
    let once = LOADED.lock().unwrap().entry(tag.clone()).or_default().clone();
    once.get_or_init(|| {
        let folder = root().join("target/cuda_host");
        let library = folder.join(format!("{}_{tag}.so", source.name));
        if !library.exists() {
            std::fs::create_dir_all(&folder).expect("target/cuda_host");
            compile(text, &tag, &host, &library);
        }
        load_library(library.to_str().unwrap()).unwrap();
    });
    tag
}

/// Each rounding is one of the source's: no fused multiply-add unless it says so.
const FLAGS: [&str; 9] = [
    "-std=c++20",
    "-O2",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-gnu-unique",
    "-fvisibility=hidden", // templates of one name in several libraries
    "-shared",
    "-fPIC",
    "-w",
];

fn compile(text: &str, tag: &str, [header, engine]: &[PathBuf; 2], library: &Path) {
    let mut unit = format!("#include \"{}\"\n{text}\n", header.display());
    for kernel in kernels(text) {
        unit += &format!("EXPORT({kernel}, {tag})\n");
    }
    let file = library.with_extension("cpp");
    let made = library.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&file, unit).expect("the source");
    let mut compile = compiler();
    compile.args(FLAGS).arg(&file).arg(engine).arg("-o").arg(&made);
    let output = compile.output().expect("a C++ compiler");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", file.display());
    std::fs::rename(made, library).expect("the library");
}

fn compiler() -> Command {
    Command::new(std::env::var("CXX").unwrap_or("c++".into()))
}

/// The names of the kernels, macros expanded.
pub fn kernels(text: &str) -> Vec<String> {
    let mut child = compiler()
        .args(["-E", "-P", "-x", "c++", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a C++ compiler");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let expanded = child.wait_with_output().unwrap().stdout;
    let expanded = String::from_utf8(expanded).unwrap();
    let heads = expanded.split("__global__").skip(1);
    let name = |head: &str| {
        let (_, rest) = head.split_once("void").expect("a kernel");
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix("__launch_bounds__(") {
            Some(rest) => rest.split_once(')').expect("its bounds").1.trim_start(),
            None => rest,
        };
        rest.split_once('(').expect("its arguments").0.trim().to_string()
    };
    heads.map(name).collect()
}
