"""Every step of transformers' schedules, and torch's clip_grad_norm_."""
import torch
import transformers
from common import HERE, versions, write_json
from safetensors.torch import save_file

PEAK, TOTAL = 2e-4, 1000
MAKE = {
    "constant": lambda o, w: transformers.get_constant_schedule(o),
    "constant_with_warmup": transformers.get_constant_schedule_with_warmup,
    "linear": lambda o, w: transformers.get_linear_schedule_with_warmup(o, w, TOTAL),
    "cosine": lambda o, w: transformers.get_cosine_schedule_with_warmup(o, w, TOTAL),
}
WARMUPS = [0, 1, 30, 333, 1000]


def series(name, warmup):
    """The rate of steps 0 ..= TOTAL: what `lr_scheduler.get_last_lr()` holds."""
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    schedule = MAKE[name](opt, warmup)
    out = []
    for _ in range(TOTAL + 1):
        out.append(schedule.get_last_lr()[0])
        opt.step()
        schedule.step()
    return torch.tensor(out, dtype=torch.float64)


def schedules():
    tensors = {}
    for name in MAKE:
        for warmup in [0] if name == "constant" else WARMUPS:
            tensors[f"{name}.{warmup}"] = series(name, warmup)
    meta = {"peak": repr(PEAK), "total": str(TOTAL)} | versions("transformers")
    save_file(tensors, HERE / "schedules.safetensors", metadata=meta)


def clip():
    """Gradients (null: absent), the norm before, and the gradients after."""
    nice = [[3.0, -4.0], [12.0], [0.5, 0.25, -0.125]]
    cases = []
    for kind, dtype in (("f64", torch.float64), ("f32", torch.float32)):
        for maximum in (0.0, 0.3, 1.0, 13.0, 100.0):
            for scale in (0.0, 1e-9, 1.0, 1e4):
                for absent in (False, True):
                    rows = [[v * scale for v in row] for row in nice]
                    params = [torch.zeros(len(r), dtype=dtype) for r in rows]
                    for p, row in zip(params, rows):
                        p.grad = torch.tensor(row, dtype=dtype)
                    if absent:
                        params[1].grad = None
                    before = [p.grad if p.grad is None else p.grad.tolist() for p in params]
                    norm = torch.nn.utils.clip_grad_norm_(params, maximum, foreach=False)
                    after = [p.grad if p.grad is None else p.grad.tolist() for p in params]
                    case = {"kind": kind, "max": maximum, "norm": float(norm)}
                    cases.append(case | {"before": before, "after": after})
    write_json("clip_grad_norm.json", {"versions": versions(), "cases": cases})


schedules()
clip()
