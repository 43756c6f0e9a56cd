//! LoRA: attach low-rank adapters to named linears, and read and write PEFT folders.
//!
//! `y = W x + s · B A dropout(x)`, with W frozen, A [r, in] random and B [out, r] zero,
//! so that training starts at the base model; s = α/r. Its kinds are settings of
//! [`LoraConfig`]: other ranks by name, rsLoRA, DoRA, PiSSA, and modules that are
//! trained whole beside it.
//!
//! Source: Hu et al. 2021, arXiv 2106.09685. Adapters are f32 whatever the base
//! computes in, as PEFT's `autocast_adapter_dtype`.
mod config;
mod delta;
mod folder;
pub mod fused;
pub mod init;
mod keys;
mod merge;
mod parts;
mod pattern;
mod peft;
mod read;
mod targets;

pub use config::{Init, LoraConfig, Modules, TaskType};
pub use merge::{MergeReport, MergedLayer, Onto, merge};
pub use parts::Parts;
pub use peft::{read_config, save_adapter};
pub use read::{head_scores, load_adapter, load_for_use, unties};
pub use targets::check;

use crate::Result;
use crate::nn::{Adapter, Dora, Linear, Weight};
use config::Rules;
use init::Pair;
use tch::{Device, Kind, Tensor};

/// Trained tensors by name: `model.layers.0.self_attn.q_proj.lora_A.weight`, or, of a
/// module that is trained whole, that in the checkpoint.
pub type Named = Vec<(String, Tensor)>;

/// Puts a fresh, trainable adapter beside every linear that `config` targets, and makes
/// `modules_to_save` trainable. PiSSA takes its share out of the weights.
///
/// # Errors
/// A setting out of range; a pattern that matches nothing, with the names there are.
pub fn attach<'a>(
    parts: impl Into<Parts<'a>>,
    config: &LoraConfig,
    seed: u64,
    device: Device,
) -> Result<Named> {
    let Parts { linears, parameters } = parts.into();
    let rules = Rules::new(config)?;
    let names: Vec<&str> = linears.iter().map(|(n, _)| n.as_str()).collect();
    let targeted = targets::chosen(config, &rules, &names)?;
    let saved = parts::chosen(&parameters, &config.modules_to_save, true)?;
    let mut named = Named::new();
    let linears = linears.into_iter().zip(targeted).enumerate();
    for (place, ((name, linear), targeted)) in linears {
        if !targeted {
            continue;
        }
        let (r, scale) = rules.rank_and_scale(&name)?;
        let place = place as u32;
        let [out, input] = linear.weight.shape();
        let (start, (a, b)) = match config.init {
            Init::Pissa => {
                let (a, b) = cut(&name, linear, r, scale)?;
                (Some([a.copy(), b.copy()]), (a, b))
            }
            init => {
                let pair =
                    init::random(init, [out, input], r, (seed, place), device);
                (None, pair)
            }
        };
        let bias = config.lora_bias.then(|| {
            Tensor::zeros([out], (Kind::Float, device)).set_requires_grad(true)
        });
        let adapter = Adapter { bias, place, start, ..Adapter::new(a, b, scale) };
        put(linear, adapter, config)?;
        remember(&mut named, &name, linear);
    }
    for (name, t) in saved {
        named.push((name, t.set_requires_grad(true)));
    }
    Ok(named)
}

fn leaf(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// PiSSA: A and B out of the weight of `linear`, which keeps the rest.
fn cut(name: &str, linear: &mut Linear, r: i64, scale: f64) -> Result<Pair> {
    let Weight::Dense(w) = &linear.weight else {
        return Err(targets::in_4_bits(name));
    };
    let (pair, left) = init::pissa(w, r, scale)?;
    linear.weight = Weight::Dense(left);
    Ok(pair)
}

/// Puts `adapter` beside `linear`, to be trained.
fn put(
    linear: &mut Linear,
    mut adapter: Adapter,
    config: &LoraConfig,
) -> Result<()> {
    adapter.dropout = config.dropout;
    adapter.a = adapter.a.set_requires_grad(true);
    adapter.b = adapter.b.set_requires_grad(true);
    if config.use_dora && adapter.dora.is_none() {
        adapter.dora = Some(Dora::new(&linear.weight, &adapter)?);
    }
    linear.lora = Some(adapter);
    Ok(())
}

fn remember(named: &mut Named, name: &str, linear: &Linear) {
    let Some(l) = &linear.lora else { return };
    let mut add = |half: &str, t: &Tensor| {
        named.push((format!("{name}.{half}"), t.shallow_clone()));
    };
    add("lora_A.weight", &l.a);
    add("lora_B.weight", &l.b);
    if let Some(bias) = &l.bias {
        add("lora_B.bias", bias);
    }
    if let Some(dora) = &l.dora {
        add("lora_magnitude_vector", &dora.magnitude);
    }
}

/// For a model that is used and not trained any more: what its adapters would compute
/// anew for every token is computed once.
///
/// # Errors
/// What libtorch refuses.
pub fn settle(linears: Vec<(String, &mut Linear)>) -> Result<()> {
    for (_, linear) in linears {
        if let Some(adapter) = &mut linear.lora {
            adapter.keep_norm(&linear.weight)?;
        }
    }
    Ok(())
}
