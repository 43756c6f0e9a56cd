//! Makes everything under `examples/data/` that is not a source text: the tokenizer
//! and the weights of the tiny checkpoints, and the rows of the date task.
//!
//! `cargo run -p downhill-lab --bin make_tiny` writes all of it again (see `--help`), on the CPU,
//! but for the checkpoint with experts, which `-- --moe` writes; with `-- --steps 0` all
//! but the weights, in a few seconds.
mod balance;
pub mod dates;
mod pretrain;
mod rng;
mod shape;
mod text;
mod tokenizer;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What can be set from outside.
#[derive(Parser)]
pub struct Args {
    /// Where the source texts are.
    #[arg(long, default_value = "examples/data")]
    data: PathBuf,
    /// Where to write the checkpoint's folder and the two files of rows.
    #[arg(long, default_value = "examples/data")]
    out: PathBuf,
    /// Make `tiny_moe`, which has latent attention and experts, in place of `tiny`.
    #[arg(long)]
    moe: bool,
    /// Optimizer steps of the pretraining; 0 writes no weights.
    #[arg(long, default_value_t = 1600)]
    steps: i64,
    /// Highest learning rate of the pretraining.
    #[arg(long, default_value_t = 2.5e-3)]
    learning_rate: f64,
    /// Seed of the weights, of the order of the text, and of the rows.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<()> {
    make(&Args::parse())
}

/// Writes everything.
pub fn make(args: &Args) -> Result<()> {
    let (folder, shape) = match args.moe {
        true => ("tiny_moe", shape::experts()),
        false => ("tiny", shape::dense()),
    };
    let tiny = args.out.join(folder);
    std::fs::create_dir_all(&tiny).with_context(|| tiny.display().to_string())?;

    let (learn, exam) = dates::rows(&args.data.join("almanac.tsv"), args.seed)?;
    write_jsonl(&args.out.join("dates_train.jsonl"), &learn)?;
    write_jsonl(&args.out.join("dates_eval.jsonl"), &exam)?;
    println!(
        "{} rows to learn from, {} for the examination",
        learn.len(),
        exam.len()
    );

    let books = text::books(&args.data.join("corpus"))?;
    let tokenizer = tokenizer::train(&books, &learn, args.seed)?;
    tokenizer::write(&tokenizer, &tiny)?;
    println!("a tokenizer of {} pieces", tokenizer.get_vocab_size(true));

    if args.steps > 0 {
        let recipe = pretrain::Recipe {
            steps: args.steps,
            learning_rate: args.learning_rate,
            seed: args.seed,
        };
        let model = pretrain::run(shape, &tokenizer, &books, &recipe)?;
        pretrain::write(&model, &tokenizer, &tiny)?;
        for start in [
            "Elizabeth was",
            "Alice looked at",
            "On the fifth of May, eighteen hundred: Mary Hill of Bath.\nFair copy:",
        ] {
            let text = pretrain::continued(&model, &tokenizer, start, args.seed)?;
            println!("\n{text}");
        }
    }
    Ok(())
}

fn write_jsonl(path: &Path, rows: &[Value]) -> Result<()> {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(path, lines).with_context(|| path.display().to_string())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    std::fs::write(path, text).with_context(|| path.display().to_string())
}
