//! Chapter 8: clipping by value is torch's, adaptive clipping is timm's, and what must
//! hold of all. (Clipping by the global norm: `parity_optim` and `optim`.)
use crate::golden::{floats, gap_of, json};
use downhill::nn::dropout::normal;
use downhill::optim::{Param, clip_grad_adaptive, clip_grad_norm, clip_grad_value};
use downhill_lab::parallel;
use serde_json::Value;
use tch::{Kind, Tensor};

/// A parameter with this gradient, if any.
fn param(name: &str, weight: &Tensor, grad: Option<&Tensor>) -> Param {
    let tensor = weight.copy().set_requires_grad(true);
    if let Some(g) = grad {
        (&tensor * g).sum(tensor.kind()).backward();
    }
    Param { name: name.into(), tensor, weight_decay: 0. }
}

fn by_norm(params: &[Param], max: f64) {
    clip_grad_norm(params, max);
}

fn flat(params: &[Param]) -> Vec<f64> {
    let grads = params.iter().map(|p| p.tensor.grad()).filter(Tensor::defined);
    let each = grads.map(|g| Vec::<f64>::try_from(g.flatten(0, -1)).unwrap());
    each.flatten().collect()
}

fn list(value: &Value) -> Vec<f64> {
    let parts = value.as_array().unwrap().iter();
    parts.filter(|p| !p.is_null()).flat_map(floats).collect()
}

fn params(case: &Value, weights: &Value) -> Vec<Param> {
    let kind = if case["kind"] == "f64" { Kind::Double } else { Kind::Float };
    let each = weights.as_array().unwrap().iter();
    let each = each.zip(case["before"].as_array().unwrap()).enumerate();
    each.map(|(i, (w, g))| {
        let shape =
            floats(&w["shape"]).iter().map(|&n| n as i64).collect::<Vec<_>>();
        let tensor = |v: &Value| {
            Tensor::from_slice(&floats(v)).to_kind(kind).view(shape.as_slice())
        };
        let g = (!g.is_null()).then(|| tensor(g));
        param(&format!("p{i}"), &tensor(&w["values"]), g.as_ref())
    })
    .collect()
}

/// The largest gap to the golden gradients of this rule when `clip` makes ours.
fn gap_to(rule: &str, clip: impl Fn(&[Param], f64)) -> f64 {
    let golden = json("ch08_clipping.json");
    let cases = golden["cases"].as_array().unwrap().iter();
    let cases: Vec<_> = cases.filter(|c| c["rule"] == rule).collect();
    assert!(cases.len() >= 36, "{}", cases.len());
    let gaps = cases.into_iter().map(|case| {
        let ours = params(case, &golden["weights"]);
        clip(&ours, case["bound"].as_f64().unwrap());
        let far = gap_of(&flat(&ours), &list(&case["after"]));
        if case["kind"] == "f64" { far } else { far * 1e-7 } // f32 rounds at 1e-7
    });
    gaps.fold(0., f64::max)
}

#[test]
fn by_value_as_torch_and_adaptive_as_timm() {
    let far = gap_to("value", clip_grad_value);
    assert!(far < 1e-13, "value: {far:e}");
    let far = gap_to("adaptive", clip_grad_adaptive);
    assert!(far < 1e-13, "adaptive: {far:e}");
}

#[test]
fn known_mistakes_fail_the_comparison() {
    // Whole tensors instead of rows; no lower bound for small weights; the bound on the
    // gradient alone.
    let whole = |params: &[Param], factor: f64| {
        for p in params.iter().filter(|p| p.tensor.grad().defined()) {
            let max = p.tensor.norm().double_value(&[]).max(1e-3) * factor;
            clip_grad_norm(std::slice::from_ref(p), max);
        }
    };
    let far = gap_to("adaptive", whole);
    assert!(far > 1e-3, "by tensor passes: {far:e}");
    let far = gap_to("adaptive", by_norm);
    assert!(far > 1e-3, "by the global norm passes: {far:e}");
    let far = gap_to("value", by_norm);
    assert!(far > 1e-3, "by norm passes for by value: {far:e}");
}

/// Gradients of two tensors, of very different sizes.
fn uneven(seed: u64) -> Vec<Param> {
    let draw = |n: usize, place, scale: f64| {
        Tensor::from_slice(&normal(n, seed, place)).to_kind(Kind::Double) * scale
    };
    let w = [draw(60, 0, 1.).view([6, 10]), draw(8, 1, 1.)];
    let g = [draw(60, 2, 0.01).view([6, 10]), draw(8, 3, 30.)];
    vec![param("matrix", &w[0], Some(&g[0])), param("vector", &w[1], Some(&g[1]))]
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn only_the_global_norm_keeps_the_direction() {
    for seed in 0..20 {
        let before = flat(&uneven(seed));
        let after = |clip: &dyn Fn(&[Param])| {
            let params = uneven(seed);
            clip(&params);
            flat(&params)
        };
        let global = after(&|p| by_norm(p, 1.));
        assert!((cosine(&before, &global) - 1.).abs() < 1e-12);
        let norm = global.iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!((norm - 1.).abs() < 1e-6, "{norm}");
        let each = after(&|p| {
            p.chunks(1).for_each(|p| by_norm(p, 0.05));
        });
        let value = after(&|p| clip_grad_value(p, 0.05));
        let adaptive = after(&|p| clip_grad_adaptive(p, 0.01));
        for turned in [&each, &value, &adaptive] {
            assert!(cosine(&before, turned) < 0.999);
        }
        assert!(value.iter().all(|g| g.abs() <= 0.05));
    }
}

#[test]
fn twice_is_once_and_loose_is_nothing() {
    let rules: [(&str, fn(&[Param], f64)); 3] = [
        ("norm", by_norm),
        ("value", clip_grad_value),
        ("adaptive", clip_grad_adaptive),
    ];
    for (name, clip) in rules {
        let params = uneven(3);
        let before = flat(&params);
        clip(&params, 1e9);
        assert_eq!(flat(&params), before, "{name}: a loose bound changes nothing");
        clip(&params, 0.02);
        let once = flat(&params);
        clip(&params, 0.02);
        let far = gap_of(&flat(&params), &once);
        assert!(far < 1e-4, "{name}: {far:e}"); // 1e-6 beside the norm
        let none = [param("none", &Tensor::from_slice(&[1.]), None)];
        clip(&none, 1.);
        assert!(!none[0].tensor.grad().defined(), "{name} made a gradient");
    }
}

#[test]
fn a_nan_stays_where_it_is() {
    let bad = || {
        let mut params = uneven(1);
        let nan = Tensor::from_slice(&[f64::NAN, 1.]);
        params.push(param("bad", &Tensor::from_slice(&[1., 1.]), Some(&nan)));
        params
    };
    let wrong =
        |params: &[Param]| flat(params).iter().filter(|g| g.is_nan()).count();
    let params = bad();
    assert!(clip_grad_norm(&params, 1.).is_nan());
    assert_eq!(wrong(&params), 1);
    clip_grad_value(&params, 0.5);
    assert_eq!(wrong(&params), 1);
    clip_grad_adaptive(&params, 0.01);
    assert_eq!(wrong(&params), 2, "the unit with the NaN, and no other");
}

#[test]
fn work_in_parallel_comes_back_in_order() {
    let squares = parallel(50, |i| Ok(i * i)).unwrap();
    assert!(squares.iter().enumerate().all(|(i, x)| i * i == *x));
    let failed = parallel(5, |i| match i {
        3 => Err(downhill::Error::Autograd("three".into())),
        _ => Ok(()),
    });
    assert!(failed.unwrap_err().to_string().contains("three"));
}
