"""Mean loss over 200 steps with LoRA dropout, ours and PEFT's, from the same adapter.

    cargo build && python tests/golden/check_dropout.py

The masks differ, so the two are compared as means; some seeds show how far means of
one side lie apart. Exit 0 if the means over the seeds agree within 1 %.
"""
import subprocess
import sys
import tempfile

import torch
from peft_common import *  # noqa: F403

BASE = HERE / "train_taught"
BINARY = HERE / "../../target/debug/downhill"
SEEDS = range(3)
S = SETTINGS | {"learning_rate": 1e-3, "steps": 200}
DROPOUT = 0.2


def mean(log):
    return sum(x["loss"] for x in log) / len(log)


def theirs(rows, seed):
    model = peft.PeftModel.from_pretrained(
        base_model(BASE, False), BASE / "adapter", is_trainable=True)
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = DROPOUT
        if hasattr(m, "lora_dropout"):
            m.lora_dropout["default"] = torch.nn.Dropout(DROPOUT)
    torch.manual_seed(seed)
    return mean(train(model, rows, S))


def ours(seed):
    with tempfile.TemporaryDirectory() as out:
        flags = {
            "model": BASE, "train-file": BASE / "rows.jsonl", "init-adapter":
            BASE / "adapter", "output-dir": out + "/out", "logging-dir": out + "/logs",
            "max-steps": S["steps"], "per-device-train-batch-size": S["batch"],
            "gradient-accumulation-steps": S["accumulation"], "learning-rate":
            S["learning_rate"], "lora-dropout": DROPOUT, "shuffle": "false", "seed": seed,
            "load-in-4bit": "false", "save-strategy": "no", "device": "cpu",
        }
        line = [BINARY, "finetune"] + [f"--{k}={v}" for k, v in flags.items()]
        subprocess.run([str(x) for x in line], check=True, capture_output=True)
        state = json.loads(open(out + "/out/trainer_state.json").read())
        return mean([x for x in state["log_history"] if "loss" in x])


rows = [json.loads(line) for line in (BASE / "rows.jsonl").open()]
a, b = [ours(s) for s in SEEDS], [theirs(rows, s) for s in SEEDS]
gap = abs(sum(a) / sum(b) - 1)
print("ours ", a, "\ntheirs", b, f"\nmeans {gap:.2%} apart")
sys.exit(gap > 0.01)
