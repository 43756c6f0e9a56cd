//! Chapter 14: where the levels come from, what is best and how far NF4 is from it, and
//! what goes wrong. (Bytes beside bitsandbytes': `parity_nf4` and `quant`; that no
//! dequantized weight outlives its use: `memory`.)
use downhill::nn::dropout::{normal, uniform};
use downhill::nn::{Linear, Mode, Weight};
use downhill::quant::{Nf4Tensor, nf4};
use downhill_lab::Shipped;
use downhill_lab::codes::{
    Code, bits, by, error, normal_float, outliers, placed, relative_error, scaled,
};
use downhill_lab::normality::{against_normal, excess_kurtosis, jarque_bera};
use tch::{Kind, Tensor};

const OFFSET: f64 = 1. - (1. / 32. + 1. / 30.) / 2.;

fn draws(rows: i64, columns: i64, seed: u64) -> Tensor {
    let n = (rows * columns) as usize;
    Tensor::from_slice(&normal(n, seed, 0)).view([rows, columns])
}

fn through(w: &Tensor, double_quant: bool) -> Tensor {
    Nf4Tensor::quantize(w, 64, double_quant).unwrap().dequantize(Kind::Float)
}

/// The largest distance between these levels and NF4's.
fn far_from_nf4(levels: &[f64]) -> f64 {
    let pairs = levels.iter().zip(nf4::CODE);
    pairs.map(|(a, b)| (a - f64::from(b)).abs()).fold(0., f64::max)
}

#[test]
fn quantiles_give_the_levels_of_bitsandbytes() {
    let levels = normal_float(OFFSET);
    assert_eq!(levels.len(), 16);
    assert!((OFFSET - 0.9677083).abs() < 5e-8);
    // bitsandbytes takes its probabilities in f32.
    assert!(far_from_nf4(&levels) < 3e-7, "{}", far_from_nf4(&levels));
    // Not those of the ends that come to mind: the quantiles of 16 or of 15 equal bins.
    for other in [1. - 1. / 32., 1. - 1. / 30., 1. - 1. / 16.] {
        assert!(far_from_nf4(&normal_float(other)) > 1e-3);
    }
    // Eight above zero and seven below, from one curve: no mirror image.
    assert!(levels.iter().filter(|l| **l > 0.).count() == 8 && levels[7] == 0.);
}

#[test]
fn a_code_by_levels_is_the_quantizer() {
    for (rows, columns, size) in [(64, 96, 32), (64, 640, 64), (16, 4096, 4096)] {
        let w = draws(rows, columns, size as u64) * 0.02;
        let code = Code::nearest(&nf4::CODE.map(f64::from));
        let ours = code.round(&w, size);
        let q = Nf4Tensor::quantize(&w, size as usize, false).unwrap();
        let off = (ours - q.dequantize(Kind::Float)).abs() / w.abs().max();
        // Only a value on a border, to f32's rounding, may differ.
        let differ = off.gt(1e-6).sum(Kind::Double).double_value(&[]);
        assert!(differ <= 1., "{differ} of blocks of {size}");
    }
}

#[test]
fn lloyd_and_max_are_best_and_equal_use_is_not() {
    let w = draws(4096, 64, 5);
    let values = scaled(&w, 64);
    let start = normal_float(OFFSET);
    let nf4 = Code::nearest(&start);
    let best = Code::lloyd(&start, &values, |_| false);
    let pinned = Code::lloyd(&start, &values, |x| x == 0. || x.abs() == 1.);
    let equal = Code::equal_use(16, &values);
    let off = |code: &Code| relative_error(&w, &code.round(&w, 64));
    assert!(off(&best) <= off(&pinned) && off(&pinned) < off(&nf4));
    assert!(off(&nf4) < off(&equal), "{} {}", off(&nf4), off(&equal));
    for level in [-1., 0., 1.] {
        assert!(pinned.levels.contains(&level));
    }
    // The same from another start: a minimum, not where it began.
    let even: Vec<f64> = (0..16).map(|i| f64::from(i) / 7.5 - 1.).collect();
    let again = Code::lloyd(&even, &values, |_| false);
    assert!((off(&again) / off(&best) - 1.).abs() < 1e-3);
    // Equal use is what carries four bits; NF4 carries less.
    let carried = |code: &Code| bits(&code.shares(&[w.copy()], 64));
    assert!((carried(&equal) - 4.).abs() < 1e-3, "{}", carried(&equal));
    assert!(carried(&nf4) < 3.97 && carried(&best) < 3.97);
    assert_eq!(bits(&[0.25; 4]), 2.);
}

#[test]
fn nf4_has_nearly_the_least_absolute_error_at_64() {
    let w = draws(8192, 64, 6);
    let values = scaled(&w, 64);
    let start = normal_float(OFFSET);
    let keep: fn(f64) -> bool = |x| x == 0. || x.abs() == 1.;
    let least = Code::lloyd_absolute(&start, &values, keep);
    let off = |code: &Code| code.absolute_error(&w, 64);
    let nf4 = off(&Code::nearest(&start));
    assert!(off(&least) <= nf4 && nf4 < 1.005 * off(&least), "{nf4}");
    // Any of its inner levels moved makes it worse.
    for i in (1..15).filter(|i| *i != 7) {
        for by in [-0.01, 0.01] {
            let mut levels = least.levels.clone();
            levels[i] += by;
            assert!(off(&Code::nearest(&levels)) > off(&least), "{i} {by}");
        }
    }
    // The table that bitsandbytes has under the name of AF4 is not it.
    assert!(off(&Code::af4()) > 1.02 * nf4);
    // In long blocks the quantiles are off.
    let long = scaled(&w, 4096);
    let least = Code::lloyd_absolute(&start, &long, keep);
    let off = |code: &Code| code.absolute_error(&w, 4096);
    assert!(off(&Code::nearest(&start)) > 1.05 * off(&least));
}

#[test]
fn the_table_called_af4_was_made_without_rounding_to_zero() {
    let values = scaled(&draws(8192, 64, 6), 64);
    let below = |x: f64| values.partition_point(|v| v.0 < x) as f64;
    // Of what a level stands for, the share that lies below it: a half, where the
    // absolute error is least.
    let share = |code: &Code, i: usize| {
        let (low, high) = (code.borders[i - 1], code.borders[i]);
        (below(code.levels[i]) - below(low)) / (below(high) - below(low))
    };
    let rounded = Code::af4();
    let mut made = rounded.clone();
    (made.borders[6], made.borders[7]) = (0., 0.);
    for i in (1..15).filter(|i| *i != 7) {
        let (made, rounded) = (share(&made, i), share(&rounded, i));
        assert!((made - 0.5).abs() < 0.02, "{i} {made}");
        assert!(
            (rounded - 0.5).abs() > 0.1 || ![6, 8].contains(&i),
            "{i} {rounded}"
        );
    }
}

#[test]
fn errors_grow_with_the_block_and_not_with_the_scale() {
    let w = [draws(512, 4096, 7)];
    for code in [Code::nearest(&normal_float(OFFSET)), Code::int4(), Code::fp4()] {
        let at = |size| error(&w, &by(&code), size).unwrap();
        let all: Vec<f64> = [32, 64, 256, 1024, 4096].map(at).to_vec();
        assert!(all.is_sorted(), "{all:?}");
        let scaled = [&w[0] * 1e-4];
        let there = error(&scaled, &by(&code), 64).unwrap();
        assert!((there / at(64) - 1.).abs() < 1e-6);
    }
}

#[test]
fn blocks_placed_otherwise_are_as_good() {
    let w = draws(256, 1024, 8);
    let round = by(&Code::nearest(&normal_float(OFFSET)));
    assert_eq!(placed(&round, &w, 0).unwrap(), round(&w, 64).unwrap());
    let off = |shift| relative_error(&w, &placed(&round, &w, shift).unwrap());
    for shift in [1, 9, 63] {
        assert_ne!(off(shift), off(0));
        assert!((off(shift) / off(0) - 1.).abs() < 0.01);
    }
}

#[test]
fn one_large_weight_spoils_its_block() {
    for code in [Code::nearest(&normal_float(OFFSET)), Code::int4(), Code::fp4()] {
        let line = outliers(&code, &draws(256, 64, 9));
        let (near, far) = (line[0].1, line[line.len() - 1].1);
        // In the end the others round to nothing.
        assert!(near < 0.2 && far > 0.5 && far <= 1. + 1e-6, "{near} {far}");
    }
}

#[test]
fn zeros_come_back_as_zero_but_not_through_quantized_scales() {
    let w = draws(64, 4096, 10);
    let _ = w.narrow(0, 0, 8).fill_(0.);
    let zeros = |double_quant| through(&w, double_quant).narrow(0, 0, 8);
    assert_eq!(zeros(false).abs().max().double_value(&[]), 0.);
    // absmax 0 is the farthest from the mean of all: at -1 of its block of scales, for
    // which the nearest level is -0.993. What is left, times the level -1.
    let q = Nf4Tensor::quantize(&w, 64, false).unwrap();
    let mean = q.absmax().mean(Kind::Double).double_value(&[]);
    let left = -(1. - 0.99296875) * mean;
    for end in [zeros(true).min(), zeros(true).max()] {
        let found = end.double_value(&[]);
        assert!((found / left - 1.).abs() < 1e-3, "{found}, not {left}");
    }
}

#[test]
fn a_small_update_is_lost_on_quantized_weights() {
    let w = draws(128, 512, 11) * 0.05;
    let update = draws(128, 4, 12).matmul(&draws(4, 512, 13));
    let update = &update * (w.norm() / update.norm() * 0.005);
    let kept = |under: &Tensor| {
        let now = through(&(under + &update), false) - through(under, false);
        let part = (now * &update).sum(Kind::Double);
        (part / update.square().sum(Kind::Double)).double_value(&[])
    };
    let (four, whole) = (kept(&through(&w, false)), kept(&w));
    assert!(four < 0.3 && (0.5..1.5).contains(&whole), "{four} {whole}");
}

#[test]
fn the_gradient_is_that_of_the_dequantized_weight() {
    // Square, so that a forgotten transpose is not found by its shape.
    let q = Nf4Tensor::quantize(&(draws(64, 64, 14) * 0.1), 64, true).unwrap();
    let dense = Linear::dense(q.dequantize(Kind::Float), None);
    let four = Linear { weight: Weight::Nf4(q), bias: None, lora: None };
    let run = |layer: &Linear| {
        let x = draws(5, 64, 15).set_requires_grad(true);
        let y = layer.forward(&x, Mode::Eval).unwrap();
        (&y * &y.detach().sin()).sum(Kind::Float).backward();
        (y.detach(), x.grad())
    };
    let ((y, dx), (y2, dx2)) = (run(&four), run(&dense));
    assert!(relative_error(&y2, &y) < 1e-6 && relative_error(&dx2, &dx) < 1e-6);
}

#[test]
fn the_pages_are_unread_and_four_bits_cost_little() {
    let mut shipped = Shipped::load().unwrap();
    let [before, none] = shipped.judge().unwrap();
    assert!((2.0..5.0).contains(&before) && none.abs() < 1e-5, "{before} {none}");
    for (_, linear) in shipped.model.linears_mut() {
        let Weight::Dense(w) = &linear.weight else { panic!("quantized") };
        let q = Nf4Tensor::quantize(w, 64, true).unwrap();
        linear.weight = Weight::Nf4(q);
    }
    assert!(shipped.weights().is_empty());
    let [after, far] = shipped.judge().unwrap();
    assert!(
        (after - before).abs() < 0.1 && (0.0..0.1).contains(&far),
        "{after} {far}"
    );
}

#[test]
fn normality_is_told_from_its_absence() {
    let limit = jarque_bera(&draws(4000, 192, 16));
    let limit = limit.quantile_scalar(0.95, 0, false, "linear");
    let failed = |w: &Tensor| {
        let failed = jarque_bera(w).gt_tensor(&limit).mean(Kind::Double);
        failed.double_value(&[])
    };
    let share = failed(&(draws(4000, 192, 17) * 7. + 3.));
    assert!((0.03..0.07).contains(&share), "{share}");
    let flat = Tensor::from_slice(&uniform(500 * 192, 1., 18, 0)).view([500, 192]);
    assert!(failed(&flat) > 0.9 && failed(&draws(500, 192, 19).pow_(3)) > 0.99);
    assert!((excess_kurtosis(&flat) + 1.2).abs() < 0.02);
    assert!(excess_kurtosis(&draws(500, 192, 20)).abs() < 0.1);
    let line = against_normal(&(draws(1000, 200, 21) * 0.3 - 5.));
    assert!(line.iter().all(|(a, b)| (a - b).abs() < 0.3), "{line:?}");
}
