"""What transformers' Trainer makes of the loss of eight rows, split in three ways.

The rows are paragraphs; all of each is learned, its first token included, as where a
script sets `labels = input_ids`. The learning rate is 0: only loss and norm count.
"""
import json
import tempfile

import torch
import transformers
from common import HERE, versions, write_json

TINY = HERE.parents[1] / "examples/data/tiny"
BOOK = HERE.parents[1] / "examples/data/corpus/alice_in_wonderland.txt"
tok = transformers.AutoTokenizer.from_pretrained(TINY)
long = [p for p in BOOK.read_text().split("\n\n") if len(p) > 40]
rows = []
for p in long[20:28]:
    ids = tok(" ".join(p.split()))["input_ids"] + [tok.eos_token_id]
    rows.append({"input_ids": ids, "labels": ids})


def collate(batch):
    longest = max(len(r["input_ids"]) for r in batch)
    fill = lambda key, pad: torch.tensor(
        [r[key] + [pad] * (longest - len(r[key])) for r in batch])
    ids = fill("input_ids", tok.pad_token_id)
    mask = torch.tensor([[i < len(r["labels"]) for i in range(longest)] for r in batch])
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": fill("labels", -100)}


out = []
for batch, accumulation in ((8, 1), (2, 4), (1, 8)):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(
            folder, per_device_train_batch_size=batch, max_steps=1, learning_rate=0.0,
            gradient_accumulation_steps=accumulation, logging_steps=1, report_to=[],
            save_strategy="no", use_cpu=True, disable_tqdm=True, max_grad_norm=1e9)
        trainer = transformers.Trainer(
            model, args, train_dataset=rows, data_collator=collate)
        trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)
        trainer.train()
    entry, end = trainer.state.log_history
    out.append({"batch": batch, "accumulation": accumulation,
                "loss": end["train_loss"], "grad_norm": float(entry["grad_norm"])})
write_json("ch16_trainer.json", {
    "versions": versions("transformers"), "rows": [r["input_ids"] for r in rows],
    "runs": out})
print(json.dumps(out, indent=1))
