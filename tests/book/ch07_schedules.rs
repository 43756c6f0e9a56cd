//! Chapter 7: every schedule is PyTorch's or transformers', at every step; and what
//! must hold of pieces put together.
use crate::golden::{gap_of, metadata, same_bits, tensors};
use downhill::optim::{Adam, Driver};
use downhill::schedule::{
    Phase, Schedule, cosine, cosine_restarts, cosine_to, deepseek, exponential,
    hold, inverse_sqrt, line, linear, multi_step, noam, one_cycle, polynomial, step,
    warm_restarts, warmup, wsd,
};
use downhill_lab::{Text, train};
use tch::Tensor;

type Boxed = Box<dyn Schedule>;

const PEAK: f64 = 2e-4;
const TOTAL: i64 = 1000;

/// Ours under the names of the golden file.
fn ours() -> Vec<(&'static str, Boxed)> {
    vec![
        ("polynomial.0.2.1e-6", Box::new(polynomial(PEAK, 0, TOTAL, 2., 1e-6))),
        ("polynomial.30.1.1e-7", Box::new(polynomial(PEAK, 30, TOTAL, 1., 1e-7))),
        ("polynomial.100.0.5.0", Box::new(polynomial(PEAK, 100, TOTAL, 0.5, 0.))),
        ("cosine_restarts.30.3", Box::new(cosine_restarts(PEAK, 30, TOTAL, 3))),
        ("cosine_restarts.0.1", Box::new(cosine_restarts(PEAK, 0, TOTAL, 1))),
        ("warm_restarts.100.1.0", Box::new(warm_restarts(PEAK, 0., 100, 1))),
        ("warm_restarts.70.2.1e-6", Box::new(warm_restarts(PEAK, 1e-6, 70, 2))),
        ("inverse_sqrt.50.50", Box::new(inverse_sqrt(PEAK, 50, 50))),
        ("inverse_sqrt.0.10000", Box::new(inverse_sqrt(PEAK, 0, 10_000))),
        ("inverse_sqrt.20.300", Box::new(inverse_sqrt(PEAK, 20, 300))),
        ("noam.512.400", Box::new(noam(512, 400))),
        ("exponential.0.99", Box::new(exponential(PEAK, 0.99))),
        ("step.300.0.1", Box::new(step(PEAK, 300, 0.1))),
        ("multi_step.0.5", Box::new(multi_step(PEAK, &[100, 400, 401, 900], 0.5))),
        ("one_cycle", Box::new(one_cycle(PEAK, TOTAL + 1))),
        ("wsd.50.750.200", Box::new(wsd(PEAK, 50, 750, 200))),
        ("wsd.0.100.100", Box::new(wsd(PEAK, 0, 100, 100))),
        ("deepseek", Box::new(deepseek(PEAK, 20, TOTAL))),
    ]
}

fn rates(s: &dyn Schedule) -> Vec<f64> {
    (0..=TOTAL).map(|t| s.lr(t)).collect()
}

fn golden(name: &str) -> Vec<f64> {
    let mut all = tensors("ch07_schedules.safetensors");
    let series = all.remove(name).unwrap_or_else(|| panic!("no {name}"));
    Vec::<f64>::try_from(series).unwrap()
}

#[test]
fn every_step_is_that_of_pytorch_or_transformers() {
    let meta = metadata("ch07_schedules.safetensors");
    assert_eq!(meta["peak"].as_str().unwrap().parse::<f64>().unwrap(), PEAK);
    let ours = ours();
    assert_eq!(ours.len(), tensors("ch07_schedules.safetensors").len());
    for (name, s) in ours {
        let far = gap_of(&rates(s.as_ref()), &golden(name));
        assert!(far < 1e-12, "{name}: {far:e}");
    }
}

/// The comparison would notice: a warmup that begins one step late or early, a decay
/// that counts the warmup, an end that is one step off.
#[test]
fn known_mistakes_are_far_from_the_golden_series() {
    let restarts = |t: i64| cosine_restarts(PEAK, 0, TOTAL, 3).lr(t);
    let late = |t: i64| polynomial(PEAK, 30, TOTAL, 1., 1e-7).lr((t - 1).max(0));
    let early = |t: i64| wsd(PEAK, 50, 750, 200).lr(t + 1);
    let short = |t: i64| one_cycle(PEAK, TOTAL).lr(t);
    for (name, s) in [
        ("cosine_restarts.30.3", &restarts as &dyn Schedule),
        ("polynomial.30.1.1e-7", &late),
        ("wsd.50.750.200", &early),
        ("one_cycle", &short),
    ] {
        let far = gap_of(&rates(s), &golden(name));
        assert!(far > 1e-4, "{name} passes with a mistake: {far:e}");
    }
}

#[test]
fn phases_follow_one_another() {
    let s = warmup(1., 10).then(hold(1., 5)).then(line(1., 0.5, 10));
    let s = s.then(cosine_to(0.5, 0.1, 4));
    let at = [(0, 0.), (5, 0.5), (10, 1.), (14, 1.), (15, 1.), (20, 0.75)];
    let later = [(25, 0.5), (27, 0.3), (29, 0.1), (30, 0.1), (1 << 40, 0.1)];
    for (t, expected) in at.into_iter().chain(later) {
        let found = s.lr(t);
        assert!((found - expected).abs() < 1e-12, "{t}: {found}, not {expected}");
    }
    // However the pieces are put together.
    let pieces = || [warmup(1., 3), line(1., 2., 4), hold(7., 2)];
    let [a, b, c] = pieces();
    let [d, e, f] = pieces();
    let (left, right) = (a.then(b).then(c), d.then(e.then(f)));
    assert!((0..20).all(|t| left.lr(t) == right.lr(t)));
    // Of no length: passed over. Of any function.
    let s = hold(3., 0).then(Phase::new(3, |t| t as f64)).then(hold(9., 1));
    assert_eq!([0, 1, 2, 3, 4].map(|t| s.lr(t)), [0., 1., 2., 9., 9.]);
}

#[test]
fn composed_equals_written_out() {
    let parts = [
        (
            warmup(PEAK, 30).then(line(PEAK, 0., 970)),
            Box::new(linear(PEAK, 30, TOTAL)) as Boxed,
        ),
        (
            warmup(PEAK, 30).then(cosine_to(PEAK, 0., 970)),
            Box::new(cosine(PEAK, 30, TOTAL)),
        ),
    ];
    for (composed, whole) in parts {
        assert!(gap_of(&rates(&composed), &rates(whole.as_ref())) < 1e-14);
    }
}

#[test]
fn a_schedule_is_not_worn_out_by_plotting_it() {
    for (name, s) in ours() {
        let first = rates(s.as_ref());
        let backwards: Vec<f64> = (0..=TOTAL).rev().map(|t| s.lr(t)).collect();
        assert!(backwards.iter().rev().eq(&first), "{name}");
        assert!(first.iter().all(|lr| *lr >= 0.), "{name} is never negative");
    }
}

#[test]
fn odd_lengths_give_numbers() {
    for (warm, total) in [(0, 0), (0, 1), (5, 5), (9, 3)] {
        let odd: [Boxed; 6] = [
            Box::new(polynomial(1., warm, total, 2., 0.)),
            Box::new(cosine_restarts(1., warm, total, 2)),
            Box::new(deepseek(1., warm, total)),
            Box::new(wsd(1., warm, total, warm)),
            Box::new(warm_restarts(1., 0., warm, 0)),
            Box::new(inverse_sqrt(1., warm, 0)),
        ];
        for (i, s) in odd.iter().enumerate() {
            let lr: Vec<f64> = (0..20).map(|t| s.lr(t)).collect();
            let fine = lr.iter().all(|x| (0. ..=1.).contains(x));
            assert!(fine, "{i} with {warm} of {total}: {lr:?}");
        }
    }
}

/// Where transformers has an answer for odd lengths, it is ours.
#[test]
fn odd_lengths_end_where_transformers_ends() {
    let s = polynomial(1., 5, 3, 2., 0.1); // the warmup is longer than the run
    assert_eq!([4, 5, 6].map(|t| s.lr(t)), [0.8, 0.1, 0.1]);
    let s = wsd(1., 5, 10, 0); // without a decay
    assert_eq!([4, 5, 14, 15, 99].map(|t| s.lr(t)), [0.8, 1., 1., 0., 0.]);
    let s = wsd(1., 0, 0, 4);
    assert_eq!([0, 4, 5].map(|t| s.lr(t)), [1., 0., 0.]);
    assert_eq!(warmup(2., 0).lr(0), 2., "a warmup of no length has arrived");
}

#[test]
fn training_follows_the_schedule() {
    let text = Text::new(&"the hen and the hound. ".repeat(40));
    let make = |p| -> Box<dyn downhill::optim::Optimizer> {
        Box::new(Driver::new(Adam::default(), p))
    };
    let losses = |s: &dyn Schedule| {
        let run = train(&text, make, |t: i64| s.lr(t), 12, 3).unwrap();
        Tensor::from_slice(&run.losses)
    };
    let held = losses(&1e-3);
    assert!(same_bits(&held, &losses(&hold(1e-3, 5))), "a number is a constant");
    assert!(!same_bits(&held, &losses(&warmup(1e-3, 5))));
    // A rate of zero changes nothing from there on: the batches alone do.
    let stopped = losses(&hold(0., 12));
    assert!(stopped.double_value(&[11]) > held.double_value(&[11]));
}
