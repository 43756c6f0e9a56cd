"""Tiny Llama checkpoints as transformers saves them, with its logits and its text.

llama_<name>/ holds the checkpoint; expected.safetensors the token ids, the logits in
f32 (of a right-padded batch too), and 64 tokens of greedy generation.
"""
import json

import torch
from common import HERE, versions
from llama_common import random_model, save
from safetensors.torch import save_file

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
CASES = {  # name: (dtype of the files, shard size, changes to the configuration)
    "mha": (F32, None, {}),
    "gqa": (BF16, None, {"num_key_value_heads": 2, "rms_norm_eps": 1e-3}),
    "mqa": (F16, None, {"num_key_value_heads": 1, "rope_theta": 500.0}),
    "tied": (BF16, None, {"tie_word_embeddings": True}),
    "bias": (BF16, None, {"attention_bias": True, "mlp_bias": True}),
    "head_dim": (BF16, None, {"head_dim": 12, "num_key_value_heads": 2}),
    "linear": (BF16, None, {"rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
    "linear_old": (BF16, None, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama3": (BF16, None, {"rope_scaling": LLAMA3, "num_key_value_heads": 2}),
    "v5": (BF16, None, {"rope_theta": 2000.0}),
    "v5_llama3": (BF16, None, {"rope_scaling": LLAMA3, "rope_theta": 300.0}),
    "sharded": (BF16, "12KB", {"num_key_value_heads": 2}),
}


def respell(name, folder):
    """Older and newer spellings of the same configuration."""
    path = folder / "config.json"
    cfg = json.loads(path.read_text())
    # transformers 4.57 writes `dtype`; older releases `torch_dtype`.
    dtype = cfg.pop("dtype", None) or cfg.pop("torch_dtype")
    if name.startswith("v5"):  # transformers 5
        rope = cfg.pop("rope_scaling", None) or {"rope_type": "default"}
        cfg["rope_parameters"] = rope | {"rope_theta": cfg.pop("rope_theta")}
        cfg["dtype"] = dtype
        cfg["transformers_version"] = "5.0.0"
    else:
        cfg["torch_dtype"] = dtype
    if name == "linear_old":  # as DeepSeek-Coder's config.json spells it
        cfg["rope_scaling"] = {"type": "linear", "factor": 4.0}
        for key in ("head_dim", "attention_bias", "mlp_bias", "pad_token_id"):
            del cfg[key]
    path.write_text(json.dumps(cfg, indent=2) + "\n")


def check_gap(model, ids, new):
    """The least lead of a chosen token: far above rounding, or the test is a toss."""
    both = torch.cat([ids, new[None]], 1)
    logits = model(both).logits[0, ids.shape[1] - 1 : -1]
    top = logits.topk(2).values
    assert torch.equal(logits.argmax(-1), new)
    gap = (top[:, 0] - top[:, 1]).min().item()
    assert gap > 2e-4, gap
    return gap


@torch.no_grad()
def main():
    for seed, (name, (dtype, shard, changes)) in enumerate(CASES.items()):
        model = random_model(100 + seed, dtype, **changes)
        folder = HERE / f"llama_{name}"
        save(model, folder, dtype, **({"max_shard_size": shard} if shard else {}))
        respell(name, folder)
        draw = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, 64, (2, 40), generator=draw)
        padded = ids[:, :24].clone()
        padded[1, 15:] = 0
        mask = torch.ones_like(padded)
        mask[1, 15:] = 0
        # Prompts until one whose greedy path has no near tie.
        for _ in range(40):
            prompt = torch.randint(3, 64, (1, 6), generator=draw)
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                max_new_tokens=64, min_new_tokens=64, eos_token_id=None, pad_token_id=0,
            )
            new = out[0, 6:]
            try:
                gap = check_gap(model, prompt, new)
                break
            except AssertionError as e:
                print(name, "another prompt:", e)
        else:
            raise SystemExit(f"{name}: no clear path")
        tensors = {
            "ids": ids, "logits": model(ids).logits,
            "padded_ids": padded, "padded_mask": mask,
            "padded_logits": model(padded, attention_mask=mask).logits,
            "prompt": prompt, "greedy": new.clone(),
        }
        meta = versions("transformers") | {"gap": f"{gap:.2e}"}
        save_file(tensors, folder / "expected.safetensors", metadata=meta)
        files = sorted(p.name for p in folder.iterdir())
        kinds = len(set(new.tolist()))
        size = sum(p.stat().st_size for p in folder.iterdir())
        print(f"{name:11} {size:7} bytes, gap {gap:.1e}, {kinds} kinds, {len(files)} files")


main()
