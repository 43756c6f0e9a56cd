"""PEFT + bitsandbytes fine-tuning, written out: what `downhill finetune` must equal."""
import json
import math

import peft
import torch
import transformers
from llama_common import *  # noqa: F403
from nf4_rule import quantize

SETTINGS = {
    "learning_rate": 2e-4, "max_grad_norm": 1.0, "warmup_ratio": 0.03,
    "batch": 4, "accumulation": 2, "steps": 10, "weight_decay": 0.0,
    "schedule": "cosine",
}


def base_model(folder, four_bit):
    """In f32, as NF4 with double quantization or unquantized. The head stays f32."""
    options = {"dtype": torch.float32}
    if four_bit:
        options["device_map"] = {"": "cpu"}
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32,
        )
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def cuda_rule(model):
    """The blocks' linears of an unquantized model replaced by what they become in
    NF4 by bitsandbytes' CUDA rule. Backward then needs no 4-bit code at all.

    bitsandbytes 0.50.2 itself will not do as a reference on every CPU: its AVX-512
    `dequantize_4bit` takes wrong scales for widths that are multiples of 16 but not of
    64 (a block then straddles two rows); `bnb_is_right` says for which it can.
    """
    with torch.no_grad():
        for name, m in model.named_modules():
            if isinstance(m, torch.nn.Linear) and name != "lm_head":
                back = quantize(m.weight.numpy(), 64, True)["dequantized"]
                m.weight.copy_(torch.from_numpy(back).reshape(m.weight.shape))
    return model


def bnb_is_right(model):
    inputs = [m.in_features for name, m in model.named_modules()
              if isinstance(m, torch.nn.Linear)
              and not name.endswith("lm_head") and "lora_" not in name]
    return all(k % 64 == 0 or k % 16 for k in inputs)


def fresh_adapter(model, seed, r, alpha, targets, scale=0.0):
    """LoRA with PEFT's start (A uniform, B zero); with `scale`, B from N(0, scale)."""
    torch.manual_seed(seed)
    cfg = peft.LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets,
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(model, cfg)
    if scale:
        for name, p in model.named_parameters():
            if "lora_B" in name:
                with torch.no_grad():
                    p.normal_(0.0, scale)
    return model


def save_adapter(model, folder):
    """As `save_pretrained` writes it, without the model card and the base's path."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    cfg = json.loads(path.read_text()) | {"base_model_name_or_path": None}
    # Sets in PEFT: their order changes from run to run.
    for key in ("target_modules", "exclude_modules"):
        if isinstance(cfg[key], list):
            cfg[key].sort()
    path.write_text(json.dumps(cfg, indent=2, sort_keys=True))


def collate(rows):
    """Right padding to the longest row; labels -100 there."""
    longest = max(len(r["input_ids"]) for r in rows)

    def fill(key, pad):
        rest = [[pad] * (longest - len(r[key])) for r in rows]
        return torch.tensor([r[key] + more for r, more in zip(rows, rest)])

    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, r in enumerate(rows):
        mask[i, : len(r["input_ids"])] = 1
    return fill("input_ids", 0), fill("labels", -100), mask


def optimizer(model, s):
    """AdamW and its schedule, as transformers' Trainer builds them."""
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(
        params, lr=s["learning_rate"], betas=(0.9, 0.999), eps=1e-8,
        weight_decay=s["weight_decay"],
    )
    warmup = math.ceil(s["steps"] * s["warmup_ratio"])
    name = s["schedule"]
    return params, opt, transformers.get_scheduler(name, opt, warmup, s["steps"])


def train(model, rows, s):
    """In the rows' order, over and over; the loss of a step is the mean over all of
    its supervised tokens. Returns what the Trainer logs."""
    model.train()
    params, opt, schedule = optimizer(model, s)
    log, batches = [], []
    while len(batches) < s["steps"] * s["accumulation"]:
        # The last batch of an epoch may be short; a step does not straddle epochs.
        epoch = [rows[i : i + s["batch"]] for i in range(0, len(rows), s["batch"])]
        for i in range(0, len(epoch), s["accumulation"]):
            batches.append(epoch[i : i + s["accumulation"]])
        if len(batches) >= s["steps"]:
            break
    for step, micro in enumerate(batches[: s["steps"]], 1):
        micro = [collate(rows) for rows in micro]
        count = sum(int((labels[:, 1:] != -100).sum()) for _, labels, _ in micro)
        loss = 0.0
        for ids, labels, mask in micro:
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            part = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1),
                ignore_index=-100, reduction="sum",
            ) / count
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(params, s["max_grad_norm"]).item()
        lr = schedule.get_last_lr()[0]
        opt.step()
        schedule.step()
        opt.zero_grad()
        log.append({"step": step, "loss": loss, "grad_norm": norm, "learning_rate": lr})
    return log
