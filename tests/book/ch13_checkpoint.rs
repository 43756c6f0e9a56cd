//! Chapter 13: what its page and its laboratory rest on.
use super::golden::gap;
use downhill::generate::{Sampling, generate};
use downhill::nn::{Rope, RopeScaling, dropout::normal};
use downhill_lab::faults::{of_deepseek, of_llama};
use downhill_lab::published::{cached, shape_of};
use downhill_lab::router::{choices, counts, information, kind_of, load, shuffled};
use downhill_lab::small::{Small, losses, scores};
use downhill_lab::writing::{beam, fresh, without_cache};
use std::ops::ControlFlow;
use tch::{Device, Kind, Tensor};

fn moe() -> Small {
    Small::load("tiny_moe", Kind::Float).expect("a checkpoint")
}

fn page(small: &Small, length: usize) -> Tensor {
    small.unread(length, length).expect("books")[2].narrow(0, 0, 1)
}

/// The product of a turned query and a turned key depends on how far apart they stand.
#[test]
fn turning_tells_distances_alone() {
    let rope = Rope { theta: 10_000., scaling: RopeScaling::Default };
    let draw = |seed| Tensor::from_slice(&normal(32, seed, 0)).view([1, 1, 32]);
    let (q, k) = (draw(1), draw(2));
    let at = |x: &Tensor, place: i64| {
        let turned = rope.rotation(&[place], 32, Kind::Float, Device::Cpu).apply(x);
        turned.expect("turned")
    };
    let product = |m, n| (at(&q, m) * at(&k, n)).sum(Kind::Double).double_value(&[]);
    assert!((product(7, 3) - product(104, 100)).abs() < 1e-4);
    assert!((product(7, 3) - product(7, 2)).abs() > 1e-2);
    assert!((at(&q, 99).norm() - q.norm()).abs().double_value(&[]) < 1e-4);
}

#[test]
fn rebuilt_unchanged_it_says_the_same() {
    let small = moe();
    let rows = page(&small, 40);
    let again = small.changed(|_, _| ()).expect("a model");
    let [a, b] = [&small.model, &again].map(|m| scores(m, &rows).expect("scores").0);
    assert!(a.equal(&b));
    // The loaded one has not been touched by what a change does.
    let _ = of_deepseek(&small).expect("faults");
    assert!(a.equal(&scores(&small.model, &rows).expect("scores").0));
}

/// Every fault is one: none leaves the scores as they are.
#[test]
fn every_fault_changes_the_scores() {
    let tiny = Small::load("tiny", Kind::Float).expect("a checkpoint");
    for (small, faults) in [(&tiny, of_llama(&tiny)), (&moe(), of_deepseek(&moe()))]
    {
        let rows = page(small, 40);
        let (right, _) = scores(&small.model, &rows).expect("scores");
        for (key, _, model) in faults.expect("faults") {
            let off = gap(&scores(&model, &rows).expect("scores").0, &right);
            assert_eq!(off > 1e-4, key != "right", "{key}: {off}");
        }
    }
}

/// The experts that are said to be chosen are the ones that are used: the others can go.
#[test]
fn the_chosen_experts_are_those_used() {
    let small = moe();
    let row = page(&small, 1); // one token is read
    let all = choices(&small.model, &row).expect("choices");
    assert_eq!(all.len(), 3);
    let chosen: Vec<Vec<i64>> =
        all.iter().map(|c| Vec::try_from(c.view([-1])).expect("numbers")).collect();
    let without = |gone: &dyn Fn(usize, i64) -> bool| {
        let model = small.changed(|_, tensors| {
            for layer in 0..3 {
                for e in (0..16).filter(|e| gone(layer, *e)) {
                    let at = format!("model.layers.{}.mlp.experts.{e}", layer + 1);
                    let w = tensors.get_mut(&format!("{at}.down_proj.weight"));
                    let w = w.expect("an expert");
                    *w = w.zeros_like();
                }
            }
        });
        scores(&model.expect("a model"), &row).expect("scores").0
    };
    let whole = without(&|_, _| false);
    assert!(without(&|layer, e| !chosen[layer].contains(&e)).equal(&whole));
    for (layer, ids) in chosen.iter().enumerate() {
        let first = ids[0];
        assert!(!without(&|l, e| l == layer && e == first).equal(&whole), "{layer}");
    }
}

/// Trained with the balance loss, no expert is idle and none does it all.
#[test]
fn all_experts_are_in_use() {
    let small = moe();
    let rows = Tensor::cat(&small.unread(128, 256).expect("books"), 0);
    for chosen in choices(&small.model, &rows).expect("choices") {
        let load = load(&chosen.view([-1]).bincount(None::<Tensor>, 16));
        assert!(load.iter().all(|share| (0.3..3.).contains(share)), "{load:?}");
        assert!((load.iter().sum::<f64>() - 16.).abs() < 1e-9);
    }
}

#[test]
fn information_is_none_or_all() {
    let labels = Tensor::arange(4000, (Kind::Int64, Device::Cpu)).fmod(4);
    let told =
        |chosen: &Tensor| information(&counts(&chosen.unsqueeze(1), &labels, 4, 16));
    assert!((told(&(&labels * 3)) - 2.).abs() < 1e-9);
    assert!(told(&labels.zeros_like()).abs() < 1e-9);
    let mixed = told(&shuffled(&labels, 5));
    assert!(mixed.abs() < 0.01, "{mixed}");
}

/// The search with one beginning is greedy; with more it finds at least as likely a
/// text, and the probability it tells is that of its tokens.
#[test]
fn a_wider_search_is_no_worse() {
    let small = moe();
    let prompt: Vec<i64> = Vec::try_from(page(&small, 24).view([-1])).expect("ids");
    let sampling = Sampling { max_new_tokens: 12, ..Sampling::default() };
    let mut on = |_| Ok(ControlFlow::Continue(()));
    let greedy =
        generate(&small.model, &prompt, &[], &sampling, &mut on).expect("text");
    let (narrow, p) = beam(&small.model, &prompt, 12, 1).expect("text");
    assert_eq!(narrow, greedy);
    assert_eq!(without_cache(&small.model, &prompt, 12).expect("text"), greedy);
    let (wide, best) = beam(&small.model, &prompt, 12, 16).expect("text");
    assert!(best >= p - 1e-6, "{best} {p}");
    for (text, told) in [(narrow, p), (wide, best)] {
        let row = Tensor::from_slice(&[prompt.clone(), text].concat()).unsqueeze(0);
        let loss = losses(&small.model, &row).expect("losses").narrow(1, 24, 12);
        let sum = -loss.sum(Kind::Double).double_value(&[]);
        assert!((sum - told).abs() < 1e-3, "{sum} {told}");
    }
}

#[test]
fn small_helpers() {
    let kinds = [" the", " Mr", "ing", ",", "7", "\n"].map(kind_of);
    assert_eq!(kinds, [0, 1, 2, 3, 4, 5]);
    assert_eq!(fresh(&[1, 2, 3, 4, 1, 2, 3, 4]), 0.8);
    assert_eq!(fresh(&[7; 8]), 0.2);
}

/// 61 layers of 512 and 64 numbers; 30 of 32 heads' keys and values.
#[test]
fn bytes_in_the_cache() {
    let bytes = |name: &str| cached(&shape_of(name).expect("a shape"));
    assert_eq!(bytes("DeepSeek-V3"), [61. * 576. * 2., 61. * 128. * 320. * 2.]);
    assert_eq!(bytes("DeepSeek-V2-Lite"), [27. * 576. * 2., 27. * 16. * 320. * 2.]);
    assert_eq!(bytes("deepseek-llm-7b"), [30. * 2. * 4096. * 2.; 2]);
    assert_eq!(bytes("R1-Distill-Qwen-7B")[1] / bytes("R1-Distill-Qwen-7B")[0], 7.);
}
