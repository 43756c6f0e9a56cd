//! Custom autograd functions: operations whose backward is written by hand.
//!
//! tch has none. [`custom`] records a Rust closure as a node of libtorch's graph, as
//! `torch.autograd.Function` does in Python. On it stand the 4-bit linear, whose
//! backward dequantizes again instead of keeping a copy of every weight, and
//! gradient [`checkpoint`]ing.
//!
//! Source: `torch/csrc/autograd/function.h` (`Node`). Departure from PyTorch: the
//! closure captures what it needs, so there is no `save_for_backward`; what it
//! captures is dropped with the graph.
#![allow(unsafe_code)] // one of the rooms for it: the calls into node.cpp

mod check;
mod ffi;
mod product;
mod vectors;

pub use check::gradcheck;
pub use product::{Library, bf16_units, compiles, mm, mm_into};

use crate::{Error, Result};
use std::ffi::{CStr, c_void};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use tch::{Device, Tensor, no_grad};

/// The gradients that reach a node, one per output, or that it returns, one per
/// input. `None` where there is none: an unused output, a constant input.
pub type Grads = Vec<Option<Tensor>>;

/// Runs `forward` without recording it, and records `backward` in its place.
///
/// For outputs `y = f(x)` and a loss `L`, `backward` receives `dL/dy` (one entry per
/// output, of its shape, `None` if that output was not used) and returns `dL/dx` (one
/// entry per input, of its shape, `None` for a zero gradient).
///
/// The closure runs on whichever thread backward runs, hence `Send`; it must not
/// capture an output (a cycle that is never freed). It is dropped after its use, or
/// with the graph. If no input requires a gradient it is dropped at once.
///
/// # Errors
/// What `forward` returns; an output that is not floating point. An error or a panic
/// in `backward` becomes the error of the `f_backward` call that ran it.
pub fn custom(
    inputs: &[&Tensor],
    forward: impl FnOnce() -> Result<Vec<Tensor>>,
    backward: impl FnMut(&[Option<Tensor>]) -> Result<Grads> + Send + 'static,
) -> Result<Vec<Tensor>> {
    let outputs = no_grad(forward)?;
    // An output that is an input needs a handle of its own: history is per handle.
    let outputs: Vec<Tensor> = no_grad(|| {
        outputs
            .into_iter()
            .map(|y| match inputs.iter().any(|x| ffi::same(x, &y)) {
                true => y.detach(),
                false => y,
            })
            .collect()
    });
    for (i, y) in outputs.iter().enumerate() {
        if !y.is_floating_point() {
            let kind = y.kind();
            return Err(Error::Autograd(format!(
                "output {i} is {kind:?}; only floating-point outputs have gradients"
            )));
        }
    }
    ffi::attach(inputs, &outputs, Box::new(backward))?;
    Ok(outputs)
}

/// Vector-Jacobian product: the gradients of `sum(y * dy)` with respect to `inputs`,
/// without touching any `.grad` or reading `y`. `None` where `y` does not depend on an
/// input.
pub fn vjp(y: &Tensor, dy: &Tensor, inputs: &[&Tensor]) -> Result<Grads> {
    // tch starts every backward from a one of its own; this node makes `dy` of it.
    let (dy, like) = (dy.detach(), (y.kind(), y.device()));
    let sum = || Ok(vec![Tensor::f_zeros([] as [i64; 0], like)?]);
    let start = move |_: &[_]| Ok(vec![Some(dy.shallow_clone())]);
    let root = tch::with_grad(|| custom(&[y], sum, start))?;
    let grads = Tensor::f_run_backward(&root, inputs, false, false)?;
    Ok(grads.into_iter().map(|g| g.defined().then_some(g)).collect())
}

/// What of a result is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Need {
    /// Its numbers.
    Value,
    /// Only the graph behind it, to go back through. So it is with the result of a
    /// layer that [`checkpoint_kept`] computes again: what comes after the layer has
    /// read its numbers long ago, and a last operation whose own backward does not
    /// read them either need not compute them.
    Graph,
}

impl Need {
    /// `value()`; where nobody reads it a stand-in of its `shape`, of the kind and on
    /// the device of `like`, that takes neither time nor memory: one zero, seen
    /// everywhere.
    pub fn of(
        self,
        shape: &[i64],
        like: &Tensor,
        value: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        if self == Self::Value {
            return value();
        }
        let zero = Tensor::f_zeros([1], (like.kind(), like.device()))?;
        Ok(zero.f_expand(shape, false)?)
    }
}

/// Gradient checkpointing: computes `f(inputs)` without keeping its inner results,
/// and computes it again in backward. Memory of one layer for the time of a forward.
///
/// `inputs` must hold every tensor through which a gradient shall flow, trainable
/// parameters included; `f` gets them in the same order, and must be deterministic
/// (our dropout is: its masks come from the step and the place).
///
/// Source: Chen et al. 2016, arXiv 1604.06174.
// ANCHOR: checkpoint
pub fn checkpoint(
    inputs: &[&Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + 'static,
) -> Result<Tensor> {
    checkpoint_kept(inputs, false, move |xs, _| f(xs))
}

/// As [`checkpoint`]; `f` is told whether its result will be read, or only gone back
/// through. With `offload` the first input waits for backward in host memory, so that
/// the device holds nothing of this layer meanwhile; both copies run beside the host.
///
/// # Errors
/// As [`custom`].
pub fn checkpoint_kept(
    inputs: &[&Tensor],
    offload: bool,
    f: impl Fn(&[Tensor], Need) -> Result<Tensor> + Send + 'static,
) -> Result<Tensor> {
    let wanted: Vec<bool> = inputs.iter().map(|x| x.requires_grad()).collect();
    let mut kept: Vec<Tensor> = inputs.iter().map(|x| x.shallow_clone()).collect();
    // Leaves of the recomputed graph: same storage, no history.
    let leaves = move |kept: &[Tensor]| -> Vec<Tensor> {
        let leaf = |(x, w): (&Tensor, &bool)| x.detach().set_requires_grad(*w);
        kept.iter().zip(&wanted).map(leaf).collect()
    };
    let first = leaves(&kept);
    let home = kept.first().map_or(Device::Cpu, Tensor::device);
    if offload && let Some(x) = kept.first_mut() {
        let host = |x: &Tensor| x.to_device_(Device::Cpu, x.kind(), true, true);
        *x = no_grad(|| host(x));
    }
    let mut again = move || {
        if offload && let Some(x) = kept.first_mut() {
            // By the device, after what it has written there: the host, which may be
            // here before it has, must not read it.
            *x = x.to_device_(home, x.kind(), true, false);
        }
        leaves(&kept)
    };
    let shared = std::sync::Arc::new(std::sync::Mutex::new(f));
    let f = shared.clone();
    let run = move || {
        let f = f.lock().unwrap_or_else(|e| e.into_inner());
        Ok(vec![f(&first, Need::Value)?])
    };
    let mut outputs = custom(inputs, run, move |grads| {
        let f = shared.lock().unwrap_or_else(|e| e.into_inner());
        let xs = again();
        let Some(dy) = &grads[0] else {
            return Ok(xs.iter().map(|_| None).collect());
        };
        let y = tch::with_grad(|| f(&xs, Need::Graph))?;
        let used: Vec<&Tensor> = xs.iter().filter(|x| x.requires_grad()).collect();
        let mut found = vjp(&y, dy, &used)?.into_iter();
        let pick = |x: &Tensor| match x.requires_grad() {
            true => found.next().flatten(),
            false => None,
        };
        Ok(xs.iter().map(pick).collect())
    })?;
    Ok(outputs.remove(0))
}
// ANCHOR_END: checkpoint

/// Whether this thread's operations are recorded for a backward.
pub fn recording() -> bool {
    ffi::recording()
}

/// Forgets the gradient of `t` (PyTorch's `t.grad = None`), for which tch has no
/// call. Until the next backward the optimizers pass over it.
pub fn clear_grad(t: &Tensor) {
    ffi::clear_grad(t);
}

/// `t`, in host memory, on `device`. A GPU fetches it by itself, from a copy that the
/// system may not move, while the host goes on: a plain copy would wait for all that
/// the GPU still has to do.
pub fn upload(t: &Tensor, device: Device) -> Tensor {
    match device {
        Device::Cuda(_) => {
            pinned(t, device).to_device_(device, t.kind(), true, false)
        }
        _ => t.to_device(device),
    }
}

/// A copy of `t` in host memory that stays in its place, from which a GPU can fetch it
/// by itself. (Not `pin_memory`: given a device, it complains at every call.)
pub fn pinned(t: &Tensor, device: Device) -> Tensor {
    t.internal_pin_memory(device)
}

/// Asks libtorch for the same bits in every run on a GPU too, where it has a choice: of
/// attention's backward and of cuBLAS's memory. Before the first product there.
pub fn deterministic(on: bool) {
    ffi::deterministic(on);
}

/// The most bytes that libtorch's allocator of CUDA device `index` has handed out, and
/// reserved for that, since the process began or since this was last asked with `anew`.
/// None before its first tensor.
pub fn device_peak(index: usize, anew: bool) -> Option<[u64; 2]> {
    ffi::device_peak(index, anew)
}

/// Loads a shared library beside libtorch (its CUDA half), before its first use.
///
/// # Errors
/// What the loader says.
pub fn load_library(name: &str) -> std::result::Result<(), String> {
    ffi::load_library(name)
}

/// The address of a C function in any of the libraries that are loaded, libtorch's
/// among them. To call it is up to the caller.
pub fn symbol(name: &CStr) -> Option<NonNull<c_void>> {
    ffi::symbol(name)
}

/// The folder that libtorch was loaded from.
pub fn libtorch_folder() -> Option<PathBuf> {
    let file = ffi::file_of(symbol(c"aoti_torch_device_type_cpu")?)?;
    Some(Path::new(&file).parent()?.to_path_buf())
}

/// Calls `f` on disjoint ranges that cover `0..n`, on libtorch's own threads, at
/// least `grain` long where possible.
pub fn parallel_for(
    n: usize,
    grain: usize,
    f: impl Fn(std::ops::Range<usize>) + Sync,
) {
    ffi::parallel_for(n, grain, &f);
}

/// Calls `f` with each of `items`, on libtorch's own threads: whichever is free takes
/// the next one.
pub fn for_each<T: Send>(items: Vec<T>, f: impl Fn(T) + Sync) {
    let threads = items.len().min(tch::get_num_threads() as usize);
    let items = std::sync::Mutex::new(items.into_iter());
    let next = || items.lock().unwrap_or_else(|e| e.into_inner()).next();
    parallel_for(threads, 1, |_| {
        while let Some(item) = next() {
            f(item);
        }
    });
}

/// Numbers that are a function of their place.
pub trait Fill: Sync {
    /// Writes those from `start` on. Marked `#[inline(always)]`, its loops are compiled
    /// for the widest vectors of each kind of machine.
    fn fill(&self, start: usize, part: &mut [f32]);
}

/// A new f32 tensor [n] on the CPU, written in parts on libtorch's own threads. Each
/// part starts at a multiple of `grain`.
pub fn filled(n: usize, grain: usize, numbers: &impl Fill) -> Tensor {
    ffi::filled(n, grain, |start, part| vectors::widest(numbers, start, part))
}
