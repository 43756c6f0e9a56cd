//! What a model is asked of a row with `--predict-with-generate`.
use super::{VOCAB, rows, tokenizer};
use crate::common::refused;
use crate::golden::path;
use downhill::data::{Dataset, Message, Question, RowEncoder, Tokenizer};
use serde_json::{Value, json};

fn data(row: &Value, encoder: RowEncoder, streamed: bool) -> Dataset {
    let (dir, file) = super::file(rows(&[row.clone(), row.clone()]));
    let data = match streamed {
        true => Dataset::stream(&file, encoder),
        false => Dataset::read(&file, encoder),
    };
    drop(dir); // what is held, and what is open, stays readable
    data.expect("rows")
}

/// Each turn of the assistant is asked by itself, after a history as the template
/// writes it for that: R1's without the reasoning of earlier turns.
#[test]
fn every_turn_is_a_question() {
    let r1 = Tokenizer::from_dir(path("ch12_r1")).expect("R1");
    let said = [
        ("user", "1+1?"),
        ("assistant", "<think>\neasy\n</think>\n\n2"),
        ("user", "2+2?"),
        ("assistant", "<think>\nhm\n</think>\n\n4"),
        ("user", "3+3?"),
        ("assistant", "6"),
    ];
    let turn =
        |(role, content): &(&str, &str)| json!({"role": role, "content": content});
    let row = json!({"messages": said.iter().map(turn).collect::<Vec<_>>()});
    let turns: Vec<Message> =
        said.iter().map(|(r, c)| Message::new(*r, *c)).collect();
    let mut encoder = RowEncoder::new(Some(&r1), 999, 200_000);
    for (streamed, assistant_only_loss) in
        [(false, true), (true, true), (false, false), (true, false)]
    {
        encoder.assistant_only_loss = assistant_only_loss;
        let data = data(&row, encoder.clone(), streamed);
        let questions = data.questions(1).unwrap();
        assert_eq!(questions.len(), 3);
        for (q, upto) in questions.iter().zip([1, 3, 5]) {
            let asked = r1.chat_prompt(&turns[..upto]).unwrap().unwrap();
            assert_eq!(r1.decode_all(&q.prompt).unwrap(), asked);
            assert_eq!(q.prompt, r1.encode(&asked, false).unwrap());
            assert!(upto < 3 || !asked.contains("easy"), "{asked}");
        }
        let eos = "<｜end▁of▁sentence｜>";
        let expected: Vec<String> = questions
            .iter()
            .map(|q| r1.decode_all(&q.expected).unwrap().trim().to_string())
            .collect();
        let thought = |t: &str, n: u8| format!("{t}\n</think>\n\n{n}{eos}");
        let unthought = format!("</think>\n\n6{eos}");
        assert_eq!(expected, [thought("easy", 2), thought("hm", 4), unthought]);
    }
    // A turn that the length limit cuts off is not learned, and not asked.
    let first = data(&row, encoder.clone(), false).questions(0).unwrap()[0].clone();
    encoder.max_length = first.prompt.len() + 1;
    let cut = data(&row, encoder, false).questions(0).unwrap();
    assert_eq!(cut, [first]);
}

#[test]
fn a_prompt_is_asked_however_much_is_learned() {
    let tokenizer = tokenizer();
    let row = json!({"prompt": "the hen", "completion": "the end"});
    let mut encoder = RowEncoder::new(Some(&tokenizer), 99, VOCAB);
    let masked = data(&row, encoder.clone(), false);
    let example = &masked.examples[0];
    let question =
        Question { prompt: example.prompt().to_vec(), expected: example.target() };
    assert_eq!(masked.questions(0).unwrap(), std::slice::from_ref(&question));
    encoder.completion_only_loss = false;
    for streamed in [false, true] {
        let data = data(&row, encoder.clone(), streamed);
        assert_eq!(data.questions(1).unwrap(), std::slice::from_ref(&question));
    }
    // Rows of ids: each run of learned ones.
    let row = json!({"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, -100, 4, 5]});
    let found = data(&row, encoder, false).questions(0).unwrap();
    let asked = |prompt: &[i64], expected: &[i64]| Question {
        prompt: prompt.into(),
        expected: expected.into(),
    };
    assert_eq!(found, [asked(&[1], &[2]), asked(&[1, 2, 3], &[4, 5])]);
}

#[test]
fn rows_without_a_prompt_name_their_line() {
    let plain = Tokenizer::from_dir(super::folder(&super::golden()[3]).path());
    let plain = plain.expect("a tokenizer without BOS");
    let parts = ["rows.jsonl:2: ", "no prompt to ask", "--predict-with-generate"];
    for row in [
        json!({"text": "the hen"}),
        json!({"prompt": "", "completion": "hen"}),
        json!({"input_ids": [1, 2], "labels": [1, 2]}),
    ] {
        for streamed in [false, true] {
            let encoder = RowEncoder::new(Some(&plain), 99, VOCAB);
            refused(data(&row, encoder, streamed).questions(1), &parts);
        }
    }
    // A text that is all learned has no prompt even behind a BOS.
    let encoder = RowEncoder::new(Some(&tokenizer()), 99, VOCAB);
    let row = json!({"text": "the hen"});
    refused(data(&row, encoder.clone(), false).questions(1), &parts);
    // But an empty prompt behind one is a question.
    let row = json!({"prompt": "", "completion": "hen"});
    let found = data(&row, encoder, false).questions(0).unwrap();
    assert_eq!(found[0].prompt, [tokenizer().bos_id().unwrap()]);
}
