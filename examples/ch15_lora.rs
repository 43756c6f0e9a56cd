//! Chapter 15, LoRA: `cargo run --example ch15_lora`.
//! Two thin matrices beside a large one: their start, their training, and the merge.
use anyhow::Result;
use downhill::data::{Batch, Example, order};
use downhill::lora::{self, LoraConfig, Modules};
use downhill::models::Decoder;
use downhill::nn::{Mode, Weight};
use downhill::optim::{AdamW, Driver, Optimizer, Param, clip_grad_norm};
use downhill::plot::Chart;
use downhill::schedule::{Schedule, cosine};
use downhill_lab::rows::tiny;
use downhill_lab::shipped;
use indicatif::ProgressIterator;
use tch::{Device, Kind, Tensor, no_grad};

/// Mean loss per learned token of some rows, put end to end.
fn loss(model: &Decoder, rows: &[&Example]) -> Result<Tensor> {
    let batch = Batch::collate(rows);
    let see = &mut |_: &str, _: &Tensor| ();
    let hidden = model.hidden_rows(&batch.ids, &batch.lengths, Mode::Eval, see)?;
    let answers = hidden.index_select(0, &batch.learned);
    let sum = model.loss(&answers, &batch.targets)?;
    Ok(sum / batch.supervised() as f64)
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");

    // # The equation
    // y = W x + s B A x. W is frozen; A is random and B zero, so that nothing is changed at
    // the start. The gradient of A passes through B and is zero too; that of B is not.
    let like = (Kind::Float, Device::Cpu);
    let (w, x) = (Tensor::randn([6, 8], like), Tensor::randn([3, 8], like));
    let a = Tensor::randn([2, 8], like).set_requires_grad(true); // rank 2
    let b = Tensor::zeros([6, 2], like).set_requires_grad(true);
    let s = 1.;
    let plain = x.matmul(&w.tr());
    let y = &plain + s * x.matmul(&a.tr()).matmul(&b.tr());
    println!(
        "changed at the start: {}",
        (&y - &plain).abs().max().double_value(&[])
    );
    y.square().sum(Kind::Float).backward();
    let (of_a, of_b) = (a.grad().norm(), b.grad().norm());
    println!("gradient of A {:.1}", of_a.double_value(&[]));
    println!("gradient of B {:.1}", of_b.double_value(&[]));

    // # The experiments
    // The checkpoint that ships learns to write dates: beside all its linear layers two
    // matrices of rank 1 or 16, or all weights themselves, each at its best rate.
    let rows = shipped::dates("train")?.examples;
    let held_out = shipped::dates("eval")?.examples;
    let held_out: Vec<&Example> = held_out.iter().take(32).collect();
    let mut chart =
        Chart::new("Dates, 4 rows a step", "step", "held-out loss (nats)");
    let mut tuned = None;
    let steps = if quick { 4 } else { 40 };
    for (name, rank, rate) in
        [("rank 1", 1, 8e-3), ("rank 16", 16, 8e-3), ("all weights", 0, 2e-3)]
    {
        let mut model = tiny()?;
        let mut named = vec![];
        if rank == 0 {
            for (name, linear) in model.linears_mut() {
                if let Weight::Dense(w) = &linear.weight {
                    named.push((name, w.shallow_clone().set_requires_grad(true)));
                }
            }
        } else {
            let config = LoraConfig {
                r: rank,
                alpha: 32.,
                target_modules: Modules::AllLinear,
                ..LoraConfig::default()
            };
            named = lora::attach(model.linears_mut(), &config, 0, Device::Cpu)?;
        }
        let trained: usize = named.iter().map(|(_, t)| t.numel()).sum();
        let mut optimizer = Driver::new(AdamW::default(), Param::all(named));
        let schedule = cosine(rate, steps / 10, steps);
        let order = order(rows.len(), 0, 0, true);
        let mut curve = vec![];
        for step in (0..steps).progress_count(steps as u64) {
            let start = 4 * step as usize;
            let batch: Vec<&Example> =
                order[start..start + 4].iter().map(|&row| &rows[row]).collect();
            optimizer.zero_grad();
            loss(&model, &batch)?.backward();
            clip_grad_norm(optimizer.params(), 1.);
            optimizer.step(schedule.lr(step));
            if step % 4 == 3 {
                let loss = no_grad(|| loss(&model, &held_out))?;
                curve.push((step as f64 + 1., loss.double_value(&[])));
            }
        }
        println!(
            "{name:11} {trained:7} numbers, loss {:.2}",
            curve[curve.len() - 1].1
        );
        chart = chart.line(name, curve);
        if rank == 16 {
            tuned = Some(model);
        }
    }

    // # Merging
    // W + s B A is a checkpoint like any other. Once gives the model that was trained;
    // twice, as when one merges into a model that has it already, gives another one.
    let Some(mut tuned) = tuned else { return Ok(()) };
    for times in [0., 1., 2.] {
        let mut merged = tiny()?;
        for ((_, to), (_, from)) in
            merged.linears_mut().into_iter().zip(tuned.linears_mut())
        {
            if let (Weight::Dense(w), Some(l)) = (&to.weight, &from.lora) {
                let update = no_grad(|| l.scale * l.b.matmul(&l.a));
                to.weight = Weight::Dense(w + times * update);
            }
        }
        let loss = no_grad(|| loss(&merged, &held_out))?.double_value(&[]);
        println!("merged {times} times: loss {loss:.2}");
    }

    let figure = chart.draw()?;
    figure.save("target/figures/ch15_lora.svg")?;
    println!("figure: target/figures/ch15_lora.svg");
    Ok(())
}
