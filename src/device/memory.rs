//! How much memory a device has, and how to tell that it ran out.
use super::driver::Driver;
use crate::{Error, Result, autograd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use tch::Device;

/// Of one CUDA device.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceMemory {
    /// Its name.
    pub name: String,
    /// Bytes that nobody holds. What libtorch keeps for its next tensors counts as
    /// held.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Memory of a CUDA device, as the driver tells; none of another device, or where the
/// driver does not tell.
pub fn memory(device: Device) -> Option<DeviceMemory> {
    let Device::Cuda(index) = device else { return None };
    let driver = Driver::load().ok().filter(|d| d.init() == 0)?;
    let (free, total) = driver.memory(index as i32, false).ok()?;
    let name = driver.name(index as i32).unwrap_or_else(|| "unnamed".into());
    Some(DeviceMemory { name, free, total })
}

/// The most bytes that libtorch has handed out on a CUDA device, and those that it took
/// from the driver for that, since this was last asked with `anew`; none on another
/// device. PyTorch's `max_memory_allocated` and `max_memory_reserved`.
pub fn peak(device: Device, anew: bool) -> Option<[u64; 2]> {
    let Device::Cuda(index) = device else { return None };
    autograd::device_peak(index, anew)
}

/// How libtorch, cuBLAS and the C++ library say that memory ran out.
const WORDS: [&str; 6] = [
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "ALLOC_FAILED",
    "cudaErrorMemoryAllocation",
    "std::bad_alloc",
];

/// Whether a message of libtorch says that memory ran out.
pub fn is_out_of_memory(text: &str) -> bool {
    WORDS.iter().any(|words| text.contains(words))
}

/// Runs `work`. Where libtorch had no memory for it, by an error or, as most calls of
/// tch do, by a panic, that becomes [`Error::OutOfMemory`].
///
/// # Errors
/// That, and what `work` returns.
pub fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let text = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Err(e)) if is_out_of_memory(&e.to_string()) => e.to_string(),
        Ok(done) => return done,
        Err(panic) => {
            let text = panic.downcast_ref::<String>();
            match text.filter(|text| is_out_of_memory(text)) {
                Some(text) => text.clone(),
                None => resume_unwind(panic),
            }
        }
    };
    Err(Error::OutOfMemory(told(&text)))
}

/// What libtorch says of it, without the places in its sources.
fn told(text: &str) -> String {
    let begins = ["CUDA out of memory", "DefaultCPUAllocator", "CUDA error"];
    let at = begins.iter().find_map(|b| text.find(b)).unwrap_or(0);
    // Either message ends with a sentence of advice that is not for our settings.
    let sentence: Vec<&str> = text[at..].split(". ").take(2).collect();
    let line = sentence.join(". ");
    line.lines().next().unwrap_or("").trim_end_matches(['.', '"', ')']).into()
}

/// From now on a panic says nothing if it is libtorch's way of telling that memory ran
/// out: whoever runs the work catches that, and says it better.
pub fn quiet_when_out_of_memory() {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or(payload.downcast_ref::<&str>().copied());
        if !text.is_some_and(is_out_of_memory) {
            loud(info);
        }
    }));
}
