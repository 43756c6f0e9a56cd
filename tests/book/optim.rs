//! The driver: state by name, absent gradients, saving in the middle; and each rule
//! down a hill. (`parity_optim` compares the numbers with torch.optim.)
use crate::golden::same_bits;
use downhill::optim::{
    Adagrad, Adam, AdamW, AmsGrad, Driver, Hyper, Optimizer, Param, RmsProp, Rule,
    Sgd, clip_grad_norm, state_bytes,
};
use std::collections::HashMap;
use tch::{Kind, Tensor};

fn param(name: &str, values: &[f64]) -> Param {
    let tensor = Tensor::from_slice(values).set_requires_grad(true);
    Param { name: name.into(), tensor, weight_decay: 0. }
}

fn values(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t).expect("a vector")
}

const MOMENTUM: Sgd =
    Sgd { momentum: 0.9, dampening: 0., nesterov: false, maximize: false };

/// Every rule over the same parameters, with a rate that suits Rosenbrock's valley, and
/// the steps to its end.
fn table(
    start: impl Fn() -> Vec<Param>,
) -> Vec<(&'static str, f64, usize, Box<dyn Optimizer>)> {
    let nesterov = Sgd { nesterov: true, ..MOMENTUM };
    vec![
        ("SGD", 1e-3, 20_000, Box::new(Driver::new(Sgd::default(), start()))),
        ("momentum", 1e-3, 4000, Box::new(Driver::new(MOMENTUM, start()))),
        ("Nesterov", 1e-3, 4000, Box::new(Driver::new(nesterov, start()))),
        ("Adam", 2e-2, 4000, Box::new(Driver::new(Adam::default(), start()))),
        ("AMSGrad", 2e-2, 4000, Box::new(Driver::new(AmsGrad::default(), start()))),
        ("AdamW", 2e-2, 4000, Box::new(Driver::new(AdamW::default(), start()))),
    ]
}

/// The same and those that do not come to rest there, or only late.
fn all(
    start: impl Fn() -> Vec<Param>,
) -> Vec<(&'static str, f64, Box<dyn Optimizer>)> {
    let table = table(&start).into_iter();
    let mut all: Vec<_> = table.map(|(name, lr, _, o)| (name, lr, o)).collect();
    let rms = RmsProp { centered: true, momentum: 0.9, ..RmsProp::default() };
    let damped = Sgd { dampening: 0.5, ..MOMENTUM };
    let adagrad = Adagrad { lr_decay: 0.01, ..Adagrad::default() };
    let amsgrad = AdamW(AmsGrad::default());
    all.push(("dampened", 1e-3, Box::new(Driver::new(damped, start()))));
    all.push(("Adagrad", 0.1, Box::new(Driver::new(adagrad, start()))));
    all.push(("RMSprop", 1e-3, Box::new(Driver::new(RmsProp::default(), start()))));
    all.push(("centered", 1e-3, Box::new(Driver::new(rms, start()))));
    all.push(("AdamW, AMSGrad", 2e-2, Box::new(Driver::new(amsgrad, start()))));
    all
}

fn descend(o: &mut dyn Optimizer, lr: f64, steps: usize, f: fn(&Tensor) -> Tensor) {
    for _ in 0..steps {
        o.zero_grad();
        f(&o.params()[0].tensor).backward();
        o.step(lr);
    }
}

fn parabola(x: &Tensor) -> Tensor {
    let slopes = Tensor::from_slice(&[1., 20.]);
    ((x - 1.).square() * slopes).sum(Kind::Double)
}

fn rosenbrock(x: &Tensor) -> Tensor {
    let (x, y) = (x.get(0), x.get(1));
    (&x - 1.).square() + (y - x.square()).square() * 100.
}

#[test]
fn every_rule_finds_the_optimum() {
    let start = || vec![param("x", &[-1.2, 1.5])];
    for (name, lr, _, mut o) in table(start) {
        descend(&mut *o, lr.max(1e-2), 2000, parabola);
        let found = values(&o.params()[0].tensor.detach());
        let far = found.iter().map(|x| (x - 1.).abs()).fold(0., f64::max);
        assert!(far < 1e-6, "{name}: parabola, ended at {found:?}");
    }
    for (name, lr, steps, mut o) in table(start) {
        descend(&mut *o, lr, steps, rosenbrock);
        let found = values(&o.params()[0].tensor.detach());
        let far = found.iter().map(|x| (x - 1.).abs()).fold(0., f64::max);
        assert!(far < 1e-2, "{name}: Rosenbrock, ended at {found:?}");
    }
}

#[test]
fn maximize_climbs() {
    let start = || vec![param("x", &[-1.2, 1.5])];
    let up = Adam { maximize: true, ..Adam::default() };
    let climbers: [(f64, Box<dyn Optimizer>); 3] = [
        (1e-2, Box::new(Driver::new(Sgd { maximize: true, ..MOMENTUM }, start()))),
        (2e-2, Box::new(Driver::new(up, start()))),
        (2e-2, Box::new(Driver::new(AdamW(up), start()))),
    ];
    for (lr, mut o) in climbers {
        descend(&mut *o, lr, 2000, |x| -parabola(x));
        let found = values(&o.params()[0].tensor.detach());
        assert!(found.iter().all(|x| (x - 1.).abs() < 1e-6), "{found:?}");
    }
}

#[test]
fn runs_repeat_to_the_bit() {
    let start = || vec![param("x", &[-1.2, 1.5])];
    for ((name, lr, mut a), (.., mut b)) in all(start).into_iter().zip(all(start)) {
        descend(&mut *a, lr, 100, rosenbrock);
        descend(&mut *b, lr, 100, rosenbrock);
        assert!(same_bits(&a.params()[0].tensor, &b.params()[0].tensor), "{name}");
    }
}

/// A copy: `state()` shows the live tensors.
fn saved(o: &dyn Optimizer) -> HashMap<String, Tensor> {
    o.state().into_iter().map(|(k, t)| (k, t.copy())).collect()
}

#[test]
fn saved_in_the_middle_and_loaded_goes_on_to_the_same_bits() {
    let start = || vec![param("x", &[-1.2, 1.5])];
    for (((name, lr, mut whole), (.., mut first)), (.., mut second)) in
        all(start).into_iter().zip(all(start)).zip(all(start))
    {
        descend(&mut *whole, lr, 60, rosenbrock);
        descend(&mut *first, lr, 25, rosenbrock);
        let middle = first.params()[0].tensor.detach();
        second.load_state(&saved(&*first)).unwrap();
        let mut resumed = second.params()[0].tensor.shallow_clone();
        tch::no_grad(|| resumed.copy_(&middle));
        descend(&mut *second, lr, 35, rosenbrock);
        assert!(same_bits(&whole.params()[0].tensor, &resumed), "{name}");
        let (a, b) = (saved(&*whole), saved(&*second));
        assert_eq!(a.len(), b.len());
        for (key, t) in a {
            assert!(same_bits(&t, &b[&key]), "{name}: {key}");
        }
        // Loading copies: what was saved does not move with the run.
        assert!(!same_bits(&middle, &resumed), "{name}");
    }
}

#[test]
fn what_is_loaded_is_not_shared() {
    let mut a = Driver::new(Adam::default(), vec![param("x", &[1.])]);
    descend(&mut a, 0.1, 2, |x| x.square().sum(Kind::Double));
    let kept = saved(&a);
    let before: Vec<_> = kept.iter().map(|(k, t)| (k.clone(), t.copy())).collect();
    let mut b = Driver::new(Adam::default(), vec![param("x", &[1.])]);
    b.load_state(&kept).unwrap();
    descend(&mut b, 0.1, 2, |x| x.square().sum(Kind::Double));
    for (key, t) in before {
        assert!(same_bits(&t, &kept[&key]), "{key} changed under its owner");
    }
}

#[test]
fn a_parameter_without_gradient_is_passed_over() {
    let params = vec![param("used", &[1.]), param("idle", &[5.])];
    let mut o = Driver::new(Adam::default(), params);
    let loss = |o: &dyn Optimizer, i: usize| o.params()[i].tensor.square();
    for _ in 0..3 {
        o.zero_grad();
        loss(&o, 0).backward();
        o.step(0.1);
    }
    assert_eq!(values(&o.params()[1].tensor.detach()), [5.]);
    assert!(o.state().iter().all(|(k, _)| !k.starts_with("idle")));
    // Its own count starts at its own first step: bias correction depends on it.
    o.zero_grad();
    loss(&o, 1).backward();
    o.step(0.1);
    let state = saved(&o);
    assert_eq!(state["idle.t"].int64_value(&[]), 1);
    assert_eq!(state["used.t"].int64_value(&[]), 3);
    let moved = 5. - o.params()[1].tensor.double_value(&[0]);
    assert!((moved - 0.1).abs() < 1e-8, "Adam's first step is lr, was {moved}");
    // A gradient of zero is not an absent one: momentum still rolls.
    let used = o.params()[0].tensor.double_value(&[0]);
    o.zero_grad();
    (&o.params()[0].tensor * 0.).sum(Kind::Double).backward();
    o.step(0.1);
    assert_ne!(o.params()[0].tensor.double_value(&[0]), used);
    assert_eq!(saved(&o)["used.t"].int64_value(&[]), 4);
}

#[test]
fn zero_grad_forgets_and_does_not_zero() {
    let mut o = Driver::new(Sgd::default(), vec![param("x", &[1.])]);
    o.params()[0].tensor.square().backward();
    o.zero_grad();
    assert!(!o.params()[0].tensor.grad().defined());
    o.step(1.);
    assert_eq!(o.params()[0].tensor.double_value(&[0]), 1.);
    o.params()[0].tensor.square().backward();
    o.params()[0].tensor.square().backward();
    assert_eq!(values(&o.params()[0].tensor.grad()), [4.], "accumulates between");
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_changes_nothing() {
    let start = || vec![param("x", &[1., 2.]), param("y", &[3.])];
    let mut a = Driver::new(Adam::default(), start());
    for p in a.params() {
        p.tensor.square().sum(Kind::Double).backward();
    }
    a.step(0.1);
    let good = saved(&a);
    let copy = || good.iter().map(|(k, t)| (k.clone(), t.copy())).collect();
    let faults: [(&str, fn(&mut HashMap<String, Tensor>)); 5] = [
        ("z.m", |s| drop(s.insert("z.m".into(), Tensor::from(0.)))),
        ("x.buffer", |s| drop(s.insert("x.buffer".into(), Tensor::from(0.)))),
        ("x.v", |s| drop(s.remove("x.v"))),
        ("x.m", |s| drop(s.insert("x.m".into(), Tensor::from_slice(&[1.; 3])))),
        ("y.t", |s| drop(s.remove("y.t"))),
    ];
    for (culprit, spoil) in faults {
        let mut bad: HashMap<String, Tensor> = copy();
        spoil(&mut bad);
        let mut fresh = Driver::new(Adam::default(), start());
        let text = fresh.load_state(&bad).expect_err(culprit).to_string();
        assert!(text.contains(culprit), "{culprit}: {text}");
        assert!(fresh.state().is_empty(), "{culprit}: half of it was loaded");
    }
    // Another algorithm's state.
    let mut sgd = Driver::new(MOMENTUM, start());
    let text = sgd.load_state(&good).expect_err("Adam's").to_string();
    assert!(text.contains("x.b") && text.contains("missing"), "{text}");
    let mut ams = Driver::new(AmsGrad::default(), start());
    let text = ams.load_state(&good).expect_err("Adam's").to_string();
    assert!(text.contains("x.v_max"), "{text}");
    Driver::new(Adam::default(), start()).load_state(&good).expect("the right one");
}

/// Names that are prefixes of one another do not share state.
#[test]
fn names_with_dots_keep_apart() {
    let start =
        || vec![param("a", &[1.]), param("a.m", &[2.]), param("a.m.v", &[3.])];
    let mut o = Driver::new(Adam::default(), start());
    for p in o.params() {
        p.tensor.square().sum(Kind::Double).backward();
    }
    o.step(0.1);
    let state = saved(&o);
    assert_eq!(state.len(), 9);
    Driver::new(Adam::default(), start()).load_state(&state).unwrap();
}

#[test]
fn decay_is_per_parameter() {
    let named = ["w", "norm"].map(|n| (n.to_string(), param(n, &[2.]).tensor));
    let params =
        Param::with_decay(named, |name, _| if name == "w" { 0.5 } else { 0. });
    let mut o = Driver::new(AdamW::default(), params);
    for p in o.params() {
        (&p.tensor * 0.).sum(Kind::Double).backward();
    }
    o.step(0.1);
    // With a zero gradient only the decay moves: 2 (1 - 0.1 · 0.5).
    assert_eq!(o.params()[0].tensor.double_value(&[0]), 1.9);
    assert_eq!(o.params()[1].tensor.double_value(&[0]), 2.);
}

#[test]
fn clipping_returns_the_norm_before_and_keeps_the_direction() {
    let params = [param("a", &[1.]), param("b", &[1., 1.]), param("idle", &[9.])];
    let loss = &params[0].tensor.sum(Kind::Double) * 3.
        + (&params[1].tensor * Tensor::from_slice(&[0., 4.])).sum(Kind::Double);
    loss.backward();
    let grads = || [0, 1].map(|i| values(&params[i].tensor.grad())).concat();
    assert_eq!(clip_grad_norm(&params, 10.), 5.);
    assert_eq!(grads(), [3., 0., 4.], "below the bound nothing changes");
    assert_eq!(clip_grad_norm(&params, 1.), 5.);
    for (g, expected) in grads().into_iter().zip([0.6, 0., 0.8]) {
        assert!((g - expected).abs() < 1e-6, "{g} {expected}");
    }
    // Not a number: said, and nothing spread.
    let nan = [param("a", &[1.]), param("b", &[1.])];
    ((&nan[0].tensor * f64::NAN) + &nan[1].tensor).sum(Kind::Double).backward();
    assert!(clip_grad_norm(&nan, 1.).is_nan());
    assert_eq!(values(&nan[1].tensor.grad()), [1.]);
    assert_eq!(clip_grad_norm(&[param("a", &[1.])], 1.), 0.);
}

#[test]
fn state_is_counted_in_bytes() {
    let bytes = |mut o: Box<dyn Optimizer>| {
        o.params()[0].tensor.square().sum(Kind::Double).backward();
        o.step(0.1);
        state_bytes(&*o)
    };
    let start = || vec![param("x", &[1.; 10])];
    assert_eq!(bytes(Box::new(Driver::new(Adam::default(), start()))), 160);
    assert_eq!(bytes(Box::new(Driver::new(AmsGrad::default(), start()))), 240);
    assert_eq!(bytes(Box::new(Driver::new(MOMENTUM, start()))), 80);
}

/// A rule of one's own needs nothing but an update.
#[test]
fn a_rule_without_state() {
    struct Sign;
    impl Rule<0> for Sign {
        const SLOTS: [&'static str; 0] = [];
        fn update(&self, x: &mut Tensor, g: &Tensor, _: [&mut Tensor; 0], h: Hyper) {
            *x -= h.lr * g.sign();
        }
    }
    let mut o = Driver::new(Sign, vec![param("x", &[1., -2.])]);
    descend(&mut o, 0.25, 2, |x| x.square().sum(Kind::Double));
    assert_eq!(values(&o.params()[0].tensor.detach()), [0.5, -1.5]);
    let state = saved(&o);
    assert_eq!(state.keys().collect::<Vec<_>>(), ["x.t"]);
    o.load_state(&state).unwrap();
}
