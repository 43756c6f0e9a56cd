//! Chapter 5: what must hold of Adam, and that the known mistakes would be noticed.
//! That it is torch's Adam is shown in `parity_optim`.
use crate::golden::{floats, json, same_bits};
use crate::parity_optim::run_with;
use downhill::nn::dropout::normal;
use downhill::optim::{
    Adam, AdamW, AmsGrad, Driver, Hyper, Optimizer, Param, Rule, Sgd, state_bytes,
};
use downhill::schedule::constant;
use downhill_lab::{Make, Report, Text, Valley, descend};
use serde_json::Value;
use std::collections::HashMap;
use tch::{Kind, Tensor};

/// A copy of `Adam::update` in which one mistake can be made.
#[derive(Clone, Copy)]
struct Mutant {
    adam: Adam,
    mistake: Mistake,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    None,
    /// `m̂ / √v̂ + ε`: the brackets are missing.
    EpsilonOutsideQuotient,
    /// `m̂ / √(v̂ + ε)`.
    EpsilonInsideRoot,
    /// ε before the bias of the root is corrected.
    EpsilonBeforeCorrection,
    /// t stays 1.
    FrozenStep,
    /// t is one step behind from the second step on.
    LateStep,
    /// Only m is corrected.
    OneCorrection,
    /// β₁ and β₂ change places.
    SwappedBetas,
}

const MISTAKES: [Mistake; 7] = [
    Mistake::EpsilonOutsideQuotient,
    Mistake::EpsilonInsideRoot,
    Mistake::EpsilonBeforeCorrection,
    Mistake::FrozenStep,
    Mistake::LateStep,
    Mistake::OneCorrection,
    Mistake::SwappedBetas,
];

impl Rule<2> for Mutant {
    const SLOTS: [&'static str; 2] = ["m", "v"];

    fn update(
        &self,
        theta: &mut Tensor,
        g: &Tensor,
        [m, v]: [&mut Tensor; 2],
        Hyper { t, lr, .. }: Hyper,
    ) {
        use Mistake::*;
        let Adam { mut beta1, mut beta2, eps, .. } = self.adam;
        if self.mistake == SwappedBetas {
            (beta1, beta2) = (beta2, beta1);
        }
        let t = match self.mistake {
            FrozenStep => 1,
            LateStep => (t - 1).max(1),
            _ => t,
        };
        *m = beta1 * &*m + (1. - beta1) * g;
        *v = beta2 * &*v + (1. - beta2) * g.square();
        let m_hat = &*m / (1. - beta1.powi(t));
        let v_hat = match self.mistake {
            OneCorrection => v.copy(),
            _ => &*v / (1. - beta2.powi(t)),
        };
        *theta -= match self.mistake {
            EpsilonOutsideQuotient => lr * m_hat / v_hat.sqrt() + eps,
            EpsilonInsideRoot => lr * m_hat / (v_hat + eps).sqrt(),
            EpsilonBeforeCorrection => {
                let root = v.sqrt() + eps;
                lr * m_hat / (root / (1. - beta2.powi(t)).sqrt())
            }
            _ => lr * m_hat / (v_hat.sqrt() + eps),
        };
    }
}

/// The plain cases of torch's Adam in f64: no decay, downhill.
fn golden() -> (Vec<Value>, Vec<f64>) {
    let golden = json("ch05_adam.json");
    let plain = |c: &&Value| {
        c["rule"] == "adam"
            && c["kind"] == "f64"
            && c["weight_decay"] == 0.
            && c["maximize"] == false
    };
    let cases = golden["cases"].as_array().expect("cases");
    (cases.iter().filter(plain).cloned().collect(), floats(&golden["at"]))
}

/// The largest gap to torch over all plain cases.
fn gap(mistake: Mistake) -> f64 {
    let (cases, at) = golden();
    assert_eq!(cases.len(), 8);
    let gaps = cases.iter().map(|case| {
        let number = |key: &str| case[key].as_f64().expect("a number");
        let adam = Adam {
            beta1: number("beta1"),
            beta2: number("beta2"),
            eps: number("eps"),
            maximize: false,
        };
        let make = |params| -> Box<dyn Optimizer> {
            Box::new(Driver::new(Mutant { adam, mistake }, params))
        };
        run_with(case, &at, make)
    });
    gaps.fold(0., f64::max)
}

#[test]
fn the_mistakes_of_well_known_books_fail_the_comparison_with_torch() {
    let gap_without = gap(Mistake::None);
    assert!(gap_without < 1e-12, "{gap_without:e} without a mistake");
    for mistake in MISTAKES {
        let gap = gap(mistake);
        println!("{mistake:?}: {gap:.1e} from torch");
        assert!(gap > 1e-4, "{mistake:?} is only {gap:e} from torch");
    }
}

/// The sizes of the steps along these gradients, in units of the learning rate.
fn steps<const N: usize>(rule: &impl Rule<N>, gradients: &[f64]) -> Vec<f64> {
    let mut theta = Tensor::from_slice(&[0f64]);
    let mut slots = rule.init(&theta);
    let step = |(i, g): (usize, &f64)| {
        let before = theta.double_value(&[0]);
        let h = Hyper { t: i as i32 + 1, lr: 1e-3, wd: 0. };
        rule.update(&mut theta, &Tensor::from_slice(&[*g]), slots.each_mut(), h);
        (before - theta.double_value(&[0])) / 1e-3
    };
    gradients.iter().enumerate().map(step).collect()
}

fn wild(n: usize, seed: u64) -> Vec<f64> {
    let sizes = normal(n, seed, 1);
    let g = normal(n, seed, 0).into_iter().zip(sizes);
    g.map(|(g, size)| f64::from(g) * 10f64.powf(2. * f64::from(size))).collect()
}

#[test]
fn the_first_step_has_the_length_of_the_rate() {
    let adam = Adam::default();
    for g in [1e-5f64, -1., 3e7] {
        let expected = g / (g.abs() + adam.eps);
        for first in [steps(&adam, &[g])[0], steps(&AmsGrad(adam), &[g])[0]] {
            assert!((first - expected).abs() < 1e-9, "{first} at {g}");
        }
    }
    assert_eq!(steps(&adam, &[0.])[0], 0.);
}

#[test]
fn no_step_is_longer_than_cauchy_and_schwarz_allow() {
    for (beta1, beta2) in [(0.9, 0.999), (0.5, 0.9), (0.9, 0.95)] {
        let adam = Adam { beta1, beta2, ..Adam::default() };
        let ratio: f64 = beta1 * beta1 / beta2;
        let bound = (1. - beta1) / f64::sqrt((1. - beta2) * (1. - ratio));
        for seed in 0..20 {
            for (i, step) in steps(&adam, &wild(300, seed)).iter().enumerate() {
                // Early, m is corrected upwards by more than the root of v.
                let t = i as i32 + 1;
                let early = (1. - beta2.powi(t)).sqrt() / (1. - beta1.powi(t));
                let bound = bound * early;
                assert!(step.abs() <= bound * 1.000001, "{step} at step {t}");
            }
        }
    }
}

#[test]
fn the_scale_of_the_loss_does_not_matter() {
    let exact = |c: f64| {
        let adam = |eps| Adam { eps, ..Adam::default() };
        let g = wild(200, 3);
        let scaled: Vec<f64> = g.iter().map(|g| c * g).collect();
        assert_eq!(steps(&adam(1e-8), &g), steps(&adam(1e-8 * c), &scaled), "{c}");
    };
    // Powers of two round nothing: the steps are the same bits.
    [2f64.powi(-40), 0.5, 2., 2f64.powi(40)].into_iter().for_each(exact);
    let sgd: [f64; 2] = [1., 2.].map(|g| steps(&Sgd::default(), &[g])[0]);
    assert!((sgd[1] / sgd[0] - 2.).abs() < 1e-9, "SGD's step follows the scale");
}

#[test]
fn the_scale_of_each_coordinate_does_not_matter() {
    let make: Make =
        |p| Box::new(Driver::new(Adam { eps: 0., ..Adam::default() }, p));
    let end = |steep: f64| {
        let valley = Valley::new(steep, 0.);
        let loss = |theta: &Tensor, _| valley.height(theta);
        descend(make, &[-9., 1.], constant(0.1), 200, loss).pop().expect("a point")
    };
    let reference = end(1.);
    for steep in [4f64.powi(-3), 4., 4f64.powi(6)] {
        for (a, b) in end(steep).iter().zip(&reference) {
            assert!((a - b).abs() < 1e-12, "{a}, with curvature 1: {b}");
        }
    }
}

#[test]
fn every_rule_gets_to_the_bottom() {
    fn make<R: Rule<N> + Default + 'static, const N: usize>(
        params: Vec<Param>,
    ) -> Box<dyn Optimizer> {
        Box::new(Driver::new(R::default(), params))
    }
    let momentum: Make =
        |p| Box::new(Driver::new(Sgd { momentum: 0.9, ..Sgd::default() }, p));
    let nesterov: Make = |p| {
        let sgd = Sgd { momentum: 0.9, nesterov: true, ..Sgd::default() };
        Box::new(Driver::new(sgd, p))
    };
    let table: [(&str, Make, f64, i64); 6] = [
        ("SGD", make::<Sgd, 1>, 0.09, 300),
        ("momentum", momentum, 0.03, 150),
        ("Nesterov", nesterov, 0.03, 120),
        ("Adam", make::<Adam, 2>, 0.3, 200),
        ("AMSGrad", make::<AmsGrad, 3>, 0.3, 250),
        ("AdamW", make::<AdamW, 2>, 0.3, 200),
    ];
    for (name, make, lr, steps) in table {
        for degrees in [0., 30.] {
            let valley = Valley::new(20., degrees);
            let start = valley.point(-3., 2.);
            let path =
                descend(make, &start, constant(lr), steps, |p, _| valley.height(p));
            let end = valley.height_at(path.last().expect("a point"));
            println!("{name} at {degrees}: {end:.1e}");
            assert!(end < 1e-4, "{name} ends at a height of {end}");
        }
    }
}

fn loss_after(text: &Text, range: std::ops::Range<i64>, run: &mut Training) {
    for step in range {
        let loss = text.loss(&run.model, text.batch(1, step, false)).expect("loss");
        run.optimizer.zero_grad();
        loss.backward();
        run.optimizer.step(3e-3);
    }
}

struct Training {
    model: downhill::models::Decoder,
    optimizer: Box<dyn Optimizer>,
}

fn training(text: &Text) -> Training {
    let model = text.model(7).expect("a model");
    let params = Param::with_decay(model.named_parameters(), |_, _| 0.01);
    let optimizer = Box::new(Driver::new(AdamW::default(), params));
    Training { model, optimizer }
}

fn text() -> Text {
    Text::new(&"the quick brown fox jumps over the lazy dog. ".repeat(40))
}

fn same(a: &Training, b: &Training) -> bool {
    let pairs = a.optimizer.params().iter().zip(b.optimizer.params());
    pairs.into_iter().all(|(a, b)| same_bits(&a.tensor, &b.tensor))
}

#[test]
fn the_same_run_twice_gives_the_same_bits() {
    let text = text();
    let [mut a, mut b] = [(), ()].map(|()| training(&text));
    loss_after(&text, 0..5, &mut a);
    assert!(!same(&a, &b), "training changes nothing");
    loss_after(&text, 0..5, &mut b);
    assert!(same(&a, &b));
}

#[test]
fn saved_and_loaded_in_the_middle_is_as_never_stopped() {
    let text = text();
    let mut whole = training(&text);
    loss_after(&text, 0..10, &mut whole);
    let mut half = training(&text);
    loss_after(&text, 0..5, &mut half);
    let saved: Vec<(String, Tensor)> =
        half.optimizer.state().iter().map(|(k, t)| (k.clone(), t.copy())).collect();
    let resume = |state: HashMap<String, Tensor>| {
        let mut resumed = training(&text);
        tch::no_grad(|| {
            let pairs = resumed.optimizer.params().iter();
            for (to, from) in pairs.zip(half.optimizer.params()) {
                to.tensor.shallow_clone().copy_(&from.tensor);
            }
        });
        resumed.optimizer.load_state(&state).expect("its own state");
        loss_after(&text, 5..10, &mut resumed);
        resumed
    };
    assert!(same(&whole, &resume(saved.into_iter().collect())));
    assert!(!same(&whole, &resume(HashMap::new())), "the state does not matter");
}

#[test]
fn a_rule_remembers_as_much_as_it_says() {
    let bytes = |make: Make| {
        let tensor = Tensor::ones([100], (Kind::Float, tch::Device::Cpu));
        let tensor = tensor.set_requires_grad(true);
        let named = [("x".to_string(), tensor.shallow_clone())];
        let mut optimizer = make(Param::with_decay(named, |_, _| 0.));
        tensor.square().sum(Kind::Float).backward();
        optimizer.step(0.1);
        state_bytes(optimizer.as_ref())
    };
    assert_eq!(bytes(|p| Box::new(Driver::new(Sgd::default(), p))), 0);
    let heavy: Make =
        |p| Box::new(Driver::new(Sgd { momentum: 0.9, ..Sgd::default() }, p));
    assert_eq!(bytes(heavy), 400);
    assert_eq!(bytes(|p| Box::new(Driver::new(Adam::default(), p))), 800);
    assert_eq!(bytes(|p| Box::new(Driver::new(AmsGrad::default(), p))), 1200);
}

#[test]
fn reports_nest_round_and_state_tolerances() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut report = Report::new("ch99", Some(dir.path().join("new"))).expect("new");
    report.number("a.b.pi", std::f64::consts::PI);
    report.number("a.b.n", 109_504.);
    report.number("a.lost", f64::NAN);
    report.tolerance("a.b", Some(0.1));
    report.tolerance("a.lost", None);
    report.finish().expect("written");
    let text = std::fs::read_to_string(dir.path().join("new/ch99.json"));
    let json: Value = serde_json::from_str(&text.expect("there")).expect("JSON");
    #[allow(clippy::approx_constant)]
    let rounded = 3.142;
    assert_eq!(json["a"]["b"]["pi"], rounded);
    assert_eq!(json["a"]["b"]["n"], 109_504);
    assert_eq!(json["a"]["lost"], "NaN");
    assert_eq!(json["tolerance"]["a.b"], 0.1);
    assert!(json["tolerance"]["a.lost"].is_null());
}
