//! Chapter 5, Adam: `cargo run --example ch05_adam`.
//! Two running means per weight: what they do in a valley, at the first steps, and to a
//! Transformer.
use anyhow::Result;
use downhill::optim::{Adam, Driver, Optimizer, Param, Sgd, state_bytes};
use downhill::plot::{Chart, panels};
use downhill_lab::Text;
use indicatif::ProgressIterator;
use tch::{Kind, Tensor};

/// The three rules of this chapter by their names.
fn optimizer(name: &str, params: Vec<Param>) -> Box<dyn Optimizer> {
    match name {
        "SGD" => Box::new(Driver::new(Sgd::default(), params)),
        "momentum" => {
            let rule = Sgd { momentum: 0.9, ..Sgd::default() };
            Box::new(Driver::new(rule, params))
        }
        _ => Box::new(Driver::new(Adam::default(), params)),
    }
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");

    // # A badly scaled valley
    // The loss is 1/2 (x^2 + steep * y^2). What suits the steep direction is too small for
    // the flat one, and one rate must do for both. Adam divides each by its own size.
    let mut valley = Chart::new("A valley 100 times steeper across", "x", "y");
    for steep in [1., 10., 100.] {
        let curvature = Tensor::from_slice(&[1., steep]);
        for (name, rate) in
            [("SGD", 2. / (1. + steep)), ("momentum", 0.02), ("Adam", 0.5)]
        {
            let theta = Tensor::from_slice(&[-9., 1.]).set_requires_grad(true);
            let mut optimizer = optimizer(name, vec![Param::new("theta", &theta)]);
            let mut path = vec![(-9., 1.)];
            for _ in 0..300 {
                let loss = (&curvature * theta.square()).sum(Kind::Double) / 2.;
                optimizer.zero_grad();
                loss.backward();
                optimizer.step(rate);
                path.push((theta.double_value(&[0]), theta.double_value(&[1])));
            }
            // The last step that was not within a hundredth of the way.
            let late = path.iter().rposition(|(x, y)| x.hypot(*y) > 0.09);
            println!(
                "steep {steep:3} {name:8} down in {:3} steps",
                late.unwrap_or(0) + 1
            );
            if steep == 100. {
                valley = valley.line(name, path);
            }
        }
    }

    // # The first steps
    // The rule itself, on plain numbers, under a gradient that is always 1. m and v start
    // at zero, so that both are too small at first; v, the slower mean, by far the more.
    for corrected in [true, false] {
        let (mut m, mut v) = (0., 0.);
        let mut longest = (0., 0);
        for t in 1..=3000 {
            let g = 1.;
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            let (mut m_hat, mut v_hat): (f64, f64) = (m, v);
            if corrected {
                m_hat = m / (1. - 0.9f64.powi(t));
                v_hat = v / (1. - 0.999f64.powi(t));
            }
            let step = m_hat / (v_hat.sqrt() + 1e-8);
            if step > longest.0 + 1e-6 {
                longest = (step, t);
            }
        }
        println!(
            "corrected {corrected}: longest step {:.1} rates, at {}",
            longest.0, longest.1
        );
    }

    // # Where epsilon stands
    // Beside the root it is compared with the gradient, inside with its square.
    for g in [1e-4, 1e-8] {
        let (m, v): (f64, f64) = (g, g * g);
        let beside = m / (v.sqrt() + 1e-8);
        let inside = m / (v + 1e-8).sqrt();
        println!(
            "gradient {g:.0e}: first step {beside:.4} beside, {inside:.4} inside"
        );
    }

    // # Against SGD on a Transformer
    // Two layers that learn to spell, each rule at the best of the page's rates.
    let text = Text::alice()?;
    let mut spelling = Chart::new("A small Transformer", "step", "loss (nats)");
    for (name, rate) in [("SGD", 0.1), ("momentum", 0.0316), ("Adam", 0.00316)] {
        let model = text.model(1)?;
        let mut optimizer = optimizer(name, Param::all(model.named_parameters()));
        let steps = if quick { 20 } else { 100 };
        let mut losses = vec![];
        for step in (0..steps).progress_count(steps as u64) {
            let loss = text.loss(&model, text.batch(1, step, false))?;
            optimizer.zero_grad();
            loss.backward();
            optimizer.step(rate);
            losses.push(loss.double_value(&[]));
        }
        // Of ten batches each, because a single one says little.
        let mut curve = vec![];
        for (i, ten) in losses.chunks(10).enumerate() {
            let mean = ten.iter().sum::<f64>() / ten.len() as f64;
            curve.push((10. * i as f64 + 5., mean));
        }
        // What the state costs: two means per weight, of four bytes each.
        let weights: usize =
            optimizer.params().iter().map(|p| p.tensor.numel()).sum();
        let bytes = state_bytes(optimizer.as_ref()) as f64 / weights as f64;
        let last = curve[curve.len() - 1].1;
        println!("{name:8} loss {last:.2}, {bytes:.0} bytes of state per weight");
        spelling = spelling.line(name, curve);
    }

    let figure = panels(&[valley.y_range(-1.5, 1.5), spelling], 1)?;
    figure.save("target/figures/ch05_adam.svg")?;
    println!("figure: target/figures/ch05_adam.svg");
    Ok(())
}
