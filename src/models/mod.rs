//! Decoder models: one block stack, and a small file per family that reads its real
//! `config.json` and names its tensors.

mod config;
mod decoder;
mod ft_transformer;
mod load;
mod names;
mod weights;

pub use config::{DecoderConfig, read_config};
pub use decoder::{Block, Decoder};
pub use ft_transformer::{FtConfig, FtTransformer};
pub use load::{LoadOptions, load};
pub use names::linear_names;
pub use weights::Weights;
