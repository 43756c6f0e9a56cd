//! The driver's half: code into a device's context, and launches on the stream that
//! libtorch works on. The driver is loaded when it is first asked for.
#![allow(unsafe_code)] // calls of a C library
use super::Call;
use crate::autograd::symbol;
use cudarc::driver::sys;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_void};
use std::ptr::{null_mut, without_provenance_mut};

type Result<T> = std::result::Result<T, String>;
/// `aoti_torch_get_current_cuda_stream` of libtorch_cuda's C interface.
type CurrentStream = unsafe extern "C" fn(i32, *mut *mut c_void) -> i32;

/// A device's context, which libtorch shares: the primary one.
pub(super) struct Context {
    context: sys::CUcontext,
    device: sys::CUdevice,
    index: i32,
    stream: CurrentStream,
}

// SAFETY: handles of the driver, which any thread may use.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// A kernel that is loaded, and the bytes of each argument that it takes.
pub(super) struct Function {
    handle: sys::CUfunction,
    sizes: Vec<usize>,
}

// SAFETY: as for the context.
unsafe impl Send for Function {}
// SAFETY: as for the context.
unsafe impl Sync for Function {}

impl Context {
    /// That of the device with this number.
    pub(super) fn new(index: usize) -> Result<Self> {
        // SAFETY: looks for the library; nothing is called if it is not there.
        if !unsafe { sys::is_culib_present() } {
            return Err("no libcuda.so.1, the NVIDIA driver's library".into());
        }
        let Some(stream) = symbol(c"aoti_torch_get_current_cuda_stream") else {
            return Err("this libtorch does not tell its CUDA stream".into());
        };
        let index = i32::try_from(index).map_err(|e| e.to_string())?;
        let (mut device, mut context) = (0, null_mut());
        // SAFETY: places for handles; libtorch 2.11 declares the function so
        // (torch/csrc/inductor/aoti_torch/c/shim.h). The context is never released:
        // it lives as long as the process.
        unsafe {
            let stream =
                std::mem::transmute::<*mut c_void, CurrentStream>(stream.as_ptr());
            check("cuInit", sys::cuInit(0))?;
            check("cuDeviceGet", sys::cuDeviceGet(&mut device, index))?;
            let retained = sys::cuDevicePrimaryCtxRetain(&mut context, device);
            check("cuDevicePrimaryCtxRetain", retained)?;
            Ok(Self { context, device, index, stream })
        }
    }

    /// `sm_90`, say.
    pub(super) fn architecture(&self) -> Result<String> {
        let [major, minor] = capability(self.device)?;
        Ok(format!("sm_{major}{minor}"))
    }

    /// All kernels of a cubin, by name.
    pub(super) fn load(&self, code: &[u8]) -> Result<BTreeMap<String, Function>> {
        let _current = self.enter()?;
        let (mut module, mut count) = (null_mut(), 0);
        // SAFETY: a whole cubin, which names its own length; the module is never
        // unloaded. The driver fills as many handles as we have room for.
        let handles = unsafe {
            let loaded = sys::cuModuleLoadData(&mut module, code.as_ptr().cast());
            check("cuModuleLoadData", loaded)?;
            let counted = sys::cuModuleGetFunctionCount(&mut count, module);
            check("cuModuleGetFunctionCount", counted)?;
            let mut handles = vec![null_mut(); count as usize];
            let listed =
                sys::cuModuleEnumerateFunctions(handles.as_mut_ptr(), count, module);
            check("cuModuleEnumerateFunctions", listed)?;
            handles
        };
        handles.into_iter().map(describe).collect()
    }

    /// Starts a kernel on libtorch's current stream, without waiting for it.
    pub(super) fn launch(&self, function: &Function, call: &Call) -> Result<()> {
        let expected = &function.sizes;
        let found: Vec<_> = call.lengths().map(|words| 8 * words).collect();
        let fits =
            |(found, size): (&usize, &usize)| (found - 7..=*found).contains(size);
        if found.len() != expected.len() || !found.iter().zip(expected).all(fits) {
            return Err(format!(
                "{found:?} bytes of arguments; the kernel takes {expected:?}"
            ));
        }
        let mut args: Vec<*mut c_void> = call
            .args()
            .map(|word| std::ptr::from_ref(word).cast_mut().cast())
            .collect();
        let mut stream = null_mut();
        let [x, y, z] = call.grid();
        let _current = self.enter()?;
        // SAFETY: the arguments are as many and as long as the kernel's, and the driver
        // copies them before it returns. What their addresses point to the kernel's
        // wrapper has checked, and libtorch frees it on the same stream, so after use.
        unsafe {
            if (self.stream)(self.index, &mut stream) != 0 {
                return Err("libtorch does not tell its CUDA stream".into());
            }
            let args = args.as_mut_ptr();
            let started = sys::cuLaunchKernel(
                function.handle,
                x,
                y,
                z,
                call.block(),
                1,
                1,
                0,
                stream.cast(),
                args,
                without_provenance_mut(0),
            );
            check("cuLaunchKernel", started)
        }
    }

    /// Makes the context this thread's own, until the guard is dropped.
    fn enter(&self) -> Result<Current> {
        // SAFETY: a context that is never released.
        check("cuCtxPushCurrent", unsafe {
            sys::cuCtxPushCurrent_v2(self.context)
        })?;
        Ok(Current)
    }
}

/// The compute capability of the device with this number, major and minor.
pub(super) fn capability_of(index: usize) -> Result<[i32; 2]> {
    let mut device = 0;
    let index = i32::try_from(index).map_err(|e| e.to_string())?;
    // SAFETY: nothing is called if the library is not there; a place for a handle.
    unsafe {
        if !sys::is_culib_present() {
            return Err("no libcuda.so.1, the NVIDIA driver's library".into());
        }
        check("cuInit", sys::cuInit(0))?;
        check("cuDeviceGet", sys::cuDeviceGet(&mut device, index))?;
    }
    capability(device)
}

fn capability(device: sys::CUdevice) -> Result<[i32; 2]> {
    use sys::CUdevice_attribute as A;
    let read = |attribute| {
        let mut value = 0;
        // SAFETY: a device that is there, and a place for a number.
        let code =
            unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) };
        check("cuDeviceGetAttribute", code).map(|()| value)
    };
    let major = read(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = read(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok([major, minor])
}

struct Current;

impl Drop for Current {
    fn drop(&mut self) {
        let mut ours = null_mut();
        // SAFETY: takes back what `enter` pushed.
        unsafe { sys::cuCtxPopCurrent_v2(&mut ours) };
    }
}

fn describe(handle: sys::CUfunction) -> Result<(String, Function)> {
    let (mut name, mut sizes) = (std::ptr::null(), vec![]);
    // SAFETY: a kernel of a loaded module, which owns its name; the driver refuses the
    // first argument past the last.
    unsafe {
        check("cuFuncGetName", sys::cuFuncGetName(&mut name, handle))?;
        let (mut offset, mut size) = (0, 0);
        let mut next = |i| {
            let code = sys::cuFuncGetParamInfo(handle, i, &mut offset, &mut size);
            (code == sys::CUresult::CUDA_SUCCESS).then_some(size)
        };
        while let Some(size) = next(sizes.len()) {
            sizes.push(size);
        }
        let name = CStr::from_ptr(name).to_string_lossy().into_owned();
        Ok((name, Function { handle, sizes }))
    }
}

fn check(what: &str, code: sys::CUresult) -> Result<()> {
    code.result().map_err(|e| format!("{what}: {:?}", e.0))
}
