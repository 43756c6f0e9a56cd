"""Speed beside PEFT + bitsandbytes: the same fine-tune, in turn, on one machine.

    cargo xtask bench peers

The job: a Llama of 135 million random weights (SmolLM's shape), rows of about 30
tokens, batches of 4, LoRA r 16 on q_proj and v_proj, dropout 0.05, AdamW, f32, the
base in NF4 with double quantization and, beside it, unquantized; where the processor
has bf16 units, in four bits once more in bf16. Each side is a
process of its own, reads the same checkpoint and the same tokenized rows, and prints a
line after each step; this program takes the time at which the lines arrive. Tokens
are unpadded input tokens, from the end of the first step to the end of the last.
Needs an idle machine: another busy process slows the peers down several times.
"""
import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import re
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "peers"
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}
BATCH, R, ALPHA, DROPOUT, LR = 4, 16, 32, 0.05, 2e-4
TARGETS = ["q_proj", "v_proj"]


def make_model():
    """The checkpoint, as bf16 files."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    model.bfloat16().save_pretrained(WORK / "model")


def prepare(rows):
    """The checkpoint, made once, and the rows."""
    if not (WORK / "model" / "model.safetensors").exists():
        # In a process of its own: the peak memory of a child counts from what its
        # parent held when it was made, and this program measures its children.
        subprocess.run([sys.executable, __file__, "--make-model"], check=True)
    rng = random.Random(0)
    with (WORK / "rows.jsonl").open("w") as out:
        for _ in range(rows):
            ids = [1] + [rng.randrange(3, SHAPE["vocab_size"])
                         for _ in range(rng.randint(23, 35))]
            labels = [-100] * 10 + ids[10:]
            out.write(json.dumps({"input_ids": ids, "labels": labels}) + "\n")


def read_rows():
    return [json.loads(line) for line in (WORK / "rows.jsonl").open()]


def has_bf16():
    """Whether this processor multiplies in bf16 by itself."""
    flags = pathlib.Path("/proc/cpuinfo").read_text()
    return bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags))


def worker(four_bit, steps, kind):
    """The peer: the loop that PEFT's and bitsandbytes' documentation show."""
    import peft
    import torch
    import transformers

    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[kind]
    options = {"dtype": dtype}
    if four_bit:
        options["device_map"] = {"": "cpu"}
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
        )
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(WORK / "model", **options)
    cfg = peft.LoraConfig(r=R, lora_alpha=ALPHA, lora_dropout=DROPOUT,
                          target_modules=TARGETS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, cfg).train()
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=LR, weight_decay=0.0)
    rows = read_rows()
    for step in range(1, steps + 1):
        part = rows[BATCH * (step - 1) : BATCH * step]
        longest = max(len(r["input_ids"]) for r in part)

        def fill(key, pad):
            return torch.tensor([r[key] + [pad] * (longest - len(r[key])) for r in part])

        ids, labels = fill("input_ids", 0), fill("labels", -100)
        sizes = torch.tensor([[len(r["input_ids"])] for r in part])
        mask = (torch.arange(longest)[None] < sizes).long()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        opt.zero_grad()
        print(f"step {step} loss {loss.item():.6f}", flush=True)


def command(side, mode, steps, binary):
    four_bit, kind = mode.startswith("nf4"), "bf16" if "bf16" in mode else "f32"
    if side == "peers":
        flag = ["--four-bit"] if four_bit else []
        flag += ["--compute-dtype", kind]
        return [sys.executable, __file__, "--worker", "--steps", str(steps), *flag]
    flags = {
        "model": WORK / "model", "train-file": WORK / "rows.jsonl",
        "output-dir": WORK / "results", "logging-dir": WORK / "logs",
        "max-steps": steps, "per-device-train-batch-size": BATCH,
        "gradient-accumulation-steps": 1, "learning-rate": LR,
        "lr-scheduler-type": "constant", "lora-r": R, "lora-alpha": ALPHA,
        "lora-dropout": DROPOUT, "target-modules": ",".join(TARGETS),
        "load-in-4bit": str(four_bit).lower(), "compute-dtype": kind,
        "gradient-checkpointing": "false", "shuffle": "false", "device": "cpu",
        "save-strategy": "no",
    }
    return [str(binary), "finetune", *(str(x) for k, v in flags.items() for x in (f"--{k}", v))]


def measure(side, mode, steps, binary):
    """One process; the arrival of each step's line, the peak of its memory."""
    start = time.perf_counter()
    line = command(side, mode, steps, binary)
    child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    arrived, text, losses = [], [], []
    for out in child.stdout:
        text.append(out)
        found = re.search(r"\bloss\W+([0-9.]+)", out)
        if found and re.search(r"\bstep\b", out) and "eval" not in out:
            arrived.append(time.perf_counter() - start)
            losses.append(float(found[1]))
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - start
    if status or len(arrived) != steps:
        raise SystemExit(f"{side}: {len(arrived)} step lines\n{''.join(text[-30:])}")
    rows = read_rows()[BATCH : BATCH * steps]
    tokens = sum(len(r["input_ids"]) for r in rows)
    return {
        "tokens_per_second": tokens / (arrived[-1] - arrived[0]),
        "start_to_first_step_s": arrived[0], "wall_s": wall,
        "peak_rss_mib": usage.ru_maxrss / 1024, "first_loss": losses[0],
    }


def hardware():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*:\s*(.*)", info)
    memory = re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text())
    return {
        "cpu": found[1] if found else platform.processor(), "cores": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / 2**20, 1), "load_before": os.getloadavg()[0],
    }


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--modes", default="nf4,dense" + ",nf4_bf16" * has_bf16())
    p.add_argument("--binary", default=str(ROOT / "target/debug/downhill"))
    p.add_argument("--out", default=str(ROOT / "chapters/figures/bench_peers.json"))
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("--four-bit", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("--compute-dtype", default="f32", help=argparse.SUPPRESS)
    p.add_argument("--make-model", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.worker:
        return worker(args.four_bit, args.steps, args.compute_dtype)
    if args.make_model:
        return make_model()
    WORK.mkdir(parents=True, exist_ok=True)
    about = hardware()
    prepare(BATCH * args.steps)
    names = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
    result = {
        "hardware": about, "date": time.strftime("%Y-%m-%d"),
        "versions": {n: importlib.metadata.version(n) for n in names},
        "settings": {
            "shape": SHAPE, "batch": BATCH, "lora_r": R, "lora_alpha": ALPHA,
            "lora_dropout": DROPOUT, "target_modules": TARGETS, "steps": args.steps,
            "rounds": args.rounds,
        },
    }
    for mode in args.modes.split(","):
        runs = {"peers": [], "ours": []}
        for turn in range(args.rounds):
            for side in ("peers", "ours"):
                got = measure(side, mode, args.steps, args.binary)
                runs[side].append(got)
                print(f"{mode} {turn + 1} {side:5} {got['tokens_per_second']:7.1f} tok/s, first "
                      f"step after {got['start_to_first_step_s']:5.1f} s, "
                      f"{got['peak_rss_mib']:6.0f} MiB", flush=True)
        # With B = 0 dropout changes nothing: both sides must start at one loss.
        first = [runs[s][0]["first_loss"] for s in runs]
        if abs(first[0] - first[1]) > 1e-3 * first[0]:  # bf16 included
            raise SystemExit(f"{mode}: not the same job: first losses {first}")
        median = {
            side: {k: round(statistics.median(r[k] for r in rs), 2) for k in rs[0]}
            for side, rs in runs.items()
        }
        ratio = median["ours"]["tokens_per_second"] / median["peers"]["tokens_per_second"]
        result[mode] = {**median, "ratio": round(ratio, 2), "runs": runs}
        print(f"{mode}: {ratio:.2f} times the peers' tokens per second")
    if "nf4" in result and "dense" in result:
        pair = [result[m]["ours"]["tokens_per_second"] for m in ("nf4", "dense")]
        result["ours_nf4_over_dense"] = round(pair[0] / pair[1], 2)
    out = pathlib.Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
