//! The boundary to `node.cpp`: no Rust panic and no C++ exception crosses it.
use super::Grads;
use crate::{Error, Result};
use std::ffi::{CStr, c_char, c_void};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::Mutex;
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

pub(super) type Backward = Box<dyn FnMut(&[Option<Tensor>]) -> Result<Grads> + Send>;
type CallFn = unsafe extern "C" fn(
    *mut c_void,
    *const *mut C_tensor,
    usize,
    *mut *mut C_tensor,
    usize,
    *mut c_char,
    usize,
) -> bool;
type DropFn = unsafe extern "C" fn(*mut c_void);
type BodyFn = unsafe extern "C" fn(*mut c_void, i64, i64);

unsafe extern "C" {
    fn dh_attach(
        inputs: *const *const C_tensor,
        n_in: usize,
        outputs: *const *const C_tensor,
        n_out: usize,
        state: *mut c_void,
        call: CallFn,
        drop: DropFn,
        error: *mut c_char,
        error_len: usize,
    ) -> i32;
    fn dh_onednn_mm(
        a: *const C_tensor,
        b: *const C_tensor,
        out: *const C_tensor,
        beta: f32,
        error: *mut c_char,
        error_len: usize,
    ) -> i32;
    fn dh_clear_grad(t: *const C_tensor);
    fn dh_deterministic(on: bool);
    fn dh_device_peak(index: i32, anew: bool, found: *mut u64) -> bool;
    fn dh_load_library(name: *const c_char) -> *const c_char;
    fn dh_symbol(name: *const c_char) -> *mut c_void;
    fn dh_file_of(address: *const c_void) -> *const c_char;
    fn dh_parallel_for(n: i64, grain: i64, ctx: *mut c_void, body: BodyFn);
}

/// Whether both are handles of one tensor.
pub(super) fn same(a: &Tensor, b: &Tensor) -> bool {
    // An `at::Tensor` is one pointer, to its implementation.
    // SAFETY: both handles are alive, and no longer than a pointer is read.
    unsafe { *a.as_ptr().cast::<usize>() == *b.as_ptr().cast::<usize>() }
}

pub(super) fn recording() -> bool {
    // SAFETY: a flag of this thread, set to what it was.
    unsafe {
        let on = torch_sys::at_grad_set_enabled(0);
        torch_sys::at_grad_set_enabled(on);
        on != 0
    }
}

pub(super) fn attach(
    inputs: &[&Tensor],
    outputs: &[Tensor],
    f: Backward,
) -> Result<()> {
    let ins: Vec<_> = inputs.iter().map(|t| t.as_ptr()).collect();
    let outs: Vec<_> = outputs.iter().map(|t| t.as_ptr()).collect();
    let state = Box::into_raw(Box::new(f));
    let mut error = [0 as c_char; 1024];
    // SAFETY: the handles outlive the call; `state` is freed by `drop_state` alone,
    // which the node calls once, or here if the node was not made (code 1).
    let code = unsafe {
        dh_attach(
            ins.as_ptr(),
            ins.len(),
            outs.as_ptr(),
            outs.len(),
            state.cast(),
            call,
            drop_state,
            error.as_mut_ptr(),
            error.len(),
        )
    };
    match code {
        0 => Ok(()),
        1 => {
            // SAFETY: nothing was recorded, so we still own it.
            drop(unsafe { Box::from_raw(state) });
            Ok(())
        }
        _ => {
            // SAFETY: zero-filled, and the callee leaves the last byte alone.
            let text = unsafe { CStr::from_ptr(error.as_ptr()) };
            Err(Error::Autograd(text.to_string_lossy().into_owned()))
        }
    }
}

unsafe extern "C" fn drop_state(state: *mut c_void) {
    // SAFETY: made by `attach`, dropped once. A panicking drop must not unwind on.
    let owned = unsafe { Box::from_raw(state.cast::<Backward>()) };
    let _ = catch_unwind(AssertUnwindSafe(|| drop(owned)));
}

unsafe extern "C" fn call(
    state: *mut c_void,
    grads: *const *mut C_tensor,
    n_grads: usize,
    out: *mut *mut C_tensor,
    n_out: usize,
    error: *mut c_char,
    error_len: usize,
) -> bool {
    // SAFETY: the node passes the state it was made with, under its lock, and arrays
    // of the lengths it names; handles are null or alive for the call.
    let (f, grads, out, error) = unsafe {
        (
            &mut *state.cast::<Backward>(),
            slice(grads, n_grads),
            std::slice::from_raw_parts_mut(out, n_out),
            std::slice::from_raw_parts_mut(error.cast::<u8>(), error_len),
        )
    };
    let run = || -> Result<Grads> {
        let handle = |&p: &*mut C_tensor| {
            // SAFETY: not null, alive; the clone is a handle of our own.
            (!p.is_null()).then(|| unsafe { Tensor::clone_from_ptr(p) })
        };
        let grads: Grads = grads.iter().map(handle).collect();
        let found = f(&grads)?;
        match found.len() == out.len() {
            true => Ok(found),
            false => Err(Error::Autograd(format!(
                "backward returned {} gradients for {} inputs",
                found.len(),
                out.len()
            ))),
        }
    };
    let message = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(found)) => {
            for (slot, grad) in out.iter_mut().zip(found) {
                if let Some(mut g) = grad {
                    *slot = g.as_mut_ptr();
                    std::mem::forget(g); // the node owns the handle now
                }
            }
            return true;
        }
        Ok(Err(e)) => e.to_string(),
        Err(panic) => format!("panic in backward: {}", panic_text(&*panic)),
    };
    let n = message.len().min(error.len() - 1);
    error[..n].copy_from_slice(&message.as_bytes()[..n]);
    error[n] = 0;
    false
}

/// `from_raw_parts` that accepts the null pointer of an empty C++ vector.
unsafe fn slice<'a, T>(p: *const T, n: usize) -> &'a [T] {
    // SAFETY: the caller vouches for `n` elements at `p`.
    if n == 0 { &[] } else { unsafe { std::slice::from_raw_parts(p, n) } }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message").into()
}

pub(super) fn onednn_mm(
    a: &Tensor,
    b: &Tensor,
    out: &Tensor,
    beta: f32,
) -> Result<()> {
    let mut error = [0 as c_char; 1024];
    let (text, n) = (error.as_mut_ptr(), error.len());
    // SAFETY: live handles; exceptions become text in a zero-filled array.
    match unsafe {
        dh_onednn_mm(a.as_ptr(), b.as_ptr(), out.as_ptr(), beta, text, n)
    } {
        0 => Ok(()),
        _ => {
            // SAFETY: zero-filled, and the callee leaves the last byte alone.
            let text = unsafe { CStr::from_ptr(error.as_ptr()) };
            Err(Error::Autograd(text.to_string_lossy().into_owned()))
        }
    }
}

pub(super) fn clear_grad(t: &Tensor) {
    // SAFETY: a live handle.
    unsafe { dh_clear_grad(t.as_ptr()) }
}

pub(super) fn deterministic(on: bool) {
    // SAFETY: sets what libtorch reads later.
    unsafe { dh_deterministic(on) }
}

pub(super) fn device_peak(index: usize, anew: bool) -> Option<[u64; 2]> {
    let mut found = [0; 2];
    let index = i32::try_from(index).ok()?;
    // SAFETY: room for two numbers; exceptions become false.
    unsafe { dh_device_peak(index, anew, found.as_mut_ptr()) }.then_some(found)
}

pub(super) fn load_library(name: &str) -> std::result::Result<(), String> {
    let name = std::ffi::CString::new(name).map_err(|e| e.to_string())?;
    // SAFETY: a C string in; null or a C string of the loader's out, read at once.
    unsafe {
        let why = dh_load_library(name.as_ptr());
        match why.is_null() {
            true => Ok(()),
            false => Err(CStr::from_ptr(why).to_string_lossy().into_owned()),
        }
    }
}

pub(super) fn symbol(name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: a C string in, an address or null out.
    NonNull::new(unsafe { dh_symbol(name.as_ptr()) })
}

pub(super) fn file_of(address: NonNull<c_void>) -> Option<String> {
    // SAFETY: any address will do; null or a C string out, read at once.
    unsafe {
        let name = dh_file_of(address.as_ptr());
        (!name.is_null())
            .then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
    }
}

type Body<'a> = &'a (dyn Fn(Range<usize>) + Sync);
struct Job<'a> {
    body: Body<'a>,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

pub(super) fn parallel_for(n: usize, grain: usize, body: Body) {
    let mut job = Job { body, panic: Mutex::new(None) };
    // SAFETY: `job` outlives the call, which returns when all ranges are done.
    unsafe {
        dh_parallel_for(n as i64, grain as i64, (&raw mut job).cast(), run_range)
    }
    if let Some(panic) = job.panic.into_inner().unwrap_or_else(|e| e.into_inner()) {
        resume_unwind(panic);
    }
}

/// An address that threads may write to, each its own part.
struct Parts(*mut f32);
// SAFETY: see the use below.
unsafe impl Sync for Parts {}

impl Parts {
    fn at(&self, start: usize) -> *mut f32 {
        self.0.wrapping_add(start)
    }
}

pub(super) fn filled(
    n: usize,
    grain: usize,
    f: impl Fn(usize, &mut [f32]) + Sync,
) -> Tensor {
    let y = Tensor::zeros([n as i64], (Kind::Float, Device::Cpu));
    let (parts, grain) = (Parts(y.data_ptr().cast()), grain.max(1));
    parallel_for(n.div_ceil(grain), 1, &|range| {
        let (start, end) = (range.start * grain, n.min(range.end * grain));
        // SAFETY: `y` holds n f32, is ours alone until we return, and the ranges of
        // `parallel_for` are disjoint.
        let part =
            unsafe { std::slice::from_raw_parts_mut(parts.at(start), end - start) };
        f(start, part);
    });
    y
}

unsafe extern "C" fn run_range(ctx: *mut c_void, begin: i64, end: i64) {
    // SAFETY: `ctx` is the job of the `parallel_for` that is waiting for us; it is
    // shared between threads, and `Job` is `Sync`.
    let job = unsafe { &*ctx.cast::<Job>() };
    let range = begin as usize..end as usize;
    if let Err(p) = catch_unwind(AssertUnwindSafe(|| (job.body)(range))) {
        *job.panic.lock().unwrap_or_else(|e| e.into_inner()) = Some(p);
    }
}
