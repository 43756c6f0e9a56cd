//! Chapter 1: what must hold of gradient descent and of gradients of batches, and that
//! the known mistakes would be noticed. That `Sgd` is torch's is shown in
//! `parity_optim`.
use crate::golden::{floats, gap, json, same_bits};
use crate::parity_optim::run_with;
use downhill::optim::{Driver, Hyper, Optimizer, Param, Rule, Sgd};
use downhill::schedule::constant;
use downhill_lab::{Words, descend};
use tch::{Device, Kind, Reduction, Tensor};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    None,
    Climbs,
    ForgetsRate,
    DecayAfter,
    NormalizesGradient,
}

/// A copy of plain `Sgd` in which one mistake can be made.
struct Mutant(Mistake);

impl Rule<0> for Mutant {
    const SLOTS: [&'static str; 0] = [];

    fn update(&self, theta: &mut Tensor, g: &Tensor, _: [&mut Tensor; 0], h: Hyper) {
        use Mistake::*;
        let g = match self.0 {
            NormalizesGradient => g / (g.norm() + 1e-12),
            _ => g.shallow_clone(),
        };
        let decayed = h.wd * &*theta;
        let lr = if self.0 == ForgetsRate { 0.01 } else { h.lr };
        *theta -= if self.0 == Climbs { -lr * g } else { lr * g };
        // After the step it is the decay of another place.
        *theta -= lr * if self.0 == DecayAfter { h.wd * &*theta } else { decayed };
    }
}

fn gap_to_torch(mistake: Mistake) -> f64 {
    let golden = json("optim_sgd.json");
    let at = floats(&golden["at"]);
    let plain = golden["cases"].as_array().unwrap().iter().filter(|c| {
        c["rule"] == "sgd"
            && c["kind"] == "f64"
            && c["momentum"] == 0.
            && c["maximize"] == false
            // Elsewhere some mistakes climb out of all numbers.
            && (mistake == Mistake::None || c["problem"] == "logistic")
    });
    let gaps = plain.map(|case| {
        run_with(case, &at, |params| -> Box<dyn Optimizer> {
            Box::new(Driver::new(Mutant(mistake), params))
        })
    });
    gaps.fold(0., f64::max)
}

#[test]
fn known_mistakes_fail_the_comparison_with_torch() {
    use Mistake::*;
    let far = gap_to_torch(None);
    assert!(far < 1e-12, "{far:e} without a mistake");
    for mistake in [Climbs, ForgetsRate, DecayAfter, NormalizesGradient] {
        let far = gap_to_torch(mistake);
        assert!(far > 1e-6, "{mistake:?} is only {far:e} from torch");
    }
}

fn plain(params: Vec<Param>) -> Box<dyn Optimizer> {
    Box::new(Driver::new(Sgd::default(), params))
}

#[test]
fn on_a_quadratic_each_step_shrinks_by_the_same_factor() {
    for (curvature, lr) in [(1., 0.1), (4., 0.3), (10., 0.19), (10., 0.21)] {
        let path = descend(plain, &[3.], constant(lr), 50, |x, _| {
            (x * x).sum(Kind::Double) * curvature / 2.
        });
        for (t, x) in path.iter().enumerate() {
            let expected = 3. * f64::powi(1. - lr * curvature, t as i32);
            assert!((x[0] - expected).abs() < 1e-9 * expected.abs(), "step {t}");
        }
    }
}

#[test]
fn the_border_is_two_over_the_curvature() {
    for curvature in [0.1, 1., 7.] {
        let far = |share: f64| {
            let lr = constant(share / curvature);
            let path = descend(plain, &[1.], lr, 400, |x, _| {
                (x * x).sum(Kind::Double) * curvature / 2.
            });
            path[400][0].abs()
        };
        assert!(far(2. - 1e-3) < 1. && far(2. + 1e-3) > 1., "L = {curvature}");
    }
}

fn loss(weights: &Tensor, (x, y): (Tensor, Tensor)) -> Tensor {
    let (none, mean) = (None::<&Tensor>, Reduction::Mean);
    x.mv(weights).binary_cross_entropy_with_logits(&y, none, none, mean)
}

fn gradient(weights: &Tensor, rows: (Tensor, Tensor)) -> Tensor {
    Tensor::run_backward(&[loss(weights, rows)], &[weights], false, false).remove(0)
}

/// The mean over all single rows is the full gradient, and so is the mean over batches
/// of equal size that together are all rows.
#[test]
fn a_sample_is_an_honest_estimate() {
    let words = Words::of(["pride_and_prejudice", "persuasion"], 20).unwrap();
    let (x, y) = words.learned();
    let like = (Kind::Float, Device::Cpu);
    let weights =
        (Tensor::ones([words.width() as i64], like) * 0.01).set_requires_grad(true);
    let n = words.learn as i64 / 8 * 8;
    let part =
        |from: i64, rows: i64| (x.narrow(0, from, rows), y.narrow(0, from, rows));
    let full = gradient(&weights, part(0, n));
    for rows in [1, 8] {
        let mut sum = full.zeros_like().to_kind(Kind::Double);
        for i in 0..n / rows {
            sum += gradient(&weights, part(i * rows, rows)).to_kind(Kind::Double);
        }
        let far = gap(&(sum / (n / rows)), &full);
        assert!(far < 1e-5, "batches of {rows}: {far:e}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let words = Words::of(["pride_and_prejudice", "persuasion"], 50).unwrap();
    let run = |seed| {
        let like = (Kind::Float, Device::Cpu);
        let weights =
            Tensor::zeros([words.width() as i64], like).set_requires_grad(true);
        let named = [("weights".to_string(), weights.shallow_clone())];
        let mut optimizer = plain(Param::with_decay(named, |_, _| 0.));
        for step in 0..30 {
            optimizer.zero_grad();
            loss(&weights, words.batch(16, seed, step)).backward();
            optimizer.step(0.5);
        }
        weights.detach()
    };
    assert!(same_bits(&run(1), &run(1)) && !same_bits(&run(1), &run(2)));
}
