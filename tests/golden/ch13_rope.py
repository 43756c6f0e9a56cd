"""Tiny checkpoints whose positions depend on the length of the text, as ch13_families.py
writes them: the `ids` are longer than the trained length, the padded rows and the
greedy text are not.
"""
from llama_common import *  # noqa: F403

BF16 = torch.bfloat16
SHORT, LONG = [1.0, 1.05, 1.2, 1.5, 1.8, 2.2], [1.1, 1.6, 2.5, 4.0, 7.0, 9.0]
CASES = {
    "llama_dynamic": ("Llama", {
        "max_position_embeddings": 32,
        "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
    "qwen3_longrope": ("Qwen3", {
        "head_dim": 12, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "original_max_position_embeddings": 32,
        "rope_scaling": {"rope_type": "longrope", "short_factor": SHORT,
                         "long_factor": LONG}}),
}
for seed, (name, (family, changes)) in enumerate(CASES.items(), 330):
    model = random_model(seed, BF16, family=family, **changes)
    save(model, HERE / name, BF16)
    write_expected(model, HERE / name, seed, 24)
