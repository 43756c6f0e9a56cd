//! Chapter 3, Adagrad: `cargo run --example ch03_adagrad`. The page follows. With
//! `--out DIR` it writes figures and numbers; `--quick` does less of everything.
use downhill::optim::{Adagrad, Adam, Driver, Hyper, Param, Rule, Sgd};
use downhill::plot::{Chart, panels};
use downhill_lab::{Make, Report, Spread, Words, draw_spread, grid, parallel};
use tch::{Device, Kind, Reduction, Tensor, no_grad};

// NOTEBOOK: skip
/// Chapter 3, Adagrad: prints short tables, and asserts what the page claims.
#[derive(clap::Parser)]
struct Args {
    /// Where to write the figures and the numbers.
    #[arg(long)]
    out: Option<std::path::PathBuf>,
    /// First of the seeds.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Fewer seeds.
    #[arg(long)]
    quick: bool,
}
// NOTEBOOK: end

const SGD: Make = |p| Box::new(Driver::new(Sgd::default(), p));
const MOMENTUM: Make =
    |p| Box::new(Driver::new(Sgd { momentum: 0.9, ..Sgd::default() }, p));
const ADAGRAD: Make = |p| Box::new(Driver::new(Adagrad::default(), p));
const ADAM: Make = |p| Box::new(Driver::new(Adam::default(), p));
const METHODS: [(&str, Make); 4] =
    [("SGD", SGD), ("momentum", MOMENTUM), ("Adagrad", ADAGRAD), ("Adam", ADAM)];

// ANCHOR: spiked
/// Any rule, whose first gradient comes out a hundred times too large.
struct Spiked<R>(R);

impl<R: Rule<N>, const N: usize> Rule<N> for Spiked<R> {
    const SLOTS: [&'static str; N] = R::SLOTS;

    fn init(&self, theta: &Tensor) -> [Tensor; N] {
        self.0.init(theta)
    }

    fn update(
        &self,
        theta: &mut Tensor,
        g: &Tensor,
        slots: [&mut Tensor; N],
        h: Hyper,
    ) {
        let times = if h.t == 1 { 100. } else { 1. };
        self.0.update(theta, &(g * times), slots, h);
    }
}
// ANCHOR_END: spiked

// ANCHOR: logistic
/// Logistic regression: the mean loss of weights on rows of features.
fn loss(weights: &Tensor, (x, y): (Tensor, Tensor)) -> Tensor {
    let (none, mean) = (None::<&Tensor>, Reduction::Mean);
    x.mv(weights).binary_cross_entropy_with_logits(&y, none, none, mean)
}
// ANCHOR_END: logistic

/// What a run from zero ended with.
struct Trained {
    /// Loss on the held-out rows.
    held_out: f64,
    /// Mean loss of the batches, each before it was learned from.
    met: f64,
    weights: Tensor,
    /// Of each step, η / √s of the words that were asked for.
    rates: Vec<Vec<f64>>,
}

/// A run of `steps` batches of `batch` rows; `rate` is that of a step.
fn run(
    words: &Words,
    make: Make,
    rate: impl Fn(i64) -> f64,
    (steps, batch): (i64, usize),
    seed: u64,
    follow: &[i64],
) -> Trained {
    let weights = Tensor::zeros(words.width() as i64, (Kind::Float, Device::Cpu))
        .set_requires_grad(true);
    let named = [("weights".to_string(), weights.shallow_clone())];
    let mut optimizer = make(Param::with_decay(named, |_, _| 0.));
    let (mut met, mut rates) = (0., vec![]);
    for step in 0..steps {
        optimizer.zero_grad();
        let loss = loss(&weights, words.batch(batch, seed, step));
        met += loss.double_value(&[]) / steps as f64;
        loss.backward();
        optimizer.step(rate(step));
        if !follow.is_empty() {
            let state = optimizer.state();
            let sum = |w: &i64| state[0].1.double_value(&[*w]).sqrt();
            rates.push(follow.iter().map(|w| rate(step) / sum(w)).collect());
        }
    }
    let held_out = no_grad(|| loss(&weights, words.held_out()).double_value(&[]));
    Trained { held_out, met, weights: weights.detach(), rates }
}

/// One number of runs by rate, five seeds each.
fn by_rate(
    words: &Words,
    make: Make,
    rate: (&[f64], fn(i64) -> f64),
    amount: (i64, usize),
    seeds: std::ops::Range<u64>,
    number: fn(&Trained) -> f64,
) -> downhill::Result<Vec<Spread>> {
    let each = (seeds.end - seeds.start) as usize;
    let all = parallel(rate.0.len() * each, |i| {
        let seed = seeds.start + (i % each) as u64;
        let lr = |t: i64| rate.0[i / each] * rate.1(t);
        Ok(number(&run(words, make, lr, amount, seed, &[])))
    })?;
    Ok(all.chunks(each).map(|part| Spread::of(part.iter().copied())).collect())
}

/// Key, data, steps and rows per step, and what is compared.
type Case<'a> = (&'a str, &'a Words, (i64, usize), fn(&Trained) -> f64);

fn cases<'a>(words: &'a Words, dense: &'a Words) -> [Case<'a>; 3] {
    [
        ("sparse", words, (300, 32), |t| t.held_out),
        ("dense", dense, (300, 32), |t| t.held_out),
        ("single", words, (words.learn as i64, 1), |t| t.met),
    ]
}

/// Words by the share of the paragraphs that they are in.
const BANDS: [(f64, &str); 3] = [(0.1, "frequent"), (0.01, "middle"), (0., "rare")];

fn band(share: f64) -> usize {
    BANDS.iter().position(|b| share > b.0).unwrap_or(2)
}

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 0;
    // NOTEBOOK: let quick: bool = true;
    // CELL: Which novel is it from?
    let mut report = Report::new("ch03_adagrad", out)?;
    let seeds: std::ops::Range<u64> = seed..seed + if quick { 2 } else { 5 };
    let words = Words::of(["pride_and_prejudice", "persuasion"], 3)?;
    let share: Vec<f64> = words.share();
    let (rows, width) = (words.len(), words.width());
    let filled: f64 = share.iter().sum::<f64>() / width as f64;
    let rare: f64 =
        share.iter().filter(|s| **s < 0.01).count() as f64 / width as f64;
    println!("{rows} paragraphs, {width} words in three or more of them;");
    println!("{:.2} % of the table filled", 100. * filled);
    report.numbers("data", [("rows", rows as f64), ("words", width as f64)]);
    report.number("data.passes", 300. * 32. / words.learn as f64);
    report.numbers("data", [("filled", 100. * filled), ("rare", 100. * rare)]);

    // The same rows with each word spread over features that are never zero.
    let mixed = 400;
    let dense = words.mixed(mixed, 1);
    let rates: Vec<f64> = grid(1e-3, 10f64.sqrt(), 10);
    let titles: [&str; 3] = [
        "Words, 300 batches of 32: held-out loss",
        "Mixtures, 300 batches of 32: held-out loss",
        "Words, one by one: loss met on the way",
    ];
    let mut charts: Vec<Chart> = vec![];
    let mut best: Vec<Vec<(Spread, f64)>> = vec![];
    for ((kind, data, amount, number), title) in
        cases(&words, &dense).into_iter().zip(titles)
    {
        println!("{title}: median (range)");
        let mut chart = Chart::new(title, "learning rate", "loss (nats)")
            .log_x()
            .y_range(0.1, 1.); // room for the legend
        let mut found: Vec<(Spread, f64)> = vec![];
        for (name, make) in METHODS {
            let at = (rates.as_slice(), (|_| 1.) as fn(i64) -> f64);
            let all = by_rate(data, make, at, amount, seeds.clone(), number)?;
            let i = Spread::best(&all);
            println!("  {name:9} {:.3} at rate {:.4}", all[i], rates[i]);
            let key = format!("{kind}.{}", name.to_lowercase());
            report.spread(&key, all[i]);
            report.number(&format!("{key}.rate"), rates[i]);
            let points = rates.iter().copied().zip(all.iter().copied());
            let points: Vec<(f64, Spread)> =
                points.filter(|p| p.1.high < 0.7).collect();
            chart = draw_spread(chart, name, &points, 1.);
            found.push((all[i], rates[i]));
        }
        report
            .numbers(kind, [("steps", amount.0 as f64), ("batch", amount.1 as f64)]);
        report.tolerance(kind, Some(0.05));
        charts.push(chart);
        best.push(found);
    }
    report.number("dense.width", mixed as f64);
    // One by one, the worst seed of Adagrad beats the best of SGD; in batches it does
    // not win at all.
    assert!(quick || best[2][2].0.high < best[2][0].0.low);
    for of in &best[..2] {
        let (adagrad, sgd) = (of[2].0, of[0].0);
        assert!(quick || adagrad.high > sgd.low && sgd.high > adagrad.low);
    }
    // SGD needs a far lower rate for single paragraphs than for batches, Adagrad not.
    assert!(quick || best[2][0].1 < 0.1 * best[0][0].1);
    assert!(quick || best[2][2].1 > 0.2 * best[0][2].1);
    let figure = panels(&charts, 1)?;
    report.figure("", &figure)?;
    // NOTEBOOK: figure
    // CELL: Rare words and frequent ones
    // Of each band of frequency: how far its weights came.
    println!("root mean square of the weights: frequent, middle, rare words");
    for (m, (name, make)) in METHODS.iter().enumerate() {
        let rate = best[0][m].1;
        let each = (seeds.end - seeds.start) as usize;
        let sizes: Vec<[f64; 3]> = parallel(each, |i| {
            let seed = seeds.start + i as u64;
            let end = run(&words, *make, |_| rate, (300, 32), seed, &[]).weights;
            let (mut sum, mut count) = ([0.; 3], [0.; 3]);
            for (i, share) in (0..).zip(&share) {
                let b = band(*share);
                sum[b] += end.double_value(&[i]).powi(2);
                count[b] += 1.;
            }
            Ok([0, 1, 2].map(|b| f64::sqrt(sum[b] / count[b])))
        })?;
        let all = [0, 1, 2].map(|b| Spread::of(sizes.iter().map(|s| s[b])));
        println!("  {name:9} {:.2}, {:.2}, {:.2}", all[0], all[1], all[2]);
        for (size, (_, band)) in all.iter().zip(BANDS) {
            let name = name.to_lowercase();
            report.spread(&format!("bands.{name}.{band}"), *size);
        }
        // Adagrad moves a rare word further than a frequent one, SGD far less.
        assert!(*name != "Adagrad" || all[2].low > all[0].high, "{all:?}");
        assert!(*name != "SGD" || all[2].high < all[0].low / 2., "{all:?}");
    }
    report.tolerance("bands", Some(0.1));
    // CELL: The rate of each word
    let amount = (words.learn as i64, 1);
    let rate = best[2][2].1;
    let follow: Vec<i64> = vec![0, 100, 1000];
    let followed = run(&words, ADAGRAD, |_| rate, amount, seed, &follow).rates;
    let mut chart = Chart::new(
        "Adagrad's rate, one paragraph at a time",
        "step",
        "rate / root of the sum",
    )
    .log_x()
    .log_y()
    .x_range(1., 2e4) // room for the legend
    .y_range(0.02, 2.);
    println!("Adagrad's rate of a word at the end; the share of paragraphs with it");
    for (k, word) in follow.iter().enumerate() {
        let word = *word as usize;
        let name = &words.names[word];
        let line = followed.iter().enumerate().map(|(t, r)| ((t + 1) as f64, r[k]));
        // Before the word is met the sum is 0.
        let line: Vec<(f64, f64)> = line.filter(|p| p.1.is_finite()).collect();
        let (first, last) = (line[0].1, line[line.len() - 1].1);
        println!("  {name:9} {last:.3} {:.4}", share[word]);
        let key = format!("follow.w{k}");
        let percent = 100. * share[word];
        report
            .numbers(&key, [("first", first), ("last", last), ("percent", percent)]);
        chart = chart.line(name, line);
    }
    report.tolerance("follow", Some(0.1));
    report.tolerance("follow.w2.first", Some(0.5)); // one tiny gradient
    let figure = chart.draw()?;
    report.figure("rates", &figure)?;
    // NOTEBOOK: figure

    // CELL: What goes wrong
    // The first gradient a hundred times too large: SGD is thrown far away, Adagrad
    // stays, and its rate is gone.
    const SPIKED: [(&str, Make, usize); 2] = [
        ("SGD", |p| Box::new(Driver::new(Spiked(Sgd::default()), p)), 0),
        ("Adagrad", |p| Box::new(Driver::new(Spiked(Adagrad::default()), p)), 2),
    ];
    println!("held-out loss if the first gradient is a hundred times too large");
    for (name, make, m) in SPIKED {
        let at = (rates.as_slice(), (|_| 1.) as fn(i64) -> f64);
        let all =
            by_rate(&words, make, at, (300, 32), seeds.clone(), |t| t.held_out)?;
        let i = Spread::best(&all);
        println!("  {name:9} {:.3} at rate {:.4}", all[i], rates[i]);
        let kept = rates.iter().position(|r| *r == best[0][m].1).unwrap_or(i);
        println!("            {:.3} at the usual rate", all[kept]);
        let key = format!("spike.{}", name.to_lowercase());
        report.spread(&key, all[i]);
        report.number(&format!("{key}.rate"), rates[i]);
        report.spread(&format!("{key}.usual"), all[kept]);
        let without = best[0][m].0;
        assert!(quick || all[i].low > 1.3 * without.high, "{name}: {}", all[i]);
    }
    report.tolerance("spike", Some(0.1));
    // CELL: Check the folklore
    // "The rate falls too fast": give back what the sum takes away, the root of t.
    let root: fn(i64) -> f64 = |t| ((t + 1) as f64).sqrt();
    println!("Adagrad with its rate times the root of t, and as it is");
    for (i, (kind, data, amount, number)) in
        cases(&words, &dense).into_iter().enumerate()
    {
        let at = (rates.as_slice(), root);
        let all = by_rate(data, ADAGRAD, at, amount, seeds.clone(), number)?;
        let given_back = all[Spread::best(&all)];
        // It may help a little in the first case; in the others ranges overlap.
        let as_it_is = best[i][2].0;
        assert!(quick || given_back.low < as_it_is.high);
        assert!(quick || i == 0 || as_it_is.low < given_back.high);
        let name = ["words", "mixtures", "one by one"][i];
        println!("  {name:10} {given_back:.3}, {as_it_is:.3}");
        report.spread(&format!("folklore.{kind}"), given_back);
    }
    report.tolerance("folklore", Some(0.05));
    report.finish()?;
    Ok(())
}
