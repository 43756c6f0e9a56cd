//! Scores for a whole row, and what they mean.
use super::Task;
use crate::checkpoint::atomic;
use crate::data::Labels;
use crate::files::{CONFIG as LONGEST, read_small};
use crate::lora;
use crate::nn::dropout::normal;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;
use tch::{Device, Kind, Reduction, Tensor};

const CONFIG: &str = "config.json";

/// `z = W h`: scores z [S, C] of rows from the final hidden states h [S, D] of their
/// last tokens. W [C, D] is f32 whatever the model computes in, and has no bias, as
/// `score` in transformers' models for sequence classification.
#[derive(Debug)]
pub struct Head {
    /// W.
    pub weight: Tensor,
    /// What the scores are for: classes, or one number.
    pub labels: Labels,
}

impl Head {
    /// W from N(0, 0.02²), as transformers starts one.
    pub fn random(labels: Labels, width: i64, seed: u64, device: Device) -> Self {
        let shape = [labels.scores(), width];
        let z = normal((shape[0] * width) as usize, seed, u32::MAX);
        let weight = Tensor::from_slice(&z).view(shape).to_device(device) * 0.02;
        Self { weight, labels }
    }

    /// z.
    pub fn scores(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.to_kind(Kind::Float).f_linear(&self.weight, None::<Tensor>)?)
    }

    /// Summed over the rows: cross-entropy, or the squared error.
    pub fn loss(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let scores = self.scores(hidden)?;
        Ok(match self.labels {
            Labels::Classes(_) => scores.f_cross_entropy_loss(
                targets,
                None::<Tensor>,
                Reduction::Sum,
                -100,
                0.,
            )?,
            Labels::Numbers => {
                scores.squeeze_dim(1).f_mse_loss(targets, Reduction::Sum)?
            }
        })
    }

    /// The trained tensor by its name in the checkpoint.
    pub fn named(&self) -> (String, Tensor) {
        ("score.weight".into(), self.weight.shallow_clone())
    }

    /// Writes the base's `config.json` with the labels into `dir`: with it,
    /// `AutoConfig.from_pretrained(dir)` says how many scores to build and what each
    /// means, which PEFT's own files do not.
    pub fn save_config(&self, dir: &Path, base: &Path) -> Result<()> {
        let mut config = read(&base.join(CONFIG))?;
        let names = match &self.labels {
            Labels::Classes(names) => names.clone(),
            Labels::Numbers => vec!["LABEL_0".into()],
        };
        let numbered = || names.iter().enumerate();
        let id2label: Map<_, _> =
            numbered().map(|(i, n)| (i.to_string(), json!(n))).collect();
        let label2id: Map<_, _> =
            numbered().map(|(i, n)| (n.clone(), json!(i))).collect();
        if let Some(name) = config["architectures"][0].as_str() {
            let name = name.replace("ForCausalLM", "ForSequenceClassification");
            config["architectures"] = json!([name]);
        }
        config["id2label"] = id2label.into();
        config["label2id"] = label2id.into();
        config["problem_type"] = match self.labels {
            Labels::Classes(_) => json!("single_label_classification"),
            Labels::Numbers => json!("regression"),
        };
        let text = serde_json::to_string_pretty(&config).unwrap_or_default();
        atomic::bytes(&dir.join(CONFIG), text.as_bytes())
    }
}

/// What an adapter's scores mean.
#[derive(Clone, Debug, PartialEq)]
pub enum Meaning {
    /// This, as its folder says.
    Known(Labels),
    /// Nothing says; so many scores, of which only the numbers are known.
    Unnamed(i64),
}

impl Meaning {
    /// How many scores.
    pub fn scores(&self) -> i64 {
        match self {
            Self::Known(labels) => labels.scores(),
            Self::Unnamed(scores) => *scores,
        }
    }
}

/// What the scores of the adapter in `dir` mean, by its `config.json` or
/// `adapter_config.json`; PEFT itself writes neither. `None` for an adapter without a
/// score head.
///
/// # Errors
/// Names that are not one for each score; what is no classifier of single labels.
pub fn saved_labels(dir: &Path) -> Result<Option<Meaning>> {
    let Some(scores) = lora::head_scores(dir)? else { return Ok(None) };
    for name in [CONFIG, "adapter_config.json"] {
        let path = dir.join(name);
        if !path.exists() {
            continue;
        }
        let config = read(&path)?;
        match config["problem_type"].as_str() {
            Some("regression") => return Ok(Some(Meaning::Known(Labels::Numbers))),
            Some("multi_label_classification") => {
                let what = "problem_type: multi_label_classification, in which a row \
                            may have several labels, is not computed";
                return Err(Error::file(&path, what));
            }
            _ => {}
        }
        let Some(names) = config["id2label"].as_object() else { continue };
        let name =
            |i: usize| names.get(&i.to_string())?.as_str().map(str::to_string);
        let listed: Option<Vec<String>> = (0..names.len()).map(name).collect();
        let Some(listed) = listed else {
            let what = "id2label: names by number, from 0 without gaps";
            return Err(Error::file(&path, what));
        };
        named(&listed, scores)
            .map_err(|what| Error::file(&path, format!("id2label: {what}")))?;
        // What transformers writes where nobody gave names: they say nothing.
        let numbered = |(i, n): (usize, &String)| *n == format!("LABEL_{i}");
        if listed.iter().enumerate().all(numbered) {
            continue;
        }
        return Ok(Some(Meaning::Known(Labels::Classes(listed))));
    }
    Ok(Some(Meaning::Unnamed(scores)))
}

/// Whether there is one name for each score.
fn named(names: &[String], scores: i64) -> std::result::Result<(), String> {
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    match (names.len() as i64 == scores, distinct.len() == names.len()) {
        (false, _) => Err(format!(
            "{} names, and the adapter has {scores} scores (score.weight)",
            names.len()
        )),
        (true, false) => Err("a name stands there twice".into()),
        (true, true) => Ok(()),
    }
}

/// The labels to read rows with, of a run or of the adapter in `dir`, where `given` are
/// those of `--labels`. `None`: they are the rows' own.
///
/// An adapter that exists has learned which score is which class, and where nothing
/// says it, that is not guessed: only rows whose labels are the numbers of the scores
/// can be read then.
///
/// # Errors
/// As [`saved_labels`]; names that do not fit the adapter, or contradict it; an adapter
/// of another task.
pub fn labels_for(
    task: Task,
    dir: Option<&Path>,
    given: &[String],
) -> Result<Option<(Labels, bool)>> {
    let flag = |what: String| Err(Error::setting("--labels", what));
    if !given.is_empty() && task != Task::Classification {
        return flag("only with --task classification".into());
    }
    let meaning = dir.map(saved_labels).transpose()?.flatten();
    let other = |kind: &str| {
        let dir = dir.unwrap_or(Path::new("")).display();
        let what = format!(
            "{}, but the adapter in {dir} is one of --task {kind}",
            task.name()
        );
        Err(Error::setting("--task", what))
    };
    let wanted = (!given.is_empty()).then(|| Labels::Classes(given.to_vec()));
    Ok(match (task, meaning, wanted) {
        (Task::CausalLm, None, _) => None,
        (Task::CausalLm, Some(meaning), _) => {
            return other(match meaning.scores() {
                1 => "regression",
                _ => "classification",
            });
        }
        (Task::Regression, Some(Meaning::Known(Labels::Classes(_))), _) => {
            return other("classification");
        }
        (Task::Regression, Some(Meaning::Unnamed(n)), _) if n != 1 => {
            return other("classification");
        }
        (Task::Regression, ..) => Some((Labels::Numbers, true)),
        (_, Some(Meaning::Known(Labels::Numbers)), _) => return other("regression"),
        (_, Some(Meaning::Unnamed(1)), _) => return other("regression"),
        (_, Some(Meaning::Unnamed(n)), Some(labels)) => {
            if let Err(what) = named(given, n) {
                return flag(what);
            }
            Some((labels, true))
        }
        (_, Some(Meaning::Unnamed(n)), None) => {
            let numbers = (0..n).map(|i| i.to_string()).collect();
            Some((Labels::Classes(numbers), false))
        }
        (_, Some(Meaning::Known(known)), Some(labels)) if known != labels => {
            let Labels::Classes(names) = &known else { return Ok(None) };
            return flag(format!(
                "{}, but the adapter's own are {}",
                given.join(","),
                names.join(",")
            ));
        }
        (_, Some(Meaning::Known(known)), _) => Some((known, true)),
        (_, None, Some(labels)) => {
            if let Err(what) = named(given, given.len() as i64) {
                return flag(what);
            }
            Some((labels, true))
        }
        (_, None, None) => None,
    })
}

/// `e`, with the way out where a label has no number and the adapter no names.
pub fn unnamed(e: Error, dir: &Path) -> Error {
    match e {
        Error::Row { path, line, what } if what.contains("`label`") => {
            let what = format!(
                "{what}. The adapter in {} does not say which of its scores is which \
                 class: give their names in the order of the scores, --labels \
                 NAME0,NAME1,..., or a config.json with id2label in that folder",
                dir.display()
            );
            Error::Row { path, line, what }
        }
        other => other,
    }
}

fn read(path: &Path) -> Result<Value> {
    let bytes = read_small(path, LONGEST)?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(config)) => Ok(Value::Object(config)),
        Ok(_) => Err(Error::file(path, "not a JSON object")),
        Err(e) => Err(Error::file(path, format!("not JSON: {e}"))),
    }
}
