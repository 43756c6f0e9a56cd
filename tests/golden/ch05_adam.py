"""torch.optim.Adam and AdamW, each in its AMSGrad form as well."""
import torch
from common import versions, write_json
from optim_common import AT, cases, run

LRS = {"quadratic": 0.05, "rosenbrock": 0.02, "logistic": 0.05, "late_bias": 0.05}
USUAL = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
VARIANTS = [
    USUAL,
    USUAL | {"weight_decay": 0.1},
    # An epsilon this large shows where it stands: outside the root, after the
    # bias correction.
    {"beta1": 0.8, "beta2": 0.95, "eps": 1e-2},
    USUAL | {"weight_decay": 0.1, "maximize": True},
    USUAL | {"beta2": 0.99, "weight_decay": 0.1, "decay_lr": True},
]
RULES = {
    "adam": (torch.optim.Adam, {"amsgrad": False}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"amsgrad": False}),
    "adamw_amsgrad": (torch.optim.AdamW, {"amsgrad": True}),
}


def make(case):
    cls, fixed = RULES[case["rule"]]
    return lambda groups, lr: cls(
        groups,
        lr=lr,
        betas=(case["beta1"], case["beta2"]),
        eps=case["eps"],
        maximize=case["maximize"],
        foreach=False,
        **fixed,
    )


out = [run(make(c), c) for rule in RULES for c in cases(rule, LRS, VARIANTS)]
write_json("ch05_adam.json", {"versions": versions(), "at": AT, "cases": out})
