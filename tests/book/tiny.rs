//! The data that ships: the date task, and the tiny checkpoint as transformers sees it.
use super::golden::{floats, gap, json};
use clap::Parser;
use downhill::data::{Message, Tokenizer};
use downhill::generate::{Sampling, generate};
use downhill::models::{Decoder, LoadOptions, load};
use downhill::nn::Mode;
use serde_json::Value;
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor, no_grad};

#[allow(dead_code)] // its `main`
#[path = "../../lab/make_tiny/main.rs"]
mod make_tiny;

fn data(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "examples", "data", name].iter().collect()
}

fn rows(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(data(name)).expect(name);
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn tiny() -> (Tokenizer, Decoder) {
    (Tokenizer::from_dir(data("tiny")).expect("a tokenizer"), model("tiny", false))
}

fn model(name: &str, quantize: bool) -> Decoder {
    let options = LoadOptions {
        quantize,
        blocksize: 64,
        double_quant: false,
        kind: Kind::Float,
        device: Device::Cpu,
    };
    load(&data(name), &options, &mut |_, _| ()).expect("a checkpoint")
}

fn ints(value: &Value) -> Vec<i64> {
    let list = value.as_array().expect("a list");
    list.iter().map(|v| v.as_i64().expect("an integer")).collect()
}

/// What is committed is what `make_tiny --steps 0` writes, byte for byte.
#[test]
fn rows_and_tokenizer_are_those_that_the_program_makes() {
    let made = tempfile::tempdir().expect("a folder");
    let (from, to) = (data(""), made.path());
    let args = ["make_tiny", "--steps", "0", "--data"].map(OsStr::new);
    let folders = [from.as_os_str(), "--out".as_ref(), to.as_os_str()];
    let args = make_tiny::Args::parse_from(args.iter().copied().chain(folders));
    make_tiny::make(&args).expect("the rows and the tokenizer");
    for file in [
        "dates_train.jsonl",
        "dates_eval.jsonl",
        "tiny/tokenizer.json",
        "tiny/tokenizer_config.json",
    ] {
        let made = std::fs::read(made.path().join(file)).expect(file);
        let kept = std::fs::read(data(file)).expect(file);
        assert!(
            made == kept,
            "{file} differs: run `cargo run -p downhill-lab --bin make_tiny`"
        );
    }
}

/// No event of the examination is in a row to learn from, and no sentence of the
/// examination, its event cut out, has the shape of one.
#[test]
fn the_examination_is_new() {
    let almanac =
        make_tiny::dates::almanac(&data("almanac.tsv")).expect("an almanac");
    let (learn, exam) = (rows("dates_train.jsonl"), rows("dates_eval.jsonl"));
    let prompt = |row: &Value| row["prompt"].as_str().expect("a prompt").to_owned();
    let asked = |row: &Value| {
        let text = prompt(row);
        let event = almanac
            .iter()
            .filter(|event| {
                let capital = event.what[..1].to_ascii_uppercase();
                text.contains(&event.what)
                    || text.contains(&(capital + &event.what[1..]))
            })
            .max_by_key(|event| event.what.len());
        event.expect("an event of the almanac")
    };
    let learned: Vec<&str> = learn.iter().map(|row| &*asked(row).what).collect();
    for row in &exam {
        let event = asked(row);
        assert!(!learned.contains(&&*event.what), "{} was learned", event.what);
        let [y, m, d] = event.date;
        let iso = format!(" {y:04}-{m:02}-{d:02}");
        assert_eq!(row["completion"], iso, "{}", prompt(row));
        assert!(!prompt(row).contains(|c: char| c.is_ascii_digit()));
    }
    let pairs: Vec<_> = (0..make_tiny::dates::FRAMES.len())
        .flat_map(|frame| {
            (0..make_tiny::dates::FORMS).map(move |form| (frame, form))
        })
        .collect();
    let held =
        pairs.iter().filter(|(f, k)| make_tiny::dates::held_out(*f, *k)).count();
    assert_eq!((pairs.len(), held), (56, 8));
}

#[test]
fn a_date_is_spelled_out_as_people_do() {
    use make_tiny::dates::in_words;
    let first = in_words(0, [1800, 1, 1]);
    assert_eq!(first, "the first of January, eighteen hundred");
    let second = in_words(3, [1776, 7, 22]);
    assert_eq!(second, "July the twenty-second, seventeen seventy-six");
    let third = in_words(5, [1905, 5, 30]);
    assert_eq!(
        third,
        "the thirtieth day of May in the year nineteen hundred and five"
    );
    let fourth = in_words(6, [1999, 12, 12]);
    assert_eq!(fourth, "December the twelfth of the year nineteen ninety-nine");
}

#[test]
fn the_checkpoints_are_small() {
    for name in ["tiny", "tiny_moe"] {
        let files = std::fs::read_dir(data(name)).expect("a folder");
        let bytes: u64 =
            files.map(|f| f.and_then(|f| f.metadata()).expect("a file").len()).sum();
        assert!(bytes <= 8_000_000, "{name}: {bytes} bytes");
    }
}

#[test]
fn both_checkpoints_have_the_same_tokenizer() {
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    {
        let [a, b] = ["tiny", "tiny_moe"]
            .map(|dir| std::fs::read(data(&format!("{dir}/{file}"))).expect(file));
        assert!(a == b, "{file} differs");
    }
}

/// As DeepSeek's own library would: logits, and 64 tokens of greedy text.
#[test]
fn the_checkpoint_with_experts_says_what_it_says_in_transformers() {
    let golden = json("tiny_moe.json");
    let model = model("tiny_moe", false);
    let prompt = ints(&golden["prompt"]);
    let ids = Tensor::from_slice(&prompt).unsqueeze(0);
    let last = |model: &Decoder| {
        no_grad(|| {
            let hidden =
                model.hidden(&ids, Mode::Eval, None).expect("hidden states");
            model.logits(&hidden.select(1, -1)).expect("logits")
        })
    };
    let expected = Tensor::from_slice(&floats(&golden["logits"])).unsqueeze(0);
    let exact = last(&model).to_kind(Kind::Double);
    let off = gap(&exact, &expected);
    assert!(off < 1e-5, "{off}");
    let sampling = Sampling { max_new_tokens: 64, ..Sampling::default() };
    let mut on = |_| Ok(ControlFlow::Continue(()));
    let written = generate(&model, &prompt, &[], &sampling, &mut on).expect("text");
    assert_eq!([prompt.clone(), written].concat(), ints(&golden["greedy"]));
    // In four bits it is another model, but one that says much the same.
    let rough = last(&self::model("tiny_moe", true)).to_kind(Kind::Double);
    let [p, q] = [&exact, &rough].map(|t| t.log_softmax(-1, Kind::Double));
    let far = (p.exp() * (&p - &q)).sum(Kind::Double).double_value(&[]);
    assert!(far > 1e-6 && far < 0.3, "{far}");
}

#[test]
fn tokens_and_chat_are_those_of_transformers() {
    let golden = json("tiny.json");
    let tokenizer = Tokenizer::from_dir(data("tiny")).expect("a tokenizer");
    for case in golden["ids"].as_array().expect("cases") {
        let text = case["text"].as_str().expect("a text");
        let ids = tokenizer.encode(text, true).expect(text);
        assert_eq!(ids, ints(&case["ids"]), "{text}");
    }
    let chat = [
        Message::new("system", "Be brief."),
        Message::new("user", "When?"),
        Message::new("assistant", "Now."),
        Message::new("user", "Why?"),
    ];
    let text = tokenizer.chat_prompt(&chat).expect("a rendering");
    assert_eq!(text.as_deref(), golden["chat"].as_str());
}

#[test]
fn logits_and_greedy_text_are_those_of_transformers() {
    let golden = json("tiny.json");
    let (_, model) = tiny();
    let prompt = ints(&golden["ids"][1]["ids"]);
    let ids = Tensor::from_slice(&prompt).unsqueeze(0);
    let logits = no_grad(|| {
        let hidden = model.hidden(&ids, Mode::Eval, None).expect("hidden states");
        model.logits(&hidden.select(1, -1)).expect("logits")
    });
    let expected = Tensor::from_slice(&floats(&golden["logits"])).unsqueeze(0);
    let gap = gap(&logits.to_kind(Kind::Double), &expected);
    assert!(gap < 1e-5, "{gap}");
    let sampling = Sampling { max_new_tokens: 64, ..Sampling::default() };
    let mut on = |_| Ok(ControlFlow::Continue(()));
    let written = generate(&model, &prompt, &[], &sampling, &mut on).expect("text");
    assert_eq!([prompt, written].concat(), ints(&golden["greedy"]));
}
