//! The names under which adapter files hold tensors: PEFT's, and those that the same
//! tensors have where something else wrote them.
use super::peft::PREFIX;

/// What other wrappers put into a name: torch.compile, FSDP, recomputation.
const WRAPPERS: [&str; 3] =
    ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// What PEFT hangs on a module.
const HALVES: [&str; 5] = [
    "lora_A",
    "lora_B",
    "lora_magnitude_vector",
    "lora_embedding_A",
    "lora_embedding_B",
];

/// A key as [`read`] understands it.
#[derive(Debug, PartialEq)]
pub(super) struct Key {
    /// As `save_pretrained` of PEFT writes it, without its prefix.
    pub(super) name: String,
    /// The adapter that the key names, if it does.
    pub(super) adapter: Option<String>,
}

/// What a key of an adapter file means: without the prefix of PEFT, or with it twice;
/// of a model that was wrapped once more; with the name of its adapter, as in the
/// `state_dict` of a PeftModel. `None` for the untrained copy that PEFT keeps of a
/// module that is trained whole.
pub(super) fn read(key: &str) -> Option<Key> {
    let parts = key.split('.').filter(|part| !WRAPPERS.contains(part));
    let mut parts: Vec<&str> = parts.skip_while(|part| *part == "module").collect();
    let prefix: Vec<&str> = PREFIX.trim_end_matches('.').split('.').collect();
    while parts.starts_with(&prefix) {
        parts.drain(..prefix.len());
    }
    while parts.starts_with(&["model", "model"]) {
        parts.remove(0);
    }
    if matches!(parts[..], ["layers" | "embed_tokens" | "norm", ..]) {
        parts.insert(0, "model");
    }
    if parts.contains(&"original_module") {
        return None;
    }
    let mut adapter = None;
    if let Some(at) = parts.iter().position(|part| *part == "modules_to_save") {
        if parts.len() > at + 2 {
            adapter = Some(parts.remove(at + 1).to_string());
        }
        parts.remove(at);
    }
    if let Some(at) = parts.iter().position(|part| HALVES.contains(part)) {
        let half = parts[at];
        let is_weight = matches!(half, "lora_A" | "lora_B");
        let last = parts.split_off(at + 1);
        let (named, kind) = match last[..] {
            [] | ["weight"] => (None, "weight"),
            ["bias"] => (None, "bias"),
            [name] | [name, "weight"] => (Some(name), "weight"),
            [name, "bias"] => (Some(name), "bias"),
            _ => {
                parts.extend(last);
                return Some(Key { name: parts.join("."), adapter });
            }
        };
        adapter = named.map(str::to_string).or(adapter);
        if is_weight || kind == "bias" {
            parts.push(kind);
        }
    }
    Some(Key { name: parts.join("."), adapter })
}

/// What a tensor without a place in the model is, and the way out. `name` is as [`read`]
/// gives it; `shape` and `base` are its shape and that of the model's tensor of this
/// name, if there is one. `None` where nothing is known of it.
pub(super) fn explain(
    name: &str,
    shape: &[i64],
    base: Option<&[i64]>,
) -> Option<String> {
    const MERGE: &str = "merge it in Python (`PeftModel.from_pretrained(model, \
                         ADAPTER).merge_and_unload().save_pretrained('OUT')`), and \
                         give OUT as --model";
    let has = |part: &str| name.split('.').any(|p| p == part);
    let starts = |start: &str| name.split('.').any(|p| p.starts_with(start));
    let embedding = has("embed_tokens") || has("lm_head");
    if has("token_adapter") || has("trainable_tokens_delta") {
        return Some(format!(
            "rows of the embedding that were trained by themselves \
             (trainable_token_indices), which is not read; {MERGE}"
        ));
    }
    if embedding && starts("lora_") {
        let module = if has("lm_head") { "the head" } else { "the embedding" };
        return Some(format!(
            "a LoRA update of {module} ({}); adapters are read beside the linears of \
             the layers. {MERGE} (of a model with tie_word_embeddings: true, give \
             the head a copy of its own and set that to false first)",
            if has("lm_head") { "lm_head" } else { "embed_tokens" },
        ));
    }
    if embedding {
        return Some(match base {
            Some([rows, _]) if shape.first().is_some_and(|n| n != rows) => format!(
                "an embedding for {} tokens, and the base has {rows}: the vocabulary \
                 was resized before training. Resize the base as well \
                 (`model.resize_token_embeddings({0})`), then {MERGE}",
                shape[0]
            ),
            _ => format!(
                "an embedding saved with the adapter, and not that of this base, \
                 while modules_to_save does not name it: either the adapter is of \
                 another base, or the embedding was trained too. Then {MERGE}"
            ),
        });
    }
    if name.ends_with("experts.lora_A.weight")
        || name.ends_with("experts.lora_B.weight")
        || name.contains("experts.base_layer.")
    {
        return Some(format!(
            "an update of all experts of a layer in one tensor (target_parameters), \
             as PEFT writes it over transformers 5, which is not read; {MERGE}"
        ));
    }
    for (part, method) in [
        ("ia3_l", "IA3"),
        ("hada_", "LoHa"),
        ("lokr_", "LoKr"),
        ("oft_", "OFT"),
        ("vera_", "VeRA"),
        ("lora_E", "AdaLoRA"),
        ("prompt_", "prompt tuning"),
        ("lora_down", "another program's LoRA (kohya, lycoris)"),
        ("lora_up", "another program's LoRA (kohya, lycoris)"),
    ] {
        if starts(part) {
            return Some(format!("of {method}, and only PEFT's LoRA is read"));
        }
    }
    if name.contains(".base_layer.") || base.is_some() {
        return Some(
            "a weight of the base that was saved with the adapter, and is not this \
             base's: save the adapter alone, with save_pretrained of PEFT"
                .into(),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(key: &str) -> String {
        read(key).expect(key).name
    }

    #[test]
    fn one_name_whoever_wrote_it() {
        let q = "model.layers.0.self_attn.q_proj";
        for (half, written) in [
            ("lora_A.weight", &["lora_A.weight", "lora_A.x.weight", "lora_A"][..]),
            ("lora_B.bias", &["lora_B.bias", "lora_B.default.bias"]),
            (
                "lora_magnitude_vector",
                &[
                    "lora_magnitude_vector",
                    "lora_magnitude_vector.weight",
                    "lora_magnitude_vector.default.weight",
                    "lora_magnitude_vector.default",
                ],
            ),
        ] {
            for half_written in written {
                for before in [
                    "base_model.model.model.",
                    "base_model.model.base_model.model.model.",
                    "base_model.model.model.model.",
                    "model.",
                    "",
                    "module.base_model.model.model.",
                    "base_model.model._orig_mod.model.",
                    "_fsdp_wrapped_module.base_model.model.model.",
                ] {
                    let at = "layers.0.self_attn.q_proj";
                    let key = format!("{before}{at}.{half_written}");
                    assert_eq!(name(&key), format!("{q}.{half}"), "{key}");
                }
            }
        }
        for key in [
            "base_model.model.score.weight",
            "base_model.model.score.modules_to_save.default.weight",
            "base_model.model.score.modules_to_save.weight",
            "score.weight",
        ] {
            assert_eq!(name(key), "score.weight");
        }
        assert_eq!(read("base_model.model.score.original_module.weight"), None);
        let named = read("a.lora_A.mine.weight").expect("a key");
        assert_eq!(named.adapter.as_deref(), Some("mine"));
    }
}
