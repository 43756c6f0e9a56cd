//! Chapter 9: dropout in the decoder. The masks themselves are tested in `nn`.
use crate::common::{config, ids};
use crate::golden::{gap, same_bits, tensors};
use crate::parity_llama::{F32, read};
use downhill::autograd::{checkpoint, gradcheck};
use downhill::models::{Decoder, read_config};
use downhill::nn::Mode;
use downhill::nn::dropout::{Rates, dropout};
use downhill_lab::Text;
use std::collections::BTreeSet;
use tch::{Device, Kind, Tensor, no_grad};

const RATES: Rates = Rates { embedding: 0.1, attention: 0.25, residual: 0.3 };

fn train(step: u64) -> Mode {
    Mode::Train { seed: 5 + (7 << 32), step }
}

/// The largest gap to transformers' logits and gradients under the same masks.
fn gap_to_transformers(rates: Rates, step: u64) -> f64 {
    let golden = tensors("ch09_dropout.safetensors");
    let mut model = read("llama_gqa", &F32);
    model.set_dropout(rates);
    let named = model.named_parameters();
    for (_, t) in &named {
        let _ = t.set_requires_grad(true);
    }
    let hidden = model.hidden(&golden["ids"], train(step), None).expect("hidden");
    let logits = model.logits(&hidden).expect("logits");
    logits.square().mean(Kind::Float).backward();
    let mut far = gap(&logits.detach(), &golden["logits"]);
    for (name, t) in &named {
        far = far.max(gap(&t.grad(), &golden[&format!("grad.{name}")]));
    }
    far
}

#[test]
fn logits_and_gradients_under_our_masks_are_transformers() {
    let step = 9 + (1 << 32);
    let far = gap_to_transformers(RATES, step);
    assert!(far < 1e-5, "{far:e}");
    // What must be noticed: a mask of another step, a place left out, a rate confused.
    assert!(gap_to_transformers(RATES, step + 1) > 0.1);
    for wrong in [
        Rates { embedding: 0., ..RATES },
        Rates { attention: 0., ..RATES },
        Rates { residual: 0., ..RATES },
        Rates { attention: RATES.residual, residual: RATES.attention, ..RATES },
    ] {
        assert!(gap_to_transformers(wrong, step) > 1e-2, "{wrong:?}");
    }
}

fn model(rates: Rates) -> Decoder {
    let mut config = config();
    config.dropout = rates;
    Decoder::random(config, 3).expect("a model")
}

fn hidden(model: &Decoder, mode: Mode) -> Tensor {
    no_grad(|| model.hidden(&ids(2, 7), mode, None).expect("hidden"))
}

#[test]
fn evaluation_drops_nothing_and_training_the_same_again() {
    let (with, without) = (model(RATES), model(Rates::default()));
    assert!(same_bits(&hidden(&with, Mode::Eval), &hidden(&without, Mode::Eval)));
    // Without dropout, training is evaluation.
    let plain = hidden(&without, Mode::Eval);
    assert!(same_bits(&hidden(&without, train(1)), &plain));
    let once = hidden(&with, train(1));
    assert!(same_bits(&once, &hidden(&with, train(1))));
    assert!(gap(&once, &hidden(&with, train(2))) > 0.01);
    assert!(gap(&once, &plain) > 0.01);
}

/// Each place alone: no two of them, in no layer, ever draw the same mask.
#[test]
fn no_mask_is_drawn_twice() {
    let ones = Tensor::ones([4096], (Kind::Float, Device::Cpu));
    let mut seen = BTreeSet::new();
    // Adapters count from 0, the decoder's own dropouts from 2³¹, four to a layer.
    for place in (0..64).chain((0..64).map(|p| (1 << 31) + p)) {
        for step in 0..4 {
            let bits = Vec::<f32>::try_from(dropout(&ones, 0.5, train(step), place));
            let bits: Vec<bool> = bits.unwrap().iter().map(|x| *x == 0.).collect();
            assert!(seen.insert(bits), "place {place}, step {step}");
        }
    }
}

#[test]
fn gradients_are_those_of_what_was_computed() {
    let x = Tensor::randn([3, 5], (Kind::Double, Device::Cpu));
    let x = x.set_requires_grad(true);
    let f = |x: &[Tensor]| Ok(dropout(&x[0], 0.4, train(1), 2).tanh());
    gradcheck(f, &[x], 1e-6, 1e-8, 1e-6).expect("the gradient");
}

/// A layer that is computed again in backward draws its masks again.
#[test]
fn recomputing_changes_no_bit() {
    let w = Tensor::randn([40, 40], (Kind::Float, Device::Cpu));
    let gradient = |again: bool| {
        let x = Tensor::ones([8, 40], (Kind::Float, Device::Cpu));
        let x = x.set_requires_grad(true);
        let w = w.shallow_clone();
        let layer = move |x: &[Tensor]| {
            Ok(dropout(&x[0].matmul(&w).tanh(), 0.5, train(4), 1).matmul(&w))
        };
        let y = match again {
            true => checkpoint(&[&x], layer).expect("a layer"),
            false => layer(&[x.shallow_clone()]).expect("a layer"),
        };
        y.square().sum(Kind::Float).backward();
        x.grad()
    };
    assert!(same_bits(&gradient(true), &gradient(false)));
}

#[test]
fn the_rate_of_config_json_is_read_and_checked() {
    let dir = tempfile::TempDir::new().unwrap();
    let golden = crate::golden::path("llama_gqa/config.json");
    let text = std::fs::read_to_string(golden).unwrap();
    let with = |rate: &str| {
        let key = "\"attention_dropout\": ";
        let text = text.replace(&format!("{key}0.0"), &format!("{key}{rate}"));
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        read_config(dir.path())
    };
    assert_eq!(with("0.25").unwrap().dropout.attention, 0.25);
    for rate in ["1.0", "-0.1", "\"a lot\""] {
        let error = with(rate).unwrap_err().to_string();
        assert!(error.contains("attention_dropout"), "{rate}: {error}");
    }
}

#[test]
fn little_text_is_the_beginning_and_what_is_held_out_stays() {
    // Small letters in the beginning, capitals in the rest: ids from 26, and below.
    let alphabet: String = ('A'..='Z').collect();
    let story = alphabet.to_lowercase().repeat(3) + &alphabet.repeat(40);
    let all = Text::new(&story);
    let little = Text::new(&story).with_first(3 * 26);
    let mut capitals = false;
    for step in 0..20 {
        let (a, b) = (all.batch(1, step, true), little.batch(1, step, true));
        assert_eq!((a.0, a.1), (b.0, b.1));
        let (x, y) = little.batch(1, step, false);
        let least = |t: &Tensor| t.min().int64_value(&[]);
        assert!(least(&x) >= 26 && least(&y) >= 26, "step {step}");
        capitals |= least(&all.batch(1, step, false).0) < 26;
    }
    assert!(capitals);
    assert_eq!(little.vocabulary(), all.vocabulary());
}
