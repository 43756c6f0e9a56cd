"""Tiny Qwen2, Qwen3, DeepSeek-V2 and DeepSeek-V3 checkpoints, and Llama with YaRN.

<name>/ holds the checkpoint as transformers saves it and expected.safetensors (see
`write_expected`), for two of them with gradients of the cross-entropy.
"""
import json

import torch
from common import HERE
from llama_common import random_model, save, scale_scores, write_expected
from safetensors.torch import load_file, save_file

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
MLA = {"kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}
MOE = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 14}
V2 = MLA | MOE | {"num_hidden_layers": 2, "head_dim": 4, "rms_norm_eps": 1e-5}
LITE = {"q_lora_rank": None, "n_shared_experts": 2, "first_k_dense_replace": 1}
GROUPS = {"n_group": 4, "topk_group": 2}
WHOLE = {"q_lora_rank": 10, "n_shared_experts": 1, "first_k_dense_replace": 0} | GROUPS
LIMITED = {"topk_method": "group_limited_greedy", "routed_scaling_factor": 4.0}
# As in the real files of V2 and V3, but for the lengths.
DEEPSEEK = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 16}
DEEPSEEK |= {"beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707}
CASES = {  # name: (family, dtype of the files, changes to the configuration)
    "llama_yarn": ("Llama", BF16, {"rope_scaling": YARN | {
        "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False, "attention_factor": 0.8}}),
    "qwen2_gqa": ("Qwen2", BF16, {"num_key_value_heads": 2}),
    "qwen2_tied": ("Qwen2", F32, {
        "tie_word_embeddings": True, "rope_scaling": YARN, "num_key_value_heads": 1}),
    "qwen3_gqa": ("Qwen3", BF16, {"num_key_value_heads": 2, "head_dim": 12}),
    # As R1-0528-Qwen3-8B, whose `attn_factor` transformers passes over.
    "qwen3_yarn": ("Qwen3", BF16, {"head_dim": 8, "num_key_value_heads": 2,
        "tie_word_embeddings": True, "rope_scaling": YARN | {"attn_factor": 0.878}}),
    "qwen3_bias": ("Qwen3", F16, {"head_dim": 8, "attention_bias": True}),
    "v2_lite": ("DeepseekV2", BF16, V2 | LITE),
    "v2_limited": ("DeepseekV2", BF16, V2 | WHOLE | LIMITED | {
        "tie_word_embeddings": True, "rope_scaling": YARN}),
    "v2_bias": ("DeepseekV2", BF16, V2 | WHOLE | LIMITED | {
        "attention_bias": True, "mlp_bias": True, "num_hidden_layers": 1,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "v2_yarn": ("DeepseekV2", BF16, V2 | LITE | {"rope_scaling": DEEPSEEK}),
    "v2_mscale": ("DeepseekV2", F32, V2 | LITE | {
        "rope_scaling": DEEPSEEK | {"mscale": 1.2}}),
    "v3_yarn": ("DeepseekV3", BF16, V2 | WHOLE | {
        "first_k_dense_replace": 1, "rope_scaling": DEEPSEEK | {
            "mscale": 1.0, "mscale_all_dim": 1.0}}),
    "v3_flat": ("DeepseekV3", BF16, V2 | LITE | {
        "n_group": 1, "topk_group": 1, "norm_topk_prob": False,
        "routed_scaling_factor": 1.0, "rope_interleave": False,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "v3_tied": ("DeepseekV3", F32, V2 | WHOLE | {
        "tie_word_embeddings": True, "num_hidden_layers": 1, "attention_bias": True}),
}
# 8-bit weights, none of whose sizes is a multiple of 128, one layer for multi-token
# prediction behind the others.
FP8 = {"hidden_size": 132, "intermediate_size": 140, "num_attention_heads": 2,
       "num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
       "num_nextn_predict_layers": 1}


def gradients(model, ids):
    loss = model(ids, labels=ids).loss
    loss.backward()
    wanted = ("norm", "gate.weight", "kv_a_proj", "experts.0.", "experts.5.up", "embed")
    grads = {
        f"grad.{name}": p.grad.clone() for name, p in model.named_parameters()
        if any(part in name for part in wanted) and p.grad is not None
    }
    return grads | {"loss": loss.detach()}


def to_fp8(model, folder):
    """The linear layers in e4m3, each block of 128 x 128 by its own scale; `model` gets
    the numbers that a reader will see."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    params = dict(model.named_parameters())
    for name in [n for n in tensors if n.endswith("_proj.weight") or "proj_with" in n]:
        w = params[name].data
        rows, columns = (-(-n // 128) for n in w.shape)
        q = torch.empty(w.shape, dtype=torch.float8_e4m3fn)
        scales = torch.empty(rows, columns)
        for i in range(rows):
            for j in range(columns):
                at = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
                scales[i, j] = w[at].abs().max() / 448
                q[at] = (w[at] / scales[i, j]).to(q.dtype)
                w[at] = q[at].float() * scales[i, j]
        tensors[name], tensors[name + "_scale_inv"] = q, scales
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    tensors[bias] = tensors[bias].float()  # as in the real files
    for part in ("enorm.weight", "eh_proj.weight", "shared_head.norm.weight"):
        tensors[f"model.layers.2.{part}"] = torch.ones(4, dtype=BF16)
    save_file(tensors, path, metadata={"format": "pt"})
    path = folder / "config.json"
    quantization = {"activation_scheme": "dynamic", "fmt": "e4m3"}
    quantization |= {"quant_method": "fp8", "weight_block_size": [128, 128]}
    cfg = json.loads(path.read_text()) | {"quantization_config": quantization}
    path.write_text(json.dumps(cfg, indent=2) + "\n")


for seed, (name, (family, dtype, changes)) in enumerate(CASES.items()):
    model = random_model(300 + seed, dtype, family=family, **changes)
    scale_scores(model)
    folder = HERE / name
    save(model, folder, dtype)
    more = gradients if name in ("v2_limited", "v3_yarn") else None
    write_expected(model, folder, seed, 24, more)

model = random_model(400, BF16, 0.1, "DeepseekV3", **(V2 | LITE | FP8))
save(model, HERE / "v3_fp8", BF16)
to_fp8(model, HERE / "v3_fp8")
write_expected(model, HERE / "v3_fp8", 400, 24)
