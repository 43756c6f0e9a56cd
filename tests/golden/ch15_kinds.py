"""Every kind of adapter that we compute, as PEFT writes it, and PEFT's logits.

lora_<name>/ is PEFT's folder plus expected.safetensors: ids, logits, and for `dora_nf4`
and `dora_drop` also the gradients of the sum of the logits' squares. The base models are
those of ch13_llama.py, computed in f32.

`dora_drop` is in training mode, its masks drawn as the library draws them (the numpy
Philox of ch09_dropout.py) and put where PEFT has its `lora_dropout`.
"""
import sys

import torch
from ch09_dropout import SEED, STEP, factors
from peft_common import *  # noqa: F403
from safetensors.torch import save_file

QKV = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {  # name: (base, LoraConfig's arguments)
    "dora": ("llama_bias", dict(
        r=4, lora_alpha=6, target_modules=["q_proj", "o_proj", "down_proj"],
        use_dora=True)),
    "dora_rs": ("llama_gqa", dict(
        r=4, lora_alpha=6, target_modules="all-linear", use_dora=True,
        use_rslora=True, rank_pattern={"down_proj": 2, r".*\.1\..*k_proj": 3})),
    "dora_nf4": ("llama_linear", dict(
        r=4, lora_alpha=8, target_modules="all-linear", use_dora=True)),
    "dora_drop": ("llama_bias", dict(
        r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "up_proj"],
        use_dora=True, lora_dropout=0.25)),
    "save": ("llama_mha", dict(
        r=4, lora_alpha=8, target_modules=["v_proj"],
        modules_to_save=["lm_head", "embed_tokens", "norm", "k_proj"])),
    "bias": ("llama_bias", dict(
        r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], lora_bias=True)),
    "gaussian": ("llama_mha", dict(
        r=4, lora_alpha=6, target_modules=["q_proj"], init_lora_weights="gaussian")),
    "pissa": ("llama_mha", dict(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"],
        init_lora_weights="pissa")),
    "pissa_dora": ("llama_mha", dict(
        r=3, lora_alpha=6, target_modules=["o_proj", "gate_proj"], use_dora=True,
        init_lora_weights="pissa")),
    "regex": ("llama_gqa", dict(
        r=4, lora_alpha=6, exclude_modules=["layers.0.self_attn.q_proj"],
        target_modules=r"(?!.*mlp).*\.[01]\.self_attn\.(?:q|v)_proj")),
    "layers": ("llama_gqa", dict(
        r=4, lora_alpha=6, target_modules=["o_proj", "layers.0.mlp.up_proj"],
        exclude_modules=r".*\.0\..*", layers_to_transform=[1],
        layers_pattern="layers", rank_pattern={"(self_attn|mlp).o_proj": 6},
        alpha_pattern={"o_proj": 3})),
    # Named so as to be the last: a case's seed is its place in the alphabet.
    "v2_experts": ("v2_lite", dict(
        r=4, lora_alpha=6, target_modules="all-linear", use_rslora=True,
        rank_pattern={r"experts\.[0-3]\.down_proj": 2},
        alpha_pattern={"shared_experts.up_proj": 3})),
    "v2_experts_dora": ("v2_limited", dict(
        r=2, lora_alpha=4, target_modules=["kv_b_proj", "gate_proj", "down_proj"],
        use_dora=True)),
}


class Dropped(torch.nn.Module):
    def __init__(self, p, place):
        super().__init__()
        self.p, self.place = p, place

    def forward(self, x):
        return x * factors(tuple(x.shape), self.p, self.place)


def make(name, base, options):
    model = base_model(HERE / base, False)
    if name == "dora_nf4":
        model = cuda_rule(model)
    seed = sorted(CASES).index(name) + 100
    torch.manual_seed(seed)
    model = peft.get_peft_model(
        model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    start = HERE / f"lora_{name}_start"
    if name == "pissa":  # PEFT's own recipe for the conversion
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(start)
        model.peft_config["default"].init_lora_weights = "pissa"
    trained = [(k, p) for k, p in model.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for key, p in trained:
            noise = torch.randn(p.shape)
            # Away from the start, and the lengths of rows away from what they are.
            p.mul_(1 + 0.2 * noise) if "magnitude" in key else p.add_(0.2 * noise)
    model.eval()
    ids = torch.randint(3, 64, (2, 20), generator=torch.Generator().manual_seed(seed))
    tensors = {"ids": ids}
    if name == "dora_drop":
        model.train()
        place = -1
        for key, m in model.named_modules():
            if key.rsplit(".", 1)[-1] in QKV:
                place += 1
                if hasattr(m, "lora_dropout"):
                    m.lora_dropout["default"] = Dropped(m.lora_dropout["default"].p, place)
    logits = model(input_ids=ids).logits
    if name in ("dora_drop", "dora_nf4"):
        logits.square().mean().backward()
        for key, p in trained:
            short = key.removeprefix("base_model.model.").replace(".default", "")
            tensors["grad." + short.removesuffix("magnitude_vector.weight") + (
                "magnitude_vector" if "magnitude" in short else "")] = p.grad
    folder = HERE / f"lora_{name}"
    save_adapter(model, folder)
    tensors["logits"] = logits.detach()
    with torch.no_grad(), model.disable_adapter():
        if "pissa" not in name:  # there it is what is left of the model
            plain = model(input_ids=ids).logits
            assert (tensors["logits"] - plain).abs().max() > 0.1
    meta = versions("transformers", "peft") | {
        "base": base, "seed": str(SEED), "step": str(STEP)}
    save_file(tensors, folder / "expected.safetensors", metadata=meta)
    if name == "pissa":
        whole = HERE / "lora_pissa_plain"
        model.save_pretrained(
            whole, path_initial_model_for_weight_conversion=str(start))
        (whole / "README.md").unlink(missing_ok=True)
        path = whole / "adapter_config.json"
        cfg = json.loads(path.read_text()) | {"base_model_name_or_path": None}
        cfg["target_modules"].sort()
        path.write_text(json.dumps(cfg, indent=2, sort_keys=True))
        save_file(tensors, whole / "expected.safetensors", metadata=meta)
        for file in start.iterdir():
            file.unlink()
        start.rmdir()
    print(name, sorted(p.name for p in folder.iterdir()))


for case, (base, options) in CASES.items():
    if case in (sys.argv[1:] or CASES):
        make(case, base, options)
