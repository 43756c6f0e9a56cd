//! What a launch of a kernel is, apart from where it runs.
use crate::{Error, Result};
use std::cell::Cell;
use tch::{Device, Kind, Tensor};

/// The source of some kernels: common.cu, rows.cu, and a file of their own.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The file, without its extension.
    pub name: &'static str,
    /// Its parts, one after another.
    pub parts: &'static [&'static str],
}

impl Source {
    /// What the compiler gets.
    pub fn text(&self) -> String {
        self.parts.concat()
    }
}

/// One launch: a kernel, its grid and its arguments.
#[derive(Debug)]
pub struct Call {
    source: Source,
    kernel: String,
    grid: [u32; 3],
    block: u32,
    words: Vec<u64>,
    starts: Vec<usize>,
}

impl Call {
    /// Of the kernel `name`, which `source` has.
    pub(super) fn new(source: Source, kernel: String) -> Self {
        let (words, starts) = (vec![], vec![]);
        Self { source, kernel, grid: [1; 3], block: 1, words, starts }
    }

    /// So many blocks in x and y, of so many threads.
    pub(super) fn over(mut self, x: i64, y: i64, threads: u32) -> Result<Self> {
        let size = |n: i64, most: i64| match (1..=most).contains(&n) {
            true => Ok(n as u32),
            false => Err(Error::setting(
                self.kernel.clone(),
                format!(
                    "a grid of {n} blocks; CUDA takes 1 to {most}: split the batch"
                ),
            )),
        };
        self.grid = [size(x, i32::MAX.into())?, size(y, u16::MAX.into())?, 1];
        self.block = threads;
        Ok(self)
    }

    /// One more argument.
    pub(super) fn arg(self, arg: impl Arg) -> Self {
        self.words([arg.word()])
    }

    /// One more argument that takes several words.
    pub(super) fn words(mut self, words: impl IntoIterator<Item = u64>) -> Self {
        self.starts.push(self.words.len());
        self.words.extend(words);
        self
    }

    /// What has the kernel.
    pub fn source(&self) -> Source {
        self.source
    }

    /// The kernel's name.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Blocks in x, y and z.
    pub fn grid(&self) -> [u32; 3] {
        self.grid
    }

    /// Threads of a block.
    pub fn block(&self) -> u32 {
        self.block
    }

    /// Words of each argument.
    pub(super) fn lengths(&self) -> impl Iterator<Item = usize> {
        let after = |i| self.starts.get(i + 1).copied();
        let end = move |i| after(i).unwrap_or(self.words.len());
        self.starts.iter().enumerate().map(move |(i, start)| end(i) - start)
    }

    /// The arguments, each where its bytes begin.
    pub fn args(&self) -> impl Iterator<Item = &u64> {
        self.starts.iter().map(|&at| &self.words[at])
    }
}

/// An argument that fits in a word; less than a word takes its first bytes, on the
/// little-endian machines that CUDA runs on.
pub(super) trait Arg {
    fn word(self) -> u64;
}

impl Arg for &Tensor {
    fn word(self) -> u64 {
        self.data_ptr() as u64
    }
}

impl Arg for Option<&Tensor> {
    fn word(self) -> u64 {
        self.map_or(0, Arg::word)
    }
}

impl Arg for i64 {
    fn word(self) -> u64 {
        self as u64
    }
}

impl Arg for u64 {
    fn word(self) -> u64 {
        self
    }
}

impl Arg for u32 {
    fn word(self) -> u64 {
        self.into()
    }
}

impl Arg for bool {
    fn word(self) -> u64 {
        self.into()
    }
}

impl Arg for f32 {
    fn word(self) -> u64 {
        self.to_bits().into()
    }
}

/// What runs kernels: a card, or a test's emulator.
pub trait Launch: Sync {
    /// Runs `call`, whose tensors are on `device`, after all that was asked before.
    ///
    /// # Errors
    /// The kernel cannot be compiled or started.
    fn launch(&self, call: &Call, device: Device) -> Result<()>;
}

thread_local! {
    static EMULATOR: Cell<Option<&'static dyn Launch>> = const { Cell::new(None) };
}

/// For tests: while `f` runs, kernels serve tensors on the CPU too, by `emulator`, if
/// this thread asks for them. So all that surrounds them is tested without a card.
pub fn emulated<T>(emulator: &'static dyn Launch, f: impl FnOnce() -> T) -> T {
    struct Restore(Option<&'static dyn Launch>);
    impl Drop for Restore {
        fn drop(&mut self) {
            EMULATOR.set(self.0);
        }
    }
    let _restore = Restore(EMULATOR.replace(Some(emulator)));
    f()
}

/// The kernels over rows and elements, for tensors of one kind in one place. Those that
/// take several tensors trust them to be of that kind and place.
#[derive(Clone, Copy)]
pub struct Kernels {
    on: &'static dyn Launch,
    pub(super) device: Device,
    pub(super) kind: Kind,
}

/// Kernels for these tensors: all f32 or all bf16, all on one device that has kernels.
/// Where there are none, libtorch's own operations do the same.
pub fn kernels(tensors: &[&Tensor]) -> Option<Kernels> {
    let (first, rest) = tensors.split_first()?;
    let (device, kind) = (first.device(), first.kind());
    let alike = |t: &&Tensor| t.kind() == kind && t.device() == device;
    let some = tensors.iter().all(|t| t.numel() > 0);
    let served = serves(kind) && some && rest.iter().all(alike);
    served.then(|| Kernels::at(device, kind))?
}

fn serves(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::BFloat16)
}

impl Kernels {
    /// Those on this device, if it has any.
    pub(crate) fn at(device: Device, kind: Kind) -> Option<Self> {
        let on = match device {
            Device::Cpu => EMULATOR.get()?,
            Device::Cuda(index) => super::card(index)?,
            _ => return None,
        };
        Some(Self { on, device, kind })
    }

    pub(super) fn run(&self, call: &Call) -> Result<()> {
        self.on.launch(call, self.device)
    }

    /// Fails unless there are kernels for this kind.
    pub(super) fn served(&self, name: &str, kind: Kind) -> Result<()> {
        let what = || format!("{kind:?}; there are kernels for Float and BFloat16");
        serves(kind).then_some(()).ok_or_else(|| Error::setting(name, what()))
    }

    /// Fails unless `x` has `n` elements where the kernels are, of `kind`, in a row.
    pub(super) fn check(
        &self,
        name: &str,
        x: &Tensor,
        n: i64,
        kind: Kind,
    ) -> Result<()> {
        let found = (x.numel() as i64, x.kind(), x.device(), x.is_contiguous());
        let expected = (n, kind, self.device, true);
        if found == expected {
            return Ok(());
        }
        let what = format!("{found:?}; this kernel needs {expected:?}");
        Err(Error::setting(name, what))
    }
}

/// Threads of a block that goes over `n` elements, four to a thread: a power of two.
pub(super) fn threads(n: i64) -> u32 {
    (n as u64).div_ceil(4).next_power_of_two().clamp(32, 256) as u32
}

/// The kind as the names of kernels have it.
pub(super) fn suffix(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        Kind::Half => "f16",
        _ => "f32",
    }
}
