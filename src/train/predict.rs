//! Answers to the prompts of a data set, beside what was expected.
use crate::Result;
use crate::data::{Dataset, Tokenizer};
use crate::generate::{Sampling, generate};
use crate::models::Decoder;
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

/// Answers every row that has a prompt. Stops writing a few tokens after the length
/// of the expected answer: what is longer cannot match.
pub fn predict(
    model: &Decoder,
    tokenizer: &Tokenizer,
    data: &Dataset,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Prediction>> {
    let mut predictions = Vec::with_capacity(data.len());
    for i in 0..data.len() {
        let Some(example) = data.row(i)? else { continue };
        let (prompt, target) = (example.prompt(), example.target());
        let max_new_tokens = target.len() + 8;
        let sampling = Sampling { max_new_tokens, ..Default::default() };
        let stop = tokenizer.stop_ids();
        let go_on = &mut |_| Ok(ControlFlow::Continue(()));
        let answer = generate(model, prompt, stop, &sampling, go_on)?;
        predictions.push(Prediction {
            prompt: tokenizer.decode(prompt)?.trim().into(),
            expected: tokenizer.decode(&target)?.trim().into(),
            answer: tokenizer.decode(&answer)?.trim().into(),
        });
        progress(i + 1, data.len());
    }
    Ok(predictions)
}

/// Share of answers that are exactly as expected, white space at the ends aside.
pub fn exact_match(predictions: &[Prediction]) -> f64 {
    let right = predictions.iter().filter(|p| p.answer == p.expected).count();
    right as f64 / predictions.len().max(1) as f64
}
