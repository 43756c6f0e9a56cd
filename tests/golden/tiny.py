"""What transformers makes of the tiny checkpoint: token ids, logits, greedy text.

transformers 4.57.1, torch 2.11.0. Run at the root: python tests/golden/tiny.py
"""
import json
import pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TINY = "examples/data/tiny"
TEXTS = [
    "",
    "It is a truth universally acknowledged, that a single man",
    "On Jan 7th, 1927: First transatlantic telephone call.\nDate:",
    "  two  spaces,\ttab\r\nand  an end   ",
    "“Curly” — naïve café 你好 한국어 🙂 3.14159 a_b <|x|> $5+5=10",
    "<｜User｜>When?<｜Assistant｜>Now.<｜end▁of▁sentence｜>",
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "Now."},
    {"role": "user", "content": "Why?"},
]

tokenizer = AutoTokenizer.from_pretrained(TINY)
model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
prompt = tokenizer(TEXTS[1], return_tensors="pt").input_ids
with torch.no_grad():
    logits = model(prompt).logits[0, -1]
    greedy = model.generate(prompt, max_new_tokens=64, do_sample=False)[0]
golden = {
    "ids": [{"text": t, "ids": tokenizer(t).input_ids} for t in TEXTS],
    "chat": tokenizer.apply_chat_template(
        CHAT, tokenize=False, add_generation_prompt=True
    ),
    "logits": [float(f"{x:.9g}") for x in logits.tolist()],
    "greedy": greedy.tolist(),
}
path = pathlib.Path("tests/golden/tiny.json")
path.write_text(json.dumps(golden, ensure_ascii=True) + "\n")
