"""Everything about downhill that needs a GPU, checked and measured in one run.

    cargo xtask bench gpu              on a machine with a GPU and this checkout
    cargo xtask gpu-bundle; run.sh     on one that has PyTorch 2.11 and no Rust

In turn: what `downhill doctor` says; the tests that need a GPU; what the card reaches in
copying, a matrix product and NF4; and models of a true shape (random weights in NF4,
LoRA r 16 on all linears, bf16) by downhill and by transformers + PEFT + bitsandbytes on
the same tokens: how fast they write one text, and their fine-tune in batches of 4,
without and with gradient checkpointing. What is not installed, or for which no time is
left, is named as skipped. Prints one JSON object and writes it to --out, after each part
as far as it is.

`--dry-run` does all of it on a CPU with tiny shapes: to see that it works, not how fast.
"""
import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHAPES = ["deepseek-7b", "r1-distill-qwen-1.5b", "v2-lite"]
LENGTHS, BATCH, R, ALPHA = [512, 2048], 4, 16, 32
PROMPT, TOKENS = 512, 64  # of a text to write
# An H200, as bounds on the page are computed: TFLOP/s in bf16, GB/s read and written.
TFLOPS, GB_S = 790.0, 4300.0
PEERS = ("torch", "transformers", "peft", "bitsandbytes", "liger_kernel")


def shape(name):
    return json.loads((ROOT / "benches/shapes" / name / "config.json").read_text())


# --- What is possible -----------------------------------------------------------------

def linears(c):
    """Weights of the blocks' linears: all of them, those that a token meets, the numbers
    of the adapters that it meets, and the last products of blocks without experts, which
    checkpointing does not compute again: their weights, and numbers of B."""
    d, heads = c["hidden_size"], c["num_attention_heads"]
    if c["model_type"] == "deepseek_v2":
        qk = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
        latent, v = c["kv_lora_rank"], c["v_head_dim"]
        attention = [(heads * qk, d), (latent + c["qk_rope_head_dim"], d),
                     (heads * (c["qk_nope_head_dim"] + v), latent), (d, heads * v)]
    else:
        kv = c["num_key_value_heads"] * d // heads
        attention = [(d, d), (kv, d), (kv, d), (d, d)]
    mlp = lambda f: [(f, d), (f, d), (d, f)]
    held, met, last = [], [], []
    for layer in range(c["num_hidden_layers"]):
        held += attention
        met += attention
        if layer < c.get("first_k_dense_replace", c["num_hidden_layers"]):
            held += mlp(c["intermediate_size"])
            met += mlp(c["intermediate_size"])
            last += mlp(c["intermediate_size"])[2:]
        else:
            f = c["moe_intermediate_size"]
            shared = mlp(c["n_shared_experts"] * f)
            held += shared + c["n_routed_experts"] * mlp(f)
            met += shared + c["num_experts_per_tok"] * mlp(f)
    size = lambda all_: sum(a * b for a, b in all_)
    lora = sum(R * (a + b) for a, b in met)
    return size(held), size(met), lora, (size(last), sum(R * a for a, _ in last))


def flop(c, length):
    """Per token: forward, backward, and what checkpointing computes again. Frozen
    weights have no gradient, so backward costs what forward does."""
    _, met, lora, (last, last_b) = linears(c)
    heads = c["num_attention_heads"]
    qk = v = c["hidden_size"] // heads
    if c["model_type"] == "deepseek_v2":
        qk, v = c["qk_nope_head_dim"] + c["qk_rope_head_dim"], c["v_head_dim"]
    attention = 2 * (qk + v) * heads * (length / 2) * c["num_hidden_layers"]
    head = 2 * c["vocab_size"] * c["hidden_size"]
    forward = 2 * met + head + 2 * lora + attention
    backward = 2 * met + head + 4 * lora + 2.5 * attention
    again = 2 * (met - last) + 2 * (lora - last_b) + attention
    return forward, backward, again


def bound(c, length, checkpointing, tflops=TFLOPS, gb_s=GB_S):
    """Tokens a second that nothing can exceed: matrix products at the card's full
    speed, and each weight dequantized at that of its memory, per pass."""
    forward, backward, again = flop(c, length)
    held, _, _, (last, _) = linears(c)
    tokens, dequantized = BATCH * length, 2 * held + (held - last if checkpointing else 0)
    work = tokens * (forward + backward + (again if checkpointing else 0)) / (tflops * 1e12)
    dequantize = dequantized * (0.516 + 2) / (gb_s * 1e9)
    return tokens / (work + dequantize)


def token_bytes(c, adapter, seen):
    """What one more token has to read at batch 1: each weight that it meets, in NF4 with
    its scales; the head in bf16; the adapters in f32; and the cache of those `seen`."""
    _, met, lora, _ = linears(c)
    d, heads = c["hidden_size"], c["num_attention_heads"]
    if c["model_type"] == "deepseek_v2":
        kept = c["kv_lora_rank"] + c["qk_rope_head_dim"]
    else:
        kept = 2 * c["num_key_value_heads"] * d // heads
    cache = 2 * kept * c["num_hidden_layers"] * seen
    return met * 0.516 + 2 * c["vocab_size"] * d + cache + (4 * lora if adapter else 0)


def decode_bound(c, adapter, gb_s=GB_S, prompt=PROMPT, tokens=TOKENS):
    """Tokens a second that nothing can exceed which reads all of that from memory."""
    return gb_s * 1e9 / token_bytes(c, adapter, prompt + tokens / 2)


def bounds(tflops=TFLOPS, gb_s=GB_S):
    def of(name):
        c = shape(name)
        held, met, lora, (last, _) = linears(c)
        rows = {"decode": {
            "gb_per_token": token_bytes(c, False, PROMPT + TOKENS / 2) / 1e9,
            "without_adapter": decode_bound(c, False, gb_s),
            "with_adapter": decode_bound(c, True, gb_s),
        }}
        for length in LENGTHS:
            forward, backward, again = flop(c, length)
            rows[f"{BATCH}x{length}"] = {
                "gflop_per_token": (forward + backward) / 1e9,
                "without": bound(c, length, False, tflops, gb_s),
                "with_checkpointing": bound(c, length, True, tflops, gb_s),
            }
        return {"linear_weights": held, "linear_weights_met": met,
                "lora_met": lora, "down": last / met, **rows}

    return {"tflops": tflops, "gb_s": gb_s, **{n.replace(".", "_"): of(n) for n in SHAPES}}


# --- The work -------------------------------------------------------------------------

def write_rows(path, vocabulary, length, rows):
    """Every row has as many tokens, and all but the first are learned."""
    rng = random.Random(0)
    with path.open("w") as out:
        for _ in range(rows):
            ids = [rng.randrange(3, vocabulary) for _ in range(length)]
            out.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")


# Every line that a command says, as it comes: see `--out`.
LOG = None


def spoken(command, timeout, env=None):
    """Runs a command; its status, its output with when each line came, and whether it
    ran out of time. It is ended then, with all that it started; where a hung GPU keeps
    even that from ending, it is left behind."""
    if timeout < 3:
        return None, [], True
    start = time.perf_counter()
    child = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, text=True,
                             stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **(env or {})},
                             process_group=0, errors="replace")
    lines = []

    def listen():
        for line in child.stdout:
            lines.append((time.perf_counter() - start, line.rstrip("\n")))
            if LOG:
                LOG.write(line)
                LOG.flush()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    late = False
    try:
        listener.join(timeout)
        late = listener.is_alive()
    finally:  # also where somebody interrupts
        if listener.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            listener.join(5)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(5)
    return child.poll(), list(lines), late


def last_json(lines):
    for _, line in reversed(lines):
        with contextlib.suppress(ValueError):
            if line.startswith("{"):
                return json.loads(line)
    return None


def failed(status, lines, late):
    if late:
        return {"skipped": "no time left", "output": [line for _, line in lines[-4:]]}
    return {"failed": f"status {status}", "output": [line for _, line in lines[-8:]]}


def doctor(binary):
    status, lines, late = spoken([binary, "doctor"], 60)
    text = [line for _, line in lines]
    return {"ok": status == 0, "lines": text}, any(re.match(r"device\s+CUDA", t) for t in text)


# Those that run the kernels on the host, which CI does.
NOT_HERE = ["cuda_compile::for_each", "cuda_compile::registers", "cuda_kernels::faults",
            "cuda_kernels::kernels_are", "cuda_nf4::emulated", "cuda_nf4::faults",
            "cuda_runs::checkpointing", "cuda_runs::twenty_steps_by", "parity_"]


def tests(binary, left):
    """The tests whose names have `cuda` in them, one after another; and those that fail
    each by itself once more: after a fault on the card nothing else works in its process."""
    if not binary:
        return {"skipped": "no test binary"}
    skip = [word for name in NOT_HERE for word in ("--skip", name)]
    status, lines, late = spoken([binary, "cuda", "--test-threads=1", "--show-output", *skip], left(150))
    done, begun, now = {}, [], None
    for _, line in lines:  # libtorch's own warnings may stand within
        if m := re.match(r"test (\S+) \.\.\.", line):
            now = m[1]
            begun.append(now)
        if now and (m := re.search(r"(?:^|\s)(ok|FAILED|ignored)$", line)):
            done[now], now = m[1], None
    if not begun:
        return failed(status, lines, late)
    hung = [name for name in begun if name not in done] if late or status not in (0, 101) else []
    bad = [name for name, how in done.items() if how == "FAILED"] + hung
    gone = [line for _, line in lines if line.startswith("skipped:")]
    passed = sum(how == "ok" for how in done.values())
    found = {"passed": passed, "failed": len(bad), "names": bad, "skipped": len(gone),
             "not_ended": hung, "output": [line for _, line in lines[-40:]] if bad else []}
    for name in bad[:4]:
        # Each launch is waited for, so that the one at fault is the one that is named.
        status, lines, late = spoken([binary, name, "--exact", "--show-output"], left(20),
                                     {"CUDA_LAUNCH_BLOCKING": "1", "RUST_BACKTRACE": "0"})
        how = "out of time" if late else "passed" if status == 0 else "failed"
        alone = {"alone": how, "output": [line for _, line in lines[-12:]]}
        found.setdefault("again", {})[name] = alone
    return found


def ours(binary, job, timeout, env=None):
    """One fine-tune by downhill, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        rows = folder / "rows.jsonl"
        c = shape(job["shape"])
        write_rows(rows, c["vocab_size"], job["length"], BATCH * job["steps"])
        flags = {
            "model": ROOT / "benches/shapes" / job["shape"], "train-file": rows,
            "output-dir": folder / "out", "logging-dir": folder / "logs",
            "max-steps": job["steps"], "max-length": job["length"],
            "per-device-train-batch-size": BATCH, "gradient-accumulation-steps": 1,
            "lora-r": R, "lora-alpha": ALPHA, "lora-dropout": 0, "target-modules": "all-linear",
            "learning-rate": 1e-4, "lr-scheduler-type": "constant", "shuffle": "false",
            "save-strategy": "no", "eval-strategy": "no", "device": job["device"],
            "gradient-checkpointing": str(job["checkpointing"]).lower(),
            "cache-dequant": str(job.get("cache_dequant", False)).lower(),
        }
        flags = [f"--{k}={v}" for k, v in flags.items()]
        status, lines, late = spoken([binary, "train", *flags], timeout, env)
        drawn = folder / "out" / "profile.svg"
        if job.get("profile") and drawn.exists():
            pathlib.Path(job["profile"]).write_text(drawn.read_text())
    found = last_json(lines)
    if status or found is None:
        return failed(status, lines, late)
    first = [at for at, line in lines if re.match(r"step 1/", line)]
    return {**found, "start_to_first_step_s": first[0] if first else None}


def ours_writing(binary, job, timeout):
    """A text by downhill without an adapter, and one with."""
    status, lines, late = spoken([
        binary, "decode", "--model", ROOT / "benches/shapes" / job["shape"],
        "--device", job["device"], "--prompt", job["prompt"], "--tokens", job["tokens"],
        "--lora-r", f"0,{R}"], timeout)
    found = last_json(lines)
    if status or found is None:
        return [failed(status, lines, late)] * 2
    return found["decode"]


def peer_writing(model, job, home, wait):
    """Greedy tokens a second by transformers: the longer text less the shorter one."""
    import torch

    ids = torch.arange(job["prompt"]).mul(7).add(3).remainder(model.config.vocab_size)
    ids = ids.unsqueeze(0).to(home)
    def seconds(count):
        wait()
        start = time.perf_counter()
        with torch.no_grad():
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids),
                           max_new_tokens=count, min_new_tokens=count, do_sample=False,
                           pad_token_id=0)
        wait()
        return time.perf_counter() - start
    seconds(4)  # warm
    first, all_ = seconds(1), seconds(job["tokens"])
    return {"prompt_ms": 1e3 * first,
            "tokens_per_second": (job["tokens"] - 1) / (all_ - first)}


def peer(job):
    """The same by transformers + PEFT + bitsandbytes: a worker's part."""
    import bitsandbytes as bnb
    import peft
    import torch
    import transformers

    home, kind = job["device"], torch.bfloat16 if job["device"] != "cpu" else torch.float32
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(ROOT / "benches/shapes" / job["shape"])
    began = time.perf_counter()
    with torch.device(home):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=kind)
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        four = bnb.nn.Linear4bit(module.in_features, module.out_features,
                                 bias=module.bias is not None, compute_dtype=kind,
                                 compress_statistics=True, quant_type="nf4")
        four.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False,
                                        compress_statistics=True, quant_type="nf4")
        if module.bias is not None:
            four.bias = torch.nn.Parameter(module.bias.data, requires_grad=False)
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], four.to(home))
    model.is_loaded_in_4bit = True
    if job.get("liger"):
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        _apply_liger_kernel_to_instance(model=model)
    for p in model.parameters():
        p.requires_grad_(False)
    cfg = peft.LoraConfig(r=R, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear",
                          task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, cfg).train()
    params = [p for p in model.parameters() if p.requires_grad]
    cuda = home != "cpu"
    wait = torch.cuda.synchronize if cuda else lambda: None
    if job.get("tokens"):
        try:
            got = peer_writing(model.eval(), job, home, wait)
        except Exception as e:
            got = {"failed": f"{type(e).__name__}: {str(e).splitlines()[0][:200]}"}
        print("PEER", json.dumps(["decode", True, got]), flush=True)
        model.train()
    for length, checkpointing in job["jobs"]:
        try:
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
                model.enable_input_require_grads()
            else:
                model.gradient_checkpointing_disable()
            opt = torch.optim.AdamW(params, lr=1e-4, weight_decay=0.0, fused=cuda)
            rng, times, losses = random.Random(0), [], []
            if cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            for _ in range(job["steps"]):
                rows = [[rng.randrange(3, config.vocab_size) for _ in range(length)]
                        for _ in range(BATCH)]
                ids = torch.tensor(rows)
                wait()
                start = time.perf_counter()
                ids = ids.to(home, non_blocking=True)
                loss = model(input_ids=ids, labels=ids).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(params, 1.0)
                opt.step()
                opt.zero_grad()
                losses.append(loss.item())
                wait()
                times.append(time.perf_counter() - start)
            got = {"tokens_per_second": BATCH * length / statistics.median(times[len(times) // 3:]),
                   "losses": losses, "start_to_first_step_s": time.perf_counter() - began}
            if cuda:
                got["allocated_peak_bytes"] = torch.cuda.max_memory_allocated()
                got["device_bytes"] = torch.cuda.max_memory_reserved()
        except Exception as e:  # out of memory, or a model that PEFT cannot adapt
            got = {"failed": f"{type(e).__name__}: {str(e).splitlines()[0][:200]}"}
        print("PEER", json.dumps([length, checkpointing, got]), flush=True)


def peers(job, timeout):
    """All of a shape in one process: {(length, checkpointing): result}, and of writing
    one text with an adapter: {("decode", True): result}."""
    asked = [tuple(j) for j in job["jobs"]] + [("decode", True)] * ("tokens" in job)
    missing = [n for n in ("torch", "transformers", "peft", "bitsandbytes") if not has(n)]
    if job.get("liger") and not has("liger_kernel"):
        missing.append("liger_kernel")
    if missing:
        return {j: {"skipped": f"peer not installed: {', '.join(missing)}"} for j in asked}
    command = [sys.executable, __file__, "--peer", json.dumps(job)]
    status, lines, late = spoken(command, timeout)
    found = [json.loads(line[5:]) for _, line in lines if line.startswith("PEER ")]
    found = {(length, checkpointing): got for length, checkpointing, got in found}
    return {j: found.get(j) or failed(status, lines, late) for j in asked}


def has(name):
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def versions():
    known = {}
    for name in PEERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[name] = importlib.metadata.version(name)
    return {"python": platform.python_version(), **known}


# --- All of it ------------------------------------------------------------------------

def judge(c, length, checkpointing, got, kernels):
    """Shares of the bound and of the card's FLOP, by what the card reached just now."""
    speed = got.get("tokens_per_second")
    if not speed or "matmul_tflops" not in kernels:
        return got
    tflops, gb_s = kernels["matmul_tflops"], kernels["copy_gb_s"]
    forward, backward, _ = flop(c, length)
    got["mfu"] = speed * (forward + backward) / (tflops * 1e12)
    got["of_bound"] = speed / bound(c, length, checkpointing, tflops, gb_s)
    return got


def judge_writing(c, job, adapter, got, kernels):
    """The share of the bound, by what the card reached just now."""
    speed = got.get("tokens_per_second")
    if speed and "copy_gb_s" in kernels:
        bound = decode_bound(c, adapter, kernels["copy_gb_s"], job["prompt"], job["tokens"])
        got["of_bound"] = speed / bound
    return got


def run(args):
    end = time.monotonic() + 60 * args.minutes
    left = lambda most: min(most, end - time.monotonic())
    device = "cpu" if args.dry_run else "cuda"
    about, on_cuda = doctor(args.downhill)
    if not (on_cuda or args.dry_run):
        why = next((t for t in about["lines"] if t.startswith("device")), "doctor says nothing")
        print(f"no CUDA device, nothing to measure. {why}", file=sys.stderr)
        raise SystemExit(3)
    result = {"dry_run": args.dry_run, "date": time.strftime("%Y-%m-%d"), "doctor": about,
              "versions": versions(), "settings": {"batch": BATCH, "lora_r": R,
              "target_modules": "all-linear", "lora_dropout": 0, "compute": "bf16"}}
    entries = {}  # of the shape that is under way

    def say(*words):
        """Says it, and keeps all that is known so far: whoever is cut off loses nothing."""
        print(*words, file=sys.stderr, flush=True)
        if args.out:
            so_far = {**result, "runs": result["runs"] + list(entries.values()), "whole": False}
            kept(args.out, json.dumps(so_far))

    result["runs"] = []
    wanted = lambda part: not args.only or part in args.only
    say("\n  ".join(["doctor:", *about["lines"][:2]]))
    result["tests"] = tests(args.tests, left) if wanted("tests") else {"skipped": "not asked for"}
    say("tests:", {k: v for k, v in result["tests"].items() if k != "output"})
    sizes = ["--sizes=64,32,64"] if args.dry_run else []
    got = spoken([args.bench, "kernels", "--device", device, *sizes], left(60))
    kernels = last_json(got[1]) or failed(*got)  # not left out: the bounds need it
    result["kernels"] = kernels
    say("kernels:", kernels)
    shapes, lengths, steps = SHAPES, LENGTHS, args.steps
    text = {"prompt": PROMPT, "tokens": TOKENS}
    if args.dry_run:
        shapes, lengths, steps = ["tiny"], [16, 32], 3
        text = {"prompt": 16, "tokens": 8}
    result["runs"], result["decode"] = [], []
    jobs = [(length, again) for length in lengths for again in (False, True)]
    for name in shapes:
        c, entries = shape(name), {}
        for length, again in jobs:
            job = {"shape": name, "length": length, "checkpointing": again, "steps": steps,
                   "device": device}
            entry = entries[length, again] = {k: job[k] for k in ("shape", "length", "checkpointing")}
            entry["batch"] = BATCH
            if args.out and not result["runs"] and (length, again) == jobs[0]:
                job["profile"] = pathlib.Path(args.out).with_name("gpu_profile.svg")
            entry["ours"] = ours(args.bench, job, left(90))
            if "failed" in entry["ours"] and not args.dry_run:
                off = {"DOWNHILL_CUDA_KERNELS": "off"}  # is it our kernels?
                entry["ours_without_kernels"] = ours(args.bench, job, left(60), off)
            judge(c, length, again, entry["ours"], kernels)
            say(name, length, again, "ours:", brief(entry["ours"]))
        writes = {"shape": name, "device": device, **text}
        entry = {"shape": name, **text}
        pair = zip(("ours_without_adapter", "ours"), ours_writing(args.bench, writes, left(90)))
        for adapter, (key, got) in enumerate(pair):
            entry[key] = judge_writing(c, writes, adapter, got, kernels)
            say(name, "writing", f"{key}:", brief(entry[key]))
        result["decode"].append(entry)
        for side, liger in (("peers", False), ("peers_liger", True)):
            job = {"shape": name, "jobs": jobs, "steps": steps, "device": device, "liger": liger}
            job |= {} if liger else text
            found = peers(job, left(120))
            if not liger:
                wrote = found.pop(("decode", True))
                writing = result["decode"][-1]
                writing["peers"] = judge_writing(c, writes, True, wrote, kernels)
                say(name, "writing", "peers:", brief(wrote))
                pair = [writing[s].get("tokens_per_second") for s in ("ours", "peers")]
                if all(pair):
                    writing["ratio"] = pair[0] / pair[1]
            for key, found in found.items():
                entries[key][side] = judge(c, *key, found, kernels)
                say(name, *key, f"{side}:", brief(found))
        for entry in entries.values():
            pair = [entry[s].get("tokens_per_second") for s in ("ours", "peers")]
            if all(pair):
                entry["ratio"] = pair[0] / pair[1]
            result["runs"].append(entry)
    result["seconds"] = 60 * args.minutes - (end - time.monotonic())
    line = json.dumps(result)
    if args.out:
        pathlib.Path(args.out).write_text(line + "\n")
    print(line)
    broken = result["tests"].get("failed") or any(
        "failed" in e["ours"] for e in result["runs"] + result["decode"])
    raise SystemExit(1 if broken or not about["ok"] else 0)


def kept(path, text):
    """Writes a file whole or not at all."""
    partial = pathlib.Path(f"{path}.partial")
    partial.write_text(text + "\n")
    partial.replace(path)


def brief(got):
    speed = got.get("tokens_per_second")
    if not speed:
        why = got.get("skipped") or got.get("failed")
        return "\n    ".join([str(why), *got.get("output", [])[-4:]])
    share = f", {got['of_bound']:.0%} of the bound" if "of_bound" in got else ""
    return f"{speed:.0f} tok/s{share}"


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU")
    p.add_argument("--minutes", type=float, default=8, help="stop asking for more after these")
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--only", nargs="+", metavar="PART", choices=["tests", "kernels", *SHAPES],
                   help="not all: tests, kernels, or the shapes named")
    p.add_argument("--out", help="where the JSON goes as well, as it grows; and, beside it "
                                 "with .log, all that the programs say")
    p.add_argument("--downhill", default=ROOT / "target/debug/downhill")
    p.add_argument("--bench", default=ROOT / "target/debug/bench_gpu")
    p.add_argument("--tests", help="the test binary")
    p.add_argument("--bounds", action="store_true", help="only compute what is possible")
    p.add_argument("--peer", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.peer:
        return peer(json.loads(args.peer))
    if args.only:
        SHAPES[:] = [name for name in SHAPES if name in args.only]
    if args.out and not args.bounds:
        global LOG
        LOG = open(f"{args.out}.log", "w")
    if args.bounds:
        text = json.dumps({"measured": False, "bounds": bounds()}, indent=2) + "\n"
        return pathlib.Path(args.out).write_text(text) if args.out else print(text)
    run(args)


if __name__ == "__main__":
    main()
