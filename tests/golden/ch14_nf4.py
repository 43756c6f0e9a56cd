"""NF4 and double quantization: the CUDA rule byte for byte, beside bitsandbytes' CPU.

Writes ch14_nf4.safetensors: for each case the weight, the CUDA rule's tensors, and
the absmax codes that bitsandbytes' own CPU library gives. The two agree on every
packed byte but for blocks of zeros or below 1e-38 and values on the 1st, 9th, 13th and
15th threshold (means of two levels, in f32, on the CPU; decimal literals in CUDA, which
round to the float next to it); and on all but some 0.2 % of the absmax codes: the CPU
library first rounds its argument to a table of 65,536 bins.
Checkpoints that people publish come from CUDA, so that rule is ours. (bitsandbytes
builds its kernels with --use_fast_math, where the compiler may approximate 1 / absmax
in the last place; the rule here divides exactly.)
"""
import json

import bitsandbytes.functional as bnb
import numpy as np
import torch
from common import HERE, versions
from nf4_rule import THRESHOLDS, dynamic_map, quantize
from safetensors.torch import save_file

F = np.float32
GOLD = np.uint64(0x9E3779B97F4A7C15)


def bits(n, seed):
    """SplitMix64 of (seed << 32) + index, so that Rust draws the same weights."""
    with np.errstate(over="ignore"):
        z = (np.arange(n, dtype=np.uint64) + np.uint64(seed << 32)) * GOLD + GOLD
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return z ^ z >> np.uint64(31)


def bell(n, seed):
    """Nearly normal, exact in f32: four 16-bit fields of one draw, added."""
    z, total = bits(n, seed), np.zeros(n, np.int64)
    for k in range(4):
        total += (z >> np.uint64(16 * k) & np.uint64(0xFFFF)).astype(np.int64)
    return ((total - 131070) / 65536).astype(F)


def coarse(w, size=64, grid=256):
    """Each block's largest magnitude moved up to a multiple of 1/grid: sums of
    absmax are then exact, and the same whatever the order they are added in."""
    flat = w.reshape(-1).copy()
    for i in range(0, len(flat), size):
        part = flat[i : i + size]
        j = np.abs(part).argmax()
        part[j] = np.copysign(np.ceil(np.abs(part[j]) * grid) / grid, part[j])
    return flat.reshape(w.shape)


def ties():
    """Thresholds and their neighbours, scaled by powers of two (exact)."""
    rows = []
    for e in range(8):
        near = [f(THRESHOLDS, F(d)) for f, d in
                ((np.nextafter, -2), (lambda t, _: t, 0), (np.nextafter, 2))]
        row = np.concatenate([[F(1)], *near, -THRESHOLDS, [F(-1), F(0), F(-0.0)]])
        rows.append(np.resize(row, 64).astype(F) * F(2.0 ** (e - 4)))
    return np.stack(rows)


def cases():
    uniform = (bits(64 * 64, 3) >> np.uint64(40)).astype(F) / F(2**23) - F(1)
    zeros = coarse(bell(32 * 64, 4).reshape(32, 64))
    zeros[3], zeros[10, :40], zeros[31] = 0, 0, -0.0
    tiny = coarse(bell(16 * 64, 5).reshape(16, 64))
    tiny[1] *= F(2.0**-126)  # denormal: a finite reciprocal
    tiny[2] *= F(2.0**-140)  # so small that 1 / absmax overflows
    tiny[3, 1:] *= F(2.0**-130)
    return {  # name: (weight, block size)
        "normal": (coarse(bell(150 * 128, 1).reshape(150, 128)), 64),
        "straddle": (coarse(bell(96 * 100, 2).reshape(96, 100)), 64),  # 100 % 64 != 0
        "partial": (coarse(bell(5 * 33, 6).reshape(5, 33)), 64),  # odd, a short block
        "uniform": (coarse(uniform.reshape(64, 64)), 64),
        "equal": (np.tile(coarse(bell(64, 7).reshape(1, 64)), (4, 1)), 64),
        "ties": (ties(), 64),
        "zeros": (zeros, 64),
        "tiny": (tiny, 64),
        "block32": (coarse(bell(40 * 48, 8).reshape(40, 48), 32), 32),
        "block256": (coarse(bell(40 * 48, 9).reshape(40, 48), 256), 256),
        "block4096": (coarse(bell(80 * 64, 10).reshape(80, 64), 4096), 4096),
        # 20,480 absmax codes, drawn again in Rust: too large to store.
        "large": (coarse(bell(1024 * 1280, 11).reshape(1024, 1280)), 64),
    }


def fnv(array):
    """FNV-1a of the bytes."""
    h = 0xCBF29CE484222325
    for b in np.ascontiguousarray(array).tobytes():
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


tensors, about = {}, {}
code = torch.from_numpy(dynamic_map())
assert torch.equal(code, bnb.create_dynamic_map()), "the 8-bit code differs"
for name, (w, size) in cases().items():
    ours = {d: quantize(w, size, d) for d in (False, True)}
    x = torch.from_numpy(w)
    for double in (False, True):
        q, state = bnb.quantize_4bit(x, None, None, size, double, "nf4")
        mine = ours[double]
        bytes_off = int((q.numpy().reshape(-1) != mine["packed"].reshape(-1)).sum())
        key = "double" if double else "plain"
        note = {"bytes_off_cpu": bytes_off}
        if not double:
            assert np.array_equal(state.absmax.numpy(), mine["absmax"]), name
        else:
            offset = np.asarray(state.offset.item(), F)
            assert offset == mine["offset"][0], (name, "offset")
            assert np.array_equal(state.state2.absmax.numpy(), mine["nested_absmax"])
            theirs = state.absmax.numpy().astype(int)
            gap = np.abs(theirs - mine["absmax"].astype(int))
            note |= {"codes": len(gap), "codes_off_cpu": int((gap > 0).sum())}
            note["largest_gap_cpu"] = int(gap.max())
            tensors[f"{name}.absmax_codes_cpu"] = state.absmax
        expected = {"ties": 32, "zeros": 64, "tiny": 32}.get(name, 0)
        assert bytes_off == expected, (name, bytes_off)
        if name == "large" and double:
            assert 0.0005 < note["codes_off_cpu"] / note["codes"] < 0.004, note
        about[f"{name}.{key}"] = note
        print(f"{name:10} {key:7}", note)
    meta = about[f"{name}.plain"]
    meta |= {"blocksize": size, "shape": list(w.shape)}
    if name == "large":
        meta["fnv_weight"] = fnv(w)
        meta["fnv_packed"] = fnv(ours[False]["packed"])
        meta["fnv_absmax"] = fnv(ours[False]["absmax"])
        meta["fnv_codes"] = fnv(ours[True]["absmax"])
        meta["fnv_dequantized"] = fnv(ours[True]["dequantized"])
        tensors["large.double.absmax"] = torch.from_numpy(ours[True]["absmax"])
        continue
    tensors[f"{name}.weight"] = x
    for double, key in ((False, "plain"), (True, "double")):
        for k, v in ours[double].items():
            if k == "packed" and double:
                continue  # the same
            if k == "dequantized":
                # One rounding to bf16; f32 is kept for the plain form only.
                back = torch.from_numpy(v)
                tensors[f"{name}.{key}.bf16"] = back.bfloat16().reshape(w.shape)
                if double:
                    continue
                v = v.reshape(w.shape)
            tensors[f"{name}.{key}.{k}"] = torch.from_numpy(np.ascontiguousarray(v))
tensors["dynamic_map"] = code
meta = {"about": json.dumps(about)} | versions("bitsandbytes", "numpy")
save_file(tensors, HERE / "ch14_nf4.safetensors", metadata=meta)
print((HERE / "ch14_nf4.safetensors").stat().st_size, "bytes")
