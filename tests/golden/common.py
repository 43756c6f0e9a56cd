"""Shared by the golden scripts: versions, determinism, and writing files.

Every script here runs alone: `python tests/golden/<name>.py`, with
`pip install torch==2.11.0 transformers==4.57.1 peft==0.21.2 bitsandbytes==0.50.2`.
Each rewrites its own files beside itself; a second run gives the same numbers on the
same kind of CPU. The Rust tests read the files and never run Python.
"""
import importlib.metadata
import json
import os
import pathlib

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

HERE = pathlib.Path(__file__).resolve().parent


def versions(*names):
    """What produced a file, by package name."""
    return {n: importlib.metadata.version(n) for n in ("torch", *names)}


def write_json(name, value):
    """Floats are written so that they read back to the same bits."""
    path = HERE / name
    path.write_text(json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n")
    print(f"{name}: {path.stat().st_size} bytes")
