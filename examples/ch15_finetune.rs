//! A 4-bit LoRA fine-tune in one visible loop, on the checkpoint and the rows that ship
//! with the book: `cargo run --example ch15_finetune`. It is what `downhill finetune`
//! does, without its files, flags and safeguards.
use anyhow::{Context, Result, ensure};
use clap::Parser;
use downhill::data::{Batch, Dataset, Tokenizer, order};
use downhill::lora::{self, LoraConfig, Modules};
use downhill::models::{self, LoadOptions};
use downhill::nn::Mode;
use downhill::optim::{
    AdamW, Driver, Optimizer, Param, clip_grad_norm, state_bytes,
};
use downhill::schedule::{Schedule, cosine};
use downhill::train::{batch_loss, exact_match, predict};
use std::path::PathBuf;
use std::time::Instant;
use tch::{Device, Kind};

#[derive(Parser)]
struct Args {
    /// Folder of a Llama-type checkpoint with its tokenizer.
    #[arg(long, default_value = "examples/data/tiny")]
    model: PathBuf,
    /// Rows to learn, one JSON object a line.
    #[arg(long, default_value = "examples/data/dates_train.jsonl")]
    train_file: PathBuf,
    /// Rows to answer before and after.
    #[arg(long, default_value = "examples/data/dates_eval.jsonl")]
    eval_file: PathBuf,
    /// Passes over the rows.
    #[arg(long, default_value_t = 4)]
    epochs: i64,
    /// Decides adapters, order and dropout.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// A tenth of the steps, and no answers.
    #[arg(long)]
    quick: bool,
}

const BATCH: usize = 8; // rows that go through the model together
const MICRO_STEPS: usize = 1; // of these, until the optimizer steps
const MAX_NORM: f64 = 1.;
const PEAK: f64 = 5e-3;

fn main() -> Result<()> {
    let args = Args::parse();

    // The model: linear layers in 4 bits, frozen; the rest as it is.
    let options = LoadOptions {
        quantize: true,
        double_quant: true,
        kind: Kind::Float,
        device: Device::Cpu,
    };
    let mut model = models::load(&args.model, &options, &mut |_, _| ())
        .context("this needs the checkpoint that ships with the book")?;
    let tokenizer = Tokenizer::from_dir(&args.model)?;
    let vocabulary = model.config.vocab_size;
    let rows = |file| Dataset::load(file, Some(&tokenizer), 256, vocabulary);
    let (train, eval) = (rows(&args.train_file)?, rows(&args.eval_file)?);

    // Beside every linear layer two thin matrices, the only ones that are trained.
    let config = LoraConfig {
        r: 16,
        alpha: 32.,
        dropout: 0.05,
        target_modules: Modules::AllLinear,
        ..LoraConfig::default()
    };
    let bytes = model.bytes();
    let adapters =
        lora::attach(model.linears_mut(), &config, args.seed, Device::Cpu)?;
    let trained: usize = adapters.iter().map(|(_, t)| t.numel()).sum();
    let mut optimizer =
        Driver::new(AdamW::default(), Param::with_decay(adapters, |_, _| 0.));
    println!("{bytes} bytes of model, {trained} numbers to train");

    let answers = |model: &_| -> Result<f64> {
        let answers = predict(model, &tokenizer, &eval, &mut |_, _| ())?;
        let first = answers.first().context("no rows to answer")?;
        let right = exact_match(&answers);
        println!(
            "{}\n  {} (expected {})",
            first.prompt, first.answer, first.expected
        );
        println!("  exact: {:.0} % of {}", 100. * right, answers.len());
        Ok(right)
    };
    let before = if args.quick { 0. } else { answers(&model)? };

    let n = train.examples.len();
    let per_epoch = n.div_ceil(BATCH * MICRO_STEPS) as i64;
    let total = args.epochs * per_epoch;
    let schedule = cosine(PEAK, total * 3 / 100, total);
    let mut losses = vec![];
    let steps = if args.quick { (total + 9) / 10 } else { total };
    for step in 0..steps {
        let began = Instant::now();
        let lr = schedule.lr(step);

        // The rows of this step, in micro-batches.
        let (epoch, k) = ((step / per_epoch) as u64, (step % per_epoch) as usize);
        let order = order(n, args.seed, epoch, true);
        let rows = order.iter().skip(k * BATCH * MICRO_STEPS);
        let rows: Vec<_> =
            rows.take(BATCH * MICRO_STEPS).map(|&i| &train.examples[i]).collect();
        let batches: Vec<Batch> = rows.chunks(BATCH).map(Batch::collate).collect();

        // One mean over all learned tokens of the step, however they are split.
        let learned: i64 = batches.iter().map(|b| b.supervised()).sum();
        optimizer.zero_grad();
        let mut loss = 0.;
        for (i, batch) in batches.iter().enumerate() {
            let number = step as u64 * MICRO_STEPS as u64 + i as u64;
            let mode = Mode::Train { seed: args.seed, step: number };
            let part = batch_loss(&model, batch, mode)? / learned as f64;
            part.backward();
            loss += part.double_value(&[]);
        }
        ensure!(loss.is_finite(), "step {}: the loss is {loss}", step + 1);

        let norm = clip_grad_norm(optimizer.params(), MAX_NORM);
        optimizer.step(lr);

        let tokens: i64 = batches.iter().map(|b| b.tokens()).sum();
        let speed = tokens as f64 / began.elapsed().as_secs_f64();
        println!(
            "step {:4}/{total}  loss {loss:.4}  norm {norm:.3}  lr {lr:.2e}  \
             {speed:.0} tokens/s",
            step + 1
        );
        losses.push(loss);
    }

    println!("{} bytes of optimizer state", state_bytes(&optimizer));
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let tenth = losses.len().div_ceil(10);
    let (first, last) =
        (mean(&losses[..tenth]), mean(&losses[losses.len() - tenth..]));
    ensure!(last < first, "the loss went from {first} to {last}");
    if !args.quick {
        let after = answers(&model)?;
        ensure!(after > before, "{before} of the answers were right, now {after}");
    }
    Ok(())
}
