"""An optimizer step over 200 tensors of 64 x 576: torch.optim's foreach path and ours.

    cargo xtask bench optim

Both sides are processes of their own, run in turn; each prints a line per step. The
first third of the steps warms up and is left out; a number is the median of the rest
over all rounds.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

from peers import ROOT, hardware

STEPS = 60


def worker():
    import torch

    for name, make in {
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9, weight_decay=0.01, foreach=True),
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.01, foreach=True),
    }.items():
        params = [torch.randn(64, 576, requires_grad=True) for _ in range(200)]
        for p in params:
            p.grad = torch.randn(64, 576)
        opt = make(params)
        for _ in range(STEPS):
            start = time.perf_counter()
            opt.step()
            print(name, 1e3 * (time.perf_counter() - start))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--binary", default=str(ROOT / "target/debug/bench_optim"))
    p.add_argument("--out", default=str(ROOT / "chapters/figures/bench_optim.json"))
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.worker:
        return worker()
    result = {"hardware": hardware(), "date": time.strftime("%Y-%m-%d"), "rounds": args.rounds}
    commands = {
        "torch": [sys.executable, __file__, "--worker"],
        "ours": [args.binary, str(STEPS)],
    }
    ms = {(side, rule): [] for side in commands for rule in ("sgd", "adamw")}
    for _ in range(args.rounds):
        for side, command in commands.items():
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            lines = [line.split() for line in out.splitlines()]
            for rule in ("sgd", "adamw"):
                times = [float(t) for name, t in lines if name == rule]
                ms[side, rule] += times[STEPS // 3 :]
    for rule in ("sgd", "adamw"):
        torch, ours = (statistics.median(ms[side, rule]) for side in commands)
        result[rule] = {
            "torch_ms": round(torch, 2), "ours_ms": round(ours, 2), "ratio": round(torch / ours, 2),
        }
        print(f"{rule}: torch {torch:.2f} ms, ours {ours:.2f} ms, {torch / ours:.2f} times as fast")
    out = pathlib.Path(args.out)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
