//! Chapter 4, RMSprop: `cargo run --example ch04_rmsprop`.
//! What forgetting buys, how much to remember, and a first step that is too long.
use anyhow::Result;
use downhill::optim::{Adagrad, Driver, Optimizer, Param, RmsProp};
use downhill::plot::{Chart, panels};
use downhill_lab::Text;
use indicatif::ProgressIterator;
use tch::{Device, Kind, Tensor};

/// Where the target is: back and forth, every 150 steps.
fn target(t: i64) -> f64 {
    if t / 150 % 2 == 0 { 1. } else { -1. }
}

/// How loud the gradients are: a hundred times louder in two of four stretches.
fn volume(t: i64) -> f64 {
    if t / 150 % 4 < 2 { 1. } else { 100. }
}

/// One number x follows the target by noisy gradients of 1/2 volume (x - target)^2; where
/// it is after each of the last 600, four jumps.
fn follow(
    mut optimizer: Box<dyn Optimizer>,
    rate: f64,
    steps: i64,
) -> Vec<(f64, f64)> {
    tch::manual_seed(0);
    let noise = Tensor::randn([steps], (Kind::Double, Device::Cpu)) * 0.3;
    let x = optimizer.params()[0].tensor.shallow_clone();
    let mut path = vec![];
    for t in 0..steps {
        let away = &x - target(t) + noise.get(t);
        let loss = away.square() * volume(t) / 2.;
        optimizer.zero_grad();
        loss.backward();
        optimizer.step(rate);
        path.push((t as f64, x.double_value(&[])));
    }
    path.split_off(path.len() - 600)
}

/// Mean distance from the target.
fn distance(path: &[(f64, f64)]) -> f64 {
    let away = path.iter().map(|(t, x)| (x - target(*t as i64)).abs());
    away.sum::<f64>() / path.len() as f64
}

/// A number that starts at 0, as the one parameter of an optimizer.
fn one_number() -> Vec<Param> {
    let x = Tensor::from(0f64).set_requires_grad(true);
    vec![Param::new("x", &x)]
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");
    let rmsprop = RmsProp::default();

    // # A target that moves
    // Adagrad divides by the size of all gradients so far, the loud ones too. RMSprop
    // divides by the size of the latest. Each has the best of the page's rates.
    let steps = if quick { 1200 } else { 4800 };
    let mut jumps =
        Chart::new("The last four jumps", "step", "x").y_range(-1.6, 2.6);
    let methods: [(&str, Box<dyn Optimizer>, f64); 2] = [
        ("Adagrad", Box::new(Driver::new(Adagrad::default(), one_number())), 10.),
        ("RMSprop", Box::new(Driver::new(rmsprop, one_number())), 0.32),
    ];
    for (name, optimizer, rate) in methods {
        let path = follow(optimizer, rate, steps);
        println!("{name} at rate {rate}: {:.2} from the target", distance(&path));
        jumps = jumps.line(name, path);
    }
    let late = steps - 600..steps;
    jumps = jumps.faint(late.map(|t| (t as f64, target(t))).collect());

    // # How much to remember
    // With alpha = 0.9 the mean is of about ten steps, with 0.999 of about a thousand. A
    // target that jumps asks for a short memory.
    for alpha in [0.9, 0.99, 0.999] {
        let rule = RmsProp { alpha, ..rmsprop };
        let path = follow(Box::new(Driver::new(rule, one_number())), 0.32, 1200);
        println!("alpha {alpha:<5} {:.2} from the target", distance(&path));
    }

    // # Centered, and with momentum
    // The small Transformer learns to spell. With momentum each gradient moves ten times
    // as far in all, so that the best rate is ten times lower.
    let text = Text::alice()?;
    for (name, rule, rate) in [
        ("plain", rmsprop, 1e-3),
        ("centered", RmsProp { centered: true, ..rmsprop }, 1e-3),
        ("momentum", RmsProp { momentum: 0.9, ..rmsprop }, 1e-4),
    ] {
        let model = text.model(0)?;
        let mut optimizer = Driver::new(rule, Param::all(model.named_parameters()));
        let steps = if quick { 10 } else { 50 };
        let mut last_ten = 0.;
        for step in (0..steps).progress_count(steps as u64) {
            let loss = text.loss(&model, text.batch(0, step, false))?;
            optimizer.zero_grad();
            loss.backward();
            optimizer.step(rate);
            if step >= steps - 10 {
                last_ten += loss.double_value(&[]) / 10.;
            }
        }
        println!("{name:9} loss of the last ten batches {last_ten:.2}");
    }

    // # What goes wrong
    // v starts at zero and nothing corrects it: under a gradient of 1 the first step is
    // 1 / sqrt(1 - alpha) times the rate.
    let mut first = Chart::new("Under a gradient of 1", "step", "step / rate");
    for alpha in [0.9, 0.99, 0.999] {
        let (mut v, mut sizes): (f64, _) = (0., vec![]);
        for t in 1..=1000 {
            let g = 1.;
            v = alpha * v + (1. - alpha) * g * g;
            sizes.push((f64::from(t), g / (v.sqrt() + 1e-8)));
        }
        let (first_step, tenth) = (sizes[0].1, sizes[9].1);
        println!("alpha {alpha:<5} first step {first_step:.1}, tenth {tenth:.1}");
        first = first.line(&format!("alpha {alpha}"), sizes);
    }

    let figure = panels(&[jumps, first.log_x().log_y()], 1)?;
    figure.save("target/figures/ch04_rmsprop.svg")?;
    println!("figure: target/figures/ch04_rmsprop.svg");
    Ok(())
}
