//! Which device to compute on. One binary serves both: libtorch's CUDA half is loaded
//! when a driver is there, and where that fails we compute on the CPU and say why.
mod coming;
mod diagnose;
mod driver;
mod memory;

pub use coming::Coming;
pub use diagnose::{Facts, Library, Problem, libtorch};
pub use memory::{
    DeviceMemory, guarded, is_out_of_memory, memory, peak, quiet_when_out_of_memory,
};

pub use crate::autograd::deterministic;
use crate::{Error, Result};
use std::sync::OnceLock;
use tch::{Cuda, Device};

/// Loads libtorch's CUDA half. `Err` says why there is no CUDA here, and what to do.
///
/// # Errors
/// As [`problem`].
pub fn load_cuda() -> std::result::Result<(), String> {
    problem().map_or(Ok(()), |problem| Err(problem.to_string()))
}

/// Why CUDA cannot be used here; none if it can, and then it is loaded. Asked once:
/// libtorch remembers its own answer.
pub fn problem() -> Option<Problem> {
    static ANSWER: OnceLock<Option<Problem>> = OnceLock::new();
    ANSWER.get_or_init(|| Facts::gather().problem()).clone()
}

/// `auto`, `cpu`, `cuda` or `cuda:N`, as the user says it.
///
/// # Errors
/// Another word; a CUDA device that is not there, with the reason.
pub fn parse(name: &str) -> Result<Device> {
    pick(name, &|| load_cuda().map(|()| Cuda::device_count()))
}

/// As [`parse`], on a machine of which `count` says how many CUDA devices it has, or
/// why none.
///
/// # Errors
/// As [`parse`].
pub fn pick(
    name: &str,
    count: &dyn Fn() -> std::result::Result<i64, String>,
) -> Result<Device> {
    let wrong = |what: String| Error::setting("--device", what);
    let index = match name {
        "cpu" => return Ok(Device::Cpu),
        "auto" => {
            let cuda = count().is_ok_and(|n| n > 0);
            return Ok(if cuda { Device::Cuda(0) } else { Device::Cpu });
        }
        "cuda" => Some(0),
        other => other.strip_prefix("cuda:").and_then(|n| n.parse::<usize>().ok()),
    };
    let Some(index) = index else {
        return Err(wrong(format!("`{name}`; one of auto, cpu, cuda, cuda:N")));
    };
    let count = count().map_err(|why| wrong(format!("`{name}`: {why}")))?;
    match count {
        n if (index as i64) < n => Ok(Device::Cuda(index)),
        0 => Err(wrong(format!("`{name}`: there is no CUDA device"))),
        1 => Err(wrong(format!("`{name}`: there is one CUDA device, cuda:0"))),
        n => Err(wrong(format!(
            "`{name}`: there are {n} CUDA devices, cuda:0 to cuda:{}",
            n - 1
        ))),
    }
}
