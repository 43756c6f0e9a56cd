//! Decoder models: one block stack, and a small file per family that reads its real
//! `config.json` and names its tensors.

mod activations;
mod block;
mod cache;
mod config;
mod decoder;
mod deepseek_v2;
mod deepseek_v3;
mod ft_transformer;
mod llama;
mod load;
mod published;
mod quantization;
mod quantize;
mod qwen2;
mod qwen3;
mod rope;
mod settle;
mod survey;
mod tied;
mod weights;

pub use crate::quant::BLOCKSIZES;
pub use block::Block;
pub use cache::load_cached;
pub use config::{DecoderConfig, ExpertsConfig, LatentConfig, read_config};
pub use decoder::Decoder;
pub use ft_transformer::{FtConfig, FtTransformer};
pub use load::{LoadOptions, load};
pub use published::published;
pub use quantize::{QuantizeOptions, Quantized, Stored, dequantize, quantize};
pub use survey::{Survey, survey};
pub use weights::Weights;
