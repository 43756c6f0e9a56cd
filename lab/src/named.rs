//! A decoder's tensors for programs that write its layers out.
use downhill::models::Decoder;
use std::collections::BTreeMap;
use tch::Tensor;

/// Tensors by their names.
pub type Named = BTreeMap<String, Tensor>;

/// The tensors of a decoder by short names: `model.layers.0.self_attn.q_proj.weight` is
/// `0.q`. They share their numbers with the decoder.
pub fn named(decoder: &Decoder) -> Named {
    let short = |(mut name, tensor): (String, Tensor)| {
        for common in ["model.", "layers.", "self_attn.", "mlp.", "_proj", ".weight"]
        {
            name = name.replace(common, "");
        }
        (name, tensor)
    };
    decoder.named_parameters().into_iter().map(short).collect()
}
