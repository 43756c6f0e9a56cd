//! Chapter 15: the short fine-tunes that compare adapters, and what their page says of
//! the first step. (The adapter itself: `lora`; its kinds beside PEFT's: `lora_kinds`;
//! merging: `lora_merge`.)
use downhill::data::{Dataset, Tokenizer};
use downhill::lora::{self, LoraConfig, Modules};
use downhill::models::{LoadOptions, Survey, load, published, survey};
use downhill::nn::Weight;
use downhill::train::{exact_match, predict};
use downhill_lab::dates::{Arm, Dates, Tuning, compare, loss};
use std::fs;
use tch::{Device, Kind, Tensor};

fn rank(r: i64, alpha: f64) -> LoraConfig {
    let target_modules = Modules::AllLinear;
    LoraConfig { r, alpha, target_modules, ..LoraConfig::default() }
}

fn tuning(lora: Option<LoraConfig>, lr: f64, steps: i64) -> Tuning {
    Tuning { lora, nf4: false, lr, steps }
}

#[test]
fn shapes_count_what_models_have() {
    let tiny = survey("examples/data/tiny".as_ref()).unwrap();
    let mut model = Dates::load(4, 4).unwrap().model(false).unwrap();
    let linears = model.linears_mut().into_iter();
    let sizes = linears.map(|(_, l)| l.weight.shape());
    let sizes: i64 = sizes.map(|[o, i]| o * i).sum();
    assert_eq!(tiny.linear_parameters(), sizes as u64);
    let named = lora::attach(model.linears_mut(), &rank(5, 5.), 1, Device::Cpu);
    let trained: usize = named.unwrap().iter().map(|(_, t)| t.numel()).sum();
    assert_eq!(tiny.adapter_parameters(5, &["all-linear"]), trained as u64);
    // All weights, in billions, as they are published.
    let known = [
        ("deepseek-coder-1.3b", 1.35),
        ("R1-Distill-Qwen-1.5B", 1.78),
        ("deepseek-llm-7b", 6.91),
        ("R1-Distill-Qwen-7B", 7.62),
        ("R1-Distill-Llama-8B", 8.03),
        ("DeepSeek-V2-Lite", 15.7),
        ("R1-Distill-Llama-70B", 70.6),
        ("DeepSeek-V3", 671.),
    ];
    let mut found = vec![];
    for (name, config) in published().unwrap() {
        let all = Survey::of(name, config).unwrap().parameters as f64 / 1e9;
        let Some((_, told)) = known.iter().find(|(n, _)| *n == name) else {
            continue;
        };
        assert!((all / told - 1.).abs() < 4e-3, "{name}: {all}");
        found.push(name);
    }
    assert_eq!(found, known.map(|(name, _)| name));
}

#[test]
fn an_untrained_adapter_changes_nothing_and_a_seed_decides_all() {
    let dates = Dates::load(16, 8).unwrap();
    let base = dates.judge(&dates.model(false).unwrap()).unwrap();
    let still = dates.tune(&tuning(Some(rank(4, 8.)), 0., 1), 1).unwrap();
    assert_eq!(still.held_out, base);
    let run = |seed| dates.tune(&tuning(Some(rank(4, 8.)), 3e-3, 3), seed).unwrap();
    let (one, again, other) = (run(1), run(1), run(2));
    assert_eq!(one.losses, again.losses);
    assert_eq!(one.held_out, again.held_out);
    assert_ne!(one.losses, other.losses);
    assert!(one.held_out[0] < base[0], "{:?} from {base:?}", one.held_out);
}

#[test]
fn over_nf4_is_over_four_bits() {
    let dates = Dates::load(4, 8).unwrap();
    let options = LoadOptions {
        quantize: true,
        blocksize: 64,
        double_quant: true,
        kind: Kind::Float,
        device: Device::Cpu,
    };
    let dir = std::path::Path::new("examples/data/tiny");
    let mut four = load(dir, &options, &mut |_, _| ()).unwrap();
    let is_nf4 = |w: &Weight| matches!(w, Weight::Nf4(_));
    assert!(four.linears_mut().iter().all(|(_, l)| is_nf4(&l.weight)));
    let mut ours = dates.model(true).unwrap();
    assert!(!ours.linears_mut().iter().any(|(_, l)| is_nf4(&l.weight)));
    let [theirs, there] = [&four, &ours].map(|model| dates.judge(model).unwrap()[0]);
    assert!((theirs / there - 1.).abs() < 1e-5, "{theirs} {there}");
    let plain = dates.judge(&dates.model(false).unwrap()).unwrap()[0];
    assert!((plain / there - 1.).abs() > 1e-3);
}

/// "Right" is what greedy decoding writes.
#[test]
fn judged_right_is_written_right() {
    let dates = Dates::load(400, 24).unwrap();
    let tuned = dates.tune(&tuning(None, 1e-3, 90), 1).unwrap();
    let tokenizer = Tokenizer::from_dir("examples/data/tiny").unwrap();
    let all =
        Dataset::load("examples/data/dates_eval.jsonl", Some(&tokenizer), 512, 2048);
    let mut rows = all.unwrap().examples;
    rows.sort_by_key(|row| (row.ids.len(), row.line));
    let text = fs::read_to_string("examples/data/dates_eval.jsonl").unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let shortest: Vec<&str> =
        rows.iter().take(24).map(|row| lines[row.line - 1]).collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.jsonl");
    fs::write(&file, shortest.join("\n")).unwrap();
    let rows = Dataset::load(file, Some(&tokenizer), 512, 2048).unwrap();
    let answers = predict(&tuned.model, &tokenizer, &rows, &mut |_, _| ()).unwrap();
    let [_, judged] = tuned.held_out;
    assert!((exact_match(&answers) - judged).abs() < 1e-9, "{judged}");
    assert!(judged > 0., "nothing was learned, nothing is tested");
}

#[test]
fn the_first_step_grows_with_rank_as_the_scale_says() {
    let dates = Dates::load(16, 4).unwrap();
    let gradients = |config: &LoraConfig| -> Vec<Tensor> {
        let mut model = dates.model(false).unwrap();
        let named = lora::attach(model.linears_mut(), config, 1, Device::Cpu);
        let named = named.unwrap();
        loss(&model, &dates.batch(1, 0)).unwrap().backward();
        let zero = |t: &Tensor| bool::try_from(t.eq(0.).all()).unwrap();
        let (a, b): (Vec<_>, Vec<_>) =
            named.into_iter().partition(|(name, _)| name.contains("lora_A"));
        assert!(a.iter().all(|(_, t)| zero(&t.grad()))); // as B is zero
        b.into_iter().map(|(_, t)| t.grad()).collect()
    };
    let sum = |all: &[Tensor]| -> f64 {
        all.iter().map(|g| g.square().sum(Kind::Double).double_value(&[])).sum()
    };
    let rs = |r| LoraConfig { use_rslora: true, ..rank(r, 8.) };
    let (plain, stable) = (gradients(&rank(16, 8.)), gradients(&rs(16)));
    // The same A: the scales' ratio is √16, and gradients are linear in it.
    for (plain, stable) in plain.iter().zip(&stable) {
        let far = (plain * 4. - stable).abs().max().double_value(&[]);
        assert!(far < 1e-4 * stable.abs().max().double_value(&[]), "{far}");
    }
    // Four times the rank: as many numbers more, each by the scale less.
    let [few, many] = [4, 64].map(|r| sum(&gradients(&rs(r))));
    assert!((0.7..1.4).contains(&(many / few)), "{}", many / few);
    let [few, many] = [4, 64].map(|r| sum(&gradients(&rank(r, 8.))));
    assert!((0.7..1.4).contains(&(16. * many / few)), "{}", many / few);
}

#[test]
fn arms_share_rates_and_seeds() {
    let dates = Dates::load(16, 4).unwrap();
    let arm = |key, lora| Arm { key, name: key, lora };
    let arms = [arm("still", Some(rank(2, 4.))), arm("whole", None)];
    let rates = [1e-9, 2e-3];
    let found = compare(&dates, &arms, &rates, 4, 5..8).unwrap();
    for (arm, o) in arms.iter().zip(&found) {
        assert_eq!(o.rates.iter().map(|r| r.0).collect::<Vec<_>>(), rates);
        assert_eq!(o.best, 2e-3);
        // The search is on the first seed, what is told on the others.
        let run = |seed| {
            let t = tuning(arm.lora.clone(), 2e-3, 4);
            dates.tune(&t, seed).unwrap().held_out[0]
        };
        assert_eq!(o.rates[1].1, run(5));
        let (a, b) = (run(6), run(7));
        assert_eq!([o.loss.low, o.loss.high], [a.min(b), a.max(b)]);
    }
    let tiny = survey("examples/data/tiny".as_ref()).unwrap();
    assert_eq!(found[1].trained as u64, tiny.linear_parameters());
}
