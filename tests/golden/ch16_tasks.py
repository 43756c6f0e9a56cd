"""Ten steps of PEFT on sequence classification and regression, and what
scikit-learn says of the predictions afterwards.

tasks_<name>/ holds `rows.jsonl` (token ids and labels), `adapter/` (a fresh LoRA and a
fresh `score` of AutoModelForSequenceClassification, as PEFT saves them) and
`expected.json`. The base is train_taught/. Rows are padded on the right, as the
Trainer's collator does it; the loss of a step is the mean over all of its rows.
"""
import random

import numpy
import peft
import torch
import transformers
from ch16_rows import taught_rows, WORDS
from peft_common import *  # noqa: F403
from safetensors.torch import save_file
from sklearn import metrics

BASE = HERE / "train_taught"
SIZES = [3 + WORDS.index(w) for w in "small old red quick".split()]


def rows_of(task, n, seed):
    """How many adjectives: none, one, many. Or a number with some noise."""
    rng = random.Random(seed)
    rows = []
    for row in taught_rows(n, seed):
        ids = row["input_ids"][:-1]
        count = sum(i in SIZES for i in ids)
        label = ["none", "one", "many"][min(count, 2)]
        if task == "regression":
            label = round(0.7 * count - 1.2 + rng.gauss(0, 0.1), 4)
        rows.append({"input_ids": ids, "label": label})
    return rows


def base(labels):
    """In f32; what `score` starts from comes with the adapter."""
    options = {"num_labels": 1, "problem_type": "regression"}
    if labels:
        options = {"id2label": dict(enumerate(labels)), "num_labels": len(labels)}
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        BASE, dtype=torch.float32, **options
    )


def start(labels, seed):
    torch.manual_seed(seed)
    cfg = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"],
                          task_type="SEQ_CLS")
    return peft.get_peft_model(base(labels), cfg)


def scores(model, rows, labels):
    longest = max(len(r["input_ids"]) for r in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, r in enumerate(rows):
        n = len(r["input_ids"])
        ids[i, :n] = torch.tensor(r["input_ids"])
        mask[i, :n] = 1
    target = [labels.index(r["label"]) if labels else r["label"] for r in rows]
    return model(input_ids=ids, attention_mask=mask).logits, torch.tensor(target)


def loss_of(z, target, labels):
    """Summed over the rows."""
    if labels:
        return torch.nn.functional.cross_entropy(z, target, reduction="sum")
    return ((z.squeeze(-1) - target) ** 2).sum()


def learn(model, rows, labels, s):
    model.train()
    params, opt, schedule = optimizer(model, s)
    log, whole = [], s["batch"] * s["accumulation"]
    for step in range(s["steps"]):
        part = rows[whole * step : whole * (step + 1)]
        loss = 0.0
        for i in range(0, len(part), s["batch"]):
            z, target = scores(model, part[i : i + s["batch"]], labels)
            micro = loss_of(z, target, labels) / len(part)
            micro.backward()
            loss += micro.item()
        norm = torch.nn.utils.clip_grad_norm_(params, s["max_grad_norm"]).item()
        lr = schedule.get_last_lr()[0]
        opt.step()
        schedule.step()
        opt.zero_grad()
        log.append({"step": step + 1, "loss": loss, "grad_norm": norm,
                    "learning_rate": lr})
    return log


@torch.no_grad()
def judged(model, rows, labels):
    model.eval()
    z, target = scores(model, rows, labels)
    out = {"eval_loss": loss_of(z, target, labels).item() / len(rows)}
    truth = target.numpy()
    if labels:
        guess = z.argmax(-1).numpy()
        return z, out | {
            "eval_accuracy": metrics.accuracy_score(truth, guess),
            "eval_macro_f1": metrics.f1_score(truth, guess, average="macro"),
            "confusion": metrics.confusion_matrix(
                truth, guess, labels=range(len(labels))).tolist(),
        }
    guess = z.squeeze(-1).double().numpy()
    truth = truth.astype(numpy.float64)
    return z, out | {"eval_mae": metrics.mean_absolute_error(truth, guess),
                     "eval_r2": metrics.r2_score(truth, guess)}


if __name__ == "__main__":
    for task in ("classification", "regression"):
        folder = HERE / f"tasks_{task}"
        (folder / "adapter").mkdir(parents=True, exist_ok=True)
        rows = rows_of(task, 90, 5)
        labels = sorted({r["label"] for r in rows}) if task == "classification" else None
        text = "".join(json.dumps(r) + "\n" for r in rows)
        (folder / "rows.jsonl").write_text(text)
        save_adapter(start(labels, 3), folder / "adapter")
        runs, tensors = [], {}
        for exact in (False, True):
            s = SETTINGS | {"learning_rate": 2e-2, "weight_decay": 0.1}
            model = base(labels)
            model = cuda_rule(model) if exact else model
            model = peft.PeftModel.from_pretrained(
                model, folder / "adapter", is_trainable=True)
            log = learn(model, rows, labels, s)
            z, found = judged(model, rows, labels)
            about = {"load_in_4bit": exact, "settings": s, "log": log}
            runs.append(about | {"after": found})
            if not exact:
                state = peft.get_peft_model_state_dict(model)
                tensors = {k: v.detach().clone() for k, v in state.items()}
            print(task, exact, [round(x["loss"], 4) for x in log], found)
        made = versions("transformers", "peft", "scikit-learn")
        text = json.dumps({"versions": made, "runs": runs}, indent=1)
        (folder / "expected.json").write_text(text + "\n")
        save_file(tensors, folder / "expected.safetensors")
