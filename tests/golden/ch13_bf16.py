"""Logits in bf16 of every checkpoint here: ch13_bf16.safetensors, <folder> to [B, T, V],
for the `ids` of the folder's own expected.safetensors.

As transformers computes on a CPU by default, attention by libtorch's function. With
attention written out (`eager`), which rounds at other places, transformers is as far
from itself as is printed: the largest difference in ulps of the largest logit.
"""
import json
import math

import torch
from llama_common import *  # noqa: F403
from safetensors.torch import load_file, save_file

BF16 = torch.bfloat16


def plain(folder):
    """The tensors of a folder in fp8, and its configuration without that."""
    cfg = transformers.AutoConfig.from_pretrained(folder)
    del cfg.quantization_config
    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if n.endswith("_scale_inv")]:
        of, scale = name.removesuffix("_scale_inv"), tensors.pop(name)
        for d in (0, 1):
            scale = scale.repeat_interleave(128, d)
        rows, columns = tensors[of].shape
        w = tensors[of].float() * scale[:rows, :columns]
        tensors[of] = w.to(BF16)
    return cfg, tensors


def model(folder, attention):
    options = {"dtype": BF16, "attn_implementation": attention}
    if "quantization_config" in json.loads((folder / "config.json").read_text()):
        cfg, tensors = plain(folder)
        m = getattr(transformers, cfg.architectures[0]).from_pretrained(
            None, config=cfg, state_dict=tensors, **options)
    else:
        m = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    scale_scores(m)
    return m.eval()


def ulp(logits):
    """Of the largest of them: bf16 has 8 bits."""
    return 2.0 ** (math.floor(math.log2(logits.abs().max())) - 7)


@torch.no_grad()
def main():
    out = {}
    for path in sorted(HERE.glob("*/expected.safetensors")):
        folder, expected = path.parent, load_file(path)
        # 4.57 does not know `rope_parameters`.
        if "padded_logits" not in expected or folder.name.startswith("llama_v5"):
            continue
        ids = expected["ids"]
        found = {a: model(folder, a)(ids).logits for a in ("sdpa", "eager")}
        assert all(t.dtype == BF16 for t in found.values())
        out[folder.name] = found["sdpa"]
        far = (found["sdpa"].float() - found["eager"].float()).abs().max()
        off = (found["sdpa"].float() - expected["logits"]).abs().max()
        unit = ulp(found["sdpa"].float())
        print(f"{folder.name:18} eager {far / unit:6.2f}  f32 {off / unit:6.2f}")
    save_file(out, HERE / "ch13_bf16.safetensors", metadata=versions("transformers"))


main()
