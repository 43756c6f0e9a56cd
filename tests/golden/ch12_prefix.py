"""Writes what Transformers 5.17 and TRL's rule make of prompts with completions, and of
chats, with small tokenizers of many kinds: what is put in front of a text, and what is
changed in it, differs from kind to kind.

    pip install transformers==5.17.0
    python tests/golden/ch12_prefix.py

TRL takes the ids of the whole text, and the prompt's own as the part that is not
learned; it warns where the whole does not begin with them. `ch12_prefix.json` has the
tokenizers, and of every case the prompt's ids and the whole's.
"""
import json
import tempfile
from pathlib import Path

from tokenizers import (Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        trainers)
from transformers import AutoTokenizer

LINES = ["def add(a, b): return a + b", "When was it? It began on 3 May 1789.",
         "The hen says: egg", "the cat and the hen", "user: hello there", "good day",
         "a ﬁne ① day", "Was it ｆｕｌｌ?", "U: hi\nA: yes\nU: why\nA: so"] * 4
PAIRS = [("def add(", "a, b):"), ("The hen says: ", "egg"), ("The hen says:", " egg"),
         ("the he", "n"), ("When was it?", "\nIt began."), ("", "hello"), ("hello\n", "there"),
         ("a  ", "  b"), ("When was it ① ", "ﬁne"), ("Q: x</s>", "y"), ("x ", "</s>y")]
CHATS = [[("user", "hi"), ("assistant", "good day")],
         [("user", "ﬁne?"), ("assistant", "the hen "), ("user", "why"), ("assistant", "so")]]
TEMPLATES = {
    "special": "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
               "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
               "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
    "plain": "{% for m in messages %}{{ m.role[0] + ': ' + m.content + '\n' }}{% endfor %}"
             "{% if add_generation_prompt %}{{ 'a: ' }}{% endif %}",
}
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def kinds():
    meta, seq, nf = pre_tokenizers.Metaspace, normalizers.Sequence, normalizers
    spaces = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    bpe = lambda: models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    legacy = seq([nf.Prepend("▁"), nf.Replace(" ", "▁")])
    byte = pre_tokenizers.ByteLevel
    yield "legacy", bpe(), legacy, None, spaces
    for scheme in ["always", "first", "never"]:
        yield (f"metaspace_{scheme}", bpe(), None, meta(prepend_scheme=scheme, split=False),
               spaces)
    yield ("unigram_nfkc", models.Unigram(), seq([nf.NFKC(), nf.Replace(Regex(" {2,}"), " ")]),
           meta(prepend_scheme="always"), decoders.Metaspace())
    yield ("nfkc_lower_strip", bpe(), seq([nf.NFKC(), nf.Lowercase(), nf.Strip()]),
           meta(prepend_scheme="first"), spaces)
    yield "byte_prefix", models.BPE(), None, byte(add_prefix_space=True), decoders.ByteLevel()
    yield "byte", models.BPE(), nf.NFC(), byte(add_prefix_space=False), decoders.ByteLevel()
    yield ("wordpiece", models.WordPiece(unk_token="<unk>"), nf.BertNormalizer(lowercase=True),
           pre_tokenizers.BertPreTokenizer(), decoders.WordPiece())


def trained(name, model, normalizer, pre, decoder):
    tokenizer = Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre:
        tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoder
    args = dict(special_tokens=SPECIAL, show_progress=False)
    if name.startswith("unigram"):
        trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", **args)
    elif name == "wordpiece":
        trainer = trainers.WordPieceTrainer(vocab_size=120, **args)
    elif name.startswith("byte"):
        trainer = trainers.BpeTrainer(
            vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **args)
    else:
        # The byte tokens are ordinary ones.
        args["special_tokens"] = SPECIAL + BYTES
        trainer = trainers.BpeTrainer(vocab_size=390, **args)
    # Without a pre-tokenizer whole lines would become tokens.
    if name.startswith(("legacy", "metaspace", "nfkc")):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(LINES, trainer)
    file = json.loads(tokenizer.to_str())
    file["pre_tokenizer"] = json.loads(pre.__getstate__()) if pre else None
    file["added_tokens"] = [t for t in file["added_tokens"] if t["content"] in SPECIAL]
    return file


def loaded(file, template):
    config = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>",
                  unk_token="<unk>", add_bos_token=False, chat_template=template)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "tokenizer.json").write_text(json.dumps(file))
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return AutoTokenizer.from_pretrained(folder), config


def main():
    golden = []
    for kind in kinds():
        file = trained(*kind)
        case = dict(name=kind[0], file=file, pairs=[], chats=[])
        for name, template in TEMPLATES.items():
            tokenizer, config = loaded(file, template)
            ids = lambda text: tokenizer.encode(text, add_special_tokens=False)
            for chat in CHATS:
                chat = [dict(role=role, content=content) for role, content in chat]
                text = lambda n, ask: tokenizer.apply_chat_template(
                    chat[:n], add_generation_prompt=ask, tokenize=False)
                whole = ids(text(len(chat), False))
                # Where the whole has the ids that the model is asked with.
                turns = [(ids(text(i, True)), ids(text(i + 1, False)))
                         for i in range(len(chat)) if chat[i]["role"] == "assistant"]
                clean = all(whole[:len(part)] == part for turn in turns for part in turn)
                # `Strip` takes the end of a turn away where the turn ends the text.
                clean &= len(turns) == 1 or case["name"] != "nfkc_lower_strip" or (
                    template == TEMPLATES["special"])
                spans = [[len(asked), len(answered)] for asked, answered in turns]
                case["chats"].append(dict(
                    template=template, messages=chat, ids=whole, asked=turns[0][0],
                    spans=spans if clean else None))
        case["config"] = {k: v for k, v in config.items() if k != "chat_template"}
        for prompt, completion in PAIRS:
            whole = ids(prompt + completion)
            case["pairs"].append(dict(prompt=prompt, completion=completion,
                                      asked=ids(prompt), whole=whole,
                                      text=tokenizer.decode(whole)))
        golden.append(case)
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")
    for case in golden:
        same = sum(p["whole"][:len(p["asked"])] == p["asked"] for p in case["pairs"])
        print(case["name"], same, "of", len(case["pairs"]), "prompts;",
              sum(c["spans"] is not None for c in case["chats"]), "of 4 chats")


if __name__ == "__main__":
    main()
