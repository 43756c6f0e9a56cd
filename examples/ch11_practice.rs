//! Chapter 11, practice: `cargo run --example ch11_practice`.
//! A small table, a Transformer whose tokens are its cells, and how not to fool oneself.
use anyhow::Result;
use downhill::data::{Scale, order};
use downhill::models::FtTransformer;
use downhill::nn::Mode;
use downhill::optim::{AdamW, Driver, Optimizer, Param};
use downhill::plot::Chart;
use downhill_lab::tables::{Model, Rows, Task, loss, on_noise, parts, score};
use indicatif::ProgressIterator;
use tch::{Kind, Tensor, no_grad};

/// The answers of a model, without a gradient.
fn answers(model: &Model, rows: &Rows) -> Result<Tensor> {
    Ok(no_grad(|| model.forward(&rows.x, Mode::Eval))?)
}

/// AdamW with the decay that the authors of the FT-Transformer give to each parameter.
fn optimizer(model: &Model) -> Driver<AdamW, 2> {
    let decay = |name: &str, _: &Tensor| match FtTransformer::decays(name) {
        true => 0.01,
        false => 0.,
    };
    let params = Param::with_decay(model.parameters(), decay);
    Driver::new(AdamW::default(), params)
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");

    // # Three parts
    // 442 patients; how will the disease go on? 60 of a hundred rows are for learning, 20
    // for choosing (when to stop, which model), 20 for reporting, and those are looked at
    // once. What scales the columns is fitted to the learned rows alone.
    let task = Task::read("diabetes", "progression", &["sex"])?;
    println!("{} patients", task.table.rows());

    // # Is it the right tool?
    // A linear model (no blocks) and the Transformer, each stopped where its validation
    // loss was lowest. The error is in units of the spread: 1 is what the mean gives.
    let mut chart = Chart::new("When to stop", "epoch", "loss");
    let epochs = if quick { 5 } else { 40 };
    for (name, blocks, rate) in [("linear", 0, 1e-2), ("FT-Transformer", 2, 1e-3)] {
        for seed in 0..3 {
            let (encoder, [learn, validation, test]) =
                parts(&task, Scale::Standard, seed)?;
            let model = Model::new(&encoder, blocks, seed)?;
            let mut optimizer = optimizer(&model);
            let (mut learned, mut validated) = (vec![], vec![]);
            let mut best = (f64::INFINITY, 0, f64::NAN);
            let mut step = 0;
            for epoch in (1..=epochs).progress_count(epochs) {
                let n = learn.y.size()[0] as usize;
                let mut sum = 0.;
                // All rows once, in an order of this epoch's own, 32 at a time.
                for rows in order(n, seed, epoch, true).chunks(32) {
                    let rows: Vec<i64> =
                        rows.iter().map(|row| *row as i64).collect();
                    let batch = learn.pick(&Tensor::from_slice(&rows));
                    step += 1;
                    let y = model.forward(&batch.x, Mode::Train { seed, step })?;
                    let loss = loss(&task, &y, &batch.y);
                    optimizer.zero_grad();
                    loss.backward();
                    optimizer.step(rate);
                    sum += loss.double_value(&[]) * rows.len() as f64 / n as f64;
                }
                let seen = answers(&model, &validation)?;
                let now = loss(&task, &seen, &validation.y).double_value(&[]);
                learned.push((epoch as f64, sum));
                validated.push((epoch as f64, now));
                if now < best.0 {
                    let error = score(&task, &answers(&model, &test)?, &test.y);
                    best = (now, epoch, error);
                }
            }
            let (_, stopped, error) = best;
            println!(
                "{name:14} split {seed}: error {error:.3}, stopped at {stopped}"
            );
            if blocks > 0 && seed == 0 {
                chart = chart.line("learned", learned).line("validation", validated);
            }
        }
    }

    // # How large a batch
    // If memory is short, take the batch in parts: backward adds to the gradient that is
    // there. Each part counts by its share of the rows.
    let (encoder, [learn, ..]) = parts(&task, Scale::Standard, 0)?;
    let mut gradients = vec![];
    for part in [64, 8] {
        let model = Model::new(&encoder, 2, 0)?;
        for rows in
            Tensor::arange(64, (Kind::Int64, learn.y.device())).split(part, 0)
        {
            let batch = learn.pick(&rows);
            let y = model.forward(&batch.x, Mode::Eval)?;
            let share = part as f64 / 64.;
            (loss(&task, &y, &batch.y) * share).backward();
        }
        let mut all = vec![];
        for (_, weight) in model.parameters() {
            all.push(weight.grad().flatten(0, -1));
        }
        gradients.push(Tensor::cat(&all, 0));
    }
    let far = (&gradients[0] - &gradients[1]).abs().max() / gradients[0].abs().max();
    println!(
        "64 rows at once or in 8 parts: gradients {:.0e} apart",
        far.double_value(&[])
    );

    // # What goes wrong
    // 2,000 columns of pure noise; a linear model gets the 20 that go best with the
    // answer. Chosen by all rows, test rows among them, noise seems to tell something.
    for ahead in [true, false] {
        let error = on_noise(&task, (2000, 20), ahead, 0)?;
        let by = if ahead { "all rows" } else { "the learned rows" };
        println!("columns of noise chosen by {by}: test error {error:.2}");
    }

    let figure = chart.draw()?;
    figure.save("target/figures/ch11_practice.svg")?;
    println!("figure: target/figures/ch11_practice.svg");
    Ok(())
}
