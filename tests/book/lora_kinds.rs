//! The kinds of LoRA from the command's flags, and PiSSA on its way out.
use crate::common::{adapted, frozen, ids, lora, refused};
use crate::golden::{gap, tensors};
use crate::parity_llama::{F32, logits, read};
use downhill::lora::{
    Init, LoraConfig, Modules, Named, attach, init, load_adapter, read_config,
    save_adapter,
};
use downhill::models::{Decoder, LoadOptions};
use downhill::nn::Length;
use std::path::Path;
use std::process::{Command, Output};
use tch::{Device, Kind, Tensor};

const MODEL: &str = "tests/golden/train_taught";

fn finetune(dir: &Path, flags: &[&str]) -> Output {
    let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
    let rows = format!("{MODEL}/rows.jsonl");
    c.args(["finetune", "--model", MODEL, "--train-file", &rows]);
    c.arg("--output-dir").arg(dir.join("out"));
    c.arg("--logging-dir").arg(dir.join("logs"));
    c.args(["--device", "cpu"]).args(flags).env("OMP_NUM_THREADS", "1");
    c.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn flags_say_the_kind() {
    let dir = tempfile::tempdir().unwrap();
    let flags = [
        "--max-steps=2",
        "--lora-r=4",
        "--lora-alpha=6",
        "--lora-dropout=0.1",
        "--target-modules=.*(q|v)_proj",
        "--exclude-modules=layers.0.self_attn.v_proj",
        r"--rank-pattern=layers\.0\..*=2,v_proj=3",
        "--alpha-pattern=v_proj=5.5",
        "--use-rslora",
        "--use-dora=true",
        "--init-lora-weights=gaussian",
        "--modules-to-save=lm_head",
    ];
    let run = finetune(dir.path(), &flags);
    assert!(run.status.success(), "{}", said(&run));
    let config = read_config(&dir.path().join("out")).unwrap();
    let pattern = |text: &str, r| (text.to_string(), r);
    let expected = LoraConfig {
        r: 4,
        alpha: 6.,
        dropout: 0.1,
        target_modules: Modules::Pattern(".*(q|v)_proj".into()),
        exclude_modules: Modules::parse(&["layers.0.self_attn.v_proj"]),
        rank_pattern: vec![pattern(r"layers\.0\..*", 2), pattern("v_proj", 3)],
        alpha_pattern: vec![("v_proj".into(), 5.5)],
        use_rslora: true,
        use_dora: true,
        init: Init::Gaussian,
        modules_to_save: vec!["lm_head".into()],
        ..LoraConfig::default()
    };
    assert_eq!(config, expected);
    let all = tensors_of(&dir.path().join("out"));
    assert!(all.iter().any(|(n, _)| n == "base_model.model.lm_head.weight"));
    let q = "base_model.model.model.layers.0.self_attn.q_proj";
    for (half, size) in [("lora_A.weight", 2), ("lora_B.weight", 2)] {
        let (_, t) = all.iter().find(|(n, _)| *n == format!("{q}.{half}")).unwrap();
        assert!(t.size().contains(&size), "{half}: {:?}", t.size());
    }
    assert!(all.iter().any(|(n, _)| *n == format!("{q}.lora_magnitude_vector")));

    for (flag, parts) in [
        ("--rank-pattern=q_proj", &["--rank-pattern", "PATTERN=NUMBER"][..]),
        ("--rank-pattern=q_proj=many", &["--rank-pattern", "many"]),
        ("--rank-pattern=q_proj=0", &["rank-pattern", "0"]),
        ("--alpha-pattern==3", &["--alpha-pattern", "PATTERN=NUMBER"]),
        ("--init-lora-weights=olora", &["--init-lora-weights", "olora"]),
        ("--init-lora-weights=pissa", &["--init-lora-weights", "--load-in-4bit"]),
        ("--modules-to-save=score", &["modules-to-save", "score", "lm_head"]),
        ("--layers-to-transform=first", &["--layers-to-transform", "first"]),
        ("--layers-to-transform=99", &["target-modules", "layers-to-transform"]),
        ("--exclude-modules=.*", &["target-modules", "exclude-modules"]),
        ("--target-modules=*_proj", &["target-modules", "*_proj"]),
    ] {
        let run = finetune(&dir.path().join("none"), &["--max-steps=1", flag]);
        let text = said(&run);
        assert!(!run.status.success(), "{flag} was accepted");
        assert!(parts.iter().all(|p| text.contains(p)), "{flag}: {text}");
    }
    let both = ["--max-steps=1", "--lora-bias", "--use-dora"];
    assert!(said(&finetune(&dir.path().join("none"), &both)).contains("lora-bias"));
    let inner = ["--max-steps=1", "--modules-to-save=norm"];
    let inner = [&inner[..], &["--gradient-checkpointing=true"]].concat();
    let text = said(&finetune(&dir.path().join("none"), &inner));
    assert!(text.contains("--gradient-checkpointing"), "{text}");
    assert!(!dir.path().join("none/out").exists());
}

fn tensors_of(dir: &Path) -> Vec<(String, Tensor)> {
    let file = dir.join("adapter_model.safetensors");
    downhill::checkpoint::read_safetensors(&file).unwrap().into_iter().collect()
}

/// The finished adapter is plain LoRA of twice the rank; a checkpoint on the way is
/// PiSSA's, and going on from it ends with the same bits.
#[test]
fn a_pissa_run_resumes_and_ends_as_plain_lora() {
    let (whole, broken) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let flags = ["--init-lora-weights=pissa", "--load-in-4bit=false", "--lora-r=3"];
    let saving = ["--save-strategy=steps", "--save-steps=4", "--max-steps=8"];
    let flags = [&flags[..], &saving].concat();
    let run = finetune(whole.path(), &flags);
    assert!(run.status.success(), "{}", said(&run));
    let config = read_config(&whole.path().join("out")).unwrap();
    assert_eq!((config.init, config.r), (Init::Default, 6));
    let half = read_config(&whole.path().join("out/checkpoint-4")).unwrap();
    assert_eq!((half.init, half.r), (Init::Pissa, 3));

    std::fs::create_dir(broken.path().join("out")).unwrap();
    let copy = broken.path().join("out/checkpoint-4");
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(whole.path().join("out/checkpoint-4")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let run = finetune(broken.path(), &[&flags[..], &["--resume"]].concat());
    assert!(run.status.success(), "{}", said(&run));
    let read = |d: &Path| std::fs::read(d.join("out/adapter_model.safetensors"));
    assert!(read(whole.path()).unwrap() == read(broken.path()).unwrap());
}

fn shaken(named: &Named) {
    tch::no_grad(|| {
        for (i, (_, t)) in named.iter().enumerate() {
            let wave = Tensor::arange(t.numel() as i64, (Kind::Float, Device::Cpu));
            let wave = ((wave + i as f64).sin() * 0.05).view_as(t);
            let _ = t.shallow_clone().f_add_(&wave).unwrap();
        }
    });
}

#[test]
fn pissa_begins_at_the_model_and_leaves_as_lora() {
    let tokens = ids(2, 9);
    for rslora in [false, true] {
        let config = LoraConfig {
            init: Init::Pissa,
            use_rslora: rslora,
            rank_pattern: vec![("down_proj".into(), 2)],
            alpha_pattern: vec![("q_proj".into(), 3.)],
            ..lora(&["q_proj", "down_proj"], 0.)
        };
        let mut model = frozen(3);
        let before = logits(&model, &tokens);
        let named = attach(model.linears_mut(), &config, 1, Device::Cpu).unwrap();
        let far = gap(&logits(&model, &tokens), &before);
        assert!(far < 1e-5, "the start is the model: {far:e}");
        let rest = |m: &Decoder| {
            let all = m.named_parameters();
            let q =
                all.iter().find(|(n, _)| n.ends_with("0.self_attn.q_proj.weight"));
            q.unwrap().1.norm().double_value(&[])
        };
        assert!(rest(&model) < 0.9 * rest(&frozen(3)), "less is left of W");
        shaken(&named);
        let after = logits(&model, &tokens);
        assert!(gap(&after, &before) > 1e-2);

        let starts = init::pissa_starts(model.linears_mut());
        let (plain, doubled) = init::pissa_to_lora(&config, &named, &starts);
        for (config, named) in [(&config, &named), (&plain, &doubled)] {
            let dir = tempfile::tempdir().unwrap();
            save_adapter(dir.path(), config, "base", named).unwrap();
            let mut fresh = frozen(3);
            load_adapter(dir.path(), fresh.linears_mut(), Device::Cpu).unwrap();
            let far = gap(&logits(&fresh, &tokens), &after);
            assert!(far < 1e-5, "{:?}, rslora {rslora}: {far:e}", config.init);
        }
    }
}

#[test]
fn pissa_needs_the_weights_and_enough_of_them() {
    let config = LoraConfig { init: Init::Pissa, ..lora(&["q_proj"], 0.) };
    let with = |change: &dyn Fn(&mut LoraConfig)| {
        let mut config = config.clone();
        change(&mut config);
        attach(frozen(1).linears_mut(), &config, 1, Device::Cpu)
    };
    refused(with(&|c| c.r = 33), &["lora-r", "33", "32 singular values"]);
    refused(with(&|c| c.alpha = 0.), &["lora-alpha", "PiSSA"]);
    let quantized = downhill::models::LoadOptions { quantize: true, ..F32 };
    let mut model = read("llama_mha", &quantized);
    let put = attach(model.linears_mut(), &config, 1, Device::Cpu);
    refused(put, &["init-lora-weights", "4 bits", "--load-in-4bit false"]);
}

/// PEFT's conversion of its own adapter gives what ours gives.
#[test]
fn pissa_leaves_as_peft_lets_it_leave() {
    let mut model = read("llama_mha", &F32);
    let folder = crate::golden::path("lora_pissa");
    let (config, named) =
        load_adapter(&folder, model.linears_mut(), Device::Cpu).unwrap();
    let starts = init::pissa_starts(model.linears_mut());
    let (plain, ours) = init::pissa_to_lora(&config, &named, &starts);
    let theirs = read_config(&crate::golden::path("lora_pissa_plain")).unwrap();
    assert_eq!(
        (plain.r, plain.alpha, plain.init),
        (theirs.r, theirs.alpha, theirs.init)
    );
    let theirs = tensors("lora_pissa_plain/adapter_model.safetensors");
    let update = |a: &Tensor, b: &Tensor| b.detach().mm(&a.detach());
    for pair in ours.chunks(2) {
        let key = |i: usize| &theirs[&format!("base_model.model.{}", pair[i].0)];
        let far = gap(&update(&pair[0].1, &pair[1].1), &update(key(0), key(1)));
        assert!(far < 1e-5, "{}: {far:e}", pair[0].0);
    }
}

#[test]
fn gaussian_begins_with_a_smaller_a() {
    let config = LoraConfig { init: Init::Gaussian, ..lora(&["all-linear"], 0.) };
    let named = attach(frozen(1).linears_mut(), &config, 1, Device::Cpu).unwrap();
    let of = |half: &str| -> Vec<Tensor> {
        let those = named.iter().filter(|(n, _)| n.contains(half));
        those.map(|(_, t)| t.detach().flatten(0, -1)).collect()
    };
    let a = Tensor::cat(&of("lora_A"), 0);
    let (mean, std) = (a.mean(Kind::Float), a.std(false));
    assert!(mean.double_value(&[]).abs() < 0.02);
    assert!((std.double_value(&[]) * 4. - 1.).abs() < 0.05, "1/r for r = 4");
    assert_eq!(Tensor::cat(&of("lora_B"), 0).abs().max().double_value(&[]), 0.);
}

/// Fresh DoRA changes nothing, and its lengths are those of the rows.
#[test]
fn dora_begins_at_the_model() {
    let config = LoraConfig { use_dora: true, ..lora(&["all-linear"], 0.) };
    let mut model = frozen(1);
    let before = logits(&model, &ids(2, 9));
    let named = attach(model.linears_mut(), &config, 1, Device::Cpu).unwrap();
    assert_eq!(named.len(), 3 * 14);
    let far = gap(&logits(&model, &ids(2, 9)), &before);
    assert!(far < 1e-5, "{far:e}");
    // With B not zero, too: that is what PiSSA hands over.
    let config = LoraConfig { init: Init::Pissa, ..config };
    let mut model = frozen(1);
    attach(model.linears_mut(), &config, 1, Device::Cpu).unwrap();
    let far = gap(&logits(&model, &ids(2, 9)), &before);
    assert!(far < 1e-5, "{far:e}");
    let (trained, _) = adapted(1, &lora(&["q_proj"], 0.));
    assert!(gap(&logits(&trained, &ids(2, 9)), &before) > 1e-4);
}

/// Not a test: folders of every kind as we write them, with our logits, for
/// `tests/golden/check_adapter.py` to hold against PEFT. They go to `$ADAPTERS_OUT`.
#[test]
#[ignore = "writes folders for a check by hand"]
fn folders_for_peft() {
    let Some(out) = std::env::var_os("ADAPTERS_OUT") else { return };
    let plain = || lora(&["q_proj", "down_proj"], 0.);
    let rank = |text: &str, r| vec![(text.to_string(), r)];
    let cases = [
        ("plain", plain()),
        ("all", LoraConfig { target_modules: Modules::AllLinear, ..plain() }),
        ("rslora", LoraConfig { use_rslora: true, ..plain() }),
        ("dora", LoraConfig { use_dora: true, ..plain() }),
        ("bias", LoraConfig { lora_bias: true, ..plain() }),
        ("gaussian", LoraConfig { init: Init::Gaussian, ..plain() }),
        ("pissa", LoraConfig { init: Init::Pissa, ..plain() }),
        ("pissa_dora", LoraConfig { init: Init::Pissa, use_dora: true, ..plain() }),
        (
            "patterns",
            LoraConfig {
                // Both match; the first counts, here and after PEFT's reading.
                rank_pattern: [rank("q_proj", 2), rank(".*proj", 3)].concat(),
                alpha_pattern: vec![(r"layers\.1\..*".into(), 2.5)],
                ..plain()
            },
        ),
        (
            "regex",
            LoraConfig {
                target_modules: Modules::Pattern(r"(?!.*mlp).*_proj".into()),
                exclude_modules: Modules::parse(&["1.self_attn.o_proj"]),
                ..plain()
            },
        ),
        ("layers", LoraConfig { layers_to_transform: Some(vec![1]), ..plain() }),
        (
            "save",
            LoraConfig {
                modules_to_save: vec!["lm_head".into(), "norm".into()],
                ..plain()
            },
        ),
        (
            "experts",
            LoraConfig {
                target_modules: Modules::AllLinear,
                rank_pattern: rank(r"experts\.\d+\..*", 2),
                ..plain()
            },
        ),
        (
            "experts_dora",
            LoraConfig {
                target_modules: Modules::parse(&["up_proj", "kv_b_proj"]),
                use_dora: true,
                ..plain()
            },
        ),
    ];
    let tokens = ids(2, 9);
    for (name, config) in cases {
        let base =
            if name.starts_with("experts") { "v2_limited" } else { "llama_mha" };
        let mut model = read(base, &F32);
        let parameters = model.named_parameters();
        let parts = (model.linears_mut(), parameters);
        let named = attach(parts, &config, 1, Device::Cpu).unwrap();
        shaken(&named);
        let mut folders = vec![(name.to_string(), config.clone(), named)];
        if name == "pissa" {
            let starts = init::pissa_starts(model.linears_mut());
            let (plain, named) =
                init::pissa_to_lora(&config, &folders[0].2, &starts);
            folders.push(("pissa_plain".into(), plain, named));
        }
        for (name, config, named) in folders {
            let dir = Path::new(&out).join(name);
            std::fs::create_dir_all(&dir).unwrap();
            save_adapter(&dir, &config, base, &named).unwrap();
            let all = [("ids", tokens.copy()), ("logits", logits(&model, &tokens))];
            let all = all.map(|(n, t)| (n.to_string(), t));
            let file = dir.join("expected.safetensors");
            downhill::checkpoint::save_safetensors(&file, &all, &[]).unwrap();
        }
    }
}

/// PEFT's formula, left to autograd: with and without dropout, over a dense weight and
/// over NF4, with a bias in the layer.
#[test]
fn doras_gradients_are_autograds() {
    use crate::common::wave;
    use downhill::nn::{Adapter, Dora, Linear, Mode, Weight, dropout::dropout};
    use downhill::quant::Nf4Tensor;
    let wave = |shape: &[i64], size: f64| wave(shape, Kind::Float) * size;
    let leaf = |t: &Tensor| t.detach().copy().set_requires_grad(true);
    for (quantized, rate) in [(false, 0.), (false, 0.3), (true, 0.), (true, 0.3)] {
        let w = wave(&[24, 64], 0.5);
        let (weight, w) = match quantized {
            false => (Weight::Dense(w.copy()), w),
            true => {
                let q = Nf4Tensor::quantize(&w, 64, true).unwrap();
                let back = q.dequantize(Kind::Float);
                (Weight::Nf4(q), back)
            }
        };
        let (bias, x) = (wave(&[24], 0.3), leaf(&wave(&[2, 5, 64], 1.)));
        let a = leaf(&(wave(&[4, 64], 0.2) - 0.1));
        let (b, s) = (leaf(&(wave(&[24, 4], 0.4) - 0.2)), 1.5);
        let m = leaf(&(wave(&[24], 1.) + 2.));
        let mode = Mode::Train { seed: 3, step: 4 };

        let norm = (&w + b.mm(&a) * s).norm_scalaropt_dim(2, [1i64], false).detach();
        let (c, d) = (&m / norm, dropout(&x, rate, mode, 7));
        let plain = x.linear(&w, Some(&bias));
        let product = |x: &Tensor| x.linear(&w, None::<&Tensor>);
        let low =
            product(&d) * (&c - 1) + d.matmul(&a.tr()).matmul(&b.tr()) * (&c * s);
        let expected = plain + low;
        let dy = wave(&[2, 5, 24], 1.);
        (&expected * &dy).sum(Kind::Float).backward();
        let wanted = [&x, &a, &b, &m].map(Tensor::grad);

        let inputs = [&x, &a, &b, &m].map(leaf);
        let [x, a, b, m] = inputs.each_ref().map(|t| t.shallow_clone());
        let dora = Some(Dora::with(&weight, m));
        let lora =
            Adapter { dora, dropout: rate, place: 7, ..Adapter::new(a, b, s) };
        let linear = Linear { weight, bias: Some(bias), lora: Some(lora) };
        let y = linear.forward(&x, mode).unwrap();
        let about = format!("quantized {quantized}, dropout {rate}");
        let far = gap(&y.detach(), &expected.detach());
        assert!(far < 1e-5, "{about}: {far:e}");
        (y * dy).sum(Kind::Float).backward();
        for (i, (t, wanted)) in inputs.iter().zip(&wanted).enumerate() {
            let far = gap(&t.grad(), wanted);
            assert!(far < 1e-5, "{about}: gradient {i}: {far:e}");
        }
    }
}

/// Kept norms are the norms, with every weight's kind, and of plain LoRA there are none.
#[test]
fn a_settled_model_computes_the_same() {
    let tokens = ids(2, 9);
    for quantize in [false, true] {
        let options = LoadOptions { quantize, ..F32 };
        for use_dora in [false, true] {
            let config = LoraConfig { use_dora, ..lora(&["q_proj", "up_proj"], 0.) };
            let mut model = read("llama_gqa", &options);
            let named =
                attach(model.linears_mut(), &config, 3, Device::Cpu).unwrap();
            tch::no_grad(|| {
                for (_, t) in &named {
                    let mut t = t.shallow_clone();
                    let _ = t.g_add_(&Tensor::from_slice(&[0.05f32]));
                }
            });
            let before = logits(&model, &tokens);
            downhill::lora::settle(model.linears_mut()).unwrap();
            let kept = |l: &downhill::nn::Linear| {
                let dora = l.lora.as_ref().and_then(|a| a.dora.as_ref());
                dora.is_some_and(|d| matches!(d.length, Length::Norm(_)))
            };
            let linears = model.linears_mut().into_iter();
            let count = linears.filter(|(_, l)| kept(l));
            assert_eq!(count.count(), if use_dora { named.len() / 3 } else { 0 });
            assert_eq!(logits(&model, &tokens), before);
        }
    }
}
