"""The three problems on which every optimizer is compared with `torch.optim`.

`tests/book/parity_optim.rs` holds the same losses, operation for operation.
"""
import math

import torch

AT = [1, 2, 3, 5, 10, 20, 50, 51, 100, 150, 200]


def data(dtype):
    """Twelve points in four dimensions, and their labels."""
    x = [[math.sin(1.7 * (4 * i + j) + 0.3) for j in range(4)] for i in range(12)]
    y = [float((7 * i) % 3 == 0) for i in range(12)]
    return torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype)


def start(problem, dtype):
    """The parameters before the first step."""
    values = {
        "quadratic": [[1.0, -2.0, 3.0]],
        "rosenbrock": [[-1.2], [1.0]],
        "logistic": [[0.1, -0.2, 0.3, -0.4], [0.05]],
        "late_bias": [[0.1, -0.2, 0.3, -0.4], [0.05]],
    }[problem]
    return [torch.tensor(v, dtype=dtype, requires_grad=True) for v in values]


def loss_of(problem, params, step):
    if problem == "quadratic":  # condition number 100
        (theta,) = params
        h = torch.tensor([1.0, 10.0, 100.0], dtype=theta.dtype)
        return (h * theta * theta).sum() * 0.5
    if problem == "rosenbrock":
        x, y = params
        a, b = 1.0 - x, y - x * x
        return (a * a + b * b * 100.0).sum()
    w, b = params
    x, y = data(w.dtype)
    z = x.mv(w)
    # In "late_bias" the bias takes no part before step 51, so its gradient is
    # absent: the optimizer must leave it alone and start its own count then.
    if problem == "logistic" or step > 50:
        z = z + b
    return torch.nn.functional.binary_cross_entropy_with_logits(z, y)


def run(make, case):
    """200 steps; the parameters, concatenated, after the steps in AT."""
    dtype = {"f64": torch.float64, "f32": torch.float32}[case["kind"]]
    params = start(case["problem"], dtype)
    # Weight decay on the first parameter only: two parameter groups.
    wd = case["weight_decay"]
    groups = [{"params": params[:1], "weight_decay": wd}]
    if params[1:]:
        groups.append({"params": params[1:], "weight_decay": 0.0})
    opt = make(groups, case["lr"])
    theta = []
    for step in range(1, 201):
        for g in opt.param_groups:
            g["lr"] = case["lr"] * (1.0 - (step - 1) / 200 if case["decay_lr"] else 1.0)
        opt.zero_grad()
        loss = loss_of(case["problem"], params, step)
        (-loss if case["maximize"] else loss).backward()
        opt.step()
        if step in AT:
            theta.append([float(v) for p in params for v in p.detach()])
    assert all(math.isfinite(v) for row in theta for v in row), case
    return {**case, "theta": theta}


def cases(rule, lrs, variants):
    """Every variant on every problem, in f64 and f32."""
    for variant in variants:
        for problem in ("quadratic", "rosenbrock", "logistic", "late_bias"):
            for kind in ("f64", "f32"):
                case = {"rule": rule, "problem": problem, "kind": kind}
                case |= {"lr": lrs[problem], "weight_decay": 0.0, "maximize": False}
                yield case | {"decay_lr": False} | variant
