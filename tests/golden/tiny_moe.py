"""What transformers makes of the tiny checkpoint with experts: logits, greedy text.

transformers 4.57.1, torch 2.11.0. Run at the root: python tests/golden/tiny_moe.py
"""
import json
import pathlib

import torch
from transformers import AutoTokenizer, DeepseekV2ForCausalLM

TINY = "examples/data/tiny_moe"
TEXT = "It is a truth universally acknowledged, that a single man"

tokenizer = AutoTokenizer.from_pretrained(TINY)
model, info = DeepseekV2ForCausalLM.from_pretrained(
    TINY, dtype=torch.float32, output_loading_info=True
)
assert not any(info.values()), info
prompt = tokenizer(TEXT, return_tensors="pt").input_ids
with torch.no_grad():
    logits = model(prompt).logits[0, -1]
    greedy = model.generate(prompt, max_new_tokens=64, do_sample=False)[0]
golden = {
    "prompt": prompt[0].tolist(),
    "logits": [float(f"{x:.9g}") for x in logits.tolist()],
    "greedy": greedy.tolist(),
}
path = pathlib.Path("tests/golden/tiny_moe.json")
path.write_text(json.dumps(golden) + "\n")
