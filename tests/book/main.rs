//! One test binary, a module per chapter and per part of the library.
mod data;
mod golden;
mod parity_llama;
mod parity_lora;
mod parity_nf4;
mod parity_optim;
mod parity_train;
mod train;
