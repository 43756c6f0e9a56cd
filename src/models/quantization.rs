//! `quantization_config` of config.json: how the files hold the weights already.
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;
use tch::Kind;

/// NF4 by bitsandbytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Bitsandbytes {
    /// Linears that were left as they are.
    skip: Vec<String>,
}

impl Bitsandbytes {
    /// What `config.json` says of it: `None` for weights that are not quantized.
    ///
    /// # Errors
    /// Another quantization, with what to do; or keys that contradict each other.
    pub(super) fn of(config: &Value) -> std::result::Result<Option<Self>, String> {
        let at = match config.get("quantization_config") {
            None | Some(Value::Null) => return Ok(None),
            Some(at) => at,
        };
        let on = |key: &str| at.get(key).and_then(Value::as_bool).unwrap_or(false);
        let text = |key: &str| at.get(key).and_then(Value::as_str);
        let refuse = |what: String| {
            Err(format!("quantization_config: {what}; give the original checkpoint"))
        };
        match text("quant_method") {
            Some("bitsandbytes") => {}
            Some("fp8") => return Ok(None), // read tensor by tensor
            None if on("load_in_4bit") || on("load_in_8bit") => {} // before 2023-09
            other => {
                let found = other.unwrap_or("none");
                let what = "of quantized checkpoints only bitsandbytes' NF4 is read";
                return refuse(format!("quant_method `{found}`: {what}"));
            }
        }
        if on("load_in_8bit") || !on("load_in_4bit") {
            let what = "load_in_4bit is not set: these are 8-bit weights (LLM.int8()), \
                        which keep their outliers apart; only 4-bit ones are read";
            return refuse(what.into());
        }
        // bitsandbytes' own default is fp4.
        let code = text("bnb_4bit_quant_type").unwrap_or("fp4");
        if code != "nf4" {
            let what = format!("bnb_4bit_quant_type `{code}`: only nf4 is read");
            return refuse(what);
        }
        let skip = match at.get("llm_int8_skip_modules") {
            None | Some(Value::Null) => vec![],
            Some(list) => serde_json::from_value(list.clone()).map_err(|_| {
                "quantization_config.llm_int8_skip_modules: a list of names"
                    .to_string()
            })?,
        };
        Ok(Some(Self { skip }))
    }

    /// Whether the linear `name` was left as it is, by transformers' rule.
    pub(super) fn skips(&self, name: &str) -> bool {
        let last = name.rsplit('.').next().unwrap_or(name);
        self.skip.iter().any(|key| {
            key == last || key == name || name.contains(&format!("{key}."))
        })
    }
}

/// `config.json` of `dir` as it is.
pub(super) fn config_json(dir: &Path) -> Result<Value> {
    let path = dir.join("config.json");
    let bytes = crate::files::text(&path).map_err(|e| Error::io(&path, e))?;
    let json = serde_json::from_slice(&bytes);
    json.map_err(|e| Error::file(&path, format!("not JSON: {e}")))
}

/// The `quantization_config` that transformers writes for NF4.
pub(super) fn written(double_quant: bool, compute: Kind) -> Value {
    let compute = match compute {
        Kind::BFloat16 => "bfloat16",
        Kind::Half => "float16",
        _ => "float32",
    };
    json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": compute,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double_quant,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes",
    })
}
