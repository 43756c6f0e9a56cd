//! How a run held its model and read its rows, as it left it beside its adapter.
use super::state::STATE;
use super::{ComputeDtype, QuantType, Task};
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The settings of a run without which its adapter scores otherwise than in the run:
/// each as `trainer_state.json` has it, `None` where nothing says so.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trained {
    /// The file that was read.
    pub path: PathBuf,
    /// What the rows taught.
    pub task: Option<Task>,
    /// Tokens of a row at most.
    pub max_length: Option<usize>,
    /// Whether of {prompt, completion} the completion alone was learned.
    pub completion_only_loss: Option<bool>,
    /// Whether of {messages} the assistant's turns alone were learned.
    pub assistant_only_loss: Option<bool>,
    /// Whether the base model was held in 4 bits.
    pub load_in_4bit: Option<bool>,
    /// In which code.
    pub bnb_4bit_quant_type: Option<QuantType>,
    /// Weights that shared a scale.
    pub bnb_4bit_blocksize: Option<usize>,
    /// Whether the scales were quantized as well.
    pub bnb_4bit_use_double_quant: Option<bool>,
    /// The kind that was computed in.
    pub compute_dtype: Option<ComputeDtype>,
}

impl Trained {
    /// Reads the `trainer_state.json` in an adapter's folder. Where there is none, or
    /// one of another program, which has no settings of ours, nothing is known.
    ///
    /// # Errors
    /// One of ours that cannot be read, by file and key.
    pub fn of(adapter: &Path) -> Result<Self> {
        let path = adapter.join(STATE);
        let bytes = match crate::files::text(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            read => read.map_err(|e| Error::io(&path, e))?,
        };
        let ours = String::from_utf8_lossy(&bytes).contains("\"settings\"");
        let state: Value = match serde_json::from_slice(&bytes) {
            Ok(state) => state,
            // Python writes NaN, which is no JSON.
            Err(_) if !ours => return Ok(Self::default()),
            Err(e) => {
                let what = format!(
                    "damaged: {e}. It says how the adapter's run held its model; \
                     without it, give the flags of that run"
                );
                return Err(Error::file(path, what));
            }
        };
        let of = &state["settings"];
        Ok(Self {
            task: get(&path, of, "task")?,
            max_length: get(&path, of, "max_length")?,
            completion_only_loss: get(&path, of, "completion_only_loss")?,
            assistant_only_loss: get(&path, of, "assistant_only_loss")?,
            load_in_4bit: get(&path, of, "load_in_4bit")?,
            bnb_4bit_quant_type: get(&path, of, "bnb_4bit_quant_type")?,
            bnb_4bit_blocksize: get(&path, of, "bnb_4bit_blocksize")?,
            bnb_4bit_use_double_quant: get(&path, of, "bnb_4bit_use_double_quant")?,
            compute_dtype: get(&path, of, "compute_dtype")?,
            path,
        })
    }
}

fn get<T: DeserializeOwned>(
    path: &Path,
    settings: &Value,
    key: &str,
) -> Result<Option<T>> {
    let found = &settings[key];
    serde_json::from_value(found.clone())
        .map_err(|e| Error::file(path, format!("settings: {key} is {found}: {e}")))
}
