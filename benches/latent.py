"""What one new token costs latent attention, with and without absorption.

    cargo xtask bench latent

Runs lab/experiments/bench_latent.rs a few times; a number is the median over the rounds.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import time

from peers import ROOT, hardware


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--binary", default=str(ROOT / "target/debug/bench_latent"))
    p.add_argument("--out", default=str(ROOT / "chapters/figures/bench_latent.json"))
    args = p.parse_args()
    result = {"hardware": hardware(), "date": time.strftime("%Y-%m-%d")}
    found = {}
    for _ in range(args.rounds):
        out = subprocess.run([args.binary], check=True, capture_output=True, text=True).stdout
        # Below the line of titles: tokens, ms expanded, ms absorbed, their ratio.
        for line in out.splitlines()[1:]:
            tokens, *numbers = line.split()
            found.setdefault(tokens, []).append([float(n) for n in numbers])
    shape = {"hidden_size": 2048, "heads": 16, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    result["settings"] = {"shape": shape, "kind": "f32", "weights": "nf4", "rounds": args.rounds}
    for tokens, rounds in found.items():
        expanded, absorbed, ratio = map(statistics.median, zip(*rounds))
        result[f"t{tokens}"] = {
            "expanded_ms": round(expanded, 2), "absorbed_ms": round(absorbed, 2), "ratio": round(ratio, 1),
        }
        print(f"{tokens} tokens: {expanded:.2f} ms, absorbed {absorbed:.2f} ms, {ratio:.1f} times as fast")
    out = pathlib.Path(args.out)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
