//! Chapter 5, Adam: `cargo run --example ch05_adam`. With `--out DIR` it writes the
//! page's figures and numbers; `--quick` does less of everything.
use downhill::optim::{Adam, AmsGrad, Driver, Hyper, Rule, Sgd};
use downhill::plot::{Chart, panels};
use downhill::schedule::constant;
use downhill_lab::{
    Make, Report, Run, Spread, Text, Valley, descend, draw_spread, grid, train,
    train_all,
};
use tch::{Kind, Tensor, no_grad};

// NOTEBOOK: skip
/// Chapter 5, Adam: prints short tables, and asserts what the page claims.
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

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 0;
    // NOTEBOOK: let quick: bool = true;
    // CELL: A badly scaled valley
    let mut report = Report::new("ch05_adam", out)?;
    let mut paths = Chart::new("Curvature 1 along, 100 across", "along", "across");
    for level in [0.5, 5., 20., 50., 90.] {
        paths = paths.faint(Valley::new(100., 0.).contour(level));
    }
    let mut needed = Chart::new(
        "Steps to 1/100 of the distance, each at its best rate",
        "condition number",
        "steps",
    );
    let limit: usize = if quick { 300 } else { 500 };
    println!("steps on a valley of condition number 1, 10, 100, 1000, 10000");
    let mut adam: Vec<usize> = vec![];
    for (name, make) in METHODS.into_iter().chain([("Adam, turned", ADAM)]) {
        let degrees = if name == "Adam, turned" { 30. } else { 0. };
        let key = name.to_lowercase().replace(", ", "_");
        let mut line = vec![];
        for steep in [1, 10, 100, 1000, 10_000] {
            let valley = Valley::new(f64::from(steep), degrees);
            let (steps, lr, path) = valley.fastest(make, limit);
            if steps <= limit {
                report
                    .number(&format!("valley.{key}.at{steep}.steps"), steps as f64);
                report.number(&format!("valley.{key}.at{steep}.rate"), lr);
                line.push((f64::from(steep), steps as f64));
            }
            if name == "Adam" {
                adam.push(steps);
            }
            assert!(name != "SGD" || steep < 1000 || steps > limit, "{steps}");
            if steep == 100 && degrees == 0. {
                let way = path.iter().take(steps + 1).map(|p| (p[0], p[1]));
                paths = paths.line(name, way.collect());
            }
        }
        println!(
            "  {name:12} {:?}",
            line.iter().map(|l| l.1 as i64).collect::<Vec<_>>()
        );
        needed = needed.line(name, line.clone()).points("", line);
    }
    assert!(adam.iter().all(|s| *s == adam[0]), "Adam felt the scale: {adam:?}");
    report.number("valley.limit", limit as f64);
    let needed = needed.log_x().log_y().y_range(1., 3e4); // room for the legend
    let figure = panels(&[paths.y_range(-1.2, 1.2), needed], 1)?;
    report.figure("", &figure)?;
    // NOTEBOOK: figure

    // CELL: The first steps
    let mut sizes =
        Chart::new("Step under a constant gradient", "step", "step / rate");
    println!("step in units of the rate under a constant gradient");
    for (name, make) in [
        ("corrected", ADAM),
        ("uncorrected", UNCORRECTED),
        ("frozen at t = 1", FROZEN),
    ] {
        let one = |theta: &Tensor, _| theta.sum(Kind::Double); // a gradient of 1
        let path = descend(make, &[0.], constant(1e-3), 3000, one);
        let size = |i: usize| (path[i - 1][0] - path[i][0]) / 1e-3;
        let line: Vec<(f64, f64)> =
            (1..=3000).map(|i| (i as f64, size(i))).collect();
        let most = line.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
        let ((at, most), first, last) =
            (most.unwrap_or_default(), size(1), size(3000));
        println!(
            "  {name:15} {first:.3} at 1, {most:.3} at {at}, {last:.3} at 3000"
        );
        let all = [("first", first), ("most", most), ("at", at), ("last", last)];
        report.numbers(&format!("bias.{}", name.replace(" at t = 1", "")), all);
        let steady = (most - 1.).abs() < 1e-6;
        assert!(steady == (name == "corrected"), "{name}: {most}");
        sizes = sizes.line(name, line);
    }
    let text = Text::alice()?;
    let seeds: std::ops::Range<u64> = seed..seed + if quick { 2 } else { 5 };
    let rates: Vec<f64> = grid(1e-3, 10f64.sqrt(), 3);
    let mut early =
        Chart::new("A Transformer, each at its best rate", "step", "loss (nats)");
    println!("loss of a Transformer over steps 41 to 50: median (range)");
    for (name, make) in [("corrected", ADAM), ("uncorrected", UNCORRECTED)] {
        let jobs: Vec<(Make, f64)> = rates.iter().map(|lr| (make, *lr)).collect();
        let runs = train_all(&text, &jobs, 50, seeds.clone())?;
        let ends: Vec<Spread> =
            runs.iter().map(|r| Run::curve(r, 10)[4].1).collect();
        for (lr, end) in rates.iter().zip(&ends) {
            println!("  {name:11} {end:.3} at rate {lr:.4}");
            report.number(&format!("bias.{name}.rate{lr:.0e}"), end.median);
        }
        let best = Spread::best(&ends);
        report.spread(&format!("bias.{name}"), ends[best]);
        report.number(&format!("bias.{name}.rate"), rates[best]);
        early = draw_spread(early, name, &Run::curve(&runs[best], 5), 1.);
    }
    let figure = panels(&[sizes.log_x().log_y(), early], 1)?;
    report.figure("bias", &figure)?;
    // NOTEBOOK: figure

    // CELL: Where epsilon stands
    let mut chart =
        Chart::new("First step against the gradient", "gradient", "step / rate");
    println!("first step in units of the rate, at gradients of 1e-4, 1e-8 and 0");
    for (key, name, make) in [
        ("outside", "√v̂ + ε", ADAM),
        ("inside", "√(v̂ + ε)", INSIDE),
        ("brackets", "m̂/√v̂ + ε", BRACKETS),
    ] {
        let step = |g: f64| {
            let loss = |theta: &Tensor, _| (theta * g).sum(Kind::Double);
            0. - descend(make, &[0.], constant(1.), 1, loss)[1][0]
        };
        let (at4, at8, at0) = (step(1e-4), step(1e-8), step(0.));
        println!("  {name:9} {at4:.4} {at8:.4} {at0}");
        let all = [("at4", at4), ("at8", at8), ("at0", at0)];
        report.numbers(&format!("eps.{key}"), all);
        assert!(at0.is_nan() == (key == "brackets"), "{key} at 0: {at0}");
        let gradients = (0..60).map(|k| 10f64.powf(-12. + 0.2 * f64::from(k)));
        chart = chart.line(name, gradients.map(|g| (g, step(g))).collect());
    }
    let figure = chart.log_x().log_y().y_range(1e-8, 1e3).draw()?;
    report.figure("eps", &figure)?;
    // NOTEBOOK: figure

    // CELL: A problem on which Adam fails
    const FORGETFUL: Adam =
        Adam { beta1: 0., beta2: 0.1, eps: 1e-8, maximize: false };
    const RULES: [(&str, Make); 3] = [
        ("SGD", SGD),
        ("Adam", |p| Box::new(Driver::new(FORGETFUL, p))),
        ("AMSGrad", |p| Box::new(Driver::new(AmsGrad(FORGETFUL), p))),
    ];
    let mut chart = Chart::new("-1 is the best point, 1 the worst", "step", "x");
    println!("3x, -x, -x, .. on [-1, 1]: x after 3000 steps");
    for (name, make) in RULES {
        let lr = |t: i64| 0.5 / (t as f64 + 1.).sqrt();
        let path = descend(make, &[0.], lr, 3000, |x, t| {
            let _ = no_grad(|| x.shallow_clone().clamp_(-1., 1.)); // back into [-1, 1]
            x.sum(Kind::Double) * if t % 3 == 0 { 3. } else { -1. }
        });
        let end = path[3000][0].clamp(-1., 1.);
        println!("  {name:9} {end:6.3}");
        report.number(&format!("reddi.{}", name.to_lowercase()), end);
        assert!((end > 0.9) == (name == "Adam") && end.abs() > 0.9, "{name}: {end}");
        let line =
            path.iter().enumerate().map(|(t, x)| (t as f64, x[0].clamp(-1., 1.)));
        chart = chart.line(name, line.collect());
    }
    let figure = chart.log_x().y_range(-1.1, 2.2).draw()?; // room for the legend
    report.figure("reddi", &figure)?;
    // NOTEBOOK: figure

    // CELL: Against SGD on a Transformer
    let steps: i64 = if quick { 60 } else { 100 };
    let rates: Vec<f64> = grid(1e-3, 10f64.sqrt(), 6);
    // Rate by rate, the methods in turn: if the machine slows down, it slows all.
    let jobs: Vec<(Make, f64)> =
        rates.iter().flat_map(|lr| METHODS.map(|(_, make)| (make, *lr))).collect();
    let runs: Vec<Vec<Run>> = train_all(&text, &jobs, steps, seeds.clone())?;
    let mut by_rate =
        Chart::new("After the last step", "learning rate", "held-out loss (nats)");
    let mut by_step = Chart::new("Each at its best rate", "step", "loss (nats)");
    let mut by_time = Chart::new("The same by the clock", "seconds", "loss (nats)");
    // By method: the index of the best rate, losses by rate, the curve of the best.
    let mut table: Vec<(usize, Vec<Spread>, Vec<(f64, Spread)>)> = vec![];
    println!("held-out loss after {steps} steps: median (range)");
    for (m, (name, _)) in METHODS.iter().enumerate() {
        let mine: Vec<&[Run]> =
            runs.iter().skip(m).step_by(3).map(|r| &r[..]).collect();
        let losses: Vec<Spread> = mine.iter().map(|r| Run::held_out(r)).collect();
        let best = Spread::best(&losses);
        let (lr, loss, curve) =
            (rates[best], losses[best], Run::curve(mine[best], 10));
        let times = mine.iter().flat_map(|r| r.iter().map(|r| r.seconds_per_step));
        let ms = 1e3 * Spread::of(times).median;
        println!("  {name:9} {loss:.3} at rate {lr:.4}, {ms:.1} ms a step");
        let key = format!("transformer.{}", name.to_lowercase());
        report.spread(&key, loss);
        report.numbers(&key, [("rate", lr), ("ms", ms)]);
        report.tolerance(&format!("{key}.ms"), None);
        let by: Vec<_> = rates.iter().copied().zip(losses.iter().copied()).collect();
        for (lr, loss) in &by {
            report.number(&format!("{key}.at.{lr:.0e}"), loss.median);
        }
        by_rate = draw_spread(by_rate, name, &by, 1.);
        by_step = draw_spread(by_step, name, &curve, 1.);
        by_time = draw_spread(by_time, name, &curve, ms / 1e3);
        table.push((best, losses, curve));
    }
    let blind: f64 = (text.vocabulary() as f64).ln();
    report.number("transformer.parameters", runs[0][0].parameters as f64);
    report.number("transformer.vocabulary", text.vocabulary() as f64);
    report.number("transformer.blind", blind);
    report.number("transformer.letters", text.entropy());
    report.number("transformer.steps", steps as f64);
    let embedding = text.model(0)?.named_parameters().remove(0).1;
    report.number("transformer.spread", embedding.std(true).double_value(&[]));
    report.tolerance("transformer", Some(0.1));
    let sgd_best: usize = table[0].0;
    let adam_best: usize = table[2].0;
    let (sgd, adam): (Spread, Spread) =
        (table[0].1[sgd_best], table[2].1[adam_best]);
    assert!(adam.high < sgd.low, "Adam is no better than SGD: {adam}, {sgd}");
    let goal: f64 = table[0].2.last().map_or(0., |(_, s)| s.median);
    // The end of the first ten steps whose mean is as low as that of SGD's last ten.
    let there: f64 =
        table[2].2.iter().find(|(_, s)| s.median <= goal).map_or(0., |c| c.0 + 5.);
    assert!(quick || there > 0. && there < 0.7 * steps as f64);
    println!("  Adam is where SGD ends after {there} steps");
    report.number("transformer.there", there);
    report.figure("rates", &by_rate.log_x().y_range(2., blind).draw()?)?;
    let figure = panels(&[by_step, by_time], 1)?;
    report.figure("transformer", &figure)?;
    // NOTEBOOK: figure

    // CELL: What the state costs
    println!("bytes remembered per parameter, measured after one step");
    let amsgrad: Make = |p| Box::new(Driver::new(AmsGrad::default(), p));
    for (name, make) in METHODS.into_iter().chain([("AMSGrad", amsgrad)]) {
        let run = train(&text, make, 1e-3, 1, seed)?;
        let bytes = run.state_bytes as f64 / run.parameters as f64;
        println!("  {name:9} {bytes}");
        let all = [("bytes", bytes), ("gb7b", 7. * bytes)];
        report.numbers(&format!("memory.{}", name.to_lowercase()), all);
        assert!(name != "Adam" || bytes == 8., "Adam's state: {bytes} bytes");
    }

    // CELL: What goes wrong
    // A resumed run that has m and v of a gradient of 1, but counts from 1 again.
    let mut theta: Tensor = Tensor::from_slice(&[0f64]);
    let mut slots: [Tensor; 2] = [(); 2].map(|()| Tensor::from_slice(&[1f64]));
    let mut sizes: Vec<f64> = vec![];
    for t in 1..=3000 {
        let before = theta.double_value(&[0]);
        let (g, h) = (Tensor::from_slice(&[1f64]), Hyper { t, lr: 1e-3, wd: 0. });
        Adam::default().update(&mut theta, &g, slots.each_mut(), h);
        sizes.push((before - theta.double_value(&[0])) / 1e-3);
    }
    let least: f64 = sizes.iter().copied().fold(1., f64::min);
    let hundredth: f64 = sizes[99];
    println!("m and v without t: steps {:.3}, {least:.3} at the least", sizes[0]);
    let all: [(&str, f64); 3] =
        [("first", sizes[0]), ("least", least), ("hundredth", hundredth)];
    report.numbers("bias.lost", all);
    assert!(least < 0.2 && hundredth < 0.5);
    const WRONG: [(&str, Make); 3] =
        [("frozen", FROZEN), ("inside", INSIDE), ("brackets", BRACKETS)];
    let jobs: Vec<(Make, f64)> =
        WRONG.iter().map(|(_, make)| (*make, rates[adam_best])).collect();
    println!("held-out loss of Adam with a mistake: median (range)");
    println!("  none      {:.3}", table[2].1[adam_best]);
    println!("  SGD rate  {:.3}", table[2].1[sgd_best]);
    report.number("wrong.sgd_rate", table[2].1[sgd_best].median);
    let runs: Vec<Vec<Run>> = train_all(&text, &jobs, steps, seeds.clone())?;
    for ((name, _), runs) in WRONG.iter().zip(&runs) {
        let loss = Run::held_out(runs);
        let lasted = Spread::of(runs.iter().map(|r| r.losses.len() as f64)).median;
        println!("  {name:9} {loss:.3}, {lasted} steps");
        report.spread(&format!("wrong.{name}"), loss);
        report.number(&format!("wrong.{name}.lasted"), lasted);
        let diverged = !loss.median.is_finite();
        assert!(diverged == (*name == "brackets"), "{name}: {loss}");
    }
    report.tolerance("wrong", Some(0.1));
    report.tolerance("bias", Some(0.1));
    report.tolerance("bias.corrected.at", None); // the highest of equals

    // CELL: Check the folklore
    println!("how far the loss times c leads elsewhere, as a share of the way");
    let valley = Valley::new(100., 0.);
    let mut chart =
        Chart::new("The same loss in other units", "c", "distance / way");
    for (name, make, lr) in [("Adam", ADAM, 0.1), ("SGD", SGD, 0.01)] {
        let end = |c: f64| {
            let path = descend(make, &[-9., 1.], constant(lr), 50, |p, _| {
                valley.height(p) * c
            });
            [path[50][0], path[50][1]]
        };
        let [x, y] = end(1.);
        let off =
            |c: f64| (end(c)[0] - x).hypot(end(c)[1] - y) / (x + 9.).hypot(y - 1.);
        let line: Vec<_> =
            (-12..=6).map(|k| (10f64.powi(k), off(10f64.powi(k)))).collect();
        let (up, down, tiny) = (off(1e3), off(1e-3), off(1e-9));
        println!(
            "  {name:4} {up:.1e} at 1e3, {down:.1e} at 1e-3, {tiny:.1e} at 1e-9"
        );
        let all = [("down", down), ("tiny", tiny)];
        report.numbers(&format!("scale.{}", name.to_lowercase()), all);
        assert!((down < 1e-4) == (name == "Adam"), "{name} at 1/1000: {down}");
        chart = chart.line(name, line);
    }
    let figure = chart.log_x().log_y().y_range(1e-12, 10.).draw()?;
    report.figure("scale", &figure)?;
    report.finish()?;
    // NOTEBOOK: figure

    Ok(())
}
