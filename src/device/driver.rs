//! The driver's own library, loaded where it is there: it knows things about a device
//! that tch cannot tell, and says why it cannot be used.
#![allow(unsafe_code)] // one of the rooms for it: calls of a C library by name
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::null_mut;

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *mut c_char;
}
const RTLD_NOW: c_int = 2;
/// `CUDA_ERROR_NOT_FOUND`: what a missing function answers.
const NOT_FOUND: i32 = 500;

/// `libcuda.so.1`, which stays loaded.
pub(super) struct Driver(*mut c_void);

impl Driver {
    /// Loads it.
    ///
    /// # Errors
    /// What the loader says.
    pub(super) fn load() -> Result<Self, String> {
        let name = c"libcuda.so.1";
        // SAFETY: C strings in; null, or a handle that is never closed. The loader's
        // message is copied before the next call.
        unsafe {
            let library = dlopen(name.as_ptr(), RTLD_NOW);
            if !library.is_null() {
                return Ok(Self(library));
            }
            let why = dlerror();
            Err(match why.is_null() {
                true => "no reason given".into(),
                false => CStr::from_ptr(why).to_string_lossy().into_owned(),
            })
        }
    }

    fn symbol(&self, name: &str) -> Option<*mut c_void> {
        let name = CString::new(name).ok()?;
        // SAFETY: a live handle and a C string.
        let found = unsafe { dlsym(self.0, name.as_ptr()) };
        (!found.is_null()).then_some(found)
    }

    /// Calls a function of one argument that returns a code.
    fn call1<A>(&self, name: &str, a: A) -> i32 {
        let Some(found) = self.symbol(name) else { return NOT_FOUND };
        // SAFETY: each caller below passes the argument that cuda.h declares.
        unsafe {
            let f: unsafe extern "C" fn(A) -> c_int = std::mem::transmute(found);
            f(a)
        }
    }

    /// The same of two arguments.
    fn call2<A, B>(&self, name: &str, a: A, b: B) -> i32 {
        let Some(found) = self.symbol(name) else { return NOT_FOUND };
        // SAFETY: as above.
        unsafe {
            let f: unsafe extern "C" fn(A, B) -> c_int = std::mem::transmute(found);
            f(a, b)
        }
    }

    /// 1000 times the major version of the CUDA that it supports, and 10 times the
    /// minor one; 0 if it does not say.
    pub(super) fn version(&self) -> i32 {
        let mut version: c_int = 0;
        self.call1("cuDriverGetVersion", &raw mut version);
        version
    }

    /// Must come before all but [`Driver::version`]. A code, 0 for success.
    pub(super) fn init(&self) -> i32 {
        self.call1("cuInit", 0u32)
    }

    /// Devices, those that `CUDA_VISIBLE_DEVICES` hides left out.
    pub(super) fn count(&self) -> i32 {
        let mut count: c_int = 0;
        match self.call1("cuDeviceGetCount", &raw mut count) {
            0 => count,
            _ => 0,
        }
    }

    /// Name of a device.
    pub(super) fn name(&self, index: i32) -> Option<String> {
        let (mut device, mut text) = (0 as c_int, [0 as c_char; 128]);
        if self.call2("cuDeviceGet", &raw mut device, index as c_int) != 0 {
            return None;
        }
        let found = self.symbol("cuDeviceGetName")?;
        type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
        // SAFETY: declared so in cuda.h; one byte less than there is room for, so that
        // a zero stands at the end whatever it writes.
        unsafe {
            let f: Name = std::mem::transmute(found);
            let code = f(text.as_mut_ptr(), text.len() as c_int - 1, device);
            let name = CStr::from_ptr(text.as_ptr());
            (code == 0).then(|| name.to_string_lossy().into_owned())
        }
    }

    /// Free and total memory of a device, in bytes, by way of the context that
    /// libtorch uses as well; or the code that stands in the way. `keep`: leave that
    /// context for libtorch, which would make it again.
    pub(super) fn memory(&self, index: i32, keep: bool) -> Result<(u64, u64), i32> {
        let ok = |code| if code == 0 { Ok(()) } else { Err(code) };
        let mut device: c_int = 0;
        ok(self.call2("cuDeviceGet", &raw mut device, index as c_int))?;
        let mut context: *mut c_void = null_mut();
        ok(self.call2("cuDevicePrimaryCtxRetain", &raw mut context, device))?;
        let (mut free, mut total) = (0usize, 0usize);
        let told = ok(self.call1("cuCtxPushCurrent_v2", context)).and_then(|()| {
            let code = self.call2("cuMemGetInfo_v2", &raw mut free, &raw mut total);
            let mut popped: *mut c_void = null_mut();
            self.call1("cuCtxPopCurrent_v2", &raw mut popped);
            ok(code)
        });
        if !keep {
            self.call1("cuDevicePrimaryCtxRelease_v2", device);
        }
        told.map(|()| (free as u64, total as u64))
    }
}
