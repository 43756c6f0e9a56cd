"""Writes data.json: small tokenizers, and what Transformers makes of them.

    pip install transformers==4.57.1 && python tests/golden/data.py

4.57.1 because later versions lose the BOS of DeepSeek's tokenizers. The templates are
ours; they use what DeepSeek's use (namespaces, blocks with white-space control,
methods of str, slices), and `{% generation %}`, the tag of training templates.
"""
import json
import tempfile
from pathlib import Path

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors
from transformers import AutoTokenizer

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
SPECIAL = [BOS, EOS, PAD, "<｜User｜>", "<｜Assistant｜>"]

PLAIN = """{{ bos_token }}{% for m in messages %}
{% if m['role'] == 'user' %}
{{ 'User: ' + m['content'] + '\n\n' }}
{%- elif m['role'] == 'assistant' %}
{{ 'Assistant: ' + m['content'] + eos_token }}
{%- else %}
{{ m['content'] + '\n\n' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

TAGS = """{%- set ns = namespace(system='', turns=0) -%}
{%- for m in messages if m.role == 'system' -%}
    {%- set ns.system = ns.system ~ ('\n\n' if ns.system else '') ~ m.content.strip() -%}
{%- endfor -%}
{{- bos_token }}{{ ns.system -}}
{%- for m in messages -%}
    {%- if m.role == 'user' -%}
        {%- set ns.turns = ns.turns + 1 -%}
        {{- '<｜User｜>' + m['content'] -}}
    {%- elif m.role == 'assistant' -%}
        {{- '<｜Assistant｜>' -}}
        {%- generation -%}
        {%- set content = m['content'] -%}
        {%- if '</think>' in content -%}
            {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
        {%- endif -%}
        {{- content + eos_token -}}
        {%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt is defined and add_generation_prompt -%}
    {{- '<｜Assistant｜>' -}}
{%- endif -%}"""

STRICT = """{%- if messages[0]['role'] == 'system' %}
    {%- set rest = messages[1:] %}
    {{- messages[0].content | trim + '\n' }}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    # {{ message.role.upper() }}{% if loop.first %} (first){% endif %}

    {{ message.content.replace('\t', ' ') }}
    {% if message.role == 'assistant' %}
{{ eos_token }}
    {% endif %}
{% endfor %}
{% if tools is defined and tools %}tools{% endif %}
{% if add_generation_prompt %}
    # ASSISTANT

{% endif %}
"""

CHATS = [
    [("user", "the hen?")],
    [("user", "the hen?"), ("assistant", "then — the end")],
    [("system", " be kind "), ("user", "a\tb"), ("assistant", "né 日本"),
     ("user", "then"), ("assistant", " the\nend ")],
    [("assistant", "the end"), ("user", "hen")],
]
TEXTS = ["", "the hen", " the  hen\n", "né 日本 🐔", f"{BOS}the", f"the{EOS}", "x<｜User｜>y"]


def engine():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("e", "n"), ("Ġ", "the"), ("Ġ", "h"), ("Ġh", "en")]
    vocab = {token: i for i, token in enumerate(alphabet + ["".join(m) for m in merges])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
    return tokenizer


def spaced():
    """As the tokenizers of Llama 1 and 2: a space is put before the text."""
    vocab = {"<unk>": 0, BOS: 1, EOS: 2}
    for token in "▁ t h e n d . a".split() + ["th", "the", "en", "▁the"]:
        vocab[token] = len(vocab)
    merges = [("t", "h"), ("th", "e"), ("e", "n"), ("▁", "the")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>", BOS, EOS])
    return tokenizer


def bos_by_processor():
    tokenizer = engine()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))])
    tokenizer.enable_truncation(max_length=4)
    tokenizer.enable_padding(length=9)
    return tokenizer


def config(**rest):
    names = dict(bos_token=BOS, eos_token=EOS, model_max_length=4096,
                 clean_up_tokenization_spaces=False)
    return {**names, **rest}


LLAMA = "LlamaTokenizerFast"
CHECKPOINTS = {
    "add_bos_token true": (engine, config(
        tokenizer_class=LLAMA, add_bos_token=True, add_eos_token=False,
        bos_token={"__type": "AddedToken", "content": BOS}, pad_token=PAD,
        chat_template=TAGS)),
    "add_bos_token false": (engine, config(
        tokenizer_class=LLAMA, add_bos_token=False, pad_token=None,
        chat_template=[{"name": "tool_use", "template": "no"},
                       {"name": "default", "template": PLAIN}])),
    "add_bos_token absent, Llama": (engine, config(
        tokenizer_class=LLAMA, chat_template=STRICT)),
    "add_bos_token absent, another class": (
        engine, config(tokenizer_class="PreTrainedTokenizerFast")),
    "add_bos_token absent, post-processor": (
        bos_by_processor, config(tokenizer_class="PreTrainedTokenizerFast")),
    "a space before": (spaced, config(tokenizer_class=LLAMA, chat_template=PLAIN)),
}


def messages(chat):
    return [dict(role=role, content=content) for role, content in chat]


def chats(tokenizer):
    for chat in CHATS if tokenizer.chat_template else []:
        for generation in (False, True):
            given = dict(conversation=messages(chat), add_generation_prompt=generation)
            try:
                text = tokenizer.apply_chat_template(**given, tokenize=False)
                ids = tokenizer.apply_chat_template(**given)
            except Exception as refusal:
                text, ids = None, [str(refusal)]
            yield dict(messages=messages(chat), generation=generation, text=text, ids=ids)


def learned(tokenizer):
    """Ids and assistant mask of the chats, where the template has the tag."""
    if "generation -%}" not in str(tokenizer.chat_template):
        return []
    both = [tokenizer.apply_chat_template(messages(chat), return_dict=True,
                                          return_assistant_tokens_mask=True)
            for chat in CHATS[1:3]]
    return [dict(messages=messages(chat), ids=b["input_ids"], mask=b["assistant_masks"])
            for chat, b in zip(CHATS[1:3], both)]


def main():
    checkpoints = []
    for name, (build, settings) in CHECKPOINTS.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            build().save(str(folder / "tokenizer.json"), pretty=False)
            text = json.dumps(settings, ensure_ascii=False)
            (folder / "tokenizer_config.json").write_text(text)
            # 4.57.1 picks the tokenizer's class by the configuration's model type.
            (folder / "config.json").write_text('{"model_type": "llama"}')
            files = {p.name: p.read_text() for p in sorted(folder.iterdir())}
            tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        checkpoints.append(dict(
            name=name, files=files, special=[
                tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
            texts=[dict(text=t, ids=tokenizer.encode(t),
                        bare=tokenizer.encode(t, add_special_tokens=False),
                        decoded=tokenizer.decode(tokenizer.encode(t),
                                                 skip_special_tokens=True))
                   for t in TEXTS],
            chats=list(chats(tokenizer)), learned=learned(tokenizer)))
    golden = dict(transformers=transformers.__version__, checkpoints=checkpoints)
    out = Path(__file__).with_suffix(".json")
    out.write_text(json.dumps(golden, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
