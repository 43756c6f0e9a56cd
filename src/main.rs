//! The `downhill` command: parse, call the library, print.
fn main() {}
