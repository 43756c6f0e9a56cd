"""What transformers makes of the names of schedules: every rate of a run."""
import math

import torch
import transformers
from common import versions, write_json

RUNS = [
    ("cosine_with_restarts", {}), ("cosine_with_restarts", {"num_cycles": 3}),
    ("polynomial", {}), ("polynomial", {"lr_end": 1e-5, "power": 2.0}),
    ("inverse_sqrt", {}),
    ("warmup_stable_decay", {"num_decay_steps": 9}),
    ("cosine", {}), ("linear", {}), ("constant", {}), ("constant_with_warmup", {}),
]
out = []
for name, extra in RUNS:
    for ratio, total in ((0.0, 40), (0.1, 40), (0.03, 41)):
        opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2e-4)
        schedule = transformers.get_scheduler(
            name, opt, math.ceil(total * ratio), total, scheduler_specific_kwargs=extra)
        rates = []
        for _ in range(total):
            rates.append(schedule.get_last_lr()[0])
            opt.step()
            schedule.step()
        out.append({"name": name, "kwargs": extra, "warmup_ratio": ratio, "rates": rates})
write_json("ch16_flags.json", {"versions": versions("transformers"), "runs": out})
