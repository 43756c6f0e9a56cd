"""Mean loss over 200 steps with LoRA dropout, by PEFT: train_<name>/dropout.json.

In 4 bits by bitsandbytes' CUDA rule (`cuda_rule`), from the checkpoint, the rows and
the adapter of ch16_train10.py. The masks are drawn by torch, and ours otherwise: the two
are compared as means, and some seeds show how far means of one side lie apart.
"""
import torch
from peft_common import *  # noqa: F403

SEEDS = range(4)
S = SETTINGS | {"learning_rate": 1e-3, "steps": 200}
DROPOUT = 0.2


def mean(folder, rows, seed):
    model = peft.PeftModel.from_pretrained(
        cuda_rule(base_model(folder, False)), folder / "adapter", is_trainable=True)
    for m in model.modules():
        if hasattr(m, "lora_dropout"):
            m.lora_dropout["default"] = torch.nn.Dropout(DROPOUT)
    torch.manual_seed(seed)
    return sum(x["loss"] for x in train(model, rows, S)) / S["steps"]


for name in ("taught", "v2"):
    folder = HERE / f"train_{name}"
    rows = [json.loads(line) for line in (folder / "rows.jsonl").open()]
    means = [mean(folder, rows, seed) for seed in SEEDS]
    off = [x / means[0] - 1 for x in means]
    print(name, means, f"apart {max(off) - min(off):.2%}")
    run = {"load_in_4bit": True, "cuda_rule": True, "settings": S}
    out = run | {"versions": versions("peft"), "lora_dropout": DROPOUT, "means": means}
    (folder / "dropout.json").write_text(json.dumps(out, indent=1) + "\n")
