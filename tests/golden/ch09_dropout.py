"""transformers' Llama in training mode, under masks that are drawn as ours are.

The library draws its masks from Philox4x32-10 by (seed, step, place); transformers takes
them from torch's generator. Here the draws are written a second time, in numpy, and put
where transformers calls `dropout`; hooks add the embedding's and the residual ones, for
which Llama has no place. So everything but the masks is the reference's.
"""
import numpy as np
import torch
import transformers
from common import HERE, versions
from safetensors.torch import save_file

SEED, STEP = 5 + (7 << 32), 9 + (1 << 32)
RATES = {"embedding": 0.1, "attention": 0.25, "residual": 0.3}


def philox(counter, key):
    """Four words for each counter: arrays of uint32. Salmon et al. 2011."""
    c = [np.asarray(x, dtype=np.uint64) for x in counter]
    k0, k1 = key
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p, q = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        hi_p, hi_q = p >> np.uint64(32), q >> np.uint64(32)
        c = [hi_q ^ c[1] ^ np.uint64(k0), q & low, hi_p ^ c[3] ^ np.uint64(k1), p & low]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


def factors(shape, p, place):
    """0 or 1 / (1 - p). Groups of 16 counters give 128 draws of 16 bits: word by word,
    of each word first the low halves of all counters, then the high ones."""
    n = int(np.prod(shape))
    groups = -(-n // 128)
    lanes = np.arange(groups * 16, dtype=np.uint64)
    full = lambda x: np.full_like(lanes, x)
    counter = [lanes, full(place), full(STEP % 2**32), full(STEP >> 32)]
    words = philox(counter, (SEED % 2**32, SEED >> 32))
    draws = np.empty((groups, 4, 2, 16), dtype=np.int64)
    for w, word in enumerate(words):
        word = word.reshape(groups, 16).astype(np.int64)
        draws[:, w, 0], draws[:, w, 1] = word & 0xFFFF, word >> 16
    below = round(p * 65536)
    kept = np.float32(1 / (1 - below / 65536))
    mask = np.where(draws.reshape(-1)[:n] >= below, kept, np.float32(0))
    return torch.from_numpy(mask.astype(np.float32)).reshape(shape)


def main():
    model = transformers.LlamaForCausalLM.from_pretrained(
        HERE / "llama_gqa", torch_dtype=torch.float32, attn_implementation="eager",
        attention_dropout=RATES["attention"],
    ).train()
    place = 1 << 31
    layers = model.model.layers
    calls = iter(range(len(layers)))

    def dropout(x, p=0.5, training=True, inplace=False):
        assert training and p == RATES["attention"]
        return x * factors(x.shape, p, place + 4 * next(calls))

    def drop(rate, at):
        def hook(_module, _inputs, output):
            first = output[0] if isinstance(output, tuple) else output
            dropped = first * factors(first.shape, rate, at)
            return (dropped, *output[1:]) if isinstance(output, tuple) else dropped
        return hook

    model.model.embed_tokens.register_forward_hook(drop(RATES["embedding"], place + 3))
    for i, layer in enumerate(layers):
        at = place + 4 * i
        layer.self_attn.register_forward_hook(drop(RATES["residual"], at + 1))
        layer.mlp.register_forward_hook(drop(RATES["residual"], at + 2))
    torch.nn.functional.dropout = dropout
    ids = torch.randint(3, 64, (2, 11), generator=torch.Generator().manual_seed(1))
    logits = model(ids, use_cache=False).logits
    logits.square().mean().backward()
    assert next(calls, None) is None, "attention did not drop in every layer"
    out = {"ids": ids, "logits": logits.detach()}
    for name, p in model.named_parameters():
        out[f"grad.{name}"] = p.grad
    save_file(out, HERE / "ch09_dropout.safetensors", {"versions": str(versions("transformers"))})


if __name__ == "__main__":
    main()
