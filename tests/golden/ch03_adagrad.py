"""torch.optim.Adagrad: every option."""
import torch
from common import versions, write_json
from optim_common import AT, cases, run

LRS = {"quadratic": 0.3, "rosenbrock": 0.1, "logistic": 0.3, "late_bias": 0.3}
PLAIN = {"lr_decay": 0.0, "initial_accumulator_value": 0.0, "eps": 1e-10}
VARIANTS = [
    PLAIN,
    PLAIN | {"weight_decay": 0.1},
    PLAIN | {"lr_decay": 0.05},
    PLAIN | {"initial_accumulator_value": 0.1, "eps": 1e-3},
    PLAIN | {"lr_decay": 0.01, "weight_decay": 0.2, "decay_lr": True},
    PLAIN | {"maximize": True, "weight_decay": 0.1, "initial_accumulator_value": 1.0},
]


def make(case):
    keys = ("lr_decay", "initial_accumulator_value", "eps", "maximize")
    return lambda groups, lr: torch.optim.Adagrad(
        groups, lr=lr, foreach=False, **{k: case[k] for k in keys}
    )


out = [run(make(c), c) for c in cases("adagrad", LRS, VARIANTS)]
write_json("ch03_adagrad.json", {"versions": versions(), "at": AT, "cases": out})
