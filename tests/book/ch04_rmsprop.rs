//! Chapter 4: what must hold of RMSprop (and of Adagrad beside it), and that the known
//! mistakes would be noticed. That they are torch's is shown in `parity_optim`.
use crate::golden::{floats, json, same_bits};
use crate::parity_optim::run_with;
use downhill::nn::dropout::normal;
use downhill::optim::{
    Adagrad, Driver, Hyper, Optimizer, Param, RmsProp, Rule, state_bytes,
};
use downhill_lab::Valley;
use std::collections::HashMap;
use tch::{Kind, Tensor};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    None,
    EpsilonInsideRoot,
    Uncentered,
    RateInsideBuffer,
    Corrected,
    ForgetsNothing,
}

/// A copy of `RmsProp::update` in which one mistake can be made.
struct Mutant(RmsProp, Mistake);

impl Rule<3> for Mutant {
    const SLOTS: [&'static str; 3] = ["v", "a", "b"];

    fn update(
        &self,
        theta: &mut Tensor,
        g: &Tensor,
        [v, a, b]: [&mut Tensor; 3],
        h: Hyper,
    ) {
        use Mistake::*;
        let RmsProp { alpha, eps, momentum, centered, .. } = self.0;
        let keep = if self.1 == ForgetsNothing { 1. } else { alpha };
        *v = keep * &*v + (1. - alpha) * g.square();
        *a = alpha * &*a + (1. - alpha) * g;
        let square = match centered && self.1 != Uncentered {
            true => &*v - a.square(),
            false => v.copy(),
        };
        let square = match self.1 {
            Corrected => square / (1. - alpha.powi(h.t)),
            _ => square,
        };
        let d = match self.1 {
            EpsilonInsideRoot => (square + eps).sqrt(),
            _ => square.sqrt() + eps,
        };
        if momentum == 0. {
            *theta -= h.lr * g / d;
        } else if self.1 == RateInsideBuffer {
            *b = momentum * &*b + h.lr * g / d;
            *theta -= &*b;
        } else {
            *b = momentum * &*b + g / d;
            *theta -= h.lr * &*b;
        }
    }
}

/// The largest gap to torch over the f64 cases without decay or sign.
fn gap(mistake: Mistake) -> f64 {
    let golden = json("ch04_rmsprop.json");
    let at = floats(&golden["at"]);
    let cases = golden["cases"].as_array().unwrap().iter().filter(|c| {
        c["kind"] == "f64" && c["maximize"] == false && c["weight_decay"] == 0.
    });
    let mut worst = 0f64;
    for case in cases {
        let number = |key: &str| case[key].as_f64().unwrap();
        let rule = RmsProp {
            alpha: number("alpha"),
            eps: number("eps"),
            centered: case["centered"] == true,
            momentum: number("momentum"),
            maximize: false,
        };
        worst = worst.max(run_with(case, &at, |params| -> Box<dyn Optimizer> {
            Box::new(Driver::new(Mutant(rule, mistake), params))
        }));
    }
    worst
}

#[test]
fn known_mistakes_fail_the_comparison_with_torch() {
    use Mistake::*;
    assert!(gap(None) < 1e-11, "{:e} without a mistake", gap(None));
    for mistake in [EpsilonInsideRoot, Uncentered, Corrected, ForgetsNothing] {
        let far = gap(mistake);
        assert!(far > 1e-4, "{mistake:?} is only {far:e} from torch");
    }
    // With a constant rate it makes no difference where the rate stands.
    assert!(gap(RateInsideBuffer) < 1e-9);
}

fn walk<const N: usize>(
    rule: &impl Rule<N>,
    gradients: &[f64],
    lr: f64,
) -> Vec<f64> {
    let mut theta = Tensor::from_slice(&[0f64]);
    let mut slots = rule.init(&theta);
    let step = |(i, g): (usize, &f64)| {
        let h = Hyper { t: i as i32 + 1, lr, wd: 0. };
        rule.update(&mut theta, &Tensor::from_slice(&[*g]), slots.each_mut(), h);
        theta.double_value(&[0])
    };
    gradients.iter().enumerate().map(step).collect()
}

fn draws(n: usize, seed: u64) -> Vec<f64> {
    normal(n, seed, 0).into_iter().map(f64::from).collect()
}

#[test]
fn the_scale_of_the_gradient_cancels() {
    for seed in 0..5 {
        let g = draws(100, seed);
        let louder: Vec<f64> = g.iter().map(|g| 1024. * g).collect();
        let rules = [
            RmsProp { eps: 0., ..RmsProp::default() },
            RmsProp { eps: 0., centered: true, momentum: 0.9, ..RmsProp::default() },
        ];
        for rule in rules {
            // The first centered step divides by a spread of a rounding's size.
            let (a, b) = (walk(&rule, &g, 0.1), walk(&rule, &louder, 0.1));
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-9));
        }
        let rule = Adagrad { eps: 0., ..Adagrad::default() };
        assert_eq!(walk(&rule, &g, 0.1), walk(&rule, &louder, 0.1));
    }
}

/// With a constant rate it comes as near as the rate is long and no nearer; with one
/// that falls to zero it arrives.
#[test]
fn it_arrives_if_the_rate_falls() {
    let valley = Valley::new(20., 30.);
    let start = valley.point(-3., 2.);
    for (rule, rate) in [
        (RmsProp::default(), 0.05),
        (RmsProp { alpha: 0.9, ..RmsProp::default() }, 0.05),
        (RmsProp { momentum: 0.9, ..RmsProp::default() }, 0.005),
        (RmsProp { centered: true, eps: 1e-3, ..RmsProp::default() }, 0.02),
    ] {
        let end = |falls: f64| {
            let theta = Tensor::from_slice(&start).set_requires_grad(true);
            let named = [("theta".to_string(), theta.shallow_clone())];
            let mut o = Driver::new(rule, Param::with_decay(named, |_, _| 0.));
            for t in 0..1000 {
                o.zero_grad();
                valley.height(&theta).backward();
                o.step(rate * (1. - falls * f64::from(t) / 1000.));
            }
            theta.detach().norm().double_value(&[])
        };
        let (constant, falling) = (end(0.), end(1.));
        println!("{rule:?}: {constant:.1e}, {falling:.1e}");
        assert!(constant < 4. * rate, "{rule:?} ends {constant} away");
        assert!(falling < 0.01 * rate, "{rule:?} ends {falling} away");
    }
}

#[test]
fn one_forgets_and_the_other_does_not() {
    // A loud stretch, then a quiet one: how long are the last steps?
    let loud = [100.; 500].into_iter().chain([1.; 2000]).collect::<Vec<_>>();
    let last = |path: Vec<f64>| path[2498] - path[2499];
    let rms = last(walk(&RmsProp::default(), &loud, 1.));
    let ada = last(walk(&Adagrad::default(), &loud, 1.));
    assert!((rms - 1.).abs() < 1e-3, "RMSprop has forgotten: {rms}");
    let expected = 1. / f64::sqrt(500. * 1e4 + 2000.);
    assert!((ada - expected).abs() < 1e-9, "Adagrad has not: {ada}");
}

#[test]
fn adagrads_steps_add_up_to_the_root_of_their_number() {
    let path = walk(&Adagrad::default(), &[5.; 400], 1.);
    let expected: f64 = (1..=400).map(|t| 1. / f64::from(t).sqrt()).sum();
    assert!((path[399] + expected).abs() < 1e-6);
    let decayed = Adagrad { lr_decay: 1., ..Adagrad::default() };
    let slow = walk(&decayed, &[5.; 400], 1.);
    assert!(slow[399] > path[399] / 5., "a decay on top: {}", slow[399]);
}

#[test]
fn unused_state_takes_no_room_and_all_of_it_is_saved() {
    let named = |seed: u64| {
        let theta = Tensor::from_slice(&draws(600, seed)).to_kind(Kind::Float);
        vec![("theta".to_string(), theta.set_requires_grad(true))]
    };
    let make = |rule: RmsProp| {
        let params = Param::with_decay(named(1), |_, _| 0.);
        Driver::new(rule, params)
    };
    let step = |opt: &mut dyn Optimizer, k: u64| {
        opt.zero_grad();
        let g = Tensor::from_slice(&draws(600, k)).to_kind(Kind::Float);
        (&opt.params()[0].tensor * g).sum(Kind::Float).backward();
        opt.step(0.01);
    };
    let full = RmsProp { centered: true, momentum: 0.9, ..RmsProp::default() };
    for (rule, slots) in [(RmsProp::default(), 1), (full, 3)] {
        let (mut one, mut two) = (make(rule), make(rule));
        (0..10).for_each(|k| step(&mut one, k));
        assert_eq!(state_bytes(&one), slots * 600 * 4);
        // Saved after ten steps, restored in another, and ten more of both.
        let saved: HashMap<_, _> = one.state().into_iter().collect();
        two.load_state(&saved).unwrap();
        tch::no_grad(|| {
            two.params()[0].tensor.shallow_clone().copy_(&one.params()[0].tensor)
        });
        for k in 10..20 {
            step(&mut one, k);
            step(&mut two, k);
        }
        assert!(same_bits(&one.params()[0].tensor, &two.params()[0].tensor));
    }
}
