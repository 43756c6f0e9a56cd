//! Chapter 16, the fine-tune: `cargo run --example ch16_finetune`.
//! Everything in one loop: a model in four bits, adapters beside all its layers, rows with
//! a mask, a schedule, a clipped gradient, AdamW. It learns to write dates.
use anyhow::Result;
use downhill::data::{Batch, Example, IGNORED, order};
use downhill::lora::{self, LoraConfig, Modules};
use downhill::nn::Mode;
use downhill::optim::{AdamW, Driver, Optimizer, Param, clip_grad_norm};
use downhill::plot::{Chart, panels};
use downhill::schedule::{Schedule, cosine};
use downhill::train::{batch_loss, exact_match, mean_loss, predict};
use downhill_lab::shipped;
use indicatif::ProgressIterator;
use tch::Device;

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");

    // # The idea in one picture
    // Two short fine-tunes. In one nothing is wrong; in the other the EOS that ends each
    // answer is not learned. By the loss that each prints they are alike.
    let mut held = Chart::new("Loss of the examination", "step", "nats a token");
    let mut right = Chart::new("Answers that are right", "step", "share");
    for (name, learn_eos) in [("as it should be", true), ("no EOS", false)] {
        // The rows: an event with its date spelled out, and the date in figures.
        let tokenizer = shipped::tokenizer()?;
        let mut rows = shipped::dates("train")?.examples;
        let mut exam = shipped::dates("eval")?;
        exam.examples.truncate(if quick { 4 } else { 20 });
        for row in &mut rows {
            if let (false, Some(last)) = (learn_eos, row.labels.last_mut()) {
                *last = IGNORED;
            }
        }

        // The code.
        // The base is frozen, its linear layers in four bits. Beside each go two thin
        // matrices, and only these are trained.
        let mut model = shipped::in_four_bits()?;
        let config = LoraConfig {
            r: 16,
            alpha: 32.,
            dropout: 0.05,
            target_modules: Modules::AllLinear,
            ..LoraConfig::default()
        };
        let adapters = lora::attach(model.linears_mut(), &config, 0, Device::Cpu)?;
        let trained: usize = adapters.iter().map(|(_, t)| t.numel()).sum();
        println!("{name}: {} rows, {trained} numbers are trained", rows.len());
        let mut optimizer = Driver::new(AdamW::default(), Param::all(adapters));

        // The loop.
        // The rate from the step alone; the gradients of two micro-batches of four rows,
        // divided by the learned tokens of the whole step; clip; step.
        let steps = if quick { 8 } else { 80 };
        let schedule = cosine(5e-3, steps / 10, steps);
        let order = order(rows.len(), 0, 0, true);
        let (mut losses, mut shares) = (vec![], vec![]);
        let mut last_ten = 0.;
        for step in (0..steps).progress_count(steps as u64) {
            let start = 8 * step as usize;
            let mut micro = vec![];
            for four in order[start..start + 8].chunks(4) {
                let four: Vec<&Example> =
                    four.iter().map(|&row| &rows[row]).collect();
                micro.push(Batch::collate(&four));
            }
            let learned: i64 = micro.iter().map(Batch::supervised).sum();
            optimizer.zero_grad();
            for (i, batch) in micro.iter().enumerate() {
                let place = 2 * step as u64 + i as u64; // each with its own dropout
                let mode = Mode::Train { seed: 0, step: place };
                let loss = batch_loss(&model, batch, mode)? / learned as f64;
                loss.backward();
                if step >= steps - 10 {
                    last_ten += loss.double_value(&[]) / 10.;
                }
            }
            clip_grad_norm(optimizer.params(), 1.);
            optimizer.step(schedule.lr(step));

            // Ask about other events, in other words: the model writes, and what it
            // wrote is compared letter by letter.
            if (step + 1) % (steps / 4) == 0 {
                let at = step as f64 + 1.;
                losses.push((at, mean_loss(&model, &exam, 16)?));
                let answers = predict(&model, &tokenizer, &exam, &mut |_, _| ())?;
                shares.push((at, exact_match(&answers)));
                if step + 1 == steps {
                    println!("  asked    {}", answers[0].prompt.trim());
                    println!("  expected {}", answers[0].expected.trim());
                    println!("  answered {}", answers[0].answer.trim());
                }
            }
        }
        let (loss, share) = (losses[losses.len() - 1].1, shares[shares.len() - 1].1);
        println!(
            "  own loss {last_ten:.2}, examination {loss:.2}, {share:.2} right"
        );
        held = held.line(name, losses);
        right = right.line(name, shares);
    }

    let figure = panels(&[held, right.y_range(0., 1.)], 2)?;
    figure.save("target/figures/ch16_finetune.svg")?;
    println!("figure: target/figures/ch16_finetune.svg");
    Ok(())
}
