"""bitsandbytes' CUDA rule for NF4 with double quantization, in numpy.

A port of `dQuantizeNF4`, `dQuantize`, `kQuantizeBlockwise` (csrc/kernels.cu) and
`create_dynamic_map` (functional.py), bitsandbytes 0.50.2: float32 throughout, every
operation rounded by itself.
"""
from fractions import Fraction

import numpy as np
import torch

F = np.float32
LEVELS = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
    0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0], F)


def literal(text):
    """A C literal with the suffix f: the float nearest to the decimal number. By way
    of a double, as Python reads it, four of these would come out one place off."""
    near = F(text)
    found = [near, np.nextafter(near, F(-2)), np.nextafter(near, F(2))]
    return min(found, key=lambda x: abs(Fraction(float(x)) - Fraction(text)))


# As in the kernel's source, and found so in its compiled constants (cuda118).
THRESHOLDS = np.array([literal(t) for t in """
    -0.8480964004993439 -0.6106329262256622 -0.4599952697753906 -0.33967943489551544
    -0.23460740596055984 -0.13791173323988914 -0.045525018125772476
    0.03979014977812767 0.1202552504837513 0.2035212516784668 0.2920137718319893
    0.3893125355243683 0.5016634166240692 0.6427869200706482 0.8614784181118011
""".split()], F)


def dynamic_map():
    """The 256 values of the signed 8-bit code with 7 exponent bits."""
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        middle = (edges[:-1] + edges[1:]) / 2.0
        for sign in (1, -1):
            values += (sign * (10.0 ** (i - 6)) * middle).tolist()
    return np.array(sorted(values), F)


def blocks(x, size):
    """Rows of `size`; the last is filled up with zeros, which change no maximum."""
    x = np.asarray(x, F).reshape(-1)
    return np.concatenate([x, np.zeros(-len(x) % size, F)]).reshape(-1, size)


def scaled(x, size):
    """(x * (1 / absmax), absmax) per block; a block of zeros becomes NaN."""
    rows = blocks(x, size)
    absmax = np.abs(rows).max(1).astype(F)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return (rows * (F(1) / absmax)[:, None]).reshape(-1)[: np.size(x)], absmax


def nf4_codes(x, size):
    """Number of thresholds strictly below; NaN compares false: code 0.

    An odd count is filled up with a zero, whose code is stored like the others.
    """
    x = np.asarray(x, F).reshape(-1)
    unit, absmax = scaled(np.append(x, np.zeros(len(x) % 2, F)), size)
    codes = np.zeros(len(unit), np.uint8)
    for t in THRESHOLDS:
        codes += unit > t
    return codes, absmax


def pack(codes):
    """Element 2j in the high half of byte j."""
    return (codes[0::2] << 4 | codes[1::2]).reshape(-1, 1)


def eight_bit_codes(x, size=256):
    """The binary search from entry 127, then the comparison with a midpoint."""
    code = dynamic_map()
    unit, absmax = scaled(x, size)
    out = np.zeros(len(unit), np.uint8)
    for k, x in enumerate(unit):
        pivot, high, low = 127, 255, 0
        upper, lower, val = F(1), F(-1), code[127]
        step = 64
        while step:
            if x > val:
                low, lower, pivot = pivot, val, pivot + step
            else:
                high, upper, pivot = pivot, val, pivot - step
            val = code[pivot]
            step >>= 1
        if high == 255:
            upper = code[255]
        if low == 0:
            lower = code[0]
        if x > val:
            out[k] = high if x > F(upper + val) * F(0.5) else pivot
        else:
            out[k] = low if x < F(lower + val) * F(0.5) else pivot
    return out, absmax


def quantize(w, size, double):
    """The tensors of a bitsandbytes checkpoint, by their names there."""
    codes, absmax = nf4_codes(w, size)
    out = {"packed": pack(codes), "absmax": absmax}
    if double:
        offset = torch.from_numpy(absmax).mean().numpy()
        q, nested = eight_bit_codes(absmax - offset)
        back = dynamic_map()[q] * nested.repeat(256)[: len(q)] + offset
        out = {"packed": out["packed"], "absmax": q, "nested_absmax": nested}
        out |= {"offset": offset.reshape(1), "absmax_f32": back.astype(F)}
        absmax = back.astype(F)
    codes = codes[: np.size(w)]
    out["dequantized"] = LEVELS[codes] * absmax.repeat(size)[: len(codes)]
    return out
