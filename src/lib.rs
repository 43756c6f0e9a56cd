//! *Downhill: from SGD to a 4-bit DeepSeek fine-tune, in Rust.* This is the library
//! that the chapters build up and that the `downhill` command runs on.
//!
//! | chapters | module |
//! |---|---|
//! | 1 to 5, optimizers | [`optim`] |
//! | 6, the Transformer | [`nn`], [`models`] |
//! | 7, schedules | [`schedule`] |
//! | 8 to 10, clipping, dropout, weight decay | [`optim`], [`nn`] |
//! | 11, practice | [`data`], [`models`] |
//! | 12, data | [`data`] |
//! | 13, a DeepSeek checkpoint | [`checkpoint`], [`hub`], [`models`], [`generate`] |
//! | 14, 4-bit weights | [`quant`], [`autograd`], [`cuda`] |
//! | 15, LoRA | [`lora`] |
//! | 16, the fine-tune | [`train`] |
//!
//! Imports point down only: `train` and `generate` know `models` and `lora`, these know
//! `nn`, and `nn` knows the ground floor, whose modules know only [`error`], [`files`]
//! and tch. `tests/book/layout.rs` enforces it.

pub mod autograd;
pub mod checkpoint;
pub mod cuda;
pub mod data;
pub mod device;
pub mod error;
pub mod files;
pub mod generate;
pub mod hub;
pub mod lora;
pub mod models;
pub mod nn;
pub mod optim;
pub mod plot;
pub mod quant;
pub mod schedule;
pub mod train;

pub use error::{Error, Result};
pub use tch;
