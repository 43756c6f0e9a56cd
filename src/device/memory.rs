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
    let Some(at) = begins.iter().find_map(|b| text.find(b)) else {
        return match text.contains("std::bad_alloc") {
            true => "the system gave no more (std::bad_alloc)".into(),
            false => text.lines().next().unwrap_or("").into(),
        };
    };
    // Within another error's text its lines have become one.
    let ends = ["\n", "\\n", "frame #"];
    let end = ends.iter().filter_map(|e| text[at..].find(e)).min();
    let line = &text[at..end.map_or(text.len(), |end| at + end)];
    // Either message ends with a sentence of advice that is not for our settings.
    let sentence: Vec<&str> = line.split(". ").take(2).collect();
    let line = sentence.join(". ");
    let line = line.trim_end_matches(['.', '"', ')', ' ']);
    // One that was opened is closed again.
    let open = line.matches('(').count() > line.matches(')').count();
    if open { format!("{line})") } else { line.into() }
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

#[cfg(test)]
mod tests {
    use super::told;

    #[test]
    fn the_reason_is_one_line_without_frames() {
        let cpu = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 \
                   bytes. Error code 12 (Cannot allocate memory)";
        for text in [
            format!("[enforce fail at alloc_cpu.cpp:124] err == 0. {cpu}"),
            format!("{cpu}\nframe #0: c10::ThrowEnforceNotMet(char const*, int)"),
            format!("an `Err` value: Torch(\"{cpu}\\nframe #0: c10::Throw\\n\")"),
        ] {
            assert_eq!(told(&text), cpu, "{text}");
        }
        let card = "CUDA out of memory. Tried to allocate 2.00 GiB";
        assert_eq!(told(&format!("Torch(\"{card}. GPU 0 has a total\")")), card);
        let bare = "called `Result::unwrap()`: Torch(\"std::bad_alloc\")";
        assert_eq!(told(bare), "the system gave no more (std::bad_alloc)");
    }
}
