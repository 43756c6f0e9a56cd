//! The next token, chosen where the scores are, is the one that a reader of the formula
//! would choose on the host.
use crate::common;
use downhill::generate::{Sampling, generate};
use downhill::nn::{Mode, dropout::philox};
use std::ops::ControlFlow;
use tch::{Device, Kind, Tensor};

/// The nucleus, in order, and a draw from it.
fn by_hand(scores: &[f64], s: &Sampling, position: usize) -> i64 {
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if s.temperature == 0. {
        return scores.iter().position(|x| *x == highest).unwrap() as i64;
    }
    let p: Vec<f64> =
        scores.iter().map(|x| ((x - highest) / s.temperature).exp()).collect();
    let all: f64 = p.iter().sum();
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
    let mut nucleus = vec![];
    let mut mass = 0.;
    for i in order {
        if mass >= s.top_p {
            break;
        }
        mass += p[i] / all;
        nucleus.push(i);
    }
    let key = [s.seed as u32, (s.seed >> 32) as u32];
    let word = philox([position as u32, 0, 0, 3], key)[0];
    let mut left = (f64::from(word) + 0.5) / 2f64.powi(32) * mass;
    for &i in &nucleus {
        left -= p[i] / all;
        if left <= 0. {
            return i as i64;
        }
    }
    nucleus[nucleus.len() - 1] as i64
}

#[test]
fn draws_are_those_of_the_formula() {
    let model = common::frozen(3);
    let prompt = [5, 9, 2, 40];
    let mut seen = std::collections::BTreeSet::new();
    for (temperature, top_p) in
        [(0., 1.), (0.7, 1.), (1.5, 0.6), (1., 1e-9), (9., 0.95)]
    {
        for seed in 0..6 {
            let s = Sampling { max_new_tokens: 8, temperature, top_p, seed };
            let go = &mut |_| Ok(ControlFlow::Continue(()));
            let written = generate(&model, &prompt, &[], &s, go).unwrap();
            assert_eq!(written.len(), 8);
            let mut all = prompt.to_vec();
            for (position, id) in written.iter().enumerate() {
                // All of it again, without a cache.
                let ids = Tensor::from_slice(&all).unsqueeze(0);
                let hidden = model.hidden(&ids, Mode::Eval, None).unwrap();
                let scores = model.logits(&hidden.select(1, -1)).unwrap();
                let scores = scores.view([-1]).to_kind(Kind::Double);
                let scores = Vec::<f64>::try_from(scores).unwrap();
                assert_eq!(*id, by_hand(&scores, &s, position), "{s:?}");
                all.push(*id);
                seen.insert(*id);
            }
        }
    }
    assert!(seen.len() > 20, "the draws hardly differ");
}

#[test]
fn scores_that_are_not_finite_end_it() {
    let model = common::frozen(3);
    let named = model.named_parameters();
    let norm = named.iter().find(|(n, _)| n == "model.norm.weight").unwrap();
    let _ = tch::no_grad(|| norm.1.shallow_clone().fill_(f64::NAN));
    for temperature in [0., 1.] {
        let s = Sampling { temperature, ..Sampling::default() };
        let go = &mut |_| Ok(ControlFlow::Continue(()));
        let text = generate(&model, &[1, 2], &[], &s, go).unwrap_err().to_string();
        assert!(text.contains("not finite"), "{text}");
    }
    assert_eq!(model.device(), Device::Cpu);
}
