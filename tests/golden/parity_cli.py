"""`downhill finetune` beside PEFT + bitsandbytes, live, on fresh random checkpoints.

    cargo build && python tests/golden/parity_cli.py --seeds 0-7

Each seed draws a Llama shape, LoRA settings, a schedule and rows; transformers saves
the checkpoint; both sides train 10 steps from the same adapter. Bounds: 4-bit losses
1e-3 and gradient norms 1 % (bitsandbytes' CPU codes of absmax deviate), 1e-5 and 1e-4
against PEFT on the CUDA rule's weights; the same unquantized; the final adapters'
logits; our adapter must load in PEFT with no key missing or unexpected, and
`downhill generate` must then write transformers' greedy text.
"""
import argparse
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

import torch
from check_adapter import check
from peft_common import *  # noqa: F403
from tokenizers import Tokenizer, models, pre_tokenizers

EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def draw(seed):
    """One job: the model's shape, the LoRA settings, the run's, the rows'."""
    rng = random.Random(seed)
    heads = rng.choice([2, 4, 6])
    head = rng.choice([4, 8, 16])
    hidden = rng.choice([heads * head, 40, 64])
    inter = rng.choice([44, 96, 130])
    if rng.random() < 0.6:  # a shape for which bitsandbytes' CPU library is right
        heads, head = rng.choice([(4, 16), (8, 8), (8, 16), (16, 4)])
        hidden, inter = rng.choice([64, 128]), rng.choice([64, 130, 192])
    shape = {
        "hidden_size": hidden, "head_dim": head, "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([k for k in (1, 2, heads) if heads % k == 0]),
        "intermediate_size": inter,
        "num_hidden_layers": rng.choice([1, 2, 3, 5]),
        "vocab_size": rng.choice([64, 101, 512]),
        "tie_word_embeddings": rng.random() < 0.3,
        "attention_bias": rng.random() < 0.3, "mlp_bias": rng.random() < 0.2,
        "rms_norm_eps": rng.choice([1e-6, 1e-5]),
        "rope_theta": rng.choice([500.0, 10000.0, 500000.0]),
    }
    scaling = rng.choice([None, None, "linear", "llama3"])
    if scaling == "linear":
        shape["rope_scaling"] = {"rope_type": "linear", "factor": 3.0}
    if scaling == "llama3":
        shape["rope_scaling"] = {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        }
    targets = rng.choice(["all-linear", ["q_proj", "v_proj"], rng.sample(EVERY, 3)])
    s = SETTINGS | {
        "learning_rate": rng.choice([2e-4, 1e-3, 1e-2]),
        "max_grad_norm": rng.choice([1.0, 0.3]),
        "warmup_ratio": rng.choice([0.0, 0.03, 0.25]),
        "batch": rng.choice([1, 2, 4]), "accumulation": rng.choice([1, 2, 4]),
        "weight_decay": rng.choice([0.0, 0.0, 0.1]),
        "schedule": rng.choice(["cosine", "linear", "constant_with_warmup", "constant"]),
    }
    return {
        "shape": shape, "r": rng.choice([2, 4, 8]), "alpha": rng.choice([4, 16]),
        "targets": targets, "settings": s, "rows": rng.choice([7, 30, 90]),
        "longest": rng.choice([12, 40]), "dtype": rng.choice(["float32", "bfloat16"]),
        # transformers starts at 0.02. Far above 0.1 a network of random weights is so
        # steep that bitsandbytes' own 0.2 % of absmax codes pass the bounds.
        "std": rng.choice([0.02, 0.05, 0.1]),
        "shard": rng.choice([None, "40KB"]), "file_bos": rng.random() < 0.5,
    }


def rows_of(job, seed):
    rng = random.Random(1000 + seed)
    rows = []
    for _ in range(job["rows"]):
        size = rng.randint(3, job["longest"])
        ids = [1] + [rng.randrange(3, job["shape"]["vocab_size"]) for _ in range(size)]
        cut = rng.randint(1, size)
        labels = [-100] * cut + ids[cut:]
        if job["file_bos"] and rng.random() < 0.5:
            labels = ids[:]  # everything is learned, the first token included
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def tokenizer(folder, size):
    """Words t3 .. tN, one id each, after three special tokens."""
    special = ["<pad>", "<begin>", "<end>"]
    vocab = {f"t{i}" if i > 2 else special[i]: i for i in range(size)}
    tok = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok.add_special_tokens(special)
    tok.save(str(folder / "tokenizer.json"))
    cfg = {"bos_token": "<begin>", "eos_token": "<end>", "pad_token": "<pad>"}
    cfg |= {"add_bos_token": True, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(cfg))
    return tok


def peers(folder, job, four_bit, exact):
    rows = [json.loads(line) for line in (folder / "rows.jsonl").open()]
    model = base_model(folder / "model", four_bit and not exact)
    if exact:
        model = cuda_rule(model)
    model = peft.PeftModel.from_pretrained(model, folder / "init", is_trainable=True)
    log = train(model, rows, job["settings"])
    name = "nf4_cuda" if exact else "nf4" if four_bit else "dense"
    save_adapter(model, folder / f"peft_{name}")
    return log


def ours(binary, folder, job, four_bit):
    s = job["settings"]
    targets = job["targets"]
    out = folder / ("ours_nf4" if four_bit else "ours_dense")
    flags = {
        "model": folder / "model", "train-file": folder / "rows.jsonl",
        "init-adapter": folder / "init", "output-dir": out, "logging-dir": out / "logs",
        "max-steps": s["steps"], "per-device-train-batch-size": s["batch"],
        "gradient-accumulation-steps": s["accumulation"],
        "learning-rate": s["learning_rate"], "lr-scheduler-type": s["schedule"],
        "warmup-ratio": s["warmup_ratio"], "weight-decay": s["weight_decay"],
        "max-grad-norm": s["max_grad_norm"], "lora-r": job["r"],
        "lora-alpha": job["alpha"], "lora-dropout": 0, "shuffle": "false",
        "target-modules": targets if isinstance(targets, str) else ",".join(targets),
        "load-in-4bit": str(four_bit).lower(), "compute-dtype": "f32",
        "save-strategy": "no", "device": "cpu",
    }
    line = [str(binary), "finetune"]
    for key, value in flags.items():
        line += [f"--{key}", str(value)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    state = json.loads((out / "trainer_state.json").read_text())
    return [x for x in state["log_history"] if "loss" in x]


@torch.no_grad()
def same_text(binary, folder, job, seed):
    """Greedy text of both sides, with our adapter: None if equal, else both."""
    tok = tokenizer(folder / "model", job["shape"]["vocab_size"])
    rng = random.Random(2000 + seed)
    prompt = [rng.randrange(3, job["shape"]["vocab_size"]) for _ in range(5)]
    adapter = folder / "ours_dense"
    line = [binary, "generate", "--model", folder / "model", "--adapter", adapter,
            "--prompt", tok.decode(prompt), "--max-new-tokens", 64,
            "--load-in-4bit", "false", "--compute-dtype", "f32", "--device", "cpu"]
    done = subprocess.run([str(x) for x in line], capture_output=True, text=True)
    model = peft.PeftModel.from_pretrained(base_model(folder / "model", False), adapter)
    ids = torch.tensor([[1, *prompt]])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
        max_new_tokens=64, eos_token_id=2, pad_token_id=0, output_scores=True,
        return_dict_in_generate=True,
    )
    top = [s[0].topk(2).values for s in out.scores]
    lead = min(((t[0] - t[1]) / t.abs().max()).item() for t in top)
    new = out.sequences[0, ids.shape[1]:].tolist()
    text = tok.decode(new, skip_special_tokens=True)
    if lead < 1e-4:
        return None, f"a near tie ({lead:.0e})"
    if done.returncode or done.stdout.strip() != text.strip():
        return f"{done.stderr[-500:]}\n{done.stdout}\n{text}", "text differs"
    return None, f"{len(new)} tokens equal"


def gaps(mine, theirs):
    """Largest relative differences: loss, gradient norm, learning rate."""
    assert len(mine) == len(theirs) == 10, (len(mine), len(theirs))
    out = []
    for key in ("loss", "grad_norm", "learning_rate"):
        pairs = [(a[key], b[key]) for a, b in zip(mine, theirs)]
        out.append(max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs))
    return out


def one(seed, binary, keep):
    job = draw(seed)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"parity-{seed}-"))
    shape = job["shape"]
    dtype = getattr(torch, job["dtype"])
    options = {"max_shard_size": job["shard"]} if job["shard"] else {}
    save(random_model(seed, dtype, std=job["std"], **shape), folder / "model", dtype, **options)
    lines = (json.dumps(r) + "\n" for r in rows_of(job, seed))
    (folder / "rows.jsonl").write_text("".join(lines))
    start = fresh_adapter(
        base_model(folder / "model", False), seed, job["r"], job["alpha"], job["targets"]
    )
    save_adapter(start, folder / "init")
    worst, faults = [], []
    for four_bit, exact, loss_bound, norm_bound in (
        (False, False, 1e-5, 1e-4), (True, True, 1e-5, 1e-4), (True, False, 1e-3, 1e-2),
    ):
        if four_bit and not exact and not bnb_is_right(start):
            worst.append("nf4: bitsandbytes is wrong for this shape")
            continue
        if exact == four_bit:
            mine = ours(binary, folder, job, four_bit)
        theirs = peers(folder, job, four_bit, exact)
        loss, norm, rate = gaps(mine, theirs)
        name = "nf4_cuda" if exact else "nf4" if four_bit else "dense"
        worst.append(f"{name} loss {loss:.1e} norm {norm:.1e}")
        if loss > loss_bound or norm > norm_bound or rate > 1e-9:
            faults.append(f"{name}: loss {loss:.2e} norm {norm:.2e} rate {rate:.2e}")
            for a, b in zip(mine, theirs):
                faults.append(f"   {a['step']:2} {a['loss']:.7f} {b['loss']:.7f}  "
                              f"{a['grad_norm']:.6f} {b['grad_norm']:.6f}")
    try:
        keys, gap = check(folder / "ours_dense", folder / "model", folder / "peft_dense")
        worst.append(f"adapter {keys} keys, logits {gap:.1e}")
        check(folder / "ours_nf4", folder / "model")
    except AssertionError as e:
        faults.append(f"adapter: {e}")
    fault, said = same_text(binary, folder, job, seed)
    worst.append(said)
    faults += [fault] if fault else []
    print(f"seed {seed}: " + "; ".join(worst), flush=True)
    if faults:
        print("  FAILED", job, *faults, f"  files: {folder}", sep="\n  ", flush=True)
    elif not keep:
        shutil.rmtree(folder)
    return not faults


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--seeds", default="0-3", help="one, or first-last")
    p.add_argument("--binary", default=str(HERE / "../../target/debug/downhill"))
    p.add_argument("--keep", action="store_true", help="keep the folders")
    args = p.parse_args()
    first, _, last = args.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    passed = [one(seed, pathlib.Path(args.binary), args.keep) for seed in seeds]
    print(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed")
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
