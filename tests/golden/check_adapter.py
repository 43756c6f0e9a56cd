"""Does PEFT load an adapter of ours? `check_adapter.py ADAPTER MODEL [OTHER]`

Exit 0 only if no key is missing or unexpected and every tensor arrives bit for bit;
with OTHER (an adapter by PEFT), also if the logits of both agree within 1e-5 of the
largest. A file expected.safetensors in ADAPTER (ids, logits) is held against PEFT's
logits in the same way: the ignored test `lora_kinds::folders_for_peft` writes some.
"""
import pathlib
import sys

import torch
from peft_common import *  # noqa: F403
from safetensors.torch import load_file


def load(folder, base):
    """The model, and what PEFT says about the keys."""
    cfg = peft.PeftConfig.from_pretrained(folder)
    model = peft.get_peft_model(base_model(base, False), cfg)
    said = model.load_adapter(folder, adapter_name="default")
    # `missing_keys` lists the base model's own weights too.
    ours = ("lora_", "modules_to_save.default")
    missing = [k for k in said.missing_keys if any(part in k for part in ours)]
    return model.eval(), missing, list(said.unexpected_keys)


def check(folder, base, other=None):
    model, missing, unexpected = load(folder, base)
    assert not missing and not unexpected, (missing, unexpected)
    ours = load_file(pathlib.Path(folder) / "adapter_model.safetensors")
    back = peft.get_peft_model_state_dict(model)
    assert ours.keys() == back.keys(), ours.keys() ^ back.keys()
    assert all(torch.equal(v.float(), back[k]) for k, v in ours.items())
    expected = pathlib.Path(folder) / "expected.safetensors"
    if expected.exists():
        wanted = load_file(expected)
        with torch.no_grad():
            found = model(input_ids=wanted["ids"]).logits
        gap = (found - wanted["logits"]).abs().max() / wanted["logits"].abs().max()
        assert gap < 1e-5, gap
        return len(ours), gap.item()
    if other:
        size = model.config.vocab_size
        ids = torch.randint(3, size, (2, 16), generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            a, b = (m(input_ids=ids).logits for m in (model, load(other, base)[0]))
        gap = ((a - b).abs().max() / b.abs().max()).item()
        assert gap < 1e-5, gap
        return len(ours), gap
    return len(ours), None


if __name__ == "__main__":
    keys, gap = check(*sys.argv[1:])
    print(f"{keys} tensors, none missing, none unexpected; logits differ by {gap}")
