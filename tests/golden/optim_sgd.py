"""torch.optim.SGD: plain, momentum, dampening, Nesterov, weight decay, maximize."""
import torch
from common import versions, write_json
from optim_common import AT, cases, run

LRS = {"quadratic": 0.005, "rosenbrock": 1e-4, "logistic": 0.2, "late_bias": 0.2}
PLAIN = {"momentum": 0.0, "dampening": 0.0, "nesterov": False}
VARIANTS = [
    PLAIN,
    PLAIN | {"weight_decay": 0.1},
    PLAIN | {"momentum": 0.9},
    PLAIN | {"momentum": 0.9, "dampening": 0.5},
    PLAIN | {"momentum": 0.9, "nesterov": True},
    PLAIN | {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "decay_lr": True},
    PLAIN | {"momentum": 0.8, "weight_decay": 0.1, "maximize": True},
]


def make(case):
    keys = ("momentum", "dampening", "nesterov", "maximize")
    return lambda groups, lr: torch.optim.SGD(
        groups, lr=lr, foreach=False, **{k: case[k] for k in keys}
    )


out = [run(make(c), c) for c in cases("sgd", LRS, VARIANTS)]
write_json("optim_sgd.json", {"versions": versions(), "at": AT, "cases": out})
