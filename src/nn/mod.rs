//! The parts of a decoder, each a plain struct of tensors with a `forward`.
//!
//! Shapes: B batch, T tokens, D model width, H query heads, G key-value heads, K head
//! size, F feed-forward width, V vocabulary. Comments name the shape of each value.

mod adapter;
mod attention;
mod cross_entropy;
pub mod dropout;
mod linear;
mod mlp;
mod norm;
mod rope;
mod rows;

pub use adapter::{Adapter, Dora};
pub use attention::{Attention, KvCache, LayerCache};
pub use cross_entropy::cross_entropy;
pub use dropout::Mode;
pub use linear::{Linear, Weight};
pub use mlp::SwiGlu;
pub use norm::{LayerNorm, RmsNorm};
pub use rope::{Rope, RopeScaling, Rotation};
pub use rows::Rows;
