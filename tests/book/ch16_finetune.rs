//! Chapter 16: the loss beside transformers' Trainer, how it is divided, what a run
//! takes, and that every command of the page and of the README is one. (Losses, resume
//! and tasks beside PEFT: `parity_train`, `train`, `tasks`.)
use crate::golden::json;
use downhill::checkpoint::PromptFrees;
use downhill::data::{Batch, Example, Labels};
use downhill::models::{DecoderConfig, Survey, published, read_config};
use downhill::nn::Mode;
use downhill::optim::Optimizer;
use downhill::train::{Memory, Sketch, batch_loss};
use downhill_lab::tune::{
    ROWS, Recipe, adapters, gradients, halves, micro_steps, random, train,
};
use downhill_lab::{Shipped, peak, shipped};
use std::path::Path;
use std::process::Command;
use tch::{Kind, Tensor};

fn far(a: &Tensor, b: &Tensor) -> f64 {
    ((a - b).norm() / b.norm()).double_value(&[])
}

/// transformers counts the first token of each row among the learned, which nothing
/// predicts: its mean is too small by that. The split does not matter to it.
#[test]
fn trainer_divides_by_the_first_tokens_too() {
    let golden = json("ch16_trainer.json");
    let rows = golden["rows"].as_array().unwrap().iter();
    let ids = |row: &serde_json::Value| {
        let ids = row.as_array().unwrap().iter();
        ids.map(|id| id.as_i64().unwrap()).collect::<Vec<_>>()
    };
    let rows: Vec<Example> = rows
        .map(|row| Example { labels: ids(row), ids: ids(row), line: 1 })
        .collect();
    let ours = shipped::paragraphs(ROWS).unwrap();
    assert!(ours.iter().zip(&rows).all(|(a, b)| a.ids == b.ids), "other rows");
    let batch = Batch::collate(&rows.iter().collect::<Vec<_>>());
    let model = Shipped::load().unwrap().model;
    let sum = batch_loss(&model, &batch, Mode::Eval).unwrap().double_value(&[]);
    let learned = batch.supervised() as f64;
    for run in golden["runs"].as_array().unwrap() {
        let theirs = run["loss"].as_f64().unwrap();
        let expected = sum / (learned + rows.len() as f64);
        assert!((theirs / expected - 1.).abs() < 1e-5, "{theirs} for {expected}");
        assert!((theirs / (sum / learned) - 1.).abs() > 5e-3);
    }
}

#[test]
fn a_step_is_the_same_however_it_is_split() {
    let rows = shipped::paragraphs(ROWS).unwrap();
    let rows: Vec<&Example> = rows.iter().collect();
    let mut model = shipped::in_four_bits().unwrap();
    let mut optimizer = adapters(&mut model, None, 1).unwrap();
    let mut of = |size: usize, own: bool| {
        optimizer.zero_grad();
        let parts: Vec<Batch> = rows.chunks(size).map(Batch::collate).collect();
        let loss = |b: &Batch, _| batch_loss(&model, b, Mode::Eval);
        let mean = micro_steps(&parts, own, &loss).unwrap();
        (mean, gradients(&optimizer))
    };
    let (mean, whole) = of(8, false);
    for size in [4, 2, 1] {
        let (again, split) = of(size, false);
        assert!((again / mean - 1.).abs() < 1e-6 && far(&split, &whole) < 1e-5);
        assert!(far(&of(size, true).1, &whole) > 0.05, "own means of {size}");
    }
    // In one piece there is nothing to divide otherwise.
    assert!(far(&of(8, true).1, &whole) < 1e-6);
}

#[test]
fn a_run_goes_on_from_its_state_alone() {
    tch::set_num_threads(1);
    let r = Recipe { steps: 6, peak: 5e-3, seed: 3 };
    let [whole, exact, adapter, again] =
        [0, 1, 2, 3].map(|i| halves(&r, i).unwrap());
    assert!(whole.0 == exact.0 && whole.1 == exact.1);
    // The first loss after the break is that of the same adapters; then they part.
    assert_eq!(whole.0[..4], adapter.0[..4]);
    assert_ne!(whole.0[4..], adapter.0[4..]);
    assert!(whole.1 != adapter.1 && adapter.1 != again.1);
}

/// What the mistakes of the chapter do to a row.
#[test]
fn labels_not_shifted_ask_for_the_token_itself() {
    let mut row = shipped::paragraphs(1).unwrap().remove(0);
    let n = row.ids.len() as i64;
    let batch = Batch::collate(&[&row]);
    let asked = |b: &Batch| b.ids.index_select(0, &b.learned);
    assert_eq!(batch.targets, row_tensor(&row.ids[1..]));
    row.labels.rotate_right(1);
    let batch = Batch::collate(&[&row]);
    assert_eq!((batch.supervised(), &batch.targets), (n - 1, &asked(&batch)));
}

fn row_tensor(ids: &[i64]) -> Tensor {
    Tensor::from_slice(ids)
}

#[test]
fn years_and_books_have_their_labels() {
    let [learn, exam] = shipped::years().unwrap();
    assert_eq!((learn.rows.len(), exam.rows.len()), (1604, 150));
    let first = &learn.rows[0]; // sixteen hundred and thirty-seven
    assert!((first.target + 2.13).abs() < 1e-9 && first.line == 1);
    let tokenizer = shipped::tokenizer().unwrap();
    assert!(tokenizer.decode(&first.ids).unwrap().ends_with("thirty-seven.\nDate:"));
    assert!(learn.rows.iter().chain(&exam.rows).all(|r| r.target.abs() < 7.));
    let [learn, exam] = shipped::books().unwrap();
    let Labels::Classes(names) = &learn.labels else { panic!("no classes") };
    assert_eq!(names.len(), 3);
    assert_eq!(exam.counts(), [28; 3]);
    let counts = learn.counts();
    assert!(counts.iter().all(|n| *n >= 200), "{counts:?}");
    for row in &exam.rows {
        assert!(
            !learn.rows.iter().any(|r| r.ids == row.ids),
            "learned and examined"
        );
    }
}

/// Names and GiB of the README's table.
fn readme() -> Vec<(&'static str, &'static str)> {
    let text = include_str!("../../README.md");
    let from = text.find("| checkpoint | weights, GiB").expect("the table");
    let lines = text[from..].lines().skip(2).take_while(|l| l.starts_with('|'));
    let cells = lines.map(|l| l.trim_matches('|').split_once('|').expect("cells"));
    cells.map(|(names, gib)| (names.trim(), gib.trim())).collect()
}

#[test]
fn the_readmes_sizes_are_the_shapes() {
    let table = readme();
    for (name, config) in published().unwrap() {
        if name == "DeepSeek-V3" {
            continue; // 671 billion: it is not run on one machine
        }
        let line = table.iter().find(|(names, _)| names.contains(name));
        let (_, told) =
            line.unwrap_or_else(|| panic!("{name} is not in the README"));
        let bytes =
            Survey::of(name, config).unwrap().weight_bytes(Some(64), Kind::BFloat16);
        let gib = bytes as f64 / f64::from(1 << 30);
        assert_eq!(format!("{gib:.2}"), *told, "{name}");
    }
}

fn sketch<'a>(rows: u64, length: u64) -> Sketch<'a> {
    Sketch {
        rows,
        length,
        kind: Kind::Float,
        nf4: Some(64),
        r: 16,
        targets: &["all-linear"],
        dropout: true,
        checkpointing: false,
        cuda: false,
        side_by_side: false,
    }
}

#[test]
fn the_parts_of_a_plan_are_those_of_the_model() {
    let (_, config) = published().unwrap().remove(0);
    let survey = Survey::of("llama", config).unwrap();
    let plan = |s: &Sketch| Memory::planned(&survey, s);
    let s = sketch(2, 512);
    let (whole, twice) = (plan(&s), plan(&sketch(4, 512)));
    let trained = survey.adapter_parameters(16, &["all-linear"]) as usize;
    assert_eq!(whole.part("weights") as u64, survey.weight_bytes(Some(64), s.kind));
    assert_eq!(whole.part("adapters"), 4 * trained);
    assert_eq!(whole.part("optimizer state"), 8 * trained);
    assert_eq!(2 * whole.part("activations"), twice.part("activations"));
    assert_eq!(whole.total(), whole.0.iter().map(|p| p.1).sum::<usize>());
    // What each setting is for.
    let less = |other: Sketch| assert!(plan(&other).total() < whole.total());
    less(Sketch { checkpointing: true, ..s.clone() });
    less(Sketch { dropout: false, ..s.clone() });
    less(Sketch { targets: &["q_proj", "v_proj"], ..s.clone() });
    less(Sketch { kind: Kind::BFloat16, ..s.clone() });
    let card = |dropout| plan(&Sketch { cuda: true, dropout, ..s.clone() }).total();
    assert_eq!(card(true), card(false), "a GPU draws its masks again");
}

const MODE: &str = "DOWNHILL_TEST_NEED";

/// A shape of each kind of attention and feed-forward layer.
fn shapes() -> Vec<(&'static str, DecoderConfig)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let read = |name: &str| read_config(&dir.join(name)).unwrap();
    let wide = |c: DecoderConfig| DecoderConfig {
        hidden_size: 512,
        intermediate_size: 1024,
        num_hidden_layers: 4,
        num_attention_heads: 8,
        num_key_value_heads: if c.latent.is_some() { 8 } else { 4 },
        // So that every weight has a megabyte, and goes back to the system when freed.
        head_dim: if c.latent.is_some() { 64 } else { 128 },
        vocab_size: 8192,
        tie_word_embeddings: true,
        ..c
    };
    let mut v2 = wide(read("v2_lite"));
    if let (Some(latent), Some(experts)) = (&mut v2.latent, &mut v2.experts) {
        (latent.kv_lora_rank, latent.qk_nope_head_dim) = (256, 64);
        latent.v_head_dim = 64;
        experts.intermediate_size = 512;
    }
    vec![
        ("llama", wide(read("llama_gqa"))),
        ("qwen3", wide(read("qwen3_gqa"))),
        ("deepseek_v2", v2),
    ]
}

/// In a process of its own, whose memory nothing else has touched: what a step was
/// planned to take above its weights, and what it took.
fn measure(case: &str) {
    tch::set_num_threads(1);
    let _frees = PromptFrees::new();
    let (wanted, checkpointing) = case.split_once(' ').expect("a case");
    let checkpointing = checkpointing == "true";
    let ids: Vec<i64> = (0..256).map(|i| i * 7919 % 8192).collect();
    let row = Example { labels: ids.clone(), ids, line: 1 };
    let batch = Batch::collate(&[&row; 4]);
    let (name, config) = shapes().into_iter().find(|s| s.0 == wanted).unwrap();
    let survey = Survey::of(name, config.clone()).unwrap();
    let mut model = random(&config, true).unwrap();
    model.checkpointing = checkpointing;
    let _optimizer = adapters(&mut model, None, 1).unwrap();
    let mode = Mode::Train { seed: 1, step: 0 };
    let step = || {
        batch_loss(&model, &batch, mode)?.backward();
        Ok(())
    };
    let took = peak(step).unwrap().expect("told by the system");
    let s = Sketch { checkpointing, ..sketch(4, 256) };
    let plan = Memory::planned(&survey, &s);
    let parts = ["gradients", "activations", Memory::HIGHEST, Memory::COMPILED];
    let planned: usize = parts.iter().map(|p| plan.part(p)).sum();
    println!("\nneed {planned} {took}");
}

#[test]
fn a_step_takes_what_was_planned() {
    let name = "ch16_finetune::a_step_takes_what_was_planned";
    if let Ok(case) = std::env::var(MODE) {
        return measure(&case);
    }
    if !cfg!(target_os = "linux") {
        return;
    }
    for (shape, _) in shapes() {
        for checkpointing in [false, true] {
            let case = format!("{shape} {checkpointing}");
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
            let output = command.env(MODE, &case).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{text}");
            let line =
                text.lines().find(|l| l.starts_with("need ")).expect("a line");
            let number = |i| line.split(' ').nth(i).unwrap().parse::<f64>().unwrap();
            let ratio = number(1) / number(2);
            println!("{case}: planned {ratio:.2} times what it took");
            assert!((ratio - 1.).abs() < 0.2, "{case}: {ratio:.2} {line}");
        }
    }
}

/// Every `downhill` line between ```sh fences, `\` at its end joined to the next.
pub fn commands(text: &str) -> Vec<Vec<String>> {
    let blocks = text.split("```sh\n").skip(1);
    let blocks = blocks.map(|b| b.split("```").next().unwrap().replace("\\\n", " "));
    let mut found = vec![];
    for line in blocks.collect::<String>().lines() {
        let line = line.split(" #").next().unwrap();
        // What stands between quotes is one word.
        let parts = line.split('"').enumerate();
        let words = parts.flat_map(|(i, part)| match i % 2 {
            0 => part.split_whitespace().map(String::from).collect(),
            _ => vec![part.to_string()],
        });
        let mut words = words.collect::<Vec<_>>().into_iter();
        if words.next().is_some_and(|w| w.ends_with("/downhill")) {
            found.push(words.collect());
        }
    }
    found
}

/// An unknown flag or a wrong value is refused where it stands; `--help` behind all
/// others is only reached if there is none.
#[test]
fn every_command_of_page_and_readme_is_one() {
    let page = include_str!("../../chapters/ch16_finetune.md");
    let all = [commands(page), commands(include_str!("../../README.md"))].concat();
    assert!(all.len() > 15, "{} commands", all.len());
    for words in all {
        let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
        let output = c.args(&words).arg("--help").output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}\n{error}");
    }
    let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
    let wrong = ["finetune", "--lr-scheduler-type", "cosinus", "--help"];
    assert!(!c.args(wrong).output().unwrap().status.success());
}

#[test]
fn a_few_steps_bring_the_loss_down() {
    let mut model = shipped::in_four_bits().unwrap();
    let mut optimizer = adapters(&mut model, None, 5).unwrap();
    let data = shipped::dates("train").unwrap();
    let collate = |rows: &[usize]| {
        Batch::collate(&rows.iter().map(|&i| &data.examples[i]).collect::<Vec<_>>())
    };
    let rows: (usize, &dyn Fn(&[usize]) -> Batch) = (data.len(), &collate);
    let of = |batch: &Batch, mode| batch_loss(&model, batch, mode);
    let (r, mut losses) = (Recipe { steps: 8, peak: 5e-3, seed: 5 }, vec![]);
    let see = &mut |step: i64, loss: f64| {
        losses.push((step, loss));
        Ok(())
    };
    train(&r, (0, 8), &mut optimizer, rows, &of, see).unwrap();
    assert_eq!((losses[0].0, losses[7].0), (1, 8));
    assert!(losses[7].1 < 0.5 * losses[0].1, "{losses:?}");
}
