//! Chapter 3: what must hold of Adagrad and of the bags of words, and that the known
//! mistakes would be noticed. That it is torch's is shown in `parity_optim`; more of
//! its properties stand beside RMSprop's in `ch04_rmsprop`.
use crate::golden::{floats, json};
use crate::parity_optim::run_with;
use downhill::optim::{Adagrad, Driver, Hyper, Optimizer, Rule};
use downhill::schedule::constant;
use downhill_lab::{Make, Valley, Words, descend};
use tch::{Kind, Tensor};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    None,
    SumAfter,
    EpsilonInsideRoot,
    NoRoot,
    DecayFromOne,
}

/// A copy of `Adagrad::update` in which one mistake can be made.
struct Mutant(Adagrad, Mistake);

impl Rule<1> for Mutant {
    const SLOTS: [&'static str; 1] = ["s"];

    fn init(&self, theta: &Tensor) -> [Tensor; 1] {
        [theta.full_like(self.0.initial_accumulator_value)]
    }

    fn update(
        &self,
        theta: &mut Tensor,
        g: &Tensor,
        [s]: [&mut Tensor; 1],
        h: Hyper,
    ) {
        use Mistake::*;
        let before = s.copy();
        *s += g.square();
        let s = if self.1 == SumAfter { &before } else { &*s };
        let late = if self.1 == DecayFromOne { 0 } else { 1 };
        let lr = h.lr / (1. + f64::from(h.t - late) * self.0.lr_decay);
        *theta -= match self.1 {
            EpsilonInsideRoot => lr * g / (s + self.0.eps).sqrt(),
            NoRoot => lr * g / (s + self.0.eps),
            _ => lr * g / (s.sqrt() + self.0.eps),
        };
    }
}

/// The largest gap to torch over the f64 cases without weight decay or sign.
fn gap(mistake: Mistake) -> f64 {
    let golden = json("ch03_adagrad.json");
    let at = floats(&golden["at"]);
    let plain = golden["cases"].as_array().unwrap().iter().filter(|c| {
        // A sum that starts at zero makes the first step of `SumAfter` infinite.
        let started =
            mistake != Mistake::SumAfter || c["initial_accumulator_value"] != 0.;
        let plain = c["kind"] == "f64" && c["maximize"] == false;
        plain && c["weight_decay"] == 0. && started
    });
    let mut worst = 0f64;
    for case in plain {
        let number = |key: &str| case[key].as_f64().unwrap();
        let rule = Adagrad {
            lr_decay: number("lr_decay"),
            initial_accumulator_value: number("initial_accumulator_value"),
            eps: number("eps"),
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
    assert!(gap(None) < 1e-12, "{:e} without a mistake", gap(None));
    for mistake in [SumAfter, EpsilonInsideRoot, NoRoot, DecayFromOne] {
        let far = gap(mistake);
        assert!(far > 1e-4, "{mistake:?} is only {far:e} from torch");
    }
}

#[test]
fn it_gets_to_the_bottom() {
    let make: Make = |p| Box::new(Driver::new(Adagrad::default(), p));
    for (steep, degrees) in [(1., 0.), (20., 0.), (20., 30.)] {
        let valley = Valley::new(steep, degrees);
        let start = valley.point(-3., 2.);
        let path =
            descend(make, &start, constant(3.), 1000, |p, _| valley.height(p));
        let end = valley.height_at(path.last().unwrap());
        assert!(end < 1e-4, "steep {steep} at {degrees}: a height of {end}");
    }
}

/// A first gradient a hundred times too large: the step is the usual one, and all that
/// follow are about a hundred times too short.
#[test]
fn one_large_gradient_is_never_forgotten() {
    let steps = |first: f64| {
        let rule = Adagrad::default();
        let mut theta = Tensor::from_slice(&[0f64]);
        let mut slots = rule.init(&theta);
        let step = |t: i32| {
            let before = theta.double_value(&[0]);
            let g = Tensor::from_slice(&[if t == 1 { first } else { 1. }]);
            let h = Hyper { t, lr: 1., wd: 0. };
            rule.update(&mut theta, &g, slots.each_mut(), h);
            before - theta.double_value(&[0])
        };
        (1..=50).map(step).collect::<Vec<f64>>()
    };
    let (usual, spiked) = (steps(1.), steps(100.));
    assert!((usual[0] - 1.).abs() < 1e-9 && (spiked[0] - 1.).abs() < 1e-9);
    for (t, found) in spiked.iter().enumerate().skip(1) {
        let expected = 1. / (1e4 + t as f64).sqrt();
        assert!((found - expected).abs() < 1e-9, "step {t}: {found}");
    }
}

#[test]
fn an_absent_feature_costs_nothing() {
    // A gradient of zero leaves weight and sum as they are, and later steps unchanged.
    let walk = |gradients: &[f64]| {
        let rule = Adagrad::default();
        let mut theta = Tensor::from_slice(&[1f64]);
        let mut slots = rule.init(&theta);
        for (i, g) in gradients.iter().enumerate() {
            let h = Hyper { t: i as i32 + 1, lr: 0.3, wd: 0. };
            rule.update(&mut theta, &Tensor::from_slice(&[*g]), slots.each_mut(), h);
        }
        theta.double_value(&[0])
    };
    assert_eq!(walk(&[2., -1., 4.]), walk(&[0., 2., 0., 0., -1., 4., 0.]));
}

#[test]
fn bags_of_words_are_those_of_the_books() {
    let books = ["pride_and_prejudice", "alice_in_wonderland"];
    let words = Words::of(books, 5).unwrap();
    let at = |name: &str| words.names.iter().position(|w| w == name).unwrap();
    let (x, y) = words.held_out();
    assert_eq!(x.size(), [(words.len() - words.learn) as i64, words.width() as i64]);
    assert_eq!(words.names[0], "the");
    let share = words.share();
    assert!(share.is_sorted_by(|a, b| a >= b) && share[0] < 1.);
    // Whoever speaks of Darcy is not in Wonderland, and the other way round.
    let with = |name: &str, label: f64| {
        let rows = x.select(1, at(name) as i64) * y.eq(label).to_kind(Kind::Float);
        rows.sum(Kind::Double).double_value(&[])
    };
    assert!(with("darcy", 0.) > 10. && with("darcy", 1.) == 0.);
    assert!(with("alice", 1.) > 10. && with("alice", 0.) == 0.);
    // Batches: of the rows to learn from, the same for the same seed and step.
    let (a, b) = (words.batch(8, 1, 2).0, words.batch(8, 1, 2).0);
    assert!(a.equal(&b) && !a.equal(&words.batch(8, 1, 3).0));
    let mixed = words.mixed(20, 1);
    assert_eq!((mixed.width(), mixed.len()), (20, words.len()));
    assert!(mixed.share().iter().all(|s| *s == 1.), "no zeros are left");
    let none = Words::of(books, 1_000_000).unwrap_err().to_string();
    assert!(none.contains("1000000"), "{none}");
    let missing = Words::of(["no_such_book", books[0]], 2).unwrap_err().to_string();
    assert!(missing.contains("no_such_book"), "{missing}");
}
