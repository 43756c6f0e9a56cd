//! Folders in 4 bits with damaged, missing or foreign parts.
use super::*;
use tch::Kind;

const CONFIG: &str = "model/config.json";
const W: &str = "model.layers.1.self_attn.k_proj.weight";

/// The sound model, quantized, with one change.
fn quantized(b: &Bench, change: impl FnOnce(&Bench)) {
    let options = downhill::models::QuantizeOptions {
        blocksize: 64,
        double_quant: true,
        max_shard_size: 1 << 30,
        device: tch::Device::Cpu,
    };
    let (from, to) = (b.at("model"), b.at("small"));
    downhill::models::quantize(&from, &to, &options, &mut |_, _| ()).unwrap();
    fs::remove_dir_all(&from).unwrap();
    fs::rename(&to, &from).unwrap();
    change(b);
}

/// With one part of one weight changed.
fn part(
    suffix: &'static str,
    f: impl Fn(&Tensor) -> Tensor + 'static,
) -> impl Fn(&Bench) {
    move |b: &Bench| {
        quantized(b, |b| {
            b.tensors(WEIGHTS, |all| {
                let name = format!("{W}{suffix}");
                let at = all.iter_mut().find(|(n, _)| *n == name).expect("the part");
                at.1 = f(&at.1);
            })
        })
    }
}

fn without(suffix: &'static str) -> impl Fn(&Bench) {
    move |b: &Bench| {
        quantized(b, |b| {
            let name = format!("{W}{suffix}");
            b.tensors(WEIGHTS, |all| all.retain(|(n, _)| *n != name))
        })
    }
}

const STATE: &str = ".quant_state.bitsandbytes__nf4";

/// With this text as the JSON part.
fn state(f: impl Fn(String) -> String + 'static) -> impl Fn(&Bench) {
    part(STATE, move |t| {
        let text = String::from_utf8(Vec::<u8>::try_from(t).unwrap()).unwrap();
        Tensor::from_slice(f(text).as_bytes())
    })
}

fn swap(from: &'static str, to: &'static str) -> impl Fn(&Bench) {
    state(move |text| {
        assert!(text.contains(from), "{text}");
        text.replace(from, to)
    })
}

#[test]
fn parts() {
    let cut = |t: &Tensor| t.narrow(0, 0, t.size()[0] - 1).copy();
    let doubled = |t: &Tensor| t.repeat([2]);
    let poison = |t: &Tensor| t.fill(f64::NAN);
    refuses(&[
        (
            "no state",
            &without(STATE),
            &[W, STATE, "llm_int8_skip_modules", "missing"],
        ),
        ("no absmax", &without(".absmax"), &[W, ".absmax", "missing"]),
        ("no map", &without(".quant_map"), &[W, ".quant_map", "missing"]),
        ("no scales", &without(".nested_absmax"), &[".nested_absmax", "missing"]),
        ("no nested map", &without(".nested_quant_map"), &[".nested_quant_map"]),
        ("no codes", &without(""), &[W, "missing"]),
        ("codes cut", &part("", cut), &[W, "255", "expected 256"]),
        ("absmax cut", &part(".absmax", cut), &[".absmax", "found 7", "expected 8"]),
        ("absmax doubled", &part(".absmax", doubled), &[".absmax", "found 16"]),
        (
            "plain absmax where the state says nested",
            &part(".absmax", |t| t.to_kind(Kind::Float)),
            &[".absmax", "Float", "Uint8"],
        ),
        ("scales cut", &part(".nested_absmax", doubled), &[".nested_absmax"]),
        ("scales poisoned", &part(".nested_absmax", poison), &[".absmax", "finite"]),
        ("nested map cut", &part(".nested_quant_map", cut), &["nested_quant_map"]),
        ("map cut", &part(".quant_map", cut), &[".quant_map", "NF4"]),
        ("another code", &part(".quant_map", |t| t * 0.5), &[".quant_map", "NF4"]),
        (
            "map of whole numbers",
            &part(".quant_map", |t| t.to_kind(Kind::Int)),
            &[".quant_map", "Int"],
        ),
        (
            "codes of 64 bits",
            &part("", |t| t.flatten(0, -1).view_dtype(Kind::Int64)),
            &[W, "Int64", "Uint8"],
        ),
        (
            "a part without a matrix",
            &|b| {
                quantized(b, |b| {
                    b.tensors(WEIGHTS, |all| {
                        let t = Tensor::from_slice(&[1f32]);
                        all.push(("model.norm.weight.absmax".into(), t));
                    })
                })
            },
            &["model.norm.weight.absmax", "no such tensor"],
        ),
    ]);
}

#[test]
fn states() {
    let raw = |text: &'static str| state(move |_| text.into());
    let refused: &[(&str, &dyn Fn(&Bench), &[&str])] = &[
        ("empty", &raw(""), &[W, STATE, "JSON"]),
        ("cut", &state(|t| t[..t.len() / 2].into()), &[W, STATE, "JSON"]),
        ("a list", &raw("[]"), &[W, STATE, "JSON"]),
        ("nothing in it", &raw("{}"), &[STATE, "quant_type"]),
        ("more behind it", &state(|t| format!("{t}x")), &[STATE, "JSON"]),
        (
            "not text",
            &part(STATE, |_| Tensor::from_slice(&[255u8, 0, 254])),
            &[STATE, "JSON"],
        ),
        ("floats", &part(STATE, |t| t.to_kind(Kind::Float)), &[STATE, "Float"]),
        ("fp4", &swap("\"nf4\"", "\"fp4\""), &[STATE, "fp4", "only nf4"]),
        ("block of 48", &swap(": 64,", ": 48,"), &[STATE, "48", "4096"]),
        ("block of -1", &swap(": 64,", ": -1,"), &[STATE, "-1"]),
        ("blocks of 128", &swap(": 64,", ": 128,"), &[".absmax", "found 8"]),
        ("another kind", &swap("float32\", \"shape", "int8\", \"shape"), &["int8"]),
        ("turned", &swap("[16, 32]", "[32, 16]"), &[W, "[32, 16]", "[16, 32]"]),
        ("too large", &swap("[16, 32]", "[16, 64]"), &[W, "expected 512"]),
        ("negative", &swap("[16, 32]", "[-16, -32]"), &[STATE, "-16"]),
        ("endless", &swap("[16, 32]", "[4611686018427387904, 4]"), &[STATE]),
        ("of three", &swap("[16, 32]", "[16, 32, 1]"), &[STATE, "JSON"]),
        ("nested by 128", &swap(": 256", ": 128"), &[STATE, "128", "256"]),
        (
            "half nested",
            &swap(", \"nested_blocksize\": 256", ""),
            &[STATE, "nested_"],
        ),
        ("unknown key", &swap("blocksize", "block_size"), &[STATE, "block_size"]),
        ("a text", &swap(": 64,", ": \"64\","), &[STATE, "64"]),
    ];
    refuses(refused);
}

#[test]
fn quantization_configs() {
    let set = |key: &'static str, value: Value| {
        move |b: &Bench| {
            quantized(b, |b| {
                b.json(CONFIG, |c| c["quantization_config"][key] = value.clone())
            })
        }
    };
    let whole = |value: Value| {
        move |b: &Bench| {
            quantized(b, |b| b.set(CONFIG, "quantization_config", value.clone()))
        }
    };
    let key = "quantization_config";
    let cases: &[(&str, &dyn Fn(&Bench), &[&str])] = &[
        ("gptq", &set("quant_method", json!("gptq")), &[key, "gptq", "original"]),
        ("awq", &whole(json!({"quant_method": "awq"})), &[key, "awq"]),
        ("a list", &whole(json!([4])), &[key, "quant_method"]),
        ("fp4", &set("bnb_4bit_quant_type", json!("fp4")), &[key, "fp4", "nf4"]),
        ("8 bits", &set("load_in_8bit", json!(true)), &[key, "8-bit", "LLM.int8()"]),
        ("not 4 bits", &set("load_in_4bit", json!(false)), &[key, "load_in_4bit"]),
        (
            "skip is a number",
            &set("llm_int8_skip_modules", json!(7)),
            &[key, "llm_int8_skip_modules"],
        ),
        // No word of it: then codes are no weights.
        (
            "fp4 tensors",
            &|b| {
                quantized(b, |b| {
                    b.tensors(WEIGHTS, |all| {
                        for (name, _) in all {
                            *name = name.replace("__nf4", "__fp4");
                        }
                    })
                })
            },
            &["bitsandbytes__fp4", "only NF4"],
        ),
    ];
    refuses(cases);
}

#[test]
fn quantize_leaves_nothing_behind() {
    let b = Bench::new();
    b.tensors(WEIGHTS, |all| all.retain(|(n, _)| n != "lm_head.weight"));
    let run = |extra: &[&str]| {
        let usual = ["quantize", "--model=@/model", "--output-dir=@/small"];
        let args: Vec<&str> = usual.iter().chain(extra).copied().collect();
        b.command(&args).output().expect("run")
    };
    let text = |o: &Output| String::from_utf8_lossy(&o.stderr).into_owned();
    let failed = run(&[]);
    assert!(!failed.status.success() && text(&failed).contains("lm_head.weight"));
    for (flag, part) in [
        ("--bnb-4bit-blocksize=100", "100; one of [32, 64"),
        ("--max-shard-size=5", "--max-shard-size: `5`"),
        ("--max-shard-size=GB", "--max-shard-size: `GB`"),
        ("--max-shard-size=0GB", "--max-shard-size: `0GB`"),
        ("--max-shard-size=99999999999999GB", "--max-shard-size"),
        ("--device=tpu", "--device"),
    ] {
        let failed = run(&[flag]);
        assert!(!failed.status.success());
        assert!(text(&failed).contains(part), "{flag}: {}", text(&failed));
    }
    let left = fs::read_dir(b.at("")).unwrap().flatten();
    let left: Vec<_> = left.map(|e| e.file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| !name.contains("small")), "{left:?}");
}

#[test]
fn the_second_start_takes_what_the_first_kept() {
    let b = Bench::new();
    let run = || {
        let flags = ["--quantized-cache=@/kept", "--bnb-4bit-blocksize=32"];
        let output = finish(b.finetune(&flags)).expect("ends");
        assert!(output.status.success());
        let state = b.at("out/trainer_state.json");
        let state: Value =
            serde_json::from_slice(&fs::read(state).unwrap()).unwrap();
        let loss = state["log_history"][0]["loss"].clone();
        (loss, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (first, said) = run();
    assert!(said.contains("kept for the next start"), "{said}");
    let (second, said) = run();
    assert!(said.contains("of an earlier start"), "{said}");
    assert!(first.is_f64() && first == second, "{first} {second}");
}
