//! Checkpoints that transformers saved: the same logits, the same text.
use crate::golden::{gap, path, tensors};
use downhill::models::{Decoder, LoadOptions, load};
use downhill::nn::Mode;
use tch::{Device, Kind, Tensor};

/// Every folder `llama_<name>`; see `tests/golden/ch13_llama.py`.
const NAMES: [&str; 12] = [
    "mha",
    "gqa",
    "mqa",
    "tied",
    "bias",
    "head_dim",
    "linear",
    "linear_old",
    "llama3",
    "v5",
    "v5_llama3",
    "sharded",
];

pub const F32: LoadOptions = LoadOptions {
    quantize: false,
    blocksize: 64,
    double_quant: true,
    kind: Kind::Float,
    device: Device::Cpu,
};

pub fn read(folder: &str, options: &LoadOptions) -> Decoder {
    load(&path(folder), options, &mut |_, _| ()).expect(folder)
}

pub fn logits(model: &Decoder, ids: &Tensor) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    let hidden = model.hidden(ids, Mode::Eval, None).expect("hidden");
    model.logits(&hidden).expect("logits")
}

/// Logits within 1e-5 of the largest, of rows of one length and of right-padded ones.
pub fn same_logits(folder: &str) {
    let model = read(folder, &F32);
    let golden = tensors(&format!("{folder}/expected.safetensors"));
    let far = gap(&logits(&model, &golden["ids"]), &golden["logits"]);
    println!("{folder}: {far:.1e}");
    assert!(far < 1e-5, "{folder}: logits {far:e} from transformers");
    // Padding on the right: what real positions see is not changed by it.
    let real = golden["padded_mask"].to_kind(Kind::Bool);
    let found = logits(&model, &golden["padded_ids"]).index(&[Some(&real)]);
    let far = gap(&found, &golden["padded_logits"].index(&[Some(&real)]));
    assert!(far < 1e-5, "{folder}: padded logits {far:e} from transformers");
}

/// The same greedy text, the prompt at once or in two pieces, then token by token.
pub fn same_text(folder: &str) {
    let _no_grad = tch::no_grad_guard();
    let model = read(folder, &F32);
    let golden = tensors(&format!("{folder}/expected.safetensors"));
    let expected = Vec::<i64>::try_from(&golden["greedy"]).expect("tokens");
    assert!(expected.len() >= 24);
    for cut in [6, 2] {
        let mut cache = model.cache();
        let mut next = |ids: &Tensor| {
            let hidden = model.hidden(ids, Mode::Eval, Some(&mut cache));
            let last = hidden.expect("hidden").select(1, -1);
            model.logits(&last).expect("logits").argmax(-1, false)
        };
        let prompt = &golden["prompt"];
        let mut token = next(&prompt.narrow(1, 0, cut));
        if cut < 6 {
            token = next(&prompt.narrow(1, cut, 6 - cut));
        }
        let mut found = Vec::new();
        for _ in 0..expected.len() {
            found.push(token.int64_value(&[0]));
            token = next(&token.view([1, 1]));
        }
        assert_eq!(found, expected, "{folder}, prompt cut at {cut}");
    }
}

#[test]
fn logits_are_transformers() {
    NAMES.iter().for_each(|name| same_logits(&format!("llama_{name}")));
}

#[test]
fn greedy_text_is_transformers() {
    NAMES.iter().for_each(|name| same_text(&format!("llama_{name}")));
}
