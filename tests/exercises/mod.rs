//! The exercises of the book. Each has a starter with `todo!()`, a solution, and one
//! check for both. Write your answer into the starter and run
//! `cargo test --test book exercises::ch05_adam`: a starter that is still to do is
//! passed over, a wrong answer fails.
mod ch01_sgd;
mod ch02_momentum;
mod ch03_adagrad;
mod ch04_rmsprop;
mod ch05_adam;
mod ch06_transformer;
mod ch07_schedules;
mod ch08_clipping;
mod ch09_dropout;
mod ch10_weight_decay;
mod ch11_practice;
mod ch12_data;
mod ch13_checkpoint;
mod ch14_nf4;
mod ch15_lora;
mod ch16_finetune;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a check that panicked said, or `None` if it passed.
fn complaint(check: impl FnOnce()) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(check)).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
    Some(text.unwrap_or_default())
}

/// The check of a starter: to do, or solved.
fn starter(check: impl FnOnce()) {
    match complaint(check) {
        None => println!("solved"),
        Some(text) if text.contains("not yet implemented") => println!("to do"),
        Some(text) => panic!("not right yet: {text}"),
    }
}

/// A check must refuse this wrong answer; otherwise it proves nothing.
fn refused(check: impl FnOnce()) {
    let text = complaint(check).expect("the check passed a wrong answer");
    assert!(!text.contains("not yet implemented"), "this answer is to do");
}
