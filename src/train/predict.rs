//! Answers to the prompts of a data set, beside what was expected.
use super::Rows;
use crate::data::{Dataset, Question, Tokenizer};
use crate::generate::{Sampling, generate};
use crate::models::Decoder;
use crate::{Error, Result};
use std::ops::ControlFlow;

/// One prompt, its expected and its given answer, as text.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// What the model was asked.
    pub prompt: String,
    /// The completion in the file.
    pub expected: String,
    /// What the model wrote, greedily.
    pub answer: String,
}

/// Refuses rows that cannot be asked, before a model is read for it: the first ones of
/// a streamed file, all of another.
///
/// # Errors
/// No rows; none of text; no tokenizer; a row without a prompt, by line.
pub fn askable(tokenizer: Option<&Tokenizer>, rows: Option<&Rows>) -> Result<()> {
    let refuse = |what| Err(Error::setting("--predict-with-generate", what));
    let Some(rows) = rows else {
        return refuse("rows to ask are needed: --eval-file or --validation-split");
    };
    let Some(data) = rows.text() else {
        return refuse("only with --task causal-lm: other tasks write no text");
    };
    if tokenizer.is_none() {
        return refuse("needs a tokenizer.json beside the model, and there is none");
    }
    let n = if data.is_streamed() { data.len().min(1024) } else { data.len() };
    (0..n).try_for_each(|i| data.questions(i).map(|_| ()))
}

/// Answers what every row asks, each turn of the assistant by itself. Stops writing a few tokens after the length
/// of the expected answer: what is longer cannot match.
pub fn predict(
    model: &Decoder,
    tokenizer: &Tokenizer,
    data: &Dataset,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Prediction>> {
    let mut predictions = Vec::with_capacity(data.len());
    for i in 0..data.len() {
        for Question { prompt, expected } in data.questions(i)? {
            let max_new_tokens = expected.len() + 8;
            let sampling = Sampling { max_new_tokens, ..Default::default() };
            let stop = tokenizer.stop_ids();
            let go_on = &mut |_| Ok(ControlFlow::Continue(()));
            let answer = generate(model, &prompt, stop, &sampling, go_on)?;
            predictions.push(Prediction {
                prompt: tokenizer.decode(&prompt)?.trim().into(),
                expected: tokenizer.decode(&expected)?.trim().into(),
                answer: tokenizer.decode(&answer)?.trim().into(),
            });
        }
        progress(i + 1, data.len());
    }
    Ok(predictions)
}

/// Share of answers that are exactly as expected, white space at the ends aside.
pub fn exact_match(predictions: &[Prediction]) -> f64 {
    let right = predictions.iter().filter(|p| p.answer == p.expected).count();
    right as f64 / predictions.len().max(1) as f64
}
