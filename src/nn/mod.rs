//! The parts of a decoder, each a plain struct of tensors with a `forward`.
//!
//! Shapes: B batch, T tokens, N tokens of all rows, D model width, H query heads, G
//! key-value heads, K head size, R latent, F feed-forward width, E experts, V vocabulary.
//! Comments name the shape of each value.

mod adapter;
mod attention;
mod cache;
mod cross_entropy;
pub mod dropout;
pub mod grouped;
mod linear;
mod mla;
mod mlp;
mod moe;
mod norm;
mod rope;
mod rows;
mod stack;
mod together;

pub use adapter::{Adapter, Dora, Length};
pub use attention::{Attention, Dropping, Gqa};
pub use cache::{KvCache, LayerCache};
pub use cross_entropy::{cross_entropy, tokens_at_once};
pub use dropout::Mode;
pub use linear::{Linear, Weight};
pub use mla::{Mla, Query};
pub use mlp::SwiGlu;
pub use moe::{FeedForward, Moe, Router, Routing, Score};
pub use norm::{LayerNorm, RmsNorm};
pub use rope::{Rope, RopeScaling, Rotation};
pub use rows::Rows;
