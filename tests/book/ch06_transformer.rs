//! Chapter 6: the pieces of the reader's program are PyTorch's, the library's decoder is
//! the same model, and known mistakes would be noticed.
use crate::golden::{floats, gap, json};
use downhill::models::{Decoder, DecoderConfig};
use downhill::nn::{Mode, RmsNorm, Rope, RopeScaling, cross_entropy};
use downhill_lab::Named;
use std::collections::BTreeMap;
use tch::{Device::Cpu, Kind, Tensor, no_grad};

#[path = "../../examples/ch06_transformer.rs"]
#[allow(dead_code)] // its `main`
mod reader;

/// The wave from which the golden script makes inputs and weights.
fn wave(phase: i64, shape: &[i64]) -> Tensor {
    let n = shape.iter().product::<i64>();
    let t = Tensor::arange(n, (Kind::Double, Cpu)) * 0.7 + phase as f64;
    t.sin().view(shape)
}

fn golden(key: &str, like: &Tensor) -> Tensor {
    let value = &json("ch06_transformer.json")[key];
    let all = value.as_f64().map_or_else(|| floats(value), |one| vec![one]);
    Tensor::from_slice(&all).view_as(like)
}

fn close(found: &Tensor, key: &str) {
    within(found, key, 1e-12);
}

fn within(found: &Tensor, key: &str, tolerance: f64) {
    let gap = gap(found, &golden(key, found));
    assert!(gap < tolerance, "{key} is {gap:e} from PyTorch's");
}

type Norm = fn(&Tensor, &Tensor) -> Tensor;
type Rotate = fn(&Tensor) -> Tensor;
type Look = fn(&Tensor, &Tensor) -> Tensor;

/// How far a norm is from PyTorch's, on usual vectors and on tiny ones.
fn gap_of_norm(norm: Norm) -> f64 {
    let (x, w) = (wave(1, &[2, 3, 8]), wave(2, &[8]));
    let (usual, tiny) = (norm(&x, &w), norm(&(&x * 1e-3), &w));
    let tiny = gap(&tiny, &golden("norm_tiny", &tiny));
    gap(&usual, &golden("norm", &usual)).max(tiny)
}

fn gap_of_rotate(rotate: Rotate) -> f64 {
    let y = rotate(&wave(3, &[1, 2, 5, 8]));
    gap(&y, &golden("rotate", &y))
}

fn gap_of_look(look: Look) -> f64 {
    let p = look(&(wave(4, &[1, 2, 5, 8]) * 2.), &(wave(5, &[1, 2, 5, 8]) * 2.));
    gap(&p, &golden("look", &p))
}

#[test]
fn each_piece_is_pytorchs() {
    for gap in [
        gap_of_norm(reader::norm),
        gap_of_rotate(reader::rotate),
        gap_of_look(reader::look),
    ] {
        assert!(gap < 1e-12, "{gap:e}");
    }
    let w = [wave(11, &[5, 3]), wave(12, &[5, 3]), wave(13, &[3, 5])];
    close(&reader::swiglu(&wave(10, &[4, 3]), w.each_ref()), "swiglu");
    let z = (wave(6, &[2, 3, 7]) * 3.).set_requires_grad(true);
    let y = Tensor::arange(6, (Kind::Int64, Cpu));
    let loss = reader::loss(&z, &y);
    close(&loss, "loss");
    loss.backward();
    close(&z.grad(), "dz");
    // By hand: (p − y) / 6.
    let by_hand = (z.softmax(-1, None).flatten(0, 1) - y.one_hot(7)) / 6.;
    close(&by_hand.detach(), "dz");
}

#[test]
fn the_gradients_of_a_product_are_those_by_hand() {
    let (x, w) = (wave(7, &[4, 3]), wave(8, &[5, 3]));
    let (x, w) = (x.set_requires_grad(true), w.set_requires_grad(true));
    let dy = wave(9, &[4, 5]);
    (reader::linear(&x, &w) * &dy).sum(Kind::Double).backward();
    for (by_hand, autograd, key) in
        [(dy.matmul(&w), x.grad(), "dx"), (dy.tr().matmul(&x), w.grad(), "dw")]
    {
        close(&by_hand.detach(), key);
        close(&autograd, key);
    }
}

#[test]
fn each_mistake_is_far_from_pytorch() {
    fn masked(scores: Tensor, first: i64) -> Tensor {
        let t = scores.size()[3];
        let later = Tensor::ones([t, t], (Kind::Bool, Cpu)).triu(first);
        scores.masked_fill(&later, f64::NEG_INFINITY)
    }
    let looks: [(&str, Look); 5] = [
        ("no 1/√K", |q, k| {
            masked(q.matmul(&k.transpose(-2, -1)), 1).softmax(-1, None)
        }),
        ("1/K", |q, k| {
            masked(q.matmul(&k.transpose(-2, -1)) / 8., 1).softmax(-1, None)
        }),
        ("mask off by one", |q, k| {
            let scores = q.matmul(&k.transpose(-2, -1)) / 8f64.sqrt();
            masked(scores, 2).softmax(-1, None)
        }),
        ("no mask", |q, k| {
            (q.matmul(&k.transpose(-2, -1)) / 8f64.sqrt()).softmax(-1, None)
        }),
        ("softmax over those who ask", |q, k| {
            let scores = q.matmul(&k.transpose(-2, -1)) / 8f64.sqrt();
            masked(scores, 1).softmax(-2, None)
        }),
    ];
    for (name, look) in looks {
        let gap = gap_of_look(look);
        assert!(gap > 1e-2, "{name} is only {gap:e} from PyTorch");
    }
    fn root(x: &Tensor) -> Tensor {
        (x.square().mean_dim(-1, true, None) + 1e-6).sqrt()
    }
    let norms: [(&str, Norm); 4] = [
        ("without epsilon", |x, w| {
            x / x.square().mean_dim(-1, true, None).sqrt() * w
        }),
        ("epsilon outside the root", |x, w| {
            x / (x.square().mean_dim(-1, true, None).sqrt() + 1e-6) * w
        }),
        ("with the mean taken out", |x, w| {
            let x = x - x.mean_dim(-1, true, None);
            &x / root(&x) * w
        }),
        ("the sum for the mean", |x, w| {
            x / (x.square().sum_dim_intlist(-1, true, None) + 1e-6).sqrt() * w
        }),
    ];
    for (name, norm) in norms {
        let gap = gap_of_norm(norm);
        assert!(gap > 1e-2, "{name} is only {gap:e} from PyTorch");
    }
    let turns: [(&str, Rotate); 3] = [
        ("the other way round", |x| {
            let back = Tensor::cat(&[x.narrow(-1, 4, 4), x.narrow(-1, 0, 4)], -1);
            let y = reader::rotate(&back);
            Tensor::cat(&[y.narrow(-1, 4, 4), y.narrow(-1, 0, 4)], -1)
        }),
        ("neighbours for pairs", |x| {
            let y = x.unflatten(-1, [-1, 2]).transpose(-1, -2).flatten(-2, -1);
            reader::rotate(&y)
        }),
        ("not at all", Tensor::shallow_clone),
    ];
    for (name, rotate) in turns {
        let gap = gap_of_rotate(rotate);
        assert!(gap > 1e-2, "{name} is only {gap:e} from PyTorch");
    }
}

/// The shape of the golden model; its heads are the reader's.
fn config() -> DecoderConfig {
    DecoderConfig {
        vocab_size: 13,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: reader::LAYERS,
        num_attention_heads: reader::H,
        num_key_value_heads: reader::G,
        head_dim: reader::K,
        ..DecoderConfig::default()
    }
}

/// Tensors by their full names.
struct Full(BTreeMap<String, Tensor>);

impl downhill::models::Weights for Full {
    fn tensor(&mut self, name: &str, _: &[i64]) -> downhill::Result<Tensor> {
        Ok(self.0[name].shallow_clone())
    }
}

/// The golden model as the library's decoder, in f64, all of it trainable.
fn decoder() -> Decoder {
    let named = Decoder::random(config(), 0).expect("a decoder").named_parameters();
    let shapes = BTreeMap::from_iter(named.into_iter().map(|(n, t)| (n, t.size())));
    let waves = (0..).zip(shapes).map(|(i, (name, shape))| {
        let w = wave(i, &shape);
        let w = if shape.len() == 1 { w * 0.1 + 1. } else { w * 0.4 };
        (name, w.set_requires_grad(true))
    });
    Decoder::new(config(), &mut Full(waves.collect())).expect("a decoder")
}

fn ids() -> Tensor {
    (Tensor::arange(14, (Kind::Int64, Cpu)) * 5).fmod(13).view([2, 7])
}

fn logits(w: &Named, ids: &Tensor) -> Tensor {
    reader::linear(&reader::hidden(w, ids), &w["lm_head"])
}

fn whole_loss(w: &Named) -> Tensor {
    let y = ids().narrow(1, 1, 6).reshape([-1]);
    reader::loss(&logits(w, &ids().narrow(1, 0, 6)), &y)
}

#[test]
fn the_whole_model_is_transformers_llama() {
    let decoder = decoder();
    let w = downhill_lab::named(&decoder);
    let z = logits(&w, &ids().narrow(1, 0, 6));
    within(&z.detach(), "logits", 1e-6); // transformers' angles are f32
    let loss = whole_loss(&w);
    within(&loss.detach(), "whole_loss", 1e-6);
    loss.backward();
    let golden = json("ch06_transformer.json");
    let named = decoder.named_parameters();
    assert_eq!(golden["gradients"].as_object().map(|g| g.len()), Some(named.len()));
    for (name, tensor) in named {
        let expected = golden["gradients"][&name].as_f64().expect("a length");
        let found = tensor.grad().norm().double_value(&[]);
        assert!((found / expected - 1.).abs() < 1e-5, "{name}: {found}, {expected}");
    }
}

#[test]
fn the_librarys_parts_are_the_same() {
    let decoder = decoder();
    let w = downhill_lab::named(&decoder);
    let x = ids().narrow(1, 0, 6);
    let hidden = decoder.hidden(&x, Mode::Eval, None).expect("a forward pass");
    // The library's angles are f32.
    let far = gap(&reader::hidden(&w, &x), &hidden);
    assert!(far < 1e-6, "{far:e}");
    let (x, gains) = (wave(1, &[2, 3, 8]), wave(2, &[8]));
    let norm = RmsNorm { weight: gains.shallow_clone(), eps: 1e-6 };
    assert!(
        gap(&reader::norm(&x, &gains), &norm.forward(&x).expect("a norm")) < 1e-12
    );
    let x = wave(3, &[1, 2, 5, 8]);
    let rope = Rope { theta: 10_000., scaling: RopeScaling::Default };
    let places = Vec::from_iter(0..5);
    let turned = rope.rotation(&places, 8, Kind::Double, Cpu);
    let turned = turned.apply(&x.get(0).transpose(0, 1)).expect("a rotation");
    assert!(gap(&reader::rotate(&x).get(0).transpose(0, 1), &turned) < 1e-6);
    let y = Tensor::arange(6, (Kind::Int64, Cpu));
    let (h, head) = (wave(20, &[6, 16]), &w["lm_head"]);
    let sum = cross_entropy(&h, head, &y).expect("a loss") / 6.;
    let mean = reader::loss(&reader::linear(&h, head).unsqueeze(0), &y);
    assert!(gap(&mean, &sum) < 1e-12);
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let w = downhill_lab::named(&decoder());
    whole_loss(&w).backward();
    for (i, (name, t)) in (30..).zip(&w) {
        let direction = wave(i, &t.size());
        let along = (t.grad() * &direction).sum(Kind::Double).double_value(&[]);
        let moved = |by: f64| {
            no_grad(|| {
                let _ = t.shallow_clone().f_add_(&(&direction * by)).expect("add");
                let loss = whole_loss(&w).double_value(&[]);
                let _ = t.shallow_clone().f_add_(&(&direction * -by)).expect("add");
                loss
            })
        };
        let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        let far = (along - slope).abs() / slope.abs().max(1e-3);
        assert!(far < 1e-6, "{name}: {along} by autograd, {slope} by differences");
    }
}

/// The places whose result changes when token 3 does.
fn changed(result: impl Fn(&Tensor) -> Tensor) -> Vec<i64> {
    let first = Tensor::from_slice(&[1i64, 5, 2, 7, 4, 0, 12]).view([1, 7]);
    let second = first.copy();
    let _ = second.narrow(1, 3, 1).fill_(9);
    let (a, b) = (result(&first), result(&second));
    (0..7).filter(|t| !a.select(1, *t).equal(&b.select(1, *t))).collect()
}

#[test]
fn no_place_sees_a_later_one() {
    let w = downhill_lab::named(&decoder());
    assert_eq!(changed(|ids| reader::hidden(&w, ids)), [3, 4, 5, 6]);
    // The test sees a leak: a softmax over the wrong axis, and the mask off by one.
    let leaking = |first: i64, axis: i64| {
        changed(|ids| {
            let x = Tensor::embedding(&w["embed_tokens"], ids, -1, false, false);
            let later = Tensor::ones([7, 7], (Kind::Bool, Cpu)).triu(first);
            let scores = x.matmul(&x.transpose(1, 2));
            let scores = scores.masked_fill(&later, f64::NEG_INFINITY);
            scores.softmax(axis, None).matmul(&x)
        })
    };
    assert_eq!(leaking(1, -1), [3, 4, 5, 6], "the right mask and axis");
    assert_eq!(leaking(1, -2), [0, 1, 2, 3, 4, 5, 6], "over those who ask");
    assert_eq!(leaking(2, -1), [2, 3, 4, 5, 6], "off by one");
}

#[test]
fn scores_depend_on_the_distance_alone() {
    let at_all = |v: Tensor| reader::rotate(&v.repeat([1, 1, 40, 1])).get(0).get(0);
    let (q, k) = (at_all(wave(1, &[8])), at_all(wave(2, &[8])));
    let score = |m: i64, n: i64| q.get(m).dot(&k.get(n)).double_value(&[]);
    for distance in 0..20 {
        let first = score(distance, 0);
        for n in 1..20 {
            let far = (score(n + distance, n) - first).abs();
            assert!(far < 1e-12, "{far:e} at {n} and {distance} further");
        }
    }
    assert!((score(1, 0) - score(0, 0)).abs() > 1e-3, "places do not matter");
    assert!((score(1, 0) - score(0, 1)).abs() > 1e-3, "sides do not matter");
    // A rotation leaves lengths alone.
    let length = wave(1, &[8]).norm().double_value(&[]);
    let turned = q.norm_scalaropt_dim(2, [1].as_slice(), false);
    assert!((turned - length).abs().max().double_value(&[]) < 1e-12);
}

#[test]
fn the_worked_example_is_what_the_page_says() {
    let rows = |all: [[f64; 2]; 3]| Tensor::from_slice2(&all).view([1, 1, 3, 2]);
    let asks = rows([[1., 0.], [0., 1.], [1., 1.]]);
    let p = reader::look(&asks, &asks);
    let e = |x: f64| (x / 2f64.sqrt()).exp();
    let by_hand = [
        [1., 0., 0.],
        [1. / (1. + e(1.)), e(1.) / (1. + e(1.)), 0.],
        [e(1.), e(1.), e(2.)].map(|x| x / (2. * e(1.) + e(2.))),
    ];
    let by_hand = Tensor::from_slice2(&by_hand).view([1, 1, 3, 3]);
    assert!(gap(&p, &by_hand) < 1e-12);
}

#[test]
fn a_random_start_is_about_as_good_as_blind() {
    let text = downhill_lab::Text::alice().expect("the book");
    let config = DecoderConfig { vocab_size: text.vocabulary(), ..config() };
    let w = downhill_lab::named(&Decoder::random(config, 1).expect("a decoder"));
    let (x, y) = text.batch(0, 0, false);
    let z = no_grad(|| logits(&w, &x));
    let loss = reader::loss(&z, &y).double_value(&[]);
    let blind = (text.vocabulary() as f64).ln();
    assert!((loss / blind - 1.).abs() < 0.01, "{loss}, blind is {blind}");
}
