"""Gradients after torch's clip_grad_value_ and after timm's adaptive clipping.

(Clipping by the global norm is in `schedules.py`.) Needs timm 1.x; of it only one file,
which is loaded by itself, since the package asks for torchvision.
"""
import importlib.util
import pathlib

import torch
from common import versions, write_json

TIMM = pathlib.Path(importlib.util.find_spec("timm").submodule_search_locations[0])
SPEC = importlib.util.spec_from_file_location("agc", TIMM / "utils" / "agc.py")
AGC = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(AGC)
adaptive_clip_grad = AGC.adaptive_clip_grad

WEIGHTS = [[[0.5, -1.5], [0.0, 0.0], [3.0, 4.0]], [0.1, -0.2, 0.3], [2.0]]
GRADS = [[[0.3, -0.4], [5.0, 0.0], [1e-4, 0.0]], [-6.0, 0.25, 1e-7], [0.015]]

cases = []
for kind, dtype in (("f64", torch.float64), ("f32", torch.float32)):
    for rule, bounds in (("value", (0.0, 0.2, 1.0, 100.0)), ("adaptive", (0.01, 0.1, 10.0))):
        for bound in bounds:
            for scale in (1.0, 1e-6, 1e4):
                for absent in (False, True):
                    params = [torch.tensor(w, dtype=dtype) for w in WEIGHTS]
                    for p, g in zip(params, GRADS):
                        p.grad = torch.tensor(g, dtype=dtype) * scale
                    if absent:
                        params[1].grad = None
                    before = [p.grad if p.grad is None else p.grad.flatten().tolist() for p in params]
                    if rule == "value":
                        torch.nn.utils.clip_grad_value_(params, bound, foreach=False)
                    else:
                        adaptive_clip_grad(params, bound)
                    after = [p.grad if p.grad is None else p.grad.flatten().tolist() for p in params]
                    case = {"kind": kind, "rule": rule, "bound": bound}
                    cases.append(case | {"before": before, "after": after})
weights = [{"shape": list(torch.tensor(w).shape), "values": torch.tensor(w).flatten().tolist()} for w in WEIGHTS]
# The weights as f64, not as f32 prints them.
for w, values in zip(weights, WEIGHTS):
    w["values"] = torch.tensor(values, dtype=torch.float64).flatten().tolist()
write_json("ch08_clipping.json", {"versions": versions(), "weights": weights, "cases": cases})
