//! `config.json`, the index, safetensors headers and bodies, tokenizers.
use super::*;

const CONFIG: &str = "model/config.json";

#[test]
fn configs() {
    let set = |key: &'static str, value: Value| {
        move |b: &Bench| b.set(CONFIG, key, value.clone())
    };
    refuses(&[
        ("absent", &|b| b.remove(CONFIG), &["config.json"]),
        ("empty", &|b| b.put(CONFIG, ""), &["config.json", "not JSON"]),
        ("cut", &|b| b.cut(CONFIG, 40), &["config.json", "not JSON"]),
        ("a list", &|b| b.put(CONFIG, "[]"), &["config.json", "model_type"]),
        ("null", &|b| b.put(CONFIG, "null"), &["config.json", "model_type"]),
        ("bytes", &|b| b.put(CONFIG, [0xff, 0xfe, 0, 1]), &["config.json"]),
        ("deep", &|b| b.put(CONFIG, "[".repeat(200_000)), &["config.json"]),
        (
            "a folder",
            &|b| {
                b.remove(CONFIG);
                fs::create_dir(b.at(CONFIG)).unwrap();
            },
            &["config.json"],
        ),
        ("family", &set("model_type", json!("mamba")), &["config.json", "mamba"]),
        (
            "class",
            &set("architectures", json!(["DeepseekV3ForCausalLM"])),
            &["config.json", "DeepseekV3ForCausalLM"],
        ),
        (
            "no width",
            &|b| {
                b.json(CONFIG, |c| {
                    drop(c.as_object_mut().unwrap().remove("hidden_size"))
                })
            },
            &["config.json", "hidden_size"],
        ),
        ("text", &set("vocab_size", json!("300")), &["config.json", "vocab_size"]),
        ("float", &set("hidden_size", json!(32.5)), &["config.json", "hidden_size"]),
        (
            "negative",
            &set("num_hidden_layers", json!(-2)),
            &["config.json", "num_hidden_layers"],
        ),
        (
            "heads",
            &set("num_key_value_heads", json!(3)),
            &["config.json", "num_key_value_heads"],
        ),
        ("enormous", &set("hidden_size", json!(1u64 << 40)), &["hidden_size"]),
        // Fits no tensor, and must not be allocated to find out.
        (
            "too wide",
            &set("intermediate_size", json!(1 << 30)),
            &["model.layers.0.mlp", "model.safetensors", "[48, 32]"],
        ),
        (
            "too deep",
            &set("num_hidden_layers", json!(1_000_000)),
            &["model.layers.2.", "missing"],
        ),
        ("too shallow", &set("num_hidden_layers", json!(1)), &["model.layers.1."]),
        (
            "rope",
            &set("rope_scaling", json!({"type": "ntk", "factor": 4.})),
            &["config.json", "ntk", "yarn"],
        ),
        (
            "rope without factor",
            &set("rope_scaling", json!({"type": "linear"})),
            &["config.json", "rope_scaling.factor"],
        ),
        (
            "quantized",
            &set("quantization_config", json!({"quant_method": "gptq"})),
            &["config.json", "quantization_config"],
        ),
        (
            "fp8 in other blocks",
            &set(
                "quantization_config",
                json!({"quant_method": "fp8", "weight_block_size": [1, 128]}),
            ),
            &["config.json", "quantization_config", "[1,128]", "[128, 128]"],
        ),
        ("act", &set("hidden_act", json!("gelu")), &["config.json", "hidden_act"]),
    ]);
}

const INDEX: &str = "model/model.safetensors.index.json";
const SHARD: &str = "model/model-00001-of-00001.safetensors";

/// The weights as one shard with this index.
fn sharded(b: &Bench, change: impl FnOnce(&mut Value)) {
    fs::rename(b.at(WEIGHTS), b.at(SHARD)).unwrap();
    let names = downhill::checkpoint::read_safetensors(&b.at(SHARD)).unwrap();
    let map: serde_json::Map<String, Value> = names
        .into_keys()
        .map(|name| (name, json!("model-00001-of-00001.safetensors")))
        .collect();
    let mut index = json!({"weight_map": map});
    change(&mut index);
    b.put(INDEX, index.to_string());
}

#[test]
fn indices() {
    let name = "model.norm.weight";
    let to = |file: &'static str| {
        move |b: &Bench| sharded(b, |i| i["weight_map"][name] = json!(file))
    };
    let raw = |text: &'static str| {
        move |b: &Bench| {
            sharded(b, |_| ());
            b.put(INDEX, text);
        }
    };
    let index = "model.safetensors.index.json";
    refuses(&[
        ("no JSON", &raw("{"), &[index, "weight_map"]),
        ("no map", &raw("{}"), &[index, "weight_map"]),
        ("a number", &raw(r#"{"weight_map": {"a": 7}}"#), &[index, "weight_map"]),
        (
            "absent",
            &to("model-00002-of-00002.safetensors"),
            &[index, "00002", "absent"],
        ),
        ("above", &to("../model.safetensors"), &[index, "../model.safetensors"]),
        ("elsewhere", &to("/etc/passwd"), &[index, "/etc/passwd"]),
        ("below", &to("sub/a.safetensors"), &[index, "sub/a.safetensors"]),
        ("no name", &to(""), &[index]),
        (
            "not in the shard",
            &|b| {
                sharded(b, |i| {
                    i["weight_map"]["x"] = json!("model-00001-of-00001.safetensors");
                })
            },
            &["tensor `x`", "00001"],
        ),
        (
            "not in the index",
            &|b| {
                sharded(b, |i| {
                    drop(i["weight_map"].as_object_mut().unwrap().remove(name));
                })
            },
            &[name, index],
        ),
        (
            "an empty map",
            &raw(r#"{"weight_map": {}}"#),
            &["model.embed_tokens.weight", "missing"],
        ),
        (
            "a cut shard",
            &|b| {
                sharded(b, |_| ());
                b.cut(SHARD, 5000);
            },
            &["model-00001-of-00001.safetensors"],
        ),
    ]);
}

#[test]
fn safetensors_headers() {
    let raw = |header: &'static str, body: usize| {
        move |b: &Bench| b.put(WEIGHTS, safetensors(header, &vec![0; body]))
    };
    let one = |text: &'static str| {
        move |b: &Bench| {
            b.header(WEIGHTS, |h| {
                h["model.norm.weight"] = serde_json::from_str(text).unwrap();
            })
        }
    };
    let file = "model.safetensors";
    let norm = "model.norm.weight";
    refuses(&[
        ("empty", &|b| b.put(WEIGHTS, ""), &[file, "0 bytes"]),
        ("4 bytes", &|b| b.cut(WEIGHTS, 4), &[file, "4 bytes"]),
        ("8 bytes", &|b| b.cut(WEIGHTS, 8), &[file, "truncated"]),
        ("in the header", &|b| b.cut(WEIGHTS, 100), &[file, "truncated"]),
        ("in the body", &|b| b.cut(WEIGHTS, 9000), &[file, "truncated"]),
        (
            "a page",
            &|b| b.put(WEIGHTS, "<!DOCTYPE html><html><body>404</body></html>"),
            &[file, "safetensors"],
        ),
        (
            "a pointer",
            &|b| b.put(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"),
            &[file, "safetensors"],
        ),
        ("endless", &|b| b.put(WEIGHTS, [0xff; 64]), &[file]),
        ("no JSON", &raw("{\"a\":", 0), &[file]),
        ("a list", &raw("[]", 0), &[file]),
        ("nothing in it", &raw("{}", 0), &["model.embed_tokens.weight", "missing"]),
        (
            "not text",
            &|b| b.put(WEIGHTS, [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()),
            &[file],
        ),
        (
            "more bytes",
            &|b| b.put(WEIGHTS, [b.read(WEIGHTS), vec![0]].concat()),
            &[file],
        ),
        (
            "beyond the end",
            &one(r#"{"dtype":"F32","shape":[32],"data_offsets":[0,999999999]}"#),
            &[file],
        ),
        (
            "backwards",
            &one(r#"{"dtype":"F32","shape":[32],"data_offsets":[128,0]}"#),
            &[file],
        ),
        (
            "negative",
            &one(r#"{"dtype":"F32","shape":[32],"data_offsets":[-128,0]}"#),
            &[file],
        ),
        (
            "overlapping",
            &one(r#"{"dtype":"F32","shape":[32],"data_offsets":[0,128]}"#),
            &[file],
        ),
        (
            "overflowing",
            &raw(
                r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}"#,
                0,
            ),
            &[file],
        ),
        (
            "overflowing, times 0",
            &raw(
                r#"{"a":{"dtype":"F32","shape":[4611686018427387904,2,0],"data_offsets":[0,0]}}"#,
                0,
            ),
            &[file, "`a`", "too large"],
        ),
        (
            "a folder",
            &|b| {
                b.remove(WEIGHTS);
                fs::create_dir(b.at(WEIGHTS)).unwrap();
            },
            &[file, "a directory; expected a file"],
        ),
        #[cfg(unix)]
        (
            "a pipe",
            &|b| {
                b.remove(WEIGHTS);
                let mut mkfifo = std::process::Command::new("mkfifo");
                assert!(mkfifo.arg(b.at(WEIGHTS)).status().unwrap().success());
            },
            &[file, "a pipe; save what comes from it"],
        ),
        (
            "no such dtype",
            &|b| b.header(WEIGHTS, |h| h[norm]["dtype"] = json!("F7")),
            &[file],
        ),
        (
            "shape and bytes disagree",
            &|b| b.header(WEIGHTS, |h| h[norm]["shape"] = json!([33])),
            &[file],
        ),
        ("no offsets", &one(r#"{"dtype":"F32","shape":[32]}"#), &[file]),
    ]);
}

#[test]
fn weights() {
    let norm = "model.norm.weight";
    let change = |f: fn(&mut Tensor)| {
        move |b: &Bench| {
            b.tensors(WEIGHTS, |all| {
                f(&mut all.iter_mut().find(|(n, _)| n == norm).unwrap().1)
            })
        }
    };
    let q = "model.layers.0.self_attn.q_proj.weight";
    refuses(&[
        (
            "only a pickle",
            &|b| fs::rename(b.at(WEIGHTS), b.at("model/pytorch_model.bin")).unwrap(),
            &["pytorch_model.bin", "convert"],
        ),
        ("none", &|b| b.remove(WEIGHTS), &["/model", "model.safetensors"]),
        (
            "missing",
            &|b| b.tensors(WEIGHTS, |all| all.retain(|(n, _)| n != norm)),
            &[norm, "missing"],
        ),
        (
            "another name",
            &|b| {
                b.tensors(WEIGHTS, |all| {
                    all.iter_mut().for_each(|(n, _)| *n = format!("module.{n}"));
                })
            },
            &["model.embed_tokens.weight", "missing"],
        ),
        ("shape", &change(|t| *t = t.narrow(0, 0, 31)), &[norm, "[31]", "[32]"]),
        ("I64", &change(|t| *t = t.to_kind(tch::Kind::Int64)), &[norm, "Int64"]),
        (
            "F8",
            &|b| {
                b.tensors(WEIGHTS, |all| {
                    let at = all.iter().position(|(n, _)| n == norm).unwrap();
                    all[at].1 = all[at].1.to_kind(tch::Kind::Uint8);
                });
                b.header(WEIGHTS, |h| h[norm]["dtype"] = json!("F8_E4M3"));
            },
            &[norm, "F8_E4M3"],
        ),
        (
            "not a number",
            &|b| {
                b.tensors(WEIGHTS, |all| {
                    let t = &all.iter().find(|(n, _)| n == q).unwrap().1;
                    let _ = t.get(1).get(2).fill_(f64::NAN);
                })
            },
            &[q, "NaN", "[1, 2]"],
        ),
    ]);
}

#[test]
fn tokenizers() {
    let (file, settings) = ("model/tokenizer.json", "model/tokenizer_config.json");
    refuses(&[
        ("empty", &|b| b.put(file, ""), &["tokenizer.json"]),
        ("cut", &|b| b.cut(file, 500), &["tokenizer.json"]),
        ("nothing in it", &|b| b.put(file, "{}"), &["tokenizer.json"]),
        ("bytes", &|b| b.put(file, [0xff, 0, 0xfe]), &["tokenizer.json"]),
        (
            "unknown kind",
            &|b| b.json(file, |t| t["model"]["type"] = json!("Magic")),
            &["tokenizer.json"],
        ),
        (
            "a merge of nothing",
            &|b| b.json(file, |t| t["model"]["merges"] = json!(["qq zz"])),
            &["tokenizer.json"],
        ),
        ("settings cut", &|b| b.cut(settings, 50), &["tokenizer_config.json"]),
        ("settings a list", &|b| b.put(settings, "[]"), &["tokenizer_config.json"]),
        (
            "unknown EOS",
            &|b| b.set(settings, "eos_token", json!("<nowhere>")),
            &["tokenizer", "<nowhere>"],
        ),
        (
            "EOS is a number",
            &|b| b.set(settings, "eos_token", json!(7)),
            &["tokenizer_config.json", "eos_token"],
        ),
        ("absent", &|b| b.remove(file), &["rows.jsonl:1", "tokenizer.json"]),
        (
            "a broken template",
            &|b| {
                b.set(settings, "chat_template", json!("{% for m in %}"));
                let turn = |role, content| json!({"role": role, "content": content});
                let turns = [turn("user", "the"), turn("assistant", "hen")];
                b.put("rows.jsonl", json!({"messages": turns}).to_string());
            },
            &["chat_template"],
        ),
        // More tokens than the model has embeddings.
        (
            "too large for the model",
            &|b| {
                b.set("model/config.json", "vocab_size", json!(200));
                b.tensors(WEIGHTS, |all| {
                    for (name, t) in all {
                        if name.contains("embed") || name.contains("lm_head") {
                            *t = t.narrow(0, 0, 200).copy();
                        }
                    }
                });
            },
            &["rows.jsonl:1", "vocabulary of 200", "tokenizer"],
        ),
    ]);
}
