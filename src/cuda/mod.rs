//! CUDA kernels of our own, for what libtorch does in several passes over memory.
//!
//! Each is a file of CUDA C in `kernels/`, compiled for the card at hand by NVRTC, a
//! library that comes with libtorch ([`compile`]), when a process first uses it; a
//! cache on the disk keeps the result. To build this crate takes no CUDA, and one
//! binary serves machines with and without.
//!
//! A kernel is never the definition of anything. That is its twin in libtorch's
//! operations, which runs wherever there are no kernels, and which it is tested
//! against: on a card, and without one by an emulator that compiles the same source
//! with the C++ compiler. `DOWNHILL_CUDA_KERNELS=off` leaves everything to the twins.

/// The source whose own file is `kernels/<name>.cu`.
macro_rules! source {
    ($name:literal) => {
        $crate::cuda::Source {
            name: $name,
            parts: &[
                include_str!("kernels/common.cu"),
                include_str!("kernels/rows.cu"),
                include_str!(concat!("kernels/", $name, ".cu")),
            ],
        }
    };
}
use source;

#[allow(dead_code)] // what the kernels over rows and elements will call
mod call;
mod card;
mod driver;
mod nf4;
mod nvrtc;
mod store;

pub use call::{Call, Kernels, Launch, Source, emulated, kernels};
use card::card;
pub use card::unavailable;
pub use nf4::Nf4Scales;
pub use nvrtc::{Compiled, compile};
pub use store::kept;

/// All that there are.
pub const SOURCES: [Source; 1] = [nf4::SOURCE];
