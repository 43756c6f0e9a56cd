//! DeepSeek-V3, R1 and V3.1: V2's latent attention, experts by sigmoid.
//!
//! Source: DeepSeek-AI 2024, arXiv 2412.19437; the keys as in `configuration_deepseek.py`
//! beside the checkpoints, the computation as in transformers 4.57.
use super::config::{Checked, DecoderConfig, Family, Shared, not_negative};
use super::deepseek_v2::{ExpertsKeys, LatentKeys};
use crate::nn::Score;
use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    shared: Shared,
    #[serde(flatten)]
    latent: LatentKeys,
    #[serde(flatten)]
    experts: ExpertsKeys,
    #[serde(default = "yes")]
    rope_interleave: bool,
    #[serde(default = "yes")]
    norm_topk_prob: bool,
    topk_method: Option<String>,
    scoring_func: Option<String>,
    #[serde(default = "one")]
    num_nextn_predict_layers: i64,
}

fn yes() -> bool {
    true
}
fn one() -> i64 {
    1
}

impl Family for Config {
    fn into_decoder(self) -> Checked<DecoderConfig> {
        let score_scale = self.shared.rope.score_scale();
        let mut c = self.shared.into_decoder(4096)?;
        self.latent.set(&mut c, score_scale, (self.rope_interleave, false))?;
        c.experts = self.experts.read(Score::Sigmoid, self.norm_topk_prob, 2.5)?;
        for (key, found, known) in [
            ("topk_method", self.topk_method, "noaux_tc"),
            ("scoring_func", self.scoring_func, "sigmoid"),
        ] {
            if let Some(other) = found.filter(|found| found != known) {
                return Err(format!("{key}: `{other}`; DeepSeek-V3 has {known}"));
            }
        }
        // Each group is judged by its two best experts.
        if let Some(e) =
            c.experts.as_ref().filter(|e| e.routed < 2 * e.routing.groups)
        {
            let (groups, routed) = (e.routing.groups, e.routed);
            return Err(format!(
                "n_group: {groups} groups of n_routed_experts {routed}: fewer than two \
                 in a group"
            ));
        }
        not_negative("num_nextn_predict_layers", self.num_nextn_predict_layers)?;
        c.extra_layers = self.num_nextn_predict_layers;
        Ok(c)
    }
}
