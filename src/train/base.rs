//! The model and the rows of a run.
use super::{
    Content, Head, Rows, Saved, Settings, Switch, Task, askable, check_outputs,
    labels_for, unnamed,
};
use crate::data::{Labels, RowEncoder, Tokenizer};
use crate::models::{self, Decoder, LoadOptions, Survey};
use crate::{Error, Result, device, lora};
use std::path::Path;
use tch::{Device, Kind};

/// A model with its data, before adapters.
pub struct Base {
    /// The base model.
    pub model: Decoder,
    /// Scores for whole rows, where the task is not to continue text.
    pub head: Option<Head>,
    /// Its tokenizer, if its folder has one.
    pub tokenizer: Option<Tokenizer>,
    /// Rows to learn from.
    pub train: Rows,
    /// Rows to measure on.
    pub eval: Option<Rows>,
    /// Where a run with them begins.
    pub origin: Origin,
}

/// What a run is made of, and the checkpoint that it goes on from.
#[derive(Debug, Default)]
pub struct Origin {
    /// Fingerprints of what was read.
    pub content: Content,
    /// None: it begins with its first step.
    pub saved: Option<Saved>,
}

impl Base {
    /// Reads model and rows. `say` gets a line for each thing that is done.
    ///
    /// # Errors
    /// A setting that cannot work; what reading model, tokenizer and rows returns.
    pub fn load(settings: &Settings, say: &mut dyn FnMut(&str)) -> Result<Self> {
        settings.check()?;
        let device = device::parse(&settings.device)?;
        if device.is_cuda() {
            device::deterministic(settings.full_determinism);
        }
        check_folder(&settings.model)?;
        check_outputs(settings, &[])?;
        check_names(settings)?;
        let mut saved = Saved::find(settings, say)?;
        // Names and shapes by the headers, then the rows: they are read in a moment,
        // and wrong more often.
        let survey = models::survey(&settings.model)?;
        let from = saved.as_ref().map(|s| s.dir.clone());
        let from = from.or(settings.init_adapter.clone());
        check_adapter(settings, &survey, from.as_deref())?;
        let config = &survey.config;
        let tokenizer = Tokenizer::find(&settings.model)?;
        let encoder = RowEncoder {
            completion_only_loss: settings.completion_only_loss,
            assistant_only_loss: settings.assistant_only_loss,
            ..RowEncoder::new(
                tokenizer.as_ref(),
                settings.max_length,
                config.vocab_size,
            )
        };
        let mut read = |path: &Path, labels: Option<&Labels>| -> Result<Rows> {
            let rows = Rows::load(path, settings.task, &encoder, labels)?;
            say(&format!("{}: {rows}", path.display()));
            Ok(rows)
        };
        let given = &settings.adapters.labels;
        let known = labels_for(settings.task, from.as_deref(), given)?;
        let labels = known.as_ref().map(|(labels, _)| labels);
        let train = read(&settings.train_file, labels);
        let train = match (&known, &from) {
            (Some((_, false)), Some(dir)) => train.map_err(|e| unnamed(e, dir)),
            _ => train,
        };
        let mut train = match &saved {
            Some(saved) => saved.rows(train, settings)?,
            None => train?,
        };
        let eval = settings.eval_file.as_deref();
        let mut eval = eval.map(|path| read(path, train.labels())).transpose()?;
        let kind = settings.compute_dtype.kind(device);
        let content = Content::of(settings, (&train, eval.as_ref()), kind)?;
        if let Some(saved) = &mut saved {
            saved.same_content(&content, settings, say)?;
        }
        let examples = train.text().map_or(&[][..], |data| &data.examples);
        let longest = examples.iter().map(|e| e.ids.len()).max().unwrap_or(0);
        let positions = config.max_position_embeddings;
        if longest as i64 > positions {
            say(&format!(
                "rows have up to {longest} tokens, and the model knows {positions} \
                 positions (max_position_embeddings): --max-length {positions} cuts \
                 them"
            ));
        }
        if settings.validation_split > 0. {
            let (rest, held) =
                train.split(settings.validation_split, settings.seed)?;
            say(&format!("of these, {} rows are kept for measuring", held.len()));
            (train, eval) = (rest, Some(held));
        }
        let repeated = train.repeated(eval.as_ref());
        if repeated > 0 {
            say(&format!(
                "{repeated} of the rows to measure on are among the rows to learn \
                 from too: on these the model can know the answer by heart"
            ));
        }
        if settings.predict_with_generate {
            askable(tokenizer.as_ref(), eval.as_ref())?;
        }
        let head = train.labels().cloned().map(|labels| {
            Head::random(labels, config.hidden_size, settings.seed, device)
        });
        let options = LoadOptions {
            quantize: settings.load_in_4bit,
            blocksize: settings.bnb_4bit_blocksize,
            double_quant: settings.bnb_4bit_use_double_quant,
            kind,
            device,
        };
        let cache = settings.quantized_cache.as_path();
        let mut model = device::guarded(|| {
            let mut model = models::load_cached(
                &settings.model,
                (cache != Path::new("off")).then_some(cache),
                &options,
                say,
                &mut |_, _| (),
            )?;
            if settings.cache_dequant {
                model.hold_dequantized();
            }
            Ok(model)
        })
        .map_err(|e| too_large(settings, e))?;
        for note in &model.notes {
            say(&format!("{}: {note}", settings.model.display()));
        }
        model.offload = settings.gradient_checkpointing == Switch::Offload;
        model.checkpointing = match settings.gradient_checkpointing {
            Switch::Auto => recompute(settings, (&model, &survey), say)?,
            Switch::True | Switch::Offload => true,
            Switch::False => false,
        };
        let what = if settings.load_in_4bit { "NF4" } else { "unquantized" };
        say(&format!(
            "{}: {what}, {:.1} MiB, computing in {} on {}",
            settings.model.display(),
            model.bytes() as f64 / 1024f64.powi(2),
            if options.kind == Kind::BFloat16 { "bf16" } else { "f32" },
            match device {
                Device::Cuda(n) => format!("cuda:{n}"),
                _ => "the CPU".into(),
            }
        ));
        Ok(Self {
            model,
            head,
            tokenizer,
            train,
            eval,
            origin: Origin { content, saved },
        })
    }
}

/// What to say where a model has no room.
fn too_large(settings: &Settings, e: Error) -> Error {
    let Error::OutOfMemory(what) = e else { return e };
    let help = match (settings.cache_dequant, settings.load_in_4bit) {
        (true, _) => "leave --cache-dequant out",
        (_, false) => "hold it in 4 bits: --load-in-4bit true",
        _ => "a smaller checkpoint, or a device with more free memory (--device)",
    };
    let model = settings.model.display();
    let doctor = format!("`downhill doctor --model {model}` says what it takes");
    Error::OutOfMemory(format!("loading {model}: {what}. Try {help}; {doctor}"))
}

/// Whether to recompute the blocks, where nobody said: on a GPU, unless what they would
/// keep fits into what is free beside the adapters.
fn recompute(
    settings: &Settings,
    (model, survey): (&Decoder, &Survey),
    say: &mut dyn FnMut(&str),
) -> Result<bool> {
    let Some(memory) = device::memory(model.device()) else {
        return Ok(model.device().is_cuda());
    };
    let tokens = settings.per_device_train_batch_size * settings.max_length;
    let targets: Vec<&str> =
        settings.target_modules.iter().map(String::as_str).collect();
    // Itself, its gradient and two averages, in f32.
    let trained = 16 * survey.adapter_parameters(settings.lora_r, &targets);
    let kept = model.config.activation_bytes(tokens as u64, model.kind());
    let (needed, free) = (kept + trained, memory.free / 10 * 9);
    let gib = |n: u64| n as f64 / f64::from(1 << 30);
    let again = needed > free;
    say(&format!(
        "gradient checkpointing {}: without, {tokens} tokens keep up to {:.1} GiB, and \
         {:.1} are free",
        if again { "on" } else { "off" },
        gib(kept),
        gib(memory.free)
    ));
    Ok(again)
}

/// A folder, said in words if it is not.
fn check_folder(model: &Path) -> Result<()> {
    match model.is_dir() {
        true => Ok(()),
        false => Err(Error::setting(
            "--model",
            format!(
                "`{}` is no folder; name one with config.json and \
                 model.safetensors",
                model.display()
            ),
        )),
    }
}

/// Refuses names that `trainer_state.json` cannot hold.
fn check_names(settings: &Settings) -> Result<()> {
    let (out, logs) = (&settings.output_dir, &settings.logging_dir);
    let others = [&settings.model, &settings.train_file];
    let more = settings.eval_file.iter().chain(&settings.init_adapter);
    for path in [out, logs].into_iter().chain(others).chain(more) {
        if path.to_str().is_none() {
            let what =
                "not UTF-8, and trainer_state.json, which names it, is; rename it";
            return Err(Error::file(path, what));
        }
    }
    Ok(())
}

/// Refuses settings of the adapter that fit no model like this, before it is read.
fn check_adapter(
    settings: &Settings,
    survey: &Survey,
    from: Option<&Path>,
) -> Result<()> {
    if let Some(dir) = from {
        // A folder to resume from is judged where it is read.
        return match settings.init_adapter.as_deref() == Some(dir) {
            true => lora::read_config(dir).map(|_| ()),
            false => Ok(()),
        };
    }
    let linear = |name: &String| {
        let module = name.strip_suffix(".weight");
        module.is_some_and(|m| survey.linears.iter().any(|(n, _)| n == m))
    };
    let mut parameters = survey.config.tensor_names()?;
    parameters.retain(|name| !linear(name));
    if settings.task != Task::CausalLm {
        parameters.push("score.weight".into());
    }
    let in_4bit = settings.load_in_4bit;
    lora::check(&settings.lora(), &survey.linears, in_4bit, &parameters)
}
