//! One piece of code, compiled for several instruction sets.
use super::Fill;

/// [`Fill::fill`] for the widest vectors that this machine has.
pub(super) fn widest(numbers: &impl Fill, start: usize, part: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the machine has what the function is compiled for; as below.
        return unsafe { avx512(numbers, start, part) };
    } else if is_x86_feature_detected!("avx2") {
        return unsafe { avx2(numbers, start, part) };
    }
    numbers.fill(start, part);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(numbers: &impl Fill, start: usize, part: &mut [f32]) {
    numbers.fill(start, part);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(numbers: &impl Fill, start: usize, part: &mut [f32]) {
    numbers.fill(start, part);
}
