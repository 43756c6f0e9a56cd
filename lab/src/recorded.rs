//! What the tokenizers of DeepSeek's lines make of the same strings. The real ones are
//! too large to ship; the tests' golden files hold their ids.
use super::text::find;
use downhill::checkpoint::read_safetensors;
use downhill::{Error, Result};
use serde_json::Value;
use std::ops::Range;
use tch::{Kind, Tensor};

const STRINGS: &str = "tests/golden/ch12_tokenizers.json";
const IDS: &str = "tests/golden/ch12_tokenizers.safetensors";

/// The strings, and how many tokens each tokenizer makes of them.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The strings of the tests.
    pub strings: Vec<String>,
    /// The checkpoints, and of each the tokens of each string, the BOS not counted.
    pub counts: Vec<(String, Vec<usize>)>,
}

impl Recorded {
    /// Kinds of strings: a name, and which of them.
    pub const KINDS: [(&str, Range<usize>); 7] = [
        ("English", 0..18),
        ("German, Spanish, French", 18..21),
        ("Russian, Greek", 21..23),
        ("Chinese", 25..39),
        ("Japanese", 39..42),
        ("code", 50..75),
        ("digits", 75..100),
    ];

    /// From the golden files, looked for in the working folder and those above it.
    ///
    /// # Errors
    /// They are in none of them; what is wrong with them.
    pub fn load() -> Result<Self> {
        let path = find(STRINGS)?;
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let all: Value = serde_json::from_slice(&bytes)
            .map_err(|e| Error::file(&path, e.to_string()))?;
        let list = |key: &str| all[key].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let ids = read_safetensors(&find(IDS)?)?;
        let numbers = |name: &str, part: &str| -> Result<Vec<i64>> {
            let key = format!("{name}.{part}");
            let found = ids.get(&key).ok_or_else(|| Error::file(IDS, key))?;
            Ok(Vec::try_from(Tensor::to_kind(found, Kind::Int64))?)
        };
        let mut counts = vec![];
        for checkpoint in list("checkpoints") {
            let name = text(&checkpoint["name"]);
            let bos = checkpoint["special"][0].as_i64();
            let (ids, mut from) = (numbers(&name, "ids")?, 0);
            let mut tokens = vec![];
            for n in numbers(&name, "lengths")? {
                let first = ids.get(from).copied();
                let begins = n > 0 && first.is_some() && first == bos;
                tokens.push(n as usize - usize::from(begins));
                from += n as usize;
            }
            counts.push((name, tokens));
        }
        Ok(Self { strings: list("strings").iter().map(text).collect(), counts })
    }

    /// Characters per token over some of the strings.
    pub fn characters(&self, some: Range<usize>, tokens: &[usize]) -> f64 {
        let characters =
            self.strings[some.clone()].iter().map(|s| s.chars().count());
        let tokens: usize = tokens[some].iter().sum();
        characters.sum::<usize>() as f64 / tokens as f64
    }
}
