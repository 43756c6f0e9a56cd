"""Tiny Llama checkpoints as transformers saves them, with its logits and its text.

llama_<name>/ holds the checkpoint and expected.safetensors (see `write_expected`).
"""
import json

import torch
from common import HERE
from llama_common import random_model, save, write_expected

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


for seed, (name, (dtype, shard, changes)) in enumerate(CASES.items()):
    model = random_model(100 + seed, dtype, **changes)
    folder = HERE / f"llama_{name}"
    save(model, folder, dtype, **({"max_shard_size": shard} if shard else {}))
    respell(name, folder)
    write_expected(model, folder, seed, 64)
