//! Chapter 5, Adam: `cargo run --example ch05_adam`. With `--out DIR` it writes the
//! page's figures and numbers; `--quick` does less of everything.
use anyhow::{Result, ensure};
use downhill::lab::{
    Make, Report, Run, Text, Valley, descend, grid, train, train_all,
};
use downhill::optim::{Adam, AmsGrad, Driver, Hyper, Rule, Sgd};
use downhill::plot::{Chart, panels};
use tch::Tensor;

// NOTEBOOK: skip
#[derive(clap::Parser)]
struct Args {
    /// Where to write the figures and the numbers.
    #[arg(long)]
    out: Option<std::path::PathBuf>,
    /// First of the seeds.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Fewer steps and seeds.
    #[arg(long)]
    quick: bool,
}
// NOTEBOOK: end

const SGD: Make = |p| Box::new(Driver::new(Sgd::default(), p));
const MOMENTUM: Make =
    |p| Box::new(Driver::new(Sgd { momentum: 0.9, ..Sgd::default() }, p));
const ADAM: Make = |p| Box::new(Driver::new(Adam::default(), p));
const METHODS: [(&str, Make); 3] =
    [("SGD", SGD), ("momentum", MOMENTUM), ("Adam", ADAM)];

// ANCHOR: variant
/// Adam with one line changed: `step(m, v, t)` gives the direction to go.
struct Variant(fn(&Tensor, &Tensor, i32) -> Tensor);

impl Rule<2> for Variant {
    const SLOTS: [&'static str; 2] = ["m", "v"];

    fn update(
        &self,
        theta: &mut Tensor,
        g: &Tensor,
        [m, v]: [&mut Tensor; 2],
        h: Hyper,
    ) {
        *m = 0.9 * &*m + 0.1 * g;
        *v = 0.999 * &*v + 0.001 * g.square();
        *theta -= h.lr * self.0(m, v, h.t);
    }
}

/// m̂ and v̂.
fn corrected(m: &Tensor, v: &Tensor, t: i32) -> (Tensor, Tensor) {
    (m / (1. - 0.9f64.powi(t)), v / (1. - 0.999f64.powi(t)))
}
// ANCHOR_END: variant

// ANCHOR: mutants
/// The moments as they are, without correcting their bias.
const UNCORRECTED: Make =
    |p| Box::new(Driver::new(Variant(|m, v, _| m / (v.sqrt() + 1e-8)), p));
/// A step count that never advances.
const FROZEN: Make = |p| {
    let step = |m: &Tensor, v: &Tensor, _| {
        let (m, v) = corrected(m, v, 1);
        m / (v.sqrt() + 1e-8)
    };
    Box::new(Driver::new(Variant(step), p))
};
/// ε inside the root.
const INSIDE: Make = |p| {
    let step = |m: &Tensor, v: &Tensor, t| {
        let (m, v) = corrected(m, v, t);
        m / (v + 1e-8).sqrt()
    };
    Box::new(Driver::new(Variant(step), p))
};
/// ε outside the quotient: `m / v.sqrt() + eps`, a missing pair of brackets.
const BRACKETS: Make = |p| {
    let step = |m: &Tensor, v: &Tensor, t| {
        let (m, v) = corrected(m, v, t);
        m / v.sqrt() + 1e-8
    };
    Box::new(Driver::new(Variant(step), p))
};
// ANCHOR_END: mutants

/// The best rate on the valley: the number of steps after which the distance to the
/// bottom stays below a hundredth of the start's, that rate, and the path.
fn fastest(valley: &Valley, make: Make, steps: i64) -> (usize, f64, Vec<Vec<f64>>) {
    let start = valley.point(-9., 1.);
    let far = |p: &Vec<f64>| !(p[0].hypot(p[1]) <= start[0].hypot(start[1]) / 100.);
    let run = |lr| {
        let path = descend(make, &start, lr, steps, |theta, _| valley.height(theta));
        (path.iter().rposition(far).map_or(0, |i| i + 1), lr, path)
    };
    let rates = grid(1e-3, 10f64.powf(0.25), 14);
    rates.into_iter().map(run).min_by_key(|r| r.0).expect("a rate")
}

fn main() -> Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let (out, seed, quick): (Option<std::path::PathBuf>, u64, bool) = (None, 0, true);
    // CELL: A badly scaled valley
    let mut report = Report::new("ch05_adam", out)?;
    let mut paths = Chart::new("curvature 1 along, 100 across", "along", "across");
    for level in [0.5, 5., 20., 50., 90.] {
        paths = paths.faint(Valley::new(100., 0.).contour(level));
    }
    let mut steps_chart =
        Chart::new("steps to a hundredth of the distance", "condition number", "steps")
            .log_x()
            .log_y();
    println!("steps by condition number, each at its best rate");
    let steepness = [1., 10., 100., 1000.];
    let limit = if quick { 200 } else { 1000 };
    let rows = METHODS.into_iter().map(|(n, m)| (n, m, 0.));
    for (name, make, degrees) in rows.chain([("Adam, turned", ADAM, 30.)]) {
        let mut line: Vec<f64> = vec![];
        for steep in steepness {
            let (steps, lr, path) = fastest(&Valley::new(steep, degrees), make, limit);
            println!("  {name:12} {steep:5} {steps:5} steps at rate {lr:.4}");
        }
    }
    Ok(())
}
