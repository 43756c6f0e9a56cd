"""Small checkpoints that transformers + bitsandbytes quantized and saved, with the
logits that they compute from them: bnb_<name>/.

The blocks' scales are those of bitsandbytes' CPU library, whose 8-bit codes differ
from its CUDA library's for 0.2 % of them: a reader takes them as they are. What a
writer makes of the same weights is compared with the source: bnb_plain.

bnb_ours is the other way round: `downhill quantize` wrote it, in blocks of 32, and
transformers + bitsandbytes read it.

    cargo build && python tests/golden/ch14_bnb.py
    python tests/golden/ch14_bnb.py --check FOLDER    # any such folder loads
"""
import json
import shutil
import subprocess
import sys
import tempfile

import bitsandbytes
import torch
import transformers
from llama_common import HERE, random_model, save, versions
from pathlib import Path
from safetensors.torch import load_file, save_file

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
WIDE = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16}
ODD = {"hidden_size": 40, "intermediate_size": 36, "num_attention_heads": 5,
       "num_key_value_heads": 5, "head_dim": 8}
CASES = {  # name: (dtype of the source, changes, bitsandbytes' settings, shard size)
    "nested": (BF16, WIDE, {"bnb_4bit_use_double_quant": True}, None),
    "plain": (F16, ODD | {"attention_bias": True}, {}, None),
    "storage": (BF16, WIDE | {"tie_word_embeddings": True},
                {"bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": BF16}, None),
    "skip": (F32, WIDE, {"bnb_4bit_use_double_quant": True,
             "llm_int8_skip_modules": ["lm_head", "o_proj", "model.layers.1.mlp"]}, "24KB"),
}


def quantized(source, dtype, **settings):
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=F32,
        **settings,
    )
    return transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, device_map={"": "cpu"}, quantization_config=config
    )


def read(folder):
    """To compute with bitsandbytes on the CPU, in f32."""
    config = json.loads((Path(folder) / "config.json").read_text())
    storage = config["quantization_config"]["bnb_4bit_quant_storage"]
    # transformers casts whatever looks like a float to the kind it loads in, and with
    # it codes that are stored as floats.
    dtype = F32 if storage == "uint8" else getattr(torch, storage)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map={"": "cpu"}
    )
    for p in model.parameters():
        codes = isinstance(p, bitsandbytes.nn.Params4bit)
        p.data = p.data.view(torch.uint8) if codes else p.data.float()
    for m in model.modules():
        if isinstance(m, bitsandbytes.nn.Linear4bit):
            m.compute_dtype = F32
    return model


@torch.no_grad()
def logits(model, ids):
    # In eval mode bitsandbytes packs the weights anew for some CPUs and computes in
    # bf16; without dropout, training mode is the same model in f32.
    return model.train()(ids).logits


def ids_of(seed):
    return torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(seed))


def check(folder):
    """The folder loads, and gives the logits of its expected.safetensors, if any."""
    model = read(folder)
    kinds = {type(m).__name__ for m in model.modules() if "Linear" in type(m).__name__}
    print("linears:", sorted(kinds))
    expected = Path(folder) / "expected.safetensors"
    if expected.exists():
        golden = load_file(expected)
        gap = (logits(model, golden["ids"]) - golden["logits"]).abs().max()
        gap /= golden["logits"].abs().max()
        print(f"logits: {gap:.1e}")
        assert gap < 1e-5, gap


def main():
    for seed, (name, (dtype, changes, settings, shard)) in enumerate(CASES.items()):
        folder = HERE / f"bnb_{name}"
        with tempfile.TemporaryDirectory() as source:
            source = Path(source) / "source"
            save(random_model(300 + seed, dtype, std=0.1, **changes), source, dtype)
            model = quantized(source, dtype, **settings)
            shutil.rmtree(folder, ignore_errors=True)
            model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
            (folder / "generation_config.json").unlink()
            config = folder / "config.json"
            config.write_text(config.read_text() + "\n")
            if name == "plain":
                shutil.copy(source / "model.safetensors", folder / "source.safetensors")
        ids = ids_of(seed)
        tensors = {"ids": ids, "logits": logits(read(folder), ids).clone()}
        meta = versions("transformers", "bitsandbytes")
        save_file(tensors, folder / "expected.safetensors", metadata=meta)
        files = {p.name: p.stat().st_size for p in sorted(folder.iterdir())}
        print(name, json.dumps(files))
        check(folder)
    ours()


def ours():
    folder, binary = HERE / "bnb_ours", HERE / "../../target/debug/downhill"
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as source:
        source = Path(source) / "source"
        save(random_model(399, BF16, std=0.1, **WIDE), source, BF16)
        line = [binary, "quantize", "--model", source, "--output-dir", folder]
        subprocess.run([*line, "--bnb-4bit-blocksize", "32"], check=True)
        shutil.copy(source / "model.safetensors", folder / "source.safetensors")
    ids = ids_of(99)
    tensors = {"ids": ids, "logits": logits(read(folder), ids).clone()}
    meta = versions("transformers", "bitsandbytes")
    save_file(tensors, folder / "expected.safetensors", metadata=meta)
    check(folder)


if sys.argv[1:2] == ["--check"]:
    check(sys.argv[2])
else:
    main()
