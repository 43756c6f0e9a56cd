//! Chapter 12, data: `cargo run --example ch12_data`.
//! A row from the file to the batch: its tokens, what is learned of them, and padding.
use anyhow::Result;
use downhill::data::{Batch, Example, Grouping, IGNORED, Plan};
use downhill::nn::Mode;
use downhill::plot::Chart;
use downhill::train::batch_loss;
use downhill_lab::rows::{marked, tiny};
use downhill_lab::shipped;
use tch::no_grad;

/// The share of places that hold padding if each of these batches is a rectangle as wide
/// as its longest row.
fn padding(batches: &[Vec<u32>]) -> f64 {
    let (mut tokens, mut places) = (0., 0.);
    for batch in batches {
        let longest = batch.iter().max().copied().unwrap_or(0);
        tokens += f64::from(batch.iter().sum::<u32>());
        places += f64::from(longest) * batch.len() as f64;
    }
    1. - tokens / places
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");

    // # What a row becomes
    // A prompt and its completion, tokenized apart, with a BOS in front and the EOS behind.
    // A label is an id, or -100 where nothing is learned: by position, never by id.
    let tokenizer = shipped::tokenizer()?;
    let rows = shipped::dates("train")?.examples;
    let row = &rows[1];
    println!("{}", marked(row, &tokenizer)?); // what is learned in double brackets
    println!("ids    {:?}", row.ids);
    println!("labels {:?}", row.labels);
    let tokens: usize = rows.iter().map(|row| row.ids.len()).sum();
    let learned: usize = rows.iter().map(Example::supervised).sum();
    println!("{} rows, {tokens} tokens, {learned} of them learned", rows.len());

    // # What a character costs
    // The tokenizer's list of merges comes from English novels. Other text falls apart
    // into bytes, and length, memory and time are spent on them.
    for text in
        ["It is a truth universally acknowledged", "凡是有财产的单身汉", "18200215"]
    {
        let ids = tokenizer.encode(text, false)?;
        let characters = text.chars().count();
        println!("{characters:2} characters, {:2} tokens: {text}", ids.len());
    }

    // # Padding
    // Rows of unequal length in a rectangle: at random, sorted by length among neighbours,
    // or packed end to end into strips, the longest rows first.
    let mut lengths = vec![];
    for e in shipped::paragraphs(400)? {
        lengths.push(e.ids.len() as u32);
    }
    let n = lengths.len();
    let mean = lengths.iter().sum::<u32>() as usize / n;
    let mut lines = [vec![], vec![], vec![]];
    println!("rows in a batch: share of padding at random, by length, packed");
    for size in [4, 8, 16, 32] {
        let alone = Plan::new(n, lengths.clone(), Grouping::Alone, 0, true);
        let by_length = Grouping::ByLength(size);
        let by_length = Plan::new(n, lengths.clone(), by_length, 0, true);
        let mut shares = vec![];
        for plan in [alone, by_length] {
            let mut order = vec![];
            for k in 0..plan.packs() {
                order.push(lengths[plan.pack(k)[0] as usize]);
            }
            let batches: Vec<Vec<u32>> =
                order.chunks(size).map(<[u32]>::to_vec).collect();
            shares.push(padding(&batches));
        }
        // A strip is as long as so many rows are on average, or as its longest row.
        let strip = size * mean;
        let packed = Plan::new(n, lengths.clone(), Grouping::Packed(strip), 0, true);
        let places = (packed.packs() * strip) as f64;
        shares.push(1. - lengths.iter().sum::<u32>() as f64 / places);
        println!("  {size:2}: {:.2} {:.2} {:.2}", shares[0], shares[1], shares[2]);
        for (line, share) in lines.iter_mut().zip(shares) {
            line.push((size as f64, share));
        }
    }
    let mut chart = Chart::new("Paragraphs of Alice", "rows in a batch", "padding");
    for (name, line) in ["at random", "by length", "packed"].into_iter().zip(lines) {
        chart = chart.line(name, line);
    }

    // # Packed is padded
    // Here rows lie end to end, and attention stays within its row: the loss of a batch is
    // that of its rows one by one. Without walls a row leans on the one before it.
    let model = tiny()?;
    let some: Vec<&Example> = rows.iter().take(if quick { 4 } else { 32 }).collect();
    let batch = Batch::collate(&some);
    let learned = batch.supervised() as f64;
    let together = no_grad(|| batch_loss(&model, &batch, Mode::Eval))?;
    let mut alone = 0.;
    for row in &some {
        let batch = Batch::collate(&[row]);
        alone +=
            no_grad(|| batch_loss(&model, &batch, Mode::Eval))?.double_value(&[]);
    }
    println!("end to end {:.6}", together.double_value(&[]) / learned);
    println!("one by one {:.6}", alone / learned);
    let one_row = Batch { lengths: vec![batch.tokens()], ..batch };
    let mixed = no_grad(|| batch_loss(&model, &one_row, Mode::Eval))?;
    println!("no walls   {:.6}", mixed.double_value(&[]) / learned);

    // # What goes wrong
    // The pad token of most DeepSeek checkpoints is their EOS. Whoever masks it by its id
    // masks the end of each answer, and the model never learns to stop.
    let pad = tokenizer.eos_id();
    let mut by_id = row.clone();
    for label in &mut by_id.labels {
        if *label == pad {
            *label = IGNORED;
        }
    }
    println!("by position {}", marked(row, &tokenizer)?.replace('\n', " "));
    println!("by id       {}", marked(&by_id, &tokenizer)?.replace('\n', " "));

    let figure = chart.log_x().y_range(0., 1.).draw()?;
    figure.save("target/figures/ch12_data.svg")?;
    println!("figure: target/figures/ch12_data.svg");
    Ok(())
}
