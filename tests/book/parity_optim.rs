//! Optimizers, clipping and schedules beside torch and transformers.
use crate::golden::{floats, gap_of, json, metadata, tensors};
use downhill::optim::{
    Adagrad, Adam, AdamW, AmsGrad, Driver, Optimizer, Param, RmsProp, Sgd,
    clip_grad_norm,
};
use downhill::schedule::{Schedule, constant, constant_with_warmup, cosine, linear};
use serde_json::Value;
use tch::{Kind, Reduction, Tensor};

fn kind(case: &Value) -> Kind {
    if case["kind"] == "f64" { Kind::Double } else { Kind::Float }
}

fn number(case: &Value, key: &str) -> f64 {
    case[key].as_f64().unwrap_or_else(|| panic!("{key} in {case}"))
}

/// The losses of `tests/golden/optim_common.py`, operation for operation.
fn loss(problem: &str, p: &[Tensor], step: usize) -> Tensor {
    let kind = p[0].kind();
    match problem {
        "quadratic" => {
            let h = Tensor::from_slice(&[1., 10., 100.]).to_kind(kind);
            (h * &p[0] * &p[0]).sum(kind) * 0.5
        }
        "rosenbrock" => {
            let a: Tensor = 1. - &p[0];
            let b: Tensor = &p[1] - &p[0] * &p[0];
            let (a, b): (Tensor, Tensor) = (&a * &a, &b * &b * 100.);
            (a + b).sum(kind)
        }
        _ => {
            let x: Vec<f64> =
                (0..48).map(|i| (1.7 * i as f64 + 0.3).sin()).collect();
            let x = Tensor::from_slice(&x).view([12, 4]).to_kind(kind);
            let y: Vec<f64> = (0..12).map(|i| f64::from(7 * i % 3 == 0)).collect();
            let y = Tensor::from_slice(&y).to_kind(kind);
            let mut z = x.mv(&p[0]);
            if problem == "logistic" || step > 50 {
                z += &p[1];
            }
            let none = None::<Tensor>;
            let mean = Reduction::Mean;
            z.binary_cross_entropy_with_logits(
                &y,
                none.as_ref(),
                none.as_ref(),
                mean,
            )
        }
    }
}

fn start(problem: &str) -> Vec<Vec<f64>> {
    match problem {
        "quadratic" => vec![vec![1., -2., 3.]],
        "rosenbrock" => vec![vec![-1.2], vec![1.]],
        _ => vec![vec![0.1, -0.2, 0.3, -0.4], vec![0.05]],
    }
}

fn optimizer(case: &Value, params: Vec<Param>) -> Box<dyn Optimizer> {
    let maximize = case["maximize"] == true;
    let adam = || {
        let [beta1, beta2, eps] = ["beta1", "beta2", "eps"].map(|k| number(case, k));
        Adam { beta1, beta2, eps, maximize }
    };
    match case["rule"].as_str() {
        Some("sgd") => {
            let [momentum, dampening] =
                ["momentum", "dampening"].map(|k| number(case, k));
            let nesterov = case["nesterov"] == true;
            let sgd = Sgd { momentum, dampening, nesterov, maximize };
            Box::new(Driver::new(sgd, params))
        }
        Some("adagrad") => {
            let [lr_decay, initial_accumulator_value, eps] =
                ["lr_decay", "initial_accumulator_value", "eps"]
                    .map(|k| number(case, k));
            let rule =
                Adagrad { lr_decay, initial_accumulator_value, eps, maximize };
            Box::new(Driver::new(rule, params))
        }
        Some("rmsprop") => {
            let [alpha, eps, momentum] =
                ["alpha", "eps", "momentum"].map(|k| number(case, k));
            let centered = case["centered"] == true;
            let rule = RmsProp { alpha, eps, centered, momentum, maximize };
            Box::new(Driver::new(rule, params))
        }
        Some("adam") => Box::new(Driver::new(adam(), params)),
        Some("amsgrad") => Box::new(Driver::new(AmsGrad(adam()), params)),
        Some("adamw") => Box::new(Driver::new(AdamW(adam()), params)),
        Some("adamw_amsgrad") => {
            Box::new(Driver::new(AdamW(AmsGrad(adam())), params))
        }
        other => panic!("{other:?}"),
    }
}

/// Runs one case with the optimizer that it names.
pub fn run(case: &Value, at: &[f64]) -> f64 {
    run_with(case, at, |params| optimizer(case, params))
}

/// Runs one case; the largest gap to torch over all steps recorded, in units of the
/// parameters' size at the start, 1: most of them end near zero.
pub fn run_with(
    case: &Value,
    at: &[f64],
    make: impl Fn(Vec<Param>) -> Box<dyn Optimizer>,
) -> f64 {
    let problem = case["problem"].as_str().expect("problem");
    let leaf = |v: Vec<f64>| {
        Tensor::from_slice(&v).to_kind(kind(case)).set_requires_grad(true)
    };
    let params: Vec<Tensor> = start(problem).into_iter().map(leaf).collect();
    let named = params.iter().enumerate();
    let named = named.map(|(i, p)| (format!("p{i}"), p.shallow_clone()));
    let wd = number(case, "weight_decay");
    let named = Param::with_decay(named, |n, _| if n == "p0" { wd } else { 0. });
    let mut optimizer = make(named);
    let mut expected = case["theta"].as_array().expect("theta").iter();
    let mut worst = 0f64;
    for step in 1..=200 {
        let fall = 1. - (step - 1) as f64 / 200.;
        let factor = if case["decay_lr"] == true { fall } else { 1. };
        optimizer.zero_grad();
        let sign = if case["maximize"] == true { -1. } else { 1. };
        (loss(problem, &params, step) * sign).backward();
        optimizer.step(number(case, "lr") * factor);
        if at.contains(&(step as f64)) {
            let flat: Vec<Tensor> = params.iter().map(Tensor::detach).collect();
            let found = Tensor::cat(&flat, 0).to_kind(Kind::Double);
            let theta = floats(expected.next().expect("a recorded step"));
            let apart = (found - Tensor::from_slice(&theta)).abs().max();
            let apart = apart.double_value(&[]);
            assert!(apart.is_finite(), "step {step} of {case}");
            worst = worst.max(apart);
        }
    }
    assert!(expected.next().is_none(), "unread steps in {case}");
    worst
}

fn every(file: &str, rules: &[(&str, usize)]) {
    let golden = json(file);
    let at = floats(&golden["at"]);
    let cases = golden["cases"].as_array().expect("cases");
    for (rule, count) in rules {
        let cases: Vec<&Value> =
            cases.iter().filter(|c| c["rule"] == *rule).collect();
        assert_eq!(cases.len(), *count, "{rule}");
        // RMSprop's shrinking divisor makes more of a rounding.
        let single = if *rule == "rmsprop" { 1e-5 } else { 2e-6 };
        for (name, bound) in [("f64", 1e-12), ("f32", single)] {
            let mut worst = 0f64;
            for case in cases.iter().filter(|c| c["kind"] == name) {
                let gap = run(case, &at);
                assert!(gap < bound, "{gap:e} from torch: {case}");
                worst = worst.max(gap);
            }
            println!("{rule} {name}: at most {worst:.1e} from torch");
        }
    }
}

#[test]
fn sgd_is_torchs() {
    every("optim_sgd.json", &[("sgd", 56)]);
}

#[test]
fn adagrad_and_rmsprop_are_torchs() {
    every("ch03_adagrad.json", &[("adagrad", 48)]);
    every("ch04_rmsprop.json", &[("rmsprop", 56)]);
}

#[test]
fn the_adam_family_is_torchs() {
    let rules = ["adam", "amsgrad", "adamw", "adamw_amsgrad"];
    every("ch05_adam.json", &rules.map(|rule| (rule, 40)));
}

#[test]
fn every_step_of_the_schedules_is_transformers() {
    let about = metadata("schedules.safetensors");
    let peak: f64 = about["peak"].as_str().expect("peak").parse().expect("a number");
    let golden = tensors("schedules.safetensors");
    assert_eq!(golden.len(), 16);
    for (key, expected) in golden {
        let (name, warmup) = key.split_once('.').expect("name.warmup");
        let warmup = warmup.parse().expect("a number of steps");
        let schedule: Box<dyn Schedule> = match name {
            "constant" => Box::new(constant(peak)),
            "constant_with_warmup" => Box::new(constant_with_warmup(peak, warmup)),
            "linear" => Box::new(linear(peak, warmup, 1000)),
            "cosine" => Box::new(cosine(peak, warmup, 1000)),
            other => panic!("{other}"),
        };
        let found: Vec<f64> = (0..=1000).map(|t| schedule.lr(t)).collect();
        let expected = Vec::<f64>::try_from(&expected).expect("f64");
        let gap = gap_of(&found, &expected);
        assert!(gap < 1e-14, "{key}: {gap:e} from transformers");
    }
}

#[test]
fn clipping_is_torchs() {
    let golden = json("clip_grad_norm.json");
    let cases = golden["cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 80);
    for case in cases {
        let rows = case["before"].as_array().expect("before");
        let params: Vec<Param> = rows
            .iter()
            .enumerate()
            .map(|(i, row)| {
                let size = if row.is_null() { 1 } else { floats(row).len() as i64 };
                let zeros = Tensor::zeros([size], (kind(case), tch::Device::Cpu));
                let tensor = zeros.set_requires_grad(true);
                if !row.is_null() {
                    let g = Tensor::from_slice(&floats(row)).to_kind(kind(case));
                    (&tensor * g).sum(kind(case)).backward(); // leaves exactly g
                }
                Param { name: i.to_string(), tensor, weight_decay: 0. }
            })
            .collect();
        let norm = clip_grad_norm(&params, number(case, "max"));
        let bound = if case["kind"] == "f64" { 1e-12 } else { 1e-6 };
        let near = |a: f64, b: f64| (a - b).abs() <= bound * b.abs();
        assert!(near(norm, number(case, "norm")), "norm {norm} in {case}");
        for (p, after) in params.iter().zip(case["after"].as_array().expect("after"))
        {
            if after.is_null() {
                assert!(
                    !p.tensor.grad().defined(),
                    "a gradient from nothing: {case}"
                );
                continue;
            }
            let found = p.tensor.grad().to_kind(Kind::Double);
            let found = Vec::<f64>::try_from(found).expect("floats");
            for (a, b) in found.into_iter().zip(floats(after)) {
                assert!(near(a, b), "{a} for {b} in {case}");
            }
        }
    }
}
