"""Does PEFT load a score head of ours, and find what `downhill evaluate` found?

    check_tasks.py ADAPTER MODEL ROWS FOUND

ADAPTER: the output of `finetune --task classification` or `regression`, of an
unquantized f32 run; ROWS: JSONL; FOUND: `evaluate --output-file`. Exit 0 only if no key
is missing or unexpected, every tensor arrives bit for bit and the losses agree within
1e-5 of themselves.
"""
import json
import pathlib
import sys

import peft
import torch
import transformers
from safetensors.torch import load_file

adapter, base, rows, found = sys.argv[1:]
cfg = transformers.AutoConfig.from_pretrained(adapter)
model = transformers.AutoModelForSequenceClassification.from_pretrained(
    base, config=cfg, dtype=torch.float32
)
model = peft.get_peft_model(model, peft.PeftConfig.from_pretrained(adapter))
said = model.load_adapter(adapter, adapter_name="default")
missing = [k for k in said.missing_keys if "lora_" in k or "modules_to_save" in k]
assert not missing and not said.unexpected_keys, (missing, said.unexpected_keys)
ours = load_file(pathlib.Path(adapter) / "adapter_model.safetensors")
back = peft.get_peft_model_state_dict(model)
assert ours.keys() == back.keys(), ours.keys() ^ back.keys()
assert all(torch.equal(v, back[k]) for k, v in ours.items())

tokenizer = transformers.AutoTokenizer.from_pretrained(base)
total, count = 0.0, 0
for line in open(rows):
    row = json.loads(line)
    ids = torch.tensor([tokenizer(row["text"])["input_ids"]])
    with torch.no_grad():
        z = model.eval()(input_ids=ids).logits
    if cfg.problem_type == "regression":
        total += (z.item() - row["label"]) ** 2
    else:
        want = torch.tensor([cfg.label2id[str(row["label"])]])
        total += torch.nn.functional.cross_entropy(z, want).item()
    count += 1
ours, theirs = json.load(open(found))["eval_loss"], total / count
assert abs(ours - theirs) <= 1e-5 * abs(theirs), (ours, theirs)
print(f"{len(back)} tensors, none missing, none unexpected; loss {ours} and {theirs}")
