"""LoRA adapters as PEFT writes them, and the logits that it computes with them.

lora_<name>/ is PEFT's folder plus expected.safetensors; the base models are
llama_gqa (bf16 files, computed in f32) and llama_mha.
"""
import torch
from peft_common import *  # noqa: F403
from safetensors.torch import save_file

CASES = {  # name: (base, seed, r, alpha, targets, options)
    "qv": ("llama_gqa", 1, 4, 8, ["q_proj", "v_proj"]),
    "all": ("llama_gqa", 2, 8, 8, "all-linear"),
    "rslora": ("llama_mha", 3, 4, 12, ["k_proj", "down_proj"]),
}
for name, (base, seed, r, alpha, targets) in CASES.items():
    model = base_model(HERE / base, False)
    if name == "rslora":
        torch.manual_seed(seed)
        cfg = peft.LoraConfig(
            r=r, lora_alpha=alpha, target_modules=targets, use_rslora=True,
            rank_pattern={"layers.1.mlp.down_proj": 2}, task_type="CAUSAL_LM",
            alpha_pattern={"layers.0.self_attn.k_proj": 5},
        )
        model = peft.get_peft_model(model, cfg)
        for key, p in model.named_parameters():
            if "lora_B" in key:
                with torch.no_grad():
                    p.normal_(0.0, 0.3)
    else:
        model = fresh_adapter(model, seed, r, alpha, targets, scale=0.3)
    model.eval()
    folder = HERE / f"lora_{name}"
    save_adapter(model, folder)
    ids = torch.randint(3, 64, (2, 20), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        with model.disable_adapter():
            plain = model(input_ids=ids).logits
    assert (logits - plain).abs().max() > 0.1
    meta = versions("transformers", "peft") | {"base": base}
    tensors = {"ids": ids, "logits": logits, "base_logits": plain}
    save_file(tensors, folder / "expected.safetensors", metadata=meta)
    print(name, sorted(p.name for p in folder.iterdir()))
