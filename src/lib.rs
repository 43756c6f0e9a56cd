//! *Downhill: from SGD to a 4-bit DeepSeek fine-tune, in Rust.* This is the library
//! that the chapters build up and that the `downhill` command runs on.
//!
//! | chapters | module |
//! |---|---|
//! | 1 to 5, optimizers | [`optim`] |
//! | 6, schedules | [`schedule`] |
//! | 7 to 9, clipping, dropout, weight decay | [`optim`], [`nn`] |
//! | 10, practice | [`data`], [`models`] |
//! | 11, data | [`data`] |
//! | 12, a DeepSeek checkpoint | [`checkpoint`], [`hub`], [`models`], [`generate`] |
//! | 13, 4-bit weights | [`quant`], [`autograd`], [`cuda`] |
//! | 14, LoRA | [`lora`] |
//! | 15, the fine-tune | [`train`] |
//! | all, their experiments | [`lab`] |
//!
//! Imports point down only: `lab` knows `train`; `train` and `generate` know `models`
//! and `lora`, these know `nn`, and `nn` knows the ground floor, whose modules know only
//! [`error`], [`files`] and tch. `tests/book/layout.rs` enforces it.

pub mod autograd;
pub mod checkpoint;
pub mod cuda;
pub mod data;
pub mod device;
pub mod error;
pub mod files;
pub mod generate;
pub mod hub;
pub mod lab;
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
