//! How much memory something takes.
use downhill::Result;
use std::fs;

/// A line of `/proc/self/status`, in bytes.
fn status(key: &str) -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.)
}

/// By how many bytes the resident memory of this process rose at its highest while `f`
/// ran. `None` where the system does not say: anywhere but on Linux.
///
/// # Errors
/// Those of `f`.
pub fn peak(f: impl FnOnce() -> Result<()>) -> Result<Option<f64>> {
    // "5" makes the highest start again from what is resident now.
    let told = fs::write("/proc/self/clear_refs", "5").is_ok();
    let before = status("VmRSS");
    f()?;
    let most = status("VmHWM");
    Ok(before.zip(most).filter(|_| told).map(|(a, b)| (b - a).max(0.)))
}
