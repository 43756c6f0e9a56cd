"""torch.optim.RMSprop: every option."""
import torch
from common import versions, write_json
from optim_common import AT, cases, run

# Low rates: where RMSprop has arrived, its divisor shrinks until it shakes, and two runs
# that differ by a rounding part company.
LRS = {"quadratic": 0.005, "rosenbrock": 1e-3, "logistic": 1e-3, "late_bias": 1e-3}
PLAIN = {"alpha": 0.99, "eps": 1e-8, "centered": False, "momentum": 0.0}
VARIANTS = [
    PLAIN,
    PLAIN | {"alpha": 0.9, "eps": 1e-3},
    PLAIN | {"weight_decay": 0.1},
    PLAIN | {"centered": True, "eps": 1e-3},
    PLAIN | {"momentum": 0.9},
    PLAIN | {"centered": True, "eps": 1e-2, "momentum": 0.5, "weight_decay": 0.1, "decay_lr": True},
    PLAIN | {"maximize": True, "weight_decay": 0.1, "alpha": 0.95},
]


def make(case):
    keys = ("alpha", "eps", "centered", "momentum", "maximize")
    return lambda groups, lr: torch.optim.RMSprop(
        groups, lr=lr, foreach=False, **{k: case[k] for k in keys}
    )


out = [run(make(c), c) for c in cases("rmsprop", LRS, VARIANTS)]
write_json("ch04_rmsprop.json", {"versions": versions(), "at": AT, "cases": out})
