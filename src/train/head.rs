//! Scores for a whole row, and what they mean.
use crate::checkpoint::atomic;
use crate::data::Labels;
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

/// What `config.json` in an adapter's folder says about its labels. None without one:
/// PEFT writes none.
pub fn saved_labels(dir: &Path) -> Result<Option<Labels>> {
    let path = dir.join(CONFIG);
    if !path.exists() {
        return Ok(None);
    }
    let config = read(&path)?;
    if config["problem_type"] == "regression" {
        return Ok(Some(Labels::Numbers));
    }
    let Some(names) = config["id2label"].as_object() else { return Ok(None) };
    let name = |i: usize| names.get(&i.to_string())?.as_str().map(str::to_string);
    let names: Option<Vec<String>> = (0..names.len()).map(name).collect();
    let wrong =
        || Error::file(&path, "id2label: names by number, from 0 without gaps");
    names.map(|n| Some(Labels::Classes(n))).ok_or_else(wrong)
}

fn read(path: &Path) -> Result<Value> {
    let bytes = crate::files::text(path).map_err(|e| Error::io(path, e))?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(config)) => Ok(Value::Object(config)),
        Ok(_) => Err(Error::file(path, "not a JSON object")),
        Err(e) => Err(Error::file(path, format!("not JSON: {e}"))),
    }
}
