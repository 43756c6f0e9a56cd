//! One test binary, a module per chapter and per part of the library.
mod autograd;
mod ch01_sgd;
mod ch02_momentum;
mod ch03_adagrad;
mod ch04_rmsprop;
mod ch05_adam;
mod ch06_schedules;
mod ch07_clipping;
mod ch08_dropout;
mod ch09_weight_decay;
mod ch10_practice;
mod ch13_nf4;
mod checkpoint;
mod common;
mod data;
mod golden;
mod layout;
mod lora;
mod malformed;
mod memory;
mod models;
mod nn;
mod optim;
mod parity_llama;
mod parity_lora;
mod parity_nf4;
mod parity_optim;
mod parity_train;
mod quant;
mod schedule;
mod tiny;
mod train;

#[path = "../exercises/mod.rs"]
mod exercises;
