"""Tiny checkpoints, of Llama or another family, whose logits are far from uniform."""
import copy
import math

import torch
import transformers
from common import *  # noqa: F403  (also sets the threads)
from common import versions
from safetensors.torch import save_file

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def config(family="Llama", **changes):
    base = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    return getattr(transformers, family + "Config")(**(base | changes))


def random_model(seed, dtype=torch.float32, std=0.25, family="Llama", **changes):
    """Weights of N(0, std), norms and biases away from their defaults, rounded to
    `dtype` and then held in f32: the numbers that a reader of the files will see."""
    generator = torch.Generator().manual_seed(seed)
    cfg = config(family, **changes)
    cfg.torch_dtype = dtype
    model = getattr(transformers, family + "ForCausalLM")(cfg).float().eval()
    with torch.no_grad():
        buffers = [(n, b) for n, b in model.named_buffers() if n.endswith("_bias")]
        for name, p in [*model.named_parameters(), *buffers]:
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


def scale_scores(model):
    """What DeepSeek's own V2 code does and transformers 4.57 forgets: scores times
    mscale², from mscale_all_dim. (transformers has it since #47435.)"""
    rope = model.config.rope_scaling or {}
    if model.config.model_type == "deepseek_v2" and rope.get("mscale_all_dim"):
        mscale = 0.1 * rope["mscale_all_dim"] * math.log(rope["factor"]) + 1
        for layer in model.model.layers:
            layer.self_attn.scaling *= mscale**2


def save(model, folder, dtype, **options):
    """`save_pretrained` of a copy in `dtype`. (Of a copy: `.to(bfloat16)` would round
    the rotary frequencies of `model` too, and they would not come back.)"""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    copy.deepcopy(model).to(dtype).save_pretrained(folder, **options)
    (folder / "generation_config.json").unlink()


def check_gap(model, ids, new):
    """The least lead of a chosen token: far above rounding, or the test is a toss; and
    not the same few tokens over and over."""
    assert len(set(new.tolist())) > 5, "too few kinds"
    both = torch.cat([ids, new[None]], 1)
    logits = model(both).logits[0, ids.shape[1] - 1 : -1]
    top = logits.topk(2).values
    assert torch.equal(logits.argmax(-1), new)
    gap = (top[:, 0] - top[:, 1]).min().item()
    assert gap > 2e-4, gap
    return gap


@torch.no_grad()
def write_expected(model, folder, seed, count, more=None):
    """expected.safetensors: token ids, the logits in f32 (of a right-padded batch too),
    and `count` tokens of greedy generation. Seeds its draws by `seed`."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 64, (2, 40), generator=draw)
    padded = ids[:, :24].clone()
    padded[1, 15:] = 0
    mask = torch.ones_like(padded)
    mask[1, 15:] = 0
    # Prompts until one whose greedy path has no near tie.
    for _ in range(200):
        prompt = torch.randint(3, 64, (1, 6), generator=draw)
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
            max_new_tokens=count, min_new_tokens=count, eos_token_id=None,
            pad_token_id=0,
        )
        new = out[0, 6:]
        try:
            gap = check_gap(model, prompt, new)
            break
        except AssertionError as e:
            print(folder.name, "another prompt:", e)
    else:
        raise SystemExit(f"{folder.name}: no clear path")
    tensors = {
        "ids": ids, "logits": model(ids).logits,
        "padded_ids": padded, "padded_mask": mask,
        "padded_logits": model(padded, attention_mask=mask).logits,
        "prompt": prompt, "greedy": new.clone(),
    }
    with torch.enable_grad():
        tensors |= more(model, ids) if more else {}
    meta = versions("transformers") | {"gap": f"{gap:.2e}"}
    save_file(tensors, folder / "expected.safetensors", metadata=meta)
    files = sorted(p.name for p in folder.iterdir())
    kinds = len(set(new.tolist()))
    size = sum(p.stat().st_size for p in folder.iterdir())
    print(f"{folder.name:18} {size:7} bytes, gap {gap:.1e}, {kinds} kinds, {len(files)} files")
