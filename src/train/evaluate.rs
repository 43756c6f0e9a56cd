//! What a model makes of held-out rows: its loss, and the metric of its task.
use super::loss::{at_fault, hidden, loss_of};
use super::{Confusion, Head, Rows, mae, r2};
use crate::data::{Batch, Labels};
use crate::models::Decoder;
use crate::nn::Mode;
use crate::plot::{Chart, Figure, Heat};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use tch::{Kind, no_grad};

/// The loss on a set of rows, without dropout, and how good the predictions are.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// Mean per learned token, or per labelled row.
    pub loss: f64,
    /// By task.
    pub metrics: Metrics,
}

/// The numbers that people compare models by.
#[derive(Clone, Debug)]
pub enum Metrics {
    /// Of a language model: `exp(loss)`.
    Perplexity(f64),
    /// Of a classification, with the names of the classes.
    Classes(Confusion, Vec<String>),
    /// Of a regression: the true and the predicted numbers.
    Numbers(Vec<(f64, f64)>),
}

impl Evaluation {
    /// Runs the model over all rows.
    ///
    /// # Errors
    /// A loss that is infinite or NaN, by layer and rows; a streamed row that is wrong;
    /// what libtorch refuses.
    pub fn run(
        model: &Decoder,
        head: Option<&Head>,
        rows: &Rows,
        batch_size: usize,
    ) -> Result<Self> {
        let (mut sum, mut count) = (0., 0);
        let (mut truth, mut predicted) = (vec![], vec![]);
        let all: Vec<usize> = (0..rows.len()).collect();
        for some in all.chunks(batch_size.max(1)) {
            let Some(batch) = rows.batch(some)? else { continue };
            let batch = batch.to(model.device());
            count += batch.supervised();
            let part = no_grad(|| -> Result<f64> {
                let Some(head) = head else {
                    let loss = loss_of(model, None, &batch, Mode::Eval)?;
                    return Ok(loss.double_value(&[]));
                };
                let hidden = hidden(model, &batch, Mode::Eval, &mut |_, _| ())?;
                let hidden = hidden.index_select(0, &batch.learned);
                let scores = head.scores(&hidden)?;
                let scores = match head.labels {
                    Labels::Classes(_) => scores.argmax(1, false),
                    Labels::Numbers => scores.squeeze_dim(1),
                };
                predicted
                    .extend(Vec::<f64>::try_from(scores.to_kind(Kind::Double))?);
                let targets = batch.targets.to_kind(Kind::Double);
                truth.extend(Vec::<f64>::try_from(targets)?);
                Ok(head.loss(&hidden, &batch.targets)?.double_value(&[]))
            })?;
            if !part.is_finite() {
                return Err(not_finite(model, head, &batch));
            }
            sum += part;
        }
        let loss = sum / count.max(1) as f64;
        let pairs = truth.into_iter().zip(predicted);
        let metrics = match head.map(|h| &h.labels) {
            None => Metrics::Perplexity(loss.exp()),
            Some(Labels::Numbers) => Metrics::Numbers(pairs.collect()),
            Some(Labels::Classes(names)) => {
                let pairs = pairs.map(|(y, p)| (y as usize, p as usize));
                Metrics::Classes(Confusion::count(names.len(), pairs), names.clone())
            }
        };
        Ok(Self { loss, metrics })
    }

    /// The metrics by name, those that are defined.
    pub fn named(&self) -> Vec<(&'static str, f64)> {
        match &self.metrics {
            Metrics::Perplexity(p) => vec![("perplexity", *p)],
            Metrics::Classes(table, _) => {
                vec![("accuracy", table.accuracy()), ("macro_f1", table.macro_f1())]
            }
            Metrics::Numbers(pairs) => {
                let r2 = r2(pairs).map(|r2| ("r2", r2));
                [("mae", mae(pairs))].into_iter().chain(r2).collect()
            }
        }
    }

    /// The table of a classification: a row per true class, a column per predicted one.
    /// Empty for another task.
    pub fn confusion(&self) -> Result<Figure> {
        let Metrics::Classes(table, names) = &self.metrics else {
            return Chart::new("", "", "").draw();
        };
        let title = "Rows by true and predicted class (share of the true)";
        // What is longer would be cut at the picture's edge.
        let short = |name: &String| match name.char_indices().nth(12) {
            Some((end, _)) => format!("{}…", &name[..end]),
            None => name.clone(),
        };
        let names: Vec<String> = names.iter().map(short).collect();
        let mut heat = Heat::new(title, "predicted", "true", &names).high_is_dark();
        for (name, counts) in names.iter().zip(&table.0).rev() {
            let all: u64 = counts.iter().sum();
            let share = |n: &u64| *n as f64 / all.max(1) as f64;
            heat = heat.row(name, &counts.iter().map(share).collect::<Vec<_>>());
        }
        heat.draw()
    }

    /// All of it, each key after `eval_`, as transformers writes them.
    pub fn json(&self) -> Value {
        let mut all = Map::new();
        all.insert("eval_loss".into(), json!(self.loss));
        for (name, value) in self.named() {
            all.insert(format!("eval_{name}"), json!(value));
        }
        if let Metrics::Classes(table, names) = &self.metrics {
            all.insert("labels".into(), json!(names));
            all.insert("confusion".into(), json!(table.0));
        }
        all.into()
    }
}

/// Says where a loss stopped being a number.
fn not_finite(model: &Decoder, head: Option<&Head>, batch: &Batch) -> Error {
    let found = at_fault(model, head, (batch, Mode::Eval));
    let (layer, lines) = match found {
        Ok(Some((layer, lines))) => (layer, lines),
        _ => ("none found".into(), batch.lines.clone()),
    };
    Error::NonFinite(format!(
        "measuring: the loss is not finite. First layer at fault: {layer}; rows at \
         lines {lines:?} of the file measured on. Look at that layer's weights, and at \
         its adapter's, if it has one"
    ))
}

impl std::fmt::Display for Evaluation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "loss {:.4}", self.loss)?;
        for (name, value) in self.named() {
            write!(f, "  {} {value:.4}", name.replace('_', " "))?;
        }
        Ok(())
    }
}
