//! Decoder models: one block stack, and a small file per family that reads its real
//! `config.json` and names its tensors.

mod block;
mod config;
mod decoder;
mod deepseek_v2;
mod deepseek_v3;
mod ft_transformer;
mod llama;
mod load;
mod qwen2;
mod qwen3;
mod rope;
mod weights;

pub use block::Block;
pub use config::{DecoderConfig, ExpertsConfig, LatentConfig, read_config};
pub use decoder::Decoder;
pub use ft_transformer::{FtConfig, FtTransformer};
pub use load::{LoadOptions, load};
pub use weights::Weights;
