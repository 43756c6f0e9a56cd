//! Checkpoints on disk: safetensors in (one file, or shards by an index; mapped into
//! memory, read tensor by tensor; 8-bit weights with their scales) and out (atomically).
//!
//! Source of the formats: the safetensors README; transformers'
//! `model.safetensors.index.json`.

pub mod atomic;
mod fp8;
pub mod fresh;
mod manifest;
mod mmap;
pub mod place;
mod rewrite;
mod sample;
mod shards;
mod stream;
mod write;

pub use manifest::{MANIFEST, Manifest};
pub use mmap::PromptFrees;
pub use rewrite::Hashes;
pub use shards::Checkpoint;
pub use stream::Writer;
pub use write::{finite, read_safetensors, save_safetensors};

use safetensors::Dtype;
use tch::Kind;

/// The tensor kind that holds a safetensors dtype, if libtorch has it.
fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        Dtype::F8_E4M3 => Kind::Float8e4m3fn,
        _ => return None,
    })
}

/// The safetensors dtype of a tensor kind.
fn dtype_of(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Double => Dtype::F64,
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Int64 => Dtype::I64,
        Kind::Int => Dtype::I32,
        Kind::Int16 => Dtype::I16,
        Kind::Int8 => Dtype::I8,
        Kind::Uint8 => Dtype::U8,
        Kind::Bool => Dtype::BOOL,
        Kind::Float8e4m3fn => Dtype::F8_E4M3,
        _ => return None,
    })
}
