//! Which device to compute on. One binary serves both: libtorch's CUDA half is loaded
//! when a driver is there, and where that fails we compute on the CPU and say why.
use crate::{Error, Result, autograd};
use std::path::Path;
use tch::{Cuda, Device};

/// Loads libtorch's CUDA half. `Err` says why there is no CUDA here.
///
/// # Errors
/// No driver; no `libtorch_cuda.so` beside the libtorch we run on; no device.
pub fn load_cuda() -> std::result::Result<(), String> {
    if !Path::new("/proc/driver/nvidia/version").exists()
        && !Path::new("/dev/dxg").exists()
    {
        return Err("no NVIDIA driver on this machine".into());
    }
    // Before the first question about CUDA: libtorch remembers its answer.
    autograd::load_library("libtorch_cuda.so")
        .map_err(|e| format!("libtorch's CUDA half cannot be loaded: {e}"))?;
    match Cuda::is_available() {
        true => Ok(()),
        false => Err("the driver shows no device, or is too old for CUDA 13".into()),
    }
}

/// `auto`, `cpu`, `cuda` or `cuda:N`, as the user says it.
///
/// # Errors
/// Another word; a CUDA device that is not there, with the reason.
pub fn parse(name: &str) -> Result<Device> {
    let wrong = |what: String| Error::setting("--device", what);
    let index = match name {
        "cpu" => return Ok(Device::Cpu),
        "auto" => {
            let cuda = load_cuda().is_ok();
            return Ok(if cuda { Device::Cuda(0) } else { Device::Cpu });
        }
        "cuda" => Some(0),
        other => other.strip_prefix("cuda:").and_then(|n| n.parse::<usize>().ok()),
    };
    let Some(index) = index else {
        return Err(wrong(format!("`{name}`; one of auto, cpu, cuda, cuda:N")));
    };
    load_cuda().map_err(|why| wrong(format!("`{name}`: {why}")))?;
    let count = Cuda::device_count();
    if index as i64 >= count {
        return Err(wrong(format!("`{name}`: there are {count} CUDA devices")));
    }
    Ok(Device::Cuda(index))
}
