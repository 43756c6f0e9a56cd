//! The tokenizer: byte-level BPE in the manner of deepseek-coder.
use super::rng::Rng;
use super::text::register_entry;
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use std::path::Path;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

pub const BOS: &str = "<｜begin▁of▁sentence｜>";
pub const EOS: &str = "<｜end▁of▁sentence｜>";
pub const PAD: &str = "<｜▁pad▁｜>";
const USER: &str = "<｜User｜>";
const ASSISTANT: &str = "<｜Assistant｜>";
pub const VOCABULARY: usize = 2048;

/// Learns the pieces. The rules for what a piece may span are deepseek-coder's: a word
/// or a run of punctuation with the space before it, and never two digits.
pub fn train(books: &[Vec<String>], rows: &[Value], seed: u64) -> Result<Tokenizer> {
    let split = |regex: &str| {
        let pattern = SplitPattern::Regex(regex.into());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
        split.map(Into::into).map_err(plain)
    };
    let bytes = ByteLevel::new(false, true, false);
    let rules = vec![
        split(r"[\r\n]")?,
        split(r"\s?\p{L}+")?,
        split(r"\s?\p{P}+")?,
        split("[一-龥ࠀ-一가-퟿]+")?,
        Digits::new(true).into(),
        bytes.into(),
    ];
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer
        .with_pre_tokenizer(Some(Sequence::new(rules)))
        .with_post_processor(Some(ByteLevel::new(true, false, true)))
        .with_decoder(Some(ByteLevel::new(true, true, true)));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(VOCABULARY - [BOS, EOS, PAD, USER, ASSISTANT].len())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build()
        .into();
    let mut rng = Rng(seed);
    let register: Vec<String> = (0..300)
        .map(|_| register_entry(&mut rng))
        .map(|(entry, copy)| entry + &copy)
        .collect();
    let prompts = rows.iter().filter_map(|row| row["prompt"].as_str());
    let text = books.iter().flatten().chain(&register).map(String::as_str);
    tokenizer.train(&mut trainer, text.chain(prompts)).map_err(plain)?;

    let named = |special| move |name: &str| AddedToken::from(name, special);
    tokenizer.add_special_tokens([BOS, EOS, PAD].map(named(true))).map_err(plain)?;
    tokenizer.add_tokens([USER, ASSISTANT].map(named(false))).map_err(plain)?;
    let pieces = tokenizer.get_vocab_size(true);
    ensure!(pieces == VOCABULARY, "{pieces} pieces instead of {VOCABULARY}");
    Ok(tokenizer)
}

fn plain(error: tokenizers::Error) -> anyhow::Error {
    anyhow!("tokenizers: {error}")
}

/// Ids of a text, without BOS.
pub fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<i64>> {
    let encoding = tokenizer.encode(text, false).map_err(plain)?;
    Ok(encoding.get_ids().iter().map(|&id| id as i64).collect())
}

/// Text of ids, special pieces left out.
pub fn decode(tokenizer: &Tokenizer, ids: &[i64]) -> Result<String> {
    let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
    tokenizer.decode(&ids, true).map_err(plain)
}

/// Id of one piece.
pub fn id(tokenizer: &Tokenizer, piece: &str) -> Result<i64> {
    let id =
        tokenizer.token_to_id(piece).with_context(|| format!("no `{piece}`"))?;
    Ok(id as i64)
}

/// Writes `tokenizer.json` and `tokenizer_config.json`.
pub fn write(tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    tokenizer.save(folder.join("tokenizer.json"), false).map_err(plain)?;
    let template = format!(
        "{{{{ bos_token }}}}{{% for message in messages %}}\
         {{% if message['role'] == 'user' %}}{{{{ '{USER}' + message['content'] }}}}\
         {{% elif message['role'] == 'assistant' %}}\
         {{{{ '{ASSISTANT}' + message['content'] + eos_token }}}}\
         {{% else %}}{{{{ message['content'] }}}}{{% endif %}}{{% endfor %}}\
         {{% if add_generation_prompt %}}{{{{ '{ASSISTANT}' }}}}{{% endif %}}"
    );
    let config = json!({
        "add_bos_token": true,
        "add_eos_token": false,
        "bos_token": BOS,
        "chat_template": template,
        "clean_up_tokenization_spaces": false,
        "eos_token": EOS,
        "legacy": true,
        "model_max_length": 512,
        "pad_token": PAD,
        "tokenizer_class": "LlamaTokenizerFast",
        "unk_token": null,
    });
    super::write_json(&folder.join("tokenizer_config.json"), &config)
}
