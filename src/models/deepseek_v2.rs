//! DeepSeek-V2 and -Coder-V2, Lite too: latent attention, experts by softmax.
//!
//! Source: DeepSeek-AI 2024, arXiv 2405.04434; the keys as in `configuration_deepseek.py`
//! beside the checkpoints. Departures of transformers 4.57 from `modeling_deepseek.py`
//! there, in which we follow the latter: scores are scaled by YaRN's `mscale_all_dim`
//! ([`super::rope`]), and `moe_layer_freq` is read.
use super::config::{
    Checked, DecoderConfig, ExpertsConfig, Family, LatentConfig, Shared,
    not_negative, positive,
};
use crate::nn::{Routing, Score};
use serde::{Deserialize, Deserializer};

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    shared: Shared,
    #[serde(flatten)]
    latent: LatentKeys,
    #[serde(flatten)]
    experts: ExpertsKeys,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "greedy")]
    topk_method: String,
    #[serde(default = "softmax")]
    scoring_func: String,
    #[serde(default)]
    norm_topk_prob: bool,
}

fn greedy() -> String {
    "greedy".into()
}
fn softmax() -> String {
    "softmax".into()
}

impl Family for Config {
    fn into_decoder(mut self) -> Checked<DecoderConfig> {
        let score_scale = self.shared.rope.score_scale();
        let mut c = self.shared.into_decoder(2048)?;
        // In f32 as in transformers; DeepSeek's own code does it in the model's kind.
        self.latent.set(&mut c, score_scale, (true, true))?;
        c.mlp_bias = self.mlp_bias;
        match self.topk_method.as_str() {
            "greedy" => self.experts.ungroup(),
            "group_limited_greedy" => {}
            other => {
                return Err(format!(
                    "topk_method: `{other}` is not known for DeepSeek-V2 (greedy, \
                     group_limited_greedy)"
                ));
            }
        }
        c.experts = self.experts.read(Score::Softmax, false, 1.)?;
        if self.scoring_func != "softmax" {
            let found = self.scoring_func;
            return Err(format!("scoring_func: `{found}`; DeepSeek-V2 has softmax"));
        }
        if self.norm_topk_prob {
            return Err(
                "norm_topk_prob: true; no DeepSeek-V2 checkpoint has it, and \
                        the implementations disagree on what it does"
                    .into(),
            );
        }
        Ok(c)
    }
}

/// The keys of latent attention, alike in V2 and V3.
#[derive(Deserialize)]
pub(super) struct LatentKeys {
    /// Null where queries are not compressed, but it must be there: readers differ in
    /// what they take for granted.
    #[serde(deserialize_with = "stated")]
    q_lora_rank: Option<i64>,
    kv_lora_rank: i64,
    qk_nope_head_dim: i64,
    qk_rope_head_dim: i64,
    v_head_dim: i64,
    #[serde(default)]
    attention_bias: bool,
}

fn stated<'de, D: Deserializer<'de>>(json: D) -> Result<Option<i64>, D::Error> {
    Option::deserialize(json)
}

impl LatentKeys {
    pub(super) fn set(
        self,
        c: &mut DecoderConfig,
        score_scale: f64,
        (interleaved, turned_in_f32): (bool, bool),
    ) -> Checked<()> {
        positive(&[
            ("q_lora_rank", self.q_lora_rank.unwrap_or(1)),
            ("kv_lora_rank", self.kv_lora_rank),
            ("qk_nope_head_dim", self.qk_nope_head_dim),
            ("qk_rope_head_dim", self.qk_rope_head_dim),
            ("v_head_dim", self.v_head_dim),
        ])?;
        let turned = self.qk_rope_head_dim;
        if turned % 2 != 0 {
            return Err(format!(
                "qk_rope_head_dim: {turned} is odd; RoPE turns pairs"
            ));
        }
        c.head_dim = turned;
        (c.attention_bias, c.output_bias) =
            (self.attention_bias, self.attention_bias);
        let head_dim = (self.qk_nope_head_dim + turned) as f64;
        c.latent = Some(LatentConfig {
            q_lora_rank: self.q_lora_rank,
            kv_lora_rank: self.kv_lora_rank,
            qk_nope_head_dim: self.qk_nope_head_dim,
            v_head_dim: self.v_head_dim,
            interleaved,
            turned_in_f32,
            scale: score_scale / head_dim.sqrt(),
        });
        Ok(())
    }
}

/// The keys of the experts, alike in V2 and V3.
#[derive(Deserialize)]
pub(super) struct ExpertsKeys {
    n_routed_experts: Option<i64>,
    n_shared_experts: Option<i64>,
    num_experts_per_tok: Option<i64>,
    moe_intermediate_size: Option<i64>,
    #[serde(default)]
    first_k_dense_replace: i64,
    moe_layer_freq: Option<i64>,
    n_group: Option<i64>,
    topk_group: Option<i64>,
    routed_scaling_factor: Option<f64>,
}

impl ExpertsKeys {
    /// All experts compete, whatever groups are given.
    fn ungroup(&mut self) {
        (self.n_group, self.topk_group) = (None, None);
    }

    /// None where no layer has experts.
    pub(super) fn read(
        self,
        score: Score,
        normalize: bool,
        scale: f64,
    ) -> Checked<Option<ExpertsConfig>> {
        let Some(routed) = self.n_routed_experts else { return Ok(None) };
        let need = |key: &str, n: Option<i64>| {
            n.ok_or_else(|| {
                format!("missing field `{key}`, as n_routed_experts is given")
            })
        };
        let chosen = need("num_experts_per_tok", self.num_experts_per_tok)?;
        let width = need("moe_intermediate_size", self.moe_intermediate_size)?;
        let (groups, kept) =
            (self.n_group.unwrap_or(1), self.topk_group.unwrap_or(1));
        let shared = self.n_shared_experts.unwrap_or(0);
        let every = self.moe_layer_freq.unwrap_or(1);
        positive(&[
            ("n_routed_experts", routed),
            ("num_experts_per_tok", chosen),
            ("moe_intermediate_size", width),
            ("moe_layer_freq", every),
            ("n_group", groups),
            ("topk_group", kept),
        ])?;
        not_negative("n_shared_experts", shared)?;
        not_negative("first_k_dense_replace", self.first_k_dense_replace)?;
        if routed % groups != 0 {
            return Err(format!(
                "n_group: {groups} groups do not share n_routed_experts {routed} out"
            ));
        }
        if kept > groups {
            return Err(format!("topk_group: {kept} of n_group {groups}"));
        }
        let open = kept * (routed / groups);
        if chosen > open {
            return Err(format!(
                "num_experts_per_tok: {chosen} of {open} (n_routed_experts {routed}, \
                 topk_group {kept} of n_group {groups})"
            ));
        }
        let scale = self.routed_scaling_factor.unwrap_or(scale);
        if !scale.is_finite() {
            return Err(format!("routed_scaling_factor: {scale}"));
        }
        Ok(Some(ExpertsConfig {
            routed,
            shared,
            intermediate_size: width,
            first_dense: self.first_k_dense_replace,
            every,
            routing: Routing {
                chosen,
                groups,
                kept_groups: kept,
                score,
                normalize,
                scale,
            },
        }))
    }
}
