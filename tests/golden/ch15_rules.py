"""PEFT's rules of which module a setting means, asked of PEFT: lora_rules.json.

Each case is a configuration, and for each name what PEFT says: null (no adapter), or
[r, alpha]. The names are those of a Llama, and of a DeepSeek-V2 with experts.
"""
from common import *  # noqa: F403
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LATENT = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
NAMES = [f"model.layers.{i}.self_attn.{p}" for i in (0, 1, 10) for p in ATTENTION]
NAMES += [f"model.layers.{i}.mlp.{p}" for i in (0, 1, 10) for p in MLP]
NAMES += [f"model.layers.1.self_attn.{p}" for p in LATENT[:4]]
NAMES += [f"model.layers.1.mlp.experts.{e}.{p}" for e in (0, 1, 11) for p in MLP]
NAMES += [f"model.layers.1.mlp.shared_experts.{p}" for p in MLP]
CASES = [
    dict(target_modules=["q_proj", "v_proj"]),
    dict(target_modules=["q_proj", "v_proj"], r=4, lora_alpha=7),
    dict(target_modules=["proj"]),
    dict(target_modules=["self_attn.q_proj", "layers.1.mlp.up_proj"]),
    dict(target_modules=["experts.1.down_proj", "1.down_proj"]),
    dict(target_modules=["model.layers.10.mlp.up_proj"], layers_to_transform=[0]),
    dict(target_modules=["up_proj"], layers_to_transform=[1]),
    dict(target_modules=["up_proj"], layers_to_transform=1, layers_pattern="layers"),
    dict(target_modules=["up_proj"], layers_to_transform=[0, 11],
         layers_pattern=["blocks", "experts"]),
    dict(target_modules=["up_proj"], layers_to_transform=[]),
    dict(target_modules=r".*\.(q|up)_proj"),
    dict(target_modules=r"q_proj"),
    dict(target_modules=r"model\.layers\.(0|1)\..*"),
    dict(target_modules=r"model\.layers\.(?!10)\d+\.self_attn\.\w+"),
    dict(target_modules=r"(?!.*experts).*(?:up|gate)_proj$"),
    dict(target_modules=r"(?P<stem>.*)\.experts\.(\d)\2?\.\w+"),
    dict(target_modules=r".*(?<!shared_)experts.*"),
    dict(target_modules=r"(?i:.*Q_PROJ)"),
    dict(target_modules=r".*q_proj|.*v_proj"),
    dict(target_modules=["q_proj", "up_proj"], exclude_modules=["experts.1.up_proj"]),
    dict(target_modules=["q_proj", "up_proj"], exclude_modules=r".*\.1\..*"),
    dict(target_modules=["q_proj", "up_proj"], exclude_modules=["model"]),
    dict(target_modules=MLP, modules_to_save=["shared_experts"]),
    dict(target_modules=MLP, modules_to_save=["mlp", "lm_head"]),
    dict(target_modules=MLP, modules_to_save=["experts", "up_proj"]),
    dict(target_modules=MLP, modules_to_save=[r"experts\.\d"]),
    dict(target_modules=ATTENTION, rank_pattern={"q_proj": 2, "layers.1": 3}),
    dict(target_modules=ATTENTION, rank_pattern={"proj": 2, ".*proj": 3, "v_proj": 4}),
    dict(target_modules=ATTENTION, rank_pattern={"v_proj": 4, ".*proj": 3}),
    dict(target_modules=ATTENTION, rank_pattern={r"layers\.1\..*": 5},
         alpha_pattern={r"^model\.layers\.1.*k_proj": 99, "o_proj|q_proj": 1.5}),
    dict(target_modules=MLP, rank_pattern={"experts.*": 1, "mlp.up_proj": 6},
         alpha_pattern={r"experts\.[01]\.up_proj": 3}),
    dict(target_modules=MLP, rank_pattern={"model.layers.0.mlp.up_proj": 6}),
    dict(target_modules=MLP, rank_pattern={"ayers.0.mlp.up_proj": 6}),
    dict(target_modules=MLP, rank_pattern={"up_proj$": 6, "^down_proj": 3}),
]


def says(cfg, name):
    if not check_target_module_exists(cfg, name):
        return None
    rank, alpha = cfg.rank_pattern, cfg.alpha_pattern
    return [rank.get(get_pattern_key(rank.keys(), name), cfg.r),
            alpha.get(get_pattern_key(alpha.keys(), name), cfg.lora_alpha)]


cases = []
for options in CASES:
    cfg = LoraConfig(**options)
    answers = [says(cfg, name) for name in NAMES]
    cases.append({"config": {"peft_type": "LORA"} | options, "answers": answers})
    print(sum(a is not None for a in answers), options)
write_json("lora_rules.json", {"names": NAMES, "cases": cases} | versions("peft"))
