//! What a forward pass keeps for backward, computed from the shape of a model.
use super::DecoderConfig;
use tch::Kind;

impl DecoderConfig {
    /// Bytes that a forward pass over so many tokens keeps for backward without
    /// gradient checkpointing, every linear adapted: an upper bound, close where all
    /// are. With it, a block keeps its input alone.
    pub fn activation_bytes(&self, tokens: u64, kind: Kind) -> u64 {
        let n = |x: i64| x.max(0) as u64;
        let narrow = kind.elt_size_in_bytes() as u64;
        let wide = Kind::Float.elt_size_in_bytes() as u64;
        let d = n(self.hidden_size);
        let mut bytes = 0;
        for layer in 0..self.num_hidden_layers {
            let (inputs, inner) = match &self.latent {
                // Queries, keys, values, and what attention makes of them.
                None => {
                    let q = n(self.num_attention_heads * self.head_dim);
                    let kv = n(self.num_key_value_heads * self.head_dim);
                    (3 * d + q, 3 * q + 3 * kv)
                }
                Some(l) => {
                    let heads = n(self.num_attention_heads);
                    let qk = heads * n(l.qk_nope_head_dim + self.head_dim);
                    let v = heads * n(l.v_head_dim);
                    let (rank, q) =
                        (n(l.kv_lora_rank), n(l.q_lora_rank.unwrap_or(0)));
                    let latent = 2 * (rank + n(self.head_dim) + q);
                    (2 * d + rank + q + v, 4 * qk + 3 * v + latent)
                }
            };
            // Gate, what SiLU makes of it, up, and their product.
            let (mlp_inputs, mlp_inner) = match self.experts_of(layer) {
                None => {
                    let f = n(self.intermediate_size);
                    (2 * d + f, 4 * f)
                }
                Some(e) => {
                    let chosen = n(e.routing.chosen);
                    let f = (chosen + n(e.shared)) * n(e.intermediate_size);
                    (2 * (chosen + 1) * d + f, 4 * f + 3 * chosen * d)
                }
            };
            // In f32 an adapter keeps what dropout multiplied its input by, and a norm
            // its input. All else is in `kind`, an adapter's input after dropout too.
            bytes += wide * (inputs + mlp_inputs + 2 * d);
            bytes += narrow * (inputs + mlp_inputs + inner + mlp_inner + 4 * d);
        }
        tokens * bytes
    }
}
