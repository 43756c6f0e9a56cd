//! A head that shares the embedding, or should.
use super::config::DecoderConfig;
use crate::Result;
use crate::checkpoint::Checkpoint;

pub(super) const EMBED: &str = "model.embed_tokens.weight";
pub(super) const HEAD: &str = "lm_head.weight";

/// Of a checkpoint whose `config.json` says that the head is the embedding, but which
/// holds another head: makes it untied, and returns a sentence that says so.
///
/// Source: `tie_weights` in transformers 5's `modeling_utils.py`. Older versions use
/// the embedding, and say nothing.
pub(super) fn untie(
    config: &mut DecoderConfig,
    checkpoint: &Checkpoint,
) -> Result<Option<String>> {
    let both = checkpoint.contains(EMBED) && checkpoint.contains(HEAD);
    if !config.tie_word_embeddings || !both || checkpoint.same(EMBED, HEAD)? {
        return Ok(None);
    }
    config.tie_word_embeddings = false;
    Ok(Some(format!(
        "{HEAD} is stored, and is not {EMBED}: it is used, as transformers 5 does, \
         although config.json says tie_word_embeddings: true"
    )))
}

/// Under which name the tensor `name` is stored: of a tied model, either will do.
pub(super) fn stored<'a>(
    name: &'a str,
    tied: bool,
    checkpoint: &Checkpoint,
) -> &'a str {
    let other = tied
        && name == EMBED
        && !checkpoint.contains(EMBED)
        && checkpoint.contains(HEAD);
    if other { HEAD } else { name }
}
