"""Tiny Llama checkpoints whose logits are far from uniform."""
import copy

import torch
import transformers
from common import *  # noqa: F403  (also sets the threads)

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def config(**changes):
    base = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    return transformers.LlamaConfig(**(base | changes))


def random_model(seed, dtype=torch.float32, std=0.25, **changes):
    """Weights of N(0, std), norms and biases away from their defaults, rounded to
    `dtype` and then held in f32: the numbers that a reader of the files will see."""
    generator = torch.Generator().manual_seed(seed)
    cfg = config(**changes)
    cfg.torch_dtype = dtype
    model = transformers.LlamaForCausalLM(cfg).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name:
                p.copy_(1 + 0.2 * noise)
            elif "bias" in name:
                p.copy_(0.2 * noise)
            elif "embed" in name or "lm_head" in name:
                wide = 0.5 if cfg.tie_word_embeddings else 1.0
                p.copy_(noise * min(wide, 5 * std))
            else:
                p.copy_(std * noise)
            p.copy_(p.to(dtype).float())
    return model


def save(model, folder, dtype, **options):
    """`save_pretrained` of a copy in `dtype`. (Of a copy: `.to(bfloat16)` would round
    the rotary frequencies of `model` too, and they would not come back.)"""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    copy.deepcopy(model).to(dtype).save_pretrained(folder, **options)
    (folder / "generation_config.json").unlink()
