//! Chapter 10: what must hold of weight decay in all rules, and that the known mistakes
//! would be noticed. That it is torch's is shown in `parity_optim`, with a parameter
//! that decays beside one that does not.
use crate::golden::{floats, json};
use crate::parity_optim::run_with;
use downhill::models::FtTransformer;
use downhill::optim::{
    Adagrad, Adam, AdamW, Driver, Hyper, Optimizer, Param, RmsProp, Rule, Sgd,
};
use downhill_lab::Text;
use tch::Tensor;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    None,
    Coupled,
    WithoutRate,
    AfterTheStep,
    DecaysAll,
}

/// AdamW in which one mistake can be made.
struct Mutant(Adam, Mistake);

impl Rule<2> for Mutant {
    const SLOTS: [&'static str; 2] = ["m", "v"];

    fn update(
        &self,
        theta: &mut Tensor,
        g: &Tensor,
        mv: [&mut Tensor; 2],
        h: Hyper,
    ) {
        use Mistake::*;
        let rate = if self.1 == WithoutRate { 1. } else { h.lr };
        let wd = if self.1 == DecaysAll { 0.1 } else { h.wd };
        let before = ![Coupled, AfterTheStep].contains(&self.1);
        if before {
            *theta *= 1. - rate * wd;
        }
        let inside = if self.1 == Coupled { h.wd } else { 0. };
        self.0.update(theta, g, mv, Hyper { wd: inside, ..h });
        if self.1 == AfterTheStep {
            *theta *= 1. - rate * wd;
        }
    }
}

fn gap_to_torch(mistake: Mistake) -> f64 {
    let golden = json("ch05_adam.json");
    let at = floats(&golden["at"]);
    let cases = golden["cases"].as_array().unwrap().iter().filter(|c| {
        let decays = c["weight_decay"].as_f64() > Some(0.);
        let w = c["rule"] == "adamw" && c["kind"] == "f64" && decays;
        w && c["maximize"] == false && c["problem"] == "logistic"
    });
    let gaps = cases.map(|case| {
        let number = |key: &str| case[key].as_f64().unwrap();
        let adam = Adam {
            beta1: number("beta1"),
            beta2: number("beta2"),
            eps: number("eps"),
            maximize: false,
        };
        run_with(case, &at, |params| -> Box<dyn Optimizer> {
            Box::new(Driver::new(Mutant(adam, mistake), params))
        })
    });
    gaps.fold(0., f64::max)
}

#[test]
fn known_mistakes_fail_the_comparison_with_torch() {
    use Mistake::*;
    let far = gap_to_torch(None);
    assert!(far < 1e-11, "{far:e} without a mistake");
    for mistake in [Coupled, WithoutRate, AfterTheStep, DecaysAll] {
        let far = gap_to_torch(mistake);
        assert!(far > 1e-6, "{mistake:?} is only {far:e} from torch");
    }
}

/// A weight of 1 along gradients of zero.
fn idle<const N: usize>(rule: impl Rule<N>, wd: f64, steps: i32) -> f64 {
    let mut x = Tensor::from_slice(&[1f64]);
    let zero = x.zeros_like();
    let mut slots = rule.init(&x);
    for t in 1..=steps {
        rule.update(&mut x, &zero, slots.each_mut(), Hyper { t, lr: 0.01, wd });
    }
    x.double_value(&[0])
}

#[test]
fn decoupled_decay_is_exponential_and_coupled_is_not() {
    for wd in [0.1, 1., 10.] {
        let expected = f64::powi(1. - 0.01 * wd, 30);
        assert!((idle(AdamW::default(), wd, 30) - expected).abs() < 1e-12);
        assert!((idle(Sgd::default(), wd, 30) - expected).abs() < 1e-12);
        // Adam divides the decay by its own size: about a rate per step, for any decay.
        assert!((idle(Adam::default(), wd, 30) - 0.7).abs() < 0.05);
    }
    for wd in [0.1, 1.] {
        // The same happens in every rule that divides by a root of squares.
        assert!(idle(RmsProp::default(), wd, 5) < 0.85);
        assert!((idle(Adagrad::default(), wd, 1) - 0.99).abs() < 1e-6);
    }
}

#[test]
fn without_decay_nothing_moves() {
    assert_eq!(idle(Sgd::default(), 0., 9), 1.);
    assert_eq!(idle(Adam::default(), 0., 9), 1.);
    assert_eq!(idle(AdamW::default(), 0., 9), 1.);
    assert_eq!(idle(RmsProp::default(), 0., 9), 1.);
    assert_eq!(idle(Adagrad::default(), 0., 9), 1.);
}

#[test]
fn groups_are_chosen_by_name() {
    let text = Text::new(&"the hen and the hound. ".repeat(40));
    let model = text.model(1).unwrap();
    let named = model.named_parameters();
    let norm = |name: &str| name.contains("norm");
    let params = Param::with_decay(named, |n, _| if norm(n) { 0. } else { 0.1 });
    let spared = params.iter().filter(|p| p.weight_decay == 0.);
    // Two in each of two layers, and the last.
    assert_eq!(spared.count(), 5);
    assert!(params.iter().all(|p| norm(&p.name) == (p.weight_decay == 0.)));
    assert!(!FtTransformer::decays("cls_embedding.weight"));
}
