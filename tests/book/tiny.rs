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
#[path = "../../examples/make_tiny/main.rs"]
mod make_tiny;

fn data(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "examples", "data", name].iter().collect()
}

fn rows(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(data(name)).expect(name);
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn tiny() -> (Tokenizer, Decoder) {
    let options = LoadOptions {
        quantize: false,
        blocksize: 64,
        double_quant: false,
        kind: Kind::Float,
        device: Device::Cpu,
    };
    let model = load(&data("tiny"), &options, &mut |_, _| ()).expect("a checkpoint");
    (Tokenizer::from_dir(data("tiny")).expect("a tokenizer"), model)
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
        assert!(made == kept, "{file} differs: run `cargo run --example make_tiny`");
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
fn the_checkpoint_is_small() {
    let files = std::fs::read_dir(data("tiny")).expect("a folder");
    let bytes: u64 =
        files.map(|f| f.and_then(|f| f.metadata()).expect("a file").len()).sum();
    assert!(bytes <= 8_000_000, "{bytes} bytes");
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
