"""Every step of the schedules of PyTorch and transformers, beyond those of
`schedules.py`: what `get_last_lr()` holds at steps 0 to 1000."""
import math

import torch
import transformers as t
from common import HERE, versions
from safetensors.torch import save_file
from torch.optim import lr_scheduler as s

PEAK, TOTAL = 2e-4, 1000


def noam(width, warmup):
    """Vaswani et al. 2017, equation 3, as a factor of a rate of 1."""
    return lambda o: s.LambdaLR(
        o, lambda n: width**-0.5 * min((n + 1) ** -0.5, (n + 1) * warmup**-1.5) / PEAK
    )


MAKE = {
    "polynomial.0.2.1e-6": lambda o: t.get_polynomial_decay_schedule_with_warmup(o, 0, TOTAL, 1e-6, 2.0),
    "polynomial.30.1.1e-7": lambda o: t.get_polynomial_decay_schedule_with_warmup(o, 30, TOTAL),
    "polynomial.100.0.5.0": lambda o: t.get_polynomial_decay_schedule_with_warmup(o, 100, TOTAL, 0.0, 0.5),
    "cosine_restarts.30.3": lambda o: t.get_cosine_with_hard_restarts_schedule_with_warmup(o, 30, TOTAL, 3),
    "cosine_restarts.0.1": lambda o: t.get_cosine_with_hard_restarts_schedule_with_warmup(o, 0, TOTAL, 1),
    "warm_restarts.100.1.0": lambda o: s.CosineAnnealingWarmRestarts(o, 100),
    "warm_restarts.70.2.1e-6": lambda o: s.CosineAnnealingWarmRestarts(o, 70, 2, 1e-6),
    "inverse_sqrt.50.50": lambda o: t.get_inverse_sqrt_schedule(o, 50),
    "inverse_sqrt.0.10000": lambda o: t.get_inverse_sqrt_schedule(o, 0),
    "inverse_sqrt.20.300": lambda o: t.get_inverse_sqrt_schedule(o, 20, 300),
    "noam.512.400": noam(512, 400),
    "exponential.0.99": lambda o: s.ExponentialLR(o, 0.99),
    "step.300.0.1": lambda o: s.StepLR(o, 300, 0.1),
    "multi_step.0.5": lambda o: s.MultiStepLR(o, [100, 400, 401, 900], 0.5),
    "one_cycle": lambda o: s.OneCycleLR(o, PEAK, TOTAL + 1),
    "wsd.50.750.200": lambda o: t.get_wsd_schedule(o, 50, 200, TOTAL),
    "wsd.0.100.100": lambda o: t.get_wsd_schedule(o, 0, 100, num_stable_steps=100),
    "deepseek": lambda o: s.SequentialLR(
        o,
        [
            s.LambdaLR(o, lambda n: n / 20),
            s.LambdaLR(o, lambda n: math.sqrt(0.1) ** ((n >= 780) + (n >= 880))),
        ],
        [20],
    ),
}


def series(make):
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    schedule = make(opt)
    out = []
    for _ in range(TOTAL + 1):
        out.append(schedule.get_last_lr()[0])
        opt.step()
        if schedule.last_epoch < TOTAL:
            schedule.step()
    return torch.tensor(out, dtype=torch.float64)


tensors = {name: series(make) for name, make in MAKE.items()}
meta = {"peak": repr(PEAK), "total": str(TOTAL)} | versions("transformers")
save_file(tensors, HERE / "ch07_schedules.safetensors", metadata=meta)
