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

mod adam;
mod call;
mod card;
mod clip;
mod decode;
mod driver;
mod dropout;
mod loss;
mod matvec;
mod nf4;
mod norm;
mod nvrtc;
mod rope;
mod store;
mod swiglu;

pub use adam::{AT_ONCE, AdamStep, AdamTensor};
pub use call::{Call, Kernels, Launch, Source, emulated, kernels};
use card::card;
pub use card::{capability, unavailable};
pub use dropout::{Mask, MaskedRows};
pub use matvec::Nf4Matrix;
pub use nf4::Nf4Scales;
pub use norm::Normed;
pub use nvrtc::{Compiled, compile};
pub use rope::Pairs;
pub use store::kept;

/// All that there are.
pub const SOURCES: [Source; 9] = [
    adam::SOURCE,
    clip::SOURCE,
    decode::SOURCE,
    dropout::SOURCE,
    loss::SOURCE,
    nf4::SOURCE,
    norm::SOURCE,
    rope::SOURCE,
    swiglu::SOURCE,
];
